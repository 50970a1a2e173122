"""One stage: a command, what it needs, what it leaves, and the fingerprint of all that goes in."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.benchmarks import LAUNCH_KEYS
from common.code import ROOT
from common.files import fingerprint, read_yaml, sha256_of

# Where and how fast a stage runs, never what it computes: pre-training's section, benchmarks' keys.
_LAUNCH_KEYS = ("launch", *LAUNCH_KEYS)


@dataclass(frozen=True)
class Stage:
    """A command of the pipeline and the files by which it meets the others."""

    name: str
    words: tuple[str, ...]  # what follows the Python interpreter
    outputs: tuple[Path, ...]  # files that all exist once it is done; others read the first
    needs: tuple[str, ...] = ()  # names of the stages whose outputs it reads
    configs: tuple[Path, ...] = ()  # YAML files that it reads
    owns: tuple[Path, ...] = ()  # what it writes, as a whole
    replaceable: bool = False  # made from other inputs, what it owns is moved aside
    on_every_gpu: bool = False  # runs in one process per GPU
    resumes: bool = False  # saves and leaves at SIGUSR2 or SIGTERM, and continues when run again
    always: bool = False  # runs each time, whatever became of the stages it needs

    @property
    def kind(self) -> str:
        """What it is one of: pretrain, convert, benchmarks, tables, ..."""
        return self.name.partition("/")[0]

    @property
    def has_outputs(self) -> bool:
        """Whether everything it leaves is there."""
        return bool(self.outputs) and all(path.is_file() for path in self.outputs)

    def step(self) -> int:
        """The step of its newest checkpoint; 0 where there is none."""
        names = (path.stem for path in self.owns[0].glob("checkpoints/step_*.pth"))
        return max((int(name.removeprefix("step_")) for name in names), default=0)


def to_json(stage: Stage) -> dict[str, Any]:
    """The stage in plain types."""
    return {
        key: [str(item) for item in value] if isinstance(value, tuple) else value
        for key, value in asdict(stage).items()
    }


def from_json(content: dict[str, Any]) -> Stage:
    """The stage that `to_json` made plain. Raises TypeError or KeyError for anything else."""
    content = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
    paths = {key: tuple(map(Path, content[key])) for key in ("outputs", "configs", "owns")}
    return Stage(**(content | paths))


def plan_fingerprint(stage: Stage, folder: Path) -> str:
    """Hex SHA-256 of what is known of a stage before those it needs have run."""
    return fingerprint(_planned(stage, folder))


def stage_fingerprint(stage: Stage, stages: Mapping[str, Stage], folder: Path) -> str:
    """Hex SHA-256 of the command, its settings, and the outputs it reads.

    The run folder's own name, comments and launch settings are left out: none changes a result.
    Raises UserError when a configuration is missing or is not a mapping.
    """
    outputs = {name: stages[name].outputs[0] for name in stage.needs}
    return fingerprint(
        {
            **_planned(stage, folder),
            "inputs": {
                name: sha256_of(path) if path.is_file() else None for name, path in outputs.items()
            },
        }
    )


def _planned(stage: Stage, folder: Path) -> dict[str, Any]:
    return {
        "words": [word.replace(str(folder), "RUN") for word in stage.words],
        "settings": {path.name: read_settings(ROOT / path) for path in stage.configs},
    }


def read_settings(file: Path) -> dict[str, Any]:
    """A YAML file's settings under dotted keys, over those of its _BASE_; launch settings left out.

    Raises UserError when a file is missing or is not a mapping.
    """
    content = read_yaml(file)
    base = content.pop("_BASE_", None)
    settings = read_settings(file.parent / base) if base else {}
    settings.update(_dotted(content))
    return settings


def _dotted(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in _LAUNCH_KEYS:
            continue
        if isinstance(value, dict):
            yield from _dotted(value, f"{key}.")
        else:
            yield key, value
