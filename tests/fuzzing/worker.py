"""Reads damaged inputs one after another, and writes down what should not have happened.

As a program, in a process of its own (test_fuzz.py starts it), since what is looked for may end it:

    python tests/fuzzing/worker.py part FOLDER SEED MINUTES PART PARTS SLICE NUMBER SPENT
    python tests/fuzzing/worker.py again SEED NAME NUMBER      one input again, with its traceback
"""

import io
import json
import mmap
import os
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from minseal import UserError
from minseal.selfedit import InvalidSelfEdit

MEMORY = 2**30  # bytes that one may add to the most that the process held
PARSED, READ = 100_000, 10_000  # inputs of all parsers, files of all readers: in one minute
ROUNDS = 10  # each goes through all targets: so one that ends early has met all of them


class TooLong(BaseException):
    """No Exception: what is looked for may catch those."""


@dataclass
class Finding:
    """An input that did what none should."""

    target: str
    number: int
    what: str  # the error, 'longer than 2 s', ...
    place: str  # where in minseal
    size: int
    shown: str  # the input, or its beginning
    times: int = 1

    def key(self) -> tuple[str, str, str]:
        """Findings with the same one are the same fault; their texts may differ."""
        return self.target.split(",")[0], self.what.split(":")[0], self.place


@dataclass
class Tally:
    """What happened to the inputs of one target."""

    is_file: bool = False
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    slowest_number: int = 0


@dataclass
class Campaign:
    """Goes through inputs. found: called with each new Finding, and with each that is smaller."""

    seed: int
    found: Callable[[Finding], Any]
    before: Callable[[str, int], Any] = lambda name, number: None
    smallest: dict[tuple, Finding] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    warmed: set[str] = field(default_factory=set)
    high: int = 0  # the most memory that was held for an input
    late: bool = False

    def __post_init__(self) -> None:
        signal.signal(signal.SIGPROF, self._too_long)
        forget_most_memory()
        self.peak = most_memory()

    def _too_long(self, *_: Any) -> None:
        self.late = True  # for those that catch everything
        raise TooLong

    def warm(self, target: Any) -> None:
        """Read the first example, unmeasured: other packages are imported, tables are made."""
        if target.name in self.warmed:
            return
        self.warmed.add(target.name)
        if target.path:
            target.put(target.examples[0])
        with suppress(Exception), redirect_stdout(io.StringIO()):  # told of when it counts
            target.read() if target.path else target.read(target.examples[0])
        self.peak = max(self.peak, most_memory())

    def go(self, target: Any, first: int, last: int) -> None:
        """The target's inputs from `first` up to `last`, without it."""
        self.warm(target)
        tally = self.tallies.setdefault(target.name, Tally(target.path is not None))
        for number in range(first, last):
            self.before(target.name, number)
            data = target.input(self.seed, number)
            if target.path:
                target.put(data)
            what, place, seconds = self.read(target, data)
            tally.inputs, tally.seconds = tally.inputs + 1, tally.seconds + seconds
            if seconds > tally.slowest:
                tally.slowest, tally.slowest_number = seconds, number
            if what == "refused":
                tally.refused += 1
            elif what:
                self.note(Finding(target.name, number, what, place, len(data), repr(data[:300])))
        if target.path:
            target.put(target.examples[0])

    def read(self, target: Any, data: Any) -> tuple[str, str, float]:
        """('' or 'refused' or what is wrong, where, seconds)"""
        self.late, place = False, ""
        # Late, as these clocks are coarse. Nobody handles the second one: it ends the process, even
        # where another language holds on to it.
        signal.setitimer(signal.ITIMER_PROF, 2 * target.seconds)
        signal.setitimer(signal.ITIMER_VIRTUAL, 6 * target.seconds)
        printed, start = io.StringIO(), time.process_time()
        try:
            with warnings.catch_warnings(), redirect_stdout(printed), redirect_stderr(printed):
                warnings.simplefilter("ignore")
                target.read() if target.path else target.read(data)
            what = ""
        except (UserError, InvalidSelfEdit) as e:
            text, what = str(e), "refused"
            if len(text) > 1000 or isinstance(e, UserError) and steering(text, but=""):
                what, place = f"no line: {len(text)} letters, {text!r:.200}", place_of(e)
        except BaseException as e:  # panics of Rust are no Exceptions
            if isinstance(e, KeyboardInterrupt):
                raise
            what, place = f"{type(e).__name__}: {e!s:.200}", place_of(e)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        seconds = time.process_time() - start
        if what in ("", "refused") and (bad := steering(printed.getvalue())):
            what = f"printed characters that steer a terminal: {bad!r}"
        if self.late or seconds > target.seconds:
            what = f"longer than {target.seconds:g} s"
        grown = most_memory() - self.peak
        if grown > MEMORY:
            what = f"took memory: {grown / 1e9:.1f} GB"
            self.high = max(self.high, self.peak + grown)
            forget_most_memory()
            self.peak = most_memory()
        return what, place, seconds

    def note(self, finding: Finding) -> None:
        old = self.smallest.setdefault(finding.key(), finding)
        if old is not finding:
            finding.times = old.times + 1
            if finding.size >= old.size:
                old.times += 1
                return
            self.smallest[finding.key()] = finding
        self.found(finding)


