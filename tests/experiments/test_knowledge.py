"""The ladder, small but whole: which arms, on which contexts, the same numbers after every kill."""

import json
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import data_in, events, without_seconds
from mutations import reports_of_mutations

from minseal import (
    GPT,
    InnerConfig,
    OuterConfig,
    People,
    UserError,
    load,
    save,
    toy_passages,
    try_out,
)
from minseal.experiments.knowledge import KnowledgeConfig
from minseal.experiments.passages import other_styles, people, split
from minseal.files import load_tensors
from minseal.lab.lab import EXPERIMENTS, settings_of, walk
from minseal.lab.run import Run
from minseal.lab.table import write_report
from minseal.sample import sample

KNOWLEDGE = EXPERIMENTS["knowledge"]
NOWHERE = Run("nowhere", {})  # nothing is written before the first step
SMALL = KnowledgeConfig(
    edit_tokens=48,
    eval_contexts=4,
    reliability_contexts=2,
    other_prompts=(),
    inner=InnerConfig(epochs=3),
    outer=OuterConfig(rounds=1, contexts=4, samples=3),
)
BELOW = ["no adaptation", "passage only", "own notes"]
ABOVE = ["oracle notes", "passage in context"]
ARMS = [*BELOW, "round 1", "control 1", *ABOVE]
QUICK = replace(
    SMALL,
    eval_contexts=2,
    inner=InnerConfig(epochs=1, rank=2),
    outer=replace(SMALL.outer, contexts=2, samples=2),
)


def go(config, folder, on_step=lambda step, new: None):
    """Walk, report, read results.json."""
    run = Run(folder, settings_of(KNOWLEDGE, config), on_step)
    walk(KNOWLEDGE, config, run, say=list)
    write_report(run, KNOWLEDGE)
    return json.loads((folder / "results.json").read_text())


