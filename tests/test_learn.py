"""Learning documents: how they are cut, what is written, what persists, and what is refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minseal import Tokenizer, UserError, load
from minseal.adapters import load_adapter
from minseal.learn import AskConfig, LearnConfig, StudyConfig, ask, chat, cut, learn, notes_text, read_notes, self_edit
from minseal.tasks import world
from minseal.tokenizer import train_ranks

rng = np.random.default_rng(0)
TOKENIZER = Tokenizer(train_ranks("\n".join(world.document(rng) for _ in range(100)), 400))
TEXT = """# Rivers

The Seine flows through Paris. It is 777 kilometres long.
It rises in Burgundy.

The Rhine flows through Cologne.

## Mountains

Mont Blanc is high. """ + "It is very cold there. " * 30 + "\n"
EXAM = [{"question": "What flows through Paris?", "answer": "The Seine"}, {"question": "What flows through Cologne?", "answer": "The Rhine"}]


@pytest.fixture
def place(tmp_path):
    """A folder with a document, notes and an exam; (folder, settings to learn it)."""
    (tmp_path / "rivers.md").write_text(TEXT)
    (tmp_path / "exam.json").write_text(json.dumps(EXAM))
    (tmp_path / "notes.md").write_text("## Section 1: Rivers\n\nQuestion: What flows through Paris? Answer: The Seine\nQuestion: What flows through Cologne? Answer: The Rhine\n")
    return tmp_path, LearnConfig("tiny_data/knowledge", str(tmp_path / "adapter"), notes=str(tmp_path / "notes.md"), exam=str(tmp_path / "exam.json"), section=60,
                                 inner=StudyConfig(lr=5e-3, epochs=30, rank=8))


def test_notes_teach_the_exam_and_the_adapter_answers_when_it_is_loaded_again(place):
    folder, config = place
    told = []
    results = learn(config, [folder / "rivers.md"], told.append)
    assert results["before"] == 0 and results["after"] == 1, "\n".join(told)
    assert any("right: 0 of 2 before, 2 of 2 after" in line for line in told)
    assert ask(AskConfig(config.model, config.out), "What flows through Paris?") == "The Seine"
    assert ask(AskConfig(config.model), "What flows through Paris?") != "The Seine"
    assert {f.name for f in (folder / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "minseal.json", "notes.md", "exam.json"}


def test_learning_goes_on_from_an_adapter(place):
    folder, config = place
    learn(config, [folder / "rivers.md"], list)
    (folder / "hills.md").write_text("Mont Blanc is high.")
    (folder / "more.md").write_text("## Section 1: hills\n\nQuestion: How is Mont Blanc? Answer: high\n")
    again = replace(config, adapter=config.out, out=str(folder / "second"), notes=str(folder / "more.md"), inner=StudyConfig(lr=1e-4, epochs=1, rank=4))
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
    assert text.count("## Section") == len(cut(TOKENIZER, "rivers.md", TEXT, 60)) and "## Section 1: Rivers" in text
    learn(replace(config, notes=str(folder / "adapter" / "notes.md"), out=str(folder / "again")), [folder / "rivers.md"], list)
    assert (folder / "again" / "notes.md").read_text() == text


def test_sections_hold_all_words_in_order_and_none_is_too_long():
    sections = cut(TOKENIZER, "rivers.md", TEXT, 60)
    assert all(len(TOKENIZER.encode(s.text)) <= 60 for s in sections)
    assert " ".join(s.text for s in sections).split() == [w for line in TEXT.split("\n") if not line.startswith("#") for w in line.split()]
    assert sections[0].title == "Rivers" and sections[-1].title == "Mountains"
    assert sections[0].text == "The Seine flows through Paris. It is 777 kilometres long. It rises in Burgundy."


@given(st.text(alphabet="ab .\n#", max_size=300))
def test_any_text_is_cut_without_loss(text):
    sections = cut(TOKENIZER, "x.txt", text, 32)
    assert all(0 < len(TOKENIZER.encode(s.text)) <= 32 for s in sections)
    kept = "".join("".join(s.text.split()) for s in sections)
    lines = [line for p in re.split(r"\n\s*\n", text) for line in _without_headings(p.strip().split("\n"))]
    assert kept == "".join("".join(line.split()) for line in lines)


def _without_headings(lines):
    while lines and re.match(r"#{1,6}\s+(.*)", lines[0]):
        lines = lines[1:]
    return lines


def test_notes_come_back_as_they_were_written(tmp_path):
    sections = cut(TOKENIZER, "rivers.md", TEXT, 60)
    notes = {1: "One note.\nQuestion: What? Answer: This", 3: "Third."}
    (tmp_path / "notes.md").write_text(notes_text(sections, notes))
    assert read_notes(tmp_path / "notes.md") == notes
    documents = [TOKENIZER.decode(d.ids) for d in self_edit(TOKENIZER, sections, notes).documents]
    assert documents[:3] == ["Topic: Rivers\nOne note.\n", "Question: What?\nAnswer: This\n", f"Topic: Rivers\n{sections[0].text}\n"]
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


def test_other_bad_input(place):
    folder, config = place
    document = [folder / "rivers.md"]
    for change, words in (({"model": ""}, "--model"), ({"model": str(folder / "no")}, "no"), ({"notes": str(folder / "rivers.md")}, "Section 1"),
                          ({"exam": str(folder / "rivers.md")}, "JSON"), ({"adapter": str(folder)}, "adapter_config.json"), ({"policy": str(folder), "notes": ""}, "no run")):
        with pytest.raises(UserError, match=words):
            learn(replace(config, **change), document, list)
    with pytest.raises(UserError, match="riddles"):
        replace(config, prompts="self-qa,riddles")


def test_special_tokens_in_a_document_are_text():
    (section,) = cut(TOKENIZER, "x.txt", "Before <|endoftext|> after.", 60)
    assert TOKENIZER.eot not in [i for d in self_edit(TOKENIZER, [section], {1: "A <|endoftext|> note."}).documents for i in d.ids]
