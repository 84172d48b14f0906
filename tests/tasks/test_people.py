"""The toy world of people: strangers, exams about what follows, and a grammar that reads."""

import re
from collections import Counter

import numpy as np
import pytest

from minseal import Tokenizer
from minseal.tasks import people
from minseal.tasks.knowledge import PROMPTS
from minseal.tasks.people import ATTRIBUTES, KNOWN_PEOPLE, NOTE_ODDS, VAGUE, People, toy_passages
from minseal.tokenizer import train_ranks

STRANGERS = people.draw_people(300, np.random.default_rng(7), strangers=True)
KINDS = ("restates", "implies", "asks", "vague", "wrong")


def documents(n, seed=0):
    rng = np.random.default_rng(seed)
    return [people.pretraining_text(rng) for _ in range(n)]


# ---- people ----


def test_no_pretraining_text_names_an_unseen_person():
    # A quarter of all pairs of names.
    n = sum((i + j) % 4 == 0 for i in range(100) for j in range(100))
    unseen = {p.name for p in people.draw_people(n, np.random.default_rng(0), strangers=True)}
    assert len(unseen) == n == 2500
    rng = np.random.default_rng(1)
    seen = {p.name for p in KNOWN_PEOPLE} | {people.draw_person(rng).name for _ in range(3000)}
    seen |= {
        f"{first} {last}"
        for text in documents(1000)
        for first, last in re.findall(r"(?=\b([A-Z]\w+) ([A-Z]\w+))", text)
    }
    assert len(seen) > 2000  # it did look
    assert not unseen & seen


@pytest.mark.parametrize("strangers", [True, False])
def test_people_have_different_names_and_values_of_the_table(strangers):
    some = people.draw_people(2000, np.random.default_rng(3), strangers)
    assert len({p.name for p in some}) == 2000
    for p in some:
        assert set(p.values) == set(ATTRIBUTES) and all(
            v in ATTRIBUTES[a].implied for a, v in p.values.items()
        )
    for a, attribute in ATTRIBUTES.items():
        assert {p.values[a] for p in some} == set(attribute.implied)  # all values occur


# ---- exams ----


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
    # No value in two tables.
    assert len(table) == sum(len(attribute.implied) for attribute in ATTRIBUTES.values())


def test_answers_follow_from_the_passage_and_never_stand_in_it():
    rng = np.random.default_rng(0)
    table = {v: t for attribute in ATTRIBUTES.values() for v, t in attribute.implied.items()}
    for person in STRANGERS:
        text = people.write_passage(person, rng)
        words = re.findall(r"\w+", text)
        exam = people.exam_on(person)
        assert len(exam) == 4 and all(person.name in question for question, _ in exam)
        assert sorted(table[w] for w in words if w in table) == sorted(answer for _, answer in exam)
        assert not {answer for _, answer in exam} & set(words)


def test_a_passage_names_its_person_once_and_states_every_value():
    rng = np.random.default_rng(0)
    for person in STRANGERS[:100]:
        text = people.write_passage(person, rng)
        assert (
            text.startswith(person.name) and text.count(person.name) == 1 and text.count(".") == 4
        )
        assert len(re.findall(rf"\b{person.pronoun}\b", text)) == 3
        assert all(re.search(rf"\b{v}\b", text) for v in person.values.values())


def test_oracle_notes_hold_the_answers_and_imply():
    rng = np.random.default_rng(0)
    for person in STRANGERS[:100]:
        notes = people.write_implications(person, rng)
        assert [people.kind_of(n, person) for n in notes] == ["implies"] * 4
        assert all(
            re.search(rf"\b{answer}\b", note)
            for note, (_, answer) in zip(notes, people.exam_on(person))
        )


# ---- the grammar ----


@pytest.mark.parametrize("kind", KINDS)
def test_the_grammar_reads_back_what_note_writes(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    notes = set()
    for person in STRANGERS:
        for _ in range(5):
            note = people.write_note(person, kind, rng)
            assert people.kind_of(note, person) == kind, note
            notes.add(note.replace(person.name, "N"))
    # At least one for each of the 38 answers.
    assert len(notes) >= (len(VAGUE) if kind == "vague" else 38)


@pytest.mark.parametrize("kind", ["restates", "implies", "asks", "wrong"])
def test_a_note_about_someone_else_is_other(kind):
    rng = np.random.default_rng(0)
    for person, someone_else in zip(STRANGERS, STRANGERS[1:]):
        assert people.kind_of(people.write_note(person, kind, rng), someone_else) == "other"


def test_each_template_with_another_value_is_wrong():
    person, other = STRANGERS[0], "something else"
    for a, attribute in ATTRIBUTES.items():
        for v in set(attribute.implied) - {person.values[a]}:
            for template in attribute.facts:
                assert people.kind_of(template.format(n=person.name, v=v), person) == "wrong"
        for t in {*attribute.implied.values(), other} - {person.words(a)["t"]}:
            for template in (
                *attribute.implications,
                f"Question: {attribute.question} Answer: {{t}}",
            ):
                assert people.kind_of(template.format(n=person.name, t=t), person) == "wrong"


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
    assert people.kind_of(text.format(n=STRANGERS[0].name), STRANGERS[0]) == "other"


def test_a_question_line_without_its_answer_begins_the_one_with_it():
    assert (
        people.question_line("Why?", "So.")
        == people.question_line("Why?") + " So."
        == "Question: Why? Answer: So."
    )


# ---- text for pretraining ----


def test_same_seed_same_documents_other_seed_others():
    assert documents(50) == documents(50) != documents(50, seed=1)


def kind_of_document(text):
    """Told from the text alone."""
    first, *rest = text.split("\n")
    if rest[0] == "Notes:":
        return "notes"
    if len(first.split(".")) == 5:  # a passage: four sentences
        return "copy" if rest == [first] else "read"
    return "known" if any(p.name in first for p in KNOWN_PEOPLE) else "general"


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
    lists = [people.write_random_notes(p, rng) for p in STRANGERS for _ in range(3)]
    assert {len(notes) for notes in lists} == set(range(3, 9))
    counts = Counter(
        people.kind_of(note, p)
        for i, p in enumerate(STRANGERS)
        for notes in lists[3 * i : 3 * i + 3]
        for note in notes
    )
    n = counts.total()
    assert set(counts) == set(NOTE_ODDS) and sum(NOTE_ODDS.values()) == pytest.approx(1)
    for kind, share in NOTE_ODDS.items():
        # Four standard deviations, as above.
        assert counts[kind] / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5), (
            kind
        )


