"""A throw-away SLURM on one machine: a controller and four nodes with eight pretend GPUs each.

As root, without systemd, cgroups or a database; Debian's slurmctld, slurmd, slurm-client, munge.
Everything lies in one folder, but for the nodes' names in /etc/hosts, which are taken out again.

    with Cluster(folder) as cluster: ...        sets SLURM_CONF for SLURM's commands
    python -m tests.slurm_cluster COMMAND ...   runs a command on such a cluster
"""

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
NODES, CPUS, MEMORY_MB, GPUS = 4, 128, 1_000_000, 8  # claimed, not had
GRACE_SECONDS = 10  # between the warning and the end of a job that is preempted
KILL_SECONDS = 5  # between SIGTERM and SIGKILL of a job that is ended


def why_not():
    """Why there can be no cluster here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)} missing)"
    return None if os.geteuid() == 0 else "a throw-away SLURM needs root"


class Cluster:
    """Started on entry, stopped on exit."""

    def __init__(self, folder, port=16917):
        self.folder = Path(folder)
        self.port = port
        self.held = {}  # job → since when it has been held back

    def __enter__(self):
        for name in ("state", "log", "run", "dev"):
            (self.folder / name).mkdir(parents=True)
        self._name_nodes(True)
        self._write_configuration()
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        self._start_munge()
        self._call("slurmctld")
        for number in self._numbers():
            self.start_node(number)
        self._wait_until_idle()
        return self

    def __exit__(self, *_):
        subprocess.run(["scancel", "--user=root"], check=False, timeout=20)
        self._wait(lambda: not self.squeue("%i"), 15)
        for name in ("slurmctld", *(f"slurmd-n{i}" for i in self._numbers()), "munged"):
            self._stop(name)
        self._name_nodes(False)
        del os.environ["SLURM_CONF"]

    def start_node(self, number):
        """Start a node's daemon."""
        (self.folder / "run" / f"slurmd-n{number}").mkdir(exist_ok=True)
        self._call("slurmd", "-N", f"n{number}")

    def kill_node(self, number):
        """End a node's daemon and all that runs there at once, as a power failure would."""
        os.kill(self._pid(f"slurmd-n{number}"), signal.SIGKILL)
        mine = (f"SLURMD_NODENAME=n{number}\0", f"SLURM_CONF={os.environ['SLURM_CONF']}\0")
        on_node = [
            pid
            for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*"))
            if all(part in _read(pid, "environ") for part in mine)
        ]
        steps = {parent for pid in on_node for parent in _ancestors(pid)}
        for pid in [*steps, *on_node]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_daemon(self, number):
        """End a node's daemon alone: what runs there goes on, and nobody hears of it."""
        os.kill(self._pid(f"slurmd-n{number}"), signal.SIGKILL)

    def warn_by_user_signal(self, wanted):
        """Whether a job that is to be preempted gets its own signal, or SIGTERM."""
        conf = self.folder / "slurm.conf"
        setting = "SlurmctldParameters=preempt_send_user_signal"
        text = conf.read_text().replace(f"#{setting}", setting)
        conf.write_text(text if wanted else text.replace(setting, f"#{setting}"))
        self.control("reconfigure")

    def squeue(self, fields, *words):
        """The queue's lines, in these fields of squeue."""
        command = ["squeue", "--noheader", f"--format={fields}", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split(
            "\n"
        )[:-1]

    def release(self):
        """Let requeued jobs start after two seconds, where SLURM holds them back for two minutes.

        A job that starts within the second of its requeue is taken for the one that was ended.
        """
        held = {}
        for line in self.squeue("%i|%T|%r"):
            job, state, reason = line.split("|")
            if state == "PENDING" and reason == "BeginTime":
                held[job] = self.held.get(job, time.monotonic())
                if time.monotonic() - held[job] > 2:
                    self.control("update", f"JobId={job}", "StartTime=now")
        self.held = held

    def control(self, *words):
        """scontrol."""
        return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=False)

    def _numbers(self):
        return range(1, NODES + 1)

    def _name_nodes(self, there):
        """The nodes' names in /etc/hosts, which may be mounted: written over, not replaced."""
        mark = f"# densecl slurm test {self.port}"
        with Path("/etc/hosts").open("r+") as hosts:
            fcntl.flock(hosts, fcntl.LOCK_EX)  # another cluster may start or stop
            lines = [line for line in hosts.read().splitlines() if mark not in line]
            if there:
                lines += [f"127.0.0.1 n{i} {mark}" for i in self._numbers()]
            hosts.seek(0)
            hosts.truncate()
            hosts.write("\n".join(lines) + "\n")

    def _call(self, daemon, *words):
        subprocess.run([daemon, "-f", os.environ["SLURM_CONF"], *words], check=True)

    def _pid(self, name):
        return int((self.folder / "run" / f"{name}.pid").read_text())

    def _start_munge(self):
        """With its own key and socket, so that the machine's own munge is neither used nor hurt."""
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        run, log = self.folder / "run", self.folder / "log"
        command = ["munged", "--force", f"--key-file={key}", f"--socket={run}/munge.sock"]
        command += [f"--pid-file={run}/munged.pid", f"--log-file={log}/munged.log"]
        subprocess.run([*command, f"--seed-file={self.folder}/munge.seed"], check=True)

    def _write_configuration(self):
        folder, host = self.folder, socket.gethostname().split(".")[0]
        nodes = "\n".join(
            f"NodeName=n{i} NodeHostname=n{i} NodeAddr=127.0.0.1 Port={self.port + i} CPUs={CPUS} "
            f"Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS} ThreadsPerCore=1 "
            f"RealMemory={MEMORY_MB} Gres=gpu:h100:{GPUS} State=UNKNOWN"
            for i in self._numbers()
        )
        text = _SLURM_CONF.format(
            folder=folder, host=host, port=self.port, kill=KILL_SECONDS, grace=GRACE_SECONDS
        )
        (folder / "slurm.conf").write_text(text + nodes + _PARTITIONS.format(grace=GRACE_SECONDS))
        # The plugin is loaded, and no part of SLURM that would use it is configured.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for number in range(GPUS):  # null devices of our own, which nothing opens
            device = folder / "dev" / f"gpu{number}"
            os.mknod(device, 0o20600, os.makedev(1, 3))
        gpus = f"File={folder}/dev/gpu[0-{GPUS - 1}]"
        (folder / "gres.conf").write_text(f"NodeName=n[1-{NODES}] Name=gpu Type=h100 {gpus}\n")

    def _wait_until_idle(self):
        def idle():
            words = ["sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D"]
            return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()

        assert self._wait(lambda: idle() == str(NODES), 30), f"SLURM did not start: {self.folder}"

    def _wait(self, condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _stop(self, name):
        try:
            pid = self._pid(name)
            os.kill(pid, signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return
        if not self._wait(lambda: _is_gone(pid), 10):
            os.kill(pid, signal.SIGKILL)


def _is_gone(pid):
    """Whether a process has ended; PID 1 of a bare container may never fetch what is left of it."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def _read(pid, name):
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _ancestors(pid):
    """The slurmstepd processes above a process."""
    while pid > 1:
        fields = _read(pid, "stat").rpartition(")")[2].split()
        pid = int(fields[1]) if fields else 0
        if "slurmstepd" in _read(pid, "cmdline"):
            yield pid


_SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/run/slurmd-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
MinJobAge=3600
MaxJobCount=20000
SchedulerType=sched/backfill
SchedulerParameters=kill_invalid_depend,sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait={kill}
CompleteWait=0
OverTimeLimit=0
SlurmctldTimeout=30
SlurmdTimeout=15
InactiveLimit=0
MessageTimeout=20
GresTypes=gpu
"""

_PARTITIONS = """
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=low  Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=short Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=50 PreemptMode=OFF
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="slurm") as place, Cluster(Path(place) / "slurm"):
        sys.exit(subprocess.run(sys.argv[1:], check=False).returncode)
