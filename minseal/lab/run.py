"""The run folder: settings, what was done, going on after a kill.

config.json      the settings; another configuration in the same folder is refused
events.jsonl     a line for each trial, and one as each step is done
checkpoints/     the tensors of steps, each written to a temporary name and renamed
results.json, report.md, *.png
"""

import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import (
    UserError,
    load_tensors,
    read_json,
    read_text,
    save_tensors,
    write_text,
    write_whole,
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
    labels: dict[str, Any] = field(default_factory=dict)  # what the report finds it by


class Run:
    """A sequence of named steps. What a step returned is kept, so a killed run goes on after it.

    folder: made when the first step begins, so a run that cannot begin leaves nothing.
    config: must equal the one that lies there, if there is one; None: only read what is there.
    on_step(step, new): called as each step is done; new: it was computed, not read back.
    Raises UserError if the folder holds another run, or something else.
    """

    def __init__(
        self,
        folder: str | Path,
        config: dict[str, Any] | None = None,
        on_step: Callable[[Step, bool], None] = lambda step, new: None,
    ) -> None:
        self.folder, self.on_step = Path(folder), on_step
        self.steps: dict[str, Step] = {}
        self.prefix, self.labels, self.writes = "", {}, config is not None
        self.config = json.loads(json.dumps(config))  # as it will look in the file
        try:
            self._open()
        except OSError as e:
            raise UserError(f"cannot use {folder} as a run folder: {e}") from None

    def step(self, name: str, compute: Callable[[], Any], arm: Arm | None = None) -> Any:
        """compute() and keep what it returns; if the step was done before, read that back.

        Trials and what JSON can hold go to events.jsonl, {name: tensor} to checkpoints/.
        """
        name = f"{self.prefix}{name}"
        self._begin()
        done = self.steps.get(name)
        new = done is None or bool(done.checkpoint and not self._path(done).exists())
        if new:
            start = time.time()
            result = compute()
            done = Step(name, round(time.time() - start, 3), arm=arm, labels=self.labels)
            if isinstance(result, list) and result and isinstance(result[0], Trial):
                done.trials = result
            elif isinstance(result, dict) and result and isinstance([*result.values()][0], Tensor):
                done.checkpoint = f"{name.replace(' ', '-')}.pt"
                save_tensors(self._path(done), result)
            else:
                done.value = result
            self._log(done)
            self.steps[name] = done
        self.on_step(done, new)
        return self.result(name)

    def result(self, name: str) -> Any:
        """What a step that is done returned."""
        step = self.steps[name]
        return load_tensors(self._path(step)) if step.checkpoint else step.trials or step.value

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
        """Write one of the folder's files whole: to a temporary name, then rename."""
        self._begin()
        write_whole({self.folder / name: write_text(text)})

    def _open(self) -> None:
        path = self.folder / "config.json"
        if path.is_file():
            there = read_json(path)
            self.config = there if self.config is None else self.config
            if different := list(_differences(there, self.config)):
                told = ", ".join(f"{k} is {a!r} there, {b!r} here" for k, a, b in different)
                why = f"is a run with another configuration ({told})"
                raise UserError(f"{self.folder} {why}: choose another --out")
            self._read_events()
        elif not self.writes:
            raise UserError(f"no run in {self.folder}: expected a folder that `minseal run` makes")
        elif self.folder.exists():
            own = {"checkpoints", "config.json.tmp"}  # a kill can leave these
            if not self.folder.is_dir() or {f.name for f in self.folder.iterdir()} - own:
                raise UserError(f"{self.folder} is there and holds no run: choose another --out")

    def _begin(self) -> None:
        if not (self.folder / "config.json").exists():
            try:
                (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise UserError(f"cannot make the run folder {self.folder}: {e}") from None
            text = json.dumps(self.config, indent=1)
            write_whole({self.folder / "config.json": write_text(text)})

    def _path(self, step: Step) -> Path:
        return self.folder / "checkpoints" / step.checkpoint

    def _log(self, step: Step) -> None:
        lines = [{"step": step.name, **_short(asdict(trial))} for trial in step.trials]
        done = {"done": step.name, "seconds": step.seconds, "value": step.value}
        done |= _short({"checkpoint": step.checkpoint, "labels": step.labels})
        if step.arm is not None:
            done["arm"] = asdict(step.arm)
        path = self.folder / "events.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as f:
                f.write("".join(json.dumps(line) + "\n" for line in [*lines, done]))
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise UserError(f"cannot write {path}: {e}; the same command will go on") from None

    def _read_events(self) -> None:
        """Fill self.steps. What a kill left behind (half a line, trials of an unfinished step) is
        dropped from the file."""
        path, whole = self.folder / "events.jsonl", []
        text = read_text(path) if path.exists() else ""
        pending: list[tuple[dict, str]] = []
        for line in text.splitlines():
            try:
                event = json.loads(line)
                if "done" not in event:
                    pending.append((event, line))
                    continue
                name, arm = event.pop("done"), event.pop("arm", None)
                mine = [(e, row) for e, row in pending if e.pop("step") == name]
                trials = [Trial(**e) for e, _ in mine]
                self.steps[name] = Step(name, trials=trials, arm=arm and Arm(**arm), **event)
            except json.JSONDecodeError:
                continue
            except (TypeError, KeyError, AttributeError) as e:
                raise UserError(f"{path} is damaged: {e}") from None
            whole += [*(row for _, row in mine), line]
            pending = []
        if self.writes and text != (kept := "".join(row + "\n" for row in whole)):
            self.write("events.jsonl", kept)


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
