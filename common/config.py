"""Typed configuration: defaults in a frozen dataclass < YAML file < key=value words.

OmegaConf merges and checks; what comes out is the frozen dataclass, and OmegaConf disappears.
"""

from collections.abc import Iterator, Sequence
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from common.errors import UserError, did_you_mean
from common.files import read_yaml

Schema = TypeVar("Schema")


def option(default: Any, help_text: str) -> Any:
    """A dataclass field with its default and the line that --help shows for it."""
    return field(default=default, metadata={"help": help_text})


def describe(schema: type, prefix: str = "") -> list[str]:
    """One line per setting: key = default, and what it is."""
    lines = []
    for item in fields(schema):
        key = f"{prefix}{item.name}"
        if isinstance(item.type, type) and is_dataclass(item.type):
            lines += describe(item.type, f"{key}.")
        else:
            lines.append(f"  {key + ' = ' + str(item.default):<44}{item.metadata['help']}")
    return lines


def load_config(schema: type[Schema], file: Path | None, overrides: Sequence[str] = ()) -> Schema:
    """The configuration of `file` with `overrides` (key.key=value) applied.

    Raises UserError naming the file, the key and what was expected.
    """
    config = _writable(OmegaConf.structured(schema))
    if file is not None:
        config = _merge(config, OmegaConf.create(read_yaml(file)), str(file))
    for word in overrides:
        if "=" not in word:
            raise UserError(f"{word!r}: settings are written key=value, for example optim.lr=0.03")
        config = _merge(config, OmegaConf.from_dotlist([word]), f"command line {word!r}")
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def to_yaml(config: Any) -> str:
    """The configuration as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _writable(config: DictConfig) -> DictConfig:
    """Allow merging: OmegaConf marks what came from frozen dataclasses read-only."""
    OmegaConf.set_readonly(config, False)
    for key in config:
        if OmegaConf.is_dict(config[key]):
            _writable(config[key])
    return config


def _merge(config: DictConfig, changes: DictConfig, source: str) -> DictConfig:
    try:
        return OmegaConf.merge(config, changes)  # type: ignore[return-value]
    except ConfigKeyError as error:
        known = list(_dotted_keys(OmegaConf.to_container(config)))
        key = str(error.full_key)
        raise UserError(f"{source}: unknown key {key}{did_you_mean(key, known)}") from None
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        raise UserError(f"{source}: {error.full_key}: {reason}") from None


def _dotted_keys(tree: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(tree, dict):
        yield prefix
        return
    for name, value in tree.items():
        yield from _dotted_keys(value, f"{prefix}.{name}" if prefix else str(name))
