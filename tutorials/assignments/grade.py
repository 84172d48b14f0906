"""Grade the problem sets.

    python grade.py a2                          the public checks on a2_lora/answer.py
    python grade.py a2 my/answer.py             on another file
    python grade.py a2 answer.py --secret S     public and hidden checks; --json results.json
    python grade.py a2 submissions/ --secret S --out grades     many: NAME/answer.py or NAME.py
    python grade.py a2 --secret S --zip a2.zip  the autograder for Gradescope
    python grade.py --self-test                 is the grader right? stubs, reference, mutants

Each problem runs in a process of its own (worker.py), in a folder that holds copies, with a limit
of time and memory and without network: whatever an answer does, it costs that problem alone.
"""

import argparse
import ast
import csv
import ctypes
import importlib.util
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from checks import Luck, Problem, Wrong  # noqa: E402
from worker import decode, encode  # noqa: E402

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
    """The top-level statements that define `function` and the names it uses, in order.

    Calls at the top level belong to no function, and are left away.
    """
    binds: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for name in _bound(statement):
            binds.setdefault(name, []).append(statement)
    found, names = set(), [function]
    while names:
        for statement in binds.pop(names.pop(), []):
            if statement not in found:
                found.add(statement)
                names += [n.id for n in ast.walk(statement) if isinstance(n, ast.Name)]
    return [statement for statement in tree.body if statement in found]


def _bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [a.asname or a.name.split(".")[0] for a in statement.names]
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
        return [statement.name]
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        return [n.id for n in ast.walk(statement) if isinstance(n, ast.Name)]
    return []


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
    lines = source.splitlines()
    return "\n".join(line if i in keep else "" for i, line in enumerate(lines, 1)) + "\n"


# ---- one function in its process ----


class Gone(Wrong):
    """The process ended, or took too long: nothing more can be asked of it."""


class Worker:
    """A process that holds one function; `worker(*args)` calls it."""

    def __init__(self, folder: Path, file: str, problem: Problem, trusted: bool) -> None:
        limit = problem.limit
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
                "OMP_NUM_THREADS": "1",
                "HOME": str(folder),
            },
        )
        self.rest = b""
        self.deadline = time.monotonic() + START
        self._line()
        self._send([int(limit) + 30, MEMORY])
        self.deadline = time.monotonic() + limit
        self.limit = limit

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
                    why = (
                        "too much memory or time?" if code < 0 else "os._exit, or too much memory?"
                    )
                    raise Gone(f"the process ended ({code}): {why}")
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
            yield worker
        finally:
            worker.printed = (here / "printed.txt").read_bytes()[:2000]
            worker.end()


# ---- one submission ----


@dataclass
class Mark:
    """What one check of one problem gave."""

    problem: Problem
    hidden: bool
    points: float
    message: str  # "" if it is right
    seconds: float
    printed: str = ""

    @property
    def most(self) -> float:
        return self.problem.points / 2


@dataclass
class Set:
    """A problem set: its folder and its modules."""

    folder: Path
    problems: list[Problem]

    def module(self, name: str) -> ModuleType:
        return load(self.folder / f"{name}.py")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sets() -> dict[str, Set]:
    """{'a1': ..., ...}"""
    found = {}
    for path in sorted(HERE.glob("a[0-9]_*/problems.py")):
        found[path.parent.name[:2]] = Set(path.parent, load(path).PROBLEMS)
    return found


def grade(
    chosen: Set,
    source: str | Path,
    secrets: dict[bool, str],
    trusted: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Mark]:
    """All checks of a set on one answer. secrets: {False: "public", True: the hidden one}."""
    marks = []
    for problem in chosen.problems:
        tell(f"{problem.number} {problem.title} ...")
        for hidden, secret in secrets.items():
            begun, printed, message = time.monotonic(), b"", ""
            try:
                part = source if trusted else part_of(str(source), problem)
                with started(chosen.folder, part, problem, trusted) as worker:
                    try:
                        problem.check(worker, Luck(secret, problem.number))
                    except Wrong as wrong:
                        message = str(wrong) or "wrong"
                printed = worker.printed
            except Wrong as wrong:
                message = str(wrong) or "wrong"
            points = 0.0 if message else problem.points / 2
            text = printed.decode(errors="replace")
            seconds = round(time.monotonic() - begun, 2)
            marks.append(Mark(problem, hidden, points, message, seconds, text))
    return marks


def table(marks: list[Mark]) -> str:
    """For people: a line a problem, below it what is wrong and what the answer printed."""
    lines = []
    for mark in marks:
        p, kind = mark.problem, "hidden" if mark.hidden else "public"
        points = f"{mark.points:g} of {mark.most:g}"
        lines.append(f"{p.number:4} {p.title:44} {kind}  {points:>8}  {mark.seconds:5.1f} s")
        if mark.message:
            lines.append("     " + plain(mark.message))
        if mark.message and mark.printed.strip() and not mark.hidden:
            lines += ["     it printed:"]
            lines += ["     | " + plain(line) for line in mark.printed.splitlines()[:10]]
    total, most = sum(m.points for m in marks), sum(m.most for m in marks)
    return "\n".join([*lines, f"{total:g} of {most:g} points"])


