"""Several contexts as one: what is learnt in one adapter is examined together."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ..selfedit import Task
from .knowledge import Knowledge
from .passages import Passage


@dataclass(frozen=True)
class Group:
    """Passages that share an adapter."""

    id: str
    contexts: list[Passage]

    def cut(self, items: list[Any]) -> list[list[Any]]:
        """Answers or grades of the group's exam -> those of each passage; none stay none."""
        sizes = [len(passage.questions) for passage in self.contexts]
        return [items[end - n : end] for end, n in zip(accumulate(sizes), sizes)]


class Corpus(Task):
    """A group's exam is that of its passages, one after another."""

    def __init__(self, task: Knowledge) -> None:
        self.task, self.tokenizer, self.answer_tokens = task, task.tokenizer, task.answer_tokens

    def exam(self, group: Group, in_context: bool = False) -> list[list[int]]:
        """The ids of each question."""
        return [ids for passage in group.contexts for ids in self.task.exam(passage, in_context)]

    def grade(self, group: Group, answers: list[str]) -> list[float]:
        """The grades of all answers."""
        pairs = zip(group.contexts, group.cut(answers))
        return [grade for passage, mine in pairs for grade in self.task.grade(passage, mine)]
