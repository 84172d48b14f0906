"""The grammar backwards: what is read is what was written, and nothing else is read."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minseal.tasks import people
from minseal.tasks.grammar import implication_of, origin_of, read_passages, read_person
from minseal.tasks.people import ATTRIBUTES, VAGUE

STRANGERS = people.draw_people(200, np.random.default_rng(3), strangers=True)
OTHERS = people.draw_people(200, np.random.default_rng(4), strangers=False)


def all_passages(person):
    """Every text that write_passage() can write: orders by wordings."""
    for order in permutations(ATTRIBUTES):
        for facts in product(*(ATTRIBUTES[name].facts for name in order)):
            subjects = [person.name, *[person.pronoun] * 3]
            said = zip(order, facts, subjects)
            yield " ".join(f.format(n=subject, v=person.values[name]) for name, f, subject in said)


def test_a_passage_is_read_back():
    rng = np.random.default_rng(0)
    for person in STRANGERS + OTHERS:
        assert read_person(people.write_passage(person, rng)) == person
    texts = [*all_passages(STRANGERS[0])]
    assert len(set(texts)) == 24 * 16 and all(read_person(t) == STRANGERS[0] for t in texts)


@given(
    st.integers(0, 199),
    st.integers(0, 120),
    st.integers(0, 20),
    st.sampled_from("aS. \n\x1b") | st.just(""),
)
def test_what_is_read_is_what_is_written(i, start, n, new):
    """A passage with a piece replaced: read only if write_passage() writes the same text."""
    text = people.write_passage(STRANGERS[i], np.random.default_rng(i))
    damaged = text[:start] + new + text[start + n :]
    person = read_person(damaged)
    assert person is None or damaged in all_passages(person)


PASSAGE = "Tamo Breck grew up in Lyon. She owns a goose. She likes ham best. She works as a nurse."


@pytest.mark.parametrize(
    "old, new",
    [
        ("Lyon", "Paris"),  # a value of no table
        ("goose", "nurse"),  # of another one
        ("She likes", "He likes"),
        ("She likes", "Tamo Breck likes"),
        (" She likes ham best.", ""),
        ("She likes ham best.", "She owns a goose."),  # twice
        ("She likes ham best.", "She owns a cat."),  # two of a kind
        ("nurse.", "nurse"),
        ("nurse.", "nurse. She owns a goose."),
        ("nurse.", "nurse.\n"),
        ("Tamo Breck", "Tamo"),
        ("Tamo Breck", "tamo breck"),
        ("Tamo Breck", "Tamo Breck Lim"),
        ("Tamo Breck", "Tamo  Breck"),
        ("Tamo Breck", "Tamó Breck"),
        ("Tamo", "\x1b[2JTamo"),
        ("She", "They"),
        (PASSAGE, ""),
        (PASSAGE, "."),
        (PASSAGE, "Tamo Breck works at the hospital."),
    ],
)
def test_anything_else_is_no_passage(old, new):
    assert read_person(PASSAGE).values["city"] == "Lyon" and old in PASSAGE
    assert read_person(PASSAGE.replace(old, new)) is None


@given(st.text(max_size=60))
def test_any_text_can_be_read(text):
    assert read_person(text) is None and implication_of(text, STRANGERS[0]) == ""
    assert origin_of(text) == "new" and read_passages([text], set()) == []


def test_passages_are_of_different_people_and_of_nobody_held_out():
    rng = np.random.default_rng(0)
    lines = [people.write_passage(p, rng) for p in [*STRANGERS[:4], STRANGERS[1]]]
    names = {STRANGERS[0].name}
    found = read_passages(["Lyon is in France.", *lines], names)
    assert [p.id for p in found] == [p.name for p in STRANGERS[1:4]]
    assert all(p.person.name == p.id and p.text.startswith(p.id) for p in found)


def test_a_note_states_the_implication_of_one_attribute():
    for person, other in zip(STRANGERS, OTHERS):
        for name, attribute in ATTRIBUTES.items():
            lines = [t.format(**person.words(name)) for t in attribute.implications]
            lines.append(
                people.question_line(attribute.question, "{t}").format(**person.words(name))
            )
            assert [implication_of(line, person) for line in lines] == [name] * 3
            assert [implication_of(line, other) for line in lines] == [""] * 3
            facts = [t.format(**person.words(name)) for t in attribute.facts]
            assert [implication_of(line, person) for line in [*facts, *VAGUE]] == [""] * 8
    rng = np.random.default_rng(0)
    wrong = [(people.write_note(p, "wrong", rng), p) for p in STRANGERS]
    assert not any(implication_of(*one) for one in wrong)


def test_where_a_name_is_from():
    assert {origin_of(p.name) for p in STRANGERS} == {"stranger"}
    assert {origin_of(p.name) for p in OTHERS} == {"pretraining"}
    first, last = STRANGERS[0].name.split()
    assert origin_of(f"{first}x {last}") == origin_of(f"{first} {last}x") == "new"