def plain(text: str) -> str:
    """Text of an answer, without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def results(marks: list[Mark], leaderboard: float | None = None) -> dict[str, Any]:
    """results.json as Gradescope's documentation of autograders describes it."""
    tests = [
        {
            "name": f"{m.problem.number} {m.problem.title}" + (" (hidden)" if m.hidden else ""),
            "number": m.problem.number,
            "score": m.points,
            "max_score": m.most,
            "status": "failed" if m.message else "passed",
            "output": "hidden checks tell nothing" if m.hidden else plain(m.message) or "right",
            "visibility": "after_published" if m.hidden else "visible",
        }
        for m in marks
    ]
    out: dict[str, Any] = {
        "score": sum(m.points for m in marks),
        "execution_time": round(sum(m.seconds for m in marks), 2),
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }
    if leaderboard is not None:
        out["leaderboard"] = [{"name": "score", "value": leaderboard, "order": "desc"}]
    return out


# ---- many submissions, and the autograder's zip ----


def submissions(folder: Path) -> dict[str, Path]:
    """{student: file}: NAME/answer.py, or NAME.py."""
    found = {p.parent.name: p for p in sorted(folder.glob("*/answer.py"))}
    found |= {p.stem: p for p in sorted(folder.glob("*.py"))}
    if not found:
        raise SystemExit(f"{folder} holds no submissions: expected NAME/answer.py or NAME.py")
    return found


def grade_many(name: str, folder: Path, secret: str, out: Path, at_once: int) -> None:
    """Each submission in a process of grade.py's own; what is there already is not done again."""
    out.mkdir(parents=True, exist_ok=True)
    found = submissions(folder)
    todo = [student for student in found if not (out / f"{student}.json").exists()]
    running: dict[str, subprocess.Popen] = {}
    env = {**os.environ, "GRADE_SECRET": secret}
    done = len(found) - len(todo)
    while todo or running:
        while todo and len(running) < at_once:
            student = todo.pop(0)
            command = [sys.executable, __file__, name, str(found[student]), "--json"]
            with open(out / f"{student}.txt", "w", encoding="utf-8") as text:
                running[student] = subprocess.Popen(
                    [*command, str(out / f"{student}.json")], env=env, stdout=text, stderr=text
                )
        for student, process in list(running.items()):
            if process.poll() is not None:
                del running[student]
                done += 1
                print(f"{done} of {len(found)}: {student}", flush=True)
        time.sleep(0.1)
    rows = []
    for student in found:
        try:
            result = json.loads((out / f"{student}.json").read_text(encoding="utf-8"))
            scores = {test["name"]: test["score"] for test in result["tests"]}
            rows.append({"student": student, "score": result["score"], **scores})
        except (OSError, ValueError, KeyError):
            rows.append({"student": student, "score": "not graded, see its .txt"})
    with open(out / "grades.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, max(rows, key=len))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{out / 'grades.csv'}: {len(rows)} students")


SETUP = """#!/usr/bin/env bash
# Once, when the autograder is built. PyTorch's CPU build is enough and much smaller.
set -e
apt-get update && apt-get install -y python3 python3-venv
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install torch numpy tiktoken tqdm
chmod -R go-rwx /autograder/source/secret.txt
"""
RUN = """#!/usr/bin/env bash
# For each submission. Writes /autograder/results/results.json.
cd /autograder/source/tutorials/assignments
export GRADE_SECRET="$(cat /autograder/source/secret.txt)"
/autograder/venv/bin/python grade.py NAME /autograder/submission/answer.py \\
    --json /autograder/results/results.json
"""


