"""Problem set 4, the outer loop: your answers. What to do stands in handout.md.

Everything is a number, a string, or lists of those, in and out (no arrays: end with .tolist()).
"""

import math  # noqa: F401

import numpy as np


def softmax(logits):
    """Given: the probabilities of these logits, an array (N,)."""
    powers = np.exp(np.asarray(logits, float) - np.max(logits))
    return powers / powers.sum()


# ---- part A: the pieces ----


def choose(rewards: list[float], invalid: list[bool], die: float, select: str) -> list[int]:
    """The winners among the k self-edits of one context, as indices from 0.

    rewards (k,), invalid (k,): of each self-edit. die: in [0, 1).
    select: "best", "all-best" or "random".

    choose([0.5, 1.0, 1.0], [False, False, False], 0.7, "best")      -> [2]
    choose([0.5, 1.0, 1.0], [False, False, False], 0.7, "all-best")  -> [1, 2]
    choose([0.5, 0.0, 0.0], [False, True, True], 0.7, "random")      -> [0]
    """
    raise NotImplementedError("Problem 4.1: choose")


def rest_em(
    logits: list[list[float]],
    rewards: list[list[float]],
    invalid: list[list[bool]],
    dice: list[list[list[float]]],
    ties: list[list[float]],
    lr: float,
    steps: int,
) -> list[list[list[float]]]:
    """ReST-EM on a toy policy; returns the logits after each round, (rounds, C, N).

    logits, rewards, invalid (C, N): C contexts, N options. dice (rounds, C, k), ties (rounds, C):
    numbers in [0, 1).

    One context, options 0 and 1, option 1 is better. Sampled are options 0 and 1, the winner is 1:
    rest_em([[0.0, 0.0]], [[0.0, 1.0]], [[False, False]], [[[0.2, 0.9]]], [[0.5]], 1.0, 1)
        -> [[[-0.5, 0.5]]]
    """
    raise NotImplementedError("Problem 4.2: rest_em")


def paired_interval(
    values: list[float], others: list[float], picks: list[list[int]]
) -> tuple[float, float, float]:
    """(mean, low, high) of the gain of one arm over another: the 95 % bootstrap interval.

    values, others (n,): the scores of two arms on the same n contexts. picks (resamples, n):
    indices of contexts.

    paired_interval([3.0, 5.0], [2.0, 1.0], [[0, 0], [0, 1], [1, 1]])  -> (2.5, 1.075, 3.925)
    """
    raise NotImplementedError("Problem 4.3: paired_interval")


def reliability(scores: list[list[list[float]]]) -> tuple[float, float]:
    """The reliability of the reward: (of one run, of the mean of all runs).

    scores (C, E, M): contexts, self-edits, runs.

    reliability([[[1.0, 1.0], [0.0, 0.0]]])  -> (1.0, 1.0)
    """
    raise NotImplementedError("Problem 4.4: reliability")


def best_of_k(scores: list[list[list[float]]]) -> dict[str, float]:
    """What choosing the best is worth: {"mean": ..., "in sample": ..., "held out": ...}.

    scores (C, E, M): contexts, self-edits, runs; M is at least 2.

    best_of_k([[[1.0, 0.0], [0.5, 0.5]]])  -> {"mean": 0.5, "in sample": 0.75, "held out": 0.25}
    """
    raise NotImplementedError("Problem 4.5: best_of_k")


# ---- part B: six loops, a mistake in each ----


def named() -> dict[int, str]:
    """The mistake of each loop in loops.py: {1: letter, ..., 6: letter}, letters as in handout."""
    raise NotImplementedError("Problem 4.6: named")


# Copy each loop from loops.py over its stub below, and mend it there. Their arguments:
#     logits (N,), rewards (C, N), unseen (U, N), dice (rounds, n, k), ties (rounds, n): floats
#     invalid (C, N): bools; n, steps: whole numbers; lr: a float
# They return (history (rounds, N), scores (rounds,)).


def loop_1(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    raise NotImplementedError("Problem 4.7: loop_1")


def loop_2(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    raise NotImplementedError("Problem 4.7: loop_2")


def loop_3(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    raise NotImplementedError("Problem 4.7: loop_3")


def loop_4(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    raise NotImplementedError("Problem 4.8: loop_4")


def loop_5(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    raise NotImplementedError("Problem 4.8: loop_5")


def loop_6(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    raise NotImplementedError("Problem 4.8: loop_6")


def first_three(number: int, *world):
    """Given: runs your loop 1, 2 or 3 (problem 4.7)."""
    return [loop_1, loop_2, loop_3][number - 1](*world)


def last_three(number: int, *world):
    """Given: runs your loop 4, 5 or 6 (problem 4.8)."""
    return [loop_4, loop_5, loop_6][number - 4](*world)
