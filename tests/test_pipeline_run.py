"""The graph run with small real commands: order, skipping, failures, kills, locks."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import UserError
from pipeline import graph, local
from pipeline.cli import make_again, run
from pipeline.graph import load_graph, load_record, load_records, with_blocked
from pipeline.local import command_of, count_gpus
from pipeline.plan import Choices, plan
from pipeline.stage import Stage
from pipeline.status import read_status
from pipeline.summary import print_plan

# Appends its name to `order`, then writes its output; a file named after it makes it fail.
WRITE = """
import sys
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[2]
with (folder / "order").open("a") as order:
    order.write(name + "\\n")
print("this is", name)
if (folder / f"fail_{name}").exists():
    sys.exit(3)
(folder / name).write_text(sys.argv[3])
"""

# Counts to 200 in a file, 20 ms a step, and continues a count; leaves cleanly at a signal.
COUNT = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
stop = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
    signal.signal(number, lambda *_: stop.append(1))
count = folder / "count"
steps = int(count.read_text()) if count.exists() else 0
print("starting at", steps)
while steps < 100 and not stop:
    time.sleep(0.02)
    steps += 1
    count.with_name("count.tmp").write_text(str(steps))
    count.with_name("count.tmp").rename(count)
if steps == 100:
    (folder / "slow").write_text("done")
"""


def writer(folder, name, *needs, text="x", **fields):
    words = ("-c", WRITE, str(folder), name, text)
    output = folder / name
    return Stage(name, words, outputs=(output,), needs=needs, owns=(output,), **fields)


def diamond(folder):
    """a → b → c and d → tables, which runs whatever became of them."""
    return [
        writer(folder, "a"),
        writer(folder, "b", "a", replaceable=True),
        writer(folder, "c", "b"),
        writer(folder, "d"),
        writer(folder, "tables", "c", "d", always=True),
    ]


def counting(folder):
    slow = Stage("slow", ("-c", COUNT, str(folder)), (folder / "slow",), owns=(folder / "slow",))
    return [slow, writer(folder, "after", "slow")]


def order(folder):
    return (folder / "order").read_text().split()


def states(folder):
    entries = load_graph(folder)
    records = with_blocked(entries, load_records(folder, entries))
    return {name: record.state for name, record in records.items()}


def test_all_run_in_order_and_then_only_the_tables(tmp_path, capsys):
    assert run(diamond(tmp_path), tmp_path, 0) == 0
    assert order(tmp_path) == ["a", "b", "c", "d", "tables"]
    assert set(states(tmp_path).values()) == {graph.DONE}
    shown = capsys.readouterr().out
    assert "[2/5] b: started" in shown and "this is b" in shown and "[2/5] b: done" in shown
    assert "all 5 stages done" in shown
    assert run(diamond(tmp_path), tmp_path, 0) == 0
    assert order(tmp_path) == ["a", "b", "c", "d", "tables", "tables"]
    assert capsys.readouterr().out.count("done before") == 2 * 4  # as it passes, and in the summary


def test_graph_and_logs_tell_what_happened(tmp_path):
    run(diamond(tmp_path), tmp_path, 0)
    entry, record = load_graph(tmp_path)["b"], load_record(tmp_path, "b")
    assert entry.stage == diamond(tmp_path)[1] and entry.command[0] == sys.executable
    assert len(record.fingerprint) == 64 and 0 < record.seconds < 60
    assert record.started <= record.ended
    log = (tmp_path / "logs" / "b.log").read_text().splitlines()
    assert log[0].startswith("--- 20") and log[-1] == "this is b"


def test_a_deleted_output_is_made_again_and_what_it_feeds_is_not(tmp_path):
    run(diamond(tmp_path), tmp_path, 0)
    (tmp_path / "b").unlink()
    (tmp_path / "order").unlink()
    assert run(diamond(tmp_path), tmp_path, 0) == 0
    assert order(tmp_path) == ["b", "tables"]  # c's input has the same bytes as before


def test_other_inputs_make_a_stage_run_again_and_keep_the_old_output(tmp_path):
    run(diamond(tmp_path), tmp_path, 0)
    (tmp_path / "order").unlink()
    (tmp_path / "a").write_text("other bytes")
    assert run(diamond(tmp_path), tmp_path, 0) == 0
    assert order(tmp_path) == ["b", "tables"]
    (old,) = tmp_path.glob("old-????????/b")
    assert old.read_text() == "x"


