"""Asking: one question, a chat, and what does not fit."""

import pytest

from minseal import UserError
from minseal.commands.ask import AskConfig, ChatConfig, ask, chat
from minseal.lab.agent import Agent

MODEL = AskConfig("tiny_data/knowledge")


def test_the_same_question_gets_the_same_answer_on_one_line():
    first = ask(MODEL, "What covers a parrot?")
    assert first == ask(MODEL, "What covers a parrot?") == first.strip()


@pytest.mark.parametrize("model", ["tiny_data/knowledge", "tiny_data/knowledge-small"])
def test_the_models_in_the_box_are_asked_as_pretraining_asked_them(model):
    """General knowledge, which both answer without an error in their own form of a question."""
    asked = {"Which country is Lyon in?": "France", "What covers a parrot?": "feathers"}
    assert {q: ask(AskConfig(model), q) for q in asked} == asked


def test_sampling_depends_on_the_seed_only():
    warm = [AskConfig(MODEL.model, temperature=3.0, seed=seed, max_tokens=16) for seed in (0, 0, 1)]
    a, b, c = (ask(config, "What?") for config in warm)
    assert a == b != c


def test_chat_goes_on_until_an_empty_line():
    lines, said = iter(["Hello?", "And?", ""]), []
    chat(ChatConfig(MODEL.model, max_tokens=4), read=lambda prompt: next(lines), say=said.append)
    assert len(said) == 3 and "empty line" in said[0]


def test_chat_ends_with_its_input():
    def end(prompt):
        raise EOFError

    said = []
    chat(ChatConfig(MODEL.model), read=end, say=said.append)
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


# ---- an agent ----


def talk(config, *lines):
    """What is said to these lines, each as one text."""
    left, said = iter([*lines, ""]), []
    chat(config, read=lambda prompt: next(left), say=said.append)
    return said[2:]


def test_an_agent_learns_while_it_talks_and_takes_it_back(tmp_path):
    config = ChatConfig(MODEL.model, agent=str(tmp_path / "a"))
    told, question = "Mamo Satov works as a teller.", "Where does Mamo Satov work?"
    learnt, answer, what = talk(config, "/learn " + told, question, "/what")
    assert learnt.startswith("kept") and told in learnt and f"{question} bank" in learnt
    assert answer == "bank" and what == learnt
    config = ChatConfig(agent=str(tmp_path / "a"))  # it knows its model
    again, undone, nothing, no_more = talk(config, question, "/undo", "/what", "/undo")
    assert again == "bank" and told in undone
    assert "nothing" in nothing and "no edit" in no_more


def test_learn_alone_learns_what_was_said_last(untrained, tmp_path):
    config = ChatConfig(untrained, agent=str(tmp_path / "a"), max_tokens=2)
    none, _, learnt = talk(config, "/learn", "Mamo Satov keeps a goose.", "/learn")
    assert none.startswith("error: what shall it learn?") and "keeps a goose" in learnt
    assert talk(config, "/lern x")[0].startswith("error: /lern is unknown: /learn TEXT")


def test_ctrl_c_while_it_learns_leaves_it_as_it_was(untrained, tmp_path, monkeypatch):
    def interrupted(self, *given):
        raise KeyboardInterrupt

    config = ChatConfig(untrained, agent=str(tmp_path / "a"), max_tokens=2)
    monkeypatch.setattr(Agent, "own_questions", lambda self, text="": {"Who keeps it?": "Mamo"})
    monkeypatch.setattr(Agent, "objection", interrupted)
    stopped, what, _ = talk(config, "/learn Mamo Satov keeps a goose.", "/what", "Who?")
    assert stopped == "stopped: nothing was learnt" and "nothing yet" in what


def test_an_agent_that_cannot_be_is_told(untrained, tmp_path):
    with pytest.raises(UserError, match="leave out --adapter"):
        talk(ChatConfig(untrained, agent=str(tmp_path / "a"), adapter="x"))
    with pytest.raises(UserError, match="--model names"):
        talk(ChatConfig(agent=str(tmp_path / "a")))
