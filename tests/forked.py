"""Processes of a machine that has loaded the libraries already: a server imports them once and forks.

start("-m", "catalens", "train", recipe)         as `python -m catalens train RECIPE`, without the wait for torch
torchrun("-m", "catalens", "evaluate", run)      as `torchrun --nproc-per-node 2 -m catalens evaluate RUN`
"""

import os
import runpy
import socket
import sys
import time
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["catalens.cli", "catalens.training.train", "catalens.evaluation.evaluate"])
HANG = 900
"""Seconds after which processes have not been slow, but hang."""


def start(*arguments: str | Path, output: Path | None = None, **environment: str) -> ForkServerProcess:
    """Start a module (`-m name`) or a script; what it prints goes to the end of a file, or nowhere."""
    process = SERVER.Process(target=_run, args=([*map(str, arguments)], output or Path(os.devnull), environment))
    process.start()
    return process


def torchrun(*arguments: str | Path) -> None:
    """Run two processes of one group to their good end."""
    with socket.socket() as free, TemporaryDirectory() as folder, ExitStack() as ending:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        group |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        output = Path(folder) / "output"
        both = [start(*arguments, output=output, RANK=rank, LOCAL_RANK=rank, **group) for rank in "01"]
        for process in both:
            ending.callback(process.kill)
        until = time.monotonic() + HANG
        while any(process.is_alive() for process in both) and not any(process.exitcode for process in both):
            assert time.monotonic() < until, output.read_text()[-3000:]
            both[0].join(0.1)
        assert [process.exitcode for process in both] == [0, 0], output.read_text()[-3000:]


def _run(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
