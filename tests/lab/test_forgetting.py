"""What is forgotten, against slow loops; ways to learn one more self-edit, by what they must do."""

import copy

import numpy as np
import pytest
import torch

from minseal import InnerConfig, SelfEdit, adapt
from minseal.inner import losses
from minseal.lab.forgetting import Before, Way
from minseal.tasks.people import People, pretraining_text, toy_passages

INNER = InnerConfig(epochs=2, rank=4)


@pytest.fixture
def world(pretrained):
    """(model, task, Before, the self-edits of two passages)"""
    model, tokenizer = pretrained
    task = People(tokenizer)
    edits = [task.oracle(passage) for passage in toy_passages(2, 0)]
    return model, task, Before(model, task, texts=4, questions=8), edits


def changed(model, before):
    """{layer: how far its weights are from before}"""
    return {name: w - before.weights[name] for name, w in model.state_dict().items()}


def test_a_model_that_learnt_nothing_forgot_nothing(world):
    model, _, before, _ = world
    assert before.kl() == 0 and before.general_knowledge() == 1


@torch.no_grad()
def test_kl_equals_a_slow_loop_over_texts_in_float64(world):
    """1e-5: probabilities of float32. One text after another, so no text sees another."""
    model, task, before, edits = world
    old = copy.deepcopy(model).double()
    with torch.enable_grad():
        Way().learn(model, edits[0], [], INNER, before, seed=0)
    new, total, n = copy.deepcopy(model).double(), 0.0, 0
    rng = np.random.default_rng(2509_04259)
    for _ in range(4):
        ids = torch.tensor([task.tokenizer.encode(pretraining_text(rng))])
        p, q = (m.head(m.hidden(ids)).log_softmax(-1)[0, :-1] for m in (old, new))
        total += sum(float(a.exp() @ (a - b)) for a, b in zip(p, q))
        n += len(p)
    assert before.kl() == pytest.approx(total / n, abs=1e-5) and total / n > 0.001


def test_what_a_broken_model_forgot_is_everything(world):
    model, _, before, _ = world
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert before.general_knowledge() == 0 and before.kl() > 1


def test_the_pull_is_the_squared_distance_of_the_weights_that_are_merged(world):
    """1e-4: sums of squares of float32. The second adapter is pulled back to before the first."""
    model, _, before, edits = world
    Way().learn(model, edits[0], [], INNER, before, seed=0)
    with adapt(model, [edits[1]], INNER) as adapters, torch.no_grad():
        rows = [[list(edits[1].documents)]]
        pull = before.pull(2.0)(model, rows) - losses(model, rows)
        adapters.merge()
    far = sum(float(d.double().pow(2).sum()) for d in changed(model, before).values())
    assert pull.shape == (1,) and pull.item() == pytest.approx(2 * far, rel=1e-4)


def test_a_stronger_pull_keeps_the_model_nearer(world):
    model, _, before, edits = world
    distances = []
    for strength in (0.0, 0.1, 10.0):
        model.load_state_dict(before.weights)
        Way(pull=strength).learn(model, edits[0], [], INNER, before, seed=0)
        distances.append(sum(float(d.pow(2).sum()) for d in changed(model, before).values()))
    assert distances[0] > 1.2 * distances[1] > 2 * distances[2]


def test_half_merged_is_half_of_the_change(world):
    """1e-6: roundings of sums of float32 weights of about 1."""
    model, _, before, edits = world
    whole = {}
    for share in (1.0, 0.5):
        model.load_state_dict(before.weights)
        Way(merge=share).learn(model, edits[0], [], INNER, before, seed=3)
        whole[share] = changed(model, before)
    for name, change in whole[1.0].items():
        assert (whole[0.5][name] - change / 2).abs().max() < 1e-6
    assert any(change.abs().max() > 1e-4 for change in whole[1.0].values())


def test_to_replay_is_to_learn_one_self_edit_of_all_documents(world):
    model, _, before, (first, second) = world
    Way(notes=True).learn(model, second, list(first.documents), INNER, before, seed=0)
    got = {name: w.clone() for name, w in model.state_dict().items()}
    model.load_state_dict(before.weights)
    both = SelfEdit((*second.documents, *first.documents))
    with adapt(model, [both], INNER, 0) as adapters:
        adapters.merge()
    assert all(torch.equal(w, got[name]) for name, w in model.state_dict().items())


def test_own_samples_are_whole_lines_by_the_model_as_it_is(world):
    model, task, before, edits = world
    samples = before.own_samples(6, seed=1)
    texts = [task.tokenizer.decode(list(d.ids)) for d in samples]
    assert len(texts) == 6 and all(t.startswith("Question:") for t in texts)
    assert sum(t.endswith("\n") for t in texts) >= 5  # but where 40 tokens hold no line
    assert [d.ids for d in before.own_samples(6, seed=1)] == [d.ids for d in samples]
    assert [d.ids for d in before.own_samples(6, seed=2)] != [d.ids for d in samples]
    Way(rate=5).learn(model, edits[0], [], InnerConfig(), before, seed=0)
    assert [d.ids for d in before.own_samples(6, seed=1)] != [d.ids for d in samples]
    assert before.own_samples(0, seed=1) == []
