"""What `run corpus` shows beyond its table: gain for each doubling of notes, and the curves."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..lab.evidence import interval
from ..lab.plots import COLOURS
from ..lab.run import Run, Step
from .passages import tokens

PLACES = ("what", "together", "edits")


def describe(run: Run, step: Step) -> dict[str, Any]:
    """What was learnt, how many passages in one adapter, how many self-edits of each; tokens."""
    chose = step.trials[0].chose
    return tokens(run, step) | {place: chose.get(place) for place in PLACES}


def conclude(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """The mean slope over passages, a doubling of the self-edits: of all, and of either half."""
    walls: dict[str, list[Step]] = {}
    for step in run.arms():
        if "edits" in (chose := step.trials[0].chose):
            walls.setdefault(chose["what"], []).append(step)
    slopes = {}
    for what, steps in ((w, s) for w, s in walls.items() if len(s) > 2):
        doublings = np.log2([step.trials[0].chose["edits"] for step in steps])
        scores = np.array([[trial.reward for trial in step.trials] for step in steps])
        middle = len(steps) // 2
        parts = slice(None), slice(middle + 1), slice(middle, None)
        slopes[what] = [interval(np.polyfit(doublings[p], scores[p], 1)[0]) for p in parts]
    return {"slopes": slopes}


def notes(run: Run, results: dict[str, Any]) -> list[str]:
    """A sentence for each curve, and what the intervals do not know."""
    n, together = max(
        ((a["n"], a["together"]) for a in results["arms"] if a["edits"]), default=(0, 0)
    )
    told = [
        "passages of one adapter share its luck; the intervals take them for independent.",
        f"x 1 to x 16: so many self-edits of each, {n} of the passages, in adapters of {together}.",
        "passage again: the passage as often as has the tokens of so many own notes.",
    ]
    for what, slopes in results.get("slopes", {}).items():
        every, first, last = (
            f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" for mean, (low, high) in slopes
        )
        told.append(f"{what}, a doubling: {every}; in the first half {first}, in the last {last}.")
    return told


def plot_corpus(run: Run, results: dict[str, Any], save: Callable) -> None:
    """corpus.png: scores by passages in one adapter, and by tokens; both axes are logarithmic."""
    arms = [a for a in results["arms"] if a["what"]]
    names = list(dict.fromkeys(a["what"] for a in arms))
    colours = dict(zip(names, (COLOURS[i] for i in (1, 2, 0, 3, 4))))

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, x, wall in (left, "together", False), (right, "tokens", True):
            for what in names:
                line = [a for a in arms if a["what"] == what and bool(a["edits"]) == wall]
                if not line:
                    continue
                low, high = zip(*(a["ci95"] for a in line))
                places = [a[x] for a in line]
                colour = colours[what]
                axes.plot(places, [a["mean"] for a in line], marker="o", color=colour, label=what)
                axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:.0f}")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8)
        left.set(xlabel="passages in one adapter", ylabel=results["score"], ylim=(0, 1))
        right.set_xlabel("tokens trained on, a passage (1 to 16 self-edits)")

    save("corpus.png", draw, (9, 3.6))
