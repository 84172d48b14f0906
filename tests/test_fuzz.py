"""Whatever is read: a value, or UserError or InvalidSelfEdit in one line; nothing else, and soon.

pytest -m fuzz                            10 minutes: a million texts, 100,000 files
MINSEAL_FUZZ_MINUTES=60 MINSEAL_FUZZ_SEED=7 pytest -m fuzz
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fuzzing import worker
from fuzzing.targets import Target
from fuzzing.worker import Campaign, Finding, in_memory, merged, open_targets

from minseal import UserError
from minseal.selfedit import InvalidSelfEdit

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no limits on time and memory there")
WORKER = Path(__file__).parent / "fuzzing" / "worker.py"
SEED = int(os.environ.get("MINSEAL_FUZZ_SEED", "0"))
MINUTES = float(os.environ.get("MINSEAL_FUZZ_MINUTES", "10"))


def told(findings):
    """What a failure says: each fault with its smallest input, and how to see it again."""
    rows = []
    for f in sorted(findings, key=lambda f: (f.place, f.target)):
        rows.append(f"{f.place or '?'}  {f.what}\n    {f.target}, {f.size} long: {f.shown}")
        again = f"python tests/fuzzing/worker.py again {SEED} {f.target!r} {f.number}"
        rows.append(f"    PYTHONPATH=.{os.pathsep}tests {again}")
    return f"{len(findings)} faults\n" + "\n".join(rows)


def tail_of(path):
    return path.read_text(errors="replace")[-600:] if path.exists() else ""


class Part:
    """A worker, started again after the input that ended it."""

    def __init__(self, folder, mine, parts):
        folder.mkdir()
        self.folder, self.mine, self.parts = folder, mine, parts
        self.crashes = []
        self.start(0, 0)

    def start(self, at, number):
        spent = max((line.get("seconds", 0) for line in self.lines()), default=0)
        numbers = map(str, (SEED, MINUTES, self.mine, self.parts, at, number, spent))
        path = os.pathsep.join(map(str, WORKER.parents[1:3]))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, WORKER, "part", self.folder, *numbers]
        with open(self.folder / "stderr", "w") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, env=environment)

    def lines(self):
        path = self.folder / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def now(self):
        path = self.folder / "now"
        return path.read_bytes().split(b"\n")[0].decode().split("\t") if path.exists() else []

    def ended(self):
        """The exit code; a worker is killed that waits for something."""
        last, since = [], time.monotonic()
        while (code := self.process.poll()) is None:
            time.sleep(0.2)
            if (now := self.now()) != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > 300:
                self.process.kill()
        return code

    def wait(self):
        while (code := self.ended()) != 0:
            assert len(self.now()) == 3, f"nothing was read: {tail_of(self.folder / 'stderr')}"
            at, name, number = self.now()
            late = code in (-signal.SIGVTALRM, -signal.SIGKILL)
            why = "never came back" if late else f"ended the process: exit code {code}"
            shown = tail_of(self.folder / "stderr")
            self.crashes.append(Finding(name, int(number), why, "", 0, shown))
            if len(self.crashes) == 10:  # enough to mend
                break
            self.start(int(at), int(number) + 1)


@pytest.mark.fuzz
def test_a_million_texts_and_100_000_files(capsys):
    n = min(4, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(dir=in_memory(), prefix="minseal-fuzz-") as place:
        parts = [Part(Path(place) / f"part-{i}", i, n) for i in range(n)]
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(Part.wait, parts))
        finally:
            for part in parts:
                part.process.kill()
                part.process.wait()
        lines = [line for part in parts for line in part.lines()]
    findings, tallies, peak = merged(lines)
    rows = [f"{'':50} inputs  refused  ms each  slowest s (its number)"]
    for name, t in tallies.items():
        each = t.seconds / max(t.inputs, 1) * 1000
        row = f"{name[:50]:50} {t.inputs:6} {t.refused / max(t.inputs, 1):7.0%} {each:9.2f}"
        rows.append(f"{row} {t.slowest:8.2f} ({t.slowest_number})")
    texts, files = (sum(t.inputs for t in tallies.values() if t.is_file == f) for f in (0, 1))
    rows.append(f"seed {SEED}: {texts} texts, {files} files; at most {peak / 1e9:.2f} GB of memory")
    with capsys.disabled():
        print("\n" + "\n".join(rows))
    every = [*findings.values(), *(crash for part in parts for crash in part.crashes)]
    assert not every, told(every)


def test_a_few_thousand_texts_and_files(tmp_path):
    """The same targets, seconds of it."""
    found = []
    old = [signal.getsignal(signal.SIGPROF)]
    targets = open_targets(tmp_path / "files")
    campaign = Campaign(0, found.append)
    try:
        for target in [t for t in targets.parsers + targets.readers if t.seconds < 3]:
            campaign.warm(target)
            n = 40 if target.path is None else round(1 + 3 * target.share)
            campaign.go(target, 0, len(target.examples) + n)
    finally:
        signal.signal(signal.SIGPROF, old[0])
    assert not found, told(campaign.smallest.values())


PLANTED = {
    "KeyError: 'a'": lambda text: {}[text],
    "SystemExit: 5": lambda text: sys.exit(5),
    "longer than 0.1 s": lambda text: all(iter(lambda: True, False)),
    "longer than 0.1 s, and caught": lambda text: stubborn(),
    "took memory": lambda text: len(b"x" * 2**27),
    "no line: 3000 letters": lambda text: invalid("x" * 3000),
    "steer a terminal: '\\u202e'": lambda text: print(text, "\u202e"),
    "": lambda text: refuse(text),
}


def refuse(text):
    raise UserError(text)


def invalid(text):
    raise InvalidSelfEdit(text)


def stubborn():
    try:
        while True:
            pass
    except BaseException as e:
        refuse(f"{e}")


@pytest.mark.parametrize("what", PLANTED)
def test_what_must_not_happen_is_found(monkeypatch, what):
    monkeypatch.setattr(worker, "MEMORY", 2**26)
    old, found = signal.getsignal(signal.SIGPROF), []
    try:
        campaign = Campaign(0, found.append)
        campaign.warmed.add("planted")
        campaign.go(Target("planted", ["a"], PLANTED[what], seconds=0.1), 0, 1)
    finally:
        signal.signal(signal.SIGPROF, old)
    assert [what.split(",")[0] in f.what for f in found] == [True] * bool(what)
