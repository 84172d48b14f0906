"""What reads something from outside takes a time that grows no faster than the text."""

import json
import time
from contextlib import suppress

import pytest

from minseal import InvalidSelfEdit, UserError
from minseal.commands.documents import read_document, read_notes, split_document
from minseal.files import parse_json
from minseal.tasks import arc, fewshot, grading, grammar, knowledge, people
from minseal.tasks.passages import Passage, read_passages, read_questions
from minseal.terminal import printable
from minseal.tokenizer import Tokenizer, train_ranks

N = 5_000  # letters of the shorter text
TOKENIZER = Tokenizer(train_ranks("Question: Why? Answer: So.", 260))
(PERSON,) = people.toy_passages(1, 0)
TASKS = {style: knowledge.Knowledge(TOKENIZER, style) for style in ("notes", "self-qa")}

# What is repeated to fill a text, and what stands before and after.
TEXTS = {
    "spaces": ("", " ", "x"),
    "question and spaces": ("Question:", " ", "x"),
    "question and lines": ("Question:", "\n", "x"),
    "answer and spaces": ("Question: x Answer:", " ", ""),
    "answer and lines": ("Question: x Answer:", " \n", "x"),
    "questions": ("", "Question:", ""),
    "numbered questions": ("", "Question 1: x ", ""),
    "questions and answers": ("", "Question 1: x\nAnswer:\n\n", ""),
    "answers": ("Question: x ", "Answer:", ""),
    "answers without one": ("Question: x ", "Answer:\n\n", ""),
    "a number": ("Question ", "1", ""),
    "answer and a number": ("Question: x Answer ", "1", "x"),
    "words and numbers": ("", "Question 1Answer 1", ""),
    "a directive and spaces": ("lr: a", " ", "b"),
    "spaces and a directive": ("", " ", "lr 1"),
    "directives": ("", "epochs: 3\n", ""),
    "digits of a directive": ("epochs: ", "9", ""),
    "digits": ("", "9", ""),
    "letters": ("", "a", ""),
    "apostrophes": ("", "'", ""),
    "elisions": ("", "l'", "a"),
    "names of a passage": ("", "Tamo ", "x."),
    "sentences of a passage": ("Tamo Breck grew up in Lyon. ", "She owns a goose. ", "She."),
    "articles": ("", "a ", "an"),
    "dashes": ("", "—", ""),
    "hyphens": ("", "---", ""),
    "full width": ("", "1，", ""),
    "marks": ("a", "\u0301\u0316", ""),
    "marks of one kind": ("", "a\u0301", ""),
    "characters": ("", "李", ""),
    "Thai": ("", "ก\u0e38", ""),
    "long ligatures": ("", "\ufdfa", ""),
    "joiners": ("", "\u200d", ""),
    "brackets": ("", "[", ""),
    "objects": ("", '{"a":', ""),
    "closed brackets": ("", "[]", ""),
    "quotes": ('"', '\\"', ""),
    "lines": ("", "\n", ""),
    "lines of digits": ("", "12\n", ""),
    "backslashes": ('"', "\\", ""),
    "a grammar's words": ("Tamo Breck", " works at the ", "x"),
    "a grammar's question": ("Question: Where does ", "x work? Answer: ", ""),
    "fences": ("", "```\n", ""),
    "headings": ("", "# x\n", "x"),
    "a heading": ("# ", "#", "x"),
    "front matter": ("---\n", "a: x\n", "x"),
    "sentences": ("", "x. ", ""),
    "quoted": ("", "> ", "x"),
    "comments": ("<!--", "<!-- -->", "x"),
    "sections of notes": ("", "\n## Section 1", ":"),
    "control characters": ("", "\x1b[", ""),
    "passages": ("", '{"context": "x", "qas": []}\n', ""),
}


def in_file(read):
    def parse(text, path):
        path.write_text(text, encoding="utf-8")
        read(path)

    return parse


