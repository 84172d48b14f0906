"""Documents to learn, and the files that `learn` writes about them: notes.md and exam.json."""

import itertools
import re
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Any

from ..files import UserError, first_line, need, read_text, real_path
from ..tasks.knowledge import Knowledge, Note, Question, line_of
from ..tasks.passages import Passage
from ..tokenizer import Tokenizer

Notes = dict[int, list[Note | Question]]  # a section's number, from 1 -> its notes

MARKDOWN = (".md", ".markdown", ".mdown", ".mkd", ".mkdn", ".mdx", ".rmd", ".qmd")
TITLE = 200  # letters; a longer heading stays text: it would stand above every note
# YAML or TOML between two lines at the very beginning of Markdown, and a title in it.
FRONT = re.compile(r"(---|\+\+\+)[ \t]*\n(?=\S)(.*?)^(?:\1|\.\.\.)[ \t]*$", re.M | re.S)
KEY = re.compile(r"^(?:(title)|[^\s:=]+)[ \t]*[:=][ \t]*['\"]?(\w.{,198})?", re.M)

# Where a text may be cut, the best places first, and what joins the pieces again; then in halves.
WIDE = "\u3000-\u30ff\u3400-\u9fff\uff00-\uffef"  # Chinese and Japanese, written without spaces
STOPS = "。！？｡।॥۔؟።။។"
CUTS = (
    (r"\n\n+", "\n\n"),
    (r"\n", "\n"),
    (rf"(?<=[.!?{STOPS}])\s+", " "),
    (rf"(?<=[{STOPS}])(?=[^{STOPS}」』”’）])", ""),
    (r"\s+", " "),
)

# What is no text, or not marked up as Markdown is: (name, first bytes, suffixes, the way out).
PANDOC, OFFICE = "`pandoc -t gfm {0} -o {0}.md`", "`soffice --convert-to txt:Text {0}`"
OCR = "`tesseract {0} {0}`"
COMMENTS = rb"(<\?xml[^>]*>\s*|<!--((?!-->).){,999}-->\s*)*"
PACKED = rb"PK\x03\x04|\x1f\x8b|BZh\d1AY|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!\x1a"
FORMATS = (
    ("PDF", rb"%PDF-", "pdf", "`pdftotext {0}`"),
    ("PostScript", rb"%!PS", "ps eps", "`ps2ascii {0} {0}.txt`"),
    ("RTF", rb"\s*\{\\rtf", "rtf", PANDOC),
    ("a notebook", rb'\s*\{\s*"(?=.*"nbformat"\s*:)', "ipynb", PANDOC),
    ("JSON", rb'\s*(\[\s*)?\{\s*"', "json jsonl", "write its text to a file"),
    ("HTML", rb"\s*%b<(!doctype html|html|head|body)\b" % COMMENTS, "html htm xhtml", PANDOC),
    ("XML", rb"\s*%b<(\?xml|!doctype|svg)\b" % COMMENTS, "xml svg", "write its text to a file"),
    ("LaTeX", rb"\s*(%[^\n]*\n\s*)*\\(documentclass|begin\{)", "tex latex", PANDOC),
    ("EPUB", rb"PK\x03\x04.*application/epub", "epub", PANDOC),
    ("OpenDocument", rb"PK\x03\x04.*application/vnd\.oasis", "odt ods odp", PANDOC),
    ("Word, Excel or PowerPoint", rb"PK\x03\x04.*(word|xl|ppt)/", "docx xlsx pptx", OFFICE),
    ("an old Office file", rb"\xd0\xcf\x11\xe0", "doc xls ppt", OFFICE),
    ("an archive", PACKED, "zip gz tgz tar bz2 xz zst 7z rar", "unpack it"),
    ("a picture", rb"\x89PNG|\xff\xd8\xff|GIF8\da|II\*\0|MM\0\*", "png jpg jpeg gif tif webp", OCR),
    ("subtitles", rb"WEBVTT\b|(\d+\s+)?[\d:]{8}[,.]\d{3} -->", "srt vtt", "keep what is said"),
    ("UTF-16", rb"\xff\xfe|\xfe\xff", "", "save it in UTF-8 (`iconv -f UTF-16 -t UTF-8 {0}`)"),
    ("a table", rb"(?!)", "csv tsv", "write sentences that say what is in it"),
    ("binary", rb".*\0", "", ""),
)
OTHER = (
    "no UTF-8",
    b"",
    "",
    "save it in UTF-8 (`iconv -f WINDOWS-1252 -t UTF-8 {0}`, or the like)",
)


