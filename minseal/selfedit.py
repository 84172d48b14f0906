"""Self-edits: what is trained on, and what a task has to say (paper section 3.1)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Document:
    """Tokens to train on.

    weights[t] is the weight of the loss at predicting ids[t]: 0 carries none, 1 is the ordinary
    loss. The first token never carries loss: nothing predicts it.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def completion(
        cls, before: Sequence[int], after: Sequence[int], loss: str = "completion"
    ) -> "Document":
        """`before`, then `after`; loss on `all` tokens, or on the `completion` alone."""
        weights = (1.0 if loss == "all" else 0.0,) * len(before) + (1.0,) * len(after)
        return cls((*before, *after), weights)

    def weighted(self, factor: float) -> "Document":
        """The same document, its loss times `factor` (below 0: it is unlearnt)."""
        return replace(self, weights=tuple(factor * w for w in self.weights))


@dataclass(frozen=True)
class SelfEdit:
    """What the policy wrote, ready for the inner loop."""

    documents: tuple[Document, ...]
    lr: float | None = None  # None falls to the inner loop's own settings
    epochs: int | None = None
    chose: dict[str, Any] = field(default_factory=dict, compare=False)  # for the log (Trial.chose)

    def length(self) -> int:
        """Tokens in all documents."""
        return sum(len(d.ids) for d in self.documents)


class InvalidSelfEdit(ValueError):
    """The text is no self-edit; the message is the reason. It has reward 0 and stays in the log."""


LIMITS = {"lr": (1e-6, 0.1), "epochs": (1, 50)}  # no self-edit may ask for a rate of 1e9


def check_directive(name: str, value: object, called: str = "") -> None:
    """Raise InvalidSelfEdit unless `value` is within LIMITS. called: what the text calls it."""
    (low, high), kind = LIMITS[name], "a whole number" if name == "epochs" else "a number"
    # True is an int, and no number of epochs. NaN is within no limits.
    if (
        type(value) not in ((int,) if name == "epochs" else (int, float))
        or not low <= value <= high
    ):
        told = f"{called or name} is {json.dumps(value)[:40]}"
        raise InvalidSelfEdit(f"{told}; expected {kind} from {low:g} to {high:g}")


class Task:
    """What a context asks for and how it is graded. It knows text and tokens, never training.

    A context is any object with an `id`, a string of its own. An outer loop needs prompt, parse,
    exam and grade; arms may ask for baseline and oracle, `likelihood` for right_answers.
    """

    tokenizer: Tokenizer
    edit_tokens: int = 128  # longest self-edit
    answer_tokens: int = 24  # longest answer
    stop: str | None = "\n"  # an answer ends before it

    def prompt(self, context: Any) -> list[int]:
        """The ids after which the policy writes its self-edit."""
        raise NotImplementedError

    def parse(self, context: Any, text: str) -> SelfEdit:
        """What the policy wrote -> SelfEdit; raises InvalidSelfEdit with the reason."""
        raise NotImplementedError

    def baseline(self, context: Any) -> SelfEdit:
        """Training that no policy had a hand in."""
        raise NotImplementedError

    def oracle(self, context: Any) -> SelfEdit:
        """The self-edit of someone who knows."""
        raise NotImplementedError

    def exam(self, context: Any, in_context: bool = False) -> list[list[int]]:
        """The ids of each question, closed book; in_context: with the context in view."""
        raise NotImplementedError

    def grade(self, context: Any, answers: list[str]) -> list[float]:
        """The answers to the exam, in its order -> numbers in [0, 1]; their mean is the score."""
        raise NotImplementedError

    def right_answers(self, context: Any) -> list[Document]:
        """The exam with its right answers, which alone carry loss (rewards.likelihood)."""
        raise NotImplementedError

    def to_read(self, context: Any) -> dict[str, Any] | None:
        """For a reader: {"text": ..., "exam": [[question, [accepted answer, ...]], ...]}."""

    def lesson(self, context: Any, text: str) -> Document:
        """What the M-step learns from one winner: its prompt, then the text, which carries loss.

        The end of the text is learnt too, also where edit_tokens cut it off.
        """
        after = [*self.tokenizer.encode(text), self.tokenizer.eot]
        return Document.completion(self.prompt(context), after)

    def lessons(self, winners: list[tuple[Any, str]], seed: int) -> list[Document]:
        """What the M-step learns from all winners [(context, text), ...]."""
        return [self.lesson(context, text) for context, text in winners]
