"""Cluster profiles, the batch script, and what the status makes of what it is told. No SLURM."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from pipeline import doctor, graph, slurm, status
from pipeline.cluster import PROFILES, load_profile
from pipeline.graph import Entry, Record, save_graph, save_record
from pipeline.job import begin_job
from pipeline.plan import Choices, plan
from pipeline.progress import Progress
from pipeline.slurm import Job, Submission
from pipeline.snapshot import take_snapshot
from pipeline.stage import Stage

ROOT = Path(__file__).parent.parent
IN = {stage.name: stage for stage in plan(Choices("IN", Path("runs/x"), epochs=200))}
PRETRAIN, TABLES = IN["pretrain/densecl-IN"], IN["tables"]
TRIAL = IN["benchmarks/voc/densecl-IN/seed_1"]


def with_profile(tmp_path, **content):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"_BASE_": "slurm.yaml", **content}))
    return str(file)


# --- profiles ---


def test_every_profile_says_what_it_is_for_and_can_be_loaded():
    files = sorted((ROOT / PROFILES).glob("*.yaml"))
    assert {"slurm", "a100", "h100", "v100"} <= {file.stem for file in files}
    for file in files:
        assert file.read_text().startswith("# ")
        resources = load_profile(file.stem).resources(PRETRAIN)
        assert (resources.gpus, resources.processes) == (8, 8)


def test_the_more_of_a_stage_is_named_the_more_it_counts(tmp_path):
    stages = {"benchmarks": {"minutes": 60, "gpus": 4}, "benchmarks/voc": {"minutes": 30}}
    profile = load_profile(with_profile(tmp_path, gpu={"cpus": 3}, stages=stages))
    found = profile.resources(TRIAL)
    assert (found.minutes, found.gpus, found.cpus, found.memory_gb) == (30, 4, 3, 240)
    assert profile.resources(PRETRAIN).minutes == 1440
    assert profile.resources(TABLES).gpus == 0
    other = replace(TRIAL, name="benchmarks/voc_seg/densecl-IN/seed_1")
    assert profile.resources(other).minutes == 60  # not a part of benchmarks/voc


def test_the_command_line_has_the_last_word():
    words = ["partition=fast", "gpu.cpus=1", "pretrain.nodes=2"]
    words += ["benchmarks/voc/densecl-IN.minutes=7"]
    profile = load_profile("a100", words)
    assert profile.partition == "fast" and profile.resources(PRETRAIN).nodes == 2
    assert profile.resources(TRIAL).minutes == 7 and profile.resources(TRIAL).cpus == 1


@pytest.mark.parametrize(
    "words, reason",
    [
        (["partitoin=x"], "partitoin: no such setting (did you mean partition?)"),
        (["pretrain.gpu=4"], "gpu: no such setting (did you mean gpus?)"),
        (["pretrain.gpus=many"], "gpus = many: a whole number of at least 0"),
        (["gpu.minutes=0"], "minutes = 0: a whole number of at least 1"),
        (["signal_lead=soon"], "signal_lead = soon"),
        (["partition"], "--slurm partition: expected key=value"),
        (["setup=module load cuda"], "setup must be a list"),
        (["sbatch=hold"], "sbatch must be a mapping"),
    ],
)
def test_a_wrong_setting_is_named(words, reason):
    with pytest.raises(UserError) as raised:
        load_profile("slurm", words)
    assert reason in str(raised.value)


def test_an_unknown_profile_is_named():
    with pytest.raises(UserError, match=r"--cluster h10: no such profile \(did you mean h100\?\)"):
        load_profile("h10")


# --- the batch script ---

SCRIPT = """\
#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:7
#SBATCH --exclusive
#SBATCH --gpus-per-node=h100:8
#SBATCH --job-name=x/pretrain/densecl-IN
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=819200M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=RUN/logs/jobs/%j/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@180
#SBATCH --time=1440
#SBATCH --wckey=submitit

