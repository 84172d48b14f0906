"""The few-shot ladder and test-time training alone, small but whole: which arms, on which tasks, the same numbers however often it was stopped."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from minseal import InnerConfig, OuterConfig, UserError, load, try_out
from minseal.cli import main
from minseal.experiment_fewshot import (
    FewShotConfig,
    TTTConfig,
    run_fewshot,
    run_ttt,
    settle,
    steps_of,
    task_of,
    tasks_of,
)
from minseal.ladders import LADDERS
from minseal.outer import MStepConfig
from minseal.pretrain import measure_grids
from minseal.report import text_report, write_report
from minseal.runs import Run
from minseal.tasks import grids
from minseal.tasks.arc import GridTask, Pair, to_json

SHIPPED = Path(__file__).parent.parent / "tiny_data" / "fewshot"
FAST = InnerConfig(lr=6e-3, epochs=1, batch=4, rank=2, alpha=4.0)
SMALL = FewShotConfig(
    eval_contexts=4,
    reliability_contexts=1,
    train_tasks=4,
    constants=2,
    views=24,
    inner=FAST,
    outer=OuterConfig(
        rounds=2, contexts=3, samples=3, select="all-best", m_step=MStepConfig(epochs=1)
    ),
    solvable="no",
)
ARMS = [
    "in context",
    "own self-edits",
    "round 1",
    "round 2",
    "control 1",
    "control 2",
    "first self-edits, last weights",
    "last self-edits, first weights",
    "best constant",
    "oracle",
]


def go(config, folder, kind="fewshot", on_step=None):
    config = settle(config)
    run = Run(folder, {"kind": kind, **asdict(config)}, on_step)
    {"fewshot": run_fewshot, "ttt": run_ttt}[kind](config, run, say=list)
    return write_report(run, say=list), run


def without_seconds(x):
    if isinstance(x, dict):
        return {k: without_seconds(v) for k, v in x.items() if k != "seconds"}
    return [without_seconds(v) for v in x] if isinstance(x, list) else x


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    told = []
    results, run = go(
        SMALL,
        tmp_path_factory.mktemp("fewshot") / "run",
        on_step=lambda step, trials: told.append(step),
    )
    return results, run, told


def test_results_hold_the_ladder_in_order(finished):
    results, run, told = finished
    assert [a["arm"] for a in results["arms"]] == ARMS and all(a["n"] == 4 for a in results["arms"])
    assert told[-1] == LADDERS["fewshot"].last
    m_steps = sum(step.endswith("M-step") for step in told)  # a round without winners has none
    lots = sum(step.startswith("constants") for step in told)
    assert len(told) == len(set(told)) == steps_of(settle(SMALL)) - (4 - m_steps) - (2 - lots)
    assert json.loads((run.folder / "results.json").read_text())["kind"] == "fewshot"


def test_every_arm_has_the_same_held_out_tasks_none_of_which_was_trained_on(finished):
    _, run, _ = finished
    held_out = [t["context"] for t in run.done["in context"]["trials"]]
    assert all([t["context"] for t in run.done[arm]["trials"]] == held_out for arm in ARMS)
    trained = {
        t["context"]
        for step, d in run.done.items()
        if " contexts " in step or step.startswith("constants")
        for t in d["trials"]
    }
    assert len(trained) == 6 and not trained & set(held_out)
    assert [*json.loads((run.folder / "tasks.json").read_text())] == held_out


def test_the_reward_is_graded_as_the_answers_deserve(finished):
    """Again, by plain comparison of text: rows of digits."""
    _, run, _ = finished
    tasks = {t.id: t for t in grids.toy_tasks(4, 0)}
    checked = [t for arm in ARMS for t in run.done[arm]["trials"] if "answers" in t]
    assert len(checked) >= 20
    for t in checked:
        right = "\n".join("".join(map(str, row)) for row in tasks[t["context"]].tests[0].output)
        assert t["reward"] == float(t["answers"][0] == right)


def test_attribution_arms_have_the_texts_that_their_names_say(finished):
    _, run, _ = finished
    texts = {
        arm: [t["text"] for t in run.done[arm]["trials"]] for arm in ARMS[1:]
    }  # in context nothing is written
    assert texts["first self-edits, last weights"] == texts["own self-edits"]
    assert texts["last self-edits, first weights"] == texts["round 2"]
    assert len(set(texts["best constant"])) == 1
    # First weights: what the first policy's weights give to the same texts, measured apart.
    model, tokenizer = load(SMALL.model)
    task = task_of(settle(SMALL), model, tokenizer)
    _, held_out = tasks_of(settle(SMALL), task, model.config.block_size)
    again = try_out(model, tokenizer, task, list(zip(held_out, texts["round 2"])), SMALL.inner, 16)
    assert [t["reward"] for t in again] == [
        t["reward"] for t in run.done["last self-edits, first weights"]["trials"]
    ]
    assert [t.get("answers") for t in again] == [
        t.get("answers") for t in run.done["last self-edits, first weights"]["trials"]
    ]


def test_unreadable_self_edits_score_nothing_and_are_counted(tmp_path):
    """A temperature at which hardly any text is JSON."""
    hot = replace(
        SMALL,
        control=False,
        reliability_contexts=0,
        outer=replace(SMALL.outer, rounds=1, temperature=5.0),
    )
    results, run = go(hot, tmp_path / "run")
    unread = [
        t
        for t in run.done["own self-edits"]["trials"]
        + run.done["round 1"]["trials"]
        + run.done["round 1 contexts 1-3"]["trials"]
        if "description" not in t
    ]
    assert unread and all(t["reward"] == 0 and t["invalid"] for t in unread)
    assert results["unreadable"] == {"self_edits": 8 + 9, "unreadable": len(unread)}
    assert f"of 17 self-edits {len(unread)} were unreadable" in text_report(run, results)


def test_stopped_and_resumed_gives_the_same(finished, tmp_path):
    results, run, told = finished

    class Stop:
        def __init__(self, n):
            self.n = n

        def __call__(self, step, trials):
            self.n -= 1
            if self.n == 0:
                raise KeyboardInterrupt

    for n in (2, 5, len(told) // 2, len(told) - 1):
        with pytest.raises(KeyboardInterrupt):
            go(SMALL, tmp_path / "run", on_step=Stop(n))
    again, _ = go(SMALL, tmp_path / "run")
    assert without_seconds(again) == without_seconds(results)


def test_only_tasks_that_the_oracle_solves_are_held_out_and_the_others_counted(tmp_path):
    config = replace(
        SMALL,
        solvable="yes",
        eval_contexts=3,
        train_tasks=8,
        control=False,
        reliability_contexts=0,
        inner=replace(FAST, batch=1, rank=8, alpha=16.0),
        outer=replace(SMALL.outer, rounds=0),
    )
    results, run = go(config, tmp_path / "run")
    tried = run.done["solvable"]["trials"]
    solved = [t["context"] for t in tried if t["reward"] == 1]
    kept = [
        id
        for i, id in enumerate(solved)
        if sum(x.split()[0] == id.split()[0] for x in solved[:i]) < 2
    ]  # half of three, rounded up, of each kind
    assert len(tried) == 6 and solved
    assert [t["context"] for t in run.done["in context"]["trials"]] == kept[:3]
    assert results["solvable"] == {"tried": 6, "solved": len(solved), "kept": len(kept[:3])}
    assert [a["arm"] for a in results["arms"]] == [
        "in context",
        "own self-edits",
        "first self-edits, last weights",
        "last self-edits, first weights",
        "best constant",
        "oracle",
    ]


# ---- test-time training alone ------------------------------------------------------------------------------------------


def test_ttt_leaves_nothing_behind_unless_it_is_kept(tmp_path, finished):
    _, seal, _ = finished
    config = TTTConfig(
        eval_contexts=4,
        train_tasks=8,
        solvable="no",
        inner=replace(FAST, batch=1, rank=8, alpha=16.0, epochs=3),
        policy=str(seal.folder),
    )
    results, run = go(config, tmp_path / "run", "ttt")
    answers = {arm: [t.get("answers") for t in d["trials"]] for arm, d in run.done.items()}
    assert (
        answers["before"]
        == answers["adapter thrown away"]
        == [t["answers"] for t in seal.done["in context"]["trials"]]
    )
    assert answers["policy, before"] == answers["policy, adapter thrown away"]
    assert (
        answers["kept, asked at once"][0] == answers["adapter on"][0]
    )  # the first task's weights were the first weights
    assert answers["kept, asked at the end"][-1] == answers["kept, asked at once"][-1]
    assert answers["kept, asked at the end"] != answers["before"]
    assert [a["arm"] for a in results["arms"]] == [
        "before",
        "adapter on",
        "adapter thrown away",
        "policy, before",
        "policy, adapter on",
        "policy, adapter thrown away",
        "kept, asked at once",
        "kept, asked at the end",
    ]
    assert "share of the tasks solved" in text_report(run, results)


# ---- tasks from files, and what is refused -----------------------------------------------------------------------------


def write_tasks(path, tasks):
    path.write_text(json.dumps({t.id: to_json(t) for t in tasks}))
    return str(path)


def test_tasks_from_a_file_go_the_whole_way(tmp_path):
    """ARC's way: no kinds, all ten colours, the paper's prompts (which the tiny model never saw)."""
    data = write_tasks(
        tmp_path / "tasks.json", [replace(t, kind="") for t in grids.toy_tasks(6, 3)]
    )
    config = replace(
        SMALL,
        data=data,
        eval_contexts=0,
        prompt="paper",
        vote=1,
        outer=replace(SMALL.outer, rounds=1, contexts=0),
        edit_tokens=24,
    )
    results, run = go(config, tmp_path / "run")
    assert all(a["n"] == 2 for a in results["arms"]) and run.config["outer"]["contexts"] == 4
    assert all("pass1" in a and a["pass1"] <= a["pass2"] for a in results["arms"])
    assert all(t["invalid"] for t in run.done["own self-edits"]["trials"])


LONG = GridTask(
    "long",
    tuple(Pair(((1,) * 30,) * 30, ((2,) * 30,) * 30) for _ in range(12)),
    (Pair(((1,) * 30,) * 30, ((2,) * 30,) * 30),),
)
TASKS = grids.toy_tasks(5, 3)


@pytest.mark.parametrize(
    "tasks, options, message",
    [
        (TASKS[:1], {}, "not enough tasks, 1 in all"),
        (
            [*TASKS, LONG],
            {},
            "task long needs .* tokens; the model reads 16384: leave such tasks out with --most-tokens",
        ),
        (
            [*TASKS, replace(TASKS[0], id="blind", tests=(Pair(TASKS[0].tests[0].input, None),))],
            {},
            "task blind, test 1 has no output",
        ),
        (
            [*TASKS, replace(TASKS[0], id="lonely", demonstrations=TASKS[0].demonstrations[:1])],
            {},
            "task lonely has one demonstration",
        ),
        (TASKS, {"eval_contexts": 9}, "not enough tasks"),
        (TASKS, {"subset": "paper"}, "of the paper's 22 tasks these are missing"),
    ],
)
def test_tasks_that_cannot_be_run_are_refused_in_one_line(tmp_path, tasks, options, message):
    data = write_tasks(tmp_path / "tasks.json", tasks)
    with pytest.raises(UserError, match=message) as e:
        go(FewShotConfig(data=data, **options), tmp_path / "run")
    assert "\n" not in str(e.value) and not (tmp_path / "run").exists()


def test_long_tasks_can_be_left_out(tmp_path):
    data = write_tasks(tmp_path / "tasks.json", [*TASKS, LONG])
    config = settle(
        FewShotConfig(
            data=data,
            most_tokens=400,
            eval_contexts=2,
            prompt="tiny",
            outer=OuterConfig(contexts=3, samples=1),
        )
    )
    model, tokenizer = load(config.model)
    task = task_of(config, model, tokenizer)
    train, held_out = tasks_of(config, task, model.config.block_size)
    assert {t.id for t in train + held_out} == {t.id for t in TASKS}
    assert task.answer_tokens < 20  # no room for the long one's answers


def test_toy_tasks_held_out_do_not_depend_on_the_outer_loop():
    model, tokenizer = load(SMALL.model)
    task = task_of(settle(SMALL), model, tokenizer)
    ids = {
        tuple(
            t.id
            for t in tasks_of(
                settle(replace(SMALL, outer=replace(SMALL.outer, rounds=r, contexts=n))),
                task,
                10**5,
            )[1]
        )
        for r, n in ((1, 3), (4, 9))
    }
    assert len(ids) == 1


@pytest.mark.parametrize(
    "words, told",
    [
        ("run fewshot --data nowhere.json", "nowhere.json"),
        ("run fewshot --data ragged.json", "ragged"),
        ("run fewshot --subset paper", "--data"),
        ("run fewshot --vote -1", "vote"),
        ("run fewshot --solvable perhaps", "perhaps"),
        ("run fewshot --views -3", "views"),
        ("run ttt --augmentations turn", "turn"),
        ("run fewshot --contexts 9999", "rules for"),
        ("run ttt --policy nowhere", "nowhere"),
        ("show nope", "nope"),
        ("show x --run nowhere", "nowhere"),
        ("run fewshot --model nowhere", "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, words, told):
    (tmp_path / "tiny_data").symlink_to(SHIPPED.parent)
    (tmp_path / "ragged.json").write_text(
        '{"a": {"train": [{"input": [[1], [1, 2]], "output": [[1]]}], "test": [{"input": [[1]], "output": [[1]]}]}}'
    )
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(SystemExit) as e:
        main(words.split())
    out, err = capsys.readouterr()
    assert e.value.code == 2 and err.count("\n") == 1 and told in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_shipped_model_knows_kinds_and_no_rule(capsys):
    """What the toy world rests on: an unseen rule is named by its kind and not solved in context. 200 tasks: the bounds are far from the measured 1.00 and .04."""
    measured = measure_grids(*load(SHIPPED), n=100, seed=9)
    assert measured["kind of other rules"] >= 0.9
    assert max(measured["other rules, places"], measured["other rules, colours"]) <= 0.15
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 8e6
