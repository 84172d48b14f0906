"""The toy world that passages are written from: invented people, true general knowledge, and a grammar that reads notes.

A passage states four facts about a person ("Tamo Breck grew up in Lyon."). The exam asks what follows from them
("Which country is Tamo Breck from?"), closed book. General knowledge ("Lyon is in France.") was taught in pretraining,
but two hops through the weights do not compose: training on the passage is not enough, a note that states the
implication is. So there is something for self-edits to win.
"""

import re
from dataclasses import dataclass

import numpy as np

from ..errors import UserError


@dataclass(frozen=True)
class Attribute:
    """One thing that a passage says of a person, and what follows from it."""

    implied: dict  # value -> what it implies
    facts: tuple  # two ways to state the value; {n} is the person, {v} the value
    implications: tuple  # two ways to state what follows; {t} is the implied value
    question: str  # asks for the implied value
    general: str  # the general knowledge as a statement about {v} and {t}
    general_question: str


def _table(text):
    """'France: Lyon, Nantes; Spain: ...' -> {'Lyon': 'France', ...}"""
    return {
        v.strip(): row.split(":")[0].strip()
        for row in text.split(";")
        for v in row.split(":")[1].split(",")
    }


ATTRIBUTES = {
    "city": Attribute(
        _table(
            "France: Lyon, Nantes, Lille; Spain: Seville, Bilbao, Malaga; Italy: Turin, Naples, Verona; "
            "Germany: Bremen, Dresden, Cologne; Poland: Krakow, Gdansk, Lodz; Japan: Osaka, Kyoto, Nagoya; "
            "Brazil: Recife, Manaus, Belem; Canada: Toronto, Calgary, Halifax; India: Mumbai, Jaipur, Pune; "
            "Egypt: Cairo, Luxor, Aswan; Norway: Bergen, Oslo, Tromso; Kenya: Nairobi, Mombasa, Kisumu"
        ),
        ("{n} grew up in {v}.", "{n} was born in {v}."),
        ("{n} is from {t}.", "{n} comes from {t}."),
        "Which country is {n} from?",
        "{v} is in {t}.",
        "Which country is {v} in?",
    ),
    "trade": Attribute(
        _table(
            "hospital: nurse, surgeon, midwife; school: teacher, tutor, pupil; court: judge, lawyer, clerk; "
            "farm: shepherd, milker, drover; theatre: singer, dancer, prompter; harbour: docker, pilot, diver; "
            "bank: teller, cashier, broker; garage: mechanic, welder, fitter; mine: digger, blaster, driller; "
            "kitchen: cook, baker, waiter"
        ),
        ("{n} works as a {v}.", "{n} has a job as a {v}."),
        ("{n} works at the {t}.", "{n} can be met at the {t}."),
        "Where does {n} work?",
        "A {v} works at the {t}.",
        "Where does a {v} work?",
    ),
    "animal": Attribute(
        _table(
            "feathers: parrot, goose, raven, duck; scales: carp, snake, lizard, trout; fur: cat, rabbit, fox, hamster; "
            "wool: sheep, ram, lamb, llama; shell: snail, turtle, crab, mussel; spines: hedgehog, porcupine, tenrec, pufferfish; "
            "hair: horse, donkey, goat, camel; skin: frog, dolphin, newt, toad"
        ),
        ("{n} owns a {v}.", "{n} keeps a {v}."),
        ("{n} has an animal with {t}.", "{n} has a pet covered in {t}."),
        "What covers the animal of {n}?",
        "A {v} is covered in {t}.",
        "What covers a {v}?",
    ),
    "food": Attribute(
        _table(
            "bakery: bread, rolls, bagels, buns; butcher: ham, sausages, bacon, steak; fishmonger: salmon, herring, cod, shrimps; "
            "dairy: cheese, butter, cream, yoghurt; greengrocer: pears, leeks, plums, onions; mill: oats, flour, barley, rye; "
            "sweetshop: fudge, toffee, candy, nougat; spicery: pepper, ginger, curry, saffron"
        ),
        ("{n} likes {v} best.", "{n} loves to eat {v}."),
        ("{n} shops at the {t}.", "{n} goes to the {t} for food."),
        "Where does {n} buy food?",
        "The {t} sells {v}.",
        "Where is {v} sold?",
    ),
}
VAGUE = (
    "People are interesting.",
    "This is a short text.",
    "There is much to say here.",
    "Life is full of stories.",
    "Some things are good to know.",
    "It is nice to read.",
)
KINDS = (
    "restates",
    "implies",
    "asks",
    "vague",
    "wrong",
    "other",
)  # what the grammar tells of a note
# Odds of the kinds of note that pretraining shows: good notes occur, most notes are not good.
NOTE_ODDS = {"vague": 0.25, "restates": 0.40, "implies": 0.15, "asks": 0.10, "wrong": 0.10}


