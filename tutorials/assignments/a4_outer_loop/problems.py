"""Problem set 4, the outer loop: what the checks ask.

Tolerances: all is float64 and a few hundred additions long, so that rounding stays below 1e-11.
1e-7 leaves room for any order of adding up, and is far below what a mistake changes.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from a4_outer_loop import loops, reference
from checks import Call, Luck, Problem, Wrong, brief, close, near, same, tuple_of

EXACT = 1e-7


def plain(got: Any) -> Any:
    """Arrays and tensors as lists."""
    return got.tolist() if hasattr(got, "tolist") else got


def array(got: Any) -> np.ndarray | None:
    """Lists of numbers as an array; None if they are none."""
    try:
        table = np.asarray(plain(got))
        return table.astype(float) if table.dtype.kind in "bif" else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def agree(got: Any, expected: Any, what: str, cause: str = "") -> None:
    """Raise Wrong unless `got` holds the same numbers in the same nesting of lists."""
    expected, found = torch.tensor(expected, dtype=torch.float64), array(got)
    if found is None:
        told = f"expected lists of numbers of shape {tuple(expected.shape)}"
        raise Wrong(f"{what}: {told}, got {brief(got)}")
    close(torch.tensor(found), expected, EXACT, what, cause)


def agrees(got: Any, expected: Any) -> bool:
    """The same as a question."""
    found, right = array(got), array(expected)
    if found is None or right is None or found.shape != right.shape:
        return False
    return np.allclose(found, right, EXACT, EXACT)


def likely_cause(got: Any, causes: dict[str, Any], otherwise: str = "") -> str:
    """The first cause whose wrong result came, else `otherwise`."""
    return next((cause for cause, wrong in causes.items() if agrees(got, wrong)), otherwise)


# ---- 4.1 selection ----


def check_choose(call: Call, luck: Luck) -> None:
    def ask(rewards: list, invalid: list, die: float, select: str, cause: str) -> None:
        got = plain(call(rewards, invalid, die, select))
        what = f"choose({rewards}, {invalid}, {die}, {select!r})"
        if not isinstance(got, (list, tuple)):
            raise Wrong(f"{what}: expected a list of indices, got {brief(got)}")
        same(got, reference.choose(rewards, invalid, die, select), what, cause)

    def score(low: int = -8, high: int = 8) -> float:
        return luck.whole(low, high) / 8

    def die() -> float:
        return round(float(luck.rng.random()), 6)

    k = luck.whole(4, 7)
    fine = [False] * k
    distinct = (luck.rng.permutation(17)[:k] / 8).tolist()
    for select in ("best", "all-best"):
        ask(distinct, fine, die(), select, "One self-edit has the highest reward.")
        ask([0.625] * k, fine, die(), select, "All score alike: there is nothing to learn.")
    ask([0.625], [False], die(), "best", "A single self-edit: all score alike.")

    j = luck.whole(1, k - 2)
    tied = [score(0, 7) for _ in range(k)]
    tied[0] = tied[j] = tied[k - 1] = 1.0
    tied[luck.pick([i for i in range(1, k - 1) if i != j])] = 0.125
    for d in (0.0, 0.4, 0.6, 0.999999):
        cause = "Of n that tie the die takes number int(die * n), counted from 0 in their order."
        ask(tied, fine, d, "best", cause)
    for d in (0.3, 0.7):
        cause = "Of 3 that tie the die takes number int(die * 3): .3 the first, .7 the last."
        ask([1.0, 0.5, 1.0, 1.0], [False] * 4, d, "best", cause)
    ask(tied, fine, 0.999999, "all-best", "All that have the highest reward, in their order.")

    for d in (0.0, die(), 0.999999):
        ask(distinct, fine, d, "random", "Any one of the valid ones, by int(die * n).")
    ask([0.5] * k, fine, die(), "random", "The control skips no context for scoring alike.")

    bad = [i in (0, j) for i in range(k)]
    below = [0.0 if b else -1.0 - i / 8 for i, b in enumerate(bad)]
    for select in ("best", "all-best"):
        cause = "Rewards may be negative: an invalid self-edit does not win with its 0."
        ask(below, bad, die(), select, cause)
    mixed = [0.0 if b else 0.5 for b in bad]
    for select in ("best", "all-best"):
        cause = "Not alike: invalid ones score 0, the others 0.5. Among these int(die * n) picks."
        ask(mixed, bad, 0.7, select, cause)
    ask([0.0] * k, bad, die(), "best", "All k score 0, the valid ones too: all alike.")
    for d in (0.0, 0.5, 0.999999):
        cause = "Invalid ones are never drawn; the result is an index among all k self-edits."
        ask(mixed, bad, d, "random", cause)
    for select in ("best", "all-best", "random"):
        ask([0.0] * k, [True] * k, die(), select, "None is valid: no winner.")
    for _ in range(20):
        k = luck.whole(1, 8)
        bad = [luck.whole(0, 3) == 0 for _ in range(k)]
        worth = [0.0 if b else score(-2, 2) for b in bad]
        select = luck.pick(["best", "all-best", "random"])
        ask(worth, bad, die(), select, "The cases before this one agreed; this one mixes them.")


# ---- 4.2 ReST-EM on a toy policy ----


def table(luck: Luck, C: int, N: int, low: int, high: int, share: float) -> tuple[list, list]:
    """(rewards, invalid), (C, N) each: quarters from low to high; invalid options have 0."""
    invalid = luck.rng.random((C, N)) < share
    worth = luck.rng.integers(low, high + 1, (C, N)) / 4
    return np.where(invalid, 0.0, worth).tolist(), invalid.tolist()


def die_of(logits: list, option: int) -> float:
    """The die in the middle of this option's piece."""
    p = torch.tensor(logits, dtype=torch.float64).softmax(0)
    return float(p[:option].sum() + p[option] / 2)


