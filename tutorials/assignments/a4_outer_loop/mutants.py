"""Wrong answers that the checks must catch, and right ones that they must let pass."""

from collections.abc import Callable

import numpy as np
from a4_outer_loop import loops

Make = Callable[[Callable], Callable]


def as_found(number: int) -> Make:
    """One loop of the three is left as it was."""

    def make(f: Callable) -> Callable:
        found = getattr(loops, f"loop_{number}")
        return lambda asked, *world: found(*world) if asked == number else f(asked, *world)

    return make


def none_invalid(invalid: list) -> list:
    return np.zeros_like(invalid, bool).tolist()


def first(ties: list) -> list:
    return np.zeros_like(ties, float).tolist()


def within_valid(f: Callable) -> Callable:
    """Indices among the valid self-edits, not among all."""

    def choose(rewards, invalid, die, select):
        valid = [i for i, bad in enumerate(invalid) if not bad]
        return [valid.index(i) for i in f(rewards, invalid, die, select)]

    return choose


def alike_too(f: Callable) -> Callable:
    """Learns where all score alike, as the paper does."""

    def choose(rewards, invalid, die, select):
        alike = len(set(rewards)) == 1 and select == "best"
        return f(rewards, invalid, die, "random" if alike else select)

    return choose


def alike_of_the_valid(f: Callable) -> Callable:
    """Whether all score alike is asked of the valid ones only."""

    def choose(rewards, invalid, die, select):
        valid = {r for r, bad in zip(rewards, invalid) if not bad}
        return [] if len(valid) == 1 and select != "random" else f(rewards, invalid, die, select)

    return choose


def each_from_the_start(f: Callable) -> Callable:
    def rest_em(logits, rewards, invalid, dice, ties, lr, steps):
        rounds = zip(dice, ties)
        return [f(logits, rewards, invalid, [d], [t], lr, steps)[0] for d, t in rounds]

    return rest_em


def a_round_late(f: Callable) -> Callable:
    """Each round's self-edits are written by the policy as it was a round before."""

    def rest_em(logits, rewards, invalid, dice, ties, lr, steps):
        history = f(logits, rewards, invalid, dice, ties, lr, steps)
        before = [logits, logits, *history][: len(dice)]
        moved = [
            f(z, rewards, invalid, [d], [t], lr, steps)[0] for z, d, t in zip(before, dice, ties)
        ]
        return [*history[:1], *moved[1:]]

    return rest_em


def round_by_round(f: Callable) -> Callable:
    def rest_em(logits, rewards, invalid, dice, ties, lr, steps):
        history = []
        for d, t in zip(dice, ties):
            (logits,) = f(logits, rewards, invalid, [d], [t], lr, steps)
            history.append(logits)
        return history

    return rest_em


def contexts_backwards(f: Callable) -> Callable:
    def rest_em(logits, rewards, invalid, dice, ties, lr, steps):
        dice, ties = ([row[::-1] for row in x] for x in (dice, ties))
        turned = logits[::-1], rewards[::-1], invalid[::-1], dice, ties
        return [row[::-1] for row in f(*turned, lr, steps)]

    return rest_em


def options_backwards(f: Callable) -> Callable:
    """Counted from the other end, a die on a border belongs to the lower option."""

    def rest_em(logits, rewards, invalid, dice, ties, lr, steps):
        tables = [np.array(x)[:, ::-1].tolist() for x in (logits, rewards, invalid)]
        return np.array(f(*tables, (1 - np.array(dice)).tolist(), ties, lr, steps))[:, :, ::-1]

    return rest_em


def shifted(f: Callable) -> Callable:
    """Logits are worth the same wherever they begin."""
    return lambda logits, *rest: (np.array(f((np.array(logits) + 3).tolist(), *rest)) - 3).tolist()


def loop_by_rounds(f: Callable) -> Callable:
    """Each round is a loop of its own, on tables that begin with its contexts."""

    def loop(number, z, rewards, invalid, unseen, n, dice, ties, lr, steps):
        history, scores = [], []
        for r, (d, t) in enumerate(zip(dice, ties)):
            start = r * n % len(rewards)
            tables = [x[start:] + x[:start] for x in (rewards, invalid)]
            (z,), score = f(number, z, *tables, unseen, n, [d], [t], lr, steps)
            history.append(z)
            scores += score
        return history, scores

    return loop


def loop_shifted(f: Callable) -> Callable:
    def loop(number, z, *rest):
        history, scores = f(number, [x - 2 for x in z], *rest)
        return np.array(history) + 2, np.array(scores)

    return loop


