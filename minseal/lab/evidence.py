"""What a number is worth: intervals, reliability of the reward, held-out best-of-k. numpy only."""

import numpy as np
from numpy.typing import ArrayLike


def interval(
    values: ArrayLike, seed: int = 0, resamples: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """(mean, (low, high)) of a value per context: the 95 % bootstrap interval over contexts."""
    values = np.asarray(values, float)
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(values.mean()), (float(low), float(high))


def paired(
    values: ArrayLike, others: ArrayLike, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """The same for the difference of two arms: contexts are resampled, pairs kept."""
    return interval(np.asarray(values, float) - np.asarray(others, float), seed)


def told(gain: float, interval: tuple[float, float]) -> str:
    """'+0.12 (95 % +0.05 to +0.20): better', what an interval that holds 0 does not say."""
    low, high = interval
    verdict = (
        "better" if low > 0 else "worse" if high < 0 else "no difference that this run could tell"
    )
    return f"{gain:+.2f} (95 % {low:+.2f} to {high:+.2f}): {verdict}"


def reliability(scores: ArrayLike) -> tuple[float, float]:
    """How far a reward ranks the self-edits of one context: (of one run, of the mean of all runs).

    scores (contexts, self-edits, runs): the rewards in inner loops that differ by their seed.
    One-way variance components within contexts: the variance between self-edits as a share of all.
    NaN if there is nothing to compare: one self-edit, one run, or equal scores in every context.
    """
    scores = np.asarray(scores, float)
    C, E, runs = scores.shape
    if E < 2 or runs < 2 or (scores == scores[:, :1, :1]).all():
        return float("nan"), float("nan")
    of_edit = scores.mean(2)  # (C, E)
    between = runs * ((of_edit - of_edit.mean(1, keepdims=True)) ** 2).sum() / (C * (E - 1))
    noise = ((scores - of_edit[:, :, None]) ** 2).sum() / (C * E * (runs - 1))
    true = max(0.0, (between - noise) / runs)
    return float(true / (true + noise)), float(true / (true + noise / runs))


def best_of_k(scores: ArrayLike) -> dict[str, float]:
    """What choosing the best of a context's self-edits is worth: {'mean', 'in sample', 'held out'}.

    scores (contexts, self-edits, runs). In sample: the chosen one's score in the run that chose it,
    which flatters. Held out: its mean score in the other runs. Ties count with their mean.
    """
    scores = np.asarray(scores, float)
    in_sample, held_out = [], []
    for run in range(scores.shape[2]):
        others = np.delete(scores, run, axis=2).mean(2)  # (C, E)
        for here, elsewhere in zip(scores[:, :, run], others):
            best = here == here.max()
            in_sample.append(here.max())
            held_out.append(elsewhere[best].mean())
    return {
        "mean": float(scores.mean()),
        "in sample": float(np.mean(in_sample)),
        "held out": float(np.mean(held_out)),
    }


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs; NaN if all are."""
    ranks = []
    for values in (x, y):
        _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[where])
    if min(np.ptp(r) for r in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
