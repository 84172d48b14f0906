"""The report of `minseal run agent`: right answers by the age of what was told."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..lab.plots import COLOURS
from ..lab.run import Run, Step
from .streams import AGES, EVERY, last_quarter, over_time

COLUMNS = ("1 ago", "8 ago", "corrected", "general", "kept")


def describe(run: Run, step: Step) -> dict[str, Any]:
    """Means over the streams: by age after each thing told, general knowledge, edits kept."""
    lives = [t.chose for t in step.trials]
    last = np.mean([last_quarter(life["ages"]) for life in lives], 0).tolist()
    more = {k: float(np.mean([life[k] for life in lives])) for k in ("corrected", "kept")}
    general = np.mean([life["general"] for life in lives], 0).tolist()
    more |= {"general": general[-1], "general by quarter": general, "over time": over_time(lives)}
    more["seconds"] = sum(t.seconds for t in step.trials)  # of the lives, steps of their own
    return dict(zip((f"{age} ago" for age in AGES), last)) | more


def columns(results: dict[str, Any]) -> tuple[list[str], Callable]:
    return list(COLUMNS), lambda a: [*(f"{a[c]:.2f}" for c in COLUMNS[:-1]), f"{a['kept']:.1f}"]


def plot_ages(run: Run, results: dict[str, Any], save: Callable) -> None:
    """ages.png: right answers over the interactions, each line an arm, means of four."""

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(AGES), sharey=True)
        for axes, (age, back) in zip(panels, AGES.items()):
            for a, colour in zip(results["arms"], COLOURS):
                y = np.array(a["over time"][age], float)
                y = np.convolve(y, np.ones(4) / 4, "valid")
                x = EVERY * (np.arange(len(y)) + back + 4)
                axes.plot(x, y, color=colour, label=a["arm"])
            axes.set(title=f"told {age} ago", xlabel="interactions", ylim=(0, 1.02))
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("right answers")
        panels[0].legend(frameon=False, fontsize=7, loc="center left")

    save("ages.png", draw, (9, 3.2))
