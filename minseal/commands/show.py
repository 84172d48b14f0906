"""Puzzles as coloured blocks in the terminal: `minseal show`."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import Settings
from ..experiments.puzzle_report import held_out_puzzles
from ..files import UserError
from ..lab.lab import SEAL, read_run
from ..lab.run import Run
from ..tasks.arc import Grid, Puzzle, read_puzzles
from ..tasks.fewshot import predictions
from ..tasks.gridview import blocks
from ..tasks.rules import toy_puzzles
from ..terminal import say


@dataclass(frozen=True)
class ShowConfig(Settings):
    """Show a puzzle: demonstrations and tests; with --run also what each arm predicted."""

    run: str = ""  # a folder of `minseal run fewshot` or `run ttt` that held the puzzle out
    data: str = ""  # where to look it up: as for `run fewshot`; nothing: in the run, or toy world
    rules_seed: int = 0  # which rules and grids the toy world holds
    color: Literal["auto", "yes", "no"] = "auto"  # coloured blocks or digits; auto: in a terminal


def show(config: ShowConfig, name: str, say: Callable[..., None] = say) -> None:
    """Print the puzzle with this id, or the first one in a file of this name."""
    auto = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    colour = {"yes": True, "no": False, "auto": auto}[config.color]
    run = read_run(config.run)[0] if config.run else None
    puzzle = find_puzzle(config, name, run)

    def draw(*grids: Grid) -> None:
        say(blocks(grids, colour), coloured=True)

    say(puzzle.id + (f" (rule: {puzzle.kind})" if puzzle.kind else ""))
    for i, pair in enumerate(puzzle.demonstrations, 1):
        say(f"\ndemonstration {i}")
        draw(pair.input, pair.output)
    for i, test in enumerate(puzzle.tests):
        say(f"\ntest {i + 1}")
        draw(test.input, *([] if test.output is None else [test.output]))
        for step in run.arms() if run else ():
            trial = next((t for t in step.trials if t.context == puzzle.id), None)
            if trial is None or (step.arm.at and SEAL not in step.arm.series):  # a control
                continue
            vote, attempts = run.config["vote"], run.config["attempts"]
            best = predictions(puzzle, trial.answers, vote)[i][:attempts] if trial.answers else []
            verdict = "right" if test.output in best else "wrong"
            say(f"\n{step.name}: {verdict if best else 'no grid'}")
            if best:
                draw(*best)


def find_puzzle(config: ShowConfig, name: str, run: Run | None) -> Puzzle:
    """Looked up in --data, a file of that name, the run, or the toy world."""
    if config.data or (run is None and Path(name).exists()):
        found = read_puzzles(config.data or name)
        name = name if config.data else found[0].id
    else:
        found = held_out_puzzles(run).values() if run else toy_puzzles(400, config.rules_seed)
    puzzles = {puzzle.id: puzzle for puzzle in found}
    if name not in puzzles:
        some = ", ".join(map(repr, list(puzzles)[:3]))
        told = f"no puzzle {name!r} among {len(puzzles)}, such as {some}"
        raise UserError(f"{told}; others: --data, --run")
    return puzzles[name]
