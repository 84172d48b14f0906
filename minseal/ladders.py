"""The arms of each kind of run: their order, weakest first, what each is compared with, and the step that a run ends with."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ladder:
    """What a report has to know about the arms of one kind of run."""

    own: str  # the arm of the policy before any outer loop
    below: tuple  # arms before the rounds, `own` apart
    above: tuple  # arms after rounds and controls
    over: dict  # arm -> the arm that its gain is taken over; rounds and controls: see compared_with
    last: str  # the step that a run ends with
    score: str  # what the score is
    rivals: Callable  # (last round, {arm: mean}) -> arms that the last round has to beat

    def order(self, run):
        """The arms that a run has measured, weakest first; controls after the rounds."""
        rounds = range(1, run.config.get("outer", {}).get("rounds", 0) + 1)
        styles = [arm for arm in run.done if arm.startswith(f"{self.own}, ")]  # other prompts
        order = [
            *self.below,
            *styles,
            self.own,
            *(f"round {r}" for r in rounds),
            *(f"control {r}" for r in rounds),
            *self.above,
        ]
        return [arm for arm in order if arm in run.done]

    def compared_with(self, arm):
        """The arm that an arm's gain is taken over: a round's is the round before, a control's the untrained policy's self-edits."""
        name, _, r = arm.partition(" ")
        if name == "round":
            return f"round {int(r) - 1}" if r != "1" else self.own
        if name == "control":
            return self.own
        return self.over.get(arm.partition(", ")[0] if arm.startswith(f"{self.own}, ") else arm)


def _best_prompt(last, means):
    """RL is compared with the best untrained prompt, too."""
    untrained = [arm for arm in means if arm.startswith("own notes, ")]
    best = [max(untrained, key=means.get), "passage only"] if untrained else []
    return ["own notes", *best, last.replace("round", "control")]


LADDERS = {
    "knowledge": Ladder(
        "own notes",
        ("no adaptation", "passage only"),
        ("oracle notes", "passage in context"),
        {
            "passage only": "no adaptation",
            "own notes": "passage only",
            "oracle notes": "passage only",
            "passage in context": "no adaptation",
        },
        "passage in context",
        "share of the exam",
        _best_prompt,
    ),
    "fewshot": Ladder(
        "own self-edits",
        ("in context",),
        (
            "first self-edits, last weights",
            "last self-edits, first weights",
            "best constant",
            "oracle",
        ),
        {
            "own self-edits": "in context",
            "first self-edits, last weights": "own self-edits",
            "last self-edits, first weights": "own self-edits",
            "best constant": "own self-edits",
            "oracle": "in context",
        },
        "oracle",
        "share of the tasks solved",
        lambda last, means: ["own self-edits", "best constant", last.replace("round", "control")],
    ),
    "ttt": Ladder(
        "policy, adapter on",
        ("before", "adapter on", "adapter thrown away", "policy, before"),
        ("policy, adapter thrown away", "kept, asked at once", "kept, asked at the end"),
        {
            arm: "before"
            for arm in (
                "adapter on",
                "adapter thrown away",
                "policy, before",
                "policy, adapter on",
                "policy, adapter thrown away",
                "kept, asked at once",
                "kept, asked at the end",
            )
        },
        "kept, asked at the end",
        "share of the tasks solved",
        lambda last, means: [],
    ),
}


def kind_of(config):
    """A run's kind from its configuration."""
    return config.get("kind", "knowledge")
