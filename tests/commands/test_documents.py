"""Documents are cut without loss, and notes come back as they were written."""

from collections import Counter
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minseal import Knowledge, Tokenizer, UserError
from minseal.commands.documents import (
    cut_text,
    keep_older,
    notes_as_text,
    read_document,
    read_notes,
    split_document,
    split_markdown,
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


def squeeze(*texts):
    return "".join("".join(text.split()) for text in texts)


@given(st.text(alphabet="ab .。塔\n#`~->=\t", max_size=300))
def test_any_text_is_cut_without_loss(text):
    """Plain text loses nothing; Markdown nothing but what stands in its headings."""
    plain, marked = split("x.txt", text, 32), split("x.md", text, 32)
    assert all(0 < length(s) <= 32 for s in [*plain, *marked])
    assert squeeze(*(s.text for s in plain)) == squeeze(text)
    left = Counter(squeeze(*(s.text for s in marked)))
    heads = Counter(squeeze(*(title for title, _ in split_markdown("", text))))
    lost = Counter(squeeze(text)) - left
    assert not left - Counter(squeeze(text)) and set(lost - heads) <= set("#=-`~")


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
        ("One", "Text.\n\n```\n# a comment\n```"),
    ]


# (section of the CommonMark specification, document, its headings outside lists and quotes)
COMMONMARK = [
    ("ATX headings", "# a\n## b\n###### c\n####### d\n#e\n\\# f\n", ["a", "b", "c"]),
    ("ATX headings, closing", "## a ##\n### b ####   \n# c#\n# d \\#\n", ["a", "b", "c#", "d #"]),
    ("ATX headings, indentation", " # a\n   # b\n\n    # code\n\ntext\n    # lazy\n", ["a", "b"]),
    ("ATX headings, tabs", "#\ta\n\n\t# code\n", ["a"]),
    ("ATX headings, empty", "# a\ntext\n#\nmore\n", ["a", "a"]),
    ("Setext headings", "a\n===\n\nb\nc\n-\n\n    code\n---\n", ["a", "b c"]),
    ("Setext headings, no lazy line", "> a\n---\n\n- b\n---\n", []),
    ("Thematic breaks", "***\n---\n\na\n\n---\nb\n", []),
    ("Fenced code blocks, tildes", "# a\n~~~sh x=`1`\n# no\n```\n# no\n~~~\n# b\n", ["a", "b"]),
    ("Fenced code blocks, longer", "````md\n```sh\n# no\n```\n````\n# a\n", ["a"]),
    ("Fenced code blocks, indented", "  ```\n# no\n   ```\n# a\n    ```\n# b\n", ["a", "b"]),
    ("Fenced code blocks, unclosed", "# a\n```\n# no\n\n# no\n", ["a"]),
    ("Fenced code blocks, closing has no info string", "```\n# no\n``` x\n# no\n```\n# a\n", ["a"]),
    ("Code spans, of three backticks on one line", "```sh x```\n# a\n", ["a"]),
    ("HTML blocks", "<!--\n# no\n\n# no\n-->\n# a\n<div>\n# no\n</div>\n\n# b\n", ["a", "b"]),
    ("HTML blocks, pre", "<pre>\n# no\n\n# no\n</pre>\n# a\n", ["a"]),
    ("Block quotes and list items", "> # no\n\n- # no\n\n  no\n  ==\n1. x\n\n# a\n", ["a"]),
    ("Link reference definitions", "# [a *b*][c]\n\n[c]: /url 'd'\n", ["a b"]),
    ("Inlines", "# *a* **b** `*c*` [d](e) ![f](g) <i>h</i> &amp; a*b*c\n", ["a b *c* d f h & abc"]),
]  # fmt: skip


@pytest.mark.parametrize("section, text, headings", COMMONMARK)
def test_headings_are_those_of_commonmark(section, text, headings):
    """Expected values by the specification (version 0.31), and as its own parser, cmark, has it."""
    assert [title for title, _ in split_markdown("", text)][1:] == headings, section
    assert squeeze(*(body for _, body in split_markdown("", text))).count("no") == text.count("no")


