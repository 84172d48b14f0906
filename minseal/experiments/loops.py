"""`minseal run loops`: outer loops side by side, each at its best learning rate.

Round 1 has the same trials for all of them: they differ in what the M-step makes of these.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..files import UserError
from ..inner import InnerConfig
from ..lab.lab import Lab, experiment, summarise_round
from ..outer import OuterConfig, Tried, outer_loop
from .improvers import LOOPS, careful, improve_of
from .loops_report import REPORT, what_is_written
from .passages import PassageConfig, people, try_prompts


@dataclass(frozen=True)
class LoopsConfig(PassageConfig):
    """ReST-EM beside GRPO, DPO, REINFORCE, all that beat the passage, and a control."""

    loops: tuple[str, ...] = LOOPS  # which: some of ReST-EM, beats-passage, GRPO, ...
    rates: tuple[str, ...] = ("3e-4", "1e-3", "3e-3")  # learning rates that each loop tries
    clip: float = 0.2  # GRPO's, of the ratio to the policy that wrote; 1e9: none
    sweep_rounds: int = 1  # rounds at each rate
    sweep_contexts: int = 16  # training contexts, those of round 2 first, that choose the best rate
    look_contexts: int = 8  # contexts of which four self-edits each are looked at: KL, diversity
    eval_contexts: int | None = 48  # held-out contexts; None: 96, or a third of --data
    other_prompts: tuple[str, ...] | None = None  # measured untrained, too; "none" or the usual
    outer: OuterConfig = OuterConfig(rounds=2, contexts=40, samples=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(clip=0, sweep_rounds=1, sweep_contexts=1, look_contexts=1)
        if not (self.loops and self.rates and self.outer.rounds):
            raise UserError("--loops, --rates and --rounds: expected one at least")
        if unknown := set(self.loops) - set(LOOPS):
            raise UserError(f"--loops {min(unknown)!r}; expected some of {', '.join(LOOPS)}")
        for rate in self.rates:
            try:
                InnerConfig(lr=float(rate))
            except ValueError:
                raise UserError(f"--rates {rate!r:.40}; expected some as in 3e-4,1e-3") from None


def teach(
    lab: Lab,
    config: LoopsConfig,
    name: str,
    rate: str,
    rounds: int,
    where: str,
    on_round: Callable[[int, Tried], None] = lambda r, tried: None,
) -> None:
    """One outer loop from the first policy; its steps are under `where`, what is shared is not."""
    # One drawn at random from several is one: the control samples no more.
    k = 1 if name == "random" else lab.outer.samples
    m_step = replace(lab.outer.m_step, lr=float(rate))
    outer = replace(lab.outer, rounds=rounds, samples=k, m_step=m_step)

    def step(what: str, compute: Callable[[], Any]) -> Any:
        if what.startswith("1 contexts"):  # whatever the rate
            return lab.step(what if k == lab.outer.samples else f"{name} {what}", compute)
        swept, mine = f"{name}, rate {rate}, {what}", f"{where} {what}"
        if swept in lab.run.steps and swept != mine:
            compute = lambda: lab.run.result(swept)
        return lab.step(mine, compute)

    lab.reset()
    improve = careful(improve_of(name, outer, lab.inner, config.clip))
    how = dict(improve=improve, seed=lab.seed, step=step, on_round=on_round)
    outer_loop(lab.policy, lab.task, lab.train, outer, lab.inner, **how)


@experiment("loops", LoopsConfig, open=people, **REPORT)
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
    try_prompts(lab, config)
    own = lambda: lab.study_own(held_out)
    lab.arm("own notes", own, over="passage only", series=config.loops, at=0)
    look("own notes", held_out)
    try_out("untrained")
    best = {name: max(config.rates, key=lambda rate: sweep(name, rate)) for name in config.loops}
    lab.step("rates", lambda: best)
    for name, rate in best.items():

        def examine(r: int, tried: Tried) -> None:
            run = lab.run.under(f"{name} {r}", loop=name, round=r)
            run.step("in training", lambda: summarise_round(tried))
            arm = dict(over="own notes", series=name, at=r, rival=r == lab.outer.rounds)
            lab.arm(f"{name} {r}", own, **arm)
            look(f"{name} {r}", held_out)

        teach(lab, config, name, rate, lab.outer.rounds, name, examine)
