"""The report of `minseal run loops`: what the policies write, and how each rate of learning did."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..inner import pack, to_tensors
from ..lab import evidence
from ..lab.lab import Lab
from ..lab.plots import plain_axes
from ..lab.run import Run, Step
from ..lab.table import aligned
from ..model import GPT
from ..selfedit import InvalidSelfEdit
from .passages import prompts_tried

Results = dict[str, Any]
LOOK = {"kl": "KL", "unreadable": "unreadable", "distinct": "distinct"}  # of what_is_written()


def what_is_written(lab: Lab, first: GPT, contexts: list[Any], n: int = 4) -> Results:
    """n self-edits of each context, looked at and not tried out.

    kl: KL divergence of the policy from the first one, nats a self-edit: the sum over its tokens
    of that of the next token, which is exact. unreadable: the share of notes that no grammar
    reads; a text that is no self-edit is one. distinct: the share of different ones among the
    notes of a context. None where a number is not finite.
    """
    drifts, odd, distinct = [], [], []
    for context, texts in zip(contexts, lab.write_many(contexts, n, "look")):
        lines = [line for text in texts for line in text.split("\n") if line.strip()]
        distinct.append(len(set(lines)) / len(lines) if lines else 0.0)
        for text in texts:
            try:
                kinds = lab.task.parse(context, text).chose.get("notes") or {"read": 1}
                odd.append(kinds.get("other", 0) / sum(kinds.values()))
            except InvalidSelfEdit:
                odd.append(1.0)
        drifts += [drift(lab.policy, first, lab.task.lesson(context, text)) for text in texts]
    means = {"kl": np.mean(drifts), "unreadable": np.mean(odd), "distinct": np.mean(distinct)}
    return {name: float(x) if np.isfinite(x) else None for name, x in means.items()}


@torch.no_grad()
def drift(policy: GPT, first: GPT, document: Any) -> float:
    """The sum over a document's tokens that carry loss of KL(policy || first) there."""
    rows = [pack([document], len(document.ids))]
    ids, docs, targets, _ = (x.to(policy.wte.weight.device) for x in to_tensors(rows))
    now, then = (
        model.head(model.hidden(ids, docs)[targets >= 0]).double().log_softmax(-1)  # (n, V)
        for model in (policy, first)
    )
    return float((now.exp() * (now - then)).sum())


def describe(run: Run, step: Step) -> Results:
    """What the policy of an arm writes."""
    looked = run.steps.get(f"{step.name}, looked at")
    return {name: looked.value[name] if looked else None for name in LOOK}


def columns(results: Results) -> tuple[list[str], Callable]:
    """A column for each of these."""
    return list(LOOK.values()), cells


def cells(row: Results) -> list[str]:
    """The numbers of LOOK, if they are finite; where nothing was looked at nothing."""
    forms = ("{:.1f}", "{:.0%}", "{:.0%}")
    if row["distinct"] is None:
        return [""] * len(forms)
    found = [row[name] for name in LOOK]
    return ["not finite" if x is None else form.format(x) for form, x in zip(forms, found)]


def conclude(run: Run, results: Results) -> Results:
    """sweep: for each loop and rate the reward on training contexts, its gain, what is written.

    failed: {M-step whose training failed: why}.
    """
    if "untrained, tried out" not in run.steps:
        return {}
    rows, untrained = [], run.steps["untrained, tried out"].trials
    best = run.steps["rates"].value if "rates" in run.steps else {}
    for name, step in run.steps.items():
        loop, _, rest = name.partition(", rate ")
        rate, _, what = rest.partition(", ")
        if what == "tried out":
            rewards = [t.reward for t in step.trials]
            gain = evidence.paired(rewards, [t.reward for t in untrained])
            row = {"loop": loop, "rate": rate, "reward": float(np.mean(rewards)), "gain": gain}
            row["best"] = best.get(loop) == rate
            rows.append(row | describe(run, step))
    values = {name: step.value for name, step in run.steps.items() if name.endswith("M-step")}
    failed = {name: v["failed"] for name, v in values.items() if v and "failed" in v}
    return {"sweep": rows, "failed": failed}


def blocks(run: Run, results: Results) -> list[str]:
    """The sweep as a table."""
    rows = [["loop", "rate", "best", "reward", "gain", "95 %", *LOOK.values()]]
    for a in results.get("sweep", []):
        gain, (low, high) = a["gain"]
        told = [f"{a['reward']:.2f}", f"{gain:+.2f}", f"{low:+.2f} {high:+.2f}", *cells(a)]
        rows.append([a["loop"], a["rate"], "*" if a["best"] else "", *told])
    n = len(run.steps["untrained, tried out"].trials)
    title = f"Each loop at each learning rate: reward on {n} contexts of the training set, gain"
    return [f"{title} over untrained.\n\n{aligned(rows)}"] if len(rows) > 1 else []


def notes(run: Run, results: Results) -> list[str]:
    """What the columns mean; rates at which a loop did harm; M-steps whose training failed."""
    out = [
        "KL: from the first policy, nats a self-edit. unreadable: notes that no grammar reads. "
        "distinct: different notes among those of four self-edits of a context."
    ]
    for loop in dict.fromkeys(a["loop"] for a in results.get("sweep", [])):
        fell = [a["rate"] for a in results["sweep"] if a["loop"] == loop and a["gain"][1][1] < 0]
        out += [f"{loop} falls below the untrained policy at {', '.join(fell)}."] if fell else []
    for name, why in results.get("failed", {}).items():
        out.append(f"{name} failed and changed nothing: {why}")
    return [*out, *prompts_tried(run, results)]


def plot_sweep(run: Run, results: Results, save: Callable) -> None:
    """sweep.png: reward on training contexts over the learning rate, a line for each loop."""
    rows = results.get("sweep", [])
    loops = list(dict.fromkeys(a["loop"] for a in rows))

    def draw(figure: Any) -> None:
        axes = plain_axes(figure)
        for loop in loops:
            points = sorted((float(a["rate"]), a["reward"]) for a in rows if a["loop"] == loop)
            axes.plot(*zip(*points), marker="o", label=loop)
        axes.set(xscale="log", ylim=(0, 1), xlabel="learning rate", ylabel="reward in training")
        axes.legend(frameon=False, fontsize=8)

    if loops:
        save("sweep.png", draw, (6, 3.6))


REPORT = dict(
    describe=describe,
    columns=columns,
    conclude=conclude,
    notes=notes,
    blocks=blocks,
    pictures=(plot_sweep,),
)
