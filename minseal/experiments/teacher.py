"""`minseal run teacher`: teacher and student are two models, and each can learn."""

from dataclasses import dataclass, replace
from functools import partial

from ..files import UserError
from ..inner import InnerConfig
from ..lab.forgetting import Before
from ..lab.lab import Lab, experiment
from ..lab.run import Run
from ..model import GPT
from ..open_models.load import load
from ..outer import MStepConfig, OuterConfig
from .passages import PassageConfig, people, prompts_tried, try_prompts
from .students import Answers, TowardsWinners, loop, nothing
from .teacher_report import OTHER, PAIRS, REPORT, TAUGHT


@dataclass(frozen=True)
class TeacherConfig(PassageConfig):
    """Two models of two sizes: who writes, who learns, and what each of them can be taught."""

    student: str = "tiny_data/knowledge-small"  # the small model; --model is the big one
    eval_contexts: int | None = 48  # held-out contexts
    other_prompts: tuple[str, ...] | None = None  # measured untrained, too; "none" or the usual
    edit_tokens: int = 128  # longest self-edit
    inner: InnerConfig = InnerConfig(lr=6e-3, epochs=3)  # half the usual work, much the same scores
    outer: OuterConfig = OuterConfig(contexts=40, samples=4, m_step=MStepConfig(batch=4))
    student_step: MStepConfig = MStepConfig(lr=1e-4, epochs=2, batch=16)  # what stays with it

    def __post_init__(self) -> None:
        super().__post_init__()
        self.outer.at_least(rounds=1)
        if self.data:
            raise UserError("--data: expected none, teacher and student know the toy world alone")


def two_models(config: TeacherConfig, run: Run) -> Lab:
    """As people(), with a student of its own, which must read the same tokens."""
    lab = people(config, run)
    lab.student, theirs = load(config.student, config.device, config.dtype)
    ours = lab.task.tokenizer
    if (ours.ranks, ours.specials, ours.pattern) != (theirs.ranks, theirs.specials, theirs.pattern):
        told = f"{config.model} and {config.student} have different tokenizers"
        raise UserError(f"{told}; expected two models that read the same tokens")
    if lab.student.config.block_size < lab.policy.config.block_size:
        told = f"{config.student} reads less than {config.model}"
        raise UserError(f"{told}: expected a student that can read what is written for it")
    return lab


@experiment("teacher", TeacherConfig, open=two_models, notes=prompts_tried, **REPORT)
def teacher(lab: Lab, config: TeacherConfig) -> None:
    """Who writes and who learns: does a teacher serve, does a student get better at learning?"""
    models: dict[str, GPT] = {"big": lab.policy, "small": lab.student}
    held_out, last = lab.held_out, lab.outer.rounds

    def pair(writer: str, learner: str) -> Lab:
        return lab.but(policy=models[writer], student=models[learner])

    for who in models:
        alone = pair(who, who)
        lab.arm(f"no adaptation, {who}", lambda: alone.plain(held_out))
        passage_only = lambda: alone.study(held_out, lab.task.baseline)
        lab.arm(f"passage only, {who}", passage_only, over=f"no adaptation, {who}")
    try_prompts(lab, config, "passage only, small")  # big writes, small learns
    for writer, learner in PAIRS:
        name, over = f"{writer} for {learner}", f"passage only, {learner}"
        own = lambda: pair(writer, learner).study_own(held_out)
        lab.arm(f"{name} 0", own, over=over, series=name, at=0)
    for writer, learner in TAUGHT:
        name, other, one = f"{writer} for {learner}", OTHER[learner], pair(writer, learner)
        one.student = None if writer == learner else one.student  # None: SEAL, it teaches itself
        made = loop(one, name, name)
        own = lambda: made.but(student=models[other]).study_own(held_out)
        lab.arm(f"{name} {last}, {other} learns", own, over=f"{writer} for {other} 0")

    # The student's own loop: the oracle's notes have more for it to learn than untaught ones.
    def examine(name: str, student: GPT, over: str) -> None:
        one = lab.but(student=student)
        oracle = lambda: one.study(held_out, lab.task.oracle)
        lab.arm(f"{name}, oracle notes", oracle, over=over)
        if name != "small":  # what the round's lessons leak about people who are held out
            plain = lambda: one.plain(held_out)
            lab.arm(f"{name}, plain", plain, over="no adaptation, small")
        lab.step(f"{name}, knows", Before(student, lab.task).general_knowledge)

    examine("small", models["small"], "passage only, small")
    answers, once = partial(Answers, config.student_step), replace(lab.outer, rounds=1)
    for name, teach, learn, outer in (
        ("student's loop", nothing, answers(in_view=False), lab.outer),
        ("both loops", None, answers(in_view=False), lab.outer),
        ("answers in view", nothing, answers(in_view=True), once),
        ("towards winners", nothing, TowardsWinners(lab.inner), once),
    ):
        one = pair("big", "small").but(outer=outer)
        made = loop(one, name, "big for small", teach, learn)
        examine(f"{name} {outer.rounds}", made.student, "small, oracle notes")
