"""What `run confidence` shows beyond its table: calibration, and proxy beside truth by round."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..lab.evidence import auroc, interval, rank_correlation
from ..lab.run import Run
from ..lab.table import aligned
from ..outer import Tried

RANKS = {"rank": "rank correlation", "auroc": "AUROC", "best": "its best over the mean"}
KEYS = ("answer key", "random winners", "wrong prior, answer key")  # these are the truth
Values = dict[str, list[float]]


def calibrate(tried: Tried) -> Values:
    """Of each context: mean proxy, mean true score, and how the one ranks the other.

    rank, auroc, best: over the self-edits that could be read, of contexts where the truth differs.
    A proxy that is the same for all of them ranks nothing: 0. best: the true score of the one that
    the proxy likes best, over their mean; ties count with theirs.
    """
    out: Values = {what: [] for what in ("proxy", "truth", *RANKS)}
    for _, trials in tried:
        valid = [t for t in trials if t.invalid is None]
        proxy, truth = [t.reward for t in valid], [float(np.mean(t.grades)) for t in valid]
        out["proxy"].append(sum(proxy) / len(trials))
        out["truth"].append(sum(truth) / len(trials))
        if len(set(truth)) > 1:
            out["rank"].append(float(np.nan_to_num(rank_correlation(proxy, truth))))
            out["auroc"].append(auroc(proxy, truth))
            best = [true for score, true in zip(proxy, truth) if score == max(proxy)]
            out["best"].append(float(np.mean(best) - np.mean(truth)))
    return out


def conclude(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """Of each round of each loop the means of calibrate(), with intervals over contexts."""
    loops = {s.labels["curve"]: s.value for s in run.steps.values() if "curve" in s.labels}
    told = lambda values: {what: interval(v) if v else None for what, v in values.items()}
    return {"curves": {name: [told(one) for one in rounds] for name, rounds in loops.items()}}


def blocks(run: Run, results: dict[str, Any]) -> list[str]:
    """How each reward ranks the self-edits of round 1, which are the same; proxy and truth."""
    curves = {name: rounds for name, rounds in results["curves"].items() if rounds}
    if not curves:
        return []
    ranks = [
        ["in round 1, within a context", *(c for what in RANKS.values() for c in (what, "95 %"))]
    ]
    most = max(map(len, curves.values()))
    lines = [["in training, round", "", *(str(r) for r in range(1, most + 1))]]
    for name, rounds in curves.items():
        if name not in KEYS:
            ranks.append([name, *(cell for what in RANKS for cell in _cells(rounds[0][what]))])
        for what in ("proxy", "truth"):
            cells = [_cells(one[what])[0] for one in rounds]
            lines.append([name, what, *cells, *[""] * (most - len(cells))])
    return [aligned(ranks), aligned(lines, (0, 1))]


def _cells(value: Any) -> tuple[str, str]:
    if value is None:
        return "", ""
    mean, (low, high) = value
    return f"{mean:.2f}", f"{low:.2f} {high:.2f}"


def plot_curves(run: Run, results: dict[str, Any], save: Callable) -> None:
    """proxies.png: by round what each reward says, against its first round, and the truth."""
    curves = {name: rounds for name, rounds in results["curves"].items() if len(rounds) > 1}
    if not curves:
        return

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for name, rounds in curves.items():
            proxy, truth = ([one[what][0] for one in rounds] for what in ("proxy", "truth"))
            places = range(1, len(rounds) + 1)
            style = dict(marker="o", linestyle="--" if name.startswith("wrong") else "-")
            left.plot(places, np.array(proxy) / (proxy[0] or 1.0), **style, label=name)
            right.plot(places, truth, **style)
        left.set(xlabel="round", ylabel="reward, round 1 is 1")
        right.set(xlabel="round", ylabel="the exam of the same self-edits", ylim=(0, 1))
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)

    save("proxies.png", draw, (9, 4))