def sure_winner(luck: Luck, logits: list, rewards: list, throws: list) -> None:
    """Let this context have one best option among those sampled: changes rewards and throws."""
    rewards[:] = (luck.rng.permutation(len(rewards)) / 4).tolist()
    throws[:2] = [die_of(logits, 0), die_of(logits, len(logits) - 1)]


def valid_alike(logits: list, rewards: list, invalid: list, throws: list) -> None:
    """Let what this context writes be invalid (0) or -1: not all alike, and no win for the 0."""
    for o in range(len(logits)):
        invalid[o], rewards[o] = o == 0, 0.0 if o == 0 else -1.0
    throws[:] = [die_of(logits, o) for o in range(len(throws))]


def tie_world(luck: Luck) -> tuple[list, list, list, list]:
    """(rewards, invalid, throws, lots) of 18 contexts, for 37 equal logits.

    In each three self-edits tie, two of one option and one of another, which are like no other
    context's; a fourth is worse. All orders, and dice on both sides of where rounding would go.
    """
    names = luck.rng.permutation(37).tolist()
    even, loser = [0.0] * 37, names.pop()
    rewards, throws, lots = [], [], []
    for order in ((0, 0, 1), (0, 1, 0), (1, 0, 0)):
        for lot in (0.05, 0.3, 0.36, 0.62, 0.7, 0.95):
            pair = names.pop(), names.pop()
            rewards.append([1.0 if o in pair else 0.0 for o in range(37)])
            written = [pair[i] for i in order]
            written.insert(luck.whole(0, 3), loser)
            throws.append([die_of(even, o) for o in written])
            lots.append(lot)
    return rewards, [[False] * 37] * 18, throws, lots


