"""`minseal run confidence`: rewards without an answer key; when do they teach, when not?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..inner import InnerConfig, adapt
from ..lab.lab import Lab, experiment
from ..lab.proxies import agreement, certainty, own_exam, self_certainty
from ..lora import merge_state
from ..outer import MStepConfig, OuterConfig
from ..rewards import Reward, exam
from ..selfedit import SelfEdit
from ..tasks.knowledge import Knowledge, find_question
from ..tasks.passages import Exam, Passage
from ..tasks.people import ATTRIBUTES, draw_people
from .confidence_report import blocks, calibrate, conclude, plot_curves
from .distil import ask_oneself
from .knowledge import mix, mix_columns
from .passages import PassageConfig, people, prompts_tried, try_prompts

ALIKE = ("certainty", "self-certainty", "agreement", "own exam", "answer key", "random winners")


@dataclass(frozen=True)
class ConfidenceConfig(PassageConfig):
    """The outer loop on rewards that know no answers, beside the exam that they stand for."""

    eval_contexts: int | None = 48  # held-out contexts
    other_prompts: tuple[str, ...] | None = None  # measured untrained, too; "none" or the usual
    edit_tokens: int = 128  # longest self-edit
    fewer: int = 2  # rounds of all loops but certainty and own exam, which have outer.rounds
    every: int = 5  # after so many rounds, and the last, held-out contexts are measured
    answers: int = 8  # sampled to each question, for agreement
    questions: int = 8  # that the model asks itself about a passage, for an exam of its own
    mislead: int = 32  # people, all with the same answers, teach the wrong prior; 0: no such arm
    inner: InnerConfig = InnerConfig(lr=6e-3, epochs=3)  # half the usual work, much the same scores
    outer: OuterConfig = OuterConfig(rounds=10, contexts=16, samples=4, m_step=MStepConfig(batch=4))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(fewer=0, every=1, answers=1, questions=1, mislead=0)
        self.outer.at_least(rounds=1)


def own_exams(lab: Lab, passages: Sequence[Passage], n: int) -> dict[str, Exam]:
    """For each passage's id what the model asks itself, passage in view, with its answers."""
    exams, size = {}, 32  # at once
    for i in range(0, len(passages), size):
        part = passages[i : i + size]
        for passage, lines in zip(part, ask_oneself(lab, part, n)):
            asked = [find_question(line) for line in lines]
            exams[passage.id] = tuple((q.question, (q.answer,)) for q in asked if q)
    return exams


def wrong_prior(task: Knowledge, n: int, seed: int) -> SelfEdit:
    """One answer to each question, whoever is asked about: n people, none of a passage here."""
    exam = tuple(
        (attribute.question.format(n=person.name), (next(iter(attribute.implied.values())),))
        for person in draw_people(n, np.random.default_rng(seed), strangers=False)
        for attribute in ATTRIBUTES.values()
    )
    return SelfEdit(tuple(task.right_answers(Passage("prior", "", "", exam))))


@experiment(
    "confidence",
    ConfidenceConfig,
    open=people,
    describe=mix,
    columns=mix_columns,
    conclude=conclude,
    notes=prompts_tried,
    blocks=blocks,
    pictures=(plot_curves,),
)
def confidence(lab: Lab, config: ConfidenceConfig) -> None:
    """Rewards without an answer key: do they lift the exam, and when do they not?"""
    held_out, fewer = lab.held_out, min(config.fewer, lab.outer.rounds)

    def loop(name: str, reward: Reward = exam, **declared: object) -> None:
        history = lab.outer_loop(
            name, reward=reward, **{"over": "own notes", "every": config.every, **declared}
        )
        step = lab.run.under(name, curve=name).step
        step("proxy and truth", lambda: [calibrate(tried) for tried in history])
        lab.reset()

    lab.arm("no adaptation", lambda: lab.plain(held_out))
    baseline = lambda: lab.study(held_out, lab.task.baseline)
    lab.arm("passage only", baseline, over="no adaptation")
    try_prompts(lab, config)
    own = lambda: lab.study_own(held_out)
    lab.arm("own notes", own, over="passage only", series=ALIKE, at=0, rival=True)
    used = lab.train[: lab.outer.rounds * lab.outer.contexts]
    exams = lab.step("own exams", lambda: own_exams(lab, used, config.questions))
    loop("certainty", certainty)
    loop("own exam", own_exam(exams))
    loop("self-certainty", self_certainty, rounds=fewer)
    loop("agreement", agreement(config.answers, lab.seed), rounds=fewer)
    loop("answer key", rounds=fewer)
    loop("random winners", select="random", samples=1, rounds=fewer, rival=True)
    if config.mislead and not config.data:
        # A few steps: it is sure of what is false, and still reads and can be taught.
        how = InnerConfig(lr=1e-3, epochs=1, batch=32, rank=32, alpha=64.0)

        def learn() -> dict[str, Tensor]:
            lessons = wrong_prior(lab.task, config.mislead, lab.seed)
            with adapt(lab.policy, [lessons], how, lab.seed) as adapters:
                return adapters.state()

        start = "wrong prior, own notes"
        for name, reward in ("certainty", certainty), ("answer key", exam):
            merge_state(lab.policy, lab.step("wrong prior", learn))
            if name == "certainty":
                lab.arm(start, own)
            loop(f"wrong prior, {name}", reward, rounds=fewer, over=start, series="")
