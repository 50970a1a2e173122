"""DESIGN's rules of the house, read from the source: who imports whom, and what is never done."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("pretrain", "converters", "benchmarks")
PACKAGES = (*STAGES, "pipeline", "common")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
FILES.append(ROOT / "run_all.py")
TREES = {str(f.relative_to(ROOT)): ast.parse(f.read_text(encoding="utf-8")) for f in FILES}


def imports(tree):
    """Dotted names of all modules that are imported anywhere in the tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield node.module or ""


def importers(package):
    """Files that import `package` or a part of it."""
    return {
        path
        for path, tree in TREES.items()
        if any(name.split(".")[0] == package for name in imports(tree))
    }


def calls(tree):
    """(dotted name, call) of all calls whose function is a plain dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def inside(*places):
    return {path for path in TREES if path.startswith(places)}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_meet_only_through_files(stage):
    assert importers(stage) <= inside(f"{stage}/")


def test_common_imports_nothing_else_of_ours():
    for package in (*STAGES, "pipeline", "run_all"):
        assert not importers(package) & inside("common/")


def test_detectron2_has_one_home_in_benchmarks_and_one_in_converters():
    users = importers("detectron2")
    assert users <= inside("benchmarks/", "converters/")
    assert users & inside("benchmarks/") <= inside("benchmarks/detectron2_engine/")
    assert users & inside("converters/") == {"converters/detectron2_check.py"}


def test_submitit_launches_and_tells_processes_apart_only():
    assert importers("submitit") <= inside("pipeline/", "common/distributed.py")


def test_planning_needs_no_torch():
    modules = [
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in [*sorted(inside("pipeline/")), "run_all.py"]
        if not path.endswith("__main__.py")
    ]
    if modules == ["pipeline", "run_all"]:
        pytest.skip("there is no pipeline yet")
    program = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_checkpoints_are_read_as_tensors_and_plain_types():
    for path, tree in TREES.items():
        for name, call in calls(tree):
            if name == "torch.load":
                safe = {word.arg: ast.unparse(word.value) for word in call.keywords}
                assert safe.get("weights_only") == "True", f"{path}:{call.lineno}"


def test_pickles_are_read_in_one_place():
    readers = {
        path
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if ast.unparse(node) in ("pickle.load", "pickle.loads", "pickle.Unpickler")
    }
    assert readers == {"common/pickles.py"}
    for path, tree in TREES.items():
        found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not any(node.module == "pickle" for node in found), path
    for other in ("dill", "cloudpickle", "joblib", "shelve", "marshal"):
        assert not importers(other)


def test_no_text_is_run_as_a_program():
    for path, tree in TREES.items():
        for name, call in calls(tree):
            where = f"{path}:{call.lineno}"
            assert name not in ("os.system", "os.popen", "eval", "exec"), where
            for word in call.keywords:
                assert word.arg != "shell" or ast.unparse(word.value) == "False", where


def public_functions():
    """(where, function) of functions and methods that other modules may call."""
    for path, tree in TREES.items():
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
        for node in [*tree.body, *(child for parent in classes for child in parent.body)]:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield f"{path}:{node.lineno} {node.name}", node


def test_public_functions_say_what_they_do():
    described_elsewhere = ("forward", "main")  # by the network's class, and by the command's module
    for where, function in public_functions():
        assert ast.get_docstring(function) or function.name in described_elsewhere, where


def test_public_functions_are_typed():
    for where, function in public_functions():
        assert function.returns is not None, where
        words = function.args
        arguments = [*words.posonlyargs, *words.args, *words.kwonlyargs, words.vararg, words.kwarg]
        untyped = [a.arg for a in arguments if a is not None and a.annotation is None]
        assert set(untyped) <= {"self", "cls"}, where


def test_modules_and_public_classes_say_what_they_are():
    for path, tree in TREES.items():
        assert ast.get_docstring(tree) or not tree.body, path
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}"