def check_rest_em(call: Call, luck: Luck) -> None:
    # (what is asked, contexts, options, rounds, k, lowest, highest quarter, invalid, steps, cause)
    cases = [
        ("one context, one round, one step", 1, 4, 1, 4, 0, 40, 0.0, 1, ""),
        ("several steps", 1, 4, 1, 4, 0, 40, 0.0, 9, "One step agreed."),
        ("several contexts, each with a winner", 4, 5, 1, 4, 0, 40, 0.0, 3, "One context agreed."),
        ("contexts that score alike", 5, 4, 1, 4, 0, 40, 0.0, 3, "They have no winner: W is less."),
        ("ties", 18, 37, 1, 4, 0, 40, 0.0, 1, "k self-edits are k, also where options are equal."),
        ("invalid options, rewards below 0", 6, 6, 1, 5, -8, -1, 0.3, 3, "See 4.1."),
        ("two rounds", 3, 4, 2, 4, 0, 40, 0.0, 3, "One round agreed: which policy writes, when?"),
        ("a large step first", 3, 4, 2, 3, 0, 40, 0.0, 1, "Which policy writes in round 1?"),
        ("all of it", 8, 6, 4, 4, -2, 2, 0.2, 5, "Each of its parts agreed."),
    ]
    for i, (what, C, N, rounds, k, low, high, share, steps, cause) in enumerate(cases):
        logits = luck.normal(C, N, dtype=torch.float64).tolist()
        rewards, invalid = table(luck, C, N, low, high, share)
        dice, ties = luck.uniform(rounds, C, k).tolist(), luck.uniform(rounds, C).tolist()
        if what == "ties":
            logits = [[0.0] * N] * C
            rewards, invalid, dice[0], ties[0] = tie_world(luck)
        elif i < 4:
            for c in range(C):
                sure_winner(luck, logits[c], rewards[c], dice[0][c])
        if what == "contexts that score alike":
            for c in luck.rng.permutation(C)[:2].tolist():
                rewards[c] = [0.625] * N
        if what.startswith("invalid"):
            c = luck.whole(0, C - 1)
            valid_alike(logits[c], rewards[c], invalid[c], dice[0][c])
        lr = luck.whole(4, 12) / 8
        if large := what == "a large step first":
            # Round 0 makes its winner sure. By the policy of before, round 1 would find a better.
            logits, lr = [[0.0] * N] * C, 90.0
            for c in range(C):
                rewards[c] = (luck.rng.permutation(N) / 4).tolist()
                best = rewards[c].index(max(rewards[c]))
                rest = [o for o in luck.rng.permutation(N).tolist() if o != best]
                dice[0][c] = [die_of(logits[c], o) for o in rest]
                dice[1][c] = [die_of(logits[c], o) for o in (*rest[1:], best)]
        data = (logits, rewards, invalid, dice, ties, lr, steps)
        expected = reference.rest_em(*data)
        got = call(*data)
        try:
            agree(got, expected, f"rest_em, {what}")
        except Wrong as wrong:
            told = "" if large else why(plain(got), expected, *data)
            raise Wrong(f"{wrong} {told or cause}".rstrip()) from None
    even, border = [[0.0] * 4], [[[0.0, 0.25, 0.5, 0.75]]]  # writes options 0, 1, 2, 3
    data = (even, [[1.0, 2.0, 3.0, 4.0]], [[False] * 4], border, [[0.0]], 1.0, 1)
    cause = "A die on the border of two pieces belongs to the upper one."
    agree(call(*data), reference.rest_em(*data), "rest_em, dice 0, .25, .5, .75, even", cause)


