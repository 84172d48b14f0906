"""What the reports of puzzle experiments show beside the table: kinds of rule and directives."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ..files import UserError
from ..lab import evidence
from ..lab.plots import shade
from ..lab.run import Run, Step
from ..lab.table import aligned
from ..outer import Trial
from ..tasks.arc import Puzzle, read_puzzles
from ..tasks.fewshot import SWITCHES, predictions, solves
from ..tasks.gridview import draw_puzzles

FIRST, LAST = "first self-edits, last weights", "last self-edits, first weights"


def held_out_puzzles(run: Run) -> dict[str, Puzzle]:
    """The held-out puzzles of a run, by their ids."""
    try:
        return {puzzle.id: puzzle for puzzle in read_puzzles(run.folder / "puzzles.json")}
    except UserError as e:
        raise UserError(f"{run.folder} is damaged, or no run on puzzles: {e}") from None


def describe(run: Run, step: Step) -> dict[str, Any]:
    """Further keys of an arm: its score by kind of rule, unreadable self-edits, directives."""
    puzzles = held_out_puzzles(run)
    kinds = dict.fromkeys(p.kind for p in puzzles.values() if p.kind)
    by_kind = {
        kind: float(np.mean([t.reward for t in step.trials if puzzles[t.context].kind == kind]))
        for kind in kinds
    }
    out = {"by_kind": by_kind, "unreadable": sum(not t.chose for t in step.trials)}
    out["directives"] = shares_of(step.trials) if any(t.chose for t in step.trials) else None
    if vote := run.config["vote"]:
        for n in (1, 2):
            right = [solves(puzzles[t.context], t.answers, vote, n) for t in step.trials]
            out[f"pass{n}"] = float(np.mean(right))
    return out


def shares_of(trials: list[Trial]) -> dict[str, dict[str, float]]:
    """{kind of rule: {directive: share of the readable self-edits that choose it}}

    Numbers are told as 'lr 0.006' and 'epochs 6'.
    """
    out = {}
    chosen = [t.chose for t in trials if t.chose]
    for kind in dict.fromkeys(c["kind"] for c in chosen):
        these = [c for c in chosen if c["kind"] == kind]
        counts = Counter(name for c in these for name in c["augmentations"])
        shares = {name: counts[name] / len(these) for name in SWITCHES}
        shares["outputs"] = sum(c["loss"] == "outputs" for c in these) / len(these)
        for name in ("lr", "epochs"):
            for value, n in sorted(Counter(c[name] for c in these).items()):
                shares[f"{name} {value:g}"] = n / len(these)
        out[kind or "all"] = shares
    return out


def puzzle_columns(results: dict[str, Any]) -> tuple[list[str], Callable[[dict], list[str]]]:
    """Further columns of the table: the kinds of rule, votes, unreadable self-edits."""
    kinds = list(results["arms"][0]["by_kind"])
    passes = [n for n in (1, 2) if f"pass{n}" in results["arms"][0]]

    def cells(row: dict[str, Any]) -> list[str]:
        scores = [row["by_kind"][kind] for kind in kinds] + [row[f"pass{n}"] for n in passes]
        unreadable = str(row["unreadable"]) if row["directives"] else ""
        return [*(f"{score:.2f}" for score in scores), unreadable]

    return [*kinds, *(f"pass@{n}" for n in passes), "unreadable"], cells


def conclude(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """What only this ladder concludes: whose doing the gain is, and what was held out."""
    out = {"attribution": attribution(run), "unreadable": count_unreadable(run)}
    if "solvable" in run.steps:
        tried = run.steps["solvable"].trials
        solved, kept = sum(t.reward == 1 for t in tried), results["arms"][0]["n"]
        out["solvable"] = {"tried": len(tried), "solved": solved, "kept": kept}
    return out


def attribution(run: Run) -> dict[str, Any] | None:
    """Is the gain in what the policy writes, or in the weights that train on it?

    edits: the last self-edits on the first weights; weights: the first self-edits on the last
    weights; each minus the first self-edits on the first weights, paired. shares: of all the gain.
    """
    seal = [s.name for s in run.arms() if "SEAL" in s.arm.series]
    arms = {"all": seal[-1], "edits": LAST, "weights": FIRST} if len(seal) > 1 else {"": ""}
    if not all(name in run.steps for name in arms.values()):
        return None
    rewards = {n: [t.reward for t in run.steps[n].trials] for n in (*arms.values(), seal[0])}
    out: dict[str, Any] = {}
    for what, name in arms.items():
        gain, ci95 = evidence.paired(rewards[name], rewards[seal[0]])
        out[what] = {"gain": gain, "ci95": ci95}
    whole = out["all"]["gain"]
    shares = {w: out[w]["gain"] / whole if whole > 0 else None for w in ("edits", "weights")}
    return out | {"shares": shares}


def notes(run: Run, results: dict[str, Any]) -> list[str]:
    """The sentences that only this ladder has."""
    out = []
    if s := results.get("solvable"):
        out.append(
            f"held out: {s['kept']} puzzles; of {s['tried']} tried the oracle's self-edit (with "
            f"other first weights) solved {s['solved']}, {s['tried'] - s['solved']} were dropped."
        )
    if (a := results.get("attribution")) is not None:

        def gain(what: str) -> str:
            (low, high), share = a[what]["ci95"], a["shares"][what]
            of_all = "" if share is None else f", {share:.0%} of the gain"
            return f"{a[what]['gain']:+.2f} (95 % {low:+.2f} to {high:+.2f}{of_all})"

        out.append(
            f"whose doing: the last self-edits on the first weights {gain('edits')}; the first "
            f"self-edits on the last weights {gain('weights')}."
        )
    if n := results["unreadable"]["self_edits"]:
        bad = results["unreadable"]["unreadable"]
        out.append(f"of {n} self-edits {bad} were unreadable ({bad / n:.1%}): each scored 0.")
    return out


def count_unreadable(run: Run) -> dict[str, int]:
    """Of all that policies wrote; a text that is tried again counts once."""
    written = [
        s
        for s in run.steps.values()
        if "loop" in s.labels or (s.arm and s.name not in (FIRST, LAST))
    ]
    trials = [t for s in written for t in s.trials if t.text is not None]
    return {"self_edits": len(trials), "unreadable": sum(not t.chose for t in trials)}


def directive_tables(run: Run, results: dict[str, Any]) -> list[str]:
    """The directives that each arm's self-edits choose, a table for each kind of rule."""
    arms = [a for a in results["arms"] if a["directives"] and a["arm"] not in (FIRST, LAST)]
    out = []
    for kind in dict.fromkeys(kind for a in arms for kind in a["directives"]):
        first = f"rule: {kind}" if kind != "all" else "all puzzles"
        rows = [[first, *SWITCHES, "outputs", "learning rate", "epochs"]]
        for a in arms:
            if shares := a["directives"].get(kind):
                switched = [f"{shares[name]:.0%}" for name in (*SWITCHES, "outputs")]
                often = [most_frequent(shares, name) for name in ("lr", "epochs")]
                rows.append([a["arm"], *switched, *often])
        out.append(aligned(rows, left=(0, len(rows[0]) - 2, len(rows[0]) - 1)))
    heading = (
        "What the self-edits choose: share with each augmentation, with loss on outputs only, and "
        "the two most frequent numbers."
    )
    return ["\n\n".join([heading, *out])] if out else []


