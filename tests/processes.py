"""Run a function in several processes that form a gloo group, as torchrun would."""

import multiprocessing
import os
import socket
import time

# Children start from a server that has torch imported already: milliseconds instead of seconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "pretrain.__main__"])


def start(target, world_size, *arguments):
    """Start `target(*arguments)` as ranks 0..world_size-1; returns the processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        CONTEXT.Process(target=_child, args=(target, rank, world_size, port, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


def run(target, world_size, *arguments, timeout=120):
    """Run to the end; every process must succeed. `target` leaves its results in files."""
    processes = start(target, world_size, *arguments)
    join(processes, timeout)
    assert [p.exitcode for p in processes] == [0] * world_size


def join(processes, timeout=120):
    """Wait for all; kill what does not end in time."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _child(target, rank, world_size, port, arguments):
    import torch

    torch.set_num_threads(1)
    if world_size > 1:
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    target(*arguments)