def why(got: Any, expected: list, *data: Any) -> str:
    """What a wrong result of rest_em looks like."""
    logits, _, invalid, dice, ties, lr, steps = data
    C, N = len(logits), len(logits[0])
    flipped = [[[1 - die for die in row] for row in throws] for throws in dice]
    shifted = torch.tensor(logits).double().log_softmax(1).tolist()

    def other(**changes: Any) -> list:
        names = ("logits", "rewards", "invalid", "dice", "ties", "lr", "steps")
        return reference.rest_em(**(dict(zip(names, data)) | changes))

    causes = {
        "Nothing was learnt.": [logits] * len(dice),
        "The logits after each round, not after the last alone.": expected[-1],
        "This is descent: winners become less likely.": other(lr=-lr),
        "The gradient has to be taken anew at each step.": other(lr=lr * steps, steps=1),
        "Of self-edits that tie the die chooses.": other(ties=[[0.0] * C] * len(dice)),
        "Invalid options win.": other(invalid=[[False] * N] * C),
        "The options are counted from the wrong end.": other(dice=flipped),
        "Each round has to go on from the one before.": [
            other(dice=[throws], ties=[lots])[0] for throws, lots in zip(dice, ties)
        ],
        "What was returned for a round has changed afterwards.": [expected[-1]] * len(dice),
        "Keep the logits as they are: you return logarithms of probabilities.": (
            other(logits=shifted)
        ),
        "The mean over the winners of all contexts: divide by their number.": other(lr=lr * C),
    }
    if cause := likely_cause(got, causes):
        return cause
    found = array(got)
    if found is not None and found.shape == np.shape(expected):
        for c, (was, now, right) in enumerate(zip(logits, got[0], expected[0])):
            if agrees(was, right) and not agrees(now, right):
                return f"Context {c} has no winner in round 0, and yet its logits change."
            if agrees(was, now) and not agrees(now, right):
                return f"Context {c} has a winner in round 0, and yet its logits stay."
    return ""


# ---- 4.3 paired bootstrap ----


def check_paired_interval(call: Call, luck: Luck) -> None:
    for case, (n, resamples) in enumerate([(1, 5), (2, 3), (12, 200), (30, 401), (7, 40)]):
        level = luck.rng.normal(0, 5, n)  # contexts differ far more than the arms do
        others = level.tolist()
        values = (level + 0.5 + luck.rng.exponential(size=n)).tolist()
        picks = luck.rng.integers(n, size=(resamples, n)).tolist()
        expected = reference.paired_interval(values, others, picks)
        got = tuple_of(plain(call(values, others, picks)), 3, "paired_interval")
        where = f"n = {n}, {resamples} resamples"
        alone = reference.paired_interval(values, [0.0] * n, picks)
        mean = float(np.mean(others))
        unpaired = reference.paired_interval(values, [mean] * n, picks)
        draws = np.mean(np.subtract(values, others)[np.array(picks)], axis=1)
        causes = {
            "The gain is values minus others.": [-expected[0], -expected[2], -expected[1]],
            "This is the interval of values alone.": alone,
            "Both arms have to be resampled by the same picks: pairs are kept.": unpaired,
            "The percentiles are 2.5 and 97.5.": [got[0], *np.percentile(draws, [5, 95])],
            "The percentiles are 2.5 and 97.5, of 100.": [
                got[0],
                *np.percentile(draws, [0.025, 0.975]),
            ],
            "The ends are percentiles of the resampled means, not of the gains.": [
                got[0],
                *np.percentile(np.subtract(values, others), [2.5, 97.5]),
            ],
            "The mean is that of the n contexts, not of the resamples.": [
                float(draws.mean()),
                *expected[1:],
            ],
        }
        usual = "A percentile between two resamples is interpolated (linear)." if case else ""
        cause = likely_cause(got, causes, usual)
        for name, one, right in zip(("mean", "low", "high"), got, expected):
            near(plain(one), right, EXACT, f"{name} ({where})", cause)


# ---- 4.4 reliability ----


