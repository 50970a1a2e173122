"""What a stage gets on a cluster: configs/cluster/*.yaml and what the command line changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from common.code import ROOT
from common.errors import UserError, did_you_mean
from common.files import read_yaml
from pipeline.stage import Stage

PROFILES = Path("configs/cluster")  # below the repository's root


@dataclass(frozen=True)
class Resources:
    """Of one stage, on each of its nodes."""

    nodes: int
    tasks: int | None  # processes; None: one per GPU
    gpus: int
    cpus: int  # per process
    memory_gb: float | None  # 0: all of it; None: the cluster's default
    minutes: int  # the time limit

    @property
    def processes(self) -> int:
        """On each node."""
        return self.tasks or max(1, self.gpus)

    @property
    def gpu_hours(self) -> float:
        """All that it could use within one time limit."""
        return self.nodes * self.gpus * self.minutes / 60


@dataclass(frozen=True)
class Profile:
    """A cluster, as configs/cluster/slurm.yaml explains it."""

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    gpu_type: str | None
    setup: Sequence[str]
    python: Sequence[str] | None
    sbatch: Mapping[str, Any]
    srun: Sequence[str]
    signal_lead: int
    restarts: int
    gpu: Mapping[str, Any]
    cpu: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]

    def resources(self, stage: Stage) -> Resources:
        """What `stage` gets: the more of its name a difference names, the later it is applied."""
        merged = dict(self.gpu if stage.on_every_gpu else self.cpu)
        for name in sorted(self.stages, key=len):
            if f"{stage.name}/".startswith(f"{name}/"):
                merged |= self.stages[name]
        return Resources(**merged)


_RESOURCES = {field.name for field in fields(Resources)}
_SECTIONS = ("gpu", "cpu")
_WHOLE = {"signal_lead": 0, "restarts": 0, "nodes": 1, "tasks": 1, "gpus": 0, "cpus": 1}
_WHOLE |= {"minutes": 1}


def load_profile(name: str, changes: Sequence[str] = ()) -> Profile:
    """A profile by the name of its file under configs/cluster, or by a path, with `changes` made.

    A change is key=value or STAGE.resource=value. Raises UserError for whatever is not known.
    """
    available = {path.stem: path for path in (ROOT / PROFILES).glob("*.yaml")}
    file = available.get(name, Path(name))
    if not file.is_file():
        raise UserError(
            f"--cluster {name}: no such profile{did_you_mean(name, available)}: available are "
            f"auto, local, {', '.join(sorted(available))}, or a YAML file like them"
        )
    content = _read(file)
    stages = content["stages"] = {n: dict(v) for n, v in content["stages"].items()}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--slurm {change}: expected key=value")
        stage, dot, resource = key.rpartition(".")
        value = yaml.safe_load(text)
        if stage in _SECTIONS:
            content[stage] = {**content[stage], resource: value}
        elif dot:
            stages.setdefault(stage, {})[resource] = value
        else:
            content[key] = value
    return _checked(content, file)


def _read(file: Path) -> dict[str, Any]:
    """A file over its _BASE_, which is beside it or under configs/cluster."""
    content = read_yaml(file)
    base = content.pop("_BASE_", None)
    if base is None:
        return content
    beside = file.parent / str(base)
    below = _read(beside if beside.is_file() else ROOT / PROFILES / str(base))
    for section in (*_SECTIONS, "stages", "sbatch"):
        if section in content:
            content[section] = {**(below.get(section) or {}), **(content[section] or {})}
    return below | content


def _checked(content: dict[str, Any], file: Path) -> Profile:
    known = {field.name for field in fields(Profile)}
    _refuse_unknown(content, known, file)
    if missing := known - set(content):
        raise UserError(f"{file}: {', '.join(sorted(missing))} missing: add _BASE_: slurm.yaml")
    for section in (*_SECTIONS, "stages", "sbatch"):
        if not isinstance(content[section], dict):
            raise UserError(f"{file}: {section} must be a mapping")
    for section in ("setup", "srun", "python"):
        words = content[section]
        if not (isinstance(words, list) or (section == "python" and words is None)):
            raise UserError(f"{file}: {section} must be a list")
        content[section] = None if words is None else [str(word) for word in words]
    resources = [content["gpu"], content["cpu"], *content["stages"].values()]
    for given in resources:
        _refuse_unknown(given, _RESOURCES, file)
    for values in (content, *resources):
        for key, least in _WHOLE.items():
            value = values.get(key, least)
            good = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not good and not (key == "tasks" and value is None):
                raise UserError(f"{file}: {key} = {value}: a whole number of at least {least}")
    for section in _SECTIONS:
        if lacking := _RESOURCES - set(content[section]):
            raise UserError(f"{file}: {section}: {', '.join(sorted(lacking))} missing")
    return Profile(**content)


def _refuse_unknown(content: Mapping[str, Any], known: set[str], file: Path) -> None:
    for key in content:
        if key not in known:
            raise UserError(
                f"{file}: {key}: no such setting{did_you_mean(str(key), known)}: "
                f"known are {', '.join(sorted(known))}"
            )