def make_zip(name: str, chosen: Set, secret: str, path: Path) -> None:
    """The autograder for Gradescope: setup.sh, run_autograder, this folder, minseal, the secret."""
    files = [p for p in sorted(chosen.folder.glob("*.py")) if p.stem not in ("mutants", "answer")]
    files += [HERE / n for n in ("grade.py", "checks.py", "worker.py")]
    if (HERE / "a4_outer_loop" / "answer.py").exists():  # what find-the-bug began with
        files += [p for p in [chosen.folder / "answer.py"] if p.exists()]
    for folder in ("minseal", "tiny_data"):
        files += [p for p in sorted((ROOT / folder).rglob("*")) if p.is_file()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            if "__pycache__" not in file.parts:
                archive.write(file, file.relative_to(ROOT))
        archive.writestr("secret.txt", secret)
        for script, text in ("setup.sh", SETUP), ("run_autograder", RUN.replace("NAME", name)):
            info = zipfile.ZipInfo(script, (2020, 1, 1, 0, 0, 0))
            info.external_attr = 0o755 << 16
            archive.writestr(info, text)


# ---- is the grader right? ----


def self_test(names: list[str], secrets: list[str]) -> list[str]:
    """What is wrong with the grader: stubs must get nothing, the reference everything, each mutant
    must lose its own problem and no other, each right variant must pass. Prints as it goes."""
    wrong: list[str] = []
    for name, chosen in sets().items():
        if names and name not in names:
            continue
        stubs = (chosen.folder / "answer.py").read_text(encoding="utf-8")
        both = {False: "public", True: secrets[0]}
        got = grade(chosen, stubs, both)
        wrong += [f"{name}: the stub of {m.problem.number} gets points" for m in got if m.points]
        got = grade(chosen, chosen.folder / "reference.py", both, trusted=True)
        wrong += [
            f"{name}: the reference fails {m.problem.number}: {m.message}" for m in got if m.message
        ]
        reference, mutants = chosen.module("reference"), chosen.module("mutants")
        known = {p.number: p for p in chosen.problems}
        if chosen.problems[0].driver:
            seen = 0  # minutes each: these run as answers do
            for mutant, (number, text) in mutants.MUTANTS.items():
                (mark,) = grade(chosen, text, {False: "public"})
                seen += 1
                if not mark.message:
                    wrong.append(f"{name}: the mutant {mutant!r} passes {number}")
            print(f"{name}: {len(known)} problems, {seen} mutants", flush=True)
            continue
        for secret in ["public", *secrets]:
            for problem in chosen.problems:
                right = getattr(reference, problem.function)
                todo = {"the reference": (right, True)}
                for kind, passes in ("MUTANTS", False), ("VARIANTS", True):
                    for title, (number, make) in getattr(mutants, kind).items():
                        if number == problem.number:
                            todo[f"{kind[:-1].lower()} {title!r}"] = make(right), passes
                for title, (function, passes) in todo.items():
                    message = verdict(problem, function, secret)
                    if passes == bool(message):
                        wrong.append(f"{name}, {problem.number}, {title}, {secret}: {message}")
        numbers = {number for number, _ in mutants.MUTANTS.values()}
        wrong += [f"{name}: no mutant of {number}" for number in sorted(set(known) - numbers)]
        counts = f"{len(mutants.MUTANTS)} mutants, {len(mutants.VARIANTS)} right variants"
        print(f"{name}: {len(known)} problems, {counts}, {1 + len(secrets)} secrets", flush=True)
    return wrong


def verdict(problem: Problem, function: Callable, secret: str) -> str:
    """What the check says of a function in this process; "" if it is right."""

    def call(*args: Any) -> Any:
        try:
            return decode(json.loads(json.dumps(encode(function(*decode(encode(list(args))))))))
        except Wrong:
            raise
        except Exception as error:  # as an answer's own errors
            raise Wrong(f"{type(error).__name__}: {error}") from None

    try:
        problem.check(call, Luck(secret, problem.number))
    except Wrong as wrong:
        return str(wrong) or "wrong"
    return ""


# ---- the command line ----


def main() -> None:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    known = sets()
    parser.add_argument("set", nargs="*", help=f"one of {', '.join(known)}, and an answer")
    parser.add_argument("--secret", help="of the hidden checks; or the variable GRADE_SECRET")
    parser.add_argument("--json", type=Path, help="write Gradescope's results.json here")
    parser.add_argument("--out", type=Path, default=Path("grades"), help="folder, for many")
    parser.add_argument("--at-once", type=int, default=2, help="submissions graded at once")
    parser.add_argument("--zip", type=Path, help="write the autograder for Gradescope here")
    parser.add_argument("--self-test", action="store_true", help="is the grader right?")
    options = parser.parse_args()
    adopt()
    if options.self_test:
        wrong = self_test(options.set, ["one", "two", "three"])
        print("\n".join(wrong) or "the grader is right")
        sys.exit(bool(wrong))
    if not options.set or options.set[0] not in known or len(options.set) > 2:
        parser.error(f"which set? one of {', '.join(known)}, and a file or folder of answers")
    name, chosen = options.set[0], known[options.set[0]]
    secret = options.secret or os.environ.get("GRADE_SECRET")
    if options.zip:
        if not secret:
            parser.error("--zip needs --secret: the hidden checks' luck")
        make_zip(name, chosen, secret, options.zip)
        print(f"{options.zip}: upload it as the autograder of {name}")
        return
    path = Path(options.set[1]) if len(options.set) > 1 else chosen.folder / "answer.py"
    if path.is_dir():
        if not secret:
            parser.error("many answers need --secret: the hidden checks' luck")
        grade_many(name, path, secret, options.out, options.at_once)
        return
    if not path.is_file():
        parser.error(f"there is no {path}")
    secrets = {False: "public"} | ({True: secret} if secret else {})
    source = path.read_text(encoding="utf-8", errors="replace")
    marks = grade(chosen, source, secrets, tell=lambda line: print(line, file=sys.stderr))
    print(table(marks))
    if options.json:
        options.json.write_text(json.dumps(results(marks), indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
