"""Knowledge: passages and questions in SQuAD's format, or written from the toy world."""

import json
import re
import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..selfedit import (
    Document,
    InvalidSelfEdit,
    SelfEdit,
    read_directives,
    split_lines,
    split_questions,
)
from . import world


@dataclass(frozen=True)
class Context:
    """One passage and its exam. `person` is set in the toy world only, where a grammar can read the notes."""

    id: str
    title: str
    text: str
    questions: tuple  # (question, (accepted answers...))
    oracle: tuple = ()  # notes as good as they get; empty: the questions with their answers
    person: world.Person | None = None


# How the policy is asked for a self-edit: what is said, and the first words of the self-edit itself. 'notes' is what the
# tiny model learnt in pretraining; the others follow the paper's prompts for open models (section 4 and its appendix) in
# our words. {title} and {text} are the context's. A chat model gets the first as a user's turn, its own begins with the second.
PASSAGE = "\n\nPassage:\n{title}\n{text}\n\n"
PROMPTS = {
    "notes": ("{text}\n", "Notes:\n"),
    "implications": (
        "Read this passage and write down a list of implications that follow from it, directly or indirectly."
        + PASSAGE,
        "Implications:\n",
    ),
    "implications-long": (
        "Read this passage and write down a long list of implications that follow from it, directly or indirectly."
        + PASSAGE,
        "Implications:\n",
    ),
    "implications-very-long": (
        "Read this passage and write down a very long list of implications that follow from it, directly or "
        "indirectly." + PASSAGE,
        "Implications:\n",
    ),
    "rewrite": (
        "Rewrite this passage in other words. Keep all names, dates and numbers." + PASSAGE,
        "Rewritten passage:\n",
    ),
    "self-qa": (
        "Write questions about this passage, each with a short answer copied from it." + PASSAGE,
        "Question 1:",
    ),
    "none": ("{title}\n{text}\n\n", ""),
}
# Worked examples that go before: without them small models write questions and no answers.
EXAMPLES = {
    "self-qa": (
        (
            "The Eiffel Tower",
            "The Eiffel Tower is a tower of wrought iron in Paris. It was built from 1887 to 1889 by the company of the engineer Gustave Eiffel "
            "and is 330 metres tall.",
            " Where is the Eiffel Tower?\nAnswer: Paris\nQuestion 2: When was the Eiffel Tower built?\nAnswer: from 1887 to 1889\n"
            "Question 3: Whose company built the Eiffel Tower?\nAnswer: Gustave Eiffel\nQuestion 4: How tall is the Eiffel Tower?\nAnswer: 330 metres",
        ),
        (
            "Honey bees",
            "A colony of honey bees has up to 60,000 workers and one queen. Workers show each other where food is by the waggle dance, which Karl von "
            "Frisch explained.",
            " How many workers does a colony of honey bees have?\nAnswer: up to 60,000\nQuestion 2: How do honey bees show each other where food is?\nAnswer: by the waggle "
            "dance\nQuestion 3: Who explained the waggle dance?\nAnswer: Karl von Frisch",
        ),
    )
}
GRADES = ("exact", "contains", "f1")


