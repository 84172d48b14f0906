"""Documents to learn, and the files that `learn` writes about them: notes.md and exam.json."""

import itertools
import re
from pathlib import Path

from ..files import UserError, read_text
from ..tasks.knowledge import Knowledge, Note, Question, line_of
from ..tasks.passages import Passage
from ..tokenizer import Tokenizer

Notes = dict[int, list[Note | Question]]  # a section's number, from 1 -> its notes

# Where a text may be cut, the best places first: (pattern, what joins the pieces again).
PARAGRAPHS, SENTENCES = (r"\n\n+", "\n\n"), (r"(?<=[.!?])\s+", " ")
WORDS, LETTERS = (r"\s+", " "), (r"(?<=.)(?=.)", "")


def read_document(path: str) -> str:
    """A text or Markdown file with words in it."""
    text = read_text(path)
    if "\0" in text or not re.search(r"\w", text):
        what = "binary" if "\0" in text else "empty"
        raise UserError(f"{path} is {what}; expected a text or Markdown file with words in it")
    return text


def split_document(tokenizer: Tokenizer, name: str, text: str, most: int) -> list[Passage]:
    """A document -> passages of at most `most` tokens, cut at headings, then as cut_text() does."""
    chapters: list[tuple[str, list[str]]] = [(Path(name).stem.replace("_", " "), [])]
    in_code = False
    for line in map(str.strip, text.split("\n")):
        in_code ^= line.startswith("```")  # a '#' in a code block is no heading
        heading = None if in_code else re.match(r"#{1,6}\s+(.*)", line)
        if heading:
            chapters.append((heading[1].strip(), []))
        else:
            chapters[-1][1].append(line)
    sections: list[Passage] = []
    for title, lines in chapters:
        paragraphs = re.split(r"\n\n+", "\n".join(lines).strip("\n"))
        body = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
        for piece in cut_text(tokenizer, body, most):
            sections.append(Passage(f"{name}, section {len(sections) + 1}", title, piece, ()))
    return sections


def cut_text(
    tokenizer: Tokenizer,
    text: str,
    most: int,
    cuts: tuple[tuple[str, str], ...] = (PARAGRAPHS, SENTENCES, WORDS, LETTERS),
) -> list[str]:
    """A text in pieces of at most `most` tokens: whole if it fits, else its paragraphs, as many
    together as fit, else sentences, else words, else letters."""
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
    parts = []
    for i, section in enumerate(sections, 1):
        lines = [line_of(note) for note in notes.get(i, [])]
        parts.append("\n".join([f"## Section {i}: {section.title}\n", *lines]) + "\n")
    return "\n".join(parts)


def read_notes(task: Knowledge, path: str) -> Notes:
    """The notes in a file that notes_as_text() made."""
    before, *parts = re.split(r"^## Section (\d+):.*$", read_text(path), flags=re.MULTILINE)
    if not parts or before.strip():
        told = f"{path} does not begin with a line '## Section 1: ...'"
        raise UserError(f"{told}: expected notes as `minseal learn` writes them")
    notes: Notes = {}
    for number, text in zip(map(int, parts[::2]), parts[1::2]):
        if number in notes:
            raise UserError(f"{path} holds section {number} twice")
        notes[number] = [task.read_note(line.strip()) for line in text.split("\n") if line.strip()]
    return notes


def keep_older(path: Path, given: str) -> None:
    """What is there stays beside what comes, notes.md as notes-1.md; but not the file given."""
    if path.exists() and path.resolve() != Path(given).resolve():
        names = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))
