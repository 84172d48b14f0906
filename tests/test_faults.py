"""Bad days: killed at any moment, stopped, a full disk, no permission. `pytest -m faults`.

Whatever happens, the same command afterwards ends with the result of a run that nothing happened
to, or says in one line what to do.
"""

import json
import os
import queue
import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import without_seconds
from fork_server import Ended, Server

pytestmark = pytest.mark.faults
TINY_DATA = Path(__file__).parent.parent / "tiny_data"
KNOWLEDGE, FEWSHOT = str(TINY_DATA / "knowledge"), str(TINY_DATA / "fewshot")
PROCESSES = min(2, os.cpu_count() or 1)
MOMENTS = int(os.environ.get("FAULTS", 20))  # at random, of each command
SIZES = "--rounds 1 --contexts 1 --samples 2 --inner.epochs 1 --inner.rank 2 --eval-contexts 1"
QUICK = f"{SIZES} --reliability-contexts 0 --select random --outer.m-step.epochs 1"
PUZZLES = "--train-puzzles 1 --solvable false"
COMMANDS = {
    "run knowledge": f"--model {KNOWLEDGE} --out out {QUICK} --control false",
    "run fewshot": f"--model {FEWSHOT} --out out {QUICK} {PUZZLES} --constants 1 --views 0",
    "run ttt": f"--model {FEWSHOT} --out out --eval-contexts 1 --inner.epochs 1 --inner.rank 2 "
    + PUZZLES,
    "learn": f"page.md --model {KNOWLEDGE} --epochs 1 --out out --exam exam.json",
    "learn on": f"page.md --model {KNOWLEDGE} --epochs 1 --adapter adapter --out adapter",
    "convert": "theirs out",
    "convert GGUF": "theirs.gguf out",
    "export": f"{KNOWLEDGE} out",
    "export run": "run out",
    "report": "run",
}
PAGE = "# Rivers\n\nThe Seine flows through Paris.\n\n# Towns\n\nBern lies on the Aare.\n"


class Campaign:
    """Trials of commands, each in a folder of its own, some at once."""

    def __init__(self, folder, n):
        self.folder, self.start, self.trials = folder, folder / "start", 0
        self.start.mkdir()
        self.servers, self.whole = queue.Queue(), {}
        for i in range(n):
            (folder / f"server {i}").mkdir()
            self.servers.put(Server(folder / f"server {i}"))

    def close(self):
        while not self.servers.empty():
            self.servers.get().close()

    def run(self, words, cwd, **how) -> Ended:
        server = self.servers.get()
        try:
            return server.run(words, cwd, **how)
        finally:
            self.servers.put(server)

    def fresh(self, words):
        """A folder with what the command reads."""
        self.trials += 1
        cwd = self.folder / f"trial {self.trials}"
        cwd.mkdir()
        for name in {*words} & set(os.listdir(self.start)):
            copy = shutil.copytree if (self.start / name).is_dir() else shutil.copy
            copy(self.start / name, cwd / name)
        return cwd

    def undisturbed(self, command) -> tuple[Ended, dict]:
        """How the command ends on a good day, and what is in the folder then."""
        if command not in self.whole:
            words = words_of(command)
            cwd = self.fresh(words)
            ended = self.run(words, cwd)
            assert ended.code == 0 and not ended.err, ended
            self.whole[command] = ended, contents(cwd)
        return self.whole[command]

    def trial(self, command, *bad_days) -> str:
        """Bad days one after another, then a good one; what is wrong then, or nothing."""
        words, (_, whole) = words_of(command), self.undisturbed(command)
        cwd = self.fresh(words)
        days = [self.run(words, cwd, **how) for how in bad_days]
        wrong = [day for day in days if not decent(day)]
        last = self.run(words, cwd)
        told = f"{command}, {bad_days}: "
        if wrong:
            return told + f"ended with {wrong[0]}"
        there = contents(cwd)
        shutil.rmtree(cwd)
        if last.code != 0 and not (last.code == 2 and decent(last) and there == whole):
            return told + f"then {last.code} {last.err}"
        return told + differences(there, whole) if there != whole else ""

    def try_all(self, command, days):
        """Each of the trials; fails with all complaints."""
        with ThreadPoolExecutor(PROCESSES) as pool:
            found = [f for f in pool.map(lambda day: self.trial(command, *day), days) if f]
        assert not found, "\n".join([f"{len(found)} of {len(days)} trials:", *found[:12]])


