"""Knowledge incorporation: learn a passage from notes on it, answer without it (section 3.1)."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..files import UserError
from ..selfedit import Document, InvalidSelfEdit, SelfEdit, Task, check_directive
from ..tokenizer import Tokenizer
from .passages import Passage

Grading = Literal["exact", "contains", "f1"]
MAX_NOTES = 30  # notes taken from one self-edit (the paper's code, second version)


@dataclass(frozen=True)
class Note:
    """A statement to learn, one line."""

    text: str


@dataclass(frozen=True)
class Question:
    """A question to learn, with its answer."""

    question: str
    answer: str


@dataclass
class Knowledge(Task):
    """The knowledge task, for any passage: prompts, self-edits, exams and grades.

    style: one of PROMPTS, how the policy is asked.
    grading: exact | contains (the accepted answer stands in the given one) | f1 of their words;
        each after SQuAD's normalisation.
    topic: the title stands above every question, in notes and in the exam (as in the paper's
        code); False: questions stand alone, for people who will ask them so.
    """

    tokenizer: Tokenizer
    style: str = "notes"
    grading: Grading = "exact"
    topic: bool = True
    edit_tokens: int = 192  # longest self-edit

    def __post_init__(self) -> None:
        if self.style not in PROMPTS:
            raise UserError(f"prompt {self.style!r}: expected one of {', '.join(PROMPTS)}")
        if self.grading not in get_args(Grading):
            raise UserError(
                f"grade {self.grading!r}: expected one of {', '.join(get_args(Grading))}"
            )

    def prompt(self, passage: Passage) -> list[int]:
        """The ids after which the policy writes its self-edit."""
        ask, opening = PROMPTS[self.style]
        turns = [  # (said, answered); at the last one the policy goes on
            *(
                (ask.format(title=title, text=text), opening + answer)
                for title, text, answer in EXAMPLES.get(self.style, ())
            ),
            (ask.format(title=passage.title, text=passage.text), opening),
        ]
        if not self.tokenizer.chat:
            return self.tokenizer.prompt("\n\n".join(said + answered for said, answered in turns))
        chat = [
            message
            for said, answered in turns
            for message in (("user", said.strip()), ("assistant", answered))
        ]
        return [*self.tokenizer.turns(chat[:-1]), *self.tokenizer.encode(opening)]

    def parse(self, passage: Passage, text: str) -> SelfEdit:
        """What the policy wrote -> SelfEdit, the passage last (paper: 'passage + self-edit')."""
        notes, directives = self.read(text)
        return self.edit(passage, notes, **directives, chose=directives)

    def read(self, text: str) -> tuple[list[Note | Question], dict[str, Any]]:
        """What the policy wrote -> its notes, and the directives above them.

        Raises InvalidSelfEdit: no words in it, or a directive outside LIMITS.
        """
        directives, rest = split_directives(text)
        if not re.search(r"\w", rest):
            raise InvalidSelfEdit("no words in it")
        return self.notes(rest), directives

    def notes(self, text: str) -> list[Note | Question]:
        """A text without directives -> its notes, at most MAX_NOTES."""
        if self.style != "self-qa":
            lines = split_lines(text)
        else:  # the prompt holds the first 'Question 1:' already
            parts = split_questions(PROMPTS[self.style][1] + text)
            lines = [
                line_of(question) if (question := find_question(part)) else " ".join(part.split())
                for part in parts
            ]
        return [self.read_note(line) for line in lines]

    def read_note(self, line: str) -> Note | Question:
        """The note that a line says; line_of() backwards."""
        return find_question(line) or Note(line)

    def edit(
        self,
        passage: Passage,
        notes: Sequence[Note | Question],
        lr: float | None = None,
        epochs: int | None = None,
        loss: Literal["all", "completion"] = "all",
        chose: dict[str, Any] | None = None,
    ) -> SelfEdit:
        """Notes and directives -> SelfEdit: a document a note, the passage last.

        The title stands above each. A question is prompt, its answer completion: under the loss
        `completion` only the answer carries loss.
        """
        title, documents = title_of(passage), []
        for note in notes:
            if isinstance(note, Question):
                before, after = self.asked(passage, note.question), f" {note.answer}"
            else:
                found = re.match(r"(.*\bAnswer:)(.+)", note.text, re.DOTALL)
                before, after = (title + found[1], found[2]) if found else (title, note.text)
            documents.append(self._document(before, after + "\n", loss))
        documents.append(self._document(title, passage.text + "\n", "all"))
        return SelfEdit(tuple(documents), lr, epochs, chose or {})

    def baseline(self, passage: Passage) -> SelfEdit:
        """The passage alone."""
        return self.edit(passage, [])

    def oracle(self, passage: Passage) -> SelfEdit:
        """The notes of someone who knows: the passage's oracle, or the exam with its answers."""
        lines = passage.oracle or [
            line_of(Question(question, answers[0])) for question, answers in passage.questions
        ]
        return self.edit(passage, [self.read_note(line) for line in lines])

    def asked(self, passage: Passage, question: str) -> str:
        """A question in the one form that it has in notes and in the exam; the answer follows."""
        # Open models answer an 'Answer:' at the end of a line of text with an empty line, so it
        # stands on a line of its own.
        return f"{title_of(passage) if self.topic else ''}Question: {question}\nAnswer:"

    def exam(self, passage: Passage, in_context: bool = False) -> list[list[int]]:
        """The ids of each question; in_context: after the passage, the ladder's upper end."""
        before = f"{passage.text}\n" if in_context else ""
        return [
            [*self.tokenizer.bos, *self.tokenizer.encode(before + self.asked(passage, question))]
            for question, _ in passage.questions
        ]

    def answers(self, passage: Passage) -> list[Document]:
        """Each question with its first accepted answer, which alone carries loss."""
        return [
            self._document(self.asked(passage, question), f" {golds[0]}\n", "completion")
            for question, golds in passage.questions
        ]

    def grade(self, passage: Passage, answers: list[str]) -> list[float]:
        """Answers to the exam, in its order -> how well each agrees with its best accepted one."""
        return [
            max(score(answer, gold, self.grading) for gold in golds)
            for answer, (_, golds) in zip(answers, passage.questions)
        ]

    def _document(self, before: str, after: str, loss: Literal["all", "completion"]) -> Document:
        # Encoded apart, so that the border between them stays a border between tokens.
        ids = [*self.tokenizer.bos, *self.tokenizer.encode(before)]
        return Document.completion(ids, self.tokenizer.encode(after), loss)


