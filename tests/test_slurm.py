"""The stage graph as jobs of a real SLURM, and everything that may happen to them there.

`make test-slurm` runs these: as root, with Debian's slurmctld, slurmd, slurm-client and munge.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from benchmark_fixtures import TINY
from test_pretrain_resume import assert_equal, last_step, logged

from common.checkpoint import load_checkpoint
from common.errors import UserError
from pipeline import doctor, graph, slurm
from pipeline.cluster import load_profile
from pipeline.graph import load_graph, load_record, save_graph
from pipeline.plan import Choices, plan
from pipeline.stage import Stage
from pipeline.status import read_status
from pipeline.submit import submit_graph
from tests.slurm_cluster import Cluster, why_not

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

ROOT = Path(__file__).parent.parent
SMALL = ("cpu.cpus=1", "cpu.memory_gb=1", "signal_lead=60")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory, worker_id):
    """A SLURM in which a requeued job starts soon, where SLURM would hold it for two minutes.

    Each of the processes that share the tests has its own.
    """
    port = 16900 + 20 * int(worker_id.removeprefix("gw").replace("master", "0"))
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster", port) as running:
        ended = threading.Event()

        def release():
            while not ended.wait(0.5):
                running.release()

        thread = threading.Thread(target=release)
        thread.start()
        yield running
        ended.set()
        thread.join()


@pytest.fixture
def folder(cluster, request):
    """A run folder in the user's home, because /tmp is refused as a node's own."""
    place = Path.home() / ".cache" / "densecl-slurm-tests" / f"{os.getpid()}-{request.node.name}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    yield place
    jobs = [entry.job for entry in load_graph(place).values() if entry.job]
    slurm.cancel(jobs)
    wait(lambda: not slurm.queue().keys() & set(jobs), 30)
    for file in sorted(place.glob("logs/jobs/*/*_log.out")):
        print(file.name, file.read_text(), sep="\n")  # shown where a test failed
    shutil.rmtree(place, ignore_errors=True)


def wait(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in time: {slurm.queue()}"
        time.sleep(0.1)


def settle(folder, seconds=240):
    """Wait until none of the run's jobs is in the queue; the stages' states."""
    jobs = {entry.job for entry in load_graph(folder).values()}
    wait(lambda: not slurm.queue().keys() & jobs, seconds)
    return states(folder)


def states(folder):
    return {status.stage: status.state for status in read_status(folder)}


def log(folder, name):
    file = folder / "logs" / f"{name}.log"
    return file.read_text() if file.exists() else ""


def jobs(folder):
    return {name: entry.job for name, entry in load_graph(folder).items()}


# --- a graph of small commands ---

WRITE = """
import sys, time
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[2]
with (folder / "order").open("a") as order:
    order.write(name + "\\n")
if (folder / f"fail_{name}").exists():
    sys.exit("error: " + name + " cannot go on")
(folder / name).write_text("x")
"""


def writer(folder, name, *needs, **fields):
    words = ("-c", WRITE, str(folder), name)
    return Stage(name, words, (folder / name,), needs, owns=(folder / name,), **fields)


def small_graph(folder):
    """a → b → c, d and e → tables → report, which run whatever became of the others."""
    return [
        writer(folder, "a"),
        writer(folder, "b", "a", replaceable=True),
        writer(folder, "c", "b", replaceable=True),
        writer(folder, "d", "b", replaceable=True),
        writer(folder, "e"),
        writer(folder, "tables", "c", "d", "e", always=True),
        writer(folder, "report", "tables", always=True),
    ]


def submit(stages, folder, *changes):
    return submit_graph(stages, folder, load_profile("slurm", (*SMALL, *changes)))


def order(folder):
    return (folder / "order").read_text().split()


def state_of(job):
    found = slurm.queue().get(job)
    return found.state if found else "ended"


def wait_until_running(job):
    wait(lambda: state_of(job) == "RUNNING")


def send(job, number):
    """A signal to the processes of a job's step, as SLURM sends it before a time limit."""
    subprocess.run(["scancel", f"--signal={number}", job], check=False)