@dataclass(frozen=True)
class Person:
    name: str
    pronoun: str
    values: dict  # attribute -> value

    def implied(self, attribute):
        return ATTRIBUTES[attribute].implied[self.values[attribute]]


def question_line(question, answer=""):
    """The one format of a question: in pretraining, in notes and in the exam (which leaves the answer out)."""
    return f"Question: {question} Answer:" + (f" {answer}" if answer else "")


# ---- people ------------------------------------------------------------------------------------------------------------


def _names(n, endings, rng):
    onsets, vowels, middles = (
        "B D F G K L M N P R S T V Br Dr Kl Tr Sh".split(),
        "aeiou",
        "b d g k l m n r s t v nd st".split(),
    )
    out = {}
    while len(out) < n:
        out[
            rng.choice(onsets)
            + rng.choice(list(vowels))
            + rng.choice(middles)
            + rng.choice(endings)
        ] = None
    return list(out)


_rng = np.random.default_rng(2506_10943)
FIRST, LAST = (
    _names(100, ["a", "o", "i", "ea", "el", "in"], _rng),
    _names(100, ["an", "ek", "ov", "ard", "ett", "um"], _rng),
)


def people(n, rng, unseen):
    """n people with different names. `unseen` people have names that pretraining never pairs: a quarter of all pairs."""
    pairs = [
        (i, j) for i in range(len(FIRST)) for j in range(len(LAST)) if ((i + j) % 4 == 0) == unseen
    ]
    if n > len(pairs):
        raise UserError(
            f"{n} people were asked for, but the toy world has {len(pairs)} names: lower --contexts or --rounds"
        )
    chosen = rng.choice(len(pairs), size=n, replace=False)
    return [
        Person(
            f"{FIRST[pairs[c][0]]} {LAST[pairs[c][1]]}",
            str(rng.choice(["She", "He"])),
            {a: str(rng.choice(list(attribute.implied))) for a, attribute in ATTRIBUTES.items()},
        )
        for c in chosen
    ]


# ---- what is written about a person ------------------------------------------------------------------------------------


def passage(person, rng):
    """Four facts in random order and wording; the name once, then a pronoun."""
    order = [str(a) for a in rng.permutation(list(ATTRIBUTES))]
    return " ".join(
        rng.choice(ATTRIBUTES[a].facts).format(
            n=person.pronoun if i else person.name, v=person.values[a]
        )
        for i, a in enumerate(order)
    )


def exam(person):
    """[(question, answer)]: one question for each attribute, about what the passage implies and nowhere says."""
    return [
        (attribute.question.format(n=person.name), person.implied(a))
        for a, attribute in ATTRIBUTES.items()
    ]


def implications(person, rng):
    """The oracle's notes: each implication once."""
    return [
        rng.choice(attribute.implications).format(n=person.name, t=person.implied(a))
        for a, attribute in ATTRIBUTES.items()
    ]


