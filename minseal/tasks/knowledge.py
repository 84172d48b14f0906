"""Knowledge incorporation: learn a passage from notes on it, answer without it (section 3.1)."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..files import UserError
from ..selfedit import Document, InvalidSelfEdit, SelfEdit, Task, check_directive
from ..tokenizer import Tokenizer
from .grading import Grading, score
from .passages import Passage

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
    """The knowledge task, for any passage: prompts, self-edits, exams and grades."""

    tokenizer: Tokenizer
    style: str = "notes"  # one of PROMPTS, how the policy is asked
    grading: Grading = "exact"  # contains: the accepted one stands in the given one
    topic: bool = True  # the title stands above every question, as in the paper's code
    edit_tokens: int = 192  # longest self-edit

    def __post_init__(self) -> None:
        gradings = get_args(Grading)
        if self.style not in PROMPTS:
            raise UserError(f"prompt {self.style!r}: expected one of {', '.join(PROMPTS)}")
        if self.grading not in gradings:
            raise UserError(f"grade {self.grading!r}: expected one of {', '.join(gradings)}")

    def prompt(self, passage: Passage) -> list[int]:
        """The ids after which the policy writes its self-edit."""
        ask, opening = PROMPTS[self.style]
        passages = [*EXAMPLES.get(self.style, ()), (passage.title, passage.text, "")]
        turns = [(ask.format(title=t, text=text), opening + answer) for t, text, answer in passages]
        if not self.tokenizer.chat:
            return self.tokenizer.prompt("\n\n".join(asked + answered for asked, answered in turns))
        chat = []
        for asked, answered in turns:
            chat += [("user", asked.strip()), ("assistant", answered)]
        return [*self.tokenizer.turns(chat[:-1]), *self.tokenizer.encode(opening)]

    def parse(self, passage: Passage, text: str) -> SelfEdit:
        """What the policy wrote -> SelfEdit, the passage last (paper: 'passage + self-edit')."""
        notes, directives = self.read(text)
        return self.edit(passage, notes, **directives, chose=directives)

    def read(self, text: str) -> tuple[list[Note | Question], dict[str, Any]]:
        """What the policy wrote -> (its notes, the directives above). Raises InvalidSelfEdit."""
        directives, rest = split_directives(text)
        if not re.search(r"\w", rest):
            raise InvalidSelfEdit("no words in it")
        return self.notes(rest), directives

    def notes(self, text: str) -> list[Note | Question]:
        """A text without directives -> its notes, at most MAX_NOTES."""
        text = re.sub(r"\r\n?", "\n", text)  # in a file of notes both end a line
        begun = PROMPTS[self.style][1].rpartition("\n")[2]  # of the first line, in the prompt
        text = begun + text
        lines = split_lines(text)
        if self.style == "self-qa":
            parts = split_questions(text)
            # Each is brought to one line and read from it, as in a notes file: so a question never
            # holds an 'Answer:' that would be read as its own when the file is read back.
            found = [(find_question(part), " ".join(part.split())) for part in parts]
            lines = [line_of(question) if question else line for question, line in found]
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
        """Notes and directives -> SelfEdit: a document a note, the passage last, titles above.

        Under the loss `completion` only the answer of a question carries loss.
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
        exam = [Question(question, golds[0]) for question, golds in passage.questions]
        return self.edit(passage, [self.read_note(line) for line in passage.oracle] or exam)

    def asked(self, passage: Passage, question: str) -> str:
        """A question in the one form that it has in notes and in the exam; the answer follows."""
        # 'Answer:' has a line of its own: at the end of one, open models go on with an empty line.
        return f"{title_of(passage) if self.topic else ''}Question: {question}\nAnswer:"

    def exam(self, passage: Passage, in_context: bool = False) -> list[list[int]]:
        """The ids of each question; in_context: after the passage, the ladder's upper end."""
        before = f"{passage.text}\n" if in_context else ""
        asked = [self.asked(passage, question) for question, _ in passage.questions]
        return [self.tokenizer.begin(before + question) for question in asked]

    def right_answers(self, passage: Passage) -> list[Document]:
        """Each question with its first accepted answer, which alone carries loss."""
        return [
            self._document(self.asked(passage, question), f" {golds[0]}\n", "completion")
            for question, golds in passage.questions
        ]

    def to_read(self, passage: Passage) -> dict[str, Any]:
        """The passage, its title above it, and the exam."""
        text = f"{passage.title}\n\n{passage.text}" if passage.title else passage.text
        return {"text": text, "exam": passage.questions}

    def grade(self, passage: Passage, answers: list[str]) -> list[float]:
        """Answers to the exam, in its order -> how well each agrees with its best accepted one."""
        return [
            max(score(answer, gold, self.grading) for gold in golds)
            for answer, (_, golds) in zip(answers, passage.questions)
        ]

    def _document(self, before: str, after: str, loss: Literal["all", "completion"]) -> Document:
        # Encoded apart, so that the border between them stays a border between tokens.
        return Document.completion(self.tokenizer.begin(before), self.tokenizer.encode(after), loss)


