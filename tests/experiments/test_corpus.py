"""Many passages in one adapter: groups, tokens, and the arms."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import events, without_seconds
from kills import stop_at
from mutations import reports_of_mutations

from minseal import InnerConfig, OuterConfig, People, SelfEdit, UserError, adapt, exam, toy_passages
from minseal.experiments.corpus import CorpusConfig, together
from minseal.lab.evidence import interval
from minseal.lab.lab import EXPERIMENTS, Lab, settings_of, walk
from minseal.lab.run import Run
from minseal.lab.table import summarise, text_report, write_report
from minseal.outer import MStepConfig
from minseal.tasks.corpus import Corpus, Group

INNER = InnerConfig(epochs=1, batch=4, rank=2)
SMALL = CorpusConfig(
    eval_contexts=4,
    wall=3,
    edit_tokens=24,
    inner=INNER,
    outer=OuterConfig(rounds=1, contexts=2, samples=2, m_step=MStepConfig(epochs=1, rank=2)),
)
WHATS = ["passage only", "own notes", "taught notes", "oracle notes"]
WALL = ["passage again", "own notes", "taught notes"]
CORPUS = EXPERIMENTS["corpus"]


@pytest.fixture
def lab(pretrained):
    model, tokenizer = pretrained
    return Lab(model, People(tokenizer), [], [], run=None, inner=InnerConfig(epochs=2, batch=4))


def test_a_group_is_examined_and_graded_as_its_passages_are(lab):
    passages = toy_passages(3, 1)
    passages[1] = replace(passages[1], questions=passages[1].questions[:1])
    group, task = Group("three", passages), Corpus(lab.task)
    assert task.exam(group) == [ids for p in passages for ids in lab.task.exam(p)]
    right = [golds[0] for p in passages for _, golds in p.questions]
    assert task.grade(group, right) == [1.0] * 9
    assert task.grade(group, ["?", *right[1:4], "?", *right[5:]]) == [0, 1, 1, 1, 0, 1, 1, 1, 1]
    assert [len(part) for part in group.cut(right)] == [4, 1, 4]
    assert group.cut([]) == [[], [], []]  # training failed, nobody was asked


def test_one_adapter_learns_all_of_a_group_and_each_passage_has_its_own_score(lab):
    passages = toy_passages(5, 2)
    edits = [replace(lab.task.oracle(p), chose={"what": p.id}) for p in passages]
    trials = together(lab, passages, edits, 2)  # in adapters of 2, 2 and 1
    assert (
        [t.context for t in trials] == [t.chose["what"] for t in trials] == [p.id for p in passages]
    )
    for i in (0, 2, 4):
        part = passages[i : i + 2]
        whole = SelfEdit(tuple(d for e in edits[i : i + 2] for d in e.documents))
        for p, trial in zip(part, trials[i:]):  # one by one, by hand
            with adapt(lab.policy, [whole], lab.inner, lab.seed):
                (alone,) = exam(lab.policy, lab.task, [p])
            assert (trial.answers, trial.grades) == (alone.answers, alone.grades)
            assert trial.reward == alone.reward


def test_one_passage_an_adapter_is_the_usual_inner_loop(lab):
    passages = toy_passages(3, 3)
    edits = [lab.task.oracle(p) for p in passages]
    usual = lab.study(passages, edits)
    assert [t.answers for t in together(lab, passages, edits, 1)] == [t.answers for t in usual]


def test_training_that_fails_counts_as_nothing_for_every_passage(lab):
    passages = toy_passages(2, 4)
    edits = [lab.task.oracle(p) for p in passages]
    lab.inner = replace(lab.inner, lr=1e18)
    trials = together(lab, passages, edits, 2)
    assert [t.reward for t in trials] == [0, 0] and all(t.invalid for t in trials)


# ---- the experiment ----


def go(config, folder, on_step=lambda step, new: None):
    run = Run(folder, settings_of(CORPUS, config), on_step)
    walk(CORPUS, config, run, say=list)
    return run, summarise(run, CORPUS)


@pytest.fixture(scope="module")
def finished(untrained, tmp_path_factory):
    config = replace(SMALL, model=untrained)
    return config, *go(config, tmp_path_factory.mktemp("corpus") / "run")


def test_arms_cover_sizes_and_counts_and_say_their_tokens(finished):
    _, run, results = finished
    arms = {a["arm"]: a for a in results["arms"]}
    ladder = [f"{what}, {n} together" for n in (1, 4) for what in WHATS]
    wall = [f"{what} x {k}" for k in (1, 2, 4, 8, 16) for what in WALL]
    assert list(arms) == ["policy 1", "no adaptation", *ladder, *wall]
    assert all(
        arms[f"{what}, 1 together"]["tokens"] == arms[f"{what}, 4 together"]["tokens"]
        for what in WHATS
    )
    assert arms["no adaptation"]["n"] == 4 and arms["own notes x 4"]["n"] == 3
    for k in (1, 2, 4, 8, 16):  # the same tokens, but for half a passage each
        passage = arms["passage only, 1 together"]["tokens"]
        again, own = arms[f"passage again x {k}"]["tokens"], arms[f"own notes x {k}"]["tokens"]
        assert abs(again - own) <= passage
    many = [arms[f"own notes x {k}"]["tokens"] for k in (1, 2, 4, 8, 16)]
    assert many == sorted(set(many))


def test_slopes_are_those_of_a_line_through_each_passage(finished):
    _, run, results = finished
    slopes = []
    for i in range(3):
        y = [run.steps[f"own notes x {k}"].trials[i].reward for k in (1, 2, 4, 8, 16)]
        slopes.append(np.cov(range(5), y)[0, 1] / np.var(range(5), ddof=1))
    mean, ci95 = interval(slopes)
    told = results["slopes"]["own notes"][0]
    assert told[0] == pytest.approx(mean) and tuple(told[1]) == pytest.approx(ci95)
    assert "own notes, a doubling: " in text_report(run, CORPUS, results)


def test_pictures(finished):
    _, run, _ = finished
    pytest.importorskip("matplotlib")
    write_report(run, CORPUS)
    assert (run.folder / "corpus.png").is_file()


def test_stopped_and_resumed_gives_the_same(finished, tmp_path):
    config, _, results = finished

    for n in (2, 5, 12):
        with pytest.raises(KeyboardInterrupt):
            go(config, tmp_path / "run", stop_at(n))
    assert without_seconds(go(config, tmp_path / "run")[1]) == without_seconds(results)


@pytest.mark.slow
def test_a_run_that_somebody_edited_is_reported_in_part_or_refused(finished, tmp_path, monkeypatch):
    """Kind: a damaged run folder. Seeded mutations of its files; never another exception."""
    counts = reports_of_mutations(finished[1].folder, tmp_path / "m", 15, monkeypatch)
    assert sum(counts.values()) == 15, counts


@pytest.mark.slow
def test_a_policy_that_was_taught_elsewhere_writes_the_same(finished, tmp_path):
    """A run's own outer loop, given as --policy."""
    config, run, results = finished
    with pytest.raises(UserError, match="no run in"):
        go(replace(config, policy=str(tmp_path)), tmp_path / "none")
    _, again = go(replace(config, policy=str(run.folder)), tmp_path / "run")
    means = [a["mean"] for a in results["arms"]]
    assert ["policy 1"] == [a["arm"] for a in results["arms"][:1]]
    assert [a["mean"] for a in again["arms"]] == means[1:]
    written = [e["value"] for e in events(run.folder) if e.get("done") == "taught notes"]
    assert written == [
        e["value"] for e in events(tmp_path / "run") if e.get("done") == "taught notes"
    ]
