"""The report of a run folder, worked out again from its events: results.json, table, sentences."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..config import from_json
from ..files import UserError
from ..terminal import printable
from . import evidence
from .lab import Experiment, attempt
from .page import page, read_contexts
from .plots import plots
from .run import Run, Step

LEFT = (0, 5)  # columns of the table that begin at the left


def summarise(run: Run, experiment: Experiment) -> dict[str, Any]:
    """What results.json holds: the arms, in the order in which they were measured, and the rest.

    What makes no sense, since somebody edited the log, is left out; "left out" says what.
    Raises UserError if there is no arm.
    """
    if not run.arms():
        raise UserError(f"{run.folder} holds no finished arm yet")
    results: dict[str, Any] = {
        "kind": experiment.name,
        "arms": [],
        "comparisons": [],
        "training": [],
        "seconds": run.seconds(),
        "config": run.config,
        "reliability": None,
        "reliability_mean": None,
        "best_of_k_heldout": None,
        "best_of_k": None,
        "left out": list(run.complaints),
    }
    steps = {}
    for step in run.arms():
        row = lambda: row_of(run, experiment, step, steps, results)
        if (a := attempt(results, f"arm {step.name!r}", row)) is not None:
            results["arms"].append(a)
            steps[step.name] = step
    if not steps:
        raise UserError(f"{run.folder}: no arm is whole; {results['left out'][0]}")
    compare = lambda: comparisons(list(steps.values()))
    results["comparisons"] = attempt(results, "comparisons", compare, [])
    for s in run.steps.values():
        if "round" in s.labels:
            row = lambda: asdict(from_json(Round, {**s.labels, **s.value}, "its value"))
            results["training"] += [r] if (r := attempt(results, repr(s.name), row)) else []
    if "reliability" in run.steps:
        again = lambda: repeated(np.array(run.steps["reliability"].value, float))
        results |= attempt(results, "reliability", again, {})
    return results | attempt(results, "conclusions", lambda: experiment.conclude(run, results), {})


@dataclass
class Round:
    """What lab.summarise_round() says of an E-step, and which it is."""

    loop: str
    round: int
    reward: float
    self_edits: int
    invalid: int
    contexts: int
    alike: int


def row_of(
    run: Run, experiment: Experiment, step: Step, before: dict[str, Step], results: dict[str, Any]
) -> dict[str, Any]:
    """What results.json says of one arm. before: those measured earlier, by name."""
    rewards = [t.reward for t in step.trials]
    if not rewards:
        raise UserError("it has no trials")
    if not 0 <= min(rewards) <= max(rewards) <= 1:
        raise UserError(f"expected rewards from 0 to 1, got {min(rewards)} to {max(rewards)}")
    mean, ci95 = evidence.interval(rewards)
    row = {"arm": step.name, "mean": mean, "ci95": ci95, "gain": None, "gain_ci95": None}
    row |= {"over": None, "seconds": step.seconds, "n": len(rewards)}
    why = Counter(t.invalid for t in step.trials if t.invalid is not None)
    row |= {"invalid": why.total(), "invalid_because": why.most_common(1)[0][0] if why else None}
    row |= {"series": list(step.arm.series), "at": step.arm.at}
    if over := step.arm.over:
        pair = attempt(results, f"gain of {step.name!r}", lambda: gain(step, before[over]))
        if pair is not None:
            row["gain"], row["gain_ci95"], row["over"] = *pair, over
    return row | experiment.describe(run, step)


def gain(arm: Step, over: Step) -> tuple[float, tuple[float, float]]:
    """The mean gain and its 95 % interval, paired over the contexts that both were measured on."""
    if [t.context for t in arm.trials] != [t.context for t in over.trials]:
        raise UserError(f"{arm.name!r} and {over.name!r} were measured on different contexts")
    return evidence.paired([t.reward for t in arm.trials], [t.reward for t in over.trials])


def comparisons(steps: list[Step]) -> list[dict[str, Any]]:
    """The last arm of the first series against each rival."""
    series = next((s.arm.series[0] for s in steps if s.arm.series), None)
    line = [s for s in steps if series in s.arm.series]
    out = []
    for rival in steps if len(line) > 1 else []:
        if rival.arm.rival and rival is not line[-1]:
            mean, ci95 = gain(line[-1], rival)
            row = {"gain": mean, "gain_ci95": ci95, "arm": line[-1].name, "over": rival.name}
            out.append(row)
    return out


def repeated(scores: np.ndarray) -> dict[str, Any]:
    """How reliable the reward is, from the same self-edits (contexts, self-edits, runs)."""
    if scores.ndim != 3 or not scores.size or np.abs(scores).max() > 1e9:
        raise UserError("expected rewards of contexts x self-edits x runs")
    if scores.shape[1] == 1:
        return {}
    one, of_mean = (None if np.isnan(x) else x for x in evidence.reliability(scores))
    best = evidence.best_of_k(scores)
    shape = dict(zip(("contexts", "k", "runs"), scores.shape))
    return {
        "reliability": one,
        "reliability_mean": of_mean,
        "best_of_k_heldout": best["held out"],
        "best_of_k": {**best, **shape},
    }


def write_report(run: Run, experiment: Experiment) -> str:
    """Write results.json, report.md, report.html and, with matplotlib, the plots.

    Returns the report's text.
    """
    results = summarise(run, experiment)
    pictures = plots(run, experiment, results)
    contexts = read_contexts(run, results)
    # It says what was left out, pictures included. A Markdown file is looked at in terminals, too.
    parts = report_parts(run, experiment, results)
    text = printable(as_text(*parts))
    run.write("results.json", json.dumps(results, indent=1) + "\n")
    shown = "\n".join(f"![{name}]({name})" for name in pictures)
    run.write("report.md", f"# {run.folder.name}\n\n```text\n{text}```\n\n{shown}\n")
    run.write("report.html", page(run, *parts, pictures, contexts))
    if not pictures and not results["left out"]:
        text += f"no plots: pip install 'minseal[plots]', then `minseal report {run.folder}`\n"
    return text


def text_report(run: Run, experiment: Experiment, results: dict[str, Any]) -> str:
    """The table and what stands below it."""
    return as_text(*report_parts(run, experiment, results))


def as_text(rows: list[list[str]], sentences: list[str], blocks: list[str]) -> str:
    """The parts of a report, one below the other."""
    parts = [aligned(rows, left=LEFT), "\n".join(sentences), *blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def report_parts(
    run: Run, experiment: Experiment, results: dict[str, Any]
) -> tuple[list[list[str]], list[str], list[str]]:
    """(rows of the table, its header first; sentences below it; blocks of text below those)"""
    sentences = conclusions(experiment, results)
    sentences += attempt(results, "notes", lambda: experiment.notes(run, results), [])
    blocks = attempt(results, "blocks", lambda: experiment.blocks(run, results), [])
    rows = table_rows(experiment, results)
    if left_out := results["left out"]:
        more = [f"... {len(left_out) - 9} more"] if len(left_out) > 9 else []
        told = "LEFT OUT, what cannot be worked out from this events.jsonl:"
        blocks = ["\n".join([told, *left_out[:9], *more]), *blocks]
    return rows, sentences, blocks


def table_rows(experiment: Experiment, results: dict[str, Any]) -> list[list[str]]:
    """A header, and a row for each arm: a text each cell."""

    def columns() -> tuple[list[str], list[list[str]]]:
        header, cells = experiment.columns(results)
        return header, [cells(a) for a in results["arms"]]

    header, more = attempt(results, "columns", columns, ([], [[]] * len(results["arms"])))
    rows = [["arm", "score", "95 %", "gain", "95 %", "over", "s", *header]]
    for a, cells in zip(results["arms"], more):
        gain = ("", "", "")
        if a["over"]:
            gain = f"{a['gain']:+.2f}", _interval(a["gain_ci95"], "+.2f"), a["over"]
        score = a["arm"], f"{a['mean']:.2f}", _interval(a["ci95"])
        rows.append([*score, *gain, f"{a['seconds']:.0f}", *cells])
    return rows


def aligned(rows: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    """Rows, the header first, as a table; the columns `left` begin at the left."""
    rows = [[printable(cell, one_line=True) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def conclusions(experiment: Experiment, results: dict[str, Any]) -> list[str]:
    """The sentences below the table that every experiment has."""
    n, config = results["arms"][0]["n"], results["config"]
    world = config.get("world_seed", config.get("rules_seed", ""))
    measured = [config.get("data") or f"toy world {world}".strip()]
    for name, words in (("seed", "seed"), ("model", "model"), ("grade", "graded by")):
        measured += [f"{words} {config[name]}"] if name in config else []
    out = [
        ", ".join(measured),
        f"score: {experiment.score}, mean over {n} held-out contexts; gain: paired over the same "
        "contexts, bootstrap intervals.",
    ]
    for c in results["comparisons"]:
        told = evidence.told(c["gain"], c["gain_ci95"])
        out.append(f"{c['arm']} against {c['over']}: {told}.")
    if (b := results["best_of_k"]) is not None:
        both = (results["reliability"], results["reliability_mean"])
        one, of_mean = ("unknown" if x is None else f"{x:.2f}" for x in both)
        out += [
            f"reliability of the reward: {one} for one inner loop, {of_mean} for the mean of "
            f"{b['runs']} ({b['contexts']} contexts x {b['k']} self-edits x {b['runs']} seeds).",
            f"best of {b['k']} self-edits: {b['in sample']:.2f} in the run that chose it, "
            f"{b['held out']:.2f} in other runs, {b['mean']:.2f} for all of them.",
        ]
    for a in results["arms"]:
        if a["invalid"]:
            loud = "ATTENTION, the score says little: " if 2 * a["invalid"] >= a["n"] else ""
            out.append(
                f"{loud}{a['arm']}: {a['invalid']} of {a['n']} self-edits could not be read or "
                f"trained on and count as 0 ({a['invalid_because']:.120})."
            )
    if results["training"]:
        out += [
            "self-edits that could not be read or trained on: " + _counts(results, "invalid"),
            "contexts whose self-edits all scored alike: " + _counts(results, "alike"),
        ]
    return out


def _counts(results: dict[str, Any], what: str) -> str:
    """'round 1: 3 of 64; round 2: 1 of 64.'"""
    of = {"invalid": "self_edits", "alike": "contexts"}[what]
    told = [
        f"{t['loop']} {t['round']}: {t[what]} of {t[of]}"
        for t in results["training"]
        if t[what] and (what == "invalid" or t["self_edits"] > t["contexts"])
    ]
    return ("; ".join(told) or "none") + "."


def _interval(ci95: tuple[float, float], form: str = ".2f") -> str:
    return f"{ci95[0]:{form}} {ci95[1]:{form}}"