def test_a_stage_that_may_not_be_replaced_is_asked_each_time(tmp_path):
    """As pre-training, which refuses a folder of other settings by itself."""
    refusing = WRITE.replace("(folder / name).write", "sys.exit(2)\n(folder / name).write")
    first = writer(tmp_path, "a")
    changed = replace(first, words=("-c", refusing, *first.words[2:]))
    assert run([first], tmp_path, 0) == 0
    seconds = load_record(tmp_path, "a").seconds
    for _ in range(2):
        assert run([changed], tmp_path, 0) == 1
        assert states(tmp_path) == {"a": graph.FAILED}
        assert load_record(tmp_path, "a").seconds == seconds, (
            "the time it took to make what is there"
        )
    assert run([first], tmp_path, 0) == 0
    assert order(tmp_path) == ["a", "a", "a"], "what is there was made by the first"


def test_a_stage_is_made_again_when_asked_and_its_old_output_is_kept(tmp_path):
    stages = diamond(tmp_path)
    run(stages, tmp_path, 0)
    (tmp_path / "order").unlink()
    make_again(stages, tmp_path, ["b", "d"])
    assert not (tmp_path / "b").exists() and len(list(tmp_path.glob("old-*/*"))) == 2
    assert run(stages, tmp_path, 0) == 0
    assert order(tmp_path) == ["b", "d", "tables"]
    with pytest.raises(UserError, match=r"--rerun table: no such stage \(did you mean tables\?"):
        make_again(stages, tmp_path, ["table"])
    miniature = plan(Choices("MINI", tmp_path))
    with pytest.raises(UserError, match="datasets/mini is not this run's alone"):
        make_again(miniature, tmp_path, ["data"])


def test_output_of_unknown_origin_is_left_to_the_stage(tmp_path):
    (tmp_path / "b").write_text("made by hand")
    run([writer(tmp_path, "b", replaceable=True)], tmp_path, 0)
    assert order(tmp_path) == ["b"] and not list(tmp_path.glob("old-*"))


def test_a_failure_stops_those_that_need_it_and_no_others(tmp_path, capsys):
    (tmp_path / "fail_b").touch()
    assert run(diamond(tmp_path), tmp_path, 0) == 1
    assert order(tmp_path) == ["a", "b", "d", "tables"]
    expected = {"a": "done", "b": "failed", "c": "blocked", "d": "done", "tables": "done"}
    assert states(tmp_path) == expected
    shown = capsys.readouterr().out
    assert "b: failed (exit code 3)" in shown and "c: not run, needs b, which is failed" in shown
    assert "1 failed (see " in shown and "logs/b.log" in shown
    (tmp_path / "fail_b").unlink()
    assert run(diamond(tmp_path), tmp_path, 0) == 0
    assert order(tmp_path)[4:] == ["b", "c", "tables"]


def test_the_report_is_written_whatever_failed(tmp_path, capsys):
    (tmp_path / "fail_b").touch()
    report = replace(plan(Choices("MINI", tmp_path))[-1], needs=("tables",))
    assert run([*diamond(tmp_path), report], tmp_path, 0) == 1
    assert states(tmp_path)["report"] == graph.DONE
    html = (tmp_path / "report.html").read_text()
    assert "2 of 5 stages" in html and "exit code 3" in html
    assert "this is b</code>" in html and "needs b, which is failed" in html
    (tmp_path / "fail_b").unlink()
    assert run([*diamond(tmp_path), report], tmp_path, 0) == 0
    assert f"all 6 stages done: see {tmp_path / 'report.html'}" in capsys.readouterr().out
    assert "All 5 stages" in (tmp_path / "report.html").read_text()


def test_a_stage_that_leaves_nothing_is_not_done(tmp_path, capsys):
    silent = Stage("silent", ("-c", "pass"), (tmp_path / "silent",))
    assert run([silent, writer(tmp_path, "b", "silent")], tmp_path, 0) == 1
    assert states(tmp_path) == {"silent": graph.INTERRUPTED, "b": graph.PENDING}
    assert "the same command continues" in capsys.readouterr().out


def test_a_stage_killed_by_a_signal_failed(tmp_path):
    words = ("-c", "import os; os.kill(os.getpid(), 9)")
    assert run([Stage("shot", words, (tmp_path / "shot",))], tmp_path, 0) == 1
    assert load_record(tmp_path, "shot").note == "killed by SIGKILL (out of memory?)"


def test_a_dry_run_says_what_would_be_skipped(tmp_path, capsys):
    stages = diamond(tmp_path)
    run(stages, tmp_path, 0)
    (tmp_path / "b").unlink()
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    print_plan(stages, tmp_path, 0)
    shown = capsys.readouterr().out
    for name in ("a", "d"):
        assert f"] {name}: done before, would be skipped" in shown
    for name in ("b", "c", "tables"):  # c: what b will leave is not known yet
        assert f"] {name}: would run" in shown
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_graph_of_another_version_is_named(tmp_path):
    (tmp_path / "graph.json").write_text('{"format": 1, "stages": {}}')
    with pytest.raises(UserError, match=r"graph\.json: written by another version.*format 1"):
        run(diamond(tmp_path), tmp_path, 0)


