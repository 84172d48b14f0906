"""What the reports of puzzle experiments show beside the table: kinds of rule and directives."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ..files import UserError
from ..lab.evidence import paired
from ..lab.lab import SEAL
from ..lab.plots import shade
from ..lab.run import Run, Step
from ..lab.table import aligned
from ..tasks.arc import Puzzle, read_puzzles
from ..tasks.fewshot import SWITCHES, predictions, solves
from ..tasks.gridview import plot_puzzles

FIRST, LAST = "first self-edits, last weights", "last self-edits, first weights"
Results = dict[str, Any]


def held_out_puzzles(run: Run) -> dict[str, Puzzle]:
    """The held-out puzzles of a run, by their ids."""
    try:
        if not (path := run.folder / "puzzles.json").is_file():
            raise UserError(f"there is no {path.name}")
        return {puzzle.id: puzzle for puzzle in read_puzzles(path)}
    except UserError as e:
        raise UserError(f"{run.folder} is damaged, or no run on puzzles: {e}") from None


def describe(run: Run, step: Step) -> Results:
    """Further keys of an arm: its score by kind of rule, unreadable self-edits, directives."""
    puzzles = held_out_puzzles(run)
    by_kind: dict[str, list[float]] = {}
    for trial in step.trials:
        by_kind.setdefault(puzzles[trial.context].kind, []).append(trial.reward)
    out: Results = {"by_kind": {k: float(np.mean(r)) for k, r in by_kind.items() if k}}
    out["unreadable"] = sum(not t.chose for t in step.trials)
    out["directives"] = {k or "all": shares(some) for k, some in chosen(step).items()} or None
    if vote := run.config["vote"]:
        for n in (1, 2):
            right = [solves(puzzles[t.context], t.answers, vote, n) for t in step.trials]
            out[f"pass{n}"] = float(np.mean(right))
    return out


def chosen(step: Step) -> dict[str, list[dict]]:
    """{kind of rule: what each readable self-edit chose}"""
    out: dict[str, list[dict]] = {}
    for trial in step.trials:
        if trial.chose:
            out.setdefault(trial.chose["kind"], []).append(trial.chose)
    return out


def shares(some: list[dict]) -> dict[str, float]:
    """{directive: share of these self-edits that choose it}; numbers as 'lr 0.006', 'epochs 6'."""
    counts = dict.fromkeys((*SWITCHES, "outputs"), 0) | Counter(
        name
        for chose in some
        for name in (
            *chose["augmentations"],
            *(["outputs"] if chose["loss"] == "outputs" else []),
            *(f"{number} {chose[number]:g}" for number in ("lr", "epochs")),
        )
    )
    return {name: n / len(some) for name, n in counts.items()}


def puzzle_columns(results: Results) -> tuple[list[str], Callable[[dict], list[str]]]:
    """Further columns of the table: the kinds of rule, votes, unreadable self-edits."""
    kinds, passes = list(results["arms"][0]["by_kind"]), ("pass1", "pass2")
    passes = [p for p in passes if p in results["arms"][0]]

    def cells(row: dict[str, Any]) -> list[str]:
        scores = [row["by_kind"][kind] for kind in kinds] + [row[p] for p in passes]
        return [*(f"{s:.2f}" for s in scores), str(row["unreadable"]) if row["directives"] else ""]

    return [*kinds, *(p.replace("pass", "pass@") for p in passes), "unreadable"], cells


def conclude(run: Run, results: Results) -> Results:
    """Whose doing the gain is, what was held out, and how much could not be read."""
    written = [  # a text that is tried again counts once
        s
        for s in run.steps.values()
        if "loop" in s.labels or (s.arm and s.name not in (FIRST, LAST))
    ]
    texts = [t for s in written for t in s.trials if t.text is not None]
    bad = sum(not t.chose for t in texts)
    out = {"attribution": attribution(run)}
    out["unreadable"] = {"self_edits": len(texts), "unreadable": bad}
    if "solvable" in run.steps:
        tried = run.steps["solvable"].trials
        solved, kept = sum(t.reward == 1 for t in tried), results["arms"][0]["n"]
        out["solvable"] = {"tried": len(tried), "solved": solved, "kept": kept}
    return out


def attribution(run: Run) -> Results | None:
    """Is the gain in what the policy writes, or in the weights that train on it?

    edits: the last self-edits on the first weights; weights: the first self-edits on the last
    weights; each minus the first self-edits on the first weights, paired. shares: of all the gain.
    """
    seal = [s.name for s in run.arms() if SEAL in s.arm.series]
    if len(seal) < 2 or not {FIRST, LAST} <= run.steps.keys():
        return None
    out: Results = {}
    first = [t.reward for t in run.steps[seal[0]].trials]
    for what, name in (("all", seal[-1]), ("edits", LAST), ("weights", FIRST)):
        gain, ci95 = paired([t.reward for t in run.steps[name].trials], first)
        out[what] = {"gain": gain, "ci95": ci95}
    whole = out["all"]["gain"]
    of_all = {w: out[w]["gain"] / whole if whole > 0 else None for w in ("edits", "weights")}
    return out | {"shares": of_all}


def notes(run: Run, results: Results) -> list[str]:
    """The sentences that only these experiments have."""
    out = []
    if s := results.get("solvable"):
        out.append(
            f"held out: {s['kept']} puzzles; of {s['tried']} tried the oracle's self-edit (with "
            f"other first weights) solved {s['solved']}, {s['tried'] - s['solved']} were dropped."
        )
    if a := results["attribution"]:
        told = {}
        for what, share in a["shares"].items():
            low, high = a[what]["ci95"]
            of_all = "" if share is None else f", {share:.0%} of the gain"
            told[what] = f"{a[what]['gain']:+.2f} (95 % {low:+.2f} to {high:+.2f}{of_all})"
        out.append(
            f"whose doing: the last self-edits on the first weights {told['edits']}; the first "
            f"self-edits on the last weights {told['weights']}."
        )
    if n := results["unreadable"]["self_edits"]:
        bad = results["unreadable"]["unreadable"]
        out.append(f"of {n} self-edits {bad} were unreadable ({bad / n:.1%}): each scored 0.")
    return out


def directive_tables(run: Run, results: Results) -> list[str]:
    """The directives that each arm's self-edits choose, a table for each kind of rule."""
    tables: dict[str, list[list[str]]] = {}
    for step in run.arms():
        for kind, some in () if step.name in (FIRST, LAST) else chosen(step).items():
            header = [f"rule: {kind}" if kind else "all puzzles", *SWITCHES, "outputs"]
            rows = tables.setdefault(kind, [[*header, "learning rate", "epochs"]])
            share, often = shares(some), []
            for number in ("lr", "epochs"):
                common = Counter(chose[number] for chose in some).most_common(2)
                often.append(", ".join(f"{v:g} {n / len(some):.0%}" for v, n in common))
            rows.append([step.name, *(f"{share[n]:.0%}" for n in (*SWITCHES, "outputs")), *often])
    heading = "What the self-edits choose: share with each augmentation, with loss on outputs only."
    texts = [
        aligned(rows, left=(0, len(rows[0]) - 2, len(rows[0]) - 1)) for rows in tables.values()
    ]
    return ["\n\n".join([heading, *texts])] if texts else []


