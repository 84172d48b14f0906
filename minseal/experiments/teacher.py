"""`minseal run teacher`: teacher and student are two models; is that better than teaching oneself?"""

import copy
from dataclasses import dataclass, replace

from ..files import UserError
from ..inner import InnerConfig
from ..lab.lab import Lab, experiment, summarise_round
from ..lab.run import Run
from ..lora import merge_state
from ..model import GPT
from ..open_models.load import load
from ..outer import Improve, MStepConfig, OuterConfig, Tried, outer_loop
from .passages import PassageConfig, people

PAIRS = ("big", "small"), ("big", "big"), ("small", "small"), ("small", "big")  # writer, learner


@dataclass(frozen=True)
class TeacherConfig(PassageConfig):
    """Two models of two sizes: who writes, who learns, and what each of them can be taught."""

    student: str = "tiny_data/knowledge-small"  # the small model; --model is the big one
    eval_contexts: int | None = 48  # held-out contexts
    inner: InnerConfig = InnerConfig(lr=6e-3, epochs=3)  # half the usual work, much the same scores
    outer: OuterConfig = OuterConfig(contexts=48, samples=4, m_step=MStepConfig(batch=4))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.outer.at_least(rounds=1)


def two_models(config: TeacherConfig, run: Run) -> Lab:
    """As people(), with a student of its own, which must read the same tokens."""
    lab = people(config, run)
    lab.student, theirs = load(config.student, config.device, config.dtype)
    ours = lab.task.tokenizer
    if (ours.ranks, ours.specials, ours.pattern) != (theirs.ranks, theirs.specials, theirs.pattern):
        told = f"{config.model} and {config.student} have different tokenizers"
        raise UserError(f"{told}: expected two models that read the same tokens")
    return lab


def nothing(*args: object) -> dict:
    """An Improve that changes nothing."""
    return {}


def loop(
    lab: Lab, name: str, teach: Improve | None = None, learn: Improve = nothing, **declared: object
) -> Lab:
    """The outer loop of a teacher and a student, on copies; returns the lab with those it made.

    teach: what the policy learns from a round's trials (None: ReST-EM); learn: what the student
    does, beyond the adapters that come and go. A policy that teaches itself learns with `teach`.
    """
    lab = replace(lab, policy=copy.deepcopy(lab.policy), student=copy.deepcopy(lab.student))
    run = lab.run.under(name, loop=name)

    def after(r: int, tried: Tried) -> None:
        here = lab.run.under(f"{name} {r}", loop=name, round=r)
        here.step("in training", lambda: summarise_round(tried))
        if lab.student:
            state = run.step(f"{r} student", lambda: learn(lab.student, lab.task, tried, lab.seed))
            merge_state(lab.student, state)
        lab.arm(f"{name} {r}", lambda: lab.study_own(lab.held_out), at=r, **declared)

    how = dict(improve=teach, seed=lab.seed, step=run.step, on_round=after, student=lab.student)
    outer_loop(lab.policy, lab.task, lab.train, lab.outer, lab.inner, **how)
    return lab


@experiment("teacher", TeacherConfig, open=two_models)
def teacher(lab: Lab, config: TeacherConfig) -> None:
    """Who writes and who learns, before and after either of them is taught."""
    models: dict[str, GPT] = {"big": lab.policy, "small": lab.student}
    held_out = lab.held_out

    def pair(writer: str, learner: str) -> Lab:
        student = None if writer == learner else models[learner]
        return replace(lab, policy=models[writer], student=student)

    for who in models:
        alone = pair(who, who)
        lab.arm(f"no adaptation, {who}", lambda: alone.plain(held_out))
        passage_only = lambda: alone.study(held_out, lab.task.baseline)
        lab.arm(f"passage only, {who}", passage_only, over=f"no adaptation, {who}")
    for writer, learner in PAIRS:
        own = lambda: pair(writer, learner).study_own(held_out)
        name, over = f"{writer} for {learner}", f"passage only, {learner}"
        lab.arm(f"{name} 0", own, over=over, series=name, at=0)
    for writer, learner in PAIRS:
        name, other = f"{writer} for {learner}", {"big": "small", "small": "big"}[learner]
        made = loop(pair(writer, learner), name, over=f"{name} 0", series=name)
        there = replace(made, student=models[other])
        own, last = lambda: there.study_own(held_out), f"{name} {lab.outer.rounds}"
        lab.arm(f"{last}, {other} learns", own, over=f"{writer} for {other} 0")