def most_frequent(shares: dict[str, float], name: str) -> str:
    """'0.003 60%, 0.006 40%'"""
    found = [(share, key.split()[1]) for key, share in shares.items() if key.startswith(f"{name} ")]
    return ", ".join(f"{value} {share:.0%}" for share, value in sorted(found, reverse=True)[:2])


# ---- pictures ------------------------------------------------------------------------------------


def directive_picture(run: Run, results: dict[str, Any], save: Callable) -> None:
    """directives.png: for each kind of rule, round by round, the share with each directive."""
    arms = [a for a in results["arms"] if a["directives"] and "SEAL" in a["series"]]
    kinds = list(dict.fromkeys(kind for a in arms for kind in a["directives"]))
    if len(arms) < 2 or not kinds:
        return
    tables = [a["directives"].get(kind, {}) for a in arms for kind in kinds]
    rows = [*SWITCHES, "outputs"]
    for name in ("lr", "epochs"):
        keys = {key for shares in tables for key in shares if key.startswith(f"{name} ")}
        often = [k for k in keys if max(shares.get(k, 0) for shares in tables) >= 0.05]
        rows += sorted(often, key=lambda k: float(k.split()[1]))

    def draw(figure: Any) -> None:
        panels = np.atleast_1d(figure.subplots(1, len(kinds), sharey=True))
        for axes, kind in zip(panels, kinds):
            shade(
                axes,
                np.array([[a["directives"].get(kind, {}).get(r, 0) for a in arms] for r in rows]),
            )
            axes.set_xticks(
                range(len(arms)),
                [f"round {a['at']}" if a["at"] else "no RL" for a in arms],
                fontsize=8,
            )
            axes.set_yticks(range(len(rows)), rows, fontsize=8)
            axes.set_title(
                f"rule: {kind}, % of self-edits" if kind != "all" else "% of self-edits", fontsize=9
            )

    save("directives.png", draw, (3.2 * len(kinds) + 2, 4.6))


def puzzle_picture(before: str, after: str = "", most: int = 6) -> Callable:
    """A picture, puzzles.png: some held-out puzzles with the predictions of two arms.

    after: nothing: the last arm of the series SEAL.
    """

    def picture(run: Run, results: dict[str, Any], save: Callable) -> None:
        seal = [a["arm"] for a in results["arms"] if "SEAL" in a["series"]]
        arms = [n for n in (before, after or (seal[-1:] or [""])[0]) if n in run.steps]
        by_arm = {n: {t.context: t for t in run.steps[n].trials} for n in arms}
        rows = []
        for puzzle in list(held_out_puzzles(run).values())[:most]:
            shown, truth = puzzle.demonstrations[0], puzzle.tests[0].output
            cells = [(shown.input, None), (shown.output, None), (puzzle.tests[0].input, None)]
            for name in arms:
                answers = by_arm[name][puzzle.id].answers
                guesses = predictions(puzzle, answers, run.config["vote"])[0] if answers else []
                right = truth in guesses[: run.config["attempts"]]
                cells.append((guesses[0] if guesses else None, right))
            rows.append((puzzle.id, [*cells, (truth, None)]))
        headings = ["demonstration", "", "test", *arms, "truth"]
        save("puzzles.png", lambda figure: draw_puzzles(figure, rows, headings), (9, 6.4))

    return picture