def check_reliability(call: Call, luck: Luck) -> None:
    def scores(C: int, E: int, M: int, level: float, worth: float, noise: float) -> list:
        draw = luck.rng.normal
        parts = (
            level * draw(size=(C, 1, 1)),
            worth * draw(size=(C, E, 1)),
            noise * draw(size=(C, E, M)),
        )
        return sum(parts).tolist()

    def spread(C: int, E: int, M: int) -> list:
        """Runs that disagree more than self-edits do: the variance between comes out below 0."""
        table = luck.rng.normal(size=(C, E, M))
        return (table - 0.9 * table.mean(2, keepdims=True)).tolist()

    third = 1 / 3
    cases = [
        ("one context", scores(1, 4, 3, 0, 1, 1), "Check both divisors: E - 1 and M - 1."),
        ("several contexts", scores(5, 4, 3, 0, 1, 1), "Contexts are pooled, then divided once."),
        ("contexts far apart", scores(6, 3, 2, 9, 1, 1), "Compare within contexts only."),
        ("no noise", np.repeat(luck.rng.permutation(8).reshape(2, 4, 1), 3, 2).tolist(), ""),
        ("mere noise", spread(3, 4, 4), "A variance below 0 counts as 0."),
        ("all scores 1/3", [[[third] * 3] * 4] * 2, "Nothing to compare: NaN, NaN."),
        (
            "equal scores in each context, contexts differ",
            [[[0.1] * 3] * 4, [[0.7] * 3] * 4],
            "Nothing to compare within a context: NaN, NaN, whatever rounding leaves.",
        ),
        ("one self-edit", scores(3, 1, 4, 1, 1, 1), "One self-edit has no rank: NaN, NaN."),
        ("one run", scores(3, 4, 1, 1, 1, 1), "One run shows no noise: NaN, NaN."),
    ]
    for _ in range(4):
        shape = luck.whole(1, 6), luck.whole(2, 6), luck.whole(2, 5)
        cases.append(("more", scores(*shape, 3, luck.whole(0, 4) / 2, 1), "Sizes differ here."))
    for what, data, cause in cases:
        got = tuple_of(plain(call(data)), 2, "reliability")
        expected = reference.reliability(data)
        C, E, M = np.shape(data)
        flat = np.reshape(data, (1, C * E, M)).tolist()
        swapped = np.swapaxes(data, 1, 2).tolist()
        causes = {
            "Differences between contexts must not count.": reference.reliability(flat),
            "Self-edits and runs are swapped.": reference.reliability(swapped),
            "The second number is for the mean of M runs: less noise.": (expected[0],) * 2,
            "First one run, then the mean of all.": expected[::-1],
        }
        if not any(map(math.isnan, expected)):
            cause = likely_cause(got, causes, cause)
        for name, one, right in zip(("one run", "mean of runs"), got, expected):
            told = f"reliability of {name} ({what}; C, E, M = {C}, {E}, {M})"
            near(plain(one), right, EXACT, told, cause)


# ---- 4.5 best of k ----


def check_best_of_k(call: Call, luck: Luck) -> None:
    cases = [
        ("one context, no ties", luck.rng.permutation(8).reshape(1, 4, 2) / 8),
        ("several contexts, no ties", luck.rng.random((4, 3, 2))),
        ("three runs", luck.rng.random((4, 3, 3))),
        ("one self-edit", luck.rng.random((3, 1, 3))),
        ("ties", np.array([[[1, 0, 0], [1, 3, 1], [0, 4, 1], [1, 4, 0]]]) / 4),
        ("all alike", np.full((2, 3, 2), 0.25)),
    ]
    for _ in range(4):
        shape = luck.whole(1, 6), luck.whole(2, 6), luck.whole(2, 5)
        cases.append(("quarters, many ties", luck.rng.integers(0, 4, shape) / 4))
    for what, data in cases:
        got, expected = call(data.tolist()), reference.best_of_k(data)
        where = f"{what}; C, E, M = {data.shape}"
        if not isinstance(got, dict) or set(got) != set(expected):
            raise Wrong(f"expected a dict with keys {sorted(expected)}, got {brief(got)}")
        first = data - 1e-12 * np.arange(data.shape[1])[:, None]
        last = data + 1e-12 * np.arange(data.shape[1])[:, None]
        turned = reference.best_of_k(np.swapaxes(data, 1, 2)) if data.shape[1] > 1 else expected
        causes = {
            "This is the score in the run that chose.": expected["in sample"],
            "The run that chose must not count.": np.mean(_with_own_run(data)),
            "Of self-edits that tie the mean counts, not the first.": (
                reference.best_of_k(first)["held out"]
            ),
            "Of self-edits that tie the mean counts, not the last.": (
                reference.best_of_k(last)["held out"]
            ),
            "Self-edits and runs are swapped.": turned["held out"],
        }
        near(plain(got["mean"]), expected["mean"], EXACT, f"mean ({where})", "Of all scores.")
        cause = "Highest of each context in each run, then the mean over contexts and runs."
        near(plain(got["in sample"]), expected["in sample"], EXACT, f"in sample ({where})", cause)
        cause = likely_cause(got["held out"], causes, "Each run chooses once; the others count.")
        near(plain(got["held out"]), expected["held out"], EXACT, f"held out ({where})", cause)


