"""The ladder, small but whole: which arms, on which contexts, and the same numbers however often it was stopped."""

import json
import re
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from minseal import (
    GPT,
    GPTConfig,
    InnerConfig,
    Knowledge,
    OuterConfig,
    Tokenizer,
    UserError,
    save,
    toy_contexts,
    try_out,
)
from minseal.experiment import KnowledgeConfig, contexts_of, run_knowledge, settle, steps_of
from minseal.files import load_tensors
from minseal.report import write_report
from minseal.runs import Run
from minseal.tasks import world
from minseal.tokenizer import train_ranks

SMALL = KnowledgeConfig(
    eval_contexts=4,
    reliability_contexts=2,
    inner=InnerConfig(epochs=3),
    outer=OuterConfig(rounds=1, contexts=4, samples=3),
)
BELOW, ABOVE = (
    ["no adaptation", "passage only", "own notes"],
    ["oracle notes", "passage in context"],
)
ARMS = [*BELOW, "round 1", "control 1", *ABOVE]
QUICK = replace(
    SMALL,
    eval_contexts=2,
    inner=InnerConfig(epochs=1, rank=2),
    outer=replace(SMALL.outer, contexts=2, samples=2),
)
rng = np.random.default_rng(0)
TOKENIZER = Tokenizer(train_ranks("\n".join(world.document(rng) for _ in range(200)), 400))


def go(config, folder, on_step=None):
    run = Run(folder, asdict(config), on_step)
    run_knowledge(config, run, say=list)
    write_report(run, say=list)
    return json.loads((folder / "results.json").read_text())


def without_seconds(x):
    if isinstance(x, dict):
        return {k: without_seconds(v) for k, v in x.items() if k != "seconds"}
    return [without_seconds(v) for v in x] if isinstance(x, list) else x


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, results, steps as they were told) of one small run on the toy world."""
    folder, told = tmp_path_factory.mktemp("experiment") / "run", []
    return folder, go(SMALL, folder, lambda step, trials: told.append(step)), told


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The folder of a model that knows nothing, for runs that are about the way and not the scores."""
    folder = tmp_path_factory.mktemp("models") / "untrained"
    config = GPTConfig(
        vocab_size=TOKENIZER.vocab_size,
        block_size=1024,
        n_layer=1,
        n_head=2,
        n_kv_head=2,
        n_embd=16,
        head_dim=8,
        mlp_dim=16,
    )
    save(folder, GPT(config).init_weights(torch.Generator().manual_seed(0)).eval(), TOKENIZER, {})
    return str(folder)


# ---- a whole run -------------------------------------------------------------------------------------------------------


def test_results_hold_the_ladder_in_order(finished):
    _, results, _ = finished
    assert [a["arm"] for a in results["arms"]] == ARMS
    assert results["config"] == json.loads(json.dumps(asdict(SMALL)))
    assert {"reliability", "best_of_k_heldout", "seconds"} <= set(results) and results[
        "seconds"
    ] > 0
    means = {a["arm"]: a["mean"] for a in results["arms"]}
    for a in results["arms"]:
        low, high = a["ci95"]
        assert a["n"] == 4 and 0 <= low <= a["mean"] <= high <= 1 and a["seconds"] >= 0
        if a["arm"] == "no adaptation":
            assert a["gain"] is None
        else:
            assert a["gain"] == pytest.approx(
                a["mean"] - means[a["over"]], abs=1e-12
            )  # rounding of one subtraction
            assert a["gain_ci95"][0] <= a["gain"] <= a["gain_ci95"][1]
    assert (
        means["passage in context"] >= 0.75 > means["no adaptation"]
    )  # 16 answers; a model that reads gets them


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
    assert (
        set(seen["reliability, run 1"]) == set(seen["reliability, run 2"]) <= trained
        and len(set(seen["reliability, run 1"])) == 2
    )
    assert Counter(Counter(seen["round 1 contexts 1-4"]).values()) == {
        3: 4
    }  # three self-edits of each of four


def test_each_trial_says_what_was_written_what_came_of_it_and_what_it_took(finished):
    folder, _, _ = finished
    adapted = [
        e
        for e in events(folder)
        if e.get("step") in ("own notes", "round 1", "control 1", "round 1 contexts 1-4")
    ]
    assert len(adapted) == 3 * 4 + 12
    for e in adapted:
        assert isinstance(e["text"], str) and isinstance(e["seed"], int) and e["seconds"] >= 0
        if "invalid" in e:
            assert e["reward"] == 0 and e["invalid"]
        else:
            assert (
                e["reward"] == pytest.approx(np.mean(e["grades"]), abs=1e-12)
                and len(e["answers"]) == 4
            )


