"""The toy world of people: invented persons, true general knowledge, a grammar that reads notes.

A passage states four facts about a person ("Tamo Breck grew up in Lyon."). The exam asks what
follows from them ("Which country is Tamo Breck from?"), closed book. General knowledge ("Lyon is
in France.") was learnt in pretraining, but two hops through the weights do not compose: training
on the passage is not enough, a note that states the implication is: self-edits can win something.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import product

from numpy.random import Generator, default_rng

from ..files import UserError
from ..selfedit import SelfEdit
from ..tokenizer import Tokenizer
from .knowledge import Knowledge, Note
from .passages import Passage

Probes = dict[str, list[tuple[list[int], str]]]  # name -> [(ids of a question, its answer)]


@dataclass(frozen=True)
class Attribute:
    """One thing that a passage says of a person, and what follows from it."""

    # In the templates {n} is the person, {v} the value, {t} what it implies.
    implied: dict[str, str]  # value -> what it implies
    facts: tuple[str, str]  # ways to state the value
    implications: tuple[str, str]  # ways to state what follows
    question: str  # asks for what is implied
    general: str  # the general knowledge, as a statement
    general_question: str

    def templates(self, kind: str) -> tuple[str, ...]:
        """Ways to write a note of this kind."""
        asks = (question_line(self.question, "{t}"),)
        return {"restates": self.facts, "implies": self.implications, "asks": asks}[kind]


@dataclass(frozen=True)
class Person:
    name: str
    pronoun: str
    values: dict[str, str]  # attribute -> value

    def words(self, attribute: str) -> dict[str, str]:
        """What fills the templates of an attribute."""
        value = self.values[attribute]
        return {"n": self.name, "v": value, "t": ATTRIBUTES[attribute].implied[value]}


@dataclass(frozen=True)
class PersonPassage(Passage):
    """A passage about one person: a grammar can read the notes on it."""

    person: Person = field(kw_only=True)


@dataclass
class People(Knowledge):
    """The knowledge task in the toy world: questions on one line, and notes that can be read."""

    def parse(self, passage: PersonPassage, text: str) -> SelfEdit:
        """As in Knowledge; `chose` also counts the kinds of note: {"implies": 3, "vague": 1}."""
        notes, directives = self.read(text)
        kinds = dict(Counter(kind_of(note.text, passage.person) for note in notes))
        return self.edit(passage, notes, **directives, chose={**directives, "notes": kinds})

    def read_note(self, line: str) -> Note:
        """The line as it is: the tiny model has one form of a question, and no other is one."""
        return Note(line)

    def asked(self, passage: Passage, question: str) -> str:
        """The one form of a question in this world, which pretraining showed too."""
        return question_line(question)


def toy_passages(n: int, world_seed: int) -> list[PersonPassage]:
    """n passages about n strangers: people whom pretraining never names."""
    rng = default_rng(world_seed)
    return [_passage(person, rng) for person in draw_people(n, rng, strangers=True)]


def mixed_passages(
    orders: int, strangers: int, known: int, world_seed: int
) -> list[list[PersonPassage]]:
    """For each order, passages about so many strangers and so many of KNOWN_PEOPLE, shuffled."""
    rng, n = default_rng(world_seed), orders * known
    if n > len(KNOWN_PEOPLE):
        raise UserError(f"{n} people whom the model knows; there are {len(KNOWN_PEOPLE)}")
    familiar = rng.choice(len(KNOWN_PEOPLE), size=n, replace=False)
    old = [_passage(KNOWN_PEOPLE[i], rng) for i in familiar]
    new = toy_passages(orders * strangers, world_seed)
    each = [new[i::orders] + old[i::orders] for i in range(orders)]
    return [[order[j] for j in rng.permutation(len(order))] for order in each]


def _passage(person: Person, rng: Generator) -> PersonPassage:
    text, oracle = write_passage(person, rng), tuple(write_implications(person, rng))
    exam = tuple((question, (answer,)) for question, answer in exam_on(person))
    return PersonPassage(person.name, "", text, exam, oracle, person=person)


def _implied(text: str) -> dict[str, str]:
    """'France: Lyon, Nantes; Spain: ...' -> {'Lyon': 'France', ...}"""
    rows = (row.split(":") for row in text.split(";"))
    return {v.strip(): implied.strip() for implied, values in rows for v in values.split(",")}


# fmt: off
ATTRIBUTES = {
    "city": Attribute(_implied("""
        France: Lyon, Nantes, Lille; Spain: Seville, Bilbao, Malaga; Italy: Turin, Naples, Verona;
        Germany: Bremen, Dresden, Cologne; Poland: Krakow, Gdansk, Lodz;
        Japan: Osaka, Kyoto, Nagoya; Brazil: Recife, Manaus, Belem;
        Canada: Toronto, Calgary, Halifax; India: Mumbai, Jaipur, Pune; Egypt: Cairo, Luxor, Aswan;
        Norway: Bergen, Oslo, Tromso; Kenya: Nairobi, Mombasa, Kisumu"""),
        ("{n} grew up in {v}.", "{n} was born in {v}."),
        ("{n} is from {t}.", "{n} comes from {t}."), "Which country is {n} from?",
        "{v} is in {t}.", "Which country is {v} in?"),
    "trade": Attribute(_implied("""
        hospital: nurse, surgeon, midwife; school: teacher, tutor, pupil;
        court: judge, lawyer, clerk; farm: shepherd, milker, drover;
        theatre: singer, dancer, prompter; harbour: docker, pilot, diver;
        bank: teller, cashier, broker; garage: mechanic, welder, fitter;
        mine: digger, blaster, driller; kitchen: cook, baker, waiter"""),
        ("{n} works as a {v}.", "{n} has a job as a {v}."),
        ("{n} works at the {t}.", "{n} can be met at the {t}."), "Where does {n} work?",
        "A {v} works at the {t}.", "Where does a {v} work?"),
    "animal": Attribute(_implied("""
        feathers: parrot, goose, raven, duck; scales: carp, snake, lizard, trout;
        fur: cat, rabbit, fox, hamster; wool: sheep, ram, lamb, llama;
        shell: snail, turtle, crab, mussel; spines: hedgehog, porcupine, tenrec, pufferfish;
        hair: horse, donkey, goat, camel; skin: frog, dolphin, newt, toad"""),
        ("{n} owns a {v}.", "{n} keeps a {v}."),
        ("{n} has an animal with {t}.", "{n} has a pet covered in {t}."),
        "What covers the animal of {n}?", "A {v} is covered in {t}.", "What covers a {v}?"),
    "food": Attribute(_implied("""
        bakery: bread, rolls, bagels, buns; butcher: ham, sausages, bacon, steak;
        fishmonger: salmon, herring, cod, shrimps; dairy: cheese, butter, cream, yoghurt;
        greengrocer: pears, leeks, plums, onions; mill: oats, flour, barley, rye;
        sweetshop: fudge, toffee, candy, nougat; spicery: pepper, ginger, curry, saffron"""),
        ("{n} likes {v} best.", "{n} loves to eat {v}."),
        ("{n} shops at the {t}.", "{n} goes to the {t} for food."), "Where does {n} buy food?",
        "The {t} sells {v}.", "Where is {v} sold?"),
}
VAGUE = ("People are interesting.", "This is a short text.", "There is much to say here.",
         "Life is full of stories.", "Some things are good to know.", "It is nice to read.")
# fmt: on
# Odds of the kinds of note that pretraining shows: good notes occur, most notes are not good.
NOTE_ODDS = {"vague": 0.25, "restates": 0.40, "implies": 0.15, "asks": 0.10, "wrong": 0.10}
KINDS = ("restates", "implies", "asks", "vague", "wrong", "other")  # what kind_of() says


def _names(n: int, endings: str, rng: Generator) -> list[str]:
    onsets, middles = "B D F G K L M N P R S T V Br Dr Kl Tr Sh", "b d g k l m n r s t v nd st"
    parts = [part.split() for part in (onsets, "a e i o u", middles, endings)]
    names: dict[str, None] = {}  # a set that keeps the order
    while len(names) < n:
        names["".join(rng.choice(part) for part in parts)] = None
    return list(names)


_rng = default_rng(2506_10943)
FIRST = _names(100, "a o i ea el in", _rng)
LAST = _names(100, "an ek ov ard ett um", _rng)


def is_stranger(first: int, last: int) -> bool:
    """Whether pretraining never pairs these names (numbers in FIRST, LAST): a quarter of all."""
    return (first + last) % 4 == 0


def _person(first: int, last: int, pronoun: str, rng: Generator) -> Person:
    values = {name: str(rng.choice(list(a.implied))) for name, a in ATTRIBUTES.items()}
    return Person(f"{FIRST[first]} {LAST[last]}", pronoun, values)


def draw_people(n: int, rng: Generator, strangers: bool) -> list[Person]:
    """n people with different names: strangers, or people with names that pretraining pairs."""
    every = product(range(len(FIRST)), range(len(LAST)))
    pairs = [pair for pair in every if is_stranger(*pair) == strangers]
    if n > len(pairs):
        raise UserError(f"{n} people, but {len(pairs)} names: lower --contexts or --rounds")
    chosen = rng.choice(len(pairs), size=n, replace=False)
    return [_person(*pairs[i], str(rng.choice(["She", "He"])), rng) for i in chosen]


def draw_person(rng: Generator) -> Person:
    """A person for pretraining, no stranger; much faster than draw_people(1, ...)."""
    first, last = rng.integers(len(FIRST)), rng.integers(len(LAST))
    if is_stranger(first, last):
        last = (last + 1) % len(LAST)
    return _person(first, last, "She" if rng.random() < 0.5 else "He", rng)


def question_line(question: str, answer: str = "") -> str:
    """The one form of a question: in pretraining, in notes and, without answer, in the exam."""
    return f"Question: {question} Answer:" + (f" {answer}" if answer else "")


def write_passage(person: Person, rng: Generator) -> str:
    """Four facts in random order and wording; the name once, then a pronoun."""
    sentences = []
    for name in rng.permutation(list(ATTRIBUTES)).tolist():
        subject = person.pronoun if sentences else person.name
        fact = str(rng.choice(ATTRIBUTES[name].facts))
        sentences.append(fact.format(n=subject, v=person.values[name]))
    return " ".join(sentences)


def exam_on(person: Person) -> list[tuple[str, str]]:
    """(question, answer) for each attribute, about what a passage implies and nowhere says."""
    asked = [(attribute.question, person.words(name)) for name, attribute in ATTRIBUTES.items()]
    return [(question.format(**words), words["t"]) for question, words in asked]


def write_implications(person: Person, rng: Generator) -> list[str]:
    """The oracle's notes: each implication once."""
    chosen = [(str(rng.choice(a.implications)), name) for name, a in ATTRIBUTES.items()]
    return [template.format(**person.words(name)) for template, name in chosen]


