"""Learning documents: what is written, what persists, what goes on, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest

from minseal import LoRAConfig, UserError, attach, load
from minseal.commands import learn as room
from minseal.commands.ask import AskConfig, ask
from minseal.commands.documents import read_notes, split_document
from minseal.commands.learn import LearnConfig, StudyConfig, learn
from minseal.lab.lab import Lab
from minseal.lab.run import Run
from minseal.lora import TARGETS
from minseal.open_models.peft import load_adapter, save_adapter
from minseal.tasks.knowledge import Knowledge

TEXT = f"""# Rivers

The Seine flows through Paris. It is 777 kilometres long.
It rises in Burgundy.

The Rhine flows through Cologne.

## Mountains

Mont Blanc is high. {"It is very cold there. " * 12}
"""
EXAM = [
    {"question": "What flows through Paris?", "answer": "The Seine"},
    {"question": "What flows through Cologne?", "answer": "The Rhine"},
]
NOTES = """## Section 1: Rivers

Question: What flows through Paris? Answer: The Seine
Question: What flows through Cologne? Answer: The Rhine
"""
BRIEF = StudyConfig(epochs=1, rank=2)


@pytest.fixture
def place(tmp_path):
    """A folder with a document, notes and an exam; (folder, settings to learn it)."""
    (tmp_path / "rivers.md").write_text(TEXT)
    (tmp_path / "exam.json").write_text(json.dumps(EXAM))
    (tmp_path / "notes.md").write_text(NOTES)
    return tmp_path, LearnConfig(
        "tiny_data/knowledge",
        out=str(tmp_path / "adapter"),
        notes=str(tmp_path / "notes.md"),
        exam=str(tmp_path / "exam.json"),
        section=60,
        inner=StudyConfig(lr=5e-3, epochs=30, rank=8),
    )


def names(folder):
    return {f.name for f in folder.iterdir()}


def stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_notes_teach_the_exam_and_the_adapter_answers_when_it_is_loaded_again(place):
    folder, config = place
    told = []
    results = learn(config, [folder / "rivers.md"], told.append)
    assert results["before"] == 0 and results["after"] == 1, "\n".join(told)
    assert any("right: 0 of 2 before, 2 of 2 after" in line for line in told)
    assert ask(AskConfig(config.model, adapter=config.out), EXAM[0]["question"]) == "The Seine"
    assert ask(AskConfig(config.model), EXAM[0]["question"]) != "The Seine"
    files = {"adapter_config.json", "adapter_model.safetensors", "minseal.json"}
    assert names(folder / "adapter") == files | {"notes.md", "exam.json", "run-1"}
    about = json.loads((folder / "adapter" / "minseal.json").read_text())
    assert about["files"] == [str(folder / "rivers.md")] and about["results"] == results


def test_the_same_command_again_only_prints(place, monkeypatch):
    folder, config = place
    first = learn(config, [folder / "rivers.md"], list)
    files = sorted(f for f in (folder / "adapter").rglob("*") if f.is_file())
    events = (folder / "adapter" / "run-1" / "events.jsonl").read_bytes()
    monkeypatch.setattr(Lab, "plain", stop)  # neither asked nor trained once more
    monkeypatch.setattr("minseal.lab.lab.adapt", stop)
    told = []
    assert learn(config, [folder / "rivers.md"], told.append) == first
    assert any("right: 0 of 2 before, 2 of 2 after" in line for line in told)
    assert sorted(f for f in (folder / "adapter").rglob("*") if f.is_file()) == files
    assert (folder / "adapter" / "run-1" / "events.jsonl").read_bytes() == events


@pytest.mark.parametrize("where", ["write", "train", "after"])
def test_killed_at_any_step_it_goes_on_to_the_same_adapter(place, monkeypatch, where):
    folder, config = place
    config = replace(config, notes="", inner=BRIEF)  # the model writes the notes
    document = [folder / "rivers.md"]
    whole, calls = Lab.plain, []

    def late(*args, **kwargs):
        calls.append(1)
        return stop() if len(calls) > 1 else whole(*args, **kwargs)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        if where == "write":  # the second style of notes
            written = Lab.write
            m.setattr(
                Lab,
                "write",
                lambda lab, *a: stop() if lab.task.style != "self-qa" else written(lab, *a),
            )
        elif where == "train":
            m.setattr("minseal.lab.lab.adapt", stop)
        else:
            m.setattr(Lab, "plain", late)
        learn(config, document, list)
    done = list(Run(folder / "adapter" / "run-1").steps)
    assert done and ("notes.md" in done) == (where != "write")
    assert (folder / "adapter" / "adapter_config.json").exists() == (where == "after")
    results = learn(config, document, list)
    assert list(Run(folder / "adapter" / "run-1").steps)[: len(done)] == done
    assert not (folder / "adapter" / "run-2").exists()
    again = learn(replace(config, out=str(folder / "whole")), document, list)
    assert {**results, "training seconds": 0} == {**again, "training seconds": 0}
    for name in ("notes.md", "exam.json", "adapter_model.safetensors"):
        one, other = ((folder / place / name).read_bytes() for place in ("adapter", "whole"))
        assert one == other, name


def test_learning_goes_on_from_an_adapter(place):
    folder, config = place
    learn(config, [folder / "rivers.md"], list)
    (folder / "hills.md").write_text("Mont Blanc is high.")
    (folder / "more.md").write_text(
        "## Section 1: hills\n\nQuestion: How is Mont Blanc? Answer: high\n"
    )
    again = replace(
        config,
        adapter=config.out,
        out=str(folder / "second"),
        notes=str(folder / "more.md"),
        inner=StudyConfig(lr=1e-4, epochs=1, rank=4),
    )
    results = learn(again, [folder / "hills.md"], list)
    assert results["before"] == 1  # the exam is about what was learnt before
    assert results["after"] == 1
    model, _ = load(config.model)
    _, lora = load_adapter(folder / "second", model)
    assert lora.rank == 8  # the rank of the adapter that goes on, not a new one
    about = json.loads((folder / "second" / "minseal.json").read_text())
    assert about["learnt before"] == config.out


def test_the_notes_of_another_document_are_refused_and_nothing_is_lost(place):
    """Kind: a file that fits by its numbers and is about something else."""
    folder, config = place
    learn(config, [folder / "rivers.md"], list)
    before = {p: p.read_bytes() for p in (folder / "adapter").rglob("*") if p.is_file()}
    (folder / "other.md").write_text("# One\n\nIron rusts.\n")
    notes = replace(config, notes=str(folder / "adapter" / "notes.md"))
    with pytest.raises(UserError, match="has notes on other texts: section 1 is 'Rivers' there"):
        learn(notes, [folder / "other.md"], list)
    assert {p: p.read_bytes() for p in (folder / "adapter").rglob("*") if p.is_file()} == before


def test_what_gets_another_name_is_told(place):
    folder, config = place
    learn(config, [folder / "rivers.md"], list)
    mine = folder / "adapter" / "exam.json"
    mine.write_text(json.dumps([{"question": "Mine?", "answer": "Yes"}]))
    said = []
    learn(
        replace(config, adapter=config.out, seed=1, inner=BRIEF),
        [folder / "rivers.md"],
        said.append,
    )
    kept = folder / "adapter" / "exam-1.json"
    assert "Mine?" in kept.read_text() and f"what was {mine} is now {kept}" in said


def test_an_adapter_that_goes_on_in_its_own_folder_keeps_the_older_notes(place):
    folder, config = place
    document = [folder / "rivers.md"]
    learn(config, document, list)
    first = (folder / "adapter" / "notes.md").read_text()
    (folder / "more.md").write_text("## Section 1: rivers\n\nAnother note.\n")
    own = replace(config, adapter=config.out, notes=str(folder / "more.md"), inner=BRIEF)
    learn(own, document, list)
    there = folder / "adapter"
    assert (there / "notes-1.md").read_text() == first
    assert "Another note." in (there / "notes.md").read_text()
    assert {"run-1", "run-2", "exam.json"} <= names(there)
    assert "exam-1.json" not in names(there)  # the same exam: nothing to keep beside it
    assert ask(AskConfig(config.model, adapter=config.out), EXAM[0]["question"]) == "The Seine"


def test_the_model_writes_notes_that_can_be_edited(place):
    folder, config = place
    config = replace(config, notes="", inner=BRIEF)
    document, made = [folder / "rivers.md"], folder / "adapter" / "notes.md"
    learn(config, document, list)
    text = made.read_text()
    _, tokenizer = load(config.model)
    assert text.count("## Section") == len(split_document(tokenizer, "rivers.md", TEXT, 60))
    assert "## Section 1: Rivers" in text
    learn(replace(config, notes=str(made), out=str(folder / "again")), document, list)
    task = Knowledge(tokenizer, topic=False)
    copied = folder / "again" / "notes.md"
    assert read_notes(task, str(copied)) == read_notes(task, str(made))
    learn(replace(config, notes=str(made)), document, list)  # in the same folder, too
    assert made.read_text() == text and "notes-1.md" not in names(folder / "adapter")


def test_an_adapter_of_fewer_layers_goes_on_in_all(place):
    """PEFT adapters often adapt q and v only; a bug once lost the training at its end."""
    folder, config = place
    model, _ = load(config.model)
    lora = LoRAConfig(4, 8.0, ("q", "v"))
    with attach(model, 1, lora) as adapters:
        state = adapters.state()
    save_adapter(folder / "peft", model, state, lora, config.model)
    config = replace(config, adapter=str(folder / "peft"), inner=replace(config.inner, epochs=60))
    results = learn(config, [folder / "rivers.md"], list)
    assert results["after"] > results["before"]
    assert load_adapter(folder / "adapter", model)[1].targets == TARGETS


def test_what_lies_in_the_folder_is_not_overwritten(place):
    folder, config = place
    document = [folder / "rivers.md"]
    mine = folder / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        learn(replace(config, out=str(mine)), document, list)
    assert names(mine) == {"thesis.tex"}
    learn(replace(config, inner=BRIEF), document, list)
    before = names(folder / "adapter")
    with pytest.raises(UserError, match="--adapter .*--notes"):  # another run: how to go on
        learn(config, document, list)
    with pytest.raises(UserError, match="missing.md"):  # a mistake moves nothing
        learn(replace(config, adapter=config.out), [folder / "missing.md"], list)
    assert names(folder / "adapter") == before


@pytest.mark.parametrize("text", ["", "text\0text"])
def test_a_document_without_words_is_refused_and_nothing_is_written(place, text):
    folder, config = place
    (folder / "bad.txt").write_text(text)
    with pytest.raises(UserError, match="bad.txt"):
        learn(config, [folder / "bad.txt"], list)
    assert not (folder / "adapter").exists()


def test_without_a_question_it_learns_without_an_exam(place, monkeypatch):
    folder, config = place
    monkeypatch.setattr(room, "write_exam", lambda *args: ((), {}))
    told = []
    results = learn(replace(config, exam="", inner=BRIEF), [folder / "rivers.md"], told.append)
    assert "after" not in results and (folder / "adapter" / "adapter_config.json").exists()
    assert any("0 questions" in line for line in told)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"model": ""}, "--model"),
        ({"model": "{folder}/no"}, "no model at"),
        ({"notes": "{folder}/rivers.md"}, "Section 1"),
        ({"notes": "{folder}/far.md"}, "section 99"),
        ({"exam": "{folder}/rivers.md"}, "rivers.md.* JSON"),
        ({"adapter": "{folder}"}, "adapter_config.json"),
        ({"policy": "{folder}", "notes": ""}, "no run"),
    ],
)
def test_other_bad_input_is_refused_and_no_adapter_is_written(place, change, told):
    folder, config = place
    (folder / "far.md").write_text("## Section 99: x\n\nA note.\n")
    change = {k: v.format(folder=folder) for k, v in change.items()}
    with pytest.raises(UserError, match=told):
        learn(replace(config, **change), [folder / "rivers.md"], list)
    assert not (folder / "adapter" / "adapter_config.json").exists()


def test_texts_that_do_not_fit_are_refused(place):
    folder, config = place
    (folder / "long.txt").write_text("It is very cold there. " * 900)
    (folder / "headings.md").write_text("# One\n# Two\n")
    with pytest.raises(UserError, match="no text"):
        learn(config, [folder / "headings.md"], list)
    with pytest.raises(UserError, match="--section"):
        learn(replace(config, section=3000), [folder / "long.txt"], list)
    with pytest.raises(UserError, match="riddles"):
        replace(config, prompts=("self-qa", "riddles"))
    assert not (folder / "adapter").exists()


def test_killed_late_an_adapter_that_goes_on_in_its_own_folder_learns_once(place, monkeypatch):
    """Kind: the same command after a kill begins from what it began from, not from what it made."""
    folder, config = place
    arm = Lab.arm
    config, document = replace(config, inner=BRIEF), [folder / "rivers.md"]
    learn(config, document, list)
    shutil.copytree(folder / "adapter", folder / "other")
    own = {
        name: replace(config, out=str(folder / name), adapter=str(folder / name))
        for name in ("adapter", "other")
    }
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(
            Lab,
            "arm",
            lambda lab, name, *a, **d: stop() if name == "after" else arm(lab, name, *a, **d),
        )
        learn(own["adapter"], document, list)
    for name in own:
        learn(own[name], document, list)
    one, other = ((folder / n / "adapter_model.safetensors").read_bytes() for n in own)
    assert one == other
    told = []
    learn(own["adapter"], document, told.append)  # and again: nothing more
    assert any("not learnt twice" in line for line in told)
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == one


def test_what_a_kill_before_the_first_step_left_is_not_in_the_way(place):
    folder, config = place
    for left in ("run-1/checkpoints", ".minseal-1.tmp", "run-1/.minseal-2.tmp"):
        (folder / "adapter" / left).mkdir(parents=True)
    (folder / "adapter" / ".minseal-lock").write_text("process 1")
    learn(replace(config, inner=BRIEF), [folder / "rivers.md"], list)
    assert "run-1" in names(folder / "adapter")
    assert not any(name.startswith(".") for name in names(folder / "adapter"))
