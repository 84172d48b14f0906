"""Teacher and student: who writes and who learns, the student's own loop, stop and resume."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import events, without_seconds
from kills import stop_at

import minseal
from minseal import (
    GPT,
    InnerConfig,
    OuterConfig,
    People,
    Trial,
    UserError,
    adapt,
    exam,
    toy_passages,
)
from minseal.experiments import students
from minseal.experiments.passages import people
from minseal.experiments.students import Answers, TowardsWinners
from minseal.experiments.teacher import TeacherConfig
from minseal.lab.lab import EXPERIMENTS, restore_policy, settings_of, walk
from minseal.lab.run import Run
from minseal.lab.table import summarise, text_report, write_report
from minseal.outer import MStepConfig

TEACHER = EXPERIMENTS["teacher"]
SMALL = TeacherConfig(
    eval_contexts=2,
    edit_tokens=8,
    other_prompts=(),
    inner=InnerConfig(lr=0.01, epochs=1, rank=2),
    outer=OuterConfig(2, 2, 2, reward="likelihood", m_step=MStepConfig(epochs=1, rank=2)),
    student_step=MStepConfig(epochs=1, rank=2),
)


# ---- the student's ways ----


def tried(passages, texts, rewards):
    """A round: the same texts and rewards for each passage."""
    return [(p, [Trial(p.id, r, t) for t, r in zip(texts, rewards)]) for p in passages]


def test_towards_winners_is_the_mean_of_adapters_trained_one_by_one(pretrained):
    model, tokenizer = pretrained
    task, passages = People(tokenizer), toy_passages(5, 3)
    some = [
        (p, [Trial(p.id, 0.1, "It is nice to read."), Trial(p.id, 0.5, "\n".join(p.oracle))])
        for p in passages[:4]
    ]
    some += tried(passages[4:], ["alike", "alike, too"], [0.5, 0.5])
    inner, before = InnerConfig(lr=6e-3, epochs=2, rank=4), copy.deepcopy(model.state_dict())
    expected = {name: torch.zeros_like(w) for name, w in before.items()}
    for passage in passages[:4]:
        with adapt(model, [task.oracle(passage)], inner, 7) as adapters:
            for name, layer in adapters.layers.items():
                expected[f"{name}.weight"] += 0.5 * layer.delta(0).detach() / 4
    TowardsWinners(inner, share=0.5, at_once=3)(model, task, some, 7)
    for name, w in model.state_dict().items():
        torch.testing.assert_close(w, before[name] + expected[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("way", [TowardsWinners(InnerConfig()), Answers(InnerConfig(), True)])
def test_without_winners_the_student_stays_as_it_was(way, pretrained):
    model, tokenizer = pretrained
    before = copy.deepcopy(model.state_dict())
    way(model, People(tokenizer), tried(toy_passages(2, 3), ["a", "b"], [0.5, 0.5]), 0)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


@pytest.mark.parametrize("in_view", [True, False])
def test_only_right_answers_are_learnt_in_view_or_beside_the_notes(
    in_view, pretrained, monkeypatch
):
    model, tokenizer = pretrained
    task, passages, seen = People(tokenizer), toy_passages(3, 3), []
    one = passages[0]
    text = "\n".join(one.oracle[:2])
    some = tried([one], ["Life is full of stories.", text], [0.0, 0.5])

    def spy(model, edits, *rest):
        seen.extend(edits[0].documents)
        return adapt(model, edits, *rest)

    monkeypatch.setattr(students, "adapt", spy)
    Answers(InnerConfig(epochs=1), in_view)(model, task, some, 0)
    told = [tokenizer.decode([i for i, w in zip(d.ids, d.weights) if w]) for d in seen]
    asked = [tokenizer.decode([i for i, w in zip(d.ids, d.weights) if not w]) for d in seen]
    lessons = [(q, a.strip()) for q, a in zip(asked, told) if q]
    right = {(task.asked(one, q), golds[0]) for q, golds in one.questions}
    before = f"{one.text}\n{text}\n" if in_view else ""
    # It reads without errors: of four answers to each question one is right, or all are.
    assert set(lessons) == {(before + q, a) for q, a in right} and len(lessons) == len(right)
    rest = [d.ids for d, q in zip(seen, asked) if not q]
    assert rest == ([] if in_view else [d.ids for d in task.parse(one, text).documents])


def test_answers_out_of_view_stay_with_the_student(pretrained):
    """The same people, asked again with no adapter."""
    model, tokenizer = pretrained
    task, passages = People(tokenizer), toy_passages(8, 3)
    some = [(p, [Trial(p.id, 0.0, "?"), Trial(p.id, 1.0, "\n".join(p.oracle))]) for p in passages]
    know = lambda: np.mean([o.reward for o in exam(model, task, passages)])
    before = know()
    Answers(MStepConfig(lr=2e-3, batch=16), False)(model, task, some, 0)
    assert know() > before + 0.3


# ---- the experiment ----


def go(config, folder, on_step=lambda step, new: None):
    run = Run(folder, settings_of(TEACHER, config), on_step)
    walk(TEACHER, config, run, say=list)
    return run, summarise(run, TEACHER)


@pytest.fixture(scope="module")
def config(untrained, tmp_path_factory):
    """Two models that know nothing, the small one narrower."""
    big, tokenizer = minseal.load(untrained)
    small = GPT(replace(big.config, n_embd=8)).init_weights(torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("models") / "student"
    minseal.save(folder, small.eval(), tokenizer, {})
    return replace(SMALL, model=untrained, student=str(folder))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    return go(config, tmp_path_factory.mktemp("teacher") / "run")


def test_arms_and_matrix(finished):
    run, results = finished
    arms = {a["arm"]: a for a in results["arms"]}
    for name in ("big for small", "big for big", "small for small"):
        writer, learner = name.split(" for ")
        other = {"big": "small", "small": "big"}[learner]
        assert [a["at"] for a in arms.values() if a["series"] == [name]] == [0, 1, 2]
        assert arms[f"{name} 0"]["over"] == f"passage only, {learner}"
        assert arms[f"{name} 2"]["over"] == f"{name} 0"
        assert arms[f"{name} 2, {other} learns"]["over"] == f"{writer} for {other} 0"
    assert arms["small for big 0"]["over"] == "passage only, big"
    long = ("student's loop 2", "both loops 2")
    for name in (*long, "answers in view 1", "towards winners 1"):
        assert arms[name]["over"] == "big for small 0"
        assert arms[f"{name}, oracle notes"]["over"] == "small, oracle notes"
        assert arms[f"{name}, plain"]["over"] == "no adaptation, small"
    assert len(results["knows"]) == 5 and len(results["questions"]) == 5
    report = text_report(run, TEACHER, results)
    assert "small, taught on itself" in report and "General knowledge of the student" in report
    assert results["left out"] == []


def test_round_1_is_tried_once_and_each_loop_changes_what_it_teaches(finished):
    run, _ = finished
    first = [name for name in run.steps if "1 contexts" in name]
    assert first == [
        f"{p} 1 contexts 1-2" for p in ("big for small", "big for big", "small for small")
    ]
    assert run.result("both loops 2 M-step") and run.result("both loops 2 student")
    assert not run.result("student's loop 2 M-step") and run.result("student's loop 2 student")
    assert run.result("big for small 2 M-step") and "big for small 2 student" not in run.steps
    # The untaught teacher goes on writing for the student that is taught.
    texts = lambda arm: [t.text for t in run.steps[arm].trials]
    assert texts("student's loop 2") == texts("big for small 0") != texts("both loops 2")


def test_the_other_model_learns_from_what_the_taught_teacher_wrote(finished, config, tmp_path):
    """The teacher made again from the run folder, both students as they were."""
    run, _ = finished
    lab = people(config, Run(tmp_path / "other", {}))
    big, (small, _) = copy.deepcopy(lab.policy), minseal.load(config.student)
    restore_policy(lab.policy, run.folder)  # the first loop: big for small
    for student, arm in ((big, "big for small 2, big learns"), (small, "big for small 2")):
        lab.student = student
        here = [(t.text, t.answers) for t in lab.study_own(lab.held_out)]
        assert here == [(t.text, t.answers) for t in run.steps[arm].trials]


def test_both_loops_end_with_the_student_of_their_last_round(finished, config, tmp_path):
    run, _ = finished
    lab = people(config, Run(tmp_path / "other", {}))
    lab.student, _ = minseal.load(config.student)
    before = [t.answers for t in lab.plain(lab.held_out)]
    assert before == [t.answers for t in run.steps["no adaptation, small"].trials]
    lab.student.load_state_dict(run.result("both loops 2 student"))
    oracle = lab.study(lab.held_out, lab.task.oracle)
    there = run.steps["both loops 2, oracle notes"].trials
    assert [t.answers for t in oracle] == [t.answers for t in there]


def test_stopped_and_resumed_gives_the_same(finished, config, tmp_path):
    for n in (12, 45):
        with pytest.raises(KeyboardInterrupt):
            go(config, tmp_path / "run", stop_at(n))
        assert summarise(Run(tmp_path / "run"), TEACHER)["left out"] == []
    run, again = go(config, tmp_path / "run")
    assert without_seconds(again) == without_seconds(finished[1])
    steps = [e["done"] for e in events(run.folder) if "done" in e]
    assert len(steps) == len(set(steps))


def test_the_report_draws_all_loops(finished):
    run, _ = finished
    write_report(run, TEACHER)
    assert (run.folder / "loops.png").exists() and (run.folder / "rounds.png").exists()


def test_two_tokenizers_are_refused(config, tmp_path):
    with pytest.raises(UserError, match="different tokenizers; expected two") as e:
        go(replace(config, student="tiny_data/fewshot"), tmp_path / "run")
    assert len(str(e.value).splitlines()) == 1 and not (tmp_path / "run").exists()


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="--data: expected none"):
        TeacherConfig(data="squad.json")
    with pytest.raises(UserError, match="rounds is 0"):
        TeacherConfig(outer=OuterConfig(rounds=0))


def test_the_best_untrained_prompt_stands_beside_the_taught_teacher(config, tmp_path):
    outer = replace(config.outer, rounds=1)
    config = replace(config, other_prompts=("questions",), outer=outer)
    with pytest.raises(KeyboardInterrupt):
        go(config, tmp_path / "run", stop_at(10))
    results = summarise(Run(tmp_path / "run"), TEACHER)
    (a,) = [a for a in results["arms"] if a["arm"] == "own notes, questions"]
    assert a["over"] == "passage only, small"


@pytest.mark.slow
def test_a_taught_teacher_helps_a_student_it_was_not_taught_on(tmp_path):
    """One round, the shipped models."""
    outer = OuterConfig(rounds=1, contexts=48, samples=4, m_step=MStepConfig(batch=4))
    _, results = go(TeacherConfig(eval_contexts=24, outer=outer, world_seed=9), tmp_path / "run")
    arms = {a["arm"]: a for a in results["arms"]}
    assert arms["big for small 1"]["gain"] > 0.05
    assert arms["big for small 1, big learns"]["gain"] > 0.05
