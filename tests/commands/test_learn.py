"""Learning documents: how they are cut, what is written, what persists, and what is refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minseal import LoRAConfig, Tokenizer, UserError, attach, load
from minseal.adapters import load_adapter, save_adapter
from minseal.ask import AskConfig, ask, chat
from minseal.learn import LearnConfig, StudyConfig, cut, learn, notes_text, read_notes, self_edit
from minseal.lora import TARGETS
from minseal.tasks import world
from minseal.tokenizer import train_ranks

rng = np.random.default_rng(0)
TOKENIZER = Tokenizer(train_ranks("\n".join(world.document(rng) for _ in range(100)), 400))
TEXT = (
    """# Rivers

The Seine flows through Paris. It is 777 kilometres long.
It rises in Burgundy.

The Rhine flows through Cologne.

## Mountains

Mont Blanc is high. """
    + "It is very cold there. " * 30
    + "\n"
)
EXAM = [
    {"question": "What flows through Paris?", "answer": "The Seine"},
    {"question": "What flows through Cologne?", "answer": "The Rhine"},
]


@pytest.fixture
def place(tmp_path):
    """A folder with a document, notes and an exam; (folder, settings to learn it)."""
    (tmp_path / "rivers.md").write_text(TEXT)
    (tmp_path / "exam.json").write_text(json.dumps(EXAM))
    (tmp_path / "notes.md").write_text(
        "## Section 1: Rivers\n\nQuestion: What flows through Paris? Answer: The Seine\nQuestion: What flows through Cologne? Answer: The Rhine\n"
    )
    return tmp_path, LearnConfig(
        "tiny_data/knowledge",
        str(tmp_path / "adapter"),
        notes=str(tmp_path / "notes.md"),
        exam=str(tmp_path / "exam.json"),
        section=60,
        inner=StudyConfig(lr=5e-3, epochs=30, rank=8),
    )


def test_notes_teach_the_exam_and_the_adapter_answers_when_it_is_loaded_again(place):
    folder, config = place
    told = []
    results = learn(config, [folder / "rivers.md"], told.append)
    assert results["before"] == 0 and results["after"] == 1, "\n".join(told)
    assert any("right: 0 of 2 before, 2 of 2 after" in line for line in told)
    assert ask(AskConfig(config.model, config.out), "What flows through Paris?") == "The Seine"
    assert ask(AskConfig(config.model), "What flows through Paris?") != "The Seine"
    assert {f.name for f in (folder / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "minseal.json",
        "notes.md",
        "exam.json",
    }


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
    model, _ = load(config.model)
    _, lora = load_adapter(folder / "second", model)
    assert lora.rank == 8  # the rank of the adapter that goes on, not a new one


def test_the_model_writes_notes_that_can_be_edited(place):
    folder, config = place
    config = replace(config, notes="", inner=StudyConfig(epochs=1, rank=2))
    learn(config, [folder / "rivers.md"], list)
    text = (folder / "adapter" / "notes.md").read_text()
    assert (
        text.count("## Section") == len(cut(TOKENIZER, "rivers.md", TEXT, 60))
        and "## Section 1: Rivers" in text
    )
    learn(
        replace(config, notes=str(folder / "adapter" / "notes.md"), out=str(folder / "again")),
        [folder / "rivers.md"],
        list,
    )
    assert (folder / "again" / "notes.md").read_text() == text


def test_sections_hold_all_words_in_order_and_none_is_too_long():
    sections = cut(TOKENIZER, "rivers.md", TEXT, 60)
    assert all(len(TOKENIZER.encode(s.text)) <= 60 for s in sections)
    assert " ".join(s.text for s in sections).split() == [
        w for line in TEXT.split("\n") if not line.startswith("#") for w in line.split()
    ]
    assert sections[0].title == "Rivers" and sections[-1].title == "Mountains"
    assert (
        sections[0].text
        == "The Seine flows through Paris. It is 777 kilometres long. It rises in Burgundy."
    )


@given(st.text(alphabet="ab .\n#`", max_size=300))
def test_any_text_is_cut_without_loss(text):
    sections = cut(TOKENIZER, "x.txt", text, 32)
    assert all(0 < len(TOKENIZER.encode(s.text)) <= 32 for s in sections)
    code, kept = False, []
    for line in map(str.strip, text.split("\n")):
        code ^= line.startswith("```")
        if code or not re.match(r"#{1,6}\s+(.*)", line):
            kept.append(line)
    assert "".join("".join(s.text.split()) for s in sections) == "".join(
        "".join(line.split()) for line in kept
    )


def test_only_what_is_too_long_is_cut_finer():
    """A paragraph with one endless word keeps its other words whole; a text without spaces is cut between letters, none put in."""
    (first, *others) = cut(
        TOKENIZER, "x.txt", "The tower was built by him. " + "xyz" * 60 + " And it stands.", 40
    )
    assert first.text.startswith("The tower was built by him.")
    assert "".join(s.text for s in [first, *others]).count("xyz" * 5) > 1 and others[
        -1
    ].text.endswith(" And it stands.")
    assert "".join(s.text for s in cut(TOKENIZER, "x.txt", "塔は高い" * 40, 40)) == "塔は高い" * 40


def test_headings_are_found_inside_text_and_not_inside_code():
    sections = cut(TOKENIZER, "x.md", "Before.\n# One\nText.\n\n```\n# a comment\n```\n", 60)
    assert [(s.title, s.text) for s in sections] == [
        ("x", "Before."),
        ("One", "Text.\n\n``` # a comment ```"),
    ]


def test_notes_come_back_as_they_were_written(tmp_path):
    sections = cut(TOKENIZER, "rivers.md", TEXT, 60)
    notes = {1: "One note.\nQuestion: What? Answer: This", 3: "Third."}
    (tmp_path / "notes.md").write_text(notes_text(sections, notes))
    assert read_notes(tmp_path / "notes.md") == notes
    documents = [TOKENIZER.decode(d.ids) for d in self_edit(TOKENIZER, sections, notes).documents]
    assert documents[:3] == [
        "Topic: Rivers\nOne note.\n",
        "Question: What?\nAnswer: This\n",
        f"Topic: Rivers\n{sections[0].text}\n",
    ]
    assert len(documents) == len(sections) + 3


def test_chat_goes_on_until_an_empty_line(place):
    _, config = place
    lines, said = iter(["Hello?", "And?", ""]), []
    chat(AskConfig(config.model, max_tokens=4), read=lambda prompt: next(lines), say=said.append)
    assert len(said) == 3


BAD = {"empty": b"", "blank": b" \n\n", "binary": bytes(range(256)), "zero bytes": b"text\0text"}


@pytest.mark.parametrize("kind", BAD)
def test_a_document_without_words_is_refused_and_nothing_is_written(place, kind):
    folder, config = place
    (folder / "bad.txt").write_bytes(BAD[kind])
    with pytest.raises(UserError, match="bad.txt"):
        learn(config, [folder / "bad.txt"], list)
    assert not (folder / "adapter").exists()


def test_an_adapter_of_fewer_layers_goes_on_in_all(place):
    """PEFT adapters often adapt q and v only; a bug once lost the training at its end."""
    folder, config = place
    model, _ = load(config.model)
    adapters = attach(model, 1, LoRAConfig(4, 8.0, ("q", "v")))
    save_adapter(
        folder / "peft", model, adapters.state(), LoRAConfig(4, 8.0, ("q", "v")), config.model
    )
    adapters.remove()
    results = learn(replace(config, adapter=str(folder / "peft")), [folder / "rivers.md"], list)
    assert results["after"] > results["before"]
    assert load_adapter(folder / "adapter", model)[1].targets == TARGETS


def test_what_lies_in_the_folder_is_not_overwritten(place):
    folder, config = place
    document = [folder / "rivers.md"]
    for out, words in ((folder, "not empty"), (".", "not empty")):
        before = (folder / "notes.md").read_text()
        with pytest.raises(UserError, match=words):
            learn(replace(config, out=str(out), notes=""), document, list)
        assert (folder / "notes.md").read_text() == before
    learn(config, document, list)
    with pytest.raises(UserError, match="holds an adapter"):
        learn(config, document, list)
    first = (folder / "adapter" / "notes.md").read_text()
    there = {f.name for f in (folder / "adapter").iterdir()}
    with pytest.raises(UserError, match="missing.md"):  # a mistake moves nothing
        learn(replace(config, adapter=config.out), [folder / "missing.md"], list)
    assert {f.name for f in (folder / "adapter").iterdir()} == there
    (folder / "more.md").write_text("## Section 1: rivers\n\nAnother note.\n")
    learn(
        replace(
            config, adapter=config.out, notes=str(folder / "more.md"), inner=StudyConfig(epochs=1)
        ),
        document,
        list,
    )
    assert (folder / "adapter" / "notes-1.md").read_text() == first and "Another note." in (
        folder / "adapter" / "notes.md"
    ).read_text()
    assert (folder / "adapter" / "exam-1.json").exists()


def test_notes_are_kept_when_the_rest_is_stopped(place, monkeypatch):
    import sys

    folder, config = place
    monkeypatch.setattr(
        sys.modules["minseal.learn"],
        "adapt",
        lambda *args: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        learn(config, [folder / "rivers.md"], list)
    assert {f.name for f in (folder / "adapter").iterdir()} == {"notes.md", "exam.json"}
    assert json.loads((folder / "adapter" / "exam.json").read_text())[0] == {
        "question": "What flows through Paris?",
        "answers": ["The Seine"],
    }
    monkeypatch.undo()
    with pytest.raises(UserError, match="--notes"):  # how to go on
        learn(config, [folder / "rivers.md"], list)
    learn(replace(config, notes=str(folder / "adapter" / "notes.md")), [folder / "rivers.md"], list)


def test_without_a_question_it_learns_without_an_exam(place, monkeypatch):
    import sys

    folder, config = place
    monkeypatch.setattr(sys.modules["minseal.learn"], "write_exam", lambda *args: ())
    told = []
    results = learn(
        replace(config, exam="", inner=StudyConfig(epochs=1)), [folder / "rivers.md"], told.append
    )
    assert (
        "after" not in results
        and (folder / "adapter" / "adapter_config.json").exists()
        and any("0 questions" in line for line in told)
    )


def test_other_bad_input(place):
    folder, config = place
    (folder / "long.txt").write_text("It is very cold there. " * 900)
    (folder / "headings.md").write_text("# One\n# Two\n")
    with pytest.raises(UserError, match="no text"):
        learn(config, [folder / "headings.md"], list)
    for text, words in (
        ("## Section 99: x\n\nA note.", "section 99"),
        ("## Section 1: x\nA.\n## Section 1: x\nB.", "twice"),
        ("lost\n## Section 1: x\nA.", "begin"),
    ):
        (folder / "wrong.md").write_text(text)
        with pytest.raises(UserError, match=words):
            learn(replace(config, notes=str(folder / "wrong.md")), [folder / "rivers.md"], list)
    with pytest.raises(UserError, match="--section"):
        learn(replace(config, section=3000), [folder / "long.txt"], list)
    with pytest.raises(UserError, match="reads 2048"):
        ask(AskConfig(config.model), "why " * 3000)
    assert ask(AskConfig(config.model, max_tokens=10**6), "What flows through Paris?")
    document = [folder / "rivers.md"]
    for change, words in (
        ({"model": ""}, "--model"),
        ({"model": str(folder / "no")}, "no"),
        ({"notes": str(folder / "rivers.md")}, "Section 1"),
        ({"exam": str(folder / "rivers.md")}, "not JSON"),
        ({"adapter": str(folder)}, "adapter_config.json"),
        ({"policy": str(folder), "notes": ""}, "no run"),
    ):
        with pytest.raises(UserError, match=words):
            learn(replace(config, **change), document, list)
    with pytest.raises(UserError, match="riddles"):
        replace(config, prompts="self-qa,riddles")


def test_special_tokens_in_a_document_are_text():
    (section,) = cut(TOKENIZER, "x.txt", "Before <|endoftext|> after.", 60)
    assert TOKENIZER.eot not in [
        i
        for d in self_edit(TOKENIZER, [section], {1: "A <|endoftext|> note."}).documents
        for i in d.ids
    ]