# setup
module load cuda
export PYTHONPATH='/shared/a b/code' PYTHONSAFEPATH=1
trap : USR2 TERM  # this shell outlives the step, to say what became of it
PYTHON -m pipeline.job begin runs/x pretrain/densecl-IN 100
case $? in 0) ;; 3) exit 0 ;; *) exit 1 ;; esac

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output RUN/logs/jobs/%j/%j_%t_log.out --cpus-per-task=12 \
--kill-on-bad-exit=1 --mpi=none sh -c 'trap '"'"''"'"' USR2 TERM; exec "$@"' task \
PYTHON -u -m submitit.core._submit RUN/logs/jobs/%j


# teardown
PYTHON -m pipeline.job end runs/x pretrain/densecl-IN "$?"
exit $?"""


def test_the_batch_script_is_as_it_was(tmp_path):
    """Everything that a site may ask for, once."""
    file = with_profile(
        tmp_path,
        _BASE_="h100.yaml",
        account="lab",
        setup=["module load cuda"],
        sbatch={"exclusive": True},
        srun=["--mpi=none"],
    )
    profile = load_profile(file, ["pretrain.nodes=2"])
    script = Submission(Path("runs/x"), profile, Path("/shared/a b/code")).script(
        PRETRAIN, "afterok:7"
    )
    ours = script.replace(f"{Path.cwd()}/runs/x", "RUN").replace(sys.executable, "PYTHON")
    assert ours == SCRIPT
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_stage_reads_the_copy_of_its_configuration(tmp_path):
    words = Submission(Path("runs/x"), load_profile("slurm"), tmp_path).words(PRETRAIN)
    (config,) = PRETRAIN.configs
    assert str(tmp_path / config) in words and str(config) not in words


def test_a_container_starts_every_python(tmp_path):
    python = ["apptainer", "exec", "my image.sif", "python"]
    profile = load_profile(with_profile(tmp_path, python=python))
    script = Submission(Path("runs/x"), profile, tmp_path).script(TRIAL)
    assert script.count("apptainer exec 'my image.sif' python") == 3
    assert sys.executable not in script


def test_a_snapshot_is_taken_once_and_runs_by_itself(tmp_path):
    first = take_snapshot(tmp_path)
    assert take_snapshot(tmp_path) == first and len(list((tmp_path / "code").iterdir())) == 1
    assert (first / "configs" / "pretrain" / "densecl_imagenet_200ep.yaml").is_file()
    assert not list(first.rglob("__pycache__")) and not (first / "tests").exists()
    program = "import common.code as c; print(c.ROOT, c.source_commit())"
    ours = {"PYTHONPATH": str(first), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        **{"cwd": ROOT, "env": {**os.environ, **ours}, "capture_output": True, "text": True},
        check=True,
    )
    place, commit = done.stdout.split()
    assert Path(place) == first and commit == (first / "COMMIT").read_text().strip()


# --- a job's own view ---


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A run folder with a stage that needs another, in a job that was restarted `restart` times."""
    first = Stage("first", (), (tmp_path / "first",), owns=(tmp_path / "first",))
    outputs = (tmp_path / "two" / "DONE",)
    second = Stage("second", (), outputs, ("first",), owns=(tmp_path / "two",), resumes=True)
    save_graph(tmp_path, {s.name: Entry(s, (), "", job="5") for s in (first, second)})
    monkeypatch.setenv("SLURM_JOB_ID", "5")

    def begin(restart=0, step=0):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        (tmp_path / "two" / "checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / "two" / "checkpoints" / f"step_{step:08d}.pth").touch()
        code = begin_job(tmp_path, "second", 3)
        return code, graph.load_record(tmp_path, "second")

    return begin


def test_a_stage_whose_input_is_missing_does_not_start(job):
    code, record = job()
    assert (code, record.state) == (1, graph.FAILED)
    assert "needs first, which has not left" in record.note


def test_restarts_are_bounded_by_progress_and_by_number(job, tmp_path):
    (tmp_path / "first").touch()
    assert [job(n, step=9)[0] for n in range(3)] == [0, 0, 1]
    (tmp_path / "states" / "second.json").unlink()
    assert [job(n, step=10 + n)[0] for n in range(5)] == [0, 0, 0, 0, 1]
    assert "restarted 3 times" in graph.load_record(tmp_path, "second").note


# --- the status ---


def run_with(tmp_path, **records):
    """A run of stages a → b with these records."""
    a = Stage("a", (), (tmp_path / "a",), owns=(tmp_path / "a",), resumes=True)
    b = Stage("b", (), (tmp_path / "b",), ("a",), owns=(tmp_path / "b",))
    save_graph(tmp_path, {s.name: Entry(s, (), "", job=n) for s, n in ((a, "1"), (b, "2"))})
    for name, record in records.items():
        save_record(tmp_path, name, record)
    return tmp_path


DONE, FAILED = Record(state=graph.DONE, job="1"), Record(state=graph.FAILED, note="exit code 2")

HELD = Job("PENDING", "BeginTime", "", "2026-01-02T03:04:05")


@pytest.mark.parametrize(
    "record, output, live, last, state, detail",
    [
        (DONE, True, None, None, "done", ""),
        (DONE, True, Job("RUNNING"), None, "running", ""),  # it runs again
        (DONE, False, None, Job("COMPLETED"), "failed", "ended without leaving what it should"),
        (FAILED, False, Job("PENDING", "Priority"), None, "queued", "Priority"),
        (None, False, HELD, None, "requeued", "starts at 2026-01-02 03:04:05"),
        (None, False, None, Job("TIMEOUT"), "failed", "reached its time limit"),
        (None, False, None, Job("OUT_OF_MEMORY"), "failed", "out of memory: more memory_gb"),
        (None, False, None, Job("CANCELLED"), "failed", "cancelled"),
        (None, False, None, Job("NODE_FAIL"), "failed", "its node failed"),
        (None, False, None, None, "lost", "knows nothing of job 1"),
    ],
)
def test_whom_the_status_believes(tmp_path, monkeypatch, record, output, live, last, state, detail):
    folder = run_with(tmp_path, **({"a": replace(record, job="1")} if record else {}))
    if output:
        (folder / "a").touch()
    monkeypatch.setattr(slurm, "queue", lambda: {"1": live} if live else {})
    monkeypatch.setattr(slurm, "ended", lambda numbers: {"1": last} if last else {})
    found = status.read_status(folder)[0]
    assert found.state == state and detail in found.detail


@pytest.mark.parametrize(
    "text, minutes",
    [("UNLIMITED", float("inf")), ("1-00:00:00", 1440), ("02:30:00", 150), ("00:00:30", 0.5)],
)
def test_slurms_times_are_read(text, minutes):
    assert slurm._minutes(text) == minutes


def test_the_accounting_is_asked_first_and_the_controller_where_there_is_none(
    tmp_path, monkeypatch
):
    """Stand-ins print what SLURM 22.05 and 23.11 print; the real controller is asked elsewhere."""
    programs = {
        "sacct": "echo '7|CANCELLED by 1000|n[1-2]|2026-01-02T03:04:05'\necho '8|TIMEOUT|n3|x'",
        "scontrol": "echo 'JobId=7 JobName=a b JobState=FAILED Reason=NonZeroExitCode "
        "NodeList=(null) StartTime=x'",
    }
    for name, lines in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = slurm.ended(["7", "8", "9"])
    assert found == {
        "7": Job("CANCELLED", "", "n[1-2]", "2026-01-02T03:04:05"),
        "8": Job("TIMEOUT", "", "n3", "x"),
    }
    (tmp_path / "sacct").write_text("#!/bin/sh\necho 'accounting is disabled' >&2; exit 1\n")
    assert slurm.ended(["7"]) == {"7": Job("FAILED", "NonZeroExitCode", "", "x")}
    assert slurm.ended([]) == {}


def test_a_run_without_slurm_has_a_status_too(tmp_path):
    stages = [Stage("a", (), (tmp_path / "a",)), Stage("b", (), (tmp_path / "b",), ("a",))]
    save_graph(tmp_path, {stage.name: Entry(stage, (), "") for stage in stages})
    save_record(tmp_path, "a", Record(state=graph.FAILED, note="exit code 3"))
    log = tmp_path / "logs" / "a.log"
    log.parent.mkdir()
    log.write_text("starting\nerror: no [such] file\na: failed\n")
    done = command("pipeline.status", str(tmp_path))
    assert done.returncode == 0 and "1 failed, 1 blocked" in done.stdout
    assert "exit code 3: error: no [such] file" in done.stdout
    assert "needs a, which is failed" in done.stdout


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    done = command("pipeline.status", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}: no graph.json there: give the folder of a run\n"


def test_progress_is_read_from_what_training_logs(tmp_path, monkeypatch):
    folder = run_with(tmp_path)
    place = folder / "a"
    place.mkdir()
    line = {"step": 40, "images_per_second": 250.4, "eta_seconds": 90.2}
    (place / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 6')
    owner = {"optim": {"epochs": 3, "batch_size": 8}, "images": 170}
    (place / "owner.json").write_text(json.dumps(owner))
    monkeypatch.setattr(slurm, "queue", lambda: {"1": Job("RUNNING", "", "n7")})
    monkeypatch.setattr(slurm, "ended", lambda numbers: {})
    found = status.read_status(folder)[0]
    assert found.node == "n7" and found.progress == Progress(40, 63, "250 img/s", 90.2)


# --- the doctor, and mistakes ---


def command(module, *words, env=None):
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_doctor_finds_what_is_wrong_with_the_data(tmp_path, image_folder):
    folder = tmp_path / "coco" / "val2017"
    folder.mkdir(parents=True)
    for name in ("1.jpg", "2.jpg"):
        (folder / name).write_bytes((image_folder / "001.jpg").read_bytes())
    found = {f.what: f for f in doctor.datasets(tmp_path)}
    assert found["coco/val2017"].state == doctor.FAIL and found["coco/val2017"].fix
    assert found["coco/val2017: images"].found == "2 decoded"
    assert found["imagenet/train"].state == doctor.WARN
    (folder / "2.jpg").write_bytes(b"no image")
    found = {f.what: f for f in doctor.datasets(tmp_path)}
    assert found["coco/val2017: images"].state == doctor.FAIL
    assert "2.jpg" in found["coco/val2017: images"].found
    (folder / "index.json").write_text('{"shards": [{"samples": 4000}, {"samples": 1000}]}')
    found = {f.what: f for f in doctor.datasets(tmp_path)}
    assert found["coco/val2017"].state == doctor.OK
    assert found["coco/val2017"].found == "5,000 of 5,000 images, in shards"


def test_the_doctor_tells_shared_disks_from_others(tmp_path):
    found = {f.what: f for f in doctor.disk(tmp_path / "runs" / "x", shared=True)}
    assert found["rename and lock"].state == doctor.OK
    assert found["shared folder"].state == doctor.FAIL and found["shared folder"].fix
    assert not list(tmp_path.iterdir())


def test_slurm_without_slurm_is_one_line(tmp_path):
    for name in ("bash", "git"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    words = ["--pretrain", "MINI", "--cluster", "slurm", "--output", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "run_all.py", *words],
        **{"cwd": ROOT, "env": {**os.environ, "PATH": str(tmp_path)}, "text": True},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --cluster slurm: sbatch and srun are not on the PATH")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_dry_run_shows_the_jobs_and_writes_nothing(tmp_path):
    words = ["--pretrain", "IN", "--cluster", "a100", "--output", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "run_all.py", *words, "--dry-run"],
        **{"cwd": ROOT, "capture_output": True, "text": True},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "nothing was submitted" in done.stdout
    assert "#SBATCH --gpus-per-node=8" in done.stdout
    # Pre-training and two fine-tunings, each eight GPUs for at most a day.
    assert "at most 576 GPU hours" in done.stdout
    assert not (tmp_path / "run").exists()
