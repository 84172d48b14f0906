"""Documents are cut without loss, and notes come back as they were written."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minseal import Knowledge, Tokenizer, UserError
from minseal.commands.documents import (
    keep_older,
    notes_as_text,
    read_document,
    read_notes,
    split_document,
)
from minseal.tasks import people
from minseal.tasks.knowledge import Note, Question
from minseal.tokenizer import train_ranks

rng = np.random.default_rng(0)
SOME_TEXT = "\n".join(people.pretraining_text(rng) for _ in range(100))
TOKENIZER = Tokenizer(train_ranks(SOME_TEXT, 400))
TEXT = f"""# Rivers

The Seine flows through Paris. It is 777 kilometres long.
It rises in Burgundy.

The Rhine flows through Cologne.

## Mountains

Mont Blanc is high. {"It is very cold there. " * 30}
"""


def split(name, text, most=60):
    return split_document(TOKENIZER, name, text, most)


def length(section):
    return len(TOKENIZER.encode(section.text))


def test_sections_hold_all_words_in_order_and_none_is_too_long():
    sections = split("rivers.md", TEXT)
    assert all(length(s) <= 60 for s in sections)
    lines = [line for line in TEXT.split("\n") if not line.startswith("#")]
    assert " ".join(s.text for s in sections).split() == " ".join(lines).split()
    assert sections[0].title == "Rivers" and sections[-1].title == "Mountains"
    first = "The Seine flows through Paris. It is 777 kilometres long. It rises in Burgundy."
    assert sections[0].text == first
    assert [s.id for s in sections[:2]] == ["rivers.md, section 1", "rivers.md, section 2"]


@given(st.text(alphabet="ab .\n#`", max_size=300))
def test_any_text_is_cut_without_loss(text):
    sections = split("x.txt", text, 32)
    assert all(0 < length(s) <= 32 for s in sections)
    code, kept = False, []
    for line in map(str.strip, text.split("\n")):
        code ^= line.startswith("```")
        if code or not re.match(r"#{1,6}\s+(.*)", line):
            kept.append(line)
    squeeze = lambda texts: "".join("".join(t.split()) for t in texts)
    assert squeeze(s.text for s in sections) == squeeze(kept)


def test_a_paragraph_with_one_endless_word_keeps_its_other_words_whole():
    text = f"The tower was built by him. {'xyz' * 60} And it stands."
    first, *others = split("x.txt", text, 40)
    assert first.text.startswith("The tower was built by him.")
    assert "".join(s.text for s in [first, *others]).count("xyz" * 5) > 1
    assert others[-1].text.endswith(" And it stands.")


def test_a_text_without_spaces_is_cut_between_letters_and_no_space_is_put_in():
    assert "".join(s.text for s in split("x.txt", "塔は高い" * 40, 40)) == "塔は高い" * 40


def test_headings_are_found_inside_text_and_not_inside_code():
    sections = split("x.md", "Before.\n# One\nText.\n\n```\n# a comment\n```\n")
    assert [(s.title, s.text) for s in sections] == [
        ("x", "Before."),
        ("One", "Text.\n\n``` # a comment ```"),
    ]


def test_the_file_s_name_is_the_title_above_the_first_heading():
    (section,) = split("some/my_notes.txt", "Words.")
    assert section.title == "my notes"


def test_notes_come_back_as_they_were_written(tmp_path):
    task = Knowledge(TOKENIZER, topic=False)
    sections = split("rivers.md", TEXT)
    notes = {1: [Note("One note."), Question("What?", "This")], 3: [Note("Third.")]}
    path = tmp_path / "notes.md"
    path.write_text(notes_as_text(sections, notes))
    back = read_notes(task, str(path))
    assert {number: some for number, some in back.items() if some} == notes
    assert list(back) == list(range(1, len(sections) + 1))
    assert "## Section 1: Rivers\n\nOne note.\nQuestion: What? Answer: This\n" in path.read_text()


def test_special_tokens_in_a_document_are_text():
    task = Knowledge(TOKENIZER, topic=False)
    (section,) = split("x.txt", "Before <|endoftext|> after.")
    edit = task.edit(section, [Note("A <|endoftext|> note.")])
    assert TOKENIZER.eot not in [i for d in edit.documents for i in d.ids]


@pytest.mark.parametrize(
    "text, told",
    [
        ("lost\n## Section 1: x\nA.", "does not begin"),
        ("no heading", "does not begin"),
        ("## Section 1: x\nA.\n## Section 1: x\nB.", "section 1 twice"),
    ],
)
def test_other_files_are_no_notes(tmp_path, text, told):
    (tmp_path / "notes.md").write_text(text)
    with pytest.raises(UserError, match=told):
        read_notes(Knowledge(TOKENIZER), str(tmp_path / "notes.md"))


BAD = {"empty": b"", "blank": b" \n\n", "binary": bytes(range(256)), "zero bytes": b"text\0text"}


@pytest.mark.parametrize("kind", BAD)
def test_a_document_without_words_is_refused_by_name(tmp_path, kind):
    (tmp_path / "bad.txt").write_bytes(BAD[kind])
    with pytest.raises(UserError, match="bad.txt"):
        read_document(str(tmp_path / "bad.txt"))


def test_older_files_are_numbered_and_the_given_one_stays(tmp_path):
    path = tmp_path / "notes.md"
    for text in ("first", "second", "third"):
        keep_older(path, "")
        path.write_text(text)
    keep_older(path, str(path))
    names = ("notes-1.md", "notes-2.md", "notes.md")
    assert [(tmp_path / n).read_text() for n in names] == ["first", "second", "third"]
