"""Agents: what an edit leaves behind, kept, rejected or taken back; and folders that survive."""

import json
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kills import kill_everywhere

from minseal import UserError, load
from minseal.files import load_tensors
from minseal.lab import agent_folder
from minseal.lab.agent import Agent, AgentConfig, GentleConfig, fits
from minseal.lab.agent_folder import open_agent, task_for
from minseal.tasks.knowledge import Question
from minseal.tasks.people import People, toy_passages

TEXTS = ["Mamo Satov grew up in Jaipur.", "Mamo Satov keeps a goose.", "Pari Tribek owns a rabbit."]
QUICK = AgentConfig(samples=2, exam=2, replay=1, gate=False, inner=GentleConfig(epochs=1, rank=2))


def weights(agent):
    return {name: value.clone() for name, value in agent.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def live(folder, model, texts=TEXTS):
    """An agent that learnt these texts, and its weights after each."""
    agent = open_agent(folder, model, config=QUICK)
    states = [weights(agent)]
    for text in texts:
        agent.learn(text)
        states.append(weights(agent))
    return agent, states


@pytest.fixture(scope="module")
def lived(untrained, tmp_path_factory):
    """(the folder of an agent with one edit, its weights before and after it)."""
    folder = tmp_path_factory.mktemp("agents") / "a"
    agent, states = live(folder, untrained, TEXTS[:1])
    agent.lock.release()
    return folder, states


# ---- weights: to the bit ----


def test_opened_again_it_has_the_weights_of_its_edits_and_undo_takes_them_back(untrained, tmp_path):
    agent, states = live(tmp_path / "a", untrained)
    assert not same(states[0], states[1]) and not same(states[1], states[2])
    for n in range(len(TEXTS), 0, -1):
        again = open_agent(tmp_path / "a")
        assert same(weights(again), states[n]) and again.edits == agent.edits[:n]
        assert again.undo().text == TEXTS[n - 1]
        assert same(weights(again), states[n - 1])
        again.lock.release()
    assert open_agent(tmp_path / "a").undo() is None


def test_after_an_undo_the_same_text_makes_the_same_edit(untrained, tmp_path):
    agent, states = live(tmp_path / "a", untrained, TEXTS[:2])
    agent.undo()
    agent.learn(TEXTS[1])
    assert same(weights(agent), states[2])


def test_an_agent_that_another_process_made_meanwhile_is_not_overwritten(
    untrained, tmp_path, monkeypatch
):
    """While the model is loaded."""

    def slow(*args):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "agent.json").write_text("theirs")
        return load(*args)

    monkeypatch.setattr(agent_folder, "load", slow)
    with pytest.raises(UserError, match="another process"):
        open_agent(tmp_path / "a", untrained)
    assert (tmp_path / "a" / "agent.json").read_text() == "theirs"


def test_a_rejected_edit_leaves_the_weights_as_they_were_and_undo_looks_past_it(untrained):
    model, tokenizer = load(untrained)
    agent = Agent(model, task_for(tokenizer), QUICK)
    agent.learn(TEXTS[0])
    before = weights(agent)
    agent.config = replace(QUICK, gate=True)
    edit = agent.learn(TEXTS[1])  # it knows no words, so it asks nothing
    assert not edit.kept and "nothing new" in edit.why and same(weights(agent), before)
    assert agent.undo().text == TEXTS[0] and agent.edits == []
    assert same(weights(agent), agent.first.state_dict())


def test_an_edit_whose_training_fails_is_rejected(untrained):
    model, tokenizer = load(untrained)
    broken = replace(QUICK, inner=GentleConfig(lr=9e18, epochs=6, rank=2))
    agent = Agent(model, task_for(tokenizer), broken)
    edit = agent.learn(TEXTS[0])
    assert not edit.kept and "became" in edit.why and same(weights(agent), agent.first.state_dict())


@pytest.mark.parametrize("older, known, new, told", [
    ((0.9, 0.6), (1, 1), (0, 1), "older edits"),
    ((0.9, 0.9), (1, 0.7), (0, 1), "it knew"),
    ((0.9, 0.9), (1, 1), (0.5, 0.5), "no likelier"),
    ((0.9, 0.8), (1, 0.9), (0.5, 0.6), ""),
])  # fmt: skip
def test_why_an_edit_is_rejected(older, known, new, told, untrained):
    model, tokenizer = load(untrained)
    agent = Agent(model, task_for(tokenizer), QUICK, knew={})
    found = agent.objection(*zip(older, known, new))
    assert told in found and bool(told) == bool(found)


# ---- what it asks itself ----


