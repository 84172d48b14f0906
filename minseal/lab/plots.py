"""Plots of a run: the ladder, and each series over its places. Other pictures are functions, too.

picture(run, results, save)      calls save(file name, draw, (width, height)), draw(figure)
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from ..files import write_bytes, write_folder
from .lab import Experiment, attempt
from .run import Run

COLOURS = ("tab:red", "tab:gray", "tab:blue", "tab:green", "tab:orange", "tab:purple")


def plots(run: Run, experiment: Experiment, results: dict[str, Any]) -> list[str]:
    """Draw into the run folder; the names of the files made, none without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    made: dict[str, bytes] = {}

    def save(name: str, draw: Callable[[Any], None], size: tuple[float, float]) -> None:
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer := io.BytesIO(), dpi=120)
        made[name] = buffer.getvalue()

    said = {**results, "score": experiment.score, "places": experiment.places}
    for picture in (plot_ladder, plot_lines, *experiment.pictures):
        attempt(results, "a picture", lambda: picture(run, said, save))
    write_folder(run.folder, {name: write_bytes(png) for name, png in made.items()})
    return list(made)


def plot_ladder(run: Run, results: dict[str, Any], save: Callable) -> None:
    """ladder.png: a bar for each arm; the first series is red, the second gray."""
    arms, colours = results["arms"], dict(zip(series_of(results), COLOURS))

    def draw(figure: Any) -> None:
        axes = plain_axes(figure)
        for y, a in enumerate(arms):
            colour = colours[a["series"][0]] if a["series"] and a["at"] else "tab:blue"
            axes.barh(y, a["mean"], color=colour, alpha=0.8)
            axes.plot(a["ci95"], [y, y], color="black", linewidth=1.2)
        axes.set_yticks(range(len(arms)), [a["arm"] for a in arms])
        axes.invert_yaxis()
        label = f"{results['score']}, {arms[0]['n']} held-out contexts, 95 % interval"
        axes.set(xlim=(0, 1.02), xlabel=label)

    save("ladder.png", draw, (7, 0.35 * len(arms) + 0.8))


def plot_lines(run: Run, results: dict[str, Any], save: Callable) -> None:
    """rounds.png: each series over its places, with intervals."""
    lines = {
        name: [a for a in results["arms"] if name in a["series"] and a["at"] is not None]
        for name in series_of(results)
    }
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return

    def draw(figure: Any) -> None:
        axes = plain_axes(figure)
        for (name, points), colour in zip(lines.items(), COLOURS):
            x, y = [a["at"] for a in points], [a["mean"] for a in points]
            low, high = zip(*(a["ci95"] for a in points))
            axes.plot(x, y, marker="o", color=colour, label=name)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        places = sorted({a["at"] for points in lines.values() for a in points})
        axes.set(ylabel=f"{results['score']}, held out", ylim=(0, 1), xticks=places)
        axes.set_xlabel(results["places"])
        axes.legend(frameon=False)

    save("rounds.png", draw, (6, 3.6))


def matrix(*series: str) -> Callable:
    """A picture: for each series its places (rows) by contexts (columns), shaded by reward."""

    def picture(run: Run, results: dict[str, Any], save: Callable) -> None:
        grids = {}
        for name in series:
            steps = [s for s in run.arms() if name in s.arm.series]
            if steps:
                grids[name] = np.array([[t.reward for t in s.trials] for s in steps])
        if not grids:
            return

        def draw(figure: Any) -> None:
            panels = np.atleast_1d(figure.subplots(1, len(grids), sharey=True))
            for axes, (name, rewards) in zip(panels, grids.items()):
                shade(axes, rewards)
                places = [s.arm.at for s in run.arms() if name in s.arm.series]
                axes.set_yticks(range(len(places)), places)
                axes.set_title(name, fontsize=9)
                axes.set_xlabel("context", fontsize=8)

        save("matrix.png", draw, (3.2 * len(grids) + 1, 3.6))

    return picture


def shade(axes: Any, shares: np.ndarray) -> None:
    """A matrix of numbers in [0, 1] as shades, each in percent."""
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, x in np.ndindex(shares.shape):
        colour = "white" if shares[y, x] > 0.6 else "black"
        text = f"{100 * shares[y, x]:.0f}"
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def series_of(results: dict[str, Any]) -> list[str]:
    """The names of all series, in order."""
    return list(dict.fromkeys(name for a in results["arms"] for name in a["series"]))


def plain_axes(figure: Any) -> Any:
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return axes
