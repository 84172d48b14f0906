"""Commands in forked processes that can be killed at any file operation.

To import torch takes seconds, so one process does it once and forks: each child is `minseal ...` to
its very end, with a folder, streams and a user of its own, and may be killed before its n-th file
operation, in the middle of it, or as if the power failed. `Server` is the side of the tests; run as
a program, this file is the other.
"""

import atexit
import builtins
import functools
import gc
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SIGNALS = {signal.SIGINT, signal.SIGTERM}
CHANGES = {  # audit events of what changes a folder, and how many of their arguments are paths
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.truncate": 1,
}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (-9: killed), what it said, its file operations."""

    code: int
    out: str
    err: str
    operations: list[str]
    seconds: float


class Server:
    """A process that has imported minseal; run() is a command in a fork of it, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                "PYTHONWARNINGS": "ignore",
            },
        )

    def run(self, words: list[str], cwd: Path, **how: object) -> Ended:
        """`minseal WORDS` in a folder.

        at=n: SIGKILL before the n-th file operation there, counted from 1. torn: in the middle of
        it, if it writes. power: the power fails, too: what was not flushed to the disk is lost.
        wait=FILE: no kill, but `FILE there` is made, and nothing goes on until FILE is there.
        after=s, signal=n: that signal after so many seconds. uid: another user. env: changes, None:
        unset. stdin, out, err: a file, "closed", or "nobody reads" (a pipe). encoding: of the
        output. limit: seconds until it counts as hung, and is killed.
        """
        self.process.stdin.write(json.dumps({"words": words, "cwd": str(cwd), **how}) + "\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"the server of forks died: {self.process.wait(60)}")
        ended = json.loads(answer)
        texts = [(self.folder / name).read_text(errors="replace") for name in ("out", "err", "ops")]
        return Ended(ended["code"], *texts[:2], texts[2].splitlines(), ended["seconds"])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


# ---- the other side ------------------------------------------------------------------------------


def serve() -> dict:
    """Answer orders until there are no more; returns in each child, with its order."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order, start = json.loads(line), time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the program looks after them
        if (child := os.fork()) == 0:
            answers.close()
            return order
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        due, limit = start + order.get("after", 1e9), start + order.get("limit", 120)
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            now = time.monotonic()
            if now > min(due, limit):
                os.kill(child, signal.SIGKILL if now > limit else order["signal"])
                due = 1e9
            time.sleep(0.001)
        code, seconds = os.waitstatus_to_exitcode(ended[1]), time.monotonic() - start
        answers.write(json.dumps({"code": code, "seconds": seconds}) + "\n")
        answers.flush()
    os._exit(0)


def become_a_command(order: dict, folder: Path) -> None:
    """Folder, user, streams, signals and arguments of a command that a shell started."""
    os.chdir(order["cwd"])
    log = os.open(folder / "ops", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for name in ("out", "err"):
        (folder / name).write_text("")
    files = {"stdin": "/dev/null", "out": folder / "out", "err": folder / "err"} | {
        name: order[name] for name in ("stdin", "out", "err") if name in order
    }
    for fd, file in enumerate(files.values()):
        if file == "closed":
            os.close(fd)
            continue
        if file == "nobody reads":
            reads, opened = os.pipe()
            os.close(reads)
        else:
            opened = os.open(file, os.O_RDONLY if fd == 0 else os.O_WRONLY)
        os.dup2(opened, fd)
        os.close(opened)
    set_streams({fd for fd, file in enumerate(files.values()) if file != "closed"}, order)
    for name, value in order.get("env", {}).items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["minseal", *order["words"]]
    watch(order, log)
    if uid := order.get("uid"):
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def set_streams(there: set[int], order: dict) -> None:
    """sys.stdin, stdout and stderr as Python makes them as it starts: None where one is closed."""
    encoding = order.get("encoding", "utf-8")
    sys.stdin = open(0, encoding=encoding, closefd=False) if 0 in there else None
    for fd, name, errors in ((1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        # Buffers of their own: what is written to a terminal or a file does not count here.
        raw = io.FileIO(fd, "w", closefd=False) if fd in there else None
        lines = fd == 2
        stream = raw and io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, None, lines)
        setattr(sys, name, stream)


def watch(order: dict, log: int) -> None:
    """Count the file operations in order["cwd"], and die at the one that was ordered."""
    import safetensors.torch
    import torch

    real_open, real_write, exists = io.open, os.write, os.path.exists
    root, at = os.path.join(os.path.realpath(order["cwd"]), ""), order.get("at", 0)
    flushed: dict[str, int] = {}  # of a file that was written: how much of it is safely on the disk
    number, dying = 0, False

    def place(file: object) -> str:
        if isinstance(file, int):
            return os.readlink(f"/proc/self/fd/{file}")
        return os.path.abspath(os.fsdecode(file))

    def inside(path: str) -> bool:
        return os.path.join(path, "").startswith(root)

    def comes(what: str, *files: object) -> bool:
        """Count an operation, and die before it; or say that it shall be torn."""
        nonlocal number
        paths = [place(file) for file in files]
        if dying or not any(map(inside, paths)):
            return False
        number += 1
        unsafe = [p for p, n in flushed.items() if exists(p) and os.path.getsize(p) > n]
        unsafe = [f"unsafe: {p}" for p in unsafe]
        real_write(log, " ".join([what, *paths, *unsafe]).replace(root, "").encode() + b"\n")
        if number != at:
            return False
        if go := order.get("wait"):
            Path(f"{go} there").touch()
            while not exists(go):
                time.sleep(0.01)
            return False
        if not (what == "write" and order.get("torn")):
            die()
        return True

    def die() -> None:
        nonlocal dying
        dying = True  # its own operations do not count
        for path, n in flushed.items() if order.get("power") else ():
            if exists(path) and os.path.getsize(path) > n:
                os.truncate(path, n)
        os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, args: tuple) -> None:
        """What changes nothing does not count, such as to make a folder that is there."""
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            path, flags = place(args[0]), args[2] or 0
            if flags & (os.O_WRONLY | os.O_RDWR) and inside(path):
                there = exists(path) and not flags & os.O_TRUNC
                if not there:
                    comes("open", path)
                flushed.setdefault(path, os.path.getsize(path) if there else 0)
                flushed[path] *= there
        elif event in CHANGES:
            paths = [place(file) for file in args[: CHANGES[event]]]
            if os.path.lexists(paths[0]) != (event == "os.mkdir"):
                comes(event, *paths)
            if event == "os.rename":  # of a file, or of a folder with files in it
                old, new = paths
                for path in [p for p in flushed if p == old or p.startswith(old + os.sep)]:
                    flushed[new + path.removeprefix(old)] = flushed.pop(path)

    class File(io.FileIO):
        """A file whose every write is an operation."""

        def write(self, data: object) -> int:
            if comes("write", self.fileno()):
                super().write(bytes(data)[: len(bytes(data)) // 2])
                die()
            return super().write(data)

    def open_file(file, mode="r", buffering=-1, *args, **more):
        """open(), which makes such files; as in io, but in Python."""
        if not set(mode) & set("wax+") or buffering == 0:
            return real_open(file, mode, buffering, *args, **more)
        names = ("encoding", "errors", "newline", "closefd", "opener")
        how = dict(zip(names, args)) | more
        raw = File(file, mode.replace("b", "").replace("t", ""), how.pop("closefd", True),
                   how.pop("opener", None))  # fmt: skip
        buffer = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, **how)

    def write(fd, data):
        if comes("write", fd):
            real_write(fd, data[: len(data) // 2])
            die()
        return real_write(fd, data)

    def whole(save):
        """A library's function that writes a whole file: one operation."""

        def saves(tensors, path, *args, **more):
            if not isinstance(path, (str, os.PathLike)):
                return save(tensors, path, *args, **more)
            torn = comes("write", path)
            save(tensors, path, *args, **more)
            if inside(place(path)):
                flushed[place(path)] = 0
            if torn:
                os.truncate(path, os.path.getsize(path) // 2)
                die()

        return saves

    def flush(real):
        def flushes(file):
            fd = file if isinstance(file, int) else file.fileno()
            comes("fsync", fd)
            real(fd)
            if (path := place(fd)) in flushed:
                flushed[path] = os.path.getsize(path)

        return flushes

    builtins.open = io.open = open_file
    os.write, os.fsync, os.fdatasync = write, flush(os.fsync), flush(os.fdatasync)
    torch.save, safetensors.torch.save_file = map(whole, (torch.save, safetensors.torch.save_file))
    sys.addaudithook(audit)


def import_all() -> None:
    """What the commands import, some of it only when first used, and what they work out once."""
    import gguf  # noqa: F401
    import safetensors.torch  # noqa: F401
    import tokenizers  # noqa: F401
    import torch
    from matplotlib.figure import Figure

    import minseal.__main__  # noqa: F401
    from minseal.commands import cli

    torch.set_num_threads(1)
    minseal.load(ROOT / "tiny_data" / "knowledge")
    Figure().savefig(io.BytesIO())
    inspect.getsource = functools.cache(inspect.getsource)  # options are read from there, slowly
    cli.parser()
    gc.collect()
    gc.freeze()  # so that no child copies it all just by looking


def then_open_to_signals(answer_signals: Callable) -> Callable:
    """Signals that came before the program's first line wait for it."""

    def answer(how: Callable) -> None:
        answer_signals(how)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    return answer


def go(main: Callable[[], None]) -> int:
    """Exit code of a program; what Python does in the end, but for seconds of taking torch down."""
    code = 0
    try:
        main()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        atexit._run_exitfuncs()
        if sys.stdout is not None:
            sys.stdout.flush()
    except Exception:
        traceback.print_exc()
        code = 120
    return code


if __name__ == "__main__":
    import_all()
    become_a_command(serve(), Path(sys.argv[1]))
    import minseal.__main__ as program

    program.answer_signals = then_open_to_signals(program.answer_signals)
    os._exit(go(program.main))
