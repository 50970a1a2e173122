"""Benchmark configurations: Detectron2's YAML, its _BASE_ and its KEY VALUE words.

The file at the end of a _BASE_ chain holds every key; each other file, and the command line, may
only change keys that exist. Values are read as Detectron2 reads them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from common.benchmarks import LAUNCH_KEYS, benchmark_files
from common.errors import UserError, did_you_mean
from common.files import fingerprint, read_yaml

FOLDER = Path(__file__).parent.parent / "configs" / "benchmarks"


def find_config(benchmark: str) -> Path:
    """The YAML file of a short name, of a file's name under configs/benchmarks, or of a path.

    Raises UserError when there is none.
    """
    known = benchmark_files()
    if benchmark.endswith((".yaml", ".yml")):
        path = Path(benchmark)
    else:
        path = FOLDER / (known[benchmark].name if benchmark in known else f"{benchmark}.yaml")
    if not path.is_file():
        names = [*known, *(file.stem for file in FOLDER.glob("*.yaml"))]
        hint = did_you_mean(benchmark, names)
        raise UserError(
            f"{benchmark}: no such benchmark{hint}: give {', '.join(known)} or a YAML file"
        )
    return path


def load_config(file: Path, overrides: Sequence[str] = ()) -> CfgNode:
    """The resolved configuration of `file` with `overrides` (KEY VALUE KEY VALUE ...).

    Raises UserError naming the file or the word, the key, and what was expected.
    """
    config = _load_chain(Path(file))
    if len(overrides) % 2:
        raise UserError(f"{overrides[-1]}: settings are KEY VALUE pairs; this one has no value")
    for key, value in zip(overrides[::2], overrides[1::2]):
        _merge(config, _nested(key, value), f"command line {key} {value!r}")
    config.freeze()
    return config


def identity(config: CfgNode) -> dict[str, Any]:
    """The part of the configuration that decides a result: all but the launch settings."""
    return {key: value for key, value in _items(config) if key not in LAUNCH_KEYS}


def config_sha256(config: CfgNode) -> str:
    """Fingerprint of `identity`."""
    return fingerprint(identity(config))


def _load_chain(file: Path) -> CfgNode:
    content = read_yaml(file)
    base = content.pop("_BASE_", None)
    if base is None:
        return CfgNode(content)
    config = _load_chain(file.parent / base)
    _merge(config, content, str(file))
    return config


def _merge(config: CfgNode, changes: dict[str, Any], source: str) -> None:
    """Apply nested `changes`, each to a key that exists and with a value of its type."""
    known = dict(_items(config))
    for key, value in _items(changes):
        if key not in known:
            raise UserError(f"{source}: unknown key {key}{did_you_mean(key, known)}")
        try:
            # Words are read as Detectron2 reads them: "0.02" is a number, "(1, 2)" a tuple.
            typed = _as_type_of(known[key], CfgNode._decode_cfg_value(value))
        except TypeError:
            expected = type(known[key]).__name__
            raise UserError(
                f"{source}: {key}: expected {expected} (such as {known[key]}), found {value!r}"
            ) from None
        config.merge_from_list([key, typed])


def _as_type_of(example: Any, value: Any) -> Any:
    """`value`, an integer as a float where `example` is one; TypeError for another type."""
    if isinstance(example, list | tuple) and isinstance(value, list | tuple):
        return [_as_type_of(example[0], item) for item in value] if example else list(value)
    if isinstance(example, float) and type(value) is int:
        return float(value)
    if type(value) is not type(example):
        raise TypeError
    return value


def _nested(key: str, value: str) -> dict[str, Any]:
    """{"A": {"B": value}} of the key A.B."""
    tree: Any = value
    for name in reversed(key.split(".")):
        tree = {name: tree}
    return tree


def _items(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("A.B", value) of each value of nested dictionaries."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
