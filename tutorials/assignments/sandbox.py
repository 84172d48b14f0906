"""An answer in its cage: what of it belongs to a problem, and a process of its own to run that."""

import ast
import ctypes
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from symtable import SymbolTable, symtable
from typing import Any

from checks import Problem, Wrong
from worker import decode, encode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MEMORY = 2 * 2**30  # bytes beyond what a worker takes itself
LONGEST = 2**26  # bytes of one result
START = 180  # seconds until a worker must be there: torch is slow to import on a busy machine
ALLOWED = set("torch numpy math itertools collections functools dataclasses typing given".split())
FORBIDDEN = set(
    "__import__ eval exec compile open input breakpoint globals locals vars getattr setattr "
    "delattr __builtins__ __loader__ __spec__".split()
)


# ---- what of an answer belongs to a problem, and what it may not use ----


def needed(tree: ast.Module, function: str) -> list[ast.stmt]:
    """The top-level statements that define `function` and the global names it uses, in order.

    Other code at the top level, a print or a loop to try things out, belongs to no problem; nor
    does a call of something imported, such as np.savetxt(...).
    """
    found, names = set(), [function]
    imports = [s for s in tree.body if isinstance(s, (ast.Import, ast.ImportFrom))]
    modules = {name for statement in imports for name in _bound(statement)}
    binds: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        changes = _bound(statement) - (modules if isinstance(statement, ast.Expr) else set())
        for name in changes:
            binds.setdefault(name, []).append(statement)
    while names:
        for statement in binds.pop(names.pop(), []):
            if statement not in found:
                found.add(statement)
                names += _global_names(symtable(ast.unparse(statement), "answer.py", "exec"))
    return [statement for statement in tree.body if statement in found]


def _bound(statement: ast.stmt) -> set[str]:
    """The global names that a top-level statement defines or changes: T[i] = ..., T.append(...)."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
        return {statement.name}
    bound = set()
    for node in ast.walk(statement):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {a.asname or a.name.split(".")[0] for a in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            bound.add(_base(node))
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        bound.add(_base(statement.value.func))
    return bound - {""}


def _base(node: ast.expr) -> str:
    """a of a.b[c].d; nothing of a plain name, whose call changes nothing."""
    inside = node
    while isinstance(inside, (ast.Attribute, ast.Subscript)):
        inside = inside.value
    return inside.id if isinstance(inside, ast.Name) and inside is not node else ""


def _global_names(table: SymbolTable) -> list[str]:
    """What the code of a symbol table takes from the top level: not its locals and arguments."""
    top = table.get_type() == "module"
    names = [
        s.get_name() for s in table.get_symbols() if s.is_global() or top and s.is_referenced()
    ]
    return names + [name for inner in table.get_children() for name in _global_names(inner)]


def forbidden(statements: list[ast.stmt], problem: Problem) -> str | None:
    """What these statements use and may not, with the line; None: nothing."""
    banned, allowed = FORBIDDEN | set(problem.forbidden), ALLOWED | set(problem.allowed)
    for node in (node for statement in statements for node in ast.walk(statement)):
        names: list[str] = []
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom):
                names, modules = modules, [node.module or "."]
            for module in modules:
                if module.split(".")[0] not in allowed:
                    return f"line {node.lineno} imports {module}, which this set does not allow"
                names += module.split(".")
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.keyword):
            names = [node.arg or ""]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
            if node.attr.startswith("__") and node.attr != "__init__":
                return f"line {node.lineno} uses {node.attr}, which this set does not allow"
        if bad := sorted(set(names) & banned):
            return f"line {node.lineno} uses {bad[0]}, which this problem does not allow"
    return None


def part_of(source: str, problem: Problem) -> str:
    """The source with all other lines blank, so that line numbers stay. Raises Wrong."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        raise Wrong(f"answer.py is no Python: {error.args[0]} (line {line})") from None
    statements = needed(tree, problem.function)
    if not any(problem.function in _bound(s) for s in statements):
        raise Wrong(f"answer.py defines no {problem.function}")
    if bad := forbidden(statements, problem):
        raise Wrong(f"not allowed: {bad}")
    keep: set[int] = set()
    for s in statements:
        first = min([s.lineno, *(d.lineno for d in getattr(s, "decorator_list", []))])
        keep |= set(range(first, (s.end_lineno or first) + 1))
    lines = re.split(r"\r\n|\r|\n", source)  # splitlines() cuts at more, inside of texts
    return "\n".join(line if i in keep else "" for i, line in enumerate(lines, 1)) + "\n"