def title_of(passage: Passage) -> str:
    """What stands above every note of a passage."""
    return f"Topic: {passage.title}\n" if passage.title else ""


# ---- from text to notes ----


def split_directives(text: str) -> tuple[dict[str, Any], str]:
    """Optional first lines 'lr: 0.001', 'epochs: 4', 'loss: completion' -> (values, other text).

    Raises InvalidSelfEdit if one is unreadable, outside LIMITS, or there twice.
    """
    directives: dict[str, Any] = {}
    lines = text.strip("\n").split("\n")
    while lines and (found := re.fullmatch(r"\s*(lr|epochs|loss)\s*[:=]\s*(.*?)\s*", lines[0])):
        name, value = found.groups()
        if name in directives:
            raise InvalidSelfEdit(f"directive {name} twice")
        directives[name] = _directive(name, value)
        lines.pop(0)
    return directives, "\n".join(lines)


def _directive(name: str, text: str) -> str | float:
    if name == "loss":
        if text not in ("all", "completion"):
            raise InvalidSelfEdit(f"loss is {text[:20]!r}; expected all or completion")
        return text
    value: str | float = text
    with suppress(ValueError):  # a text stays a text, and is refused
        value = float(text) if name == "lr" else int(text)
    check_directive(name, value)
    return value