PARSERS = {
    "normalise": lambda text, path: grading.normalise(text),
    "score": lambda text, path: grading.score(text, "in 1811", "contains"),
    "score, long both": lambda text, path: grading.score(text, text[:-1] + "y", "f1"),
    "find_question": lambda text, path: knowledge.find_question(text),
    "split_questions": lambda text, path: knowledge.split_questions(text),
    "split_directives": lambda text, path: knowledge.split_directives(text),
    "split_lines": lambda text, path: knowledge.split_lines(text),
    "a self-edit in notes": lambda text, path: TASKS["notes"].read(text),
    "a self-edit in questions": lambda text, path: TASKS["self-qa"].read(text),
    "a note without an answer": lambda text, path: TASKS["notes"].edit(
        Passage("x", "", "x", ()), [knowledge.Note(text[:1000])]
    ),
    "a note on a person": lambda text, path: people.kind_of(text, PERSON.person),
    "whom a passage is about": lambda text, path: grammar.read_passages([text], set()),
    "a self-edit of a puzzle": lambda text, path: fewshot.read_directives(text),
    "a grid": lambda text, path: arc.from_text(text),
    "JSON": lambda text, path: parse_json(text, "it", once=True),
    "a file of passages": in_file(lambda path: read_passages(path, say=lambda line: None)),
    "a file of questions": in_file(read_questions),
    "a file of puzzles": in_file(arc.read_puzzles),
    "a document": in_file(lambda path: read_document(str(path))),
    "a document in Markdown": lambda text, path: split_document(TOKENIZER, "x.md", text, 10**6),
    "a document, cut": lambda text, path: split_document(  # slower than others, not steeper
        TOKENIZER, "x.txt", text[: len(text) // 5], 100
    ),
    "a file of notes": lambda text, path: in_file(lambda path: read_notes(TASKS["notes"], path))(
        f"## Section 1: x\n{text}", path
    ),
    "a heading of notes": lambda text, path: in_file(lambda path: read_notes(TASKS["notes"], path))(
        f"## Section {text}", path
    ),
    "what is encoded": lambda text, path: TOKENIZER.encode(text),
    "what is printed": lambda text, path: printable(text, one_line=True),
}


def seconds(parse, text, path):
    start = time.process_time()
    with suppress(UserError, InvalidSelfEdit):
        parse(text, path)
    return time.process_time() - start


@pytest.mark.parametrize("name", PARSERS)
def test_four_times_the_text_takes_about_four_times_as_long(name, tmp_path):
    """Patterns and loops are linear. What grows with the square takes sixteen times as long."""
    parse, path = PARSERS[name], tmp_path / "it.json"
    slow = []
    for text, (before, part, after) in TEXTS.items():
        short, long = (before + part * (n // len(part)) + after for n in (N, 4 * N))
        took = seconds(parse, long, path)
        # So short a time is nobody's trouble, nor can it be measured. The best of three counts:
        # a machine may have been busy. Sorting and the like grow a little faster than the text.
        if took > 0.03 and took > 10 * seconds(parse, short, path):
            took = min(seconds(parse, long, path) for _ in range(3))
            before_it = min(seconds(parse, short, path) for _ in range(3))
            slow += [(text, before_it, took)] if took > 10 * before_it + 0.01 else []
    assert not slow


def test_a_puzzle_has_a_bounded_number_of_pairs(tmp_path):
    """Training puzzles leave two demonstrations out: their number grows with the square."""
    pairs = [{"input": [[1]], "output": [[2]]}] * (arc.MAX_PAIRS + 1)
    path = tmp_path / "it.json"
    path.write_text(json.dumps({"train": pairs, "test": pairs[:1]}))
    with pytest.raises(UserError, match="puzzle it, train: 101 pairs; expected at most 100"):
        arc.read_puzzles(path)
    path.write_text(json.dumps({"train": pairs[1:], "test": pairs[:1]}))
    assert len(arc.read_puzzles(path)[0].demonstrations) == 100


@pytest.mark.parametrize("vote", [10**30, -1, 2.0, "2", True, None, 101])
def test_a_number_of_votes_is_bounded(vote):
    """A run folder is read with the vote that stands in it: it may be anybody's."""
    puzzle = arc.Puzzle("x", (arc.Pair(((1,),), ((2,),)),) * 2, (arc.Pair(((1,),), ((2,),)),))
    for read in (
        lambda: fewshot.predictions(puzzle, ["1"], vote),
        lambda: fewshot.solves(puzzle, ["1"], vote, 2),
        lambda: fewshot.FewShot(TOKENIZER, vote=vote),
    ):
        with pytest.raises(UserError, match="expected a whole number from 0 to 100") as e:
            read()
        assert len(str(e.value)) < 100
    assert len(fewshot.voters(100)) == 600


DIGITS = "9" * 5000
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "bad", [DIGITS, DEEP, '{"a":' * 100_000, f"[{DIGITS}]", f'{{"a": {DIGITS}}}']
)
def test_huge_numbers_and_deep_nesting_are_one_line_in_every_reader(bad, tmp_path):
    """Python's own errors for them are a ValueError that is no JSONDecodeError, RecursionError."""
    path, good = tmp_path / "it.json", '{"context": "x", "questions": []}'
    for read in (read_passages, read_questions, arc.read_puzzles):
        for text in (bad, f"{good}\n{bad}\n", f"{good}\n\n{bad}", f'{{"data": {bad}}}'):
            path.write_text(text)
            with pytest.raises(UserError) as e:
                read(path)
            assert "it.json" in str(e.value) and len(str(e.value).splitlines()) == 1
            assert len(str(e.value)) < 300
    with pytest.raises(UserError, match="in it as JSON|read it as JSON"):
        parse_json(bad, "it")
    for text in (bad, f'{{"data_generation": {bad}}}'):
        with pytest.raises(InvalidSelfEdit):
            fewshot.read_directives(text[:2000])


@pytest.mark.parametrize("line", [f"epochs: {DIGITS}", f"lr: {DIGITS}", f"lr: 1e{DIGITS}"])
def test_huge_numbers_of_directives_are_invalid(line):
    with pytest.raises(InvalidSelfEdit) as e:
        knowledge.split_directives(f"{line}\nA note.")
    assert len(str(e.value)) < 120