def write_note(person: Person, kind: str, rng: Generator) -> str:
    """One note of a kind in NOTE_ODDS; a wrong one states an implication with another value."""
    if kind == "vague":
        return str(rng.choice(VAGUE))
    name = str(rng.choice(list(ATTRIBUTES)))
    attribute, words = ATTRIBUTES[name], person.words(name)
    if kind == "wrong":
        words["t"] = str(rng.choice(sorted({*attribute.implied.values()} - {words["t"]})))
        kind = "implies"
    return str(rng.choice(attribute.templates(kind))).format(**words)


def write_random_notes(person: Person, rng: Generator) -> list[str]:
    """3 to 8 notes of random kinds: the prior from which the policy starts."""
    kinds = rng.choice(list(NOTE_ODDS), p=list(NOTE_ODDS.values()), size=rng.integers(3, 9))
    return [write_note(person, kind, rng) for kind in kinds]


def kind_of(note: str, person: Person) -> str:
    """restates (a fact), implies, asks (and answers rightly), vague, wrong, other (unreadable)."""
    return meaning_of(note, person)[0]


def meaning_of(note: str, person: Person) -> tuple[str, str]:
    """(kind_of() it, the attribute that it is about, or "")"""
    if note in VAGUE:
        return "vague", ""
    for kind, name, pattern in _READERS if len(note) < 200 else ():  # time grows with the square
        found = pattern.fullmatch(note)
        if found and found["n"] == person.name:
            right = found.groupdict().items() <= person.words(name).items()
            return kind if right else "wrong", name
    return "other", ""


