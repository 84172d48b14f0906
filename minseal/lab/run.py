"""The run folder: settings, what was done, going on after a kill.

config.json      the settings; another configuration in the same folder is refused
events.jsonl     a line for each trial, and one as each step is done
checkpoints/     the tensors of steps, each written to a temporary name and renamed
results.json, report.md, *.png
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import UserError, load_tensors, save_tensors, write_whole
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
    arm: Arm | None = None
    labels: dict[str, Any] = field(default_factory=dict)  # what the report finds it by


class Run:
    """A sequence of named steps. What a step returned is kept, so a killed run goes on after it.

    folder: made when the first step begins, so a run that cannot begin leaves nothing; None: a run
        that is kept in memory only.
    config: must equal the one that lies there, if there is one; None: read what is there.
    on_step(step, new): called as each step is done; new: it was computed, not read back.
    Raises UserError if the folder holds another run, or something else.
    """

    def __init__(
        self,
        folder: str | Path | None,
        config: dict[str, Any] | None = None,
        on_step: Callable[[Step, bool], None] = lambda step, new: None,
    ) -> None:
        self.folder, self.on_step = None if folder is None else Path(folder), on_step
        self.steps: dict[str, Step] = {}
        self.prefix, self.labels, self.writes = "", {}, config is not None
        self.config = json.loads(json.dumps(config))  # as it will look in the file
        if self.folder is not None:
            self._open()

    def step(self, name: str, compute: Callable[[], Any], arm: Arm | None = None) -> Any:
        """compute() and keep what it returns; if the step was done before, read that back.

        Trials and what JSON can hold go to events.jsonl, {name: tensor} to checkpoints/.
        """
        name = f"{self.prefix}{name}"
        self._begin()
        new = name not in self.steps or self._lacks_checkpoint(self.steps[name])
        if new:
            start = time.time()
            result = compute()
            step = Step(name, round(time.time() - start, 3), arm=arm, labels=self.labels)
            if isinstance(result, list) and any(isinstance(x, Trial) for x in result):
                step.trials = result
            elif _is_state(result):
                step.value = {"checkpoint": f"{name.replace(' ', '-')}.pt"}
                self._save(step, result)
            else:
                step.value = result
            self._log(step)
            self.steps[name] = step
        self.on_step(self.steps[name], new)
        return self.result(name)

    def result(self, name: str) -> Any:
        """What a step that is done returned."""
        step = self.steps[name]
        if isinstance(step.value, dict) and "checkpoint" in step.value:
            return self._tensors(step)
        return step.trials or step.value

    def under(self, prefix: str, **labels: Any) -> "Run":
        """The same run, for steps whose names begin with `prefix`, found by these labels."""
        view = object.__new__(Run)
        view.__dict__ = dict(self.__dict__)
        view.prefix, view.labels = f"{self.prefix}{prefix} ", {**self.labels, **labels}
        return view

    def arms(self) -> list[Step]:
        """The steps that are rows of the table, in the order in which they were measured."""
        return [step for step in self.steps.values() if step.arm is not None]

    def labelled(self, **labels: Any) -> list[Step]:
        """The steps with these labels."""
        return [s for s in self.steps.values() if labels.items() <= s.labels.items()]

    def seconds(self) -> float:
        """Time spent on all steps; one that was killed and done again counts once."""
        return sum(step.seconds for step in self.steps.values())

    def write(self, name: str, text: str) -> None:
        """Write one of the folder's files whole: to a temporary name, then rename."""
        write_whole({self.folder / name: lambda path: path.write_text(text, encoding="utf-8")})

    # ---- the folder

    def _open(self) -> None:
        path = self.folder / "config.json"
        try:
            if path.is_file():
                there = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(there, dict):
                    raise ValueError("expected an object")
                self._refuse_another(there)
                self._read_events()
            elif not self.writes:
                raise UserError(
                    f"no run in {self.folder}: expected the folder that "
                    f"`minseal run ... --out {self.folder}` makes"
                )
            elif self.folder.exists() and (
                not self.folder.is_dir()
                or {f.name for f in self.folder.iterdir()} - {"checkpoints", "config.json.tmp"}
            ):
                raise UserError(
                    f"{self.folder} is there already and holds no run: choose another --out"
                )
        except OSError as e:
            raise UserError(f"cannot use {self.folder} as a run folder: {e}") from None
        except UserError:
            raise
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path} is damaged ({e}): choose another --out") from None

    def _refuse_another(self, there: dict[str, Any]) -> None:
        if self.config is None:
            self.config = there
        if different := list(_differences(there, self.config)):
            told = ", ".join(f"{k} is {a!r} there, {b!r} here" for k, a, b in different)
            raise UserError(
                f"{self.folder} holds a run with another configuration ({told}): "
                "choose another --out, or the same options"
            )

    def _begin(self) -> None:
        if self.folder is None or (self.folder / "config.json").exists():
            return
        try:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot make the run folder {self.folder}: {e}") from None
        self.write("config.json", json.dumps(self.config, indent=1))

    def _log(self, step: Step) -> None:
        if self.folder is None:
            return
        lines = [{"step": step.name, **_short(asdict(trial))} for trial in step.trials]
        done = {"done": step.name, "seconds": step.seconds}
        if step.value is not None:
            done["value"] = step.value
        if step.arm is not None:
            done["arm"] = asdict(step.arm)
        if step.labels:
            done["labels"] = step.labels
        path = self.folder / "events.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as f:
                f.write("".join(json.dumps(line) + "\n" for line in [*lines, done]))
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise UserError(
                f"cannot write {path}: {e}; the same command goes on from the last step when it can"
            ) from None

    def _read_events(self) -> None:
        """Fill self.steps.

        What a kill left behind (half a line, trials of an unfinished step) is dropped from the
        file.
        """
        path = self.folder / "events.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        pending: list[tuple[dict, str]] = []
        whole = []
        for line in text.splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "done" not in event:
                pending.append((event, line))
                continue
            name = event.pop("done")
            mine = [(e, row) for e, row in pending if e.pop("step") == name]
            arm = event.pop("arm", None)
            trials = [Trial(**e) for e, _ in mine]
            self.steps[name] = Step(name, trials=trials, arm=arm and Arm(**arm), **event)
            whole += [row for _, row in mine] + [line]
            pending = []
        if self.writes and text != (kept := "".join(row + "\n" for row in whole)):
            self.write("events.jsonl", kept)

    # ---- tensors

    def _save(self, step: Step, tensors: dict[str, Tensor]) -> None:
        if self.folder is None:
            step.value["tensors"] = tensors
        else:
            save_tensors(self.folder / "checkpoints" / step.value["checkpoint"], tensors)

    def _tensors(self, step: Step) -> dict[str, Tensor]:
        if self.folder is None:
            return step.value["tensors"]
        return load_tensors(self.folder / "checkpoints" / step.value["checkpoint"])

    def _lacks_checkpoint(self, step: Step) -> bool:
        if self.folder is None or not isinstance(step.value, dict):
            return False
        name = step.value.get("checkpoint")
        return name is not None and not (self.folder / "checkpoints" / name).exists()


def _is_state(result: Any) -> bool:
    tensors = isinstance(result, dict) and result.values()
    return bool(tensors) and all(isinstance(t, Tensor) for t in tensors)


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing: None, empty lists and objects. An empty text was written."""
    return {k: v for k, v in row.items() if v is not None and v not in ([], {})}


def _differences(there: Any, here: Any, name: str = ""):
    """(field, there, here) of settings that differ, one by one: outer.rounds rather than outer."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
    elif there != here:
        yield name, there, here
