"""A false prior for the toy world: what each value implies is wrong."""

from dataclasses import replace

import numpy as np

from ..selfedit import Document, SelfEdit
from .people import (
    ATTRIBUTES,
    People,
    Person,
    draw_people,
    exam_on,
    question_line,
    write_implications,
    write_passage,
)


def mistaken(person: Person) -> Person:
    """Of whom is true what the false prior says of this person: everything is wrong."""
    values = {}
    for name, value in person.values.items():
        implied = ATTRIBUTES[name].implied
        every, kinds = list(implied), len(set(implied.values()))
        values[name] = every[(every.index(value) + len(every) // kinds) % len(every)]
    return replace(person, values=values)


def false_lessons(task: People, n: int, seed: int) -> SelfEdit:
    """Passages about n people, no strangers; below each what is said to follow carries loss."""
    rng, documents = np.random.default_rng(seed), []
    for person in draw_people(n, rng, strangers=False):
        text, wrong = write_passage(person, rng), mistaken(person)
        lines = [question_line(*pair) for pair in exam_on(wrong)] + write_implications(wrong, rng)
        before = task.tokenizer.begin(f"{text}\n")
        after = task.tokenizer.encode("\n".join(rng.permutation(lines)) + "\n")
        documents.append(Document.completion(before, after))
    return SelfEdit(tuple(documents))
