"""Python processes that start with the libraries imported: importing torch and transformers takes 15 seconds.

A server, `python warm_python.py SOCKET MODULE ...`, imports the modules and forks a process for each command. Such a
process has its own environment, folder, streams and process id, can be killed, and imports cca_hf itself. What the
libraries read from the environment at their import, such as HF_HOME and OMP_NUM_THREADS, is that of the tests.
"""

import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# torch reads no setting of the Hub, so that a program with another Hub or other caches can start from it
TORCH = ("torch", "torch._dynamo", "torch.distributed.tensor")
ALL = (
    *TORCH,
    "datasets",
    "evaluate",
    "transformers.trainer",
    "transformers.pipelines",
    "transformers.models.auto.modeling_auto",
    "transformers.models.vit.modeling_vit",
)
_LONGEST = 1 << 20  # bytes of a request


class WarmProcess:
    """What the tests use of `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], status: int, stdout: IO[str] | None, stderr: IO[str] | None) -> None:
        self.arguments = arguments
        self.returncode: int | None = None
        self.stdout, self.stderr = stdout, stderr
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self._status.readline())

    def wait(self) -> int:
        """Returns the exit status, or minus the number of the signal that ended the process."""
        if self.returncode is None:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def poll(self) -> int | None:
        """As `wait`, but `None` while the process runs."""
        has_ended = self.returncode is not None or select.select([self._status], [], [], 0)[0]
        return self.wait() if has_ended else None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class WarmPython:
    """Starts the server, and processes of it.

    Args:
        base: a server with fewer modules, in whose process this one begins.
    """

    def __init__(self, modules: Sequence[str], base: "WarmPython | None" = None) -> None:
        self._server: WarmProcess | subprocess.Popen
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if base is None:
                command = [sys.executable, __file__, str(theirs.fileno()), *modules]
                self._server = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            else:  # the socket is its standard output, 1
                self._server = base.start(__file__, 1, *modules, stdout=theirs, stderr=sys.__stderr__)

    def close(self) -> None:
        self._socket.close()
        self._server.wait()

    def start(
        self,
        *arguments: object,
        stdout: IO[str] | socket.socket | None = None,
        stderr: IO[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> WarmProcess:
        """Starts `python ARGUMENTS`, without other options than -c and -m; by default with pipes for its output."""
        words = [str(argument) for argument in arguments]
        request = {"arguments": words, "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
        pipes = [os.pipe() if file is None else (None, file.fileno()) for file in (stdout, stderr)]
        status, written = os.pipe()
        socket.send_fds(self._socket, [json.dumps(request).encode()], [pipes[0][1], pipes[1][1], written])
        os.close(written)
        for ours, theirs in pipes:
            if ours is not None:
                os.close(theirs)
        return WarmProcess(words, status, *(None if ours is None else os.fdopen(ours) for ours, _ in pipes))

    def run(
        self,
        *arguments: object,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with captured text."""
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            process = self.start(*arguments, stdout=stdout, stderr=stderr, env=env, cwd=cwd)
            code = process.wait()
            for file in (stdout, stderr):
                file.seek(0)
            done = subprocess.CompletedProcess(process.arguments, code, stdout.read(), stderr.read())
        assert not (check and code), f"exit status {code}\n{done.stdout}\n{done.stderr}"
        return done

    def run_on_ranks(
        self, ranks: int, *arguments: object, env: Mapping[str, str] | None = None, cwd: str | Path | None = None
    ) -> str:
        """Runs `python ARGUMENTS` on each rank, with the variables that `torchrun` sets; returns what they print.

        The processes that `torchrun` starts would import the libraries themselves.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        world |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            processes = []
            for rank in range(ranks):
                own = {**(os.environ if env is None else env), **world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                processes.append(self.start(*arguments, stdout=stdout, stderr=stderr, env=own, cwd=cwd))
            while None in (codes := [process.poll() for process in processes]):
                if any(codes):  # the others wait for the one that has failed
                    for process in processes:
                        process.send_signal(signal.SIGKILL)
                time.sleep(0.01)
            for file in (stdout, stderr):
                file.seek(0)
            printed = stdout.read()
            assert not any(codes), f"exit status {codes}\n{printed}\n{stderr.read()}"
        return printed


@functools.cache
def shared(modules: tuple[str, ...]) -> WarmPython:
    """The server of the tests of this process: with `TORCH`, or with `ALL`."""
    return WarmPython(modules, None if modules == TORCH else shared(TORCH))


def _fork_for_requests(requests: socket.socket) -> list[str]:
    """Returns in each process that is started, with its arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait
    while True:
        message, files, _, _ = socket.recv_fds(requests, _LONGEST, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stdout, stderr, status = files
    pid = os.fork()
    if pid:  # this process waits for the one that runs the command
        os.close(stdout)
        os.close(stderr)
        os.write(status, f"{pid}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(status, f"{code}\n".encode())
        os._exit(0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for file in files:
        os.close(file)
    request = json.loads(message)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    return request["arguments"]


def _run(arguments: list[str]) -> None:
    """As `python ARGUMENTS`."""
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)
    sys.path[0] = ""
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    import numpy as np

    with socket.socket(fileno=int(sys.argv[1])) as listening:
        for module in sys.argv[2:]:
            importlib.import_module(module)
        words = _fork_for_requests(listening)
    np.random.seed()  # else all processes would draw the same numbers
    _run(words)
