"""A run folder that somebody edited: seeded changes of its files, and what must come of them."""

import copy
import json
import random
import shutil
import warnings

from minseal import UserError
from minseal.lab import evidence
from minseal.lab.lab import read_run
from minseal.lab.page import page, read_contexts
from minseal.lab.plots import plots
from minseal.lab.table import summarise, text_report

HUGE, NAN = 10**400, float("nan")
ODD = [None, True, 0, -1, 1.5, "", "x", "\ud800", "../../x", [], {}, [1], {"a": 1}, [None], "0\n1"]
ODD += [NAN, float("inf"), 1e308, HUGE, 10**12, [[["x"]]], [[[1, 2], [3]]]]
LINES = ["5", "[]", "{}", "null", "\0\0", "x", '{"done": 5}', '{"done": "a"}', '{"step": 3}']
LINES += ["[" * 5000, '{"a":' + "1" * 6000 + "}"]


def places(value, path=()):
    """The path of every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else ()
    for key, v in enumerate(value) if isinstance(value, list) else inside:
        yield (*path, key)
        yield from places(v, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def mutate_value(value, rng):
    """One value in it deleted, replaced, repeated, or put in another's place."""
    value = copy.deepcopy(value)
    if not (paths := list(places(value))):
        return rng.choice(ODD)
    *above, key = rng.choice(paths)
    parent, how = at(value, above), rng.randrange(4)
    if how == 0:
        del parent[key]
    elif how == 1:
        parent[key] = rng.choice(ODD)
    elif how == 2:
        parent[key] = copy.deepcopy(at(value, rng.choice(paths)))
    elif isinstance(parent, list):
        parent.insert(key, parent[key])
    else:
        parent[f"{key}x"] = parent[key]
    return value


def mutate_lines(lines, rng):
    """One line changed inside, deleted, repeated, moved, cut off, or put in."""
    i, j, how = rng.randrange(len(lines)), rng.randrange(len(lines)), rng.randrange(9)
    if how < 4:
        done = [k for k, line in enumerate(lines) if '"done"' in line]
        i = rng.choice(done) if how < 2 else i
        lines[i] = json.dumps(mutate_value(json.loads(lines[i]), rng))
    elif how == 4:
        del lines[i]
    elif how == 5:
        lines[i], lines[j] = lines[j], lines[i]
    elif how == 6:
        lines[i] = lines[i][: rng.randrange(len(lines[i]))]
    else:
        lines.insert(i, lines[j] if how == 7 else rng.choice(LINES))


def reports_of_mutations(source, folder, n, monkeypatch, seed=0):
    """Report `n` mutations of a run; how many: whole, in part, refused. Anything else fails."""
    monkeypatch.setattr(evidence.interval, "__defaults__", (0, 50))  # no figure is looked at
    warnings.simplefilter("ignore")
    counts = {"whole": 0, "in part": 0, "refused": 0}
    for k in range(n):
        rng = random.Random(f"{seed} {k}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("config.json", "events.jsonl", "puzzles.json", "contexts.json"):
            if (source / name).exists():
                shutil.copy(source / name, folder / name)
        some = sorted(f.name for f in folder.iterdir())
        path = folder / rng.choice(["events.jsonl"] * 6 + some)
        text = path.read_text()
        if path.suffix == ".jsonl":
            mutate_lines(lines := text.split("\n")[:-1], rng)
            text = "\n".join(lines) + "\n"
        else:
            text = json.dumps(mutate_value(json.loads(text), rng))
        path.write_text(text)
        try:
            run, experiment = read_run(str(folder))
            results = summarise(run, experiment)
            shown = text_report(run, experiment, results)
            shown += page(run, [["arm"]], [], [], [], read_contexts(run, results))
            if k % 20 == 0:
                plots(run, experiment, results)
            json.dumps(results, allow_nan=False)
            shown.encode()  # no halves of characters
            counts["in part" if results["left out"] else "whole"] += 1
        except UserError as e:
            assert len(str(e).splitlines()) == 1
            counts["refused"] += 1
        except Exception as e:
            raise AssertionError(f"mutation {seed} {k} of {path.name}") from e
    return counts