def _with_own_run(data: np.ndarray) -> list:
    """Mean over all runs of those that each run chose."""
    best = data == data.max(1, keepdims=True)
    return [data[c, best[c, :, m]].mean() for c in range(len(data)) for m in range(data.shape[2])]


# ---- 4.6 the mistake of each loop ----
#
# A letter stands for a property that loops should have. A loop's letter is the property that it
# lacks: nobody wrote it down. Worlds here have four options, at first equally likely, unless told:
# the dice .1 .3 .6 .9 write options 0 1 2 3.

Loop = Callable[..., tuple[list, list]]
EVEN = (0.0, 0.0, 0.0, 0.0)


def play(loop: Loop, rewards: list, dice: list, **other: Any) -> tuple[np.ndarray, list]:
    """(logits after each round, scores) of a world; what is not told is as plain as can be."""
    world = {
        "logits": list(EVEN),
        "rewards": [[float(x) for x in row] for row in rewards],
        "invalid": [[False] * 4 for _ in rewards],
        "unseen": [[1.0, 0.0, 0.0, 0.0]],
        "n": len(dice[0]),
        "dice": dice,
        "ties": [[0.0] * len(throws) for throws in dice],
        "lr": 1.0,
        "steps": 1,
    }
    history, scores = loop(*(world | other).values())
    return np.array(history), scores


ALL = [0.1, 0.3, 0.6, 0.9]  # writes each option once


def invalid_never_wins(loop: Loop) -> bool:
    bad = [[True, False, False, False]]
    history, _ = play(loop, [[0, -3, -1, -2]], [[ALL]], invalid=bad)
    return history[-1].argmax() == 2


def ties_go_by_their_die(loop: Loop) -> bool:
    winners = []
    for lot in (0.1, 0.6, 0.9):
        history, _ = play(loop, [[1, 0, 1, 0]], [[[0.6, 0.6, 0.1, 0.3]]], ties=[[lot]])
        winners.append(history[-1].argmax())
    return winners == [2, 2, 0]


def sampled_from_the_present_policy(loop: Loop) -> bool:
    """Round 1 makes option 1 sure: round 2 writes nothing else, and has nothing to learn."""
    rewards, dice = [[0, 2, 3, 1]], [[[0.1, 0.3]], [ALL]]
    one, _ = play(loop, rewards, dice[:1], lr=50.0)
    two, _ = play(loop, rewards, dice, lr=50.0)
    return np.allclose(one[-1], two[-1])


def each_round_goes_on(loop: Loop) -> bool:
    one, _ = play(loop, [[0, 1, 2, 3]], [[ALL]], lr=0.1)
    two, _ = play(loop, [[0, 1, 2, 3]], [[ALL]] * 2, lr=0.1)
    return two[-1][3] > 1.5 * one[-1][3]


def winners_are_learnt_from_in_their_round_only(loop: Loop) -> bool:
    rewards = [[0, 1, 2, 3], [1, 1, 1, 1]]  # nothing to learn from the second
    one, _ = play(loop, rewards, [[ALL]])
    two, _ = play(loop, rewards, [[ALL]] * 2)
    return np.allclose(one[-1], two[-1])


def compared_within_a_context(loop: Loop) -> bool:
    history, _ = play(loop, [[9, 8, 7, 6], [0, 1, 2, 3]], [[ALL, ALL]])
    return np.allclose(history[-1], [0.25, -0.25, -0.25, 0.25])