def test_code_keeps_its_lines_and_tables_theirs_and_paragraphs_are_joined():
    code = "```py\nif a:\n\n    b()\n```"
    table = "| a | b |\n| - | - |\n| 1 | 2 |"
    others = [code, "    make\n    make test", table, "- a\n  - b", "> a\n> b"]
    (section,) = split("x.md", "\n\n".join(["One\n  line.", *others]), 500)
    assert section.text == "\n\n".join(["One line.", *others])
    assert split("x.txt", "  One\nline.\n \nTwo.")[0].text == "One line.\n\nTwo."
    assert split("x.txt", "塔は\n高い\nand so on")[0].text == "塔は高い and so on"


def test_only_markdown_has_headings():
    """A '#' begins a comment elsewhere; what is Markdown, the file's suffix says."""
    assert [s.title for s in split("run.txt", "# one\n\ntext")] == ["run"]
    for name in ("x.md", "x.markdown", "X.MD"):
        assert [s.title for s in split(name, "# one\n\ntext")] == ["one"]


@pytest.mark.parametrize(
    "text, title, body",
    [
        ("---\ntitle: 'My tower'\n# no heading\ntags:\n- a\n---\nText.", "My tower", "Text."),
        ("---\nlayout: post\n...\nText.", "x", "Text."),
        ("+++\ntitle = \"A\"\n+++\nText.", "A", "Text."),
        ("---\n\nText.\n\n---\n", "x", "---\n\nText.\n\n---"),  # two thematic breaks
        ("---\nonce: opened\n\nText.", "x", "---\nonce: opened\n\nText."),
        ("Text.\n\n---\na: b\n---\n", "x", "Text.\n\n---"),  # not at the beginning
    ],
)  # fmt: skip
def test_front_matter_is_not_learnt(text, title, body):
    section = split("x.md", text)[0]
    assert (section.title, section.text) == (title, body)


def test_a_heading_too_long_for_a_title_is_text():
    sections = split("x.md", f"{'so it was. ' * 40}\n---\nmore\n\n# {'a' * 5000}\n", 60)
    assert {s.title for s in sections} == {"x"} and sections[-1].text.endswith("aaa")


