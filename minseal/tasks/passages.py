"""Passages with their exams: from SQuAD's JSON, or from simpler lists of our own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import UserError, parse_json, read_text

Exam = tuple[tuple[str, tuple[str, ...]], ...]  # (question, (accepted answers...)), ...


@dataclass(frozen=True)
class Passage:
    """A text, and the exam about it."""

    id: str
    title: str
    text: str
    questions: Exam
    oracle: tuple[str, ...] = ()  # notes as good as they get; empty: the exam with its answers


def read_passages(path: str | Path) -> list[Passage]:
    """The passages in a file, in its order. Raises UserError, which names file and passage.

    The file holds SQuAD's JSON (Rajpurkar et al. 2016), or as JSON or JSONL a list of
    {title, context, questions: [{question, answer}]}, with `answers` where several are accepted.
    """
    items = _read_values(path)
    if isinstance(items, dict):
        items = _flatten_squad(items["data"], path) if "data" in items else [items]
    if not isinstance(items, list):
        raise UserError(f"{path}: expected a list of passages, got {type(items).__name__}")
    if not items:
        raise UserError(f"{path} holds no passages")
    return [_passage(item, f"{path}, passage {i + 1}", i) for i, item in enumerate(items)]


def read_questions(path: str | Path) -> Exam:
    """The exam in a file: a list of {question, answer}, or of {question, answers}. UserError."""
    data = _read_values(path)
    return _exam(data.get("questions", [data]) if isinstance(data, dict) else data, str(path))


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


def _flatten_squad(articles: Any, path: str | Path) -> list[dict[str, Any]]:
    """SQuAD's nesting (data > paragraphs > qas) -> our flat list."""
    items = []
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                questions = []
                for qa in paragraph["qas"]:
                    if not qa.get("is_impossible"):
                        answers = [answer["text"] for answer in qa.get("answers", [])]
                        questions.append({"question": qa.get("question"), "answers": answers})
                about = {"title": article.get("title"), "context": paragraph.get("context")}
                items.append({**about, "questions": questions})
    except (TypeError, KeyError, AttributeError) as e:
        raise UserError(f"{path}: no SQuAD, data > paragraphs > qas breaks off ({e!r})") from None
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
    if not isinstance(questions, list) or not questions:
        raise UserError(f"{where}: no questions; expected a list of {{question, answer}}")
    exam = []
    for number, item in enumerate(questions, 1):
        item = item if isinstance(item, dict) else {}
        question, answers = item.get("question"), item.get("answers") or [item.get("answer")]
        if not _is_text(question):
            raise UserError(f"{where}, question {number}: no text under 'question'")
        if not isinstance(answers, list) or not all(map(_is_text, answers)):
            raise UserError(f"{where}, question {number} has no answer; expected a string")
        _check_letters(question + "".join(answers), where)
        exam.append((question.strip(), tuple(answers)))
    return tuple(exam)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_letters(text: str, where: str) -> None:
    """JSON can hold half a letter, which no file takes: it would stop a run at its very end."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: its text holds half a character (a lone surrogate)") from None