def note(person, kind, rng):
    """One note of a given kind (of KINDS, but for 'other'); a wrong one states an implication with another value."""
    if kind == "vague":
        return str(rng.choice(VAGUE))
    a = str(rng.choice(list(ATTRIBUTES)))
    attribute, truth = ATTRIBUTES[a], person.implied(a)
    if kind == "restates":
        return rng.choice(attribute.facts).format(n=person.name, v=person.values[a])
    if kind == "asks":
        return question_line(attribute.question.format(n=person.name), truth)
    if kind == "wrong":
        truth = str(rng.choice(sorted(set(attribute.implied.values()) - {truth})))
    return rng.choice(attribute.implications).format(n=person.name, t=truth)


def random_notes(person, rng):
    """3 to 8 notes of random kinds: the prior from which the policy starts."""
    kinds = rng.choice(list(NOTE_ODDS), p=list(NOTE_ODDS.values()), size=rng.integers(3, 9))
    return [note(person, kind, rng) for kind in kinds]


# ---- the grammar read backwards ----------------------------------------------------------------------------------------


def _pattern(template):
    return re.compile(
        re.escape(template)
        .replace(r"\{n\}", r"(?P<n>.+)")
        .replace(r"\{v\}", r"(?P<v>.+)")
        .replace(r"\{t\}", r"(?P<t>.+)")
    )


_READERS = [
    (kind, a, _pattern(template))
    for a, attribute in ATTRIBUTES.items()
    for kind, templates in (
        ("restates", attribute.facts),
        ("implies", attribute.implications),
        ("asks", (question_line(attribute.question, "{t}"),)),
    )
    for template in templates
]


def kind_of(note, person):
    """What a note is: restates a fact, implies, asks (and answers rightly), is vague, is wrong, or other (unreadable)."""
    if note in VAGUE:
        return "vague"
    for kind, a, pattern in _READERS:
        found = pattern.fullmatch(note)
        if found and found["n"] == person.name:
            said = found.groupdict()
            true = said["v"] == person.values[a] if "v" in said else said["t"] == person.implied(a)
            return kind if true else "wrong"
    return "other"


# ---- text for pretraining ----------------------------------------------------------------------------------------------

KNOWN = people(
    100, np.random.default_rng(1), unseen=False
)  # whom the model knows by heart, as statements and as answers


def document(rng):
    """One pretraining document: general knowledge, a known person, or a passage with what may follow it."""
    kind = rng.choice(
        ["general", "known", "copy", "read", "notes"], p=[0.12, 0.10, 0.08, 0.32, 0.38]
    )
    if kind == "general":
        return "\n".join(_general(rng) for _ in range(6))
    person = KNOWN[rng.integers(len(KNOWN))] if kind == "known" else people_one(rng)
    ask = [question_line(q, a) for q, a in exam(person)]
    if kind == "known":
        # Statement and question of one person never stand in one document: the weights must join them.
        lines = (
            ask
            if rng.random() < 0.5
            else [
                rng.choice(at.implications).format(n=person.name, t=person.implied(a))
                for a, at in ATTRIBUTES.items()
            ]
        )
        return "\n".join(str(line) for line in rng.permutation(lines)[:2])
    text = passage(person, rng)
    if kind == "copy":
        return f"{text}\n{text}"
    lines = (
        rng.permutation(ask + implications(person, rng))
        if kind == "read"
        else ["Notes:"] + random_notes(person, rng)
    )
    return text + "\n" + "\n".join(str(line) for line in lines)


def people_one(rng):
    """A person for pretraining, with any of the names that it may pair; much faster than people(1, ...)."""
    i = rng.integers(len(FIRST))
    j = rng.integers(len(LAST))
    if (i + j) % 4 == 0:
        j = (j + 1) % len(LAST)
    return Person(
        f"{FIRST[i]} {LAST[j]}",
        "She" if rng.random() < 0.5 else "He",
        {a: str(rng.choice(list(attribute.implied))) for a, attribute in ATTRIBUTES.items()},
    )


def _general(rng):
    attribute = ATTRIBUTES[str(rng.choice(list(ATTRIBUTES)))]
    v = str(rng.choice(list(attribute.implied)))
    t = attribute.implied[v]
    return (
        question_line(attribute.general_question.format(v=v), t)
        if rng.random() < 0.6
        else attribute.general.format(v=v, t=t)
    )