FORMATS = {
    "PDF": (b"%PDF-1.7\n\xe2\xe3\xcf\xd3\n", "pdf"),
    "PostScript": (b"%!PS-Adobe-3.0\nshow", "ps"),
    "RTF": (b"{\\rtf1\\ansi Words.}", "rtf"),
    "HTML": (b"\n<!-- a --> <!-- b -->\n<!DOCTYPE html>\n<p>Words", "html"),
    "XML": (b'<?xml version="1.0"?><svg>Words</svg>', "svg"),
    "LaTeX": (b"% a\n\n% b\n\\documentclass{article}", "tex"),
    "notebook": (b'{\n "cells": [],\n "metadata": {},\n "nbformat": 4\n}', "ipynb"),
    "JSON": (b'{"text": "words"}\n{"text": "more"}\n', "jsonl"),
    "EPUB": (b"PK\x03\x04" + bytes(26) + b"mimetypeapplication/epub+zip", "epub"),
    "OpenDocument": (b"PK\x03\x04mimetypeapplication/vnd.oasis.opendocument.text", "odt"),
    "Word": (b"PK\x03\x04\x14[Content_Types].xml PK\x03\x04 word/document.xml", "docx"),
    "old Office": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 words", "doc"),
    "archive": (b"\x1f\x8b\x08\x00words", "gz"),
    "picture": (b"\x89PNG\r\n\x1a\n words", "png"),
    "subtitles": (b"1\n00:00:01,000 --> 00:00:02,000\nWords.\n", "srt"),
    "UTF-16": ("Words.".encode("utf-16"), ""),
    "no UTF-8": ("Caf\xe9.".encode("latin-1"), ""),
    "empty": (b"\xef\xbb\xbf \n", ""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_foreign_format_is_refused_by_its_name(tmp_path, name):
    """By content under any name, and by the suffix where the content says nothing."""
    data, suffix = FORMATS[name]
    (tmp_path / "a b.md").write_bytes(data)
    (tmp_path / f"x.{suffix}").write_text("Words.")
    for path in [tmp_path / "a b.md", tmp_path / f"x.{suffix}"][: 2 if suffix else 1]:
        with pytest.raises(UserError, match=f"is .*{name}.*; expected a text") as e:
            read_document(str(path))
        assert "\n" not in str(e.value) and e.value.args[0].count("{") == 0


@pytest.mark.parametrize(
    "text",
    [
        "<p align=center>\n<img src=x>\n</p>\n\n# Title\n",
        "<!-- a comment -->\n# Title\n\n<b>bold</b>",
        "[[a link]] and [another](url)",
        "{'a': 1} is a dict",
        "```html\n<!doctype html>\n```",
        "\ufeffWords.",
        "PK is no archive",
    ],
)
def test_markdown_with_markup_in_it_is_read(tmp_path, text):
    (tmp_path / "x.md").write_text(text)
    assert read_document(str(tmp_path / "x.md")) == text.removeprefix("\ufeff")


def test_sentences_end_in_other_scripts_too():
    """No space is put in where none was, and full stops stay with what they end."""
    for text in ("塔は高い。「古い。」とても！" * 9, "मीनार ऊँची है। " * 9, "ሰማይ ሰፊ ነው። " * 9):
        sections = split("x.txt", text, 60)
        assert len(sections) > 1 and all(s.text[-1] in "。！」।።" for s in sections)
        assert squeeze(*(s.text for s in sections)) == squeeze(text)
        assert (" " in text) or not any(" " in s.text for s in sections)


LONG = {
    "equal letters": "a", "words": "word ", "digits": "1 ", "blank lines": "a\n\n",
    "no spaces": "塔", "full stops": "。", "hashes": "#", "quotes": "> ", "lists": "- ",
    "brackets": "[", "backticks": "`", "comments": "<!-- ", "definitions": "[a]: b\n",
    "setext": "a\n-\n", "front matter": "---\na: b\n", "stars": "*a_",
}  # fmt: skip


@pytest.mark.parametrize("kind", LONG)
def test_cutting_takes_time_in_proportion_to_the_text(kind):
    """Letters encoded at n and at 4n, and seconds at most: whatever the text, no square in it."""

    def work(n, suffix):
        text, done = LONG[kind] * (n // len(LONG[kind])), 0

        class Counting(Tokenizer):
            def encode(self, text):
                nonlocal done
                done += len(text)
                return super().encode(text)

        start = process_time()
        split_document(Counting(TOKENIZER.ranks), f"x.{suffix}", text, 60)
        return done, process_time() - start

    for suffix in ("md", "txt"):
        (few, _), (many, seconds) = work(1000, suffix), work(4000, suffix)
        assert many <= 6 * max(few, 1000) and many < 4000 * 60  # 4 and a logarithm
        assert seconds < 2


def test_the_file_s_name_is_the_title_above_the_first_heading():
    (section,) = split("some/my_notes.txt", "Words.")
    assert section.title == "my notes"


def test_notes_come_back_as_they_were_written(tmp_path):
    task = Knowledge(TOKENIZER, topic=False)
    sections = split("rivers.md", TEXT)
    notes = {
        1: [Note("One note."), Question("What?", "This")],
        3: [Note("Third."), Note("## Section 1: x")],
    }
    path = tmp_path / "notes.md"
    path.write_text(notes_as_text(sections, notes))
    back, titles = read_notes(task, str(path))
    assert {number: some for number, some in back.items() if some} == notes
    assert list(back) == list(range(1, len(sections) + 1))
    assert titles == {i: section.title for i, section in enumerate(sections, 1)}
    assert "## Section 1: Rivers\n\nOne note.\nQuestion: What? Answer: This\n" in path.read_text()


def test_no_piece_is_too_long_where_a_space_makes_a_word_shorter():
    """' aaaaaaaa' is one token here, 'aaaaaaaa' is eight."""
    ranks = {bytes([b]): b for b in range(256)}
    for n in range(1, 9):
        ranks[b" " + b"a" * n] = 255 + n
    tokenizer = Tokenizer(ranks)
    pieces = cut_text(tokenizer, "aaaaaaaa " * 9 + "b " * 9, 6)
    assert max(len(tokenizer.encode(piece)) for piece in pieces) <= 6


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
        ("## Section 01: x\nA.\n## Section 1: x\nB.", "section 1 twice"),
        *[
            (f"## Section 1: x\nA.\n## Section {number}: x\nB.", "the number of a section")
            for number in ("9" * 5000, "0", "²", "٣", "-1", "1.5", "one", "")
        ],
    ],
)
def test_other_files_are_no_notes(tmp_path, text, told):
    (tmp_path / "notes.md").write_text(text)
    with pytest.raises(UserError, match=told):
        read_notes(Knowledge(TOKENIZER), str(tmp_path / "notes.md"))


def test_a_name_that_cannot_be_had_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot give .* another name"):
        keep_older(tmp_path / ("n" * 300), "")


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
