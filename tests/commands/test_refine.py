"""Going over it again: what is chosen, what is kept, what is taken back, and going on."""

import json
from dataclasses import replace

import pytest

from minseal import UserError
from minseal.commands import refine as room
from minseal.commands.learn import LearnConfig, StudyConfig, learn
from minseal.commands.notes import Study
from minseal.commands.refine import Standing, find_sections, is_held_out
from minseal.lab.lab import Lab
from minseal.lab.run import Run
from minseal.tasks.knowledge import Question
from minseal.tasks.passages import Passage

PAGE = """# Rivers

The Seine flows through Paris.

# Towns

Bern lies on the Aare.
"""
EXAM = [
    {"question": "What flows through Paris?", "answer": "The Seine"},
    {"question": "Where lies Bern?", "answer": "on the Aare"},
    {"question": "Where lies the town of Bern?", "answer": "on the Aare"},  # held out
]
NOTES = "## Section 1: Rivers\n\nQuestion: What flows through Paris? Answer: The Seine\n"
RIGHT = {1: [Question("Where lies Bern?", "on the Aare")]}  # of the first section gone over
RIVERS = ("The Nile", "The Rhine", "The Po", "The Ebro", "The Elbe")
WRONG = {1: [Question("What flows through Paris?", river) for river in RIVERS]}


@pytest.fixture
def place(tmp_path):
    """(a folder with a page, and notes that teach one of its questions; settings to learn it)."""
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "exam.json").write_text(json.dumps(EXAM))
    (tmp_path / "given.md").write_text(NOTES)
    return tmp_path, LearnConfig(
        "tiny_data/knowledge",
        out=str(tmp_path / "adapter"),
        notes=str(tmp_path / "given.md"),
        exam=str(tmp_path / "exam.json"),
        prompts=("notes",),
        refine=1,
        inner=StudyConfig(lr=5e-3, epochs=20, rank=8),
    )


@pytest.fixture
def brief(place, untrained):
    """The same, with a model that knows and learns nothing."""
    folder, config = place
    return folder, replace(config, model=untrained, inner=StudyConfig(epochs=1, rank=2))


def written(monkeypatch, notes):
    """Passes get these notes; what they were asked for, as a list that grows."""
    asked = []

    def write(lab, prompts, sections):
        asked.append([section.title for section in sections])
        return notes

    monkeypatch.setattr(room, "write_notes", write)
    return asked


def test_a_pass_that_helps_is_kept_with_its_notes_and_the_next_finds_nothing_to_do(
    place, monkeypatch
):
    folder, config = place
    told, asked = [], written(monkeypatch, RIGHT)
    results = learn(replace(config, refine=3), [folder / "page.md"], told.append)
    assert asked == [["Towns"]]  # not the section whose question was right
    (row,) = results["passes"]
    assert row["kept"] and row["right"] == [1, 2, 2] and row["sections"] == [2]
    assert row["held out"][2] == 1
    notes = (folder / "adapter" / "notes.md").read_text()
    assert "What flows through Paris?" in notes and "Where lies Bern? Answer: on the Aare" in notes
    assert not (folder / "adapter" / "notes-1.md").exists()  # it only grew
    assert any("pass 2: 0 of the" in line and "nothing to go over" in line for line in told)
    about = json.loads((folder / "adapter" / "minseal.json").read_text())
    assert about["results"] == results


def test_a_pass_that_does_not_help_is_taken_back_to_the_bit(place, monkeypatch):
    folder, config = place
    learn(replace(config, refine=0, out=str(folder / "plain")), [folder / "page.md"], list)
    assert not any(name.startswith("pass") for name in Run(folder / "plain" / "run-1").steps)
    asked = written(monkeypatch, WRONG)
    results = learn(replace(config, refine=2), [folder / "page.md"], list)
    assert asked == [["Towns"], ["Towns"]]  # from the same adapter, what failed still fails
    assert [row["kept"] for row in results["passes"]] == [False, False]
    assert any(row["right"][1] < row["right"][0] for row in results["passes"])
    for name in ("adapter_model.safetensors", "notes.md", "exam.json"):
        one, other = ((folder / where / name).read_bytes() for where in ("adapter", "plain"))
        assert one == other, name


@pytest.fixture(scope="module")
def undisturbed():
    """What a run that nothing happened to ends with, for the test below."""
    return {}


