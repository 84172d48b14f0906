"""`minseal run loops`: outer loops side by side, each at its best learning rate.

Round 1 has the same trials for all of them: they differ in what the M-step makes of these.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..files import UserError
from ..inner import InnerConfig
from ..lab.lab import Lab, experiment, summarise_round
from ..model import GPT
from ..outer import OuterConfig, Tried, outer_loop
from ..selfedit import Task
from .improvers import LOOPS, improve_of
from .loops_report import blocks, columns, conclude, describe, notes, plot_sweep, what_is_written
from .passages import PassageConfig, people


@dataclass(frozen=True)
class LoopsConfig(PassageConfig):
    """ReST-EM beside GRPO, DPO, REINFORCE, all that beat the passage, and a control."""

    rates: tuple[str, ...] = ("3e-4", "1e-3", "3e-3", "1e-2")  # learning rates that each loop tries
    sweep_rounds: int = 1  # rounds at each rate
    sweep_contexts: int = 48  # training contexts, those of round 2 first, that choose the best rate
    look_contexts: int = 24  # contexts of which four self-edits each are looked at: KL, diversity
    outer: OuterConfig = OuterConfig(contexts=48, samples=6)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(sweep_rounds=1, sweep_contexts=1, look_contexts=1)
        if not self.rates or not self.outer.rounds:
            raise UserError("--rates and --rounds: expected one at least")
        for rate in self.rates:
            try:
                InnerConfig(lr=float(rate))
            except ValueError:
                told = "expected learning rates with commas between, such as 3e-4,1e-3"
                raise UserError(f"--rates {rate!r:.40}: {told}") from None


def teach(
    lab: Lab,
    config: LoopsConfig,
    name: str,
    rate: str,
    rounds: int,
    where: str,
    on_round: Callable[[int, Tried], None] = lambda r, tried: None,
) -> None:
    """One outer loop from the first policy; `where` its steps are. The first E-step is shared.

    An M-step whose training fails leaves the policy as it was, and its reason in the log.
    """
    improve = improve_of(name, replace(config.outer.m_step, lr=float(rate)), config.inner)

    def careful(policy: GPT, task: Task, tried: Tried, seed: int) -> dict[str, Tensor | str]:
        try:
            return improve(policy, task, tried, seed)
        except UserError as e:
            return {"failed": str(e)}

    def step(what: str, compute: Callable[[], Any]) -> Any:
        swept = f"{name}, rate {rate}, {what}"
        if what.startswith("1 contexts"):
            return lab.step(what, compute)
        if swept in lab.run.steps:
            compute = lambda: lab.run.result(swept)
        return lab.step(f"{where} {what}", compute)

    lab.reset()
    outer, how = replace(lab.outer, rounds=rounds), dict(improve=careful, seed=lab.seed, step=step)
    outer_loop(lab.policy, lab.task, lab.train, outer, lab.inner, on_round=on_round, **how)


@experiment(
    "loops",
    LoopsConfig,
    open=people,
    describe=describe,
    columns=columns,
    conclude=conclude,
    notes=notes,
    blocks=blocks,
    pictures=(plot_sweep,),
)
def loops(lab: Lab, config: LoopsConfig) -> None:
    """One E-step, many M-steps: which outer loop teaches most, and is any of them unstable?"""
    first, held_out, n = copy.deepcopy(lab.policy), lab.held_out, lab.outer.contexts
    train = [*lab.train[n:], *lab.train[:n]][: config.sweep_contexts]  # never the held-out ones

    def look(name: str, contexts: list[Any]) -> None:
        some = contexts[: config.look_contexts]
        lab.step(f"{name}, looked at", lambda: what_is_written(lab, first, some))

    def try_out(name: str) -> float:
        trials = lab.step(f"{name}, tried out", lambda: lab.study_own(train))
        look(f"{name}, tried out", train)
        return float(np.mean([t.reward for t in trials]))

    def sweep(name: str, rate: str) -> float:
        teach(lab, config, name, rate, config.sweep_rounds, f"{name}, rate {rate},")
        return try_out(f"{name}, rate {rate}")

    lab.arm("no adaptation", lambda: lab.plain(held_out))
    lab.arm("passage only", lambda: lab.study(held_out, lab.task.baseline), over="no adaptation")
    own = lambda: lab.study_own(held_out)
    lab.arm("own notes", own, over="passage only", series=LOOPS, at=0)
    look("own notes", held_out)
    try_out("untrained")
    best = {name: max(config.rates, key=lambda rate: sweep(name, rate)) for name in LOOPS}
    lab.step("rates", lambda: best)
    for name, rate in best.items():

        def examine(r: int, tried: Tried) -> None:
            run = lab.run.under(f"{name} {r}", loop=name, round=r)
            run.step("in training", lambda: summarise_round(tried))
            arm = dict(over="own notes", series=name, at=r, rival=r == lab.outer.rounds)
            lab.arm(f"{name} {r}", own, **arm)
            look(f"{name} {r}", held_out)

        teach(lab, config, name, rate, lab.outer.rounds, name, examine)
