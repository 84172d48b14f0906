"""Documents and self-edits: which tokens carry loss, how much, and within which limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minseal.selfedit import LIMITS, Document, InvalidSelfEdit, SelfEdit, Task, check_directive

IDS = st.lists(st.integers(0, 99), max_size=9)


@given(IDS, IDS, st.sampled_from(["all", "completion"]))
def test_a_completion_comes_after_its_prompt_and_its_weights_say_who_carries_loss(
    before, after, loss
):
    document = Document.completion(before, after, loss)
    assert document.ids == (*before, *after)
    assert document.weights[len(before) :] == (1.0,) * len(after)
    assert document.weights[: len(before)] == (float(loss == "all"),) * len(before)


@given(IDS, IDS, st.sampled_from([-1.5, 0.0, 0.25, 1.0]))
def test_a_document_weighted_differs_in_its_weights_alone(before, after, factor):
    document = Document.completion(before, after)
    other = document.weighted(factor)
    assert other.ids == document.ids
    assert other.weights == tuple(factor * weight for weight in document.weights)


def test_what_was_chosen_is_no_part_of_the_training():
    document = Document.completion([1], [2])
    assert SelfEdit((document,), 0.1, chose={"lr": 0.1}) == SelfEdit((document,), 0.1)


@pytest.mark.parametrize("name, values", [("lr", [1e-6, 0.01, 0.1]), ("epochs", [1, 7, 50])])
def test_values_up_to_the_limits_are_taken(name, values):
    for value in values:
        check_directive(name, value)


@pytest.mark.parametrize(
    "name, value",
    [
        ("lr", 0),
        ("lr", -0.01),
        ("lr", 0.11),
        ("lr", 1e9),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", True),
        ("lr", "0.01"),
        ("lr", None),
        ("lr", [0.01]),
        ("epochs", 0),
        ("epochs", 51),
        ("epochs", 2.0),
        ("epochs", True),
        ("epochs", "3"),
        ("epochs", "x" * 999),
    ],
)
def test_other_values_are_refused_with_their_reason(name, value):
    low, high = LIMITS[name]
    with pytest.raises(InvalidSelfEdit, match=f"from {low:g} to {high:g}") as e:
        check_directive(name, value, called="that")
    assert str(e.value).startswith("that is ") and len(str(e.value)) < 120


class Spell(Task):
    """A task whose tokens are letters."""

    class tokenizer:
        eot = 0
        encode = staticmethod(lambda text: [ord(letter) for letter in text])

    def prompt(self, context):
        return [1, 2, len(context)]


def test_a_lesson_is_the_prompt_then_the_text_and_its_end_which_carry_loss():
    lesson = Spell().lesson("abc", "xy")
    assert lesson == Document((1, 2, 3, ord("x"), ord("y"), 0), (0.0,) * 3 + (1.0,) * 3)
    assert Spell().lessons([("abc", "xy"), ("d", "")], seed=5) == [lesson, Spell().lesson("d", "")]