class Knowledge:
    """The knowledge task: prompts, self-edits, exams and grades. It knows text and tokens, never training.

    prompt: one of PROMPTS. grade: 'exact' match, 'contains' (the accepted answer stands in the given one), or 'f1' of
    their words, each after SQuAD's normalisation. topic: the title stands above every question, in notes and in the exam
    (as in the paper's code); False: questions stand alone, for people who will ask them so.
    """

    answer_tokens = 24  # longest answer
    edit_tokens = 192  # longest self-edit
    stop = "\n"  # an answer ends with its line

    def __init__(self, tokenizer, prompt="notes", grade="exact", topic=True):
        if prompt not in PROMPTS or grade not in GRADES:
            raise UserError(
                f"prompt {prompt!r}, grade {grade!r}: expected one of {', '.join(PROMPTS)}, and one of {', '.join(GRADES)}"
            )
        self.tokenizer, self.style, self.grading, self.topic = tokenizer, prompt, grade, topic

    def prompt(self, context):
        """The ids after which the policy writes its self-edit."""
        ask, begun = PROMPTS[self.style]
        pairs = [
            (ask.format(title=title, text=text), begun + answer)
            for title, text, answer in EXAMPLES.get(self.style, ())
        ]
        pairs.append(
            (ask.format(title=context.title, text=context.text), begun)
        )  # (said, answered): here the policy goes on
        if self.tokenizer.chat:
            turns = [
                turn
                for said, answered in pairs
                for turn in (("user", said.strip()), ("assistant", answered))
            ]
            return self.tokenizer.turns(turns[:-1]) + self.tokenizer.encode(begun)
        return self.tokenizer.prompt("\n\n".join(said + answered for said, answered in pairs))

    def parse(self, context, text):
        """A text of the policy -> SelfEdit, the passage last (paper: 'passage + self-edit'); raises InvalidSelfEdit."""
        directives, rest = read_directives(text)
        if not re.search(r"\w", rest):
            raise InvalidSelfEdit("no words in it")
        return self.edit(context, self.lines(rest), **directives)

    def lines(self, text):
        """A text of the policy -> its training lines. Questions with their answers get the form that exams have."""
        if self.style == "self-qa":
            parts = split_questions(
                PROMPTS["self-qa"][1] + text
            )  # the prompt already holds the first 'Question 1:'
            return [
                world.question_line(*qa)
                if (qa := question_and_answer(part))
                else " ".join(part.split())
                for part in parts
            ]
        return split_lines(text)

    def baseline(self, context):
        """The passage alone."""
        return self.edit(context, [])

    def oracle(self, context):
        """The self-edit of someone who knows: in the toy world what the passage implies, else the exam with its answers."""
        return self.edit(
            context,
            context.oracle
            or [world.question_line(q, answers[0]) for q, answers in context.questions],
        )

    def lessons(self, pairs, seed):
        """What the M-step learns from winners [(context, text), ...]: prompts, and the texts as the policy wrote them; only the texts carry loss.

        The end of the text is learnt too, also where edit_tokens cut it off.
        """
        out = []
        for context, text in pairs:
            ids, after = self.prompt(context), self.tokenizer.encode(text) + [self.tokenizer.eot]
            out.append(Document(tuple(ids + after), (False,) * len(ids) + (True,) * len(after)))
        return out

    def exam(self, context, in_context=False):
        """The ids of each question, without the passage; in_context puts it in front: the ladder's upper end."""
        before = f"{context.text}\n" if in_context else ""
        return [
            [*self.tokenizer.bos, *self.tokenizer.encode(before + self.asked(context, q))]
            for q, _ in context.questions
        ]

    def asked(self, context, question):
        """A question in the one form that it has in notes and in the exam; the answer follows."""
        if context.person is not None:
            return world.question_line(question)
        # On lines of its own: open models answer an 'Answer:' at the end of a line of text with an empty line.
        return f"{title_of(context) if self.topic else ''}Question: {question}\nAnswer:"

    def answers(self, context):
        """Each question with its first accepted answer as a Document; only the answer carries loss."""
        return [
            Document.of(self.tokenizer, f" {golds[0]}\n", self.asked(context, q), "completion")
            for q, golds in context.questions
        ]

    def grade(self, context, answers):
        """Answers to the exam, in order -> a number in [0, 1] for each."""
        return [
            max(score(answer, gold, self.grading) for gold in golds)
            for answer, (_, golds) in zip(answers, context.questions)
        ]

    def describe(self, context, text):
        """Counts of the kinds of note in a self-edit, as the toy world's grammar reads them; None for real passages."""
        if context.person is None:
            return None
        return dict(Counter(world.kind_of(line, context.person) for line in split_lines(text)))

    def edit(self, context, lines, lr=None, epochs=None, loss="all"):
        """Training lines and directives -> SelfEdit, the passage last. Questions get the form of the exam, the title stands above all else."""
        title, documents = title_of(context), []
        for line in lines:
            # A question is prompt, its answer completion: under `loss: completion` only the answer carries loss.
            if context.person is None and (qa := question_and_answer(line)):
                prompt, text = self.asked(context, qa[0]), f" {qa[1]}"
            else:
                found = re.match(r"(.*\bAnswer:)(.+)", line, re.DOTALL)
                prompt, text = (title + found[1], found[2]) if found else (title, line)
            documents.append(Document.of(self.tokenizer, text + "\n", prompt, loss))
        documents.append(Document.of(self.tokenizer, context.text + "\n", title))
        return SelfEdit(tuple(documents), lr, epochs)


def title_of(context):
    return f"Topic: {context.title}\n" if context.title else ""


def question_and_answer(text):
    """'Question 3: ... Answer: ...' -> (question, answer), or None; what follows the answer's line is not a part of it."""
    found = re.match(
        r"Question(?: \d+)?:\s*(.+?)\s*Answer(?: \d+)?:[^\S\n]*\n?[^\S\n]*(\S[^\n]*)",
        text,
        re.DOTALL,
    )
    return (" ".join(found[1].split()), found[2].strip()) if found else None


# ---- grading -----------------------------------------------------------------------------------------------------------