@pytest.mark.parametrize(
    "where",
    ["pass 1 notes, learnt", "pass 1", "pass 1 notes.md", "pass 2 notes, learnt", "refined"],
)
def test_killed_before_any_step_it_goes_on_to_the_same_adapter(
    brief, monkeypatch, undisturbed, where
):
    folder, config = brief
    config = replace(config, refine=2)
    files = ("adapter_model.safetensors", "notes.md")
    step, reached = Run.step, []

    def killed(run, name, *args):
        if f"{run.prefix}{name}" == where:
            reached.append(name)
            raise KeyboardInterrupt
        return step(run, name, *args)

    written(monkeypatch, RIGHT)  # the first pass has more, the second the same: taken back
    monkeypatch.setattr(
        Standing, "right", lambda now, held_out=False: sum(map(len, now.notes.values()))
    )
    if not undisturbed:
        results = learn(replace(config, out=str(folder / "whole")), [folder / "page.md"], list)
        assert [row["kept"] for row in results["passes"]] == [True, False]
        undisturbed |= {name: (folder / "whole" / name).read_bytes() for name in files}
        undisturbed["steps"] = list(Run(folder / "whole" / "run-1").steps)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Run, "step", killed)
        learn(config, [folder / "page.md"], list)
    assert reached
    told = []
    learn(config, [folder / "page.md"], told.append)
    assert any("going on after" in line for line in told)
    there = {name: (folder / "adapter" / name).read_bytes() for name in files}
    assert there | {"steps": list(Run(folder / "adapter" / "run-1").steps)} == undisturbed


def test_the_same_command_again_only_prints(brief, monkeypatch):
    """And what somebody wrote into the notes afterwards stays."""
    folder, config = brief
    written(monkeypatch, RIGHT)
    monkeypatch.setattr(
        Standing, "right", lambda now, held_out=False: sum(map(len, now.notes.values()))
    )
    first = learn(config, [folder / "page.md"], list)
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    (folder / "adapter" / "notes.md").write_text(NOTES)
    events = (folder / "adapter" / "run-1" / "events.jsonl").read_bytes()
    monkeypatch.setattr(Lab, "plain", None)  # neither asked nor trained once more
    monkeypatch.setattr("minseal.lab.lab.adapt", None)
    told = []
    assert learn(config, [folder / "page.md"], told.append) == first
    assert any("not learnt twice" in line for line in told)
    assert (folder / "adapter" / "notes.md").read_text() == NOTES
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert (folder / "adapter" / "run-1" / "events.jsonl").read_bytes() == events


def test_the_adapted_model_writes_the_notes_with_other_luck_in_each_pass(brief, monkeypatch):
    folder, config = brief
    seen, write = [], Lab.write

    def spy(lab, contexts, draw):
        seen.append(
            (lab.seed, [c.title for c in contexts], lab.policy.blocks[0].attn.q.weight.sum())
        )
        return write(lab, contexts, draw)

    monkeypatch.setattr(Lab, "write", spy)
    config = replace(config, notes="", refine=2)
    learn(config, [folder / "page.md"], list)
    (own, all_of_it, base), *passes = seen
    assert all_of_it == ["Rivers", "Towns"] and len(passes) == 2
    assert len({own, *(seed for seed, *_ in passes)}) == 3
    assert all(weights != base for *_, weights in passes)


def test_without_a_question_it_says_what_is_missing_and_does_nothing(brief):
    folder, config = brief  # its model writes no question
    told = []
    learn(replace(config, exam="", refine=2), [folder / "page.md"], told.append)
    assert [line for line in told if "no question to go by" in line and "--exam" in line]
    assert not any(line.startswith("pass ") for line in told)


def test_what_cannot_be_refined_is_refused(brief):
    folder, config = brief
    with pytest.raises(UserError, match="refine"):
        replace(config, refine=-1)
    learn(replace(config, refine=0), [folder / "page.md"], list)
    own = replace(config, notes=str(folder / "adapter" / "notes.md"))
    before = {p: p.read_bytes() for p in (folder / "adapter").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="give --notes a copy"):  # it would change under the run
        learn(own, [folder / "page.md"], list)
    assert {p: p.read_bytes() for p in (folder / "adapter").rglob("*") if p.is_file()} == before


def study(exam, written_on=None):
    sections = [
        Passage("1", "Rivers", "The Seine is a river in France. It is long.", ()),
        Passage("2", "Towns", "Bern is a town on the river Aare. The Seine is not there.", ()),
        Passage("3", "Hills", "Napf is a hill in the canton of Bern. It is not high.", ()),
        Passage("4", "Colophon", "Printed in 10 copies in Vienna.", ()),
    ]
    return Study(None, None, (), {}, sections, {}, exam, written_on or {})


@pytest.mark.parametrize(
    "question, answer, section",
    [
        ("On which river is Bern?", "the Aare", 2),  # one section holds the answer
        ("Which river is long?", "Seine", 1),  # two do: the words decide
        ("Which hill is it?", "no word of it", 3),  # none does, as where it must be inferred
        ("Is Napf in Bern?", "yes", 3),  # a rare word says more than a common one
        ("How many bridges has the Aare on its way through the town of Bern?", "10", 2),  # not 4
        ("Quo vadis?", "Romam", 0),
    ],
)
def test_a_given_question_belongs_to_the_section_that_answers_it(question, answer, section):
    assert find_sections(study(((question, (answer,)),)), [0]) == [section]


def test_a_question_that_the_model_wrote_belongs_to_the_section_it_was_written_on():
    exam = (("Which river is long?", ("Seine",)),)
    assert find_sections(study(exam, {"Which river is long?": 2}), [0]) == [2]
    assert [is_held_out(i) for i in range(6)] == [False, False, True] * 2
