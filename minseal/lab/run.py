"""The run folder: settings, what was done, going on after a kill.

config.json      the settings; another configuration in the same folder is refused
events.jsonl     a line for each trial, and one as each step is done
checkpoints/     the tensors of steps, each written to a temporary name and renamed
contexts.json    what the contexts say, for a reader
results.json, report.md, report.html, *.png
"""

import copy
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import from_json
from ..files import (
    Lock,
    UserError,
    Writer,
    flush,
    hold,
    is_empty,
    load_tensors,
    parse_json,
    plain_only,
    read_json,
    read_text,
    save_tensors,
    tidy,
    write_folder,
    write_text,
)
from ..outer import Trial


@dataclass(frozen=True)
class Arm:
    """One row of an experiment's table: a way of adapting, measured on the held-out contexts."""

    name: str
    over: str = ""  # the arm its gain is taken over
    series: str | tuple[str, ...] = ()  # arms of one series are one line of the plot, or several
    at: int | None = None  # its place on that line: a round, a stage, an hour
    rival: bool = False  # the last arm of the first series is compared with it below the table

    def __post_init__(self) -> None:
        names = (self.series,) if isinstance(self.series, str) else tuple(self.series)
        object.__setattr__(self, "series", tuple(name for name in names if name))


@dataclass
class Step:
    """What a step that is done left in the log."""

    name: str
    seconds: float
    trials: list[Trial] = field(default_factory=list)
    value: Any = None  # of a step that computed something else than trials or tensors
    checkpoint: str = ""  # the file of one that computed tensors
    arm: Arm | None = None
    labels: dict[str, str | int] = field(default_factory=dict)  # what the report finds it by
    lost: str = ""  # why a step that was done had to be computed again


class OtherRun(UserError):
    """The folder holds a run with other settings."""