def test_a_damaged_graph_is_named(tmp_path):
    (tmp_path / "graph.json").write_text("{")
    with pytest.raises(UserError, match=r"graph\.json: not a graph"):
        run(diamond(tmp_path), tmp_path, 0)


# --- in a process of its own, to be killed ---


def start(folder):
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.test_pipeline_run import counting\n"
        "from pipeline.cli import run\n"
        "from common.errors import run_command\n"
        "folder = Path(sys.argv[1])\n"
        "run_command(lambda: sys.exit(run(counting(folder), folder, 0)))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_steps(folder, steps):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (folder / "count").exists() and int((folder / "count").read_text()) >= steps:
            return
        time.sleep(0.01)
    raise AssertionError("the stage did not start")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_stops_the_stage_cleanly_and_the_same_command_continues(tmp_path, number):
    process = start(tmp_path)
    wait_for_steps(tmp_path, 5)
    process.send_signal(number)
    shown, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"slow: interrupted (by {number.name})" in shown and "same command continues" in shown
    assert states(tmp_path) == {"slow": graph.INTERRUPTED, "after": graph.PENDING}
    steps = int((tmp_path / "count").read_text())
    assert 5 <= steps < 100
    shown, _ = start(tmp_path).communicate(timeout=30)
    assert f"starting at {steps}" in shown and "all 2 stages done" in shown
    assert set(states(tmp_path).values()) == {graph.DONE}


def test_after_kill_9_the_stage_holds_the_lock_to_its_end_and_is_not_repeated(tmp_path):
    process = start(tmp_path)
    wait_for_steps(tmp_path, 5)
    assert read_status(tmp_path)[0].state == "running"
    process.kill()
    process.wait()
    assert read_status(tmp_path)[0].state == "running"
    shown, _ = start(tmp_path).communicate(timeout=30)
    assert shown.startswith(f"error: {tmp_path}: in use by process {process.pid}")
    wait_for_steps(tmp_path, 100)
    deadline = time.monotonic() + 30
    while "in use" in shown and time.monotonic() < deadline:
        time.sleep(0.1)
        shown, _ = start(tmp_path).communicate(timeout=30)
    assert "slow: done before" in shown and "all 2 stages done" in shown


def test_the_status_of_a_run_whose_processes_are_gone(tmp_path):
    process = start(tmp_path)
    wait_for_steps(tmp_path, 1)
    process.kill()
    process.wait()
    wait_for_steps(tmp_path, 100)
    deadline = time.monotonic() + 30
    while graph.is_locked(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    found = read_status(tmp_path)[0]
    assert found.state == "interrupted" and "the same command continues" in found.detail


def test_two_at_once_are_refused(tmp_path):
    first = start(tmp_path)
    wait_for_steps(tmp_path, 1)
    second = start(tmp_path)
    shown, _ = second.communicate(timeout=30)
    assert second.returncode == 2
    assert shown.count("\n") == 1 and f"in use by process {first.pid}" in shown
    first.terminate()
    first.communicate(timeout=30)


def test_the_state_is_whole_while_the_stage_runs(tmp_path):
    process = start(tmp_path)
    wait_for_steps(tmp_path, 1)
    assert load_record(tmp_path, "slow").state == graph.RUNNING
    process.terminate()
    process.communicate(timeout=30)


# --- several GPUs ---


def test_several_gpus_launch_through_torchrun():
    words = ("-m", "pretrain", "--config-file", "x.yaml")
    assert command_of(words, 1) == (sys.executable, *words)
    command = " ".join(command_of(words, 4))
    assert command.endswith(
        "-m torch.distributed.run --standalone --nproc-per-node=4 -m pretrain --config-file x.yaml"
    )


@pytest.mark.parametrize("visible, count", [("", 0), ("0", 1), ("0,1,2", 3), ("-1", 0)])
def test_visible_gpus_are_counted(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == count


def test_gpus_are_counted_by_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_gpus() == 0
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA (UUID: GPU-1)'\necho '  MIG 1g'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert count_gpus() == 1


def test_the_stage_sees_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FOR_THE_STAGE", "passed on")
    code = f"import os; open({str(tmp_path / 'seen')!r}, 'w').write(os.environ['FOR_THE_STAGE'])"
    stage = Stage("look", ("-c", code), (tmp_path / "seen",))
    assert run([stage], tmp_path, 0) == 0
    assert (tmp_path / "seen").read_text() == "passed on"
    assert local.command_of(stage.words, 0)[0] == sys.executable
