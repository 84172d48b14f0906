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
import csv
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from checks import Luck, Problem, Wrong  # noqa: E402
from sandbox import Gone, adopt, part_of, started  # noqa: E402
from worker import decode, encode  # noqa: E402

# ---- one submission ----


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


# ---- many submissions, and the autograder's zip ----


def submissions(folder: Path) -> dict[str, Path | None]:
    """{student: file}: NAME/answer.py, or NAME.py; None: a folder without an answer.py."""
    found: dict[str, Path | None] = {}
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith((".", "_"))):
        if path.is_dir():
            answer = path / "answer.py"
            student, file = path.name, answer if answer.is_file() else None
        elif path.suffix == ".py":
            student, file = path.stem, path
        else:
            continue
        if student in found:
            raise SystemExit(f"{folder} holds two answers of {student}")
        found[student] = file
    if not any(found.values()):
        raise SystemExit(f"{folder} holds no submissions: expected NAME/answer.py or NAME.py")
    return found


def grade_many(name: str, folder: Path, secret: str, out: Path, at_once: int) -> None:
    """Each submission in a process of grade.py's own. Done already, with the same answer and
    secret: not done again."""
    out.mkdir(parents=True, exist_ok=True)
    found = submissions(folder)
    todo = [
        student
        for student, file in found.items()
        if file and not _done(name, file, secret, out / f"{student}.json")
    ]
    running: dict[str, subprocess.Popen] = {}
    env = {**os.environ, "GRADE_SECRET": secret}
    done = sum(file is not None for file in found.values()) - len(todo)
    if done:
        print(f"{done} graded already, with these answers and this secret", flush=True)
    while todo or running:
        while todo and len(running) < at_once:
            student = todo.pop(0)
            (out / f"{student}.json").unlink(missing_ok=True)
            command = [sys.executable, __file__, name, str(found[student]), "--json"]
            with open(out / f"{student}.txt", "w", encoding="utf-8") as text:
                running[student] = subprocess.Popen(
                    [*command, str(out / f"{student}.json"), "--quiet"],
                    env=env,
                    stdout=text,
                    stderr=text,
                )
        for student, process in list(running.items()):
            if process.poll() is not None:
                del running[student]
                done += 1
                print(f"{done}: {student}", flush=True)
        time.sleep(0.1)
    rows = []
    for student, file in found.items():
        try:
            result = json.loads((out / f"{student}.json").read_text(encoding="utf-8"))
            scores = {test["name"]: test["score"] for test in result["tests"]}
            rows.append({"student": student, "score": result["score"], **scores})
        except (OSError, ValueError, KeyError):
            told = f"not graded, see {student}.txt" if file else "no answer.py"
            rows.append({"student": student, "score": told})
    with open(out / "grades.csv", "w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, max(rows, key=len))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{out / 'grades.csv'}: {len(rows)} students")


def fingerprint(name: str, source: str, secret: str) -> str:
    """What a result is a result of."""
    return hashlib.sha256(f"{name}\n{secret}\n{source}".encode()).hexdigest()


def _done(name: str, file: Path, secret: str, result: Path) -> bool:
    try:
        of = json.loads(result.read_text(encoding="utf-8"))["extra_data"]["of"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return of == fingerprint(name, file.read_text(encoding="utf-8", errors="replace"), secret)


SETUP = """#!/usr/bin/env bash
# Once, when the autograder is built. PyTorch's CPU build is enough and much smaller:
# add the index of CPU builds that PyTorch's own installation page names.
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
    files += [HERE / f"{n}.py" for n in ("grade", "sandbox", "checks", "worker")]
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
    parser.add_argument("--quiet", action="store_true", help="no line while a problem is graded")
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
    if not path.is_file() and not options.json:
        parser.error(f"there is no {path}")
    secrets = {False: "public"} | ({True: secret} if secret else {})
    # A student who hands in another name gets 0 points and is told, not an autograder that fails.
    source = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    tell = (lambda line: None) if options.quiet else lambda line: print(line, file=sys.stderr)
    marks = grade(chosen, source, secrets, tell=tell)
    print(table(marks))
    if options.json:
        result = results(marks)
        result["extra_data"] = {"of": fingerprint(name, source, secret or "")}
        if not path.is_file():
            result["output"] = f"There is no {path.name}. Hand in a file of this name."
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
