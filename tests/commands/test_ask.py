"""Asking: one question, a chat, and what does not fit."""

import pytest

from minseal import UserError
from minseal.commands.ask import AskConfig, ask, chat

MODEL = AskConfig("tiny_data/knowledge")


def test_the_same_question_gets_the_same_answer_on_one_line():
    first = ask(MODEL, "What covers a parrot?")
    assert first == ask(MODEL, "What covers a parrot?") == first.strip()


def test_sampling_depends_on_the_seed_only():
    warm = [AskConfig(MODEL.model, temperature=3.0, seed=seed, max_tokens=16) for seed in (0, 0, 1)]
    a, b, c = (ask(config, "What?") for config in warm)
    assert a == b != c


def test_chat_goes_on_until_an_empty_line():
    lines, said = iter(["Hello?", "And?", ""]), []
    chat(AskConfig(MODEL.model, max_tokens=4), read=lambda prompt: next(lines), say=said.append)
    assert len(said) == 3 and "empty line" in said[0]


def test_chat_ends_with_its_input():
    def end(prompt):
        raise EOFError

    said = []
    chat(MODEL, read=end, say=said.append)
    assert len(said) == 1


def test_a_question_that_does_not_fit_is_refused_and_a_long_answer_is_cut():
    with pytest.raises(UserError, match="reads 2048"):
        ask(MODEL, "why " * 3000)
    assert ask(AskConfig(MODEL.model, max_tokens=10**6), "What flows through Paris?")


@pytest.mark.parametrize(
    "config, told",
    [
        (dict(), "--model"),
        (dict(model="tiny_data/nothing"), "tiny_data"),
        (dict(model="tiny_data/knowledge", adapter="nowhere"), "no adapter at nowhere"),
    ],
)
def test_what_cannot_be_asked_is_told(config, told):
    with pytest.raises(UserError, match=told):
        ask(AskConfig(**config), "What?")


@pytest.mark.parametrize("bad", [dict(max_tokens=0), dict(temperature=-1), dict(seed=-1)])
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        AskConfig(**bad)
