"""The toy world's grammar backwards: who a passage is about, and what a note says of them rightly.

The texts may be anything that a model writes. Reading is exact, takes linear time and never raises.
"""

import re
from collections.abc import Iterable

from .people import ATTRIBUTES, FIRST, LAST, Person, PersonPassage, is_stranger, meaning_of

# " grew up in Lyon" -> ("city", "Lyon"): what stands between a subject and its full stop.
_PREDICATES = {
    fact.format(n="", v=value).removesuffix("."): (name, value)
    for name, attribute in ATTRIBUTES.items()
    for fact in attribute.facts
    for value in attribute.implied
}


def read_person(text: str) -> Person | None:
    """write_passage() backwards; None if it never writes such a text, whatever the name.

    A name is two words, each a capital and small letters.
    """
    found = re.match(r"[A-Z][a-z]+ [A-Z][a-z]+", text)
    if not found or not text.endswith("."):
        return None
    first, *rest = text[found.end() : -1].split(". ")
    pronoun = rest[-1].split(" ")[0] if rest else ""
    if pronoun not in ("She", "He") or not all(s.startswith(pronoun) for s in rest):
        return None
    predicates = [first, *(sentence.removeprefix(pronoun) for sentence in rest)]
    said = [_PREDICATES.get(predicate, ("", "")) for predicate in predicates]
    values = dict(said)
    whole = len(said) == len(ATTRIBUTES) and values.keys() == ATTRIBUTES.keys()
    return Person(found[0], pronoun, values) if whole else None


def read_passages(lines: Iterable[str], names: set[str]) -> list[PersonPassage]:
    """Those about somebody else than `names`, one of each person; what is no passage is dropped."""
    found = {p.name: (p, line) for line in lines if (p := read_person(line))}
    others = [(p, line) for p, line in found.values() if p.name not in names]
    return [PersonPassage(p.name, "", line, (), person=p) for p, line in others]


def implication_of(note: str, person: Person) -> str:
    """The attribute whose implication a note states, or asks for and answers, rightly; or ""."""
    kind, attribute = meaning_of(note, person)
    return attribute if kind in ("implies", "asks") else ""


def origin_of(name: str) -> str:
    """pretraining (it pairs these names), stranger (of these names, but no such pair), or new."""
    first, _, last = name.partition(" ")
    if first not in FIRST or last not in LAST:
        return "new"
    return "stranger" if is_stranger(FIRST.index(first), LAST.index(last)) else "pretraining"
