"""Test-time training alone: what its adapter leaves behind, thrown away and kept."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from kills import stop_at
from mutations import reports_of_mutations

from minseal import GPT, InnerConfig, OuterConfig, UserError, load, save
from minseal.experiments.fewshot import FewShotConfig
from minseal.experiments.ttt import TTTConfig
from minseal.files import load_tensors
from minseal.lab.lab import EXPERIMENTS, settings_of, walk
from minseal.lab.run import Run
from minseal.lab.table import text_report, write_report
from minseal.outer import MStepConfig

ARMS = [
    "before",
    "adapter on",
    "adapter thrown away",
    "policy, before",
    "policy, adapter on",
    "policy, adapter thrown away",
    "kept, asked at once",
    "kept, asked at the end",
]
SMALL = TTTConfig(
    eval_contexts=3,
    train_puzzles=8,
    solvable=False,
    inner=InnerConfig(lr=6e-3, epochs=3, batch=1, rank=8, alpha=16.0),
)


def go(config, folder, on_step=lambda step, new: None):
    """Walk, report; (results.json, run). Settings say which experiment it is."""
    kind = "ttt" if isinstance(config, TTTConfig) else "fewshot"
    run = Run(folder, settings_of(EXPERIMENTS[kind], config), on_step)
    walk(EXPERIMENTS[kind], config, run, say=list)
    write_report(run, EXPERIMENTS[kind])
    return json.loads((folder / "results.json").read_text()), run


@pytest.fixture(scope="module")
def seal(tmp_path_factory):
    """A run whose outer loop did change the policy: its winners are drawn at random."""
    config = FewShotConfig(
        eval_contexts=3,
        reliability_contexts=0,
        train_puzzles=1,
        constants=1,
        views=0,
        control=False,
        inner=InnerConfig(lr=6e-3, epochs=1, rank=2),
        outer=OuterConfig(
            rounds=1, contexts=2, samples=1, select="random", m_step=MStepConfig(epochs=1, lr=1e-2)
        ),
        solvable=False,
    )
    return go(config, tmp_path_factory.mktemp("ttt") / "seal")[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, seal):
    config = replace(SMALL, policy=str(seal.folder))
    return config, *go(config, tmp_path_factory.mktemp("ttt") / "run")


def test_an_adapter_leaves_nothing_behind_unless_it_is_kept(finished, seal):
    _, results, run = finished
    assert [a["arm"] for a in results["arms"]] == ARMS
    answers = {step.name: [t.answers for t in step.trials] for step in run.arms()}
    assert answers["before"] == answers["adapter thrown away"]
    assert answers["before"] == [t.answers for t in seal.steps["in context"].trials]
    assert answers["policy, before"] == answers["policy, adapter thrown away"]
    # The first puzzle's weights were the first weights; after the last nothing changed any more.
    assert answers["kept, asked at once"][0] == answers["adapter on"][0]
    assert answers["kept, asked at the end"][-1] == answers["kept, asked at once"][-1]
    assert answers["kept, asked at the end"] != answers["before"]
    gained = {a["arm"]: a["over"] for a in results["arms"]}
    assert gained.pop("before") is None and set(gained.values()) == {"before"}


def test_only_the_policy_writes_its_own_self_edits(finished):
    _, results, run = finished
    written = {s.name for s in run.arms() if any(t.text is not None for t in s.trials)}
    assert written == {"policy, adapter on"}
    (fixed,) = {json.dumps({**t.chose, "kind": ""}) for t in run.steps["adapter on"].trials}
    assert json.loads(fixed)["lr"] == SMALL.inner.lr
    assert json.loads(fixed)["augmentations"] == ["basic"]
    assert "share of the puzzles solved" in text_report(run, EXPERIMENTS["ttt"], results)


@pytest.mark.parametrize("stops", [(2, 5), (7, 8), (9,)], ids=str)
def test_stopped_and_resumed_gives_the_same(finished, tmp_path, stops):
    config, _, run = finished

    for n in stops:
        with pytest.raises(KeyboardInterrupt):
            go(config, tmp_path / "run", stop_at(n))
    _, again = go(config, tmp_path / "run")
    outcome = lambda run: {
        s.name: [(t.text, t.answers, t.reward) for t in s.trials] for s in run.arms()
    }
    assert outcome(again) == outcome(run)
    assert list(again.steps) == list(run.steps)


def test_a_policy_of_another_model_is_refused_before_anything_is_spent(tmp_path, seal):
    model, tokenizer = load(SMALL.model)
    save(tmp_path / "other", GPT(replace(model.config, n_layer=1)), tokenizer, {})
    config = replace(SMALL, model=str(tmp_path / "other"), prompt="tiny", policy=str(seal.folder))
    with pytest.raises(UserError, match="the policy of another model"):
        go(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_finished_outer_loop_has_no_policy(tmp_path, finished):
    _, _, ttt = finished
    with pytest.raises(UserError, match="a finished outer loop"):
        go(replace(SMALL, policy=str(ttt.folder)), tmp_path / "run")


@pytest.mark.parametrize("n", [20, pytest.param(1500, marks=pytest.mark.fuzz)])
def test_a_run_that_somebody_edited_is_reported_in_part_or_refused(
    finished, tmp_path, monkeypatch, n
):
    """Kind: a damaged run folder. Seeded mutations of its files; never another exception."""
    counts = reports_of_mutations(finished[2].folder, tmp_path / "m", n, monkeypatch)
    assert sum(counts.values()) == n and counts["in part"] >= n // 4, counts


def test_kept_weights_that_were_lost_are_trained_again(finished, tmp_path):
    """Not taken from the policy as it is in the beginning, when the training is read back."""
    config, results, run = finished
    shutil.copytree(run.folder, tmp_path / "r")
    kept = tmp_path / "r" / "checkpoints" / "kept-weights.pt"
    old = load_tensors(run.folder / "checkpoints" / "kept-weights.pt")
    kept.write_bytes(b"")
    go(config, tmp_path / "r")
    new = load_tensors(kept)
    assert all(torch.equal(new[name], old[name]) for name in old)