def read_document(path: str) -> str:
    """A text or Markdown file with words in it; another format is refused by its name."""
    text = read_text(path, errors="surrogateescape")  # what is no UTF-8 tells what it is instead
    raw, suffix = text.encode(errors="surrogateescape"), Path(path).suffix.lower()[1:]
    rows = [row for row in FORMATS if re.match(row[1], raw, re.S | re.I)]
    rows += [] if re.search(r"\w", text) else [("empty", b"", "", "")]
    rows += [row for row in FORMATS if suffix in row[2].split()]
    rows += [OTHER] if re.search("[\udc80-\udcff]", text) else []
    if rows:
        (what, *_, way), told = rows[0], "expected a text or Markdown file with words in it"
        raise UserError(f"{path} is {what}; {told}{way and ': ' + way.format(quote(path))}")
    return text


def split_document(tokenizer: Tokenizer, name: str, text: str, most: int) -> list[Passage]:
    """A document -> passages of at most `most` tokens: cut at the headings of Markdown, which the
    file's suffix tells from plain text without headings, then as cut_text() does."""
    title = Path(name).stem.replace("_", " ")
    if Path(name).suffix.lower() in MARKDOWN:
        chapters = split_markdown(title, text)
    else:
        lines = "\n".join(map(str.strip, text.split("\n")))
        chapters = [(title, "\n\n".join(map(join_lines, re.split(r"\n\n+", lines))))]
    sections: list[Passage] = []
    for title, body in chapters:
        body = re.sub(r"\n\n+", "\n\n", body).strip("\n")
        for piece in cut_text(tokenizer, body, most):
            sections.append(Passage(f"{name}, section {len(sections) + 1}", title, piece, ()))
    return sections


def split_markdown(title: str, text: str) -> list[tuple[str, str]]:
    """Markdown, as CommonMark has it -> (title, text) of what stands under each heading.

    Each paragraph becomes one line; code, tables, lists and quotes keep theirs. A heading inside
    a list or a quote is a part of it and stays text. Front matter gives no more than the title.
    """
    parser = need("markdown_it", "weights", "learning Markdown").MarkdownIt("commonmark")
    front = FRONT.match(text)
    keys = list(KEY.finditer(front[2])) if front else []
    if keys:
        titles = [key[2].strip(" \t'\"") for key in keys if key[1] and key[2]]
        title = [*titles, title][0]
        text = text[front.end() :]
    lines = list(map(str.rstrip, text.split("\n")))
    env, blocks, done = {}, [], 0
    parser.block.parse(text, parser, env, blocks)
    chapters: list[tuple[str, list[str]]] = [(title, [])]
    for block, inside in pairwise(blocks):
        if block.level or block.type not in ("heading_open", "paragraph_open"):
            continue
        first, end = block.map
        chapters[-1][1].extend(lines[done:first])
        part, done = lines[first:end], end
        if block.type == "heading_open" and len(inside.content) <= TITLE:
            words = words_of(parser.parseInline(inside.content, env)[0].children)
            chapters.append((words or chapters[-1][0], []))
        elif len(part) > 1 and not set(part[1]) <= set(" \t:|-"):  # below a table's first line
            chapters[-1][1].append(join_lines("\n".join(part)))
        else:
            chapters[-1][1].extend(part)
    chapters[-1][1].extend(lines[done:])
    return [(title, "\n".join(lines)) for title, lines in chapters]


def words_of(tokens: list[Any]) -> str:
    """The words of a heading, without markup."""
    kinds = {"softbreak": " ", "hardbreak": " ", "html_inline": ""}
    words = (words_of(t.children) if t.children else kinds.get(t.type, t.content) for t in tokens)
    return " ".join("".join(words).split())