def run_all(*words, expect=0):
    command = [sys.executable, "run_all.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stderr if expect else done.stdout


def test_the_graph_runs_in_its_order_and_a_second_call_submits_nothing(folder):
    stages = small_graph(folder)
    assert submit(stages, folder).submitted == [stage.name for stage in stages]
    number = jobs(folder)
    script = folder / "logs" / "jobs" / number["tables"] / f"{number['tables']}_submission.sh"
    expected = f"#SBATCH --dependency=afterany:{number['c']}:{number['d']}:{number['e']}\n"
    assert expected in script.read_text()
    assert not submit(stages, folder).submitted
    assert set(settle(folder).values()) == {graph.DONE}
    ran = order(folder)
    assert ran.index("a") < ran.index("b") < min(ran.index("c"), ran.index("d"))
    assert ran[-2:] == ["tables", "report"] and sorted(ran) == sorted(s.name for s in stages)
    assert submit(stages, folder).done == [stage.name for stage in stages]
    assert order(folder) == ran


def test_what_is_deleted_or_changed_is_made_again_with_what_hangs_on_it(folder):
    stages = small_graph(folder)
    submit(stages, folder)
    settle(folder)
    (folder / "c").unlink()
    assert submit(stages, folder).submitted == ["c", "tables", "report"]
    settle(folder)
    (folder / "b").write_text("other bytes")  # as new weights
    assert submit(stages, folder).submitted == ["c", "d", "tables", "report"]
    assert set(settle(folder).values()) == {graph.DONE}
    ran = order(folder)[7:]
    assert ran[:3] + ran[-2:] == ["c", "tables", "report", "tables", "report"]
    assert sorted(ran[3:5]) == ["c", "d"] and len(ran) == 7
    assert sorted(old.name for old in folder.glob("old-*/*")) == ["c", "d"]


def test_a_failure_cancels_what_needs_it_and_the_same_command_mends_it(folder):
    stages = small_graph(folder)
    (folder / "fail_b").touch()
    submit(stages, folder)
    found = settle(folder)
    blocked, done = dict.fromkeys("cd", graph.BLOCKED), dict.fromkeys("ae", graph.DONE)
    rest = {"b": graph.FAILED, "tables": graph.DONE, "report": graph.DONE}
    assert found == {**blocked, **done, **rest}
    told = {status.stage: status.detail for status in read_status(folder)}
    assert told["b"] == "exit code 1: error: b cannot go on"
    assert told["c"] == "needs b, which is failed"
    (folder / "fail_b").unlink()
    assert submit(stages, folder).submitted == ["b", "c", "d", "tables", "report"]
    assert set(settle(folder).values()) == {graph.DONE}
    assert sorted(order(folder)[5:]) == sorted(["b", "c", "d", "tables", "report"])


# --- what a job does when it is disturbed ---

# Counts to a number in steps of 0.1 s, keeping each tenth as a checkpoint; continues the count.
COUNT = """
import signal, sys, time
from pathlib import Path
folder, last, stuck = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["stuck"]
stop = []
numbers = (signal.SIGTERM, signal.SIGUSR2)
for number in numbers:
    signal.signal(number, lambda *_: stop.append(1))
signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
saved = folder / "checkpoints"
saved.mkdir(parents=True, exist_ok=True)
step = max((int(path.stem[5:]) for path in saved.glob("step_*.pth")), default=0)
print("continuing after step", step, flush=True)
while step < last and not stop:
    time.sleep(0.1)
    step += not stuck
    if step % 10 == 0:
        (saved / f"step_{step:08d}.pth").touch()
(saved / f"step_{step:08d}.pth").touch()
if step == last:
    (folder / "DONE").touch()
"""


def counting(folder, *words, last=60):
    """A stage that can be interrupted, and one that needs it."""
    place = folder / "count"
    command = ("-c", COUNT, str(place), str(last), *words)
    count = Stage("count", command, (place / "DONE",), owns=(place,), resumes=True)
    return [count, writer(folder, "after", "count")]


def found_steps(folder, name):
    return [int(n) for n in re.findall(r"continuing after step (\d+)", log(folder, name))]


@pytest.mark.parametrize("number", ["USR2", "TERM"])
def test_a_signal_before_the_stage_can_take_it_is_not_lost_and_ends_nothing(folder, number):
    submit(counting(folder), folder)
    job = jobs(folder)["count"]
    wait(lambda: "restart=0 " in log(folder, "count"))
    send(job, number)
    wait(lambda: len(found_steps(folder, "count")) == 2)
    assert states(folder)["after"] == "queued"
    assert settle(folder) == {"count": graph.DONE, "after": graph.DONE}
    assert load_record(folder, "count").steps[0] == 0


@pytest.mark.parametrize("own_signal", [True, False])
def test_a_preempted_job_saves_and_continues(cluster, folder, own_signal):
    cluster.warn_by_user_signal(own_signal)
    submit(counting(folder), folder, "partition=low")
    job = jobs(folder)["count"]
    wait(lambda: found_steps(folder, "count") == [0])
    time.sleep(1)
    preempt(cluster, job)
    assert settle(folder) == {"count": graph.DONE, "after": graph.DONE}
    cluster.warn_by_user_signal(True)
    first, second = found_steps(folder, "count")
    assert first == 0 and 0 < second < 60
    assert order(folder) == ["after"]


def test_a_job_at_its_time_limit_saves_and_continues(folder):
    """A limit of one minute for 70 s of work: SLURM's own signal, up to a minute early."""
    submit(counting(folder, last=700), folder, "count.minutes=1", "signal_lead=20")
    assert settle(folder, 400) == {"count": graph.DONE, "after": graph.DONE}
    steps = found_steps(folder, "count")
    assert len(steps) >= 2 and steps == sorted(set(steps))
    assert tuple(steps) == load_record(folder, "count").steps


def test_a_stage_that_gets_nowhere_is_ended_with_the_reason(folder):
    submit(counting(folder, "stuck"), folder)
    job = jobs(folder)["count"]
    for start in range(1, 3):
        wait(lambda start=start: len(found_steps(folder, "count")) == start)
        send(job, "USR2")
    assert settle(folder) == {"count": graph.FAILED, "after": graph.BLOCKED}
    (status, _) = read_status(folder)
    assert "restarted twice at step 0" in status.detail and status.restarts == 2


def test_too_many_restarts_end_a_stage(folder):
    submit(counting(folder), folder, "restarts=1")
    job = jobs(folder)["count"]
    for start in range(1, 3):
        wait(lambda start=start: len(found_steps(folder, "count")) == start)
        time.sleep(0.5)
        send(job, "USR2")
    assert settle(folder) == {"count": graph.FAILED, "after": graph.BLOCKED}
    assert "restarted 1 times, the most" in read_status(folder)[0].detail


def test_a_cancelled_job_does_not_come_back_but_the_same_command_continues_it(folder):
    submit(counting(folder), folder)
    job = jobs(folder)["count"]
    wait(lambda: "continuing" in log(folder, "count"))
    time.sleep(0.5)
    slurm.cancel([job])
    assert settle(folder) == {"count": graph.FAILED, "after": graph.BLOCKED}
    time.sleep(2)
    assert state_of(job) == "ended" and "cancelled" in read_status(folder)[0].detail
    submit(counting(folder), folder)
    assert settle(folder) == {"count": graph.DONE, "after": graph.DONE}
    assert found_steps(folder, "count")[0] > 0


def test_a_killed_process_is_a_failure_with_its_cause(folder):
    stage = Stage("shot", ("-c", "import os; os.kill(os.getpid(), 9)"), (folder / "x",))
    submit([stage], folder)
    assert settle(folder) == {"shot": graph.FAILED}
    assert read_status(folder)[0].detail.startswith("killed by SIGKILL (out of memory?)")


@pytest.mark.parametrize("number", ["USR2", "TERM"])
def test_a_signal_while_python_starts_ends_nothing(folder, number):
    submit(counting(folder, last=10), folder)
    job = jobs(folder)["count"]
    wait_until_running(job)
    for _ in range(10):  # some before there is a process, some before it can take them
        send(job, number)
        time.sleep(0.05)
    assert settle(folder) == {"count": graph.DONE, "after": graph.DONE}


def test_the_code_that_runs_is_that_of_the_submission(folder):
    """A job that is put off and then released runs the copy, not what became of the original."""
    words = ("-c", "import pipeline; print('code:', pipeline.__file__)")
    submit([Stage("look", words, ())], folder)
    settle(folder)
    code = load_graph(folder)["look"].code
    assert f"code: {code}/pipeline/__init__.py" in log(folder, "look")
    assert Path(code).is_relative_to(folder.resolve())


# --- real training, disturbed ---

PRETRAIN = (
    *("model.width=4", "model.hidden=16", "model.embedding=8", "model.queue_length=20"),
    *("model.bn_group=2", "data.image_size=32", "optim.batch_size=8", "optim.epochs=150"),
    *(
        "optim.precision=fp32",
        "launch.device=cpu",
        "launch.workers=1",
        "launch.log_every=1",
        "launch.save_every=5",
    ),
)
FINE_TUNING = (*TINY, "SOLVER.MAX_ITER", "700", "SOLVER.STEPS", "(500,600)")
FINE_TUNING = (*FINE_TUNING, "SOLVER.CHECKPOINT_PERIOD", "5")


def pretraining(folder, images, *words):
    place = folder / "pretrain" / "tiny"
    config = Path("configs/pretrain/densecl_mini.yaml")
    command = ("-m", "pretrain", "--config-file", str(config), "--output", str(place))
    command = (*command, f"data.root={images}", *PRETRAIN, *words)
    return Stage(
        "pretrain/tiny", command, (place / "DONE",), configs=(config,), owns=(place,), resumes=True
    )


def fine_tuning(folder):
    place = folder / "benchmarks" / "mini_voc" / "random" / "seed_1"
    command = ("-m", "benchmarks", "mini_voc", "--weights", "random", "--engine", "torchvision")
    command = (*command, *("--seed", "1", "--output", str(place)), *FINE_TUNING)
    outputs = (place / "results.json", place / "DONE")
    return Stage("benchmarks/mini_voc/random/seed_1", command, outputs, owns=(place,), resumes=True)


def run_undisturbed(stage, processes=1):
    """The same command without SLURM."""
    launch = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    command = [sys.executable, *(launch if processes > 1 else ()), *stage.words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return stage.owns[0]


def final_state(place):
    return load_checkpoint(max((place / "checkpoints").glob("step_*.pth")))


def node_of(job):
    return int(slurm.queue()[job].node.removeprefix("n"))


def preempt(cluster, job):
    """Take the job's node for one of a partition that goes first."""
    words = ["--partition=high", "--exclusive", f"--nodelist=n{node_of(job)}", "--time=1"]
    command = ["sbatch", *words, "--output=/dev/null", "--wrap=true"]
    subprocess.run(command, check=True, capture_output=True)


def fail_node(cluster, job):
    number = node_of(job)
    cluster.kill_node(number)
    wait(lambda: state_of(job) != "RUNNING")
    cluster.start_node(number)


CLEAN = {
    "USR2": lambda cluster, job: send(job, "USR2"),
    "TERM": lambda cluster, job: send(job, "TERM"),
    "requeue": lambda cluster, job: cluster.control("requeue", job),
    "preempt": preempt,
}


def disturb(cluster, folder, stage, kinds, seed):
    """Disturb a stage at random moments, once per start; checks that no saved step is lost."""
    moments = random.Random(seed)
    job, place = jobs(folder)[stage.name], stage.owns[0]
    seen = []  # after each disturbance: the least step that the next start must continue from
    for number, kind in enumerate(kinds):
        wait(lambda number=number: f"restart={number} " in log(folder, stage.name), 90)
        time.sleep(moments.uniform(0, 7))  # the first seconds go by before the first step
        assert state_of(job) == "RUNNING", f"it ended before disturbance {number}"
        done = last_step(place) if kind in CLEAN else stage.step()
        (CLEAN | {"node": fail_node})[kind](cluster, job)
        seen.append(done)
    found = settle(folder, 300)
    continued = [int(n) for n in re.findall(r"starts from step (\d+)", log(folder, stage.name))]
    assert continued[0] == 0 and len(continued) == len(kinds) + 1
    for least, start in zip(seen, continued[1:]):
        assert start >= least
    assert load_record(folder, stage.name).steps == tuple(continued)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["pretrain", "fine-tune"])
def test_training_disturbed_again_and_again_ends_bit_equal(
    cluster, folder, image_folder, datasets, tmp_path, monkeypatch, kind
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    if kind == "pretrain":
        stage, straight = pretraining(folder, image_folder), pretraining(tmp_path, image_folder)
        kinds = ["USR2", "TERM", "requeue", "USR2", "preempt", "TERM", "node", "USR2", "TERM"]
    else:
        stage, straight = fine_tuning(folder), fine_tuning(tmp_path)
        kinds = ["TERM", "USR2", "preempt", "USR2", "TERM", "requeue", "TERM", "USR2"]
    after = writer(folder, "after", stage.name)
    submit([stage, after], folder, "partition=low")
    found = disturb(cluster, folder, stage, kinds, seed=7)
    assert found == {stage.name: graph.DONE, "after": graph.DONE}
    assert order(folder) == ["after"]
    assert (folder / "after").stat().st_mtime > (stage.owns[0] / "DONE").stat().st_mtime
    expected = run_undisturbed(straight)
    assert_equal(final_state(stage.owns[0]), final_state(expected))
    if kind == "pretrain":
        assert [line["loss"] for line in logged(stage.owns[0])] == [
            line["loss"] for line in logged(expected)
        ]
    else:
        ours, theirs = (
            json.loads((place / "results.json").read_text()) for place in (stage.owns[0], expected)
        )
        assert ours["metrics"] == theirs["metrics"]
        # Every start that came to train; the requeue may kill one while Python is starting.
        begun = log(folder, stage.name).count("row random, seed 1, torchvision engine")
        assert ours["restarts"] == begun - 1
        assert begun - 1 in (len(kinds), len(kinds) - 1)


def test_a_node_that_is_taken_for_dead_and_works_on_spoils_nothing(
    cluster, folder, image_folder, tmp_path
):
    """SLURM starts the job a second time beside the first, which it cannot see any more."""
    stage, straight = pretraining(folder, image_folder), pretraining(tmp_path, image_folder)
    submit([stage, writer(folder, "after", stage.name)], folder)
    job = jobs(folder)[stage.name]
    wait(lambda: last_step(stage.owns[0]) > 5)
    number = node_of(job)
    cluster.kill_daemon(number)
    wait(lambda: "restart=1 " in log(folder, stage.name))
    assert settle(folder) == {stage.name: graph.DONE, "after": graph.DONE}
    assert order(folder) == ["after"] and "waiting until it ends" in log(folder, stage.name)
    cluster.start_node(number)
    assert_equal(final_state(stage.owns[0]), final_state(run_undisturbed(straight)))


def test_two_nodes_of_two_go_on_as_four_of_one_with_the_same_batches(
    folder, image_folder, tmp_path
):
    """Gloo over SLURM's tasks. Each process has one batch norm group, so their number must stay."""
    stage, straight = (
        # AdamW makes whole steps of differences in rounding, SGD does not.
        pretraining(place, image_folder, "optim.epochs=20", "optim.optimizer=sgd", "optim.lr=0.02")
        for place in (folder, tmp_path)
    )
    for nodes, tasks, least in ((2, 2, 10), (4, 1, 0)):
        submit([stage], folder, f"pretrain.nodes={nodes}", f"pretrain.tasks={tasks}")
        job = jobs(folder)[stage.name]
        if least:
            wait(lambda: last_step(stage.owns[0]) > least)  # noqa: B023
            slurm.cancel([job])
        found = settle(folder)
        logs = list((folder / "logs" / "jobs" / job).glob("*_log.out"))
        assert len(logs) == 4
        headers = [re.search("node=(n.) task=./4", file.read_text())[1] for file in logs]
        assert len(set(headers)) == nodes
    assert found == {stage.name: graph.DONE}
    (resumed,) = re.findall(r"continuing after step (\d+)", log(folder, stage.name))
    ours, theirs = (
        [line["loss"] for line in logged(place)]
        for place in (stage.owns[0], run_undisturbed(straight, processes=4))
    )
    step = int(resumed)
    assert len(ours) == len(theirs) == 120 and ours[:step] == theirs[:step]
    # After a resume DDP adds up four processes' gradients in another order, once: the batches are
    # the same, but rounding is not.
    assert ours[step] == theirs[step]
    assert ours[step : step + 4] == pytest.approx(theirs[step : step + 4], rel=1e-3)
    neighbours = [abs(a - b) for a, b in pairwise(theirs[step : step + 4])]
    assert min(neighbours) > 1e-2, "another batch would have been noticed"


# --- the program as people call it ---


@pytest.mark.timeout(900)
def test_the_miniature_runs_through_and_a_damaged_checkpoint_is_survived(folder, tmp_path):
    """Pre-trained, damaged, submitted, mended, submitted again, and partly deleted."""
    weights = folder / "pretrain" / "densecl-MINI"
    config = ["--config-file", "configs/pretrain/densecl_mini.yaml", "optim.epochs=1"]
    if not Path("datasets/mini/DONE").exists():
        command = [sys.executable, "-m", "common.miniature", "datasets/mini"]
        subprocess.run(command, check=True, capture_output=True)
    command = [sys.executable, "-m", "pretrain", *config, "--output", str(weights)]
    subprocess.run(command, check=True, capture_output=True)
    (checkpoint,) = weights.glob("checkpoints/step_*.pth")
    good = checkpoint.read_bytes()
    checkpoint.write_bytes(good[:-1000] + bytes(1000))

    words = ["--pretrain", "MINI", "--epochs", "1", "--benchmarks", "voc07_svm"]
    words += ["--output", str(folder), "--cluster", "slurm", "--slurm", *SMALL]
    assert "8 stages submitted" in run_all(*words)
    trial = "benchmarks/mini_voc07_svm/{}/seed_1"
    ours, theirs = trial.format("densecl-MINI"), trial.format("random")
    found = settle(folder)
    assert found == {
        **dict.fromkeys(["data", "pretrain/densecl-MINI", theirs], graph.DONE),
        "convert/densecl-MINI": graph.FAILED,
        **dict.fromkeys([ours, "correspondence"], graph.BLOCKED),
        **dict.fromkeys(["tables", "report"], graph.DONE),
    }
    told = {status.stage: status.detail for status in read_status(folder)}
    assert checkpoint.name in told["convert/densecl-MINI"]
    assert "needs convert/densecl-MINI" in (folder / "report.html").read_text()

    checkpoint.write_bytes(good)
    assert "5 stages submitted" in run_all(*words)
    assert set(settle(folder).values()) == {graph.DONE}
    assert "0 stages submitted, 0 on their way, 8 done before" in run_all(*words)
    before = jobs(folder)
    (folder / theirs / "results.json").unlink()
    assert "3 stages submitted" in run_all(*words)
    assert set(settle(folder).values()) == {graph.DONE}
    changed = {name for name, job in jobs(folder).items() if job != before[name]}
    assert changed == {theirs, "tables", "report"}


def held(tmp_path, **settings):
    """A profile whose jobs wait in the queue for good."""
    file = tmp_path / "held.yaml"
    file.write_text(json.dumps({"_BASE_": "slurm.yaml", "sbatch": {"hold": True}, **settings}))
    return load_profile(str(file))


def test_a_large_graph_is_submitted_and_shown(folder, tmp_path):
    """Nine rows, seven benchmarks, five trials. Prints the seconds: the machine may be busy."""
    names = ("voc", "coco", "coco10", "voc_seg", "cityscapes", "voc07_svm", "coco_c4")
    stages = plan(Choices("CC", folder, benchmarks=names, trials=5, ablation="schedule"))
    assert len([s for s in stages if s.name.startswith("benchmarks/")]) == 9 * 7 * 5
    started = time.monotonic()
    decision = submit_graph(stages, folder, held(tmp_path))
    submitted = time.monotonic()
    statuses = read_status(folder)
    shown = time.monotonic()
    print(f"{len(stages)} jobs: {submitted - started:.1f} s, status {shown - submitted:.1f} s")
    assert len(decision.submitted) == len(stages) == len(statuses)
    assert {status.state for status in statuses} == {"queued"}
    assert submitted - started < 250 and shown - submitted < 30
    assert "0 stages submitted" not in run_status(folder, "--cancel")
    assert settle(folder)


def run_status(folder, *words):
    command = [sys.executable, "-m", "pipeline.status", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["slurm", "a100", "h100", "v100"])
def test_slurm_takes_the_production_flags(cluster, tmp_path, name):
    profile = load_profile(name)
    stages = plan(Choices("IN", tmp_path, benchmarks=("voc", "coco")))
    for nodes in (1, 4):
        wider = replace(profile, stages={"pretrain": {"nodes": nodes}})
        for stage in stages:
            slurm.test_only(slurm.Submission(tmp_path, wider, tmp_path).script(stage))


def test_the_doctor_asks_slurm(cluster):
    profile = load_profile("h100", ["partition=main"])
    found = {f.what: f for f in doctor.cluster(profile, Path("runs"))}
    assert found["jobs: pretrain"].state == found["JobRequeue"].state == doctor.OK
    assert found["KillWait"].state == doctor.WARN and found["KillWait"].fix
    assert found["signal at preemption"].found == "SIGUSR2"
    for words, reason in ((["partition=moon"], "invalid partition"), (["gpu.gpus=9"], "not avail")):
        found = {f.what: f for f in doctor.cluster(load_profile("h100", words), Path("runs"))}
        assert found["jobs: pretrain"].state == doctor.FAIL
        assert reason in found["jobs: pretrain"].found and found["jobs: pretrain"].fix
    found = {
        f.what: f for f in doctor.cluster(load_profile("slurm", ["partition=short"]), Path("runs"))
    }
    assert found["jobs: pretrain"].found == "1440 minutes, of at most 60"


# --- mistakes: one line, and nothing in the queue ---


@pytest.mark.parametrize(
    "changes, reason",
    [
        (["partition=moon"], "invalid partition"),
        (["cpu.gpus=9"], "Requested node configuration is not available"),
        (["cpu.nodes=5"], "Node count specification invalid|node configuration|More processors"),
        (["constraint=moon"], "Invalid feature specification"),
    ],
)
def test_what_slurm_refuses_is_one_line_and_leaves_no_job(folder, changes, reason):
    before = slurm.queue()
    shown = run_all(
        *("--pretrain", "MINI", "--output", str(folder), "--cluster", "slurm"),
        *("--slurm", *SMALL, *changes),
        expect=2,
    )
    assert re.fullmatch(f"error: SLURM refuses the job: .*({reason}).*\n", shown), shown
    assert slurm.queue() == before


def test_a_refusal_half_way_cancels_what_was_submitted(folder, monkeypatch):
    stages = small_graph(folder)
    submission = slurm.Submission.submit

    def refuse_d(self, stage, dependency=None):
        return submission(self, stage, "afterok:x" if stage.name == "d" else dependency)

    monkeypatch.setattr(slurm.Submission, "submit", refuse_d)
    with pytest.raises(UserError, match=r"d: SLURM refuses the job: .*[Dd]ependency"):
        submit(stages, folder)
    wait(lambda: not slurm.queue())
    assert load_graph(folder) == {}
    assert not (folder / "tables").exists()


def test_a_folder_that_other_nodes_do_not_see_is_refused(cluster, tmp_path):
    with pytest.raises(UserError, match="on a disk of this machine only"):
        submit(small_graph(tmp_path), tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_at_once_are_refused(folder):
    with graph.locked(folder), pytest.raises(UserError, match="in use by process"):
        submit(small_graph(folder), folder)
    assert not slurm.queue()


def test_a_forgotten_job_is_submitted_again_and_nothing_waits_for_it(folder):
    """SLURM starts what waits for a job that it does not know."""
    stages = small_graph(folder)
    submit(stages, folder)
    settle(folder)
    (folder / "b").unlink()
    entries = load_graph(folder)
    save_graph(folder, {n: replace(e, job="999999") for n, e in entries.items()})
    lost = {status.stage: status for status in read_status(folder)}["b"]
    assert lost.state == "lost" and "999999" in lost.detail
    assert submit(stages, folder).submitted == ["b", "c", "d", "tables", "report"]
    for job in jobs(folder).values():
        script = folder / "logs" / "jobs" / job / f"{job}_submission.sh"
        assert not script.exists() or "999999" not in script.read_text()
    assert set(settle(folder).values()) == {graph.DONE}


def test_a_job_with_other_settings_is_not_taken_over(folder, tmp_path):
    stages = small_graph(folder)
    submit_graph(stages, folder, held(tmp_path))
    other = [replace(stages[0], words=(*stages[0].words, "more")), *stages[1:]]
    with pytest.raises(UserError, match=r"a: job \d+ is PENDING with other settings"):
        submit(other, folder)
    assert "stages are jobs in SLURM's queue" in run_all(
        *("--pretrain", "MINI", "--output", str(folder), "--cluster", "local"), expect=2
    )