def alike_gives_no_winner(loop: Loop) -> bool:
    history, _ = play(loop, [[1, 1, 1, 0]], [[ALL[:3]]])
    return np.allclose(history[-1], EVEN)


def rounds_take_the_next_contexts(loop: Loop) -> bool:
    first, second = [3, 2, 1, 0], [0, 1, 2, 3]
    rewards = [first, first, second, second]
    one, _ = play(loop, rewards, [[ALL, ALL]], lr=0.1)
    two, _ = play(loop, rewards, [[ALL, ALL]] * 2, lr=0.1)
    return (two[-1] - one[-1])[0] < 0 < (two[-1] - one[-1])[3]


def gradient_is_taken_anew(loop: Loop) -> bool:
    history, _ = play(loop, [[0, 1, 2, 3]], [[ALL]], steps=50)
    return history[-1][3] < 10


def the_mean_over_winners(loop: Loop) -> bool:
    once, _ = play(loop, [[0, 1, 2, 3]], [[ALL]])
    twice, _ = play(loop, [[0, 1, 2, 3]] * 2, [[ALL, ALL]])
    beside, _ = play(loop, [[0, 1, 2, 3], [1, 1, 1, 1]], [[ALL, ALL]])
    return np.allclose(once[-1], twice[-1]) and np.allclose(once[-1], beside[-1])


def scored_on_the_unseen_after_the_round(loop: Loop) -> bool:
    unseen = [[1.0, 0.5, 0.0, 2.0], [0.0, 3.0, 1.0, 0.0]]
    history, scores = play(loop, [[0, 1, 2, 3]], [[ALL]], unseen=unseen)
    p = np.exp(history[-1]) / np.exp(history[-1]).sum()
    return math.isclose(scores[-1], np.mean(unseen @ p))


def results_of_a_round_stay(loop: Loop) -> bool:
    one, _ = play(loop, [[0, 1, 2, 3]], [[ALL]])
    two, _ = play(loop, [[0, 1, 2, 3]], [[ALL]] * 2)
    return np.allclose(one[0], two[0])


PROPERTIES: dict[str, Callable[[Loop], bool]] = {
    "A": invalid_never_wins,
    "B": alike_gives_no_winner,
    "C": ties_go_by_their_die,
    "D": compared_within_a_context,
    "E": rounds_take_the_next_contexts,
    "F": sampled_from_the_present_policy,
    "G": each_round_goes_on,
    "H": winners_are_learnt_from_in_their_round_only,
    "I": the_mean_over_winners,
    "J": gradient_is_taken_anew,
    "K": scored_on_the_unseen_after_the_round,
    "L": results_of_a_round_stay,
}


def lacks(loop: Loop) -> list[str]:
    """The letters of the properties that a loop lacks."""
    return [letter for letter, holds in PROPERTIES.items() if not holds(loop)]


@lru_cache
def letters() -> dict[int, str]:
    """{number of a loop in loops.py: the one letter that it lacks and the right loop does not}."""
    assert lacks(reference.right_loop) == []
    out = {}
    for number in range(1, 7):
        (out[number],) = lacks(getattr(loops, f"loop_{number}"))
    return out


def check_named(call: Call, luck: Luck) -> None:
    got, expected = call(), letters()
    if not isinstance(got, dict) or len(got) != 6 or {str(k) for k in got} != set("123456"):
        raise Wrong(f"named: expected a dict with keys 1 to 6, got {brief(got)}")
    got = {int(str(number)): letter for number, letter in got.items()}
    for number, letter in got.items():
        if not isinstance(letter, str) or letter.strip().upper() not in PROPERTIES:
            told = f"expected a letter from A to {max(PROPERTIES)} for loop {number}"
            raise Wrong(f"named: {told}, got {brief(letter)}")
    if any(got[i].strip().upper() != letter for i, letter in expected.items()):
        cause = "Mend your loops first (4.7, 4.8): what you had to change is the mistake."
        raise Wrong(f"named: not all 6 letters are right. {cause}")