def trials_of(folder, *steps):
    return [e for e in events(folder) if e.get("step") in steps]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, results, the names of the steps as they were told) of one small run."""
    folder, told = tmp_path_factory.mktemp("experiment") / "run", []
    return folder, go(SMALL, folder, lambda step, new: told.append(step.name)), told


# ---- a whole run ----


def test_results_hold_the_ladder_in_order(finished):
    folder, results, _ = finished
    assert [a["arm"] for a in results["arms"]] == ARMS
    assert results["kind"] == "knowledge" and results["config"] == Run(folder).config
    assert results["config"] == json.loads(json.dumps({"kind": "knowledge", **asdict(SMALL)}))
    assert results["reliability"] is None or 0 <= results["reliability"] <= 1
    assert results["best_of_k"]["contexts"] == 2 and results["best_of_k"]["k"] == 3
    assert results["seconds"] > 0
    means = {a["arm"]: a["mean"] for a in results["arms"]}
    for a in results["arms"]:
        low, high = a["ci95"]
        assert a["n"] == 4 and 0 <= low <= a["mean"] <= high <= 1 and a["seconds"] >= 0
        if a["arm"] == "no adaptation":
            assert a["gain"] is None
        else:  # 1e-12: rounding of one subtraction
            assert a["gain"] == pytest.approx(a["mean"] - means[a["over"]], abs=1e-12)
            assert a["gain_ci95"][0] <= a["gain"] <= a["gain_ci95"][1]
    # 16 answers; a model that reads gets them.
    assert means["passage in context"] >= 0.75 > means["no adaptation"]


def test_every_arm_is_measured_on_the_same_held_out_contexts_and_none_is_trained_on(finished):
    folder, _, _ = finished
    seen = {}
    for e in events(folder):
        if "context" in e:
            seen.setdefault(e["step"], []).append(e["context"])
    held_out = seen["no adaptation"]
    assert len(set(held_out)) == 4 and all(seen[arm] == held_out for arm in ARMS)
    trained = {c for step, contexts in seen.items() if " contexts " in step for c in contexts}
    assert len(trained) == 4 and not trained & set(held_out)
    again = [set(seen[f"reliability, run {i}"]) for i in (1, 2)]
    assert again[0] == again[1] <= trained and len(again[0]) == 2
    # Three self-edits of each of four.
    assert Counter(Counter(seen["round 1 contexts 1-4"]).values()) == {3: 4}


def test_the_page_has_every_self_edit_of_the_log_and_each_passage_with_its_exam(finished):
    folder, _, _ = finished
    data = data_in((folder / "report.html").read_text())
    log = [e for e in events(folder) if "step" in e and ("text" in e or "answers" in e)]
    without_step = lambda rows: [{k: v for k, v in row.items() if k != "step"} for row in rows]
    in_order = lambda rows: sorted(json.dumps(row, sort_keys=True) for row in without_step(rows))
    assert in_order(data["trials"]) == in_order(log) and len(log) > 50 and data["missing"] == 0
    assert set(data["contexts"]) == {e["context"] for e in log}
    passages = {p.id: p for half in split(SMALL) for p in half}
    assert {id: (p.text, json.loads(json.dumps(p.questions))) for id, p in passages.items()} == {
        id: (shown["text"], shown["exam"]) for id, shown in data["contexts"].items()
    }
    names = [step["name"] for step in data["steps"]]
    assert names[: len(ARMS)] == ARMS and "round 1 in training" in names


def test_each_trial_says_what_was_written_what_came_of_it_and_what_it_took(finished):
    folder, _, _ = finished
    adapted = trials_of(folder, "own notes", "round 1", "control 1", "round 1 contexts 1-4")
    assert len(adapted) == 3 * 4 + 12
    for e in adapted:
        assert isinstance(e["text"], str) and isinstance(e["seed"], int) and e["seconds"] >= 0
        if "invalid" in e:
            assert e["reward"] == 0 and e["invalid"]
        else:
            assert e["reward"] == pytest.approx(np.mean(e["grades"]), abs=1e-12)
            assert len(e["answers"]) == 4 and sum(e["chose"]["notes"].values()) > 0


def test_the_reward_is_graded_as_the_answers_deserve(finished):
    """Grading again by plain comparison with the answers of the toy world."""
    folder, _, _ = finished
    right = {
        p.id: [answer for _, (answer,) in p.questions]
        for p in toy_passages(SMALL.eval_contexts + SMALL.outer.contexts, SMALL.world_seed)
    }
    checked = [e for e in events(folder) if e.get("answers")]
    assert len(checked) > 30
    for e in checked:
        pairs = zip(e["answers"], right[e["context"]], strict=True)
        assert e["grades"] == [answer == gold for answer, gold in pairs]


def test_what_training_saw_is_counted_from_its_trials(finished):
    folder, results, _ = finished
    for loop in ("round", "control"):
        trials = trials_of(folder, f"{loop} 1 contexts 1-4")
        (told,) = [t for t in results["training"] if t["loop"] == loop]
        assert told["reward"] == pytest.approx(np.mean([t["reward"] for t in trials]), abs=1e-12)
        assert (told["self_edits"], told["contexts"]) == (len(trials), 4)
        assert told["invalid"] == sum("invalid" in t for t in trials)
        rewards = {}
        for t in trials:
            rewards.setdefault(t["context"], set()).add(t["reward"])
        assert told["alike"] == sum(len(different) == 1 for different in rewards.values())


def test_every_step_is_told_once(finished):
    folder, _, told = finished
    assert len(told) == len(set(told))
    assert told == [e["done"] for e in events(folder) if "done" in e]


class Stop:
    """Counts the steps and presses Ctrl-C at the n-th."""

    def __init__(self, n):
        self.n = n

    def __call__(self, step, new):
        self.n -= 1
        if self.n == 0:
            raise KeyboardInterrupt


def test_stopped_and_resumed_gives_the_same(finished, tmp_path):
    folder, results, told = finished
    log = tmp_path / "run" / "events.jsonl"
    for n, torn in ((1, 0), (4, 0), (5, 300), (6, 0), (len(told) // 2 + 2, 1), (len(told) - 2, 0)):
        with pytest.raises(KeyboardInterrupt):
            go(SMALL, tmp_path / "run", Stop(n))
        whole = log.read_bytes()
        log.write_bytes(whole[: len(whole) - torn])  # as a kill within the write leaves it
    assert without_seconds(go(SMALL, tmp_path / "run")) == without_seconds(results)
    assert without_seconds(events(tmp_path / "run")) == without_seconds(events(folder))
    kept = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert kept == sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    for name in kept:
        a, b = (load_tensors(f / "checkpoints" / name) for f in (folder, tmp_path / "run"))
        assert all(torch.equal(a[k], b[k]) for k in a)  # bit for bit


def test_a_finished_run_computes_nothing_again(finished, monkeypatch):
    folder, results, _ = finished
    for name in ("lab.lab.sample", "lab.lab.try_out", "lab.lab.adapt", "outer.adapt"):
        monkeypatch.setattr(f"minseal.{name}", None)
    before = (folder / "events.jsonl").read_text()
    assert go(SMALL, folder) == results and (folder / "events.jsonl").read_text() == before


def test_the_control_and_what_follows_start_from_the_untaught_policy(tmp_path):
    """With random winners of one sample SEAL is its own control, unless one began elsewhere."""
    config = replace(
        QUICK, inner=InnerConfig(epochs=3), outer=replace(QUICK.outer, select="random", samples=1)
    )
    go(config, tmp_path / "run")
    steps = Run(tmp_path / "run").steps
    assert (tmp_path / "run" / "checkpoints" / "round-1-M-step.pt").exists()  # it did change
    plain = lambda trials: without_seconds([asdict(t) for t in trials])
    for step in ("1 contexts 1-2", "1"):
        seal, control = (plain(steps[f"{loop} {step}"].trials) for loop in ("round", "control"))
        assert len(seal) == 2 and seal == control
    opened = people(config, Run(tmp_path / "run"))
    pairs = [(p, opened.task.oracle) for p in opened.held_out]
    again = try_out(opened.policy, opened.task, pairs, config.inner, seed=config.seed)
    assert plain(steps["oracle notes"].trials) == plain(again)


# ---- other settings ----


@pytest.mark.parametrize(
    "outer, other, arms",
    [
        ({"rounds": 0}, {}, BELOW + ABOVE),
        (
            {"rounds": 2, "select": "all-best"},
            {"control": False},
            [*BELOW, "round 1", "round 2", *ABOVE],
        ),
        ({"samples": 1}, {"reliability_contexts": 0}, ARMS),
        ({"samples": 1}, {"reliability_contexts": 99}, ARMS),
        ({"at_once": 1}, {"prompt": "self-qa", "grade": "contains"}, ARMS),
    ],
    ids=["no rounds", "all best", "one sample", "one sample, measured", "one at once"],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy dividing by nought
def test_other_settings_go_through(tmp_path, untrained, outer, other, arms):
    config = replace(QUICK, model=untrained, **other, outer=replace(QUICK.outer, **outer))
    results = go(config, tmp_path / "run")
    assert [a["arm"] for a in results["arms"]] == arms and all(a["n"] == 2 for a in results["arms"])


def made_passages(path, n, words=6, answers=2):
    """A file in SQuAD's own layout: n short passages with one to three questions each."""
    rng = np.random.default_rng(0)
    word = lambda: "".join(rng.choice(list("abcdefgé"), size=4))
    question = lambda: {
        "question": f"What of {word()}?",
        "answers": [{"text": word(), "answer_start": 0}] * answers,
    }
    paragraphs = [
        {
            "context": " ".join(f"{word()}{i}" for _ in range(words)) + ".",
            "qas": [question() for _ in range(1 + i % 3)],
        }
        for i in range(n)
    ]
    data = {"version": "1.1", "data": [{"title": "Made “up”", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("grade", ["exact", "f1"])
def test_a_file_of_passages_goes_through(tmp_path, untrained, grade):
    config = replace(
        QUICK,
        data=made_passages(tmp_path / "data.json", 6),
        eval_contexts=3,
        other_prompts=(),
        grade=grade,
        model=untrained,
        outer=replace(QUICK.outer, contexts=3, rounds=2),
    )
    results = go(config, tmp_path / "run")
    rounds = ["round 1", "round 2", "control 1", "control 2"]
    assert [a["arm"] for a in results["arms"]] == [*BELOW, *rounds, *ABOVE]
    assert all(a["n"] == 3 and a["mix"] is None for a in results["arms"])
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert all(a["arm"] in report for a in results["arms"])


def test_the_pretrained_model_takes_a_file_of_passages_and_is_asked_in_other_ways(tmp_path):
    data = made_passages(tmp_path / "data.json", 4)
    results = go(replace(QUICK, data=data, other_prompts=None), tmp_path / "run")
    others = [f"own notes, {style}" for style in ("implications", "rewrite", "self-qa")]
    assert [a["arm"] for a in results["arms"]] == [*BELOW[:2], *others, *ARMS[2:]]


def test_in_the_toy_world_another_prompt_writes_what_pretraining_put_after_a_passage(pretrained):
    """Questions with answers, and implications: so it is measured beside a taught policy."""
    assert "questions" in other_styles(KnowledgeConfig())
    task, passages = People(pretrained[1], "questions"), toy_passages(4, 0)
    prompts = [task.prompt(passage) for passage in passages]
    written = sample(*pretrained, prompts, max_tokens=128)
    kinds = Counter()
    for passage, (text,) in zip(passages, written):
        kinds.update(task.parse(passage, text).chose["notes"])
    # 32 lines or so; of its usual notes a quarter is of these kinds.
    assert kinds["asks"] + kinds["implies"] > 0.8 * kinds.total() and kinds.total() > 20


def test_rl_is_compared_with_the_prompt_that_is_best_on_training_contexts(tmp_path, untrained):
    config = replace(
        QUICK,
        model=untrained,
        other_prompts=("rewrite", "self-qa", "notes", "rewrite"),
        outer=replace(QUICK.outer, reward="likelihood"),
        edit_tokens=20,
    )
    results = go(config, tmp_path / "run")
    others = ["own notes, rewrite", "own notes, self-qa"]
    assert [a["arm"] for a in results["arms"]] == [*BELOW[:2], *others, *ARMS[2:]]
    own = [a for a in results["arms"] if a["arm"].startswith("own notes")]
    assert all(a["over"] == "passage only" for a in own)
    means = {}
    for style in ("notes", "rewrite", "self-qa"):
        tried = trials_of(tmp_path / "run", f"prompt {style}, tried out")
        # Those of round 1, never held-out ones.
        assert [t["context"] for t in tried] == [p.id for p in split(config)[0]]
        means[style] = np.mean([t["reward"] for t in tried])
    best = max(means, key=means.get)  # it may be the prompt that the policy is taught on
    rivals = [c["over"] for c in results["comparisons"]]
    rival = [f"own notes, {best}"] * (best != "notes")
    assert rivals == ["passage only", *rival, "own notes", "control 1"]
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    told = ", ".join(f"{style} {mean:.2f}" for style, mean in means.items())
    assert f"prompts, untrained, on 2 contexts not held out: {told}; the best is {best}." in report
    assert all(c["arm"] == "round 1" for c in results["comparisons"])
    tried = trials_of(tmp_path / "run", "round 1 contexts 1-2")
    assert all(0 < t["reward"] < 1 for t in tried if "invalid" not in t)
    longest = max(map(len, load(untrained)[1].ranks))  # bytes of one token
    written = trials_of(tmp_path / "run", "own notes")
    assert all(len(t["text"]) <= 20 * longest for t in written)


# ---- contexts ----


def test_train_and_eval_contexts_are_disjoint_and_drawn_by_seed(tmp_path):
    data = made_passages(tmp_path / "data.json", 9)
    splits = {}
    for seed in (0, 0, 1):
        train, held_out = split(replace(SMALL, data=data, seed=seed))
        assert len(held_out) == 4 and len(train) == 5
        assert len({c.text for c in train + held_out}) == 9
        splits.setdefault(seed, []).append([c.text for c in held_out])
    assert splits[0][0] == splits[0][1] and set(splits[0][0]) != set(splits[1][0])


def test_passages_without_an_answer_are_left_out_and_counted(tmp_path, capsys):
    """The line goes through the one place that prints: a name steers no terminal."""
    path = Path(made_passages(tmp_path / "\x1b[7m.json", 5))
    data = json.loads(path.read_text(encoding="utf-8"))["data"]
    path.write_text(json.dumps([*data, {"context": "No.", "qas": []}]))
    train, held_out = split(replace(SMALL, data=str(path), eval_contexts=1))
    assert len(train + held_out) == 5
    assert "\\x1b[7m.json: 1 of 6 passages left out: no question" in capsys.readouterr().out


def test_people_of_the_toy_world_are_disjoint_and_new_in_every_round():
    config = replace(SMALL, outer=replace(SMALL.outer, rounds=3))
    train, held_out = split(config)
    assert len(held_out) == 4 and len(train) == 12
    assert len({c.person.name for c in train + held_out}) == 16
    other_world = {c.text for part in split(replace(config, world_seed=1)) for c in part}
    assert other_world.isdisjoint(c.text for c in train + held_out)
    assert split(replace(config, seed=1)) == (train, held_out)  # `seed` chooses no people


def test_contexts_are_the_toy_worlds_without_a_file():
    train, held_out = split(SMALL)
    assert held_out + train == toy_passages(8, SMALL.world_seed)


def test_without_numbers_a_file_is_shared_out_and_the_toy_world_gives_its_own(tmp_path):
    def counts(**settings):
        return tuple(map(len, split(KnowledgeConfig(**settings))))

    nine = made_passages(tmp_path / "nine.json", 9)
    five = made_passages(tmp_path / "five.json", 5, words=5)
    assert counts(data=nine) == (6, 3)
    assert counts(data=nine, eval_contexts=1) == (8, 1)
    assert counts(data=nine, eval_data=five) == (9, 5)
    outer = KnowledgeConfig().outer
    assert counts() == (outer.rounds * outer.contexts, 96)


def test_a_round_takes_fewer_contexts_if_there_are_fewer(tmp_path, untrained):
    config = replace(
        QUICK,
        model=untrained,
        data=made_passages(tmp_path / "data.json", 5),
        other_prompts=(),
        control=False,
        outer=replace(QUICK.outer, rounds=2, contexts=64),
    )
    results = go(config, tmp_path / "run")
    assert [t["contexts"] for t in results["training"]] == [3, 3]


def test_eval_data_has_a_file_of_its_own(tmp_path):
    data = made_passages(tmp_path / "a.json", 4)
    eval_data = made_passages(tmp_path / "b.json", 6, words=5)
    train, held_out = split(replace(SMALL, data=data, eval_data=eval_data))
    assert len(train) == len(held_out) == 4
    assert {len(c.text.split()) for c in train} == {6}
    assert {len(c.text.split()) for c in held_out} == {5}


def refused(config, *, opened=False):
    with pytest.raises(UserError) as e:
        people(config, NOWHERE) if opened else split(config)
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)


def numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


def test_fewer_contexts_than_asked_for_says_how_many(tmp_path):
    four = made_passages(tmp_path / "data.json", 4)
    three = made_passages(tmp_path / "b.json", 3, words=5)
    # Four to hold out leave none to train on.
    message = refused(replace(SMALL, data=four))
    assert numbers(message) == [0, 4] and "--eval-contexts" in message
    # Seven in all would be enough: it is the second file that is too short.
    message = refused(replace(SMALL, data=four, eval_data=three))
    assert numbers(message) == [4, 3] and "--eval-contexts" in message


def test_more_people_than_the_toy_world_has():
    """2500 names that pretraining never pairs; twice, training and exam would share."""
    most = replace(SMALL, outer=replace(SMALL.outer, contexts=2496))
    assert len(split(most)[0]) == 2496
    assert "2500" in refused(replace(SMALL, outer=replace(SMALL.outer, contexts=2497)))


def test_a_passage_longer_than_the_model_reads_says_both_lengths(tmp_path, untrained):
    config = replace(SMALL, data=made_passages(tmp_path / "data.json", 8), other_prompts=())
    model, tokenizer = load(untrained)

    def reads(n):
        """The settings with a model that reads n tokens."""
        save(tmp_path / str(n), GPT(replace(model.config, block_size=n)), tokenizer, {})
        return replace(config, model=str(tmp_path / str(n)))

    needed = 10
    while True:
        try:
            opened = people(reads(needed), NOWHERE)
            break
        except UserError:
            message = refused(reads(needed), opened=True)
            assert needed in numbers(message.split("needs")[-1])
            assert (longer := max(numbers(message.split("needs")[-1]))) > needed
            needed = longer
    # A model of just the length it said is enough, one token less is not.
    assert needed in numbers(refused(reads(needed - 1), opened=True))
    task, contexts = opened.task, opened.train + opened.held_out
    assert needed >= max(len(task.prompt(c)) + task.edit_tokens for c in contexts)


def test_a_passage_in_both_files(tmp_path):
    data = made_passages(tmp_path / "a.json", 4)
    one = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    one["data"][0]["paragraphs"] = one["data"][0]["paragraphs"][2:3]
    (tmp_path / "b.json").write_text(json.dumps(one))
    both = replace(SMALL, data=data, eval_data=str(tmp_path / "b.json"), eval_contexts=1)
    assert one["data"][0]["paragraphs"][0]["context"][:20] in refused(both)


@pytest.mark.parametrize(
    "name, value",
    [
        ("grade", "exakt"),
        ("prompt", "note"),
        ("other_prompts", "riddles"),
        ("eval_contexts", 0),
        ("edit_tokens", 0),
        ("seed", -1),
    ],
)
def test_settings_that_do_not_exist(name, value):
    with pytest.raises(UserError, match=f"{name.split('_')[-1].rstrip('s')}.*{value}"):
        KnowledgeConfig(**{name: (value,) if name == "other_prompts" else value})


def test_eval_data_without_data_is_refused():
    """The toy world's task cannot read other passages."""
    with pytest.raises(UserError, match="--eval-data needs --data"):
        KnowledgeConfig(eval_data="passages.json")


@pytest.mark.parametrize("n", [20, pytest.param(1500, marks=pytest.mark.fuzz)])
def test_a_run_that_somebody_edited_is_reported_in_part_or_refused(
    finished, tmp_path, monkeypatch, n
):
    """Kind: a damaged run folder. Seeded mutations of its files; never another exception."""
    counts = reports_of_mutations(finished[0], tmp_path / "m", n, monkeypatch)
    assert sum(counts.values()) == n and counts["in part"] >= n // 4, counts