class Run:
    """A sequence of named steps. What a step returned is kept, so a killed run goes on after it.

    folder: made when the first step begins, so a run that cannot begin leaves nothing.
    config: must equal the one that lies there, if there is one; None: only read what is there.
    on_step(step, new): called as each step is done; new: it was computed, not read back.
    within: the folder that other processes are kept out of, if that is one around the run's.
    Raises UserError if the folder holds another run, or something else, or is in use.
    """

    def __init__(
        self,
        folder: str | Path,
        config: dict[str, Any] | None = None,
        on_step: Callable[[Step, bool], None] = lambda step, new: None,
        within: Path | None = None,
    ) -> None:
        self.folder, self.on_step, self.within = Path(folder), on_step, within or Path(folder)
        self.steps: dict[str, Step] = {}
        self.complaints: list[str] = []  # what is damaged and was left out, when only reading
        self.locks: list[Lock] = []  # of this and of all views: one, once it has begun
        self.prefix, self.labels, self.writes = "", {}, config is not None
        self.at_first: dict[str, Writer] = {}  # further files, made with config.json
        self.config = json.loads(json.dumps(config))  # as it will look in the file
        try:
            self._open()
        except OSError as e:
            raise UserError(f"cannot use {folder} as a run folder: {e}") from None
        except UserError:
            self.locks.clear()
            raise

    def step(self, name: str, compute: Callable[[], Any], arm: Arm | None = None) -> Any:
        """compute() and keep what it returns; if the step was done before, read that back.

        Trials and what JSON can hold go to events.jsonl, {name: tensor} to checkpoints/. Tensors
        that are lost or damaged are computed again.
        """
        name, lost = f"{self.prefix}{name}", ""
        self._begin()
        if (done := self.steps.get(name)) is not None:
            try:
                result = self.result(name)
            except UserError as e:
                done, lost = None, str(e)
        if new := done is None:
            start = time.time()
            result = compute()
            seconds = round(time.time() - start, 3)
            done = Step(name, seconds, arm=arm, labels=self.labels, lost=lost)
            if isinstance(result, list) and result and isinstance(result[0], Trial):
                done.trials = result
            elif isinstance(result, dict) and result and isinstance([*result.values()][0], Tensor):
                done.checkpoint = _checkpoint_of(name)
                if done.checkpoint in (s.checkpoint for s in self.steps.values() if s.name != name):
                    raise ValueError(f"two steps would have the checkpoint {done.checkpoint}")
                save_tensors(self._path(done), result)
            else:
                done.value = result
            self._log(done)
            self.steps[name] = done
            result = self.result(name)
        self.on_step(done, new)
        return result

    def result(self, name: str) -> Any:
        """What a step that is done returned. UserError if its tensors are lost or damaged."""
        step = self.steps[name]
        if not step.checkpoint:
            return step.trials or step.value
        return load_tensors(self._path(step), checksums=True)

    def under(self, prefix: str, **labels: Any) -> "Run":
        """The same run, for steps whose names begin with `prefix`, found by these labels."""
        view = copy.copy(self)
        view.prefix, view.labels = f"{self.prefix}{prefix} ", {**self.labels, **labels}
        return view

    def arms(self) -> list[Step]:
        """The steps that are rows of the table, in the order in which they were measured."""
        return [step for step in self.steps.values() if step.arm is not None]

    def seconds(self) -> float:
        """Time spent on all steps; one that was killed and done again counts once."""
        return sum(step.seconds for step in self.steps.values())

    def write(self, name: str, text: str) -> None:
        """Write one of the folder's files, whole."""
        self._begin()
        write_folder(self.folder, {name: write_text(text)})

    def _open(self) -> None:
        path = self.folder / "config.json"
        if self.writes and (link := self._link()):
            raise UserError(f"{link} is a link; a run writes into its own folder: choose another")
        if self.writes:
            tidy(self.folder)
        if path.is_file():
            if self.writes:
                self.locks.append(hold(self.within))
            there = read_json(path, once=True)
            self.config = there if self.config is None else self.config
            if different := list(_differences(there, self.config)):
                told = ", ".join(f"{k} is {a!r:.60} there, {b!r:.60} here" for k, a, b in different)
                why = f"is a run with another configuration ({told})"
                raise OtherRun(f"{self.folder} {why}: choose another --out")
            self._read_events()
        elif not self.writes:
            raise UserError(f"no run in {self.folder}: expected a folder that `minseal run` makes")
        elif not is_empty(self.folder):
            raise UserError(f"{self.folder} is there and holds no run: choose another --out")

    def _link(self) -> Path | None:
        inside = [self.folder] if self.within != self.folder else []
        return next((f for f in (*inside, self.folder / "checkpoints") if f.is_symlink()), None)

    def _begin(self) -> None:
        if not self.writes or self.locks:
            return
        self.locks.append(hold(self.within))
        if (self.folder / "config.json").exists():
            raise UserError(f"another process began a run in {self.folder}: try again")
        config = write_text(json.dumps(self.config, indent=1))
        write_folder(self.folder, {"config.json": config, **self.at_first})

    def _path(self, step: Step) -> Path:
        return self.folder / "checkpoints" / step.checkpoint

    def _log(self, step: Step) -> None:
        lines = [{"step": step.name, **_short(asdict(trial))} for trial in step.trials]
        done = {"done": step.name, "seconds": step.seconds, "value": step.value}
        done |= _short({"checkpoint": step.checkpoint, "labels": step.labels})
        done["trials"] = len(lines)
        if step.arm is not None:
            done["arm"] = asdict(step.arm)
        path = self.folder / "events.jsonl"
        try:
            with open(path, "a", encoding="utf-8", opener=plain_only) as f:
                f.write("".join(json.dumps(line) + "\n" for line in [*lines, done]))
                f.flush()
                os.fsync(f.fileno())
            flush(self.folder)
        except OSError as e:
            raise UserError(f"cannot write {path}: {e}; the same command will go on") from None

    def _read_events(self) -> None:
        """Fill self.steps. What a kill left behind (half a line, trials of an unfinished step) is
        dropped from the file. Other damage is a UserError or, when only reading, a complaint."""
        path, rows, kept = self.folder / "events.jsonl", [], []
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file")
        text = read_text(path) if path.exists() else ""
        torn, odd, stray = [], [], []  # what a kill leaves at the end; what it never does; no harm
        for number, line in enumerate(text.split("\n"), 1):
            where, broken = f"{path}, line {number}", torn
            try:
                event = parse_json(line or "{}", where, once=True)
                broken = odd
                if not line or not isinstance(event, dict) or "done" not in event:
                    step = event.pop("step", "") if isinstance(event, dict) else ""
                    rows += [(step, from_json(Trial, event, where), line)] if line else []
                    continue
                name, n = event.pop("done"), event.pop("trials", None)
                mine = [(trial, row) for step, trial, row in rows if step == name]
                others, rows = len(rows) - len(mine), []
                done = from_json(Step, {"name": name, **event}, where)
                done.trials = [trial for trial, _ in mine]
                if done.checkpoint not in ("", _checkpoint_of(name)):
                    raise UserError(f"{where}: {done.checkpoint!r:.60} is no checkpoint of {name}")
                if len(mine) != (len(mine) + len(torn) if n is None else n):
                    broken = torn or odd
                    raise UserError(
                        f"{where}: {len(mine)} trials of {name} are whole, not {n!r:.20}"
                    )
            except UserError as e:
                broken.append(str(e))
                continue
            self.steps[name] = done
            kept += [*(row for _, row in mine), line]
            stray += [f"{where}: before it are {others} trials of no step"] if others else []
            odd, torn = odd + torn, []
        if odd and self.writes:
            raise UserError(f"{odd[0]}; without the line, what it was of is computed again")
        self.complaints = odd + stray
        if self.writes and text != (kept_text := "".join(row + "\n" for row in kept)):
            self.write("events.jsonl", kept_text)


def _checkpoint_of(name: str) -> str:
    return re.sub(r"[^\w.,-]", "-", name) + ".pt"


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing: None, empty lists and objects. An empty text was written."""
    return {k: v for k, v in row.items() if v is not None and v not in ([], {})}


def _differences(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(field, there, here) of settings that differ, one by one: outer.rounds rather than outer."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
    elif there != here:
        yield name, there, here