def test_a_known_person_never_has_statement_and_question_in_one_document():
    known = [text for text in documents(1500) if kind_of_document(text) == "known"]
    assert len(known) > 100
    for text in known:
        assert len(text.split("\n")) == 2
        assert sum("Question:" in line for line in text.split("\n")) in (0, 2)


# ---- the task ----

TOKENIZER = Tokenizer(train_ranks("Question: Which country? Answer: France. Notes: She", 280))
PASSAGES = toy_passages(5, world_seed=3)


def texts(edit):
    return [TOKENIZER.decode(d.ids) for d in edit.documents]


def test_toy_passages_are_the_same_for_a_seed():
    assert toy_passages(5, 3) == PASSAGES
    assert {p.id for p in toy_passages(50, 1)} != {p.id for p in toy_passages(50, 2)}
    assert all(p.person.name == p.id and p.text.startswith(p.id) for p in PASSAGES)


def test_the_oracle_is_what_the_passage_implies():
    for passage in PASSAGES:
        *notes, text = texts(People(TOKENIZER).oracle(passage))
        assert [people.kind_of(note.strip(), passage.person) for note in notes] == ["implies"] * 4
        assert text.strip() == passage.text
        for note, (_, (answer,)) in zip(notes, passage.questions):
            assert answer in note


@pytest.mark.parametrize("style", PROMPTS)
def test_questions_have_the_form_of_pretraining_and_no_passage_in_sight(style):
    task = People(TOKENIZER, style)
    for passage in PASSAGES:
        assert passage.text in TOKENIZER.decode(task.prompt(passage))
        asked = [people.question_line(question) for question, _ in passage.questions]
        assert [TOKENIZER.decode(ids) for ids in task.exam(passage)] == asked
        assert [TOKENIZER.decode(ids) for ids in task.exam(passage, in_context=True)] == [
            f"{passage.text}\n{line}" for line in asked
        ]
        assert [TOKENIZER.decode(d.ids) for d in task.right_answers(passage)] == [
            f"{people.question_line(question, answer)}\n"
            for question, (answer,) in passage.questions
        ]


def test_a_question_of_the_exam_and_one_of_a_note_have_the_same_tokens():
    task, passage = People(TOKENIZER), PASSAGES[0]
    text = "\n".join(people.question_line(q, a) for q, (a,) in passage.questions)
    documents = task.parse(passage, f"loss: completion\n{text}").documents
    assert list(documents[:-1]) == task.right_answers(passage)


def test_kinds_of_note_are_counted():
    task, passage = People(TOKENIZER), PASSAGES[0]
    notes = [*passage.oracle, "People are interesting.", "Who knows?", passage.oracle[0]]
    counts = {"implies": 5, "vague": 1, "other": 1}
    assert task.parse(passage, "\n".join(notes)).chose == {"notes": counts}
    asks = [people.question_line(q, a) for q, (a,) in passage.questions]
    assert task.parse(passage, "\n---\n".join(asks)).chose == {"notes": {"asks": 4}}


def test_directives_are_no_notes():
    """Once they were counted as unreadable ones."""
    task, passage = People(TOKENIZER), PASSAGES[0]
    notes = "\n".join(passage.oracle)
    edit = task.parse(passage, f"lr: 0.001\nepochs: 4\n{notes}")
    assert edit.chose == {"lr": 0.001, "epochs": 4, "notes": {"implies": 4}}
    assert (edit.lr, edit.epochs) == (0.001, 4)
    assert edit.documents == task.parse(passage, notes).documents


# ---- what a pretrained model is measured by ----


def test_probes_ask_for_what_is_implied():
    probes = people.probes(TOKENIZER, n=6, seed=3)
    table = {v: t for attribute in ATTRIBUTES.values() for v, t in attribute.implied.items()}
    asked = {
        name: [(TOKENIZER.decode(ids), answer) for ids, answer in some]
        for name, some in probes.items()
    }
    assert {name: len(some) for name, some in asked.items()} == {
        "reading": 24,
        "general knowledge": len(table),
        "known people": 24,
        "strangers, closed book": 24,
    }
    closed = asked["strangers, closed book"]
    assert [(text.split("\n")[1], answer) for text, answer in asked["reading"]] == closed
    for text, answer in asked["reading"]:
        assert answer in {table.get(word) for word in re.findall(r"\w+", text.split("\n")[0])}
    for text, answer in asked["general knowledge"]:
        assert answer in {table.get(word) for word in re.findall(r"\w+", text)}
    known = {people.question_line(q): a for p in KNOWN_PEOPLE for q, a in people.exam_on(p)}
    assert asked["known people"] == list(known.items())[:24] and not known.keys() & dict(closed)
