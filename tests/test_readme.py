"""README's files exist, and its commands are ones that the programs know."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(
    r"(?:python|torchrun\s.*?) ?(-m (?!venv|pip)[\w.]+|run_all\.py)([^`\n]*)", README
)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|tests)/[\w./]+\.\w+", README))))
def test_a_named_file_exists(path):
    assert (ROOT / path).is_file()


def test_the_file_tree_names_every_module():
    for package in ("common", "pretrain", "converters", "benchmarks", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            assert path.name == "__init__.py" or path.name in README, path


@pytest.mark.parametrize("program", sorted({program for program, _ in COMMANDS}))
def test_a_commands_options_are_known(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(SystemExit) as left:
        if program == "run_all.py":
            runpy.run_path(str(ROOT / program), run_name="__main__")
        else:
            runpy.run_module(program.removeprefix("-m "), run_name="__main__", alter_sys=True)
    assert left.value.code in (0, None)
    help_text = capsys.readouterr().out
    for other, arguments in COMMANDS:
        options = [word for word in shlex.split(arguments) if word.startswith("--")]
        if other == program:
            assert all(option in help_text for option in options), options