def title_of(passage: Passage) -> str:
    """What stands above every note of a passage."""
    return f"Topic: {passage.title}\n" if passage.title else ""


def split_directives(text: str) -> tuple[dict[str, Any], str]:
    """Optional first lines 'lr: 0.001', 'epochs: 4', 'loss: completion' -> (values, other text).

    Raises InvalidSelfEdit if one is unreadable, outside LIMITS, or there twice.
    """
    directives: dict[str, Any] = {}
    lines = text.strip("\n").split("\n")
    while lines and (found := re.match(r"\s*(lr|epochs|loss)\s*[:=](.*)", lines[0])):
        name, value = found[1], found[2].strip()
        if name in directives:
            raise InvalidSelfEdit(f"directive {name} twice")
        if name == "loss" and value not in ("all", "completion"):
            raise InvalidSelfEdit(f"loss is {value[:20]!r}; expected all or completion")
        if name != "loss":
            with suppress(ValueError):  # a text stays a text, and is refused
                value = float(value) if name == "lr" else int(value)
            check_directive(name, value)
        directives[name] = value
        lines.pop(0)
    return directives, "\n".join(lines)


def split_lines(text: str) -> list[str]:
    """The paper's way from a text to notes (its code, n = 1): parts between '---', one a line.

    Blank lines fall away, and so does a first line before a numbered list.
    """
    lines = [line.strip() for line in text.replace("---", "\n").split("\n")]
    lines = [line for line in lines if line]
    if len(lines) > 1 and lines[1].startswith("1."):
        del lines[0]
    return lines[:MAX_NOTES]


def split_questions(text: str) -> list[str]:
    """The paper's way for its self-QA prompt: cut before each 'Question n:'."""
    parts = [part.strip() for part in re.split(r"(?=Question \d+:)", text)]
    return [part for part in parts if part][:MAX_NOTES]


def find_question(text: str) -> Question | None:
    """'Question 3: ... Answer: ...' -> Question; its answer ends with the line."""
    # Two patterns, each of which can match in one way only: so the time is linear in the text.
    start = re.match(r"Question(?: \d+)?:\s*(?=\S)", text)
    answer = re.compile(r"Answer(?: \d+)?:[^\S\n]*(?:\n[^\S\n]*)?(\S[^\n]*)")
    if not start or not (found := answer.search(text, start.end() + 1)):
        return None
    return Question(" ".join(text[start.end() : found.start()].split()), found[1].strip())


def line_of(note: Note | Question) -> str:
    """A note as one line, to be read and edited; Knowledge.read_note() reads it."""
    if isinstance(note, Question):
        return f"Question: {note.question} Answer: {note.answer}"
    return note.text


# How the policy is asked for a self-edit: what is said, a user's turn in a chat, and the first
# words of the self-edit itself. 'notes' and 'questions' are what the tiny model learnt in
# pretraining; the others follow the paper's prompts for open models (section 4 and its appendix).
PASSAGE = "\n\nPassage:\n{title}\n{text}\n\n"
IMPLICATIONS = (
    "Read this passage and write down a {length}list of implications that follow from it, "
    "directly or indirectly." + PASSAGE
)
REWRITE = "Rewrite this passage in other words. Keep all names, dates and numbers." + PASSAGE
SELF_QA = "Write questions about this passage, each with a short answer copied from it." + PASSAGE
PROMPTS = {
    "notes": ("{text}\n", "Notes:\n"),
    "questions": ("{text}\n", "Question:"),
    "implications": (IMPLICATIONS.replace("{length}", ""), "Implications:\n"),
    "implications-long": (IMPLICATIONS.replace("{length}", "long "), "Implications:\n"),
    "implications-very-long": (IMPLICATIONS.replace("{length}", "very long "), "Implications:\n"),
    "rewrite": (REWRITE, "Rewritten passage:\n"),
    "self-qa": (SELF_QA, "Question 1:"),
    "none": ("{title}\n{text}\n\n", ""),
}
# Worked examples (title, text, self-edit) that go before: without them small models write
# questions and no answers.
# fmt: off
EXAMPLES = {"self-qa": ((
    "The Eiffel Tower",
    "The Eiffel Tower is a tower of wrought iron in Paris. It was built from 1887 to 1889 by the "
    "company of the engineer Gustave Eiffel and is 330 metres tall.",
    " Where is the Eiffel Tower?\nAnswer: Paris\n"
    "Question 2: When was the Eiffel Tower built?\nAnswer: from 1887 to 1889\n"
    "Question 3: Whose company built the Eiffel Tower?\nAnswer: Gustave Eiffel\n"
    "Question 4: How tall is the Eiffel Tower?\nAnswer: 330 metres",
), (
    "Honey bees",
    "A colony of honey bees has up to 60,000 workers and one queen. Workers show each other where "
    "food is by the waggle dance, which Karl von Frisch explained.",
    " How many workers does a colony of honey bees have?\nAnswer: up to 60,000\n"
    "Question 2: How do honey bees show each other where food is?\nAnswer: by the waggle dance\n"
    "Question 3: Who explained the waggle dance?\nAnswer: Karl von Frisch",
))}
# fmt: on
