"""`minseal run knowledge`: the paper's ladder on passages, the outer loop and its control."""

import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..lab.lab import CONTROL, SEAL, Lab, experiment
from ..lab.run import Run, Step
from ..outer import OuterConfig, Trial
from ..tasks.people import KINDS
from .passages import PassageConfig, people, prompts_tried, try_prompts


@dataclass(frozen=True)
class KnowledgeConfig(PassageConfig):
    """SEAL for knowledge: from no adaptation to the passage in context, outer loop, control."""

    reliability_contexts: int = 16  # contexts of round 1 that are run twice more: is it luck?
    other_prompts: tuple[str, ...] | None = None  # measured untrained, too; "none" or the usual
    control: bool = True  # run the control: same M-step, winners drawn at random
    outer: OuterConfig = OuterConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(reliability_contexts=0)


def mix(run: Run, step: Step) -> dict[str, Any]:
    """Share of each kind of note in all self-edits of an arm together."""
    counts = sum((Counter(t.chose.get("notes")) for t in step.trials), Counter())
    total = counts.total()
    return {"mix": {kind: counts[kind] / total for kind in KINDS} if total else None}


def mix_columns(results: dict[str, Any]) -> tuple[list[str], Callable]:
    """A column for each kind of note, where a grammar reads them."""
    kinds = KINDS if any(a["mix"] for a in results["arms"]) else ()
    return list(kinds), lambda a: [f"{a['mix'][k]:.0%}" if a["mix"] else "" for k in kinds]


def plot_mix(run: Run, results: dict[str, Any], save: Any) -> None:
    """mix.png: a bar for each arm, divided into kinds of note."""
    arms = [a for a in results["arms"] if a["mix"]]
    if not arms:
        return
    colours = ("tab:blue", "tab:green", "tab:olive", "lightgray", "tab:red", "tab:purple")

    def draw(figure: Any) -> None:
        axes, left = figure.subplots(), np.zeros(len(arms))
        for kind, colour in zip(KINDS, colours):
            share = np.array([a["mix"][kind] for a in arms])
            axes.barh(range(len(arms)), share, left=left, label=kind, color=colour)
            left += share
        axes.set_yticks(range(len(arms)), [a["arm"] for a in arms])
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlim=(0, 1), xlabel="share of the notes")
        where = dict(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=6, columnspacing=1)
        axes.legend(frameon=False, fontsize=8, handlelength=1, **where)

    save("mix.png", draw, (7, 0.35 * len(arms) + 1))


def before_and_after(run: Run, results: dict[str, Any], width: int = 58) -> list[str]:
    """Three self-edits of one held-out passage before the outer loop, and three after it."""
    steps = [run.steps.get(f"three self-edits {when}") for when in ("before", "after")]
    if None in steps:
        return []
    before, after = (step.trials for step in steps)
    out = [f"Self-edits of {before[0].context}'s passage, before and after the outer loop:"]
    for pair in zip(before, after):
        left, right = (_wrapped(trial, width - 2) for trial in pair)
        n = max(len(left), len(right))
        rows = zip(left + [""] * (n - len(left)), right + [""] * (n - len(right)))
        out += ["", *(f"  {a:<{width}}{b}".rstrip() for a, b in rows)]
    return ["\n".join(out)]


def _wrapped(trial: Trial, width: int) -> list[str]:
    lines = [
        w for line in trial.text.strip().split("\n") for w in textwrap.wrap(line, width) or [""]
    ]
    return [f"reward {trial.reward:.2f}", *lines]


@experiment(
    "knowledge",
    KnowledgeConfig,
    open=people,
    describe=mix,
    columns=mix_columns,
    notes=prompts_tried,
    blocks=before_and_after,
    pictures=(plot_mix,),
)
def knowledge(lab: Lab, config: KnowledgeConfig) -> None:
    """Notes that a policy writes about a passage: do they teach more than the passage does?"""
    task, held_out = lab.task, lab.held_out

    lab.arm("no adaptation", lambda: lab.plain(held_out))
    passage_only = lambda: lab.study(held_out, task.baseline)
    lab.arm("passage only", passage_only, over="no adaptation", rival=True)
    try_prompts(lab, config)
    own = lambda: lab.study_own(held_out)
    lab.arm("own notes", own, over="passage only", series=(SEAL, CONTROL), at=0, rival=True)

    one = held_out[:1]
    three = lambda: lab.study(one * 3, lab.write_many(one, 3, 98)[0])
    lab.step("three self-edits before", three)
    history = lab.outer_loop("round", series=SEAL, over="own notes", follow=True)
    lab.step("three self-edits after", three)

    lab.reset()
    lab.reliability(history, config.reliability_contexts)
    if config.control:
        # One drawn at random from several is no better than the only one: so it samples one.
        control = dict(select="random", samples=1, series=CONTROL, over="own notes", rival=True)
        lab.outer_loop("control", **control)
        lab.reset()
    lab.arm("oracle notes", lambda: lab.study(held_out, task.oracle), over="passage only")
    in_context = lambda: lab.plain(held_out, in_context=True)
    lab.arm("passage in context", in_context, over="no adaptation")