def test_it_asks_what_the_text_says_and_learns_it(pretrained):
    model, tokenizer = pretrained
    agent, known = Agent(model, task_for(tokenizer)), toy_passages(3, 11)
    assert isinstance(agent.task, People)
    for passage in known:
        edit = agent.learn(passage.text)
        told = {question: answer for question, (answer,) in passage.questions}
        right = sum(told.get(q) == a for q, a in edit.questions.items())
        assert right >= 3 and right >= len(edit.questions) - 1
    later = [agent.certainty({q: a for q, (a,) in p.questions}) for p in known]
    assert sum(edit.kept for edit in agent.edits) >= 2 and min(sorted(later)[1:]) > 0.5


def test_what_it_learnt_does_not_answer_for_a_text_that_corrects_it(pretrained):
    model, tokenizer = pretrained
    agent = Agent(model, task_for(tokenizer), AgentConfig(gate=False))
    question = "Which country is Mamo Satov from?"
    assert agent.learn("Mamo Satov grew up in Jaipur.").questions[question] == "India"
    assert agent.own_questions("Mamo Satov grew up in Jaipur.")[question] == "India"
    agent.learn("Mamo Satov grew up in Gdansk.")
    assert agent.older()[0][question] == "Poland"
    assert agent.certainty({question: "Poland"}) > agent.certainty({question: "India"})


def test_what_it_knew_is_what_it_is_sure_of_with_no_text(pretrained):
    model, tokenizer = pretrained
    agent = Agent(model, task_for(tokenizer))
    assert agent.knew["Where does a nurse work?"] == "hospital"
    assert min(agent.likelihoods(agent.model, agent.knew.items())) >= agent.config.sure


# ---- folders ----


def work(folder):
    """For kills.py: an agent that goes on where it was."""
    agent = open_agent(folder, str(folder.parents[1] / "model"), config=QUICK)
    for text in TEXTS[len(agent.edits) :]:
        agent.learn(text)


def content(path):
    if path.suffix == ".pt":
        return {name: t.tolist() for name, t in load_tensors(path).items()}
    return {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}


@pytest.mark.slow
def test_killed_at_every_file_operation_it_goes_on_to_the_same(untrained, tmp_path):
    shutil.copytree(untrained, tmp_path / "model")
    (tmp_path / "agents").mkdir()
    assert kill_everywhere(Path(__file__), tmp_path / "agents") > 10


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(0, 14, 2))
def test_stopped_in_the_middle_of_writing_or_undoing(at, lived, tmp_path):
    """At a rename, a removal or a new folder: the weights before or after, never between."""
    folder, states = shutil.copytree(lived[0], tmp_path / "a"), lived[1]
    agent, seen, on = open_agent(folder), [], [True]

    def hook(event, args):
        if on and event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove"):
            seen.append(event)
            if len(seen) > at:
                on.clear()
                raise Killed

    sys.addaudithook(hook)
    stages = [states[1]]
    with suppress(Killed):
        agent.learn(TEXTS[1])
        stages.append(weights(agent))
        agent.undo()
        assert same(weights(agent), states[1])
        agent.undo()
    on.clear()
    agent.lock.release()
    found = open_agent(folder)
    if len(found.edits) == 2:  # written as a whole, whatever came then
        assert same(weights(found), stages[-1]) or len(stages) == 1 and len(found.states[1]) > 1
    else:
        assert same(weights(found), states[len(found.edits)])
    found.lock.release()


def test_what_is_no_agent_or_one_of_another_model_is_refused(untrained, tmp_path):
    with pytest.raises(UserError, match="--model names"):
        open_agent(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(UserError, match="holds no agent"):
        open_agent(tmp_path / "full", untrained)
    agent, _ = live(tmp_path / "a", untrained)
    agent.lock.release()
    with pytest.raises(UserError, match="its weights differ"):
        open_agent(tmp_path / "a", "tiny_data/knowledge")
    shutil.rmtree(tmp_path / "a" / "edits" / "0002")
    with pytest.raises(UserError, match="there is 0003, but no 0002"):
        open_agent(tmp_path / "a")


@pytest.mark.parametrize("name", ["agent.json", "edits/0001/edit.json", "edits/0001/adapter.pt"])
@pytest.mark.parametrize("damage", ["", "{}", '{"knew": 1}', "\0" * 50, None])
def test_a_damaged_folder_is_one_line(name, damage, lived, tmp_path):
    path = shutil.copytree(lived[0], tmp_path / "a") / name
    path.unlink() if damage is None else path.write_text(damage)
    with pytest.raises(UserError):
        open_agent(tmp_path / "a")


@pytest.mark.parametrize("question, stands", [
    ("Which country is Mamo Satov from?", True),
    ("Which country is Mano Satov from?", False),
    ("Where does Mamo work?", True),
    ("Mamo Satov is from?", True),
    ("Who met Satovs?", False),
])  # fmt: skip
def test_names_in_a_question_stand_in_the_text(question, stands):
    assert fits(Question(question, "India"), TEXTS[0]) == stands