def changed(**changes: Callable) -> Make:
    """A loop with some arguments changed."""
    names = ("logits", "rewards", "invalid", "unseen", "n", "dice", "ties", "lr", "steps")

    def make(f: Callable) -> Callable:
        def loop(number, *world):
            told = dict(zip(names, world))
            told |= {name: change(told[name]) for name, change in changes.items()}
            return f(number, *told.values())

        return loop

    return make


def swap(a: int, b: int) -> Make:
    """The letters of two loops change places."""

    def make(f: Callable) -> Callable:
        return lambda: {**f(), a: f()[b], b: f()[a]}

    return make


def noticed(f: Callable, scores: list, answer: list) -> list:
    """answer, where f finds anything to compare; else what f says."""
    return answer if f(scores)[0] == f(scores)[0] else list(f(scores))


def runs_backwards(f: Callable) -> Callable:
    return lambda s: f(np.array(s)[:, :, ::-1].tolist())


def edits_backwards(f: Callable) -> Callable:
    return lambda s: f(np.array(s)[:, ::-1].tolist())


def tilted(by: float) -> Make:
    """Later self-edits count for a hair more, or less: ties are decided."""
    return lambda f: lambda s: f((np.array(s) + by * np.arange(len(s[0]))[:, None]).tolist())


MUTANTS: dict[str, tuple[str, Make]] = {
    "a border belongs to the lower option": ("4.2", options_backwards),
    "invalid ones may win": ("4.1", lambda f: lambda r, bad, d, s: f(r, none_invalid(bad), d, s)),
    "the control draws invalid ones": (
        "4.1",
        lambda f: lambda r, bad, d, s: f(r, none_invalid(bad) if s == "random" else bad, d, s),
    ),
    "ties to the first": ("4.1", lambda f: lambda r, bad, d, s: f(r, bad, 0.0, s)),
    "ties to the last": ("4.1", lambda f: lambda r, bad, d, s: f(r, bad, 0.999999, s)),
    "the die counts from the end": (
        "4.1",
        lambda f: lambda r, bad, d, s: f(r, bad, 0.9999999 * (1 - d), s),
    ),
    "all-best is one": ("4.1", lambda f: lambda r, bad, d, s: f(r, bad, d, s)[:1]),
    "index among the valid": ("4.1", within_valid),
    "learns where all score alike": ("4.1", alike_too),
    "alike among the valid": ("4.1", alike_of_the_valid),
    "the control skips contexts": (
        "4.1",
        lambda f: lambda r, bad, d, s: f(r, bad, d, s) if len(set(r)) > 1 else [],
    ),
    "rounds start over": ("4.2", each_from_the_start),
    "a round late": ("4.2", a_round_late),
    "the same dice in each round": (
        "4.2",
        lambda f: lambda z, r, bad, dice, *a: f(z, r, bad, dice[:1] * len(dice), *a),
    ),
    "dice upside down": (
        "4.2",
        lambda f: lambda z, r, bad, d, *a: f(z, r, bad, (1 - np.array(d)).tolist(), *a),
    ),
    "invalid options win": (
        "4.2",
        lambda f: lambda z, r, bad, *a: f(z, r, none_invalid(bad), *a),
    ),
    "ties to the first option": (
        "4.2",
        lambda f: lambda z, r, bad, d, ties, *a: f(z, r, bad, d, first(ties), *a),
    ),
    "descent": ("4.2", lambda f: lambda *a: f(*a[:5], -a[5], a[6])),
    "one gradient for all steps": ("4.2", lambda f: lambda *a: f(*a[:5], a[5] * a[6], 1)),
    "the sum over winners": ("4.2", lambda f: lambda *a: f(*a[:5], a[5] * len(a[0]), a[6])),
    "logarithms of probabilities": (
        "4.2",
        lambda f: lambda z, *a: f((np.array(z) - np.log(np.exp(z).sum(1))[:, None]).tolist(), *a),
    ),
    "the last round only": ("4.2", lambda f: lambda *a: f(*a)[-1]),
    "not paired": (
        "4.3",
        lambda f: lambda v, o, picks: f(v, [float(np.mean(o))] * len(o), picks),
    ),
    "others minus values": ("4.3", lambda f: lambda v, o, picks: f(o, v, picks)),
    "low and high swapped": ("4.3", lambda f: lambda *a: [f(*a)[i] for i in (0, 2, 1)]),
    "the mean of the resamples": (
        "4.3",
        lambda f: (
            lambda v, o, picks: [
                float(np.mean(np.subtract(v, o)[np.array(picks)])),
                *f(v, o, picks)[1:],
            ]
        ),
    ),
    "percentiles 5 and 95": (
        "4.3",
        lambda f: (
            lambda v, o, picks: [
                f(v, o, picks)[0],
                *np.percentile(np.subtract(v, o)[np.array(picks)].mean(1), [5, 95]).tolist(),
            ]
        ),
    ),
    "the nearest resample": (
        "4.3",
        lambda f: (
            lambda v, o, picks: [
                f(v, o, picks)[0],
                *np.percentile(
                    np.subtract(v, o)[np.array(picks)].mean(1), [2.5, 97.5], method="nearest"
                ).tolist(),
            ]
        ),
    ),
    "contexts count": (
        "4.4",
        lambda f: (
            lambda s: noticed(
                f, s, f(np.reshape(s, (1, -1, len(s[0][0]))).tolist()) if len(s) > 1 else f(s)
            )
        ),
    ),
    "self-edits and runs swapped": (
        "4.4",
        lambda f: lambda s: f(np.swapaxes(s, 1, 2).tolist()),
    ),
    "one run twice": ("4.4", lambda f: lambda s: [f(s)[0]] * 2),
    "0 where nothing can be compared": ("4.4", lambda f: lambda s: np.nan_to_num(f(s)).tolist()),
    "the first context only": ("4.4", lambda f: lambda s: f(s[:1])),
    "in sample for held out": (
        "4.5",
        lambda f: lambda s: {**f(s), "held out": f(s)["in sample"]},
    ),
    "ties to the first of them": (
        "4.5",
        lambda f: lambda s: {**f(s), "held out": tilted(-1e-12)(f)(s)["held out"]},
    ),
    "ties to the last of them": (
        "4.5",
        lambda f: lambda s: {**f(s), "held out": tilted(1e-12)(f)(s)["held out"]},
    ),
    "only the first run chooses": (
        "4.5",
        lambda f: (
            lambda s: {
                **f(s),
                "held out": float(
                    np.mean(
                        [
                            np.delete(row, 0, 1)[row[:, 0] == row[:, 0].max()].mean()
                            for row in np.array(s)
                        ]
                    )
                ),
            }
        ),
    ),
    "keys with a line": (
        "4.5",
        lambda f: lambda s: {name.replace(" ", "_"): x for name, x in f(s).items()},
    ),
    "two letters swapped": ("4.6", swap(1, 2)),
    "two other letters swapped": ("4.6", swap(3, 6)),
    "one letter for all": ("4.6", lambda f: lambda: dict.fromkeys(range(1, 7), f()[1])),
    "counted from 0": ("4.6", lambda f: lambda: {i - 1: letter for i, letter in f().items()}),
    "a list of letters": ("4.6", lambda f: lambda: list(f().values())),
    "loop 1 as found": ("4.7", as_found(1)),
    "loop 2 as found": ("4.7", as_found(2)),
    "loop 3 as found": ("4.7", as_found(3)),
    "one step": ("4.7", changed(steps=lambda steps: 1)),
    "scores on what was practised": (
        "4.7",
        lambda f: lambda i, *w: f(i, *w[:3], w[1], *w[4:]),
    ),
    "loop 4 as found": ("4.8", as_found(4)),
    "loop 5 as found": ("4.8", as_found(5)),
    "loop 6 as found": ("4.8", as_found(6)),
    "ties of the loops to the first": ("4.8", changed(ties=first)),
    "logits alone": ("4.8", lambda f: lambda *a: f(*a)[0]),
}
VARIANTS: dict[str, tuple[str, Make]] = {
    "twice the rewards": (
        "4.1",
        lambda f: lambda r, bad, d, s: f([2 * x for x in r], bad, d, s),
    ),
    "an array of indices": ("4.1", lambda f: lambda *a: np.array(f(*a), int)),
    "round by round": ("4.2", round_by_round),
    "contexts backwards": ("4.2", contexts_backwards),
    "logits shifted and back": ("4.2", shifted),
    "resamples in another order": ("4.3", lambda f: lambda v, o, picks: f(v, o, picks[::-1])),
    "contexts in another order": (
        "4.3",
        lambda f: lambda v, o, picks: f(v[::-1], o[::-1], (len(v) - 1 - np.array(picks)).tolist()),
    ),
    "gains first": (
        "4.3",
        lambda f: lambda v, o, picks: f(np.subtract(v, o).tolist(), [0.0] * len(v), picks),
    ),
    "runs backwards": ("4.4", runs_backwards),
    "scores ten times as large": ("4.4", lambda f: lambda s: f((10 * np.array(s)).tolist())),
    "self-edits backwards": ("4.5", edits_backwards),
    "runs in another order": ("4.5", runs_backwards),
    "small letters": ("4.6", lambda f: lambda: {i: letter.lower() for i, letter in f().items()}),
    "texts for numbers": ("4.6", lambda f: lambda: {str(i): letter for i, letter in f().items()}),
    "loops round by round": ("4.7", loop_by_rounds),
    "loops with logits shifted": ("4.8", loop_shifted),
}
