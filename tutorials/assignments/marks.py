"""One answer's marks: the sets and their problems, grading, the table, results.json."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from checks import Luck, Problem, Wrong
from sandbox import HERE, Gone, part_of, started


@dataclass
class Mark:
    """What one check of one problem gave."""

    problem: Problem
    hidden: bool
    message: str  # "" if it is right
    seconds: float
    value: float | None = None  # what the check returned, for the leaderboard
    printed: str = ""

    @property
    def most(self) -> float:
        return self.problem.points / 2

    @property
    def points(self) -> float:
        return 0.0 if self.message else self.most


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
        found: list[Mark] = []
        try:
            part = source if trusted else part_of(str(source), problem)
            with started(chosen.folder, part, problem, trusted) as worker:
                gone = ""
                for hidden, secret in secrets.items():
                    begun, message, value = time.monotonic(), gone, None
                    worker.begin()
                    try:
                        if not gone:
                            value = problem.check(worker, Luck(secret, problem.number))
                    except Wrong as wrong:
                        message = str(wrong) or "wrong"
                        gone = message if isinstance(wrong, Gone) else ""
                    except Exception as error:  # the check's own: it met what it did not expect
                        message = f"a result that the check cannot compare ({error})"
                    seconds = round(time.monotonic() - begun, 2)
                    found.append(Mark(problem, hidden, message, seconds, value))
            for mark in found:
                mark.printed = worker.printed
        except Wrong as wrong:  # not a line of it ran, or its process never began
            found = [Mark(problem, hidden, str(wrong), 0.0) for hidden in secrets]
        marks += found
    return marks


def table(marks: list[Mark]) -> str:
    """For people: a line a problem, below it what is wrong and what the answer printed."""
    lines, told = [], set()
    for mark in marks:
        p, kind = mark.problem, "hidden" if mark.hidden else "public"
        points = f"{mark.points:g} of {mark.most:g}"
        lines.append(f"{p.number:4} {p.title:44} {kind}  {points:>8}  {mark.seconds:5.1f} s")
        if mark.message and mark.message not in told:
            lines.append("     " + plain(mark.message))
        told.add(mark.message)
        if mark.message and mark.printed.strip() and not mark.hidden:
            lines += ["     it printed:"]
            lines += ["     | " + plain(line) for line in mark.printed.splitlines()[:10]]
    total, most = sum(m.points for m in marks), sum(m.most for m in marks)
    return "\n".join([*lines, f"{total:g} of {most:g} points"])


def plain(text: str) -> str:
    """Text of an answer, without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def results(marks: list[Mark]) -> dict[str, Any]:
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
    values = [m.value for m in marks if m.value is not None]
    if values:  # the hidden one, where there is one
        out["leaderboard"] = [{"name": "score", "value": round(values[-1], 3), "order": "desc"}]
    return out
