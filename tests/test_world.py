"""The toy world: strangers stay strangers, exams ask what follows and is not said, and the grammar reads what it writes."""

import re
from collections import Counter

import numpy as np
import pytest

from minseal.tasks import world
from minseal.tasks.world import ATTRIBUTES, KNOWN, NOTE_ODDS, VAGUE

STRANGERS = world.people(300, np.random.default_rng(7), unseen=True)
KINDS = ("restates", "implies", "asks", "vague", "wrong")


def documents(n, seed=0):
    rng = np.random.default_rng(seed)
    return [world.document(rng) for _ in range(n)]


# ---- people ------------------------------------------------------------------------------------------------------------


def test_no_pretraining_text_names_an_unseen_person():
    n = sum(
        (i + j) % 4 == 0 for i in range(100) for j in range(100)
    )  # a quarter of all pairs of names
    unseen = {p.name for p in world.people(n, np.random.default_rng(0), unseen=True)}
    assert len(unseen) == n == 2500
    rng = np.random.default_rng(1)
    seen = {p.name for p in KNOWN} | {world.people_one(rng).name for _ in range(3000)}
    seen |= {
        f"{first} {last}"
        for text in documents(1000)
        for first, last in re.findall(r"(?=\b([A-Z]\w+) ([A-Z]\w+))", text)
    }
    assert len(seen) > 2000  # it did look
    assert not unseen & seen


@pytest.mark.parametrize("unseen", [True, False])
def test_people_have_different_names_and_values_of_the_table(unseen):
    people = world.people(2000, np.random.default_rng(3), unseen)
    assert len({p.name for p in people}) == 2000
    for p in people:
        assert set(p.values) == set(ATTRIBUTES) and all(
            v in ATTRIBUTES[a].implied for a, v in p.values.items()
        )
    for a, attribute in ATTRIBUTES.items():
        assert {p.values[a] for p in people} == set(attribute.implied)  # all values occur


# ---- exams -------------------------------------------------------------------------------------------------------------


def test_general_knowledge_is_true():
    told = {
        "Lyon": "France",
        "Seville": "Spain",
        "Krakow": "Poland",
        "Osaka": "Japan",
        "Luxor": "Egypt",
        "Bergen": "Norway",
        "nurse": "hospital",
        "judge": "court",
        "baker": "kitchen",
        "raven": "feathers",
        "snake": "scales",
        "hedgehog": "spines",
        "llama": "wool",
        "horse": "hair",
        "bagels": "bakery",
        "salmon": "fishmonger",
        "butter": "dairy",
        "barley": "mill",
        "saffron": "spicery",
    }
    table = {v: t for attribute in ATTRIBUTES.values() for v, t in attribute.implied.items()}
    assert told.items() <= table.items()
    assert len(table) == sum(
        len(attribute.implied) for attribute in ATTRIBUTES.values()
    )  # no value in two tables


def test_answers_follow_from_the_passage_and_never_stand_in_it():
    rng = np.random.default_rng(0)
    table = {v: t for attribute in ATTRIBUTES.values() for v, t in attribute.implied.items()}
    for person in STRANGERS:
        text = world.passage(person, rng)
        words = re.findall(r"\w+", text)
        exam = world.exam(person)
        assert len(exam) == 4 and all(person.name in question for question, _ in exam)
        assert sorted(table[w] for w in words if w in table) == sorted(answer for _, answer in exam)
        assert not {answer for _, answer in exam} & set(words)


def test_a_passage_names_its_person_once_and_states_every_value():
    rng = np.random.default_rng(0)
    for person in STRANGERS[:100]:
        text = world.passage(person, rng)
        assert (
            text.startswith(person.name) and text.count(person.name) == 1 and text.count(".") == 4
        )
        assert len(re.findall(rf"\b{person.pronoun}\b", text)) == 3
        assert all(re.search(rf"\b{v}\b", text) for v in person.values.values())


def test_oracle_notes_hold_the_answers_and_imply():
    rng = np.random.default_rng(0)
    for person in STRANGERS[:100]:
        notes = world.implications(person, rng)
        assert [world.kind_of(n, person) for n in notes] == ["implies"] * 4
        assert all(
            re.search(rf"\b{answer}\b", note)
            for note, (_, answer) in zip(notes, world.exam(person))
        )


