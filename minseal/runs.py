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
from .weights import load_tensors, save_tensors


class Run:
    """A run is a sequence of named steps. A step's outcome is kept, so a killed run goes on after its last whole step."""

    def __init__(self, folder, config=None, on_step=None):
        """Open or create `folder`. config (a dict) must equal the one in it, if there is one; None: only read."""
        self.folder, self.on_step, self.done = Path(folder), on_step, {}
        path = self.folder / "config.json"
        if config is None and not path.is_file():
            raise UserError(f"no run in {folder}: expected the folder that `minseal run ... --out {folder}` makes")
        try:
            if config is not None and not path.exists():
                if self.folder.exists() and any(self.folder.iterdir()):
                    raise UserError(f"{folder} is not empty and holds no run: choose another --out")
                (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
                self.write("config.json", json.dumps(config, indent=1))
            self.config = json.loads(path.read_text())
            different = [k for k in {**self.config, **(config or {})} if config and self.config.get(k) != _plain(config.get(k))]
            if different:
                told = ", ".join(f"{k} is {self.config.get(k)!r} there, {config.get(k)!r} here" for k in different)
                raise UserError(f"{folder} holds a run with another configuration ({told}): choose another --out, or the same options")
            self._read_events(config is not None)
        except OSError as e:
            raise UserError(f"cannot use {folder} as a run folder: {e}") from None
        except json.JSONDecodeError as e:
            raise UserError(f"{path} is damaged ({e}): choose another --out") from None

    def remember(self, step, compute):
        """The trials of a step: from the log if the step was done before, else computed and logged."""
        if step not in self.done:
            start = time.time()
            trials = compute()
            self._append(*({"step": step, **t} for t in trials), {"done": step, "seconds": round(time.time() - start, 3)})
            self.done[step] = {"trials": trials, "seconds": round(time.time() - start, 3)}
        if self.on_step:
            self.on_step(step, self.done[step]["trials"])
        return self.done[step]["trials"]

    def keep(self, step, compute):
        """The tensors of a step: from checkpoints/ if it was done before, else computed and saved."""
        path = self.folder / "checkpoints" / f"{step.replace(' ', '-')}.pt"
        if not (path.exists() and step in self.done):
            start = time.time()
            save_tensors(path, compute())
            self._append({"done": step, "seconds": round(time.time() - start, 3)})
            self.done[step] = {"trials": [], "seconds": round(time.time() - start, 3)}
        if self.on_step:
            self.on_step(step, [])
        return load_tensors(path)

    def seconds(self, prefix=""):
        """Time spent on steps whose name begins so; a step that was killed and done again counts once."""
        return sum(d["seconds"] for step, d in self.done.items() if step.startswith(prefix))

    def write(self, name, text):
        """Write one of the folder's files whole: to a temporary name, then rename."""
        temporary = self.folder / f"{name}.tmp"
        try:
            temporary.write_text(text)
            os.replace(temporary, self.folder / name)
        except OSError as e:
            temporary.unlink(missing_ok=True)
            raise UserError(f"cannot write {self.folder / name}: {e}; the run goes on from its last step when there is room") from None

    def _append(self, *lines):
        path = self.folder / "events.jsonl"
        try:
            with open(path, "a") as f:
                f.write("".join(json.dumps(line) + "\n" for line in lines))
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise UserError(f"cannot write {path}: {e}; the same command goes on from the last step when it can") from None

    def _read_events(self, repair):
        """Fill self.done. What a kill left behind (half a line, trials of an unfinished step) is dropped from the file."""
        path, open_step, good, lines = self.folder / "events.jsonl", [], [], []
        for line in path.read_text().splitlines() if path.exists() else []:
            lines.append(line)
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                open_step = []
                continue
            if "done" in event:
                trials = [{k: v for k, v in t.items() if k != "step"} for t, _ in open_step if t["step"] == event["done"]]
                self.done[event["done"]] = {"trials": trials, "seconds": event["seconds"]}
                good += [text for t, text in open_step if t["step"] == event["done"]] + [line]
                open_step = []
            else:
                open_step.append((event, line))
        if repair and good != lines:
            self.write("events.jsonl", "".join(line + "\n" for line in good))


def _plain(value):
    """As it looks after a round trip through JSON."""
    return json.loads(json.dumps(value))
