"""Python processes that skip the imports: a server that has imported everything forks them.

A new interpreter needs seconds of CPU time to import torch and Lightning, and the tests of signals, resuming,
sweeps and DDP start about two hundred. `Popen` is subprocess.Popen, but a command such as
``[sys.executable, "-m", "sharpreid.train", ...]`` becomes a fork of the server. tests/conftest.py puts it in
place of subprocess.Popen; a test marked ``own_interpreter`` has the real one. What a fork starts is forked
too: the jobs of the local launcher, and the ranks of torchrun.

Every other command starts as ever: other programs, and Python with options, with a ``preexec_fn`` or with
inherited file descriptors. The standard library's forkserver serves only functions of multiprocessing.
"""

import contextlib
import gc
import importlib
import inspect
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any, NamedTuple

PRELOADED = (
    "hydra",
    "matplotlib.figure",
    "torchmetrics",
    "sharpreid.run.training",
    "sharpreid.run.evaluation",
    "sharpreid.run.preparation",
    "sharpreid.report.sweep",
    "sharpreid.sweep.local_launcher",
    "sharpreid.sweep.summary_callback",
)
"""Modules that the server imports. None of them may be a command: runpy runs those anew."""

KNOW_THEIR_RANK = ("lightning_utilities.core.rank_zero", "torchmetrics.utilities.prints")
"""Modules that take the rank from the environment when they are imported."""

_Popen: Any = subprocess.Popen

_server: "Server | None" = None
_address: str | None = None
"""Socket of the server that this process uses: one of its own, or the one that forked it."""


class Server:
    """Start a server, and stop it with `close` or with this process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forked")
        self.address = str(Path(self._folder.name, "socket"))
        command = [sys.executable, "-m", "tests.forked", self.address]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the server of forked processes did not start; see its error above")

    def close(self) -> None:
        """End the server; its children go on."""
        self._process.communicate(timeout=60)
        self._folder.cleanup()


class Request(NamedTuple):
    """A process to be forked."""

    arguments: list[str]
    """What follows the interpreter."""
    cwd: str
    env: dict[str, str]
    new_session: bool


class Popen(_Popen):  # type: ignore[type-arg]
    """subprocess.Popen that forks Python commands from the server."""

    _connection: socket.socket | None = None

    def _execute_child(self, *args: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(*args).arguments
        request = _request(given)
        if request is None:
            super()._execute_child(*args)
            return
        ends = ("p2cread", "c2pwrite", "errwrite")
        streams = [number if given[end] == -1 else given[end] for number, end in enumerate(ends)]
        sys.stdout.flush()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_use_server())
        socket.send_fds(self._connection, [b"."], streams)
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self.pid = int(_read_line(self._connection))
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[pipe] for pipe in pipes))

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._connection is None:
            return super()._try_wait(wait_flags)
        if wait_flags & os.WNOHANG and not select.select([self._connection], [], [], 0)[0]:
            return 0, 0
        status = int(_read_line(self._connection))
        self._connection.close()
        return self.pid, status

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        if self._connection is None:
            return super()._internal_poll(*args, **kwargs)
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid == self.pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def _request(given: dict[str, Any]) -> Request | None:
    """Return what to fork for a call of Popen; None if it takes a process of its own."""
    if given["shell"] or given["preexec_fn"] or given["pass_fds"] or given["executable"]:
        return None
    if given.get("process_group", -1) != -1 or isinstance(given["args"], (str, bytes, os.PathLike)):
        return None
    program, *arguments = map(os.fsdecode, given["args"])
    env = dict(os.environ if given["env"] is None else given["env"])
    if arguments[:1] == ["-u"]:
        arguments, env = arguments[1:], {**env, "PYTHONUNBUFFERED": "1"}
    runnable = arguments and (arguments[0] in ("-m", "-c") or arguments[0].endswith(".py"))
    if program != sys.executable or not runnable or arguments[:2] == ["-m", "tests.forked"]:
        return None
    cwd = os.fsdecode(given["cwd"] or os.getcwd())
    return Request(arguments, cwd, env, given["start_new_session"])


def _use_server() -> str:
    global _server, _address
    if _address is None:
        _server = Server()
        _address = _server.address
    return _address


def close() -> None:
    """End this process's own server, if it has one."""
    global _server, _address
    if _server is not None:
        _server.close()
        _server = _address = None


def _read_line(connection: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(65536)
        if not piece:
            raise ChildProcessError("the server of forked processes ended")
        line += piece
    return line.decode()


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is ``folder`` or a folder below it, in ascending order.

    A fork has the parent and the command line of the server, so its working directory tells whose it is.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if (process / "cwd").readlink().is_relative_to(folder.resolve()):
                found.append(int(process.name))
    return sorted(found)


def serve(address: str) -> Request | None:
    """Fork a process for each request until this process's input ends.

    Returns:
        In a forked process, which has its working directory, environment and streams, the request to be
        carried out; in the server None.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waiting: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, 0, woken], [], [])
        if 0 in ready:
            return None
        if woken in ready:
            os.read(woken, 4096)
            _report_ended(waiting)
        if listener in ready:
            connection, _ = listener.accept()
            _, streams, _, _ = socket.recv_fds(connection, 1, 3)
            request = Request(*json.loads(_read_line(connection)))
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for inherited in (listener, connection, *waiting.values()):
                    inherited.close()
                os.close(woken)
                os.close(wake)
                _settle(request, streams)
                return request
            waiting[pid] = connection
            connection.sendall(f"{pid}\n".encode())
            for stream in streams:
                os.close(stream)


def _report_ended(waiting: dict[int, socket.socket]) -> None:
    while waiting:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with waiting.pop(pid) as connection, contextlib.suppress(BrokenPipeError):
            connection.sendall(f"{status}\n".encode())


def _settle(request: Request, streams: list[int]) -> None:
    """Make a fork what a new interpreter would be."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)  # whatever the tests before left them at
    if request.new_session:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    sys.path[0] = request.cwd
    rank = request.env.get("RANK", request.env.get("LOCAL_RANK", 0))
    for name in KNOW_THEIR_RANK:
        importlib.import_module(name).rank_zero_only.rank = int(rank)
    encoding, _, errors = request.env.get("PYTHONIOENCODING", "utf-8").partition(":")
    options = {"encoding": encoding, "closefd": False}
    sys.stdout = open(1, "w", errors=errors or "strict", **options)  # type: ignore # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", **options)  # type: ignore # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=bool(request.env.get("PYTHONUNBUFFERED")))


def execute(arguments: list[str]) -> None:
    """Do what ``python`` does with these arguments."""
    kind, rest = arguments[0], arguments[1:]
    if kind == "-m":
        sys.argv = ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
        return
    sys.argv = arguments
    sys.path[0] = str(Path(kind).resolve().parent)
    runpy.run_path(kind, run_name="__main__")


def _main() -> None:
    global _address
    _address = sys.argv[1]
    subprocess.Popen = Popen  # type: ignore[misc]  # before anything imports it by name
    for name in PRELOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork has one thread only"
    gc.collect()
    gc.freeze()
    request = serve(_address)
    if request is not None:
        execute(request.arguments)


if __name__ == "__main__":
    _main()
