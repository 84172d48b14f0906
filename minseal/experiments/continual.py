"""`minseal run continual`: passages learnt one after another, for good. What is left of the first?

Every stage trains an adapter on one more passage and merges it (paper section 5). The notes are
the exam's questions with their answers, what a perfect policy would write: measured is what is
forgotten, not what is written. With --policy, that policy and the untaught one write their own.
A part of the passages says what the model knows already, as it knows a part of SQuAD's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import ModelConfig, mix_seed
from ..inner import InnerConfig
from ..lab.forgetting import WAYS, Before, Way
from ..lab.lab import Lab, experiment, restore_policy
from ..lab.run import Run
from ..open_models.load import load
from ..outer import Trial
from ..rewards import exam
from ..selfedit import Document, SelfEdit
from ..tasks.passages import Passage
from ..tasks.people import People, mixed_passages
from .continual_report import columns, conclude, describe, notes, plot_kl, plot_matrices

Write = Callable[[Passage], SelfEdit]


@dataclass(frozen=True)
class ContinualConfig(ModelConfig):
    """Passages learnt one after another: what is left of the first when the last is in?"""

    model: str = "tiny_data/knowledge"  # a folder of minseal's own, which knows the toy world
    seed: int = 0  # of sampling and of the adapters' first weights
    world_seed: int = 0  # which people the toy world holds
    orders: int = 16  # how often it is done, each time with other passages
    strangers: int = 5  # passages of an order about people whom the model has never met
    known: int = 3  # and about people whom it knows from pretraining
    policy: str = ""  # a folder of `minseal run knowledge`: own notes before and after it
    inner: InnerConfig = InnerConfig(lr=6e-3, epochs=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(seed=0, world_seed=0, orders=1, strangers=2, known=0)


def world(config: ContinualConfig, run: Run) -> Lab:
    """The model; held out: passages without an oracle, so task.oracle() makes notes of the exam."""
    policy, tokenizer = load(config.model, config.device, config.dtype)
    orders = mixed_passages(config.orders, config.strangers, config.known, config.world_seed)
    held_out = [replace(passage, oracle=()) for order in orders for passage in order]
    return Lab(policy, People(tokenizer), [], held_out, run, config.inner, seed=config.seed)


def live(
    lab: Lab, passages: list[Passage], way: Way, write: Write, before: Before, seed: int
) -> dict[str, Any]:
    """Learn passages one after another; sit all their exams before the first and after each."""
    lab.policy.load_state_dict(before.weights)
    sit = lambda: [outcome.reward for outcome in exam(lab.policy, lab.task, passages)]
    left = {"scores": [sit()], "general": [before.general_knowledge()], "learnt": []}
    earlier: list[Document] = []
    for stage, passage in enumerate(passages):
        edit = write(passage)
        way.learn(lab.policy, edit, earlier, lab.inner, before, mix_seed(seed, stage))
        earlier += edit.documents
        decode = lab.task.tokenizer.decode
        left["learnt"].append("\n".join(decode(d.ids) for d in edit.documents))
        left["scores"].append(sit())
        left["general"].append(before.general_knowledge())
    return left | {"kl": before.kl()}


@experiment(
    "continual",
    ContinualConfig,
    open=world,
    score="mean over all passages after the last edit",
    describe=describe,
    columns=columns,
    conclude=conclude,
    notes=notes,
    pictures=(plot_matrices, plot_kl),
)
def continual(lab: Lab, config: ContinualConfig) -> None:
    """Passages learnt one after another, for good: what is left of the first, and of all else?"""
    task, n, before = lab.task, config.strangers + config.known, Before(lab.policy, lab.task)

    def means(scores: list[list[float]]) -> list[Trial]:
        return [Trial(f"order {i + 1}", float(np.mean(s)), grades=s) for i, s in enumerate(scores)]

    def unedited() -> list[Trial]:
        rewards = [trial.reward for trial in lab.plain(lab.held_out)]
        return means([rewards[i : i + n] for i in range(0, len(rewards), n)])

    def measure(name: str, way: Way, write: Write, before: Before) -> None:
        lives = []
        for i in range(config.orders):
            passages, seed = lab.held_out[i * n :][:n], mix_seed(lab.seed, i)
            go = lambda: live(lab, passages, way, write, before, seed)
            lives.append(lab.step(f"{name}, order {i + 1}", go))
        lab.arm(name, lambda: means([life["scores"][-1] for life in lives]), over="no adaptation")
        left = [pair for life in lives for pair in zip(life["scores"][-1], life["learnt"])]
        to_read = lambda: [Trial(p.id, score, text) for p, (score, text) in zip(lab.held_out, left)]
        lab.step(f"{name}, self-edits", to_read)

    def own(passage: Passage) -> SelfEdit:
        (text,) = lab.write([passage])
        return task.edit(passage, task.notes(text))

    lab.arm("no adaptation", unedited)
    for name, way in WAYS.items():
        measure(name, way, task.oracle, before)
    if config.policy:  # the same writer throughout, as it is after what it learnt
        measure("own notes, untaught", Way(), own, before)
        lab.reset()
        restore_policy(lab.policy, config.policy)
        measure("own notes, taught", Way(), own, Before(lab.policy, task))
