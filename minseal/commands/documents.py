"""Documents to learn, and the files that `learn` writes about them: notes.md and exam.json."""

import itertools
import re
from pathlib import Path

from ..files import UserError, read_text
from ..tasks.knowledge import Knowledge, Note, Question, line_of
from ..tasks.passages import Passage
from ..tokenizer import Tokenizer

Notes = dict[int, list[Note | Question]]  # a section's number, from 1 -> its notes


def read_document(path: str) -> str:
    """A text or Markdown file with words in it."""
    text = read_text(path)
    if "\0" in text or not re.search(r"\w", text):
        raise UserError(
            f"{path} is {'binary' if chr(0) in text else 'empty'}; "
            "expected a text or Markdown file with words in it"
        )
    return text


def split_document(tokenizer: Tokenizer, name: str, text: str, most: int) -> list[Passage]:
    """A document -> passages of at most `most` tokens.

    They are cut at headings and paragraphs, and at sentences where a paragraph is too long.
    """
    title, sections = Path(name).stem.replace("_", " "), []
    paragraphs: list[str] = []
    lines: list[str] = []

    def close_section() -> None:
        if paragraphs:
            number = len(sections) + 1
            body = "\n\n".join(paragraphs)
            sections.append(Passage(f"{name}, section {number}", title, body, ()))
            paragraphs.clear()

    def close_paragraph() -> None:
        for piece in cut_text(tokenizer, " ".join(lines), most):
            if paragraphs and len(tokenizer.encode("\n\n".join([*paragraphs, piece]))) > most:
                close_section()
            paragraphs.append(piece)
        lines.clear()

    in_code = False
    for line in map(str.strip, text.split("\n")):
        in_code ^= line.startswith("```")  # a '#' in a code block is no heading
        heading = None if in_code else re.match(r"#{1,6}\s+(.*)", line)
        if heading or not line:
            close_paragraph()
        if heading:
            close_section()
            title = heading[1].strip()
        elif line:
            lines.append(line)
    close_paragraph()
    close_section()
    return sections


SENTENCES, WORDS, LETTERS = (r"(?<=[.!?])\s+", " "), (r"\s+", " "), (r"(?<=.)(?=.)", "")


def cut_text(
    tokenizer: Tokenizer,
    text: str,
    most: int,
    cuts: tuple[tuple[str, str], ...] = (SENTENCES, WORDS, LETTERS),
) -> list[str]:
    """A text in pieces of at most `most` tokens: whole if it fits, else its sentences, as many
    together as fit, else words, else letters."""
    if not text.strip() or len(tokenizer.encode(text)) <= most:
        return [text] if text.strip() else []
    (pattern, joint), *finer = cuts
    out: list[str] = []
    for whole in re.split(pattern, text):
        for part in cut_text(tokenizer, whole, most, tuple(finer)):
            if out and len(tokenizer.encode(out[-1] + joint + part)) <= most:
                out[-1] += joint + part
            else:
                out.append(part)
    return out


def notes_as_text(sections: list[Passage], notes: Notes) -> str:
    """The notes as a file to read and edit; read_notes() reads it."""
    parts = [
        f"## Section {i}: {section.title}\n\n" + "\n".join(map(line_of, notes.get(i, ()))) + "\n"
        for i, section in enumerate(sections, 1)
    ]
    return "\n".join(parts)


def read_notes(task: Knowledge, path: str) -> Notes:
    """The notes in a file that notes_as_text() made."""
    before, *parts = re.split(r"^## Section (\d+):.*$", read_text(path), flags=re.MULTILINE)
    if not parts or before.strip():
        raise UserError(
            f"{path} does not begin with a line '## Section 1: ...': "
            "expected notes as `minseal learn` writes them"
        )
    notes: Notes = {}
    for number, text in zip(map(int, parts[::2]), parts[1::2]):
        if number in notes:
            raise UserError(f"{path} holds section {number} twice")
        notes[number] = [task.read_note(line.strip()) for line in text.split("\n") if line.strip()]
    return notes


def keep_older(path: Path, given: str) -> None:
    """What was written before stays beside what comes: notes.md becomes notes-1.md.

    Unless it is the very file that was given.
    """
    if path.exists() and path.resolve() != Path(given or "-").resolve():
        names = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))