# ---- one function in its process ----


class Gone(Wrong):
    """The process ended, or took too long: nothing more can be asked of it."""


class Worker:
    """A process that holds one function; `worker(*args)` calls it."""

    def __init__(self, folder: Path, file: str, problem: Problem, trusted: bool) -> None:
        self.limit, self.rest, self.printed = problem.limit, b"", ""
        options = ["--driver", problem.driver] if problem.driver else []
        command = [sys.executable, "worker.py", file, problem.function, *options]
        paths = [str(HERE), str(ROOT)] if trusted else [str(folder)]
        self.process = subprocess.Popen(
            command + ["--trusted"] * trusted,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={
                "PATH": os.environ.get("PATH", ""),
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1",
                "HOME": str(folder),
            },
        )

    def wait(self) -> None:
        """Until it has started; from then on it is in its cage."""
        self.deadline = time.monotonic() + START
        self._line()
        self._send([int(2 * self.limit) + 30, MEMORY])

    def begin(self) -> None:
        """A check begins: it has its time."""
        self.deadline = time.monotonic() + self.limit

    def __call__(self, *args: Any) -> Any:
        self._send({"args": encode(list(args))})
        message = self._line()
        if "error" in message:
            raise Wrong(str(message["error"])[:400])
        try:
            return decode(message["value"])
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise Wrong(f"its result cannot be read: {error}") from None

    def _send(self, message: Any) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def _line(self) -> dict[str, Any]:
        """The next message, within the time that is left."""
        assert self.process.stdout
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.rest:
                if not ready.select(max(0.0, self.deadline - time.monotonic())):
                    raise Gone(f"took longer than {self.limit:g} s: an endless loop?")
                part = os.read(self.process.stdout.fileno(), 2**16)
                if not part:
                    code = self.process.wait()
                    raise Gone(f"the process ended ({code}): too much memory or time, an exit?")
                self.rest += part
                if len(self.rest) > LONGEST:
                    raise Gone(f"a result of more than {LONGEST >> 20} MiB")
        line, self.rest = self.rest.split(b"\n", 1)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise Gone("something other than results came from the process") from None
        if not isinstance(message, dict):
            raise Gone("something other than results came from the process")
        return message

    def end(self) -> None:
        """Kill it, and whatever it left behind."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        sweep()


def adopt() -> None:
    """Orphans of what we start become our children (Linux), so that sweep() finds them."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def sweep() -> None:
    """Kill all our children, again until there are none. Grading keeps no other child."""
    for _ in range(200):
        children = list(_children())
        if not children:
            return
        for pid in children:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _children() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(path.parent.name)


@contextmanager
def started(
    folder: Path, source: str | Path, problem: Problem, trusted: bool = False
) -> Iterator[Worker]:
    """A worker in a temporary folder. source: text of an answer; a path: a file that is trusted."""
    with tempfile.TemporaryDirectory(prefix="grade-") as name:
        here = Path(name)
        here.chmod(0o755)
        shutil.copy(HERE / "worker.py", here)
        for extra in ("given.py", f"{problem.driver}.py"):
            if (folder / extra).exists():
                shutil.copy(folder / extra, here)
        if problem.driver:
            skip = shutil.ignore_patterns("__pycache__")
            for package in ("minseal", "tiny_data"):
                shutil.copytree(ROOT / package, here / package, ignore=skip)
        (here / "printed.txt").touch()
        (here / "printed.txt").chmod(0o666)
        file = str(source)
        if not isinstance(source, Path):
            (here / "answer.py").write_text(source, encoding="utf-8")
            file = "answer.py"
        worker = Worker(here, file, problem, trusted)
        try:
            worker.wait()
            yield worker
        finally:
            worker.end()
            with suppress(OSError), open(here / "printed.txt", "rb") as printed:
                worker.printed = printed.read(2000).decode(errors="replace")