def plot_directives(run: Run, results: Results, save: Callable) -> None:
    """directives.png: for each kind of rule, round by round, the share with each directive."""
    steps = [s for s in run.arms() if SEAL in s.arm.series]
    tables = [{k: shares(some) for k, some in chosen(step).items()} for step in steps]
    kinds = list(dict.fromkeys(kind for table in tables for kind in table))
    if len(steps) < 2 or not kinds:
        return
    numbers: dict[str, float] = {}
    for number in ("lr", "epochs"):
        values = sorted({c[number] for s in steps for some in chosen(s).values() for c in some})
        numbers |= {f"{number} {value:g}": value for value in values}
    all_of_them = [share for table in tables for share in table.values()]
    often = [n for n in numbers if max(share.get(n, 0) for share in all_of_them) >= 0.05]
    rows = [*SWITCHES, "outputs", *often]
    columns = [f"round {s.arm.at}" if s.arm.at else "no RL" for s in steps]

    def draw(figure: Any) -> None:
        panels = np.atleast_1d(figure.subplots(1, len(kinds), sharey=True))
        for axes, kind in zip(panels, kinds):
            shade(axes, np.array([[t.get(kind, {}).get(r, 0) for t in tables] for r in rows]))
            axes.set_xticks(range(len(columns)), columns, fontsize=8)
            axes.set_yticks(range(len(rows)), rows, fontsize=8)
            title = f"rule: {kind}, % of self-edits" if kind else "% of self-edits"
            axes.set_title(title, fontsize=9)

    save("directives.png", draw, (3.2 * len(kinds) + 2, 4.6))


def plot_predictions(before: str, after: str = "", most: int = 6) -> Callable:
    """A picture, puzzles.png: some held-out puzzles with the predictions of two arms.

    after: nothing: the last arm of the series SEAL.
    """

    def picture(run: Run, results: Results, save: Callable) -> None:
        seal = [s.name for s in run.arms() if SEAL in s.arm.series]
        arms = [n for n in (before, after or (seal or [""])[-1]) if n in run.steps]
        by_arm = [{t.context: t for t in run.steps[n].trials} for n in arms]
        rows = []
        for puzzle in list(held_out_puzzles(run).values())[:most]:
            example, test = puzzle.demonstrations[0], puzzle.tests[0]
            cells = [(grid, None) for grid in (example.input, example.output, test.input)]
            for trials in by_arm:
                answers = trials[puzzle.id].answers
                guesses = predictions(puzzle, answers, run.config["vote"])[0] if answers else []
                right = test.output in guesses[: run.config["attempts"]]
                cells.append((guesses[0] if guesses else None, right))
            rows.append((puzzle.id, [*cells, (test.output, None)]))
        headings = ["demonstration", "", "test", *arms, "truth"]
        save("puzzles.png", lambda figure: plot_puzzles(figure, rows, headings), (9, 6.4))

    return picture