# ---- 4.7, 4.8 the mended loops ----

# (what is asked, contexts, n, rounds, k, lowest, highest quarter, invalid, steps)
WORLDS = [
    ("one context, one round, one step", 1, 1, 1, 4, 0, 40, 0.0, 1),
    ("one round, several contexts", 5, 5, 1, 4, 0, 40, 0.0, 4),
    ("one round, some contexts score alike", 6, 6, 1, 4, 0, 1, 0.0, 4),
    ("one round, invalid options", 6, 6, 1, 4, 0, 40, 0.4, 4),
    ("one round, rewards below 0", 8, 8, 1, 3, -40, -1, 0.4, 4),
    ("two rounds of one context", 1, 1, 2, 4, 0, 40, 0.0, 3),
    ("many rounds, one context in each", 3, 1, 6, 4, 0, 40, 0.0, 3),
    ("many rounds, several contexts in each", 7, 3, 5, 4, 0, 40, 0.0, 3),
    ("all of it", 7, 4, 6, 4, -3, 2, 0.25, 3),
    ("all of it", 5, 5, 6, 5, -3, 2, 0.25, 3),
]


def mended(numbers: range) -> Callable[[Call, Luck], None]:
    """The check of these loops against the right one."""

    def check(call: Call, luck: Luck) -> None:
        worlds = []
        for what, C, n, rounds, k, low, high, share, steps in WORLDS:
            N = luck.whole(5, 6)
            logits = luck.normal(N, dtype=torch.float64).tolist()
            rewards, invalid = table(luck, C, N, low, high, share)
            if "alike" in what:
                rewards[luck.whole(0, C - 1)] = [0.25] * N
            unseen, _ = table(luck, luck.whole(2, 4), N, low, high, share)
            dice, ties = luck.uniform(rounds, n, k).tolist(), luck.uniform(rounds, n).tolist()
            if what == "one round, rewards below 0":
                c = luck.whole(0, n - 1)
                valid_alike(logits, rewards[c], invalid[c], dice[0][c])
            lr = luck.whole(4, 12) / 8
            data = (logits, rewards, invalid, unseen, n, dice, ties, lr, steps)
            worlds.append((what, data, reference.right_loop(*data)))
        tied, bad, throws, lots = tie_world(luck)
        data = ([0.0] * 37, tied, bad, tied[:2], 18, [throws], [lots], 1.0, 1)
        worlds.insert(3, ("one round, ties", data, reference.right_loop(*data)))
        for number in numbers:
            for i, (what, data, (history, scores)) in enumerate(worlds):
                name = f"loop_{number}, {what}"
                agreed = f"{i} of {len(worlds)} worlds agreed before it."
                got = tuple_of(call(number, *data), 2, name)
                agree(got[0], history, f"{name}: logits after each round", agreed)
                agree(got[1], scores, f"{name}: scores", f"The logits agree. {agreed}")

    return check


# What numpy does not need: the gradient is to be written by hand.
READY = ("autograd", "backward", "requires_grad", "optim", "cross_entropy", "log_softmax")
PROBLEMS = [
    Problem("4.1", "selection", "choose", 2, 0.1, check_choose),
    Problem("4.2", "ReST-EM on a toy policy", "rest_em", 4, 0.2, check_rest_em, READY),
    Problem(
        "4.3", "the paired bootstrap interval", "paired_interval", 2, 0.2, check_paired_interval
    ),
    Problem("4.4", "reliability of the reward", "reliability", 2, 0.1, check_reliability),
    Problem("4.5", "held-out best of k", "best_of_k", 2, 0.1, check_best_of_k),
    Problem("4.6", "find the mistakes", "named", 4, 0.1, check_named),
    Problem("4.7", "mend loops 1 to 3", "first_three", 2, 0.2, mended(range(1, 4)), READY),
    Problem("4.8", "mend loops 4 to 6", "last_three", 2, 0.2, mended(range(4, 7)), READY),
]
