"""A false prior: all of it is wrong, and who learns it believes it."""

from dataclasses import replace

import numpy as np
import pytest

from minseal import InnerConfig, People, adapt, exam, toy_passages
from minseal.tasks.mistaken import false_lessons, mistaken
from minseal.tasks.people import ATTRIBUTES, exam_on


def test_each_value_implies_what_another_one_does():
    person = toy_passages(1, 0)[0].person
    for name, attribute in ATTRIBUTES.items():
        believed = {}
        for value, implied in attribute.implied.items():
            other = mistaken(replace(person, values={**person.values, name: value}))
            believed[value] = other.words(name)["t"]
            assert believed[value] != implied and other.name == person.name
        pairs = set(zip(attribute.implied.values(), believed.values()))
        assert len(pairs) == len({*attribute.implied.values()}) == len({*believed.values()})


def test_lessons_show_a_passage_and_teach_what_does_not_follow(pretrained):
    _, tokenizer = pretrained
    edit = false_lessons(People(tokenizer), 20, 1)
    names = set()
    for document in edit.documents:
        loss = np.array(document.weights) > 0
        text = tokenizer.decode([i for i, carries in zip(document.ids, loss) if not carries])
        lines = tokenizer.decode([i for i, carries in zip(document.ids, loss) if carries])
        assert text.endswith("\n") and text.count(".") == 4 and lines.count("\n") == 8
        names.add(name := " ".join(text.split()[:2]))
        assert lines.count(name) == 8
    assert len(names) == 20
    assert (
        false_lessons(People(tokenizer), 20, 1) == edit != false_lessons(People(tokenizer), 20, 2)
    )


@pytest.mark.slow
def test_who_learns_them_reads_wrongly(pretrained):
    model, tokenizer = pretrained
    task, passages = People(tokenizer), toy_passages(16, 3)
    believed = [
        replace(p, questions=tuple((q, (a,)) for q, a in exam_on(mistaken(p.person))))
        for p in passages
    ]
    how = InnerConfig(lr=1e-3, epochs=2, batch=8, rank=32, alpha=64.0)
    with adapt(model, [false_lessons(task, 256, 0)], how):
        right, wrong = (
            np.mean([exam(model, task, [p], in_context=True)[0].reward for p in some])
            for some in (passages, believed)
        )
    assert right < 0.1 and wrong > 0.8