def test_the_reward_is_graded_as_the_answers_deserve(finished):
    """Grading again by plain comparison with the answers of the toy world."""
    folder, _, _ = finished
    people = {
        c.id: [answer for _, (answer,) in c.questions]
        for c in toy_contexts(SMALL.eval_contexts + SMALL.outer.contexts, SMALL.world_seed)
    }
    checked = [e for e in events(folder) if e.get("answers")]
    assert len(checked) > 30
    for e in checked:
        assert e["grades"] == [
            given == right for given, right in zip(e["answers"], people[e["context"]], strict=True)
        ]


def test_the_progress_bar_ends_where_it_says(finished):
    folder, _, told = finished
    assert len(told) == len(set(told)) and set(told) == {
        e["done"] for e in events(folder) if "done" in e
    }
    m_steps = sum(step.endswith("M-step") for step in told)  # a round without winners has none
    assert steps_of(SMALL) - (2 - m_steps) == len(told)


class Stop:
    """Counts the steps and presses Ctrl-C at the n-th."""

    def __init__(self, n):
        self.n = n

    def __call__(self, step, trials):
        self.n -= 1
        if self.n == 0:
            raise KeyboardInterrupt


def test_stopped_and_resumed_gives_the_same(finished, tmp_path):
    folder, results, told = finished
    log = tmp_path / "run" / "events.jsonl"
    for n, torn in ((1, 0), (4, 0), (5, 300), (6, 0), (len(told) // 2 + 2, 1), (len(told) - 2, 0)):
        with pytest.raises(KeyboardInterrupt):
            go(SMALL, tmp_path / "run", Stop(n))
        log.write_bytes(
            log.read_bytes()[: log.stat().st_size - torn]
        )  # as a kill within the write leaves it
    assert without_seconds(go(SMALL, tmp_path / "run")) == without_seconds(results)
    assert without_seconds(events(tmp_path / "run")) == without_seconds(events(folder))
    kept = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert kept == sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    for name in kept:
        a, b = (load_tensors(f / "checkpoints" / name) for f in (folder, tmp_path / "run"))
        assert all(torch.equal(a[k], b[k]) for k in a)  # bit for bit


def test_a_finished_run_computes_nothing_again(finished, monkeypatch):
    folder, results, _ = finished
    monkeypatch.setattr("minseal.experiment.sample", None)
    monkeypatch.setattr("minseal.experiment.try_out", None)
    monkeypatch.setattr("minseal.outer.adapt", None)
    before = (folder / "events.jsonl").read_text()
    assert go(SMALL, folder) == results and (folder / "events.jsonl").read_text() == before


def test_the_control_and_what_follows_start_from_the_untaught_policy(tmp_path, pretrained):
    """With random winners of one sample SEAL is its own control: the same numbers, unless one began where the other ended."""
    config = replace(
        QUICK, inner=InnerConfig(epochs=3), outer=replace(QUICK.outer, select="random", samples=1)
    )
    go(config, tmp_path / "run")
    done = Run(tmp_path / "run").done
    assert "round 1 M-step" in done  # the policy did change
    for step in ("1 contexts 1-2", "1"):
        seal, control = (
            without_seconds(done[f"{loop} {step}"]["trials"]) for loop in ("round", "control")
        )
        assert len(seal) == 2 and seal == control
    model, tokenizer = pretrained
    task = Knowledge(tokenizer)
    _, held_out = contexts_of(config, task, ROOMY)
    again = try_out(
        model,
        tokenizer,
        task,
        [(c, task.oracle(c)) for c in held_out],
        config.inner,
        config.outer.at_once,
        seed=config.seed,
    )
    assert without_seconds(done["oracle notes"]["trials"]) == without_seconds(again)


# ---- other settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outer, other, arms",
    [
        ({"rounds": 0}, {}, BELOW + ABOVE),
        (
            {"rounds": 2, "select": "positive"},
            {"control": False},
            [*BELOW, "round 1", "round 2", *ABOVE],
        ),
        ({"samples": 1}, {"reliability_contexts": 0}, ARMS),
        ({"samples": 1}, {"reliability_contexts": 99}, ARMS),
        ({"at_once": 1}, {"prompt": "self-qa", "grade": "contains"}, ARMS),
    ],
    ids=["no rounds", "positive", "one sample", "one sample, measured", "one at once"],
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
    paragraphs = [
        {
            "context": " ".join(f"{word()}{i}" for _ in range(words)) + ".",
            "qas": [
                {
                    "question": f"What of {word()}?",
                    "answers": [{"text": word(), "answer_start": 0}] * answers,
                }
                for _ in range(1 + i % 3)
            ],
        }
        for i in range(n)
    ]
    articles = [{"title": "Made “up”", "paragraphs": paragraphs}]
    path.write_text(
        json.dumps({"version": "1.1", "data": articles}, ensure_ascii=False), encoding="utf-8"
    )
    return str(path)


@pytest.mark.parametrize("grade", ["exact", "f1"])
def test_a_file_of_passages_goes_through(tmp_path, untrained, grade):
    data = made_passages(tmp_path / "data.json", 6)
    config = replace(
        QUICK,
        data=data,
        eval_contexts=3,
        grade=grade,
        model=untrained,
        outer=replace(QUICK.outer, contexts=3, rounds=2),
    )
    results = go(config, tmp_path / "run")
    assert [a["arm"] for a in results["arms"]] == [
        *BELOW,
        "round 1",
        "round 2",
        "control 1",
        "control 2",
        *ABOVE,
    ]
    assert all(a["n"] == 3 and a["mix"] is None for a in results["arms"])
    assert all(
        a["arm"] in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
        for a in results["arms"]
    )


def test_the_pretrained_model_takes_a_file_of_passages(tmp_path):
    data = made_passages(tmp_path / "data.json", 4)
    results = go(replace(QUICK, data=data), tmp_path / "run")
    assert [a["arm"] for a in results["arms"]] == ARMS


# ---- contexts ----------------------------------------------------------------------------------------------------------

TASK = Knowledge(TOKENIZER)
ROOMY = 10_000


def test_train_and_eval_contexts_are_disjoint_and_drawn_by_seed(tmp_path):
    data = made_passages(tmp_path / "data.json", 9)
    splits = {}
    for seed in (0, 0, 1):
        config = replace(SMALL, data=data, seed=seed)
        train, held_out = contexts_of(config, TASK, ROOMY)
        assert (
            len(held_out) == 4 and len(train) == 5 and len({c.text for c in train + held_out}) == 9
        )
        splits.setdefault(seed, []).append([c.text for c in held_out])
    assert splits[0][0] == splits[0][1] and set(splits[0][0]) != set(splits[1][0])


def test_people_of_the_toy_world_are_disjoint_and_new_in_every_round():
    config = replace(SMALL, outer=replace(SMALL.outer, rounds=3))
    train, held_out = contexts_of(config, TASK, ROOMY)
    assert (
        len(held_out) == 4
        and len(train) == 12
        and len({c.person.name for c in train + held_out}) == 16
    )
    other_world = contexts_of(replace(config, world_seed=1), TASK, ROOMY)
    assert {c.text for c in train + held_out}.isdisjoint(
        c.text for c in other_world[0] + other_world[1]
    )
    other_seed = contexts_of(replace(config, seed=1), TASK, ROOMY)
    assert other_seed == (train, held_out)  # `seed` chooses no people


def test_without_numbers_a_file_is_shared_out_and_the_toy_world_gives_its_own(tmp_path):
    def counts(**settings):
        config = settle(KnowledgeConfig(**settings))
        assert settle(config) == config
        train, held_out = contexts_of(config, TASK, ROOMY)
        return len(train), config.outer.contexts, len(held_out), config.eval_contexts

    nine, five = (
        made_passages(tmp_path / "nine.json", 9),
        made_passages(tmp_path / "five.json", 5, words=5),
    )
    assert counts(data=nine) == (6, 6, 3, 3)
    assert counts(data=nine, eval_contexts=1, outer=OuterConfig(contexts=4)) == (8, 4, 1, 1)
    assert counts(data=nine, eval_data=five) == (9, 9, 5, 5)
    train, in_a_round, held_out, asked_for = counts()
    assert train == in_a_round * KnowledgeConfig().outer.rounds > 0 and held_out == asked_for > 0


def test_eval_data_has_a_file_of_its_own(tmp_path):
    data, eval_data = (
        made_passages(tmp_path / "a.json", 4),
        made_passages(tmp_path / "b.json", 6, words=5),
    )
    train, held_out = contexts_of(replace(SMALL, data=data, eval_data=eval_data), TASK, ROOMY)
    assert len(train) == len(held_out) == 4
    assert all(len(c.text.split()) == 6 for c in train) and all(
        len(c.text.split()) == 5 for c in held_out
    )


def refused(config, block_size=ROOMY):
    with pytest.raises(UserError) as e:
        contexts_of(config, TASK, block_size)
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)


def numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


def test_fewer_contexts_than_asked_for_says_how_many(tmp_path):
    data, eval_data = (
        made_passages(tmp_path / "data.json", 7),
        made_passages(tmp_path / "b.json", 3, words=5),
    )
    message = refused(replace(SMALL, data=data))
    assert 4 in numbers(message) and {7, 3} & set(numbers(message)) and "--eval-contexts" in message
    message = refused(replace(SMALL, data=data, eval_data=eval_data))
    assert {3, 4} <= set(numbers(message)) and 10 not in numbers(
        message
    )  # 10 in all would be enough: it is the second file that is too short


def test_more_people_than_the_toy_world_has():
    """It has 2500 names that pretraining never pairs; with names drawn twice, training and exam would share people."""
    assert (
        len(contexts_of(replace(SMALL, outer=replace(SMALL.outer, contexts=2496)), TASK, ROOMY)[0])
        == 2496
    )
    assert "2500" in refused(replace(SMALL, outer=replace(SMALL.outer, contexts=2497)))


def test_a_passage_longer_than_the_model_reads_says_both_lengths(tmp_path):
    config, block_size, told = replace(SMALL, data=made_passages(tmp_path / "data.json", 8)), 10, []
    while not told or told[-1] > block_size:
        block_size = told[-1] if told else block_size
        try:
            contexts_of(config, TASK, block_size)
            break
        except UserError:
            message = refused(config, block_size)
            told.append(max(numbers(message.split("needs")[-1])))
            assert block_size in numbers(message) and told[-1] > block_size
    # A model of just the length it said is enough, one token less is not; and prompt and self-edit fit.
    assert told[-1] in numbers(refused(config, told[-1] - 1))
    assert told[-1] >= max(
        len(TASK.prompt(c)) + TASK.edit_tokens
        for part in contexts_of(config, TASK, told[-1])
        for c in part
    )


def test_a_passage_in_both_files(tmp_path):
    data = made_passages(tmp_path / "a.json", 4)
    one = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    one["data"][0]["paragraphs"] = one["data"][0]["paragraphs"][2:3]
    (tmp_path / "b.json").write_text(json.dumps(one))
    message = refused(
        replace(SMALL, data=data, eval_data=str(tmp_path / "b.json"), eval_contexts=1)
    )
    assert one["data"][0]["paragraphs"][0]["context"][:20] in message


@pytest.mark.parametrize("name, value", [("grade", "exakt"), ("prompt", "note")])
def test_settings_that_do_not_exist(name, value):
    with pytest.raises(UserError, match=f"{name}.*{value}"):
        KnowledgeConfig(**{name: value})


def test_contexts_are_the_toy_worlds_without_a_file():
    train, held_out = contexts_of(SMALL, TASK, ROOMY)
    assert held_out + train == toy_contexts(8, SMALL.world_seed)


def test_other_prompts_are_measured_and_rl_is_compared_with_the_best(tmp_path, untrained):
    config = replace(
        QUICK,
        model=untrained,
        other_prompts="rewrite, self-qa,notes",
        outer=replace(QUICK.outer, reward="likelihood"),
        edit_tokens=20,
    )
    steps = []
    results = go(config, tmp_path / "run", lambda step, trials: steps.append(step))
    assert len(steps) == steps_of(config)
    means = {a["arm"]: a["mean"] for a in results["arms"]}
    assert list(means) == [
        *BELOW[:2],
        "own notes, rewrite",
        "own notes, self-qa",
        "own notes",
        "round 1",
        "control 1",
        *ABOVE,
    ]
    assert all(
        a["over"] == "passage only" for a in results["arms"] if a["arm"].startswith("own notes")
    )
    best = max(("own notes, rewrite", "own notes, self-qa"), key=means.get)
    assert [c["over"] for c in results["comparisons"]] == [
        "own notes",
        best,
        "passage only",
        "control 1",
    ]
    assert all(
        0 < t["reward"] < 1
        for t in events(tmp_path / "run")
        if t.get("step", "").startswith("round 1 contexts") and "invalid" not in t
    )
    longest = max(map(len, TOKENIZER.ranks))
    assert all(
        len(t["text"]) <= 20 * longest
        for t in events(tmp_path / "run")
        if t.get("step") == "own notes"
    )  # 20 tokens


def test_an_unknown_other_prompt_is_named():
    with pytest.raises(UserError, match="riddles"):
        replace(SMALL, other_prompts="rewrite,riddles")
