"""What `run confidence` shows beyond its table: calibration, and proxy beside truth by round."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..lab.evidence import auroc, interval, rank_correlation
from ..lab.run import Run
from ..lab.table import aligned
from ..outer import Tried

ENDS = ": proxy and truth"
Values = dict[str, list[float]]


def calibrate(tried: Tried) -> Values:
    """Of each context: mean proxy, mean true score, and how the one ranks the other.

    rank, auroc: over the self-edits that could be read, of contexts where the truth differs. A
    proxy that is the same for all of them ranks nothing: 0. best: how much better than their mean
    the one is that the proxy likes best.
    """
    out: Values = {what: [] for what in ("proxy", "truth", "rank", "auroc", "best")}
    for _, trials in tried:
        valid = [t for t in trials if t.invalid is None]
        proxy, truth = [t.reward for t in valid], [float(np.mean(t.grades)) for t in valid]
        out["proxy"].append(sum(proxy) / len(trials))
        out["truth"].append(sum(truth) / len(trials))
        if len(set(truth)) > 1:
            out["rank"].append(float(np.nan_to_num(rank_correlation(proxy, truth))))
            out["auroc"].append(auroc(proxy, truth))
            best = [t for p, t in zip(proxy, truth) if p == max(proxy)]
            out["best"].append(float(np.mean(best) - np.mean(truth)))
    return out


def each_alone(tried: Tried, names: Sequence[str]) -> dict[str, Values]:
    """calibrate() for each of proxies.together(), of which the first is the truth."""
    alone = lambda t, i: replace(t, reward=t.grades[i], grades=t.grades[:1]) if t.grades else t
    return {
        name: calibrate([(c, [alone(t, i) for t in trials]) for c, trials in tried])
        for i, name in enumerate(names, 1)
    }


def conclude(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """Means with intervals over contexts: of each proxy before all loops, and of each round."""
    loops = {name[: -len(ENDS)]: s.value for name, s in run.steps.items() if name.endswith(ENDS)}
    first = run.steps["calibration"].value if "calibration" in run.steps else {}
    told = lambda values: {what: interval(v) if v else None for what, v in values.items()}
    return {
        "calibration": {name: told(values) for name, values in first.items()},
        "curves": {name: [told(values) for values in rounds] for name, rounds in loops.items()},
    }


def blocks(run: Run, results: dict[str, Any]) -> list[str]:
    """Calibration, and proxy beside truth in every round."""
    header = ["reward", "when", "rank correlation", "95 %", "AUROC", "95 %", "best - mean", "95 %"]
    rows = []
    measured = [(name, "first", one) for name, one in results.get("calibration", {}).items()]
    curves = results.get("curves", {})
    for name, rounds in curves.items():
        measured += [(name, f"round {r}", one) for r, one in enumerate(rounds, 1)]
    for name, when, one in measured:
        cells = [
            f"{one[w][0]:.2f}  {one[w][1][0]:.2f} {one[w][1][1]:.2f}".split("  ")
            if one[w]
            else ["", ""]
            for w in ("rank", "auroc", "best")
        ]
        rows.append([name, when, *sum(cells, [])])
    lines = [["reward", "what", *map(str, range(1, 1 + max(map(len, curves.values()), default=0)))]]
    for name, rounds in curves.items():
        for what in ("proxy", "truth"):
            lines.append([name, what, *(f"{one[what][0]:.2f}" for one in rounds)])
    width = len(lines[0])
    return [aligned([header, *rows]), aligned([row + [""] * (width - len(row)) for row in lines])]


def plot_curves(run: Run, results: dict[str, Any], save: Callable) -> None:
    """proxies.png."""