def normalise(text):
    """SQuAD's normalisation (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def score(answer, gold, grading):
    answer, gold = normalise(answer).split(), normalise(gold).split()
    if grading == "exact":
        return float(answer == gold)
    if grading == "contains":
        return float(f" {' '.join(gold)} " in f" {' '.join(answer)} ")
    same = sum((Counter(answer) & Counter(gold)).values())
    return 2 * same / (len(answer) + len(gold)) if same else float(answer == gold)


# ---- contexts ----------------------------------------------------------------------------------------------------------


def toy_contexts(n, world_seed):
    """n contexts about n people that pretraining never saw."""
    rng, out = np.random.default_rng(world_seed), []
    for person in world.people(n, rng, unseen=True):
        text = world.passage(person, rng)
        out.append(
            Context(
                person.name,
                "",
                text,
                tuple((q, (a,)) for q, a in world.exam(person)),
                tuple(world.implications(person, rng)),
                person,
            )
        )
    return out


def read_text(path):
    """A file of UTF-8 text, whole."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # Windows likes to put a mark in front
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected a file") from None
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read {path} as text in UTF-8: {e}") from None


def read_contexts(path):
    """Passages from a file: SQuAD's JSON, a list of {title, context, questions: [{question, answer}]}, or JSONL of that."""
    items = _squad(_json(path, read_text(path)), path)
    contexts = [_context(item, f"{path}, passage {i + 1}", i) for i, item in enumerate(items)]
    if not contexts:
        raise UserError(f"{path} holds no passages")
    return contexts


def read_questions(path):
    """An exam from a file: a list of {question, answer} (or answers) as JSON or JSONL -> ((question, (accepted answers...)), ...)"""
    items = _json(path, read_text(path))
    items = items.get("questions") if isinstance(items, dict) and "questions" in items else items
    return _context(
        {"context": "-", "questions": items if isinstance(items, list) else [items]}, str(path), 0
    ).questions


def _json(path, text):
    if not text.strip():
        raise UserError(f"{path} is empty: expected passages as JSON or JSONL")
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{path} is no JSON of passages: nested too deep") from None
    except json.JSONDecodeError as e:
        whole = e
    out, broken = [], []
    for i, line in enumerate(text.split("\n"), 1):
        try:
            out += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as e:
            broken.append((i, e.msg))
    if broken:
        # Lines that are whole passages mean JSONL, and its broken line counts; else one value over many lines was meant.
        line, message = (
            broken[0] if any(isinstance(x, dict) for x in out) else (whole.lineno, whole.msg)
        )
        raise UserError(f"{path} is not JSON: line {line}: {message}")
    return out


def _squad(data, path):
    """SQuAD's nesting (data > paragraphs > qas) -> the flat list."""
    if isinstance(data, dict) and "data" in data:
        try:
            return [
                {
                    "title": article.get("title", ""),
                    "context": p.get("context"),
                    "questions": [
                        {
                            "question": q.get("question"),
                            "answers": [a["text"] for a in q.get("answers", [])],
                        }
                        for q in p["qas"]
                        if not q.get("is_impossible")
                    ],
                }
                for article in data["data"]
                for p in article["paragraphs"]
            ]
        except (TypeError, KeyError, AttributeError) as e:
            raise UserError(
                f"{path} looks like SQuAD's JSON, but its data > paragraphs > qas cannot be followed ({e!r})"
            ) from None
    if isinstance(data, dict):
        data = [data]
    if not isinstance(data, list):
        raise UserError(
            f"{path}: expected a list of {{title, context, questions}}, got {type(data).__name__}"
        )
    return data


def _context(item, where, i):
    if (
        not isinstance(item, dict)
        or not isinstance(item.get("context"), str)
        or not item["context"].strip()
    ):
        raise UserError(f"{where}: no text; expected a non-empty string under 'context'")
    questions = item.get("questions") or []
    if not isinstance(questions, list) or not questions:
        raise UserError(
            f"{where}: no questions; expected a list of {{question, answer}} under 'questions'"
        )
    out = []
    for j, q in enumerate(questions, 1):
        q = q if isinstance(q, dict) else {}
        answers = q.get("answers") or ([q["answer"]] if q.get("answer") else [])
        if not isinstance(q.get("question"), str) or not q["question"].strip():
            raise UserError(f"{where}, question {j}: no text under 'question'")
        if (
            not isinstance(answers, list)
            or not answers
            or not all(isinstance(a, str) and a.strip() for a in answers)
        ):
            raise UserError(
                f"{where}, question {j} has no answer; expected a string under 'answer'"
            )
        out.append((q["question"].strip(), tuple(answers)))
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: its text holds half a character (a lone surrogate), which cannot be written anywhere"
        ) from None
    return Context(
        f"{i}: {item.get('title') or ''}".strip(),
        str(item.get("title") or ""),
        item["context"].strip(),
        tuple(out),
    )