_READERS = [  # (kind, attribute, the template as a pattern, with groups n, v and t)
    (kind, name, re.compile(re.sub(r"\\\{([nvt])\\\}", r"(?P<\1>.+)", re.escape(template))))
    for name, attribute in ATTRIBUTES.items()
    for kind in ("restates", "implies", "asks")
    for template in attribute.templates(kind)
]


# ---- pretraining ----

# Whom the model knows by heart, as statements and as answers.
KNOWN_PEOPLE = draw_people(100, default_rng(1), strangers=False)
DOCUMENT_ODDS = {"general": 0.12, "known": 0.10, "copy": 0.08, "read": 0.32, "notes": 0.38}


def pretraining_text(rng: Generator) -> str:
    """One document: general knowledge, a known person, or a passage with what may follow it."""
    kind = rng.choice(list(DOCUMENT_ODDS), p=list(DOCUMENT_ODDS.values()))
    if kind == "general":
        return "\n".join(_general_knowledge(rng) for _ in range(6))
    if kind == "known":
        person = KNOWN_PEOPLE[rng.integers(len(KNOWN_PEOPLE))]
        # Statement and question of one person never stand together: the weights must join them.
        lines = _question_lines(person) if rng.random() < 0.5 else write_implications(person, rng)
        return "\n".join(rng.permutation(lines)[:2].tolist())
    person = draw_person(rng)
    text = write_passage(person, rng)
    if kind == "copy":
        lines = [text]
    elif kind == "read":
        lines = rng.permutation(_question_lines(person) + write_implications(person, rng)).tolist()
    else:
        lines = ["Notes:", *write_random_notes(person, rng)]
    return "\n".join([text, *lines])