def join_lines(paragraph: str) -> str:
    """Its lines joined by spaces, but not where Chinese or Japanese goes on."""
    lines = "\n".join(map(str.strip, paragraph.split("\n")))
    return re.sub(rf"(?<=[{WIDE}])\n(?=[{WIDE}])", "", lines).replace("\n", " ")


def cut_text(
    tokenizer: Tokenizer, text: str, most: int, cuts: tuple[tuple[str, str], ...] = CUTS
) -> list[str]:
    """A text in pieces of at most `most` tokens: whole if it fits, else its paragraphs, as many
    together as fit, else lines, else sentences, else words, else halves."""
    if len(text) < 2 or not text.strip() or len(tokenizer.encode(text)) <= most:
        return [text] if text.strip() else []
    while cuts and not re.search(cuts[0][0], text):
        cuts = cuts[1:]
    half = len(text) // 2
    joint = cuts[0][1] if cuts else ""
    parts, ends = [], [0]  # and how many tokens they have up to the end of each, about
    for whole in re.split(cuts[0][0], text) if cuts else (text[:half], text[half:]):
        size = len(tokenizer.encode(whole))
        known = whole.strip() and size <= most
        for part in [whole] if known else cut_text(tokenizer, whole, most, cuts[1:]):
            parts.append(part)
            if not known or joint == " ":  # a space belongs to the word behind it
                size = len(tokenizer.encode(joint + part))
            ends.append(ends[-1] + size + joint.count("\n"))

    def fit(start: int, end: int) -> bool:
        return len(tokenizer.encode(joint.join(parts[start:end]))) <= most

    pieces, start = [], 0
    while start < len(parts):
        end = max(bisect_right(ends, ends[start] + most) - 1, start + 1)  # a guess, mended below
        while end > start + 1 and not fit(start, end):
            end -= 1
        while end < len(parts) and fit(start, end + 1):
            end += 1
        pieces.append(joint.join(parts[start:end]))
        start = end
    return pieces


def notes_as_text(sections: list[Passage], notes: Notes) -> str:
    """The notes as a file to read and edit; read_notes() reads it."""
    parts = []
    for i, section in enumerate(sections, 1):
        lines = map(line_of, notes.get(i, []))  # one that looks like a heading stands further in
        lines = [f" {line}" if line.startswith("## Section") else line for line in lines]
        parts.append("\n".join([f"## Section {i}: {section.title}\n", *lines]) + "\n")
    return "\n".join(parts)


def read_notes(task: Knowledge, path: str) -> tuple[Notes, dict[int, str]]:
    """(the notes, the title of each section) in a file that notes_as_text() made."""
    before, *parts = re.split(r"^## Section (\S*?):(.*)$", read_text(path), flags=re.MULTILINE)
    if not parts or before.strip():
        told = f"{path} does not begin with a line '## Section 1: ...'"
        raise UserError(f"{told}: expected notes as `minseal learn` writes them")
    notes: Notes = {}
    titles: dict[int, str] = {}
    for given, title, text in zip(parts[::3], parts[1::3], parts[2::3]):
        if not re.fullmatch("0*[1-9][0-9]{0,8}", given):
            told = f"{path} has a line '## Section {given[:20]}:'"
            raise UserError(f"{told}: expected the number of a section, from 1")
        if (number := int(given)) in notes:
            raise UserError(f"{path} holds section {number} twice")
        notes[number] = [task.read_note(line.strip()) for line in text.split("\n") if line.strip()]
        titles[number] = title.strip()
    return notes, titles


def keep_older(path: Path, given: str) -> Path | None:
    """What is there stays beside what comes, notes.md as notes-1.md; but not the file given.

    Returns its new path, if it has one.
    """
    try:
        if path.exists() and real_path(path) != real_path(given):
            names = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(1))
            return path.rename(next(name for name in names if not name.exists()))
    except OSError as e:
        raise UserError(f"cannot give {path} another name: {first_line(e)}") from None