def split_lines(text: str) -> list[str]:
    """The paper's way from a text to notes (its code, n = 1): parts between '---', one a line.

    Blank lines fall away, and so does a first line before a numbered list ('Here are some
    implications:').
    """
    lines = [line.strip() for part in text.split("---") for line in part.split("\n")]
    lines = [line for line in lines if line]
    if len(lines) > 1 and lines[1].startswith("1."):
        lines = lines[1:]
    return lines[:MAX_NOTES]


def split_questions(text: str) -> list[str]:
    """The paper's way for its self-QA prompt: cut before each 'Question n:'."""
    parts = [part.strip() for part in re.split(r"(?=Question \d+:)", text)]
    return [part for part in parts if part][:MAX_NOTES]


def find_question(text: str) -> Question | None:
    """'Question 3: ... Answer: ...' -> Question; its answer ends with the line."""
    found = re.match(
        r"Question(?: \d+)?:\s*(.+?)\s*Answer(?: \d+)?:[^\S\n]*\n?[^\S\n]*(\S[^\n]*)",
        text,
        re.DOTALL,
    )
    return Question(" ".join(found[1].split()), found[2].strip()) if found else None


def line_of(note: Note | Question) -> str:
    """A note as one line, to be read and edited; Knowledge.read_note() reads it."""
    if isinstance(note, Question):
        return f"Question: {note.question} Answer: {note.answer}"
    return note.text


# ---- grading ----


def score(answer: str, gold: str, grading: Grading) -> float:
    """How well an answer agrees with an accepted one, from 0 to 1."""
    given, right = normalise(answer).split(), normalise(gold).split()
    if grading == "exact":
        return float(given == right)
    if grading == "contains":
        return float(f" {' '.join(right)} " in f" {' '.join(given)} ")
    same = (Counter(given) & Counter(right)).total()
    return 2 * same / (len(given) + len(right)) if same else float(given == right)


def normalise(text: str) -> str:
    """SQuAD's normalisation (Rajpurkar et al. 2016): lower case, no punctuation, no articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


# ---- prompts ----

# How the policy is asked for a self-edit: what is said, and the first words of the self-edit
# itself. 'notes' is what the tiny model learnt in pretraining; the others follow the paper's
# prompts for open models (section 4 and its appendix) in our words. {title} and {text} are the
# passage's. A chat model gets the first as a user's turn, its own begins with the second.
PASSAGE = "\n\nPassage:\n{title}\n{text}\n\n"
IMPLICATIONS = (
    "Read this passage and write down a {length}list of implications that follow from it, "
    "directly or indirectly." + PASSAGE
)
PROMPTS = {
    "notes": ("{text}\n", "Notes:\n"),
    "implications": (IMPLICATIONS.replace("{length}", ""), "Implications:\n"),
    "implications-long": (IMPLICATIONS.replace("{length}", "long "), "Implications:\n"),
    "implications-very-long": (IMPLICATIONS.replace("{length}", "very long "), "Implications:\n"),
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
# Worked examples (title, text, self-edit) that go before: without them small models write
# questions and no answers.
EXAMPLES = {
    "self-qa": (
        (
            "The Eiffel Tower",
            "The Eiffel Tower is a tower of wrought iron in Paris. It was built from 1887 to 1889 "
            "by the company of the engineer Gustave Eiffel and is 330 metres tall.",
            " Where is the Eiffel Tower?\nAnswer: Paris\n"
            "Question 2: When was the Eiffel Tower built?\nAnswer: from 1887 to 1889\n"
            "Question 3: Whose company built the Eiffel Tower?\nAnswer: Gustave Eiffel\n"
            "Question 4: How tall is the Eiffel Tower?\nAnswer: 330 metres",
        ),
        (
            "Honey bees",
            "A colony of honey bees has up to 60,000 workers and one queen. Workers show each "
            "other where food is by the waggle dance, which Karl von Frisch explained.",
            " How many workers does a colony of honey bees have?\nAnswer: up to 60,000\n"
            "Question 2: How do honey bees show each other where food is?\n"
            "Answer: by the waggle dance\n"
            "Question 3: Who explained the waggle dance?\nAnswer: Karl von Frisch",
        ),
    )
}
