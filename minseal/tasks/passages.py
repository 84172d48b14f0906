"""Passages with their exams: from SQuAD's JSON, or from simpler lists of our own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import UserError, parse_json, read_text
from ..terminal import say

SQUAD = "SQuAD's data > paragraphs > qas"
Exam = tuple[tuple[str, tuple[str, ...]], ...]  # (question, (accepted answers...)), ...


@dataclass(frozen=True)
class Passage:
    """A text, and the exam about it."""

    id: str
    title: str
    text: str
    questions: Exam
    oracle: tuple[str, ...] = ()  # notes as good as they get; empty: the exam with its answers


def read_passages(path: str | Path, say: Callable[[str], None] = say) -> list[Passage]:
    """The passages in a file, in its order. Raises UserError, which names file and passage.

    The file holds SQuAD's JSON (Rajpurkar et al. 2016; also its paragraphs or its rows alone),
    MRQA's JSONL, or as JSON or JSONL a list of {title, context, questions: [{question, answer}]},
    with `answers` where several are accepted. say: is told how many passages are left out because
    no question about them has an answer (SQuAD 2.0).
    """
    values = _read_values(path)
    values = values.get("data", [values]) if isinstance(values, dict) else values
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a list of passages, or {SQUAD}, got {values!r:.20}")
    items = enumerate(_flatten(values))
    passages = [_passage(item, f"{path}, passage {i + 1}", i) for i, item in items]
    if not passages:
        raise UserError(f"{path} holds no passages")
    kept = [passage for passage in passages if passage.questions]
    if not kept:
        raise UserError(f"{path}, passage 1: no questions that have an answer, nor in any other")
    if out := len(passages) - len(kept):
        say(f"{path}: {out} of {len(passages)} passages left out: no question has an answer")
    return kept


def read_questions(path: str | Path) -> Exam:
    """The exam in a file: a list of {question, answer}, or of {question, answers}. UserError."""
    data = _read_values(path)
    exam = _exam(data.get("questions", [data]) if isinstance(data, dict) else data, str(path))
    if not exam:
        raise UserError(f"{path}: no questions; expected a list of {{question, answer}}")
    return exam


def _read_values(path: str | Path) -> Any:
    """The one JSON value in a file, or the list of those in its lines (JSONL)."""
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty; expected passages or questions as JSON or JSONL")
    try:
        return parse_json(text, path)
    except UserError as whole:
        values: list[Any] = []
        for number, line in enumerate(text.split("\n"), 1):
            try:
                values += [parse_json(line, f"{path}, line {number}")] if line.strip() else []
            except UserError as error:  # in the first line: one value over many lines was meant
                raise (error if values else whole) from None
        return values


def _flatten(values: list[Any]) -> list[Any]:
    """SQuAD's nesting (paragraphs > qas), its rows, MRQA's lines -> {title, context, questions}."""
    items: list[Any] = []
    rows: dict[str, dict] = {}  # one item for all rows with one context
    for value in values:
        article = value if isinstance(value, dict) else {}
        parts = article.get("paragraphs")
        for part in parts if isinstance(parts, list) else [value]:
            if not isinstance(part, dict):
                items.append(part)
            elif "question" in part and "context" in part:
                about = {"title": part.get("title"), "context": part["context"]}
                row = rows.setdefault(repr(about), {**about, "questions": []})
                items += [] if row["questions"] else [row]
                row["questions"].append(part)
            elif "context" in part or "header" not in part:  # MRQA's first line is a header
                about = {"title": article.get("title"), "questions": part.get("qas")}
                items.append({**about, **part})
    return items


def _passage(item: Any, where: str, number: int) -> Passage:
    text = item.get("context") if isinstance(item, dict) else None
    if not _is_text(text):
        raise UserError(f"{where}: no text; expected a string under 'context'")
    title = str(item.get("title") or "")
    _check_letters(title + text, where)
    exam = _exam(item.get("questions"), where)
    return Passage(f"{number}: {title}".strip(), title, text.strip(), exam)


def _exam(questions: Any, where: str) -> Exam:
    if not isinstance(questions, list):
        told = f"no questions; expected a list of {{question, answer}}, or {SQUAD}"
        raise UserError(f"{where}: {told}")
    exam = []
    for number, item in enumerate(questions, 1):
        item = item if isinstance(item, dict) else {}
        question = item.get("question")
        answers = item.get("answers") or item.get("detected_answers") or [item.get("answer")]
        answers = answers.get("text") if isinstance(answers, dict) else answers  # in rows
        if item.get("is_impossible") or answers == []:
            continue
        if isinstance(answers, list):
            answers = [a.get("text") if isinstance(a, dict) else a for a in answers]
        if not _is_text(question):
            raise UserError(f"{where}, question {number}: no text under 'question'")
        if not isinstance(answers, list) or not all(map(_is_text, answers)):
            raise UserError(f"{where}, question {number} has no answer; expected a string")
        _check_letters(question + "".join(answers), where)
        exam.append((question.strip(), tuple(answer.strip() for answer in answers)))
    return tuple(exam)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_letters(text: str, where: str) -> None:
    """JSON can hold half a letter, which no file takes: it would stop a run at its very end."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: its text holds half a character (a lone surrogate)") from None
