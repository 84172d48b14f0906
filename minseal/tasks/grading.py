"""Grades: how well an answer agrees with an accepted one, as SQuAD and MLQA have it."""

import string
import unicodedata
from collections import Counter
from functools import cache
from typing import Literal

import regex  # tiktoken's own dependency; it knows scripts and kinds of characters

Grading = Literal["exact", "contains", "f1"]


def score(answer: str, gold: str, grading: Grading) -> float:
    """How well an answer agrees with an accepted one, from 0 to 1, in the better reading."""
    plain, parted = zip(readings(answer), readings(gold))
    best = _agreement(*plain, grading)
    return best if plain == parted else max(best, _agreement(*parted, grading))


def _agreement(given: list[str], right: list[str], grading: Grading) -> float:
    if grading == "exact":
        return float(given == right)
    if grading == "contains":
        return float(f" {' '.join(right)} " in f" {' '.join(given)} ")
    same = (Counter(given) & Counter(right)).total()
    return 2 * same / (len(given) + len(right)) if same else float(given == right)


def normalise(text: str) -> str:
    """SQuAD's normalisation (Rajpurkar et al. 2016): lower case, no punctuation, no articles.

    Beyond ASCII like MLQA's (Lewis et al. 2020): no punctuation of any script, and in scripts
    without spaces each character is a word.
    """
    return " ".join(readings(text)[0])


def readings(text: str) -> tuple[list[str], list[str]]:
    """(the words of normalise(text), the same parted by what parts words beyond ASCII).

    So 'Lyon–Nice' holds Nice, and "l'eau" is eau: there the elided article falls away.
    """
    text = text.lower().translate(ASCII) if text.isascii() else _fold(text)
    if "'" not in text and BORDER not in text:
        return (words := ARTICLES.sub(" ", text).split()), words
    parted = ELIDED.sub(" ", text)
    parted = BORDERS.sub(" ", parted) if BORDER in text else parted
    both = [text] if parted == text else [text, parted]
    both = [ARTICLES.sub(" ", t.replace("'", "").replace(BORDER, "")).split() for t in both]
    return both[0], both[-1]


def _fold(text: str) -> str:
    """One form for each letter (lower case, NFC), scripts without spaces cut up."""
    text = MANY_MARKS.sub(r"\1", "".join(map(_letter, text)))  # NFC sorts them, in quadratic time
    text = unicodedata.normalize("NFC", text).replace("i\u0307", "i")
    return regex.sub(rf"{ALONE}(.\p{{M}}*)", r" \1 ", text) if ALONE in text else text


@cache
def _letter(letter: str) -> str:
    """What becomes of a character."""
    kind = unicodedata.category(letter)
    if letter in TWINS or UNSEEN.match(letter):
        return TWINS.get(letter, "")
    if kind[0] == "P":
        return BORDER
    if letter.isdecimal():
        return str(int(letter))
    if kind not in ("No", "Sk"):  # full width, ligatures; but 10² is not 102
        letter = unicodedata.normalize("NFKC", letter).casefold().replace("ı", "i")  # as Turkish I
    return ALONE + letter if kind[0] != "M" and NO_SPACES.search(letter) else letter


# While a text is read, these stand for punctuation beyond ASCII and before a character that is a
# word. They are invisible: those of the text itself are gone by then.
BORDER, ALONE = "\u00ad", "\u200b"
TWINS = dict.fromkeys(string.punctuation + "‐‑−", "") | dict.fromkeys("'‘’ʼʻ′´＇", "'")
ASCII = {ord(letter): becomes or None for letter, becomes in TWINS.items()}
ARTICLES = regex.compile(r"\b(a|an|the)\b")
ELIDED = regex.compile(  # French and Italian; "all's well" is none
    r"(?<![\w'])(?:[dl]|un|(?:jus|lors|puis)?qu|(?:[dn]e|d?a|su|co|que)ll)'(?=\w)(?!s\b)"
)
BORDERS = regex.compile(rf"(?<=[^\s\d]){BORDER}+(?=\S)|(?<=\S){BORDER}+(?=[^\s\d])")  # not 1，887
MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
UNSEEN = regex.compile(r"[\p{Cf}\p{DI}\u0640\u064b-\u0652\u0670]")  # and Arabic's vowel signs
SCRIPTS = "Han Hiragana Katakana Bopomofo Thai Lao Khmer Myanmar".split()
NO_SPACES = regex.compile("[ー" + "".join(rf"\p{{{script}}}" for script in SCRIPTS) + "]")
