"""The report of `minseal run continual`: what is left of passages and of general knowledge."""

from typing import Any

import numpy as np

from ..lab import evidence
from ..lab.plots import shade
from ..lab.run import Run, Step

Results = dict[str, Any]


def lives(run: Run, name: str) -> dict[str, np.ndarray]:
    """What an arm left: scores (orders, 1 + stages, stages), general (., 1 + stages), kl (.,)."""
    found = [s.value for key, s in run.steps.items() if key.startswith(f"{name}, order ")]
    return {what: np.array([life[what] for life in found]) for what in ("scores", "general", "kl")}


def forgotten(scores: np.ndarray) -> np.ndarray:
    """(orders,): each passage's score right after its edit minus that in the end, all but the last.

    scores: (orders, 1 + stages, stages).
    """
    at_once = scores[:, 1:].diagonal(axis1=1, axis2=2)  # (orders, stages)
    return at_once[:, :-1].mean(1) - scores[:, -1, :-1].mean(1)


def forgotten_in_general(left: dict[str, np.ndarray]) -> np.ndarray:
    """(orders,): general knowledge before the first edit minus that in the end."""
    return left["general"][:, 0] - left["general"][:, -1]


def arms(results: Results) -> list[Results]:
    """The rows of ways to learn: all but the first, the model that learnt nothing."""
    return [a for a in results["arms"] if a["general"] is not None]


def describe(run: Run, step: Step) -> Results:
    """Means and intervals over orders, beside the score."""
    names = ("general", "kl", "at_once", "earlier", "earlier_gain", "forgetting")
    empty = dict.fromkeys(names)
    left = lives(run, step.name)
    if not left["kl"].size:
        return empty
    scores = left["scores"]
    earlier = scores[:, -1, :-1].mean(1)  # (orders,): all passages but the last
    at_once = scores[:, 1:].diagonal(axis1=1, axis2=2)  # (orders, stages): just learnt
    values = (
        left["general"][:, -1],
        left["kl"],
        at_once.mean(1),
        earlier,
        earlier - scores[:, 0, :-1].mean(1),
        forgotten(scores),
    )
    seconds = sum(s.seconds for n, s in run.steps.items() if n.startswith(f"{step.name}, order "))
    return {name: evidence.interval(v) for name, v in zip(names, values)} | {"seconds": seconds}


def columns(results: Results) -> tuple[list[str], Any]:
    header = ["just learnt", "earlier ones", "general knowledge", "95 %", "KL"]

    def cells(a: Results) -> list[str]:
        if a["general"] is None:
            return [""] * len(header)
        (known, (low, high)), rest = a["general"], [a["at_once"][0], a["earlier"][0]]
        return [*(f"{x:.2f}" for x in rest), f"{known:.2f}", f"{low:.2f} {high:.2f}",
                f"{a['kl'][0]:.2f}"]  # fmt: skip

    return header, cells


def conclude(run: Run, results: Results, resamples: int = 2000) -> Results:
    """Rank correlation of KL with what was forgotten, over arms and orders, orders resampled."""
    if not (there := [lives(run, a["arm"]) for a in arms(results)]):
        return {"kl_correlation": {}}
    kl = np.array([left["kl"] for left in there])  # (arms, orders)
    lost_by = {
        "passages": np.array([forgotten(left["scores"]) for left in there]),
        "general knowledge": np.array([forgotten_in_general(left) for left in there]),
    }
    picks = np.random.default_rng(0).integers(kl.shape[1], size=(resamples, kl.shape[1]))
    told = {}
    for what, lost in lost_by.items():
        again = [evidence.rank_correlation(kl[:, p].ravel(), lost[:, p].ravel()) for p in picks]
        whole = evidence.rank_correlation(kl.ravel(), lost.ravel())
        told[what] = [whole, np.percentile(again, [2.5, 97.5]).tolist()]
    return {"kl_correlation": told}


def notes(run: Run, results: Results) -> list[str]:
    """What the columns mean, and what the numbers say."""
    out = [
        "just learnt: each passage right after its edit; earlier ones: all but the last, in the "
        "end. KL: from the model before all edits to the last, a token of pretraining's kind of "
        "text, in nats."
    ]
    for a in arms(results):
        told = evidence.told(*a["earlier_gain"])
        out.append(f"{a['arm']}, earlier passages against the unedited model: {told}.")
    for what, (r, (low, high)) in results["kl_correlation"].items():
        out.append(
            f"rank correlation of KL with what was forgotten of {what}: {r:.2f} (95 % {low:.2f} to "
            f"{high:.2f}, over arms and orders)."
        )
    return out


def plot_matrices(run: Run, results: Results, save: Any) -> None:
    """matrix.png: for each arm the score on passage i (columns) after edit j (rows)."""
    if not (shown := arms(results)):
        return
    across = min(4, len(shown))
    down = -(-len(shown) // across)

    def draw(figure: Any) -> None:
        panels = np.atleast_1d(figure.subplots(down, across, sharex=True, sharey=True)).ravel()
        for axes, a in zip(panels, shown):
            scores = lives(run, a["arm"])["scores"].mean(0)  # (1 + stages, stages)
            shade(axes, scores)
            axes.set_title(a["arm"], fontsize=9)
            axes.set_xticks(range(scores.shape[1]), range(1, scores.shape[1] + 1), fontsize=7)
            axes.set_yticks(range(len(scores)), ["base", *range(1, len(scores))], fontsize=7)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        figure.supxlabel("passage", fontsize=9)
        figure.supylabel("after edit", fontsize=9)

    save("matrix.png", draw, (3.1 * across + 0.5, 2.7 * down + 0.5))


def plot_kl(run: Run, results: Results, save: Any) -> None:
    """kl.png: what was forgotten against the KL from the base, a point for each order."""
    if not arms(results):
        return

    def draw(figure: Any) -> None:
        for axes, what in zip(figure.subplots(1, 2), results["kl_correlation"]):
            axes.spines[["top", "right"]].set_visible(False)
            for i, a in enumerate(arms(results)):
                left = lives(run, a["arm"])
                of_passages = what == "passages"
                lost = forgotten(left["scores"]) if of_passages else forgotten_in_general(left)
                axes.scatter(left["kl"], lost, s=14, color=f"C{i}", label=a["arm"], alpha=0.7)
            r, (low, high) = results["kl_correlation"][what]
            axes.set_title(f"{what}: rank correlation {r:.2f} [{low:.2f}, {high:.2f}]", fontsize=9)
            axes.set(xlabel="KL from the base, nats a token", ylabel="forgotten", xscale="log")
        axes.legend(frameon=False, fontsize=7, loc="upper left")

    save("kl.png", draw, (10, 4))
