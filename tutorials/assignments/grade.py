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
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

if os.name == "nt":
    sys.exit("grading needs Linux or macOS: on Windows use WSL")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from marks import Set, grade, results, sets, table  # noqa: E402
from sandbox import adopt, sweep  # noqa: E402
from self_test import self_test  # noqa: E402


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
    try:
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
    finally:
        for process in running.values():  # after Ctrl-C: they clean up what they made
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.wait()
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
        return of == fingerprint(name, read_answer(file), secret)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_answer(file: Path) -> str:
    """As Python would read it: with Windows' byte order mark, too; odd bytes are errors there."""
    return file.read_text(encoding="utf-8-sig", errors="replace")


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
    files += sorted(HERE.glob("*.py"))
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
    if options.at_once < 1:
        parser.error(f"--at-once is {options.at_once}; expected at least 1")
    for file in (options.json, options.zip):
        if file and not file.resolve().parent.is_dir():
            parser.error(f"there is no folder for {file}")
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
    source = read_answer(path) if path.is_file() else ""
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
    try:
        main()
    except KeyboardInterrupt:
        sweep()
        sys.exit("stopped; for many answers the same command goes on")