def steering(text: str, but: str = "\n\t") -> str:
    """The characters in it, by Unicode's tables, that steer a terminal or turn letters round."""
    bidi = "LRE RLE LRO RLO PDF LRI RLI FSI PDI".split()
    return "".join(
        c
        for c in set(text) - set(but)
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(c) in bidi
    )


def forget_most_memory() -> None:
    """Count anew, on Linux; elsewhere an input must take more than all before it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def most_memory() -> int:
    """The most bytes that this process ever held."""
    import resource  # Unix only

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def place_of(error: BaseException) -> str:
    """'lab/table.py:25 summarise', the last place in minseal that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename)
        if "minseal" in path.parts and "tests" not in path.parts:
            inside = path.parts[len(path.parts) - path.parts[::-1].index("minseal") :]
            return f"{'/'.join(inside)}:{frame.lineno} {frame.name}"
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def plan(targets: Any, minutes: float) -> list[tuple[Any, int, int]]:
    """[(target, first number, number after the last), ...] for so many minutes, round by round."""
    out = []
    for some, in_all in ((targets.parsers, PARSED), (targets.readers, READ)):
        whole = sum(target.share for target in some)
        for target in some:
            n = max(1, round(minutes * in_all * target.share / whole))
            cuts = [n * r // ROUNDS for r in range(ROUNDS + 1)]
            out += [(r, target, *cut) for r, cut in enumerate(zip(cuts, cuts[1:]))]
    return [(target, *cut) for _, target, *cut in sorted(out, key=lambda s: s[0])]


def open_targets(folder: Path) -> Any:
    """All targets, their files in a new folder."""
    from fuzzing import files, runs, texts  # they train tokenizers and make models

    torch.set_num_threads(1)
    readers = []
    for part in (*files.PARTS, runs.run_readers):
        (folder / part.__name__).mkdir(parents=True)
        readers += part(folder / part.__name__)
    return SimpleNamespace(parsers=texts.parsers(), readers=readers)


def in_memory() -> str | None:
    """A folder that lies in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def limit_memory(more: int = 6 * MEMORY) -> None:
    """No process may take all that the machine has: so much more than now, where Linux can say."""
    import resource

    status = Path("/proc/self/status")
    if status.exists():
        now = int(status.read_text().split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (now + more, now + more))


def part(
    folder: str,
    seed: int,
    minutes: float,
    mine: int,
    parts: int,
    at: int,
    number: int,
    spent: float,
) -> None:
    """A part of the plan, from its slice `at` on, there from `number` on; log.jsonl tells of it.

    spent: seconds of processor time that others took for it; it ends when the minutes are over.
    """
    log = open(Path(folder) / "log.jsonl", "a", encoding="utf-8")
    with open(Path(folder) / "now", "w+b") as f:
        f.write(bytes(4096))
        f.flush()
        now = mmap.mmap(f.fileno(), 4096)

    def write(**line: Any) -> None:
        log.write(json.dumps(line) + "\n")
        log.flush()

    targets = open_targets(Path(folder) / f"files-{os.getpid()}")
    slices = plan(targets, minutes)[mine::parts]

    def before(name: str, number: int) -> None:
        text = f"{at}\t{name}\t{number}\n".encode()
        now[: len(text)] = text

    def found(finding: Finding) -> None:
        write(finding=asdict(finding))

    campaign = Campaign(seed, found, before)
    limit_memory()
    while at < len(slices) and spent + time.process_time() < minutes * 60:
        target, first, last = slices[at]
        campaign.tallies = {}
        campaign.go(target, max(first, number), last)
        tallies = {name: asdict(tally) for name, tally in campaign.tallies.items()}
        campaign.high = max(campaign.high, most_memory())
        seconds = spent + time.process_time()
        write(done=at, of=len(slices), tallies=tallies, peak=campaign.high, seconds=seconds)
        at, number = at + 1, 0


def again(seed: int, name: str, number: int) -> None:
    """One input, shown, and read with all that comes of it."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as place:
        targets = open_targets(Path(place) / "files")
        (target,) = (t for t in targets.parsers + targets.readers if t.name == name)
        data = target.input(seed, number)
        print(f"{data!r:.5000}\n", flush=True)
        if target.path:
            target.put(data)
            print(target.path)
        target.read() if target.path else target.read(data)


def merged(lines: list[dict]) -> tuple[dict[tuple, Finding], dict[str, Tally], int]:
    """(findings, tallies by target, the most memory) of all lines of logs."""
    findings: dict[tuple, Finding] = {}
    tallies: dict[str, Tally] = {}
    peak = 0
    for line in lines:
        if "finding" in line:
            new = Finding(**line["finding"])
            old = findings.get(new.key())
            if old is None or new.size < old.size:
                findings[new.key()] = new
        for name, values in line.get("tallies", {}).items():
            new = Tally(**values)
            tally = tallies.setdefault(name, Tally(new.is_file))
            if new.slowest > tally.slowest:
                tally.slowest, tally.slowest_number = new.slowest, new.slowest_number
            tally.inputs, tally.refused = tally.inputs + new.inputs, tally.refused + new.refused
            tally.seconds += new.seconds
        peak = max(peak, line.get("peak", 0))
    return findings, tallies, peak


if __name__ == "__main__":
    if sys.argv[1] == "part":
        numbers = [float(x) if "." in x else int(x) for x in sys.argv[3:]]
        part(sys.argv[2], *numbers)
    else:
        again(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
