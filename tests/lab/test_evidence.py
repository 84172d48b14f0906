"""Intervals, reliability and best-of-k against slow loops and against data whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minseal.lab.evidence import (
    auroc,
    best_of_k,
    interval,
    paired,
    rank_correlation,
    reliability,
    told,
)


def simulated(true, noise, shape=(1500, 5, 3), seed=0):
    """Scores of self-edits: worth (standard deviation `true`) and `noise`, contexts far apart."""
    rng, (C, E, _) = np.random.default_rng(seed), shape
    return (
        10 * rng.normal(size=(C, 1, 1))
        + true * rng.normal(size=(C, E, 1))
        + noise * rng.normal(size=shape)
    )


# ---- intervals ----


def test_interval_equals_a_slow_bootstrap():
    """Skewed values. Ends of bootstraps of 4000 and 10000 resamples: some % of the width."""
    values = np.random.default_rng(1).exponential(size=25)
    rng, means = np.random.default_rng(2), []
    for _ in range(4000):
        total = 0.0
        for _ in values:
            total += values[rng.integers(len(values))]
        means.append(total / len(values))
    means.sort()
    mean, (low, high) = interval(values)
    assert mean == pytest.approx(sum(values) / 25, rel=1e-12)
    width = means[3899] - means[100]
    assert abs(low - means[100]) < 0.05 * width and abs(high - means[3899]) < 0.05 * width


def test_interval_of_many_values_is_the_normal_one():
    """Half a width within 5 %: percentiles of 10000 resamples, and 1 / 400 for the skew left."""
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    mean, (low, high) = interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert high - mean == pytest.approx(half, rel=0.05)
    assert mean - low == pytest.approx(half, rel=0.05)


def test_the_interval_holds_the_truth_95_times_in_100():
    """400 samples of 40 exam rewards, quarters from 0 to 1; bootstraps of few are narrow."""
    rng, odds = np.random.default_rng(0), [0.3, 0.2, 0.2, 0.2, 0.1]
    truth, held = np.dot(odds, [0, 0.25, 0.5, 0.75, 1]), 0
    for i in range(400):
        _, (low, high) = interval(
            rng.choice([0, 0.25, 0.5, 0.75, 1], p=odds, size=40), seed=i, resamples=1000
        )
        held += low <= truth <= high
    assert 0.90 <= held / 400 <= 0.98


def test_the_interval_is_drawn_from_its_seed():
    values = np.random.default_rng(0).normal(size=30)
    assert interval(values, seed=1) == interval(values, seed=1) != interval(values, seed=2)


def test_the_interval_of_equal_values_is_a_point():
    assert interval([0.5] * 10) == (0.5, (0.5, 0.5)) and interval([0.25]) == (0.25, (0.25, 0.25))


def test_pairs_are_kept():
    """Contexts differ by 100, the arms by 1 with 0.2 of noise: only pairs can see that."""
    rng = np.random.default_rng(0)
    contexts = 100 * rng.normal(size=200)
    a, b = contexts + 1 + 0.2 * rng.normal(size=200), contexts
    mean, (low, high) = paired(a, b)
    assert mean == pytest.approx(np.mean(a - b), rel=1e-9)
    half = 1.96 * np.std(a - b) / math.sqrt(200)
    # Within 10 %, see the normal one above (half as many values).
    assert high - mean == pytest.approx(half, rel=0.1)
    assert mean - low == pytest.approx(half, rel=0.1)
    back, (back_low, back_high) = paired(b, a)
    assert (back, back_low, back_high) == pytest.approx((-mean, -high, -low), rel=1e-9)


# ---- reliability ----


@pytest.mark.parametrize("true, noise, runs", [(1, 1, 3), (1, 2, 3), (2, 1, 2), (0.4, 1, 5)])
def test_reliability_of_known_variances(true, noise, runs):
    """Of 1500 contexts of 5 self-edits a variance component is off by some 2 %: 0.05 is ample."""
    one, mean = reliability(simulated(true, noise, (1500, 5, runs)))
    assert one == pytest.approx(true**2 / (true**2 + noise**2), abs=0.05)
    assert mean == pytest.approx(true**2 / (true**2 + noise**2 / runs), abs=0.05)


def test_the_reliability_of_a_mean_is_its_correlation_with_a_second_mean():
    """What the number is for, without variances: two halves of the runs, ranked within contexts."""
    scores = simulated(1, 2, (3000, 5, 6))
    halves = [
        half.mean(2) - half.mean((1, 2))[:, None] for half in (scores[:, :, :3], scores[:, :, 3:])
    ]
    correlation = np.corrcoef(halves[0].ravel(), halves[1].ravel())[0, 1]
    # Either is off by 0.02.
    assert reliability(scores[:, :, :3])[1] == pytest.approx(correlation, abs=0.05)


def test_pure_noise_has_reliability_zero():
    assert reliability(simulated(0, 1)) == (pytest.approx(0, abs=0.05), pytest.approx(0, abs=0.05))


def test_no_noise_has_reliability_one():
    assert reliability(simulated(1, 0)) == (pytest.approx(1, abs=1e-9), pytest.approx(1, abs=1e-9))


def test_differences_between_contexts_count_for_nothing():
    """A hard passage has low rewards whatever is written about it: this ranks no self-edit."""
    scores = simulated(1, 1, (20, 4, 3))
    shifted = scores + np.arange(20)[:, None, None]
    assert reliability(shifted) == pytest.approx(reliability(scores), rel=1e-9)


@pytest.mark.parametrize("score", [0.5, 0.1, 0.7, 1 / 3])
@pytest.mark.parametrize("shape", [(4, 3, 2), (5, 7, 3), (16, 8, 3)], ids=str)
def test_reliability_of_equal_scores_is_unknown(score, shape):
    """Whatever the score: the mean of three times 0.1 is not 0.1, which ranks no self-edit."""
    assert all(math.isnan(x) for x in reliability(np.full(shape, score)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("shape", [(4, 1, 3), (4, 3, 1)], ids=["one self-edit", "one run"])
def test_reliability_without_anything_to_compare_is_no_number(shape):
    """One self-edit has no rank, one run shows no noise: NaN or an error, but neither 0 nor 1."""
    try:
        got = reliability(np.random.default_rng(0).normal(size=shape))
    except ValueError:
        return
    assert all(math.isnan(x) for x in got)


# ---- best of k ----


def slow_best_of_k(scores):
    """Nested lists: choose by one run, look at the others; ties count with the mean of the tied."""
    everything, seen, unseen = [], [], []
    for context in scores:
        for edit in context:
            everything += edit
        for run in range(len(context[0])):
            top = max(edit[run] for edit in context)
            tied = [edit for edit in context if edit[run] == top]
            seen.append(top)
            others = [
                sum(x for i, x in enumerate(edit) if i != run) / (len(edit) - 1) for edit in tied
            ]
            unseen.append(sum(others) / len(others))
    return {
        name: sum(xs) / len(xs)
        for name, xs in (("mean", everything), ("in sample", seen), ("held out", unseen))
    }


@given(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 4)), st.integers(0, 1000))
def test_best_of_k_equals_slow_loops(shape, seed):
    scores = np.random.default_rng(seed).integers(0, 4, shape) / 4  # quarters: many ties
    assert best_of_k(scores) == pytest.approx(slow_best_of_k(scores.tolist()), abs=1e-12)


def test_the_best_of_pure_noise_is_worth_the_mean_on_new_runs():
    """1500 contexts: standard errors up to 0.015. In sample: the largest of five normals, 1.163."""
    noise = simulated(0, 1) - simulated(0, 0)  # the same contexts, taken off again
    worth = best_of_k(noise)
    assert worth["held out"] == pytest.approx(worth["mean"], abs=0.05)
    assert worth["in sample"] == pytest.approx(worth["mean"] + 1.163, abs=0.05)


def test_without_noise_in_sample_and_held_out_agree():
    scores = simulated(1, 0)
    worth = best_of_k(scores)
    assert worth["held out"] == pytest.approx(worth["in sample"], abs=1e-9)
    assert worth["in sample"] == pytest.approx(np.mean(scores.max((1, 2))), abs=1e-9)


def test_the_gain_of_the_best_shrinks_by_the_reliability():
    """Normal scores: the held-out gain is the in-sample gain times the reliability of one run."""
    scores = simulated(1, 2) - simulated(0, 0)
    worth, (one, _) = best_of_k(scores), reliability(scores)
    gain, honest = worth["in sample"] - worth["mean"], worth["held out"] - worth["mean"]
    assert honest == pytest.approx(one * gain, abs=0.05) and honest < gain / 3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_best_of_k_needs_a_second_run():
    """With one run there is no held-out score: NaN or an error, never a number."""
    try:
        worth = best_of_k(np.random.default_rng(0).normal(size=(3, 4, 1)))
    except ValueError:
        return
    assert math.isnan(worth["held out"])


# ---- rank correlation ----


def slow_ranks(values):
    """Half the smaller and half not larger ones: equal values share the mean of their ranks."""
    return [(sum(v < w for v in values) + sum(v <= w for v in values)) / 2 for w in values]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20))
def test_rank_correlation_equals_pearsons_of_slow_ranks(pairs):
    x, y = zip(*pairs)
    got = rank_correlation(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(got)
    else:
        expected = np.corrcoef(slow_ranks(x), slow_ranks(y))[0, 1]
        assert got == pytest.approx(expected, abs=1e-12)


def test_rank_correlation_sees_order_alone():
    x = np.random.default_rng(0).normal(size=30)
    assert rank_correlation(x, np.exp(5 * x)) == pytest.approx(1)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1)


# ---- in words ----


@pytest.mark.parametrize(
    "low, high, verdict",
    [(0.05, 0.2, ": better"), (-0.2, -0.1, ": worse"), (-0.1, 0.2, ": no difference")],
)
def test_only_an_interval_apart_from_nought_is_a_difference(low, high, verdict):
    text = told(0.1, (low, high), 8)
    assert text.startswith("+0.10 (95 %") and verdict in text
    assert "better" not in told(0.1, (0.1, 0.1), 1)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=12))
def test_auroc_equals_a_loop_over_pairs(pairs):
    right = [(a > b) + (a == b) / 2 for a, better in pairs for b, worse in pairs if better > worse]
    got = auroc(*zip(*pairs))
    assert math.isnan(got) if not right else got == pytest.approx(sum(right) / len(right))


def test_auroc_is_the_area_under_the_roc_curve():
    """Threshold by threshold, trapezoids between."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 200)
    x = np.round(y + rng.normal(size=200), 1)  # with ties
    points = [(0.0, 0.0)]
    for threshold in sorted(set(x), reverse=True):
        points.append((np.mean(x[y == 0] >= threshold), np.mean(x[y == 1] >= threshold)))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(points, points[1:]))
    assert auroc(x, y) == pytest.approx(area)
    assert auroc(-x, y) == pytest.approx(1 - area)
