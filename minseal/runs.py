"""The run folder: configuration, events, checkpoints, going on after a kill.

config.json      the settings; another configuration in the same folder is refused
events.jsonl     one line a trial (a self-edit with its text, reward, seed, seconds) and one as each step is done
checkpoints/     the adapters of the M-steps, each written to a temporary name and renamed
results.json, report.md, *.png
"""

import json
import os
import time
from pathlib import Path

from .errors import UserError
from .files import load_tensors, save_tensors, write_whole


class Run:
    """A run is a sequence of named steps. A step's outcome is kept, so a killed run goes on after its last whole step."""

    def __init__(self, folder, config=None, on_step=None):
        """Open `folder`, or plan it: it is made when the first step begins, so a run that cannot begin leaves nothing.

        config (a dict) must equal the one that lies there, if there is one; None: only read what is there.
        """
        self.folder, self.on_step, self.done, self.writes = (
            Path(folder),
            on_step,
            {},
            config is not None,
        )
        self.config = json.loads(json.dumps(config))  # as it will look in the file
        path = self.folder / "config.json"
        try:
            if path.is_file():
                there = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(there, dict):
                    raise ValueError("expected an object")
                self._same(there)
                self._read_events()
            elif config is None:
                raise UserError(
                    f"no run in {folder}: expected the folder that `minseal run ... --out {folder}` makes"
                )
            elif self.folder.exists() and (
                not self.folder.is_dir()
                or {f.name for f in self.folder.iterdir()} - {"checkpoints", "config.json.tmp"}
            ):
                raise UserError(f"{folder} is there already and holds no run: choose another --out")
        except OSError as e:
            raise UserError(f"cannot use {folder} as a run folder: {e}") from None
        except UserError:
            raise
        except ValueError as e:
            raise UserError(f"{path} is damaged ({e}): choose another --out") from None

    def _same(self, there):
        if self.config is None:
            self.config = there
        different = [
            (k, there.get(k), self.config.get(k))
            for k in {**there, **self.config}
            if there.get(k) != self.config.get(k)
        ]
        if different:
            told = ", ".join(f"{k} is {a!r} there, {b!r} here" for k, a, b in _leaves(different))
            raise UserError(
                f"{self.folder} holds a run with another configuration ({told}): choose another --out, or the same options"
            )

    def begin(self):
        """Make the folder, if it is not there yet."""
        if not (self.folder / "config.json").exists():
            try:
                (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise UserError(f"cannot make the run folder {self.folder}: {e}") from None
            self.write("config.json", json.dumps(self.config, indent=1))

    def remember(self, step, compute):
        """The trials of a step: from the log if the step was done before, else computed and logged."""
        self.begin()
        if step not in self.done:
            start = time.time()
            trials = compute()
            seconds = round(time.time() - start, 3)
            self._append(*({"step": step, **t} for t in trials), {"done": step, "seconds": seconds})
            self.done[step] = {"trials": trials, "seconds": seconds}
        if self.on_step:
            self.on_step(step, self.done[step]["trials"])
        return self.done[step]["trials"]

    def keep(self, step, compute):
        """The tensors of a step: from checkpoints/ if it was done before, else computed and saved."""
        self.begin()
        path = self._checkpoint(step)
        if not (path.exists() and step in self.done):
            start = time.time()
            save_tensors(path, compute())
            seconds = round(time.time() - start, 3)
            self._append({"done": step, "seconds": seconds})
            self.done[step] = {"trials": [], "seconds": seconds}
        if self.on_step:
            self.on_step(step, [])
        return load_tensors(path)

    def tensors(self, step):
        """What keep() kept of a step that is done; None if it is not."""
        return (
            load_tensors(self._checkpoint(step))
            if step in self.done and self._checkpoint(step).exists()
            else None
        )

    def _checkpoint(self, step):
        return self.folder / "checkpoints" / f"{step.replace(' ', '-')}.pt"

    def seconds(self, prefix=""):
        """Time spent on steps whose name begins so; a step that was killed and done again counts once."""
        return sum(d["seconds"] for step, d in self.done.items() if step.startswith(prefix))

    def write(self, name, text):
        """Write one of the folder's files whole: to a temporary name, then rename."""
        write_whole(
            {self.folder / name: lambda temporary: temporary.write_text(text, encoding="utf-8")}
        )

    def _append(self, *lines):
        path = self.folder / "events.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as f:
                f.write("".join(json.dumps(line) + "\n" for line in lines))
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise UserError(
                f"cannot write {path}: {e}; the same command goes on from the last step when it can"
            ) from None

    def _read_events(self):
        """Fill self.done. What a kill left behind (half a line, trials of an unfinished step) is dropped from the file."""
        path, pending, good = self.folder / "events.jsonl", [], []
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "done" not in event:
                pending.append((event, line))
                continue
            whole = [(t, row) for t, row in pending if t["step"] == event["done"]]
            self.done[event["done"]] = {
                "trials": [{k: v for k, v in t.items() if k != "step"} for t, _ in whole],
                "seconds": event["seconds"],
            }
            good += [row for _, row in whole] + [line]
            pending = []
        if self.writes and text != (whole_text := "".join(row + "\n" for row in good)):
            self.write("events.jsonl", whole_text)


def _leaves(different):
    """(field, there, here) with the fields of a settings group told one by one: outer.rounds rather than outer."""
    for name, there, here in different:
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _leaves(
                (f"{name}.{k}", there.get(k), here.get(k))
                for k in {**there, **here}
                if there.get(k) != here.get(k)
            )
        else:
            yield name, there, here
