"""Pretraining: a few steps make a checkpoint that loads, the same for a seed, and the loss falls; the shipped one can read."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minseal import UserError, load, pretrain
from minseal.pretrain import PretrainConfig, pretrain_knowledge
from minseal.tasks import world

SHIPPED = Path(__file__).parent.parent / "tiny_data" / "knowledge"


@pytest.fixture
def quick(monkeypatch):
    """Measure on few people: the measured numbers of an untrained model are nought anyway."""
    measure = pretrain.measure
    monkeypatch.setattr(
        pretrain, "measure", lambda model, tokenizer: measure(model, tokenizer, n=2)
    )


def make(out, **settings):
    said = []
    config = PretrainConfig(
        **{"tokens": 6000, "batch": 4, "row_tokens": 128, "lr": 0.02, "out": str(out), **settings}
    )
    return pretrain_knowledge(config, said.append), said


@torch.no_grad()
def slow_loss(model, tokenizer, texts):
    """Mean over tokens, one document after another, nothing packed."""
    total, n = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text + "\n") + [tokenizer.eot]])
        total += F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="sum").item()
        n += ids.shape[1] - 1
    return total / n


def test_a_few_steps_make_a_checkpoint_that_loads_and_has_learnt(quick, tmp_path):
    measured, said = make(tmp_path / "a")
    model, tokenizer = load(tmp_path / "a")
    rng = np.random.default_rng(5)
    # An untrained model is at ln V = 6.2 (it cannot tell tokens apart); a dozen steps are enough to learn which are frequent.
    assert (
        slow_loss(model, tokenizer, [world.document(rng) for _ in range(20)])
        < math.log(tokenizer.vocab_size) - 0.5
    )
    about = json.loads((tmp_path / "a" / "config.json").read_text())["about"]
    assert (
        about.items() >= measured.items()
        and "--seed 0" in about["command"]
        and "--tokens 6000" in about["command"]
    )
    assert all(0 <= v <= 1 for v in measured.values()) and "reading" in measured
    assert any("reading" in line for line in said) and any("minutes" in line for line in said)


def test_same_seed_same_model_other_seed_another(quick, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make(tmp_path / name, seed=seed, tokens=1000)
    a, b, c = (load(tmp_path / name) for name in "abc")
    assert a[1].ranks == b[1].ranks
    states = [m.state_dict() for m, _ in (a, b, c)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["wte.weight"], states[2]["wte.weight"])


def test_an_unwritable_place_is_told_before_the_work(quick, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")

    def late(*args):
        raise AssertionError("it trained first")

    monkeypatch.setattr(pretrain, "losses", late)
    with pytest.raises(UserError, match="file") as e:
        make(tmp_path / "file" / "below")
    assert len(str(e.value).splitlines()) == 1 and (tmp_path / "file").read_text() == "mine"


def test_the_shipped_model_measures_as_its_config_says(pretrained):
    about = json.loads((SHIPPED / "config.json").read_text())["about"]
    measured = pretrain.measure(*pretrained)
    assert set(measured) <= set(about)
    for name, value in measured.items():
        assert value == pytest.approx(about[name], abs=0.02), (
            name
        )  # of 200 answers, up to 4 may tip over by rounding on another machine
    assert (
        about["reading"] >= 0.95
        and about["general knowledge"] >= 0.95
        and about["strangers, closed book"] <= 0.2
    )


def test_the_shipped_model_reads_in_a_slow_loop_too(pretrained):
    """Greedy, one question after another, no cache: independent of sample() and measure()."""
    model, tokenizer = pretrained
    rng, right, n = np.random.default_rng(123), 0, 0
    for person in world.people(5, rng, unseen=True):
        text = world.passage(person, rng)
        for question, answer in world.exam(person):
            ids = tokenizer.encode(f"{text}\n{world.question_line(question)}")
            start = len(ids)
            while len(ids) < start + 8 and "\n" not in tokenizer.decode(ids[start:]):
                with torch.no_grad():
                    ids.append(
                        model(torch.tensor([ids]))[0, -1, : tokenizer.vocab_size].argmax().item()
                    )
            right += tokenizer.decode(ids[start:]).split("\n")[0].strip() == answer
            n += 1
    assert right / n >= 0.9  # .95 or more is promised; of 20 answers one more may be wrong


def test_the_shipped_checkpoint_is_small():
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) <= 8_000_000