# ---- the grammar -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_grammar_reads_back_what_note_writes(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    notes = set()
    for person in STRANGERS:
        for _ in range(5):
            note = world.note(person, kind, rng)
            assert world.kind_of(note, person) == kind, note
            notes.add(note.replace(person.name, "N"))
    assert len(notes) >= (
        len(VAGUE) if kind == "vague" else 38
    )  # at least one for each of the 38 answers


@pytest.mark.parametrize("kind", ["restates", "implies", "asks", "wrong"])
def test_a_note_about_someone_else_is_other(kind):
    rng = np.random.default_rng(0)
    for person, someone_else in zip(STRANGERS, STRANGERS[1:]):
        assert world.kind_of(world.note(person, kind, rng), someone_else) == "other"


def test_each_template_with_another_value_is_wrong():
    person, other = STRANGERS[0], "something else"
    for a, attribute in ATTRIBUTES.items():
        for v in set(attribute.implied) - {person.values[a]}:
            for template in attribute.facts:
                assert world.kind_of(template.format(n=person.name, v=v), person) == "wrong"
        for t in {*attribute.implied.values(), other} - {person.implied(a)}:
            for template in (
                *attribute.implications,
                f"Question: {attribute.question} Answer: {{t}}",
            ):
                assert world.kind_of(template.format(n=person.name, t=t), person) == "wrong"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Notes:",
        "lr: 0.001",
        "{n}",
        "{n} grew up.",
        "{n} grew up in Lyon",
        "Question: Which country is {n} from? Answer:",
        "Well, {n} grew up in Lyon. Yes.",
        "people are interesting.",
    ],
)
def test_what_the_grammar_does_not_know_is_other(text):
    assert world.kind_of(text.format(n=STRANGERS[0].name), STRANGERS[0]) == "other"


def test_a_question_line_without_its_answer_begins_the_one_with_it():
    assert (
        world.question_line("Why?", "So.")
        == world.question_line("Why?") + " So."
        == "Question: Why? Answer: So."
    )


# ---- text for pretraining ----------------------------------------------------------------------------------------------


def test_same_seed_same_documents_other_seed_others():
    assert documents(50) == documents(50) != documents(50, seed=1)


def kind_of_document(text):
    """Told from the text alone."""
    first, *rest = text.split("\n")
    if rest[0] == "Notes:":
        return "notes"
    if len(first.split(".")) == 5:  # a passage: four sentences
        return "copy" if rest == [first] else "read"
    return "known" if any(p.name in first for p in KNOWN) else "general"


def test_kinds_of_document_occur_in_their_stated_shares():
    n = 3000
    counts = Counter(map(kind_of_document, documents(n)))
    for kind, share in {
        "general": 0.12,
        "known": 0.10,
        "copy": 0.08,
        "read": 0.32,
        "notes": 0.38,
    }.items():
        # four standard deviations of a binomial share: a fair draw fails once in 16 000
        assert counts[kind] / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5), (
            kind
        )


def test_kinds_of_note_occur_in_their_stated_odds():
    rng = np.random.default_rng(0)
    lists = [world.random_notes(p, rng) for p in STRANGERS for _ in range(3)]
    assert {len(notes) for notes in lists} == set(range(3, 9))
    counts = Counter(
        world.kind_of(note, p)
        for i, p in enumerate(STRANGERS)
        for notes in lists[3 * i : 3 * i + 3]
        for note in notes
    )
    n = counts.total()
    assert set(counts) == set(NOTE_ODDS) and sum(NOTE_ODDS.values()) == pytest.approx(1)
    for kind, share in NOTE_ODDS.items():
        assert counts[kind] / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5), (
            kind
        )  # four standard deviations, as above


def test_a_known_person_never_has_statement_and_question_in_one_document():
    known = [text for text in documents(1500) if kind_of_document(text) == "known"]
    assert len(known) > 100
    for text in known:
        assert len(text.split("\n")) == 2
        assert sum("Question:" in line for line in text.split("\n")) in (0, 2)