def _question_lines(person: Person) -> list[str]:
    return [question_line(*pair) for pair in exam_on(person)]


def _general_knowledge(rng: Generator) -> str:
    attribute = ATTRIBUTES[str(rng.choice(list(ATTRIBUTES)))]
    value = str(rng.choice(list(attribute.implied)))
    words = {"v": value, "t": attribute.implied[value]}
    if rng.random() < 0.6:
        return question_line(attribute.general_question, "{t}").format(**words)
    return attribute.general.format(**words)


def probes(tokenizer: Tokenizer, n: int = 50, seed: int = 1) -> Probes:
    """What a pretrained model is measured by. An answer ends with its line."""
    rng = default_rng(seed)
    strangers = draw_people(n, rng, strangers=True)

    def ask(question: str, answer: str, text: str = "") -> tuple[list[int], str]:
        return tokenizer.encode(text + question_line(question)), answer

    return {
        "reading": [
            ask(*pair, write_passage(p, rng) + "\n") for p in strangers for pair in exam_on(p)
        ],
        "general knowledge": [
            ask(attribute.general_question.format(v=value), implied)
            for attribute in ATTRIBUTES.values()
            for value, implied in attribute.implied.items()
        ],
        "known people": [ask(*pair) for p in KNOWN_PEOPLE[:n] for pair in exam_on(p)],
        "strangers, closed book": [ask(*pair) for p in strangers for pair in exam_on(p)],
    }
