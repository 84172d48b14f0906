"""What `learn` and its passes share: notes and exam that a model writes, and how both are used."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..files import UserError, read_text, write_folder, write_text
from ..inner import OnStep
from ..lab.lab import OWN, Lab
from ..lab.run import Run
from ..lab.table import aligned
from ..outer import Trial
from ..selfedit import InvalidSelfEdit, SelfEdit
from ..tasks.grading import score
from ..tasks.knowledge import Knowledge, Question
from ..tasks.passages import Exam, Passage
from .documents import Notes, keep_older

BATCH = 16  # sections that notes are written on at once; questions that are asked at once


@dataclass
class Study:
    """Who learns what, and what is asked."""

    lab: Lab
    out: Path  # folder of the adapter
    prompts: tuple[str, ...]  # a section gets notes of each kind
    start: dict[str, Tensor]  # the state of the adapter that it goes on from, or {}
    sections: list[Passage]
    notes: Notes
    exam: Exam
    written_on: dict[str, int]  # question -> section, of those that the model wrote

    def batches(self) -> list[Passage]:
        """The exam, so many questions at once; closed book: there is no text."""
        parts = [self.exam[i : i + BATCH] for i in range(0, len(self.exam), BATCH)]
        return [Passage(f"questions {i}", "", "", part) for i, part in enumerate(parts, 1)]


# ---- written by the model ------------------------------------------------------------------------


def write_notes(lab: Lab, prompts: tuple[str, ...], sections: list[Passage]) -> Notes:
    """The notes of all prompt styles, by the policy as it is."""
    notes: Notes = {}
    for i, style in enumerate(prompts):
        task = Knowledge(lab.task.tokenizer, style)
        for number, text in enumerate(write_texts(lab.but(task=task), sections, i), 1):
            with suppress(InvalidSelfEdit):  # directives are for runs: --inner.lr holds here
                notes.setdefault(number, []).extend(task.read(text)[0])
    return notes


def write_texts(lab: Lab, sections: list[Passage], draw: int) -> list[str]:
    """A self-edit of each section as text; each batch is a step, so a kill loses little."""
    texts = []
    for j in range(0, len(sections), BATCH):
        part = sections[j : j + BATCH]
        name = f"{lab.task.style} {draw}, sections {j + 1}-{j + len(part)}"
        texts += lab.step(name, lambda: lab.write(part, (draw, j)))
    return texts


def write_exam(lab: Lab, sections: list[Passage]) -> tuple[Exam, dict[str, int]]:
    """(exam, the section of each question): written while the model saw the section.

    The answers stand in the section; a question that comes again is asked once.
    """
    task = Knowledge(lab.task.tokenizer, "self-qa")
    found: dict[str, tuple[str, ...]] = {}
    written_on: dict[str, int] = {}
    texts = write_texts(lab.but(task=task), sections, OWN)
    for number, (section, text) in enumerate(zip(sections, texts), 1):
        for note in task.notes(text):
            if isinstance(note, Question) and score(section.text, note.answer, "contains"):
                found.setdefault(note.question, (note.answer,))
                written_on.setdefault(note.question, number)
    return tuple(found.items()), written_on


# ---- used ----------------------------------------------------------------------------------------


def make_edits(lab: Lab, sections: list[Passage], notes: Notes) -> list[SelfEdit]:
    """A self-edit of each section: its notes, and the section itself."""
    if max(notes, default=0) > len(sections):
        told = f"there are notes on section {max(notes)} of {len(sections)}"
        raise UserError(f"{told}: give the files and --section that they were written with")
    edits, reads = [], lab.policy.config.block_size
    for i, section in enumerate(sections, 1):
        edit = lab.task.edit(section, notes.get(i, []))
        longest = max(len(d.ids) for d in edit.documents)
        if longest > reads:
            told = f"section {i} or a note on it has {longest} tokens; the model reads {reads}"
            raise UserError(f"{told}: shorten the line")
        edits.append(edit)
    return edits


def exam_as_text(exam: Exam) -> str:
    """The exam as a file to read and edit; --exam takes it."""
    data = [{"question": question, "answers": list(answers)} for question, answers in exam]
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def keep(
    run: Run, path: Path, text: str, say: Callable[[str], None], given: str = "", over: str = ""
) -> None:
    """Write a file, once in a run; an older one gets another name.

    Not the file `given`, nor one that holds the text `over`, an earlier state of this run's.
    """

    def write() -> bool:
        there = read_text(path) if path.is_file() else None
        if there != text:  # else a kill came right after it
            if (not over or there != over) and (older := keep_older(path, given)):
                say(f"what was {path} is now {older}")
            write_folder(path.parent, {path.name: write_text(text)})
        return True

    run.step(path.name, write)


# ---- what is shown -------------------------------------------------------------------------------


def show_steps(say: Callable[[str], None]) -> OnStep:
    """A function for adapt() that says ten times how training goes."""

    def show(step: int, steps: int, loss: Tensor) -> None:
        if step * 10 // steps > (step - 1) * 10 // steps:
            say(f"training: step {step} of {steps}, loss {loss.mean():.2f}")

    return show


def compare(exam: Exam, before: list[Trial], after: list[Trial], most: int = 12) -> str:
    """Before and after, question by question (the first few), and the sums."""
    rows = [["question", "expected", "", "before", "", "after"]]
    pairs = list(zip(marks_of(before), marks_of(after)))
    for (question, golds), (old, new) in zip(exam[:most], pairs):
        rows.append([short(question, 46), short(golds[0], 20), *old, *new])
    more = [f"... {len(exam) - most} more"] if len(exam) > most else []
    right = [sum(mark == "+" for mark, _ in trials) for trials in zip(*pairs)]
    closing = (
        f"right: {right[0]} of {len(exam)} before, {right[1]} of {len(exam)} after (closed book; "
        "a + marks an answer that contains the expected one)"
    )
    return "\n".join([aligned(rows, left=(0, 1, 2, 3, 4, 5)), *more, "", closing])


def grades_of(trials: list[Trial]) -> list[float]:
    """Question by question."""
    return [grade for t in trials for grade in t.grades]


def marks_of(trials: list[Trial]) -> list[tuple[str, str]]:
    """('+' where it is right, the answer), question by question."""
    graded = [pair for t in trials for pair in zip(t.answers, t.grades)]
    return [("+" if grade else "", short(answer, 34)) for answer, grade in graded]


def short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
