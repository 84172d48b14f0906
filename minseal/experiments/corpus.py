"""`minseal run corpus`: many passages in one adapter, and more and more notes on each."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..inner import InnerConfig
from ..lab.lab import Lab, experiment, restore_policy
from ..outer import OuterConfig, Trial
from ..selfedit import SelfEdit
from ..tasks.corpus import Corpus, Group
from ..tasks.passages import Passage
from .corpus_report import conclude, describe, notes, plot_corpus
from .passages import PassageConfig, count_tokens, people, tokens_column

SIZES = (1, 4, 16, 64)  # passages in one adapter
TOGETHER = 16  # passages in one adapter where the number of self-edits grows
COUNTS = (1, 2, 4, 8, 16)  # self-edits of a passage
WRITERS = ("own notes", "taught notes")


@dataclass(frozen=True)
class CorpusConfig(PassageConfig):
    """Many passages in one adapter, and the wall of data: more and more self-edits of each."""

    eval_contexts: int | None = 64  # held-out passages, in adapters of 1, 4, 16 and 64
    wall: int = 16  # of these, the ones that get up to 16 self-edits each
    policy: str = ""  # a folder of `minseal run knowledge` that taught it; else that is done here
    inner: InnerConfig = InnerConfig(epochs=3, batch=16)
    outer: OuterConfig = OuterConfig(rounds=2, contexts=48, samples=6)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(wall=1)


def together(lab: Lab, passages: list[Passage], edits: list[SelfEdit], n: int) -> list[Trial]:
    """Adapters of n passages each, trained on the documents of all n; a trial for each passage.

    An epoch has all documents of the group and a step --inner.batch of them: n times the passages
    get n times the steps. With one step an epoch, 64 passages would get no more steps than one.
    """
    starts = range(0, len(passages), n)
    groups = [Group(passages[i].id, passages[i : i + n]) for i in starts]
    whole = [SelfEdit(tuple(d for e in edits[i : i + n] for d in e.documents)) for i in starts]
    trials = []
    for group, trial in zip(groups, lab.but(task=Corpus(lab.task)).study(groups, whole)):
        parts = zip(group.contexts, group.cut(trial.answers), group.cut(trial.grades))
        for passage, answers, grades in parts:
            reward = float(np.mean(grades)) if trial.invalid is None else 0.0
            own = dict(context=passage.id, reward=reward, answers=answers, grades=grades)
            trials.append(replace(trial, **own, seconds=trial.seconds / len(group.contexts)))
    return [replace(trial, chose=edit.chose) for trial, edit in zip(trials, edits, strict=True)]


@experiment(
    "corpus",
    CorpusConfig,
    open=people,
    describe=describe,
    columns=tokens_column,
    conclude=conclude,
    notes=notes,
    pictures=(plot_corpus,),
)
def corpus(lab: Lab, config: CorpusConfig) -> None:
    """How much goes into one adapter, and what more notes are worth than the same again."""
    task, held_out, few = lab.task, lab.held_out, lab.held_out[: config.wall]
    if config.policy:
        restore_policy(lab.policy, config.policy)
    else:
        lab.outer_loop("policy", series="")  # no line in a plot
    wrote = {}
    for who in reversed(WRITERS):  # up to the first reset() the policy is the taught one
        one = lab.step(who, lambda: lab.write_many(held_out, 1, "one"))
        wrote[who] = one, lab.step(f"{who}, many", lambda: lab.write_many(few, COUNTS[-1], "many"))
        lab.reset()  # whoever wrote, the untaught model learns

    def noted(passage: Passage, texts: list[str]) -> SelfEdit:  # the passage stands there once
        return task.edit(passage, [note for text in texts for note in task.notes(text)])

    def repeated(passage: Passage, texts: list[str]) -> SelfEdit:  # to about as many tokens
        alone, full = task.baseline(passage), noted(passage, texts)
        n, most = (count_tokens(edit, lab.inner).chose["tokens"] for edit in (alone, full))
        return replace(alone, documents=alone.documents * max(1, round(most / n)))

    def arm(
        what: str, learnt: list[SelfEdit], texts: list[list[str]], n: int, over: str, **place: Any
    ) -> str:
        place |= {"what": what, "together": n}
        counted = [count_tokens(replace(edit, chose=place), lab.inner) for edit in learnt]
        name = f"{what} x {place['edits']}" if "edits" in place else f"{what}, {n} together"
        study = lambda: together(lab, held_out[: len(learnt)], counted, n)
        said = ["\n".join(its) or None for its in texts]
        lab.arm(name, lambda: [replace(t, text=s) for t, s in zip(study(), said)], over=over)
        return name

    lab.arm("no adaptation", lambda: lab.plain(held_out))
    nothing: list[list[str]] = [[] for _ in held_out]
    ladder = {"passage only": (list(map(task.baseline, held_out)), nothing)}
    for who in WRITERS:
        ladder[who] = list(map(noted, held_out, wrote[who][0])), wrote[who][0]
    ladder["oracle notes"] = list(map(task.oracle, held_out)), [[*p.oracle] for p in held_out]
    for n in (n for n in SIZES if n <= len(held_out)):
        over = "no adaptation"
        for what, (edits, texts) in ladder.items():
            over = arm(what, edits, texts, n, over)
    size = min(TOGETHER, len(few))
    for k in COUNTS:
        some = {who: [mine[:k] for mine in wrote[who][1]] for who in WRITERS}
        again = list(map(repeated, few, some["own notes"]))
        over = arm("passage again", again, nothing, size, "", edits=k)
        for who in WRITERS:
            edits = list(map(noted, few, some[who]))
            over = arm(who, edits, some[who], size, over, edits=k)
