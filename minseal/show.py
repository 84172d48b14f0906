"""Grid tasks as coloured blocks in the terminal: `minseal show`."""

import os
import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from .errors import UserError, one_of
from .report_fewshot import PALETTE, predictions, tasks_of
from .runs import Run
from .tasks.arc import read_tasks
from .tasks.grids import toy_tasks


@dataclass(frozen=True)
class ShowConfig:
    """Show a grid task: demonstrations and tests; with --run also what was predicted before and after training."""

    run: str = ""  # a folder of `minseal run fewshot` that held the task out
    data: str = ""  # where to look the task up: as for `run fewshot`; nothing: in the run, or in the toy world
    rules_seed: int = 0  # which rules and grids the toy world holds
    color: str = "auto"  # auto | yes | no: coloured blocks or digits; auto: blocks in a terminal

    def __post_init__(self):
        one_of(self, color=("auto", "yes", "no"))


def show(config, name, say=print):
    """Print the task with this id, or the first one in a file of this name."""
    colour = {"yes": True, "no": False}.get(
        config.color, sys.stdout.isatty() and "NO_COLOR" not in os.environ
    )
    run = Run(config.run) if config.run else None
    if run is not None and not config.data:
        tasks = tasks_of(run)
    elif config.data or Path(name).exists():
        tasks = {t.id: t for t in read_tasks(config.data or name)}
        name = name if config.data else next(iter(tasks))
    else:
        tasks = {t.id: t for t in toy_tasks(300, config.rules_seed)}
    if name not in tasks:
        raise UserError(
            f"no task {name!r} among {len(tasks)}, such as {', '.join(repr(id) for id in list(tasks)[:3])}; other tasks: --data, --run"
        )
    task = tasks[name]
    say(task.id + (f" (rule: {task.kind})" if task.kind else ""))
    for i, pair in enumerate(task.demonstrations, 1):
        say(f"\ndemonstration {i}\n" + blocks([pair.input, pair.output], colour))
    for i, test in enumerate(task.tests):
        say(
            f"\ntest {i + 1}\n"
            + blocks([test.input] + [test.output] * (test.output is not None), colour)
        )
        for arm in [
            arm
            for arm in (run.done if run else ())
            if arm
            in ("in context", "own self-edits", "best constant", "oracle", "before", "adapter on")
            or is_round(arm)
        ]:
            trial = next((t for t in run.done[arm]["trials"] if t["context"] == task.id), None)
            if trial is None:  # the run never asked this task
                continue
            best = predictions(run, task, trial)[i][: run.config["attempts"]]
            say(
                f"\n{arm}: "
                + (
                    ("right" if test.output in best else "wrong") + "\n" + blocks(best, colour)
                    if best
                    else "no grid"
                )
            )


def is_round(arm):
    return (
        arm.startswith("round ") and arm.split()[1:] == arm.split()[-1:]
    )  # 'round 1', not 'round 1 M-step'


def blocks(grids, colour):
    """Grids side by side, an arrow between two: two columns a cell, in colour or as digits."""

    def row(cells, width):
        if cells is None:
            return " " * 2 * width
        return "".join(paint(c) for c in cells) + ("\033[0m" if colour else "")

    def paint(c):
        red, green, blue = (int(PALETTE[c][i : i + 2], 16) for i in (1, 3, 5))
        return f"\033[48;2;{red};{green};{blue}m  " if colour else f"{c} "

    lines = []
    for y, rows in enumerate(zip_longest(*grids)):
        gap = "  ->  " if y == 0 and len(grids) > 1 else "      "
        lines.append("  " + gap.join(row(cells, len(grid[0])) for cells, grid in zip(rows, grids)))
    return "\n".join(line.rstrip() for line in lines)