def words_of(command):
    first = command.split()[0]
    return [*(command.split() if first == "run" else [first]), *COMMANDS[command].split()]


def decent(ended: Ended) -> bool:
    """Killed, or done, or one line of ours and an exit code that says so."""
    if ended.code in (-signal.SIGKILL, 0):
        return not ended.err
    lines = [line for line in ended.err.splitlines() if line]
    stopped = {130: "stopped", 143: "stopped", 2: "error"}.get(ended.code)
    return stopped is not None and len(lines) == 1 and stopped in lines[0]


def contents(folder) -> dict:
    """{name: what is in it, without what differs from run to run}."""
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: content(path) for name, path in files.items() if path.suffix != ".lock"}


def content(path):
    if path.suffix == ".pt":  # the name that a file had when it was written is in it
        tensors = torch.load(path, weights_only=True)
        return {name: (str(t.dtype), t.shape, t.numpy().tobytes()) for name, t in tensors.items()}
    if path.name == "minseal.json":
        about = json.loads(path.read_text())
        return {**about, "results": {**about["results"], "training seconds": None}}
    if path.suffix == ".json":
        return without_seconds(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [without_seconds(json.loads(line)) for line in path.read_text().splitlines()]
    return path.name == "report.md" or path.read_bytes()  # the table has seconds, too


def differences(there, whole) -> str:
    told = [f"no {name}" for name in whole if name not in there]
    told += [f"left {name}" for name in there if name not in whole]
    told += [f"another {name}" for name in whole if name in there and there[name] != whole[name]]
    return ", ".join(told)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    from open_models.test_gguf import write as write_gguf
    from their_models import write_theirs

    campaign = Campaign(tmp_path_factory.mktemp("faults"), PROCESSES)
    start = campaign.start
    write_theirs(start / "theirs", "llama")
    write_gguf(start / "theirs.gguf", "llama")
    (start / "page.md").write_text(PAGE)
    exam = [{"question": "What flows through Paris?", "answer": "The Seine"}]
    (start / "exam.json").write_text(json.dumps(exam))
    for command, there, name in (("learn", "out", "adapter"), ("run knowledge", "out", "run")):
        cwd = campaign.fresh(words_of(command))
        assert campaign.run(words_of(command), cwd).code == 0
        shutil.copytree(cwd / there, start / name)
    yield campaign
    campaign.close()


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_every_file_operation(campaign, command):
    """Before each of them, and in the middle of those that write."""
    operations = campaign.undisturbed(command)[0].operations
    assert len(operations) > 3
    days = [[{"at": n, "torn": "write" in o}] for n, o in enumerate(operations, 1)]
    campaign.try_all(command, days)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_power_fails_while_something_is_not_on_the_disk(campaign, command):
    """A file of which not all was flushed is cut to what was."""
    operations = campaign.undisturbed(command)[0].operations
    days = [[{"at": n, "power": True}] for n, o in enumerate(operations, 1) if "(unsafe)" in o]
    campaign.try_all(command, days)


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_moments(campaign, command):
    """By the clock; every fourth time it is killed again, at a file operation, as it goes on."""
    (whole, _), rng = campaign.undisturbed(command), random.Random(command)
    days = [[{"after": rng.uniform(0, whole.seconds)}] for _ in range(MOMENTS)]
    for day in days[::4]:
        day.append({"at": rng.randint(1, len(whole.operations)), "torn": True})
    campaign.try_all(command, days)
