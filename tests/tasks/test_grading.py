"""Grades: SQuAD's published rule to the letter in ASCII, MLQA's beyond, and every script."""

import collections
import re
import string
import unicodedata

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minseal.tasks.grading import normalise, score


def squad_normal(text):
    """Independent of minseal: an article is one only where it stands between non-word letters."""
    kept = [c for c in text.lower() if c not in set(string.punctuation)]
    runs, word = [], ""
    for c in [*kept, None]:
        if c is not None and (c.isalnum() or c == "_" or re.match(r"\w", c)):
            word += c
        else:
            runs += [" " if word in ("a", "an", "the") else word, c or ""]
            word = ""
    return " ".join("".join(runs).split())


def squad_f1(answer, gold):
    a, g = (
        collections.Counter(squad_normal(answer).split()),
        collections.Counter(squad_normal(gold).split()),
    )
    if not a or not g:
        return float(a == g)
    same = sum(min(n, g[word]) for word, n in a.items())
    precision, recall = same / a.total(), same / g.total()
    return 2 * precision * recall / (precision + recall) if same else 0.0


WORD = st.sampled_from(
    "the The a An an theatre Seine seine, 1,000 $1,887 don't O'Brien all's U.S.A. the-end".split()
) | st.text(st.characters(max_codepoint=127), max_size=4)
WORDS = st.lists(WORD, max_size=7).map(" ".join)


@given(WORDS)
@example("The  Seine, the river; a-an_the theatre!")
@example("a\x00the\x1c \x0bthe\x7f")
def test_normalisation_of_ascii_is_squads(text):
    assert normalise(text) == squad_normal(text)


def squad_score(answer, gold, grading):
    a, g = squad_normal(answer).split(), squad_normal(gold).split()
    if grading == "f1":
        return squad_f1(answer, gold)
    found = any(a[i : i + len(g)] == g for i in range(len(a)))
    return float(found if grading == "contains" and g else a == g)


@pytest.mark.parametrize("grading", ["exact", "contains", "f1"])
@given(answer=WORDS, gold=WORDS)
@example(answer="the", gold="a")
@example(answer="the river Seine", gold="Seine river river")
@example(answer="in 1811", gold="81")
@example(answer="a party", gold="art")
@example(answer="all's well", gold="s well")
def test_grades_of_english_are_squads(answer, gold, grading):
    """The figures of English stay what they were, to the letter."""
    assume(not re.search(r"(?i)(?<!\w)([ld]|un|\w*qu)'\w", f"{answer} {gold}"))  # no elision
    # Two ways to round the same fraction.
    expected = pytest.approx(squad_score(answer, gold, grading), abs=1e-12)
    assert score(answer, gold, grading) == expected


def mlqa_words(text):
    """MLQA's mixed segmentation: a Han character is a word, and no punctuation is one."""
    runs = [""]
    for c in text.lower():
        if "\u4e00" <= c <= "\u9fa5":
            runs += [c, ""]
        elif c.isspace():
            runs.append("")
        elif not unicodedata.category(c).startswith("P") and c not in string.punctuation:
            runs[-1] += c
    return [run for run in runs if run not in ("", "a", "an", "the")]


CHINESE = st.text(st.sampled_from("李明设计青岛灯塔年，。、「」《》？1857ab "), max_size=12)


@given(CHINESE, CHINESE)
@example("它由李明设计。", "李明")
@example("the 灯塔", "灯塔")
def test_grades_of_chinese_are_mlqas(answer, gold):
    """Marks that part words (iPhone、iPad) may only add to them."""
    a, g = mlqa_words(answer), mlqa_words(gold)
    same = sum((collections.Counter(a) & collections.Counter(g)).values())
    f1 = 2 * same / (len(a) + len(g)) if same else float(a == g)
    assert normalise(answer).split() == a
    assert score(answer, gold, "f1") >= f1 - 1e-12 and score(answer, gold, "exact") >= (a == g)
    if not re.search("[，。、「」《》？]", answer.strip("。") + gold):
        assert score(answer, gold, "f1") == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize(
    "answer, gold",
    [
        # scripts without spaces
        ("它由李明设计。", "李明"),
        ("青岛灯塔建于1811年", "1811"),
        ("「東京」、大阪", "東京"),
        ("東京タワーです", "タワー"),
        ("กรุงเทพมหานครเป็นเมืองหลวง", "กรุงเทพมหานคร"),
        ("ใช้iPhoneทุกวัน", "iPhone"),
        ("나는 서울 사람", "서울"),
        # punctuation beyond ASCII
        ("“Paris”", "Paris"),
        ("Er sagte: „Paris“.", "Paris"),
        ("«\u202fParis\u202f»", "Paris"),
        ("dit«Paris»et", "Paris"),
        ("Lyon–Nice", "Nice"),
        ("iPhone，iPad", "iPad"),
        ("¿Dónde? ¡En París…!", "París"),
        ("यह दिल्ली है।", "दिल्ली"),
        ("1887–1889", "1887-1889"),
        ("well‑known", "well-known"),
        ("−5 °C", "-5 °C"),
        ("don’t", "don't"),
        # elision
        ("l'architecte Li Ming", "architecte Li Ming"),
        ("C'est l’architecte", "architecte"),
        ("architecte", "L’architecte"),
        ("l’université d’Orléans", "Orléans"),
        ("qu'Einstein", "Einstein"),
        ("dell'architetto Rossi", "architetto Rossi"),
        ("all’università", "università"),
        ("l’Île-de-France", "Île-de-France"),
        # forms of one letter
        ("cafe\u0301", "café"),
        ("MU\u0308NCHEN", "münchen"),
        ("１８１１年", "1811"),
        ("１，８８７", "1887"),
        ("ﾊﾟﾘ", "パリ"),
        ("\u1112\u1161\u11ab국", "한국"),
        ("ﬁnal", "final"),
        ("١٨١١", "1811"),
        ("१८११ में", "1811"),
        ("مُحَمَّد", "محمد"),
        ("Straße", "STRASSE"),
        ("ΣΊΣΥΦΟΣ", "Σίσυφος"),
        ("İSTANBUL", "istanbul"),
        ("IŞIK", "ışık"),
        # what nobody sees
        ("light\u00adhouse", "lighthouse"),
        ("\u200eParis\u200f \ufeffLyon", "Paris"),
        ("35\u00a0metres", "35 metres"),
        ("می\u200cشود", "میشود"),
    ],
)
def test_a_right_answer_is_right_in_every_script(answer, gold):
    assert score(answer, gold, "contains") == 1
    exact = len(normalise(answer)) <= len(normalise(gold))
    assert score(answer, gold, "exact") or not exact
    assert score(answer, gold, "f1") > 0


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("1811", "81"),
        ("在1811年", "81"),
        ("๑๘๑๑", "๘๑"),
        ("１，８８７", "887"),
        ("3．14", "14"),
        ("party", "art"),
        ("«party»", "art"),
        ("दिल्ली", "दिल"),
        ("की", "का"),
        ("ที่", "ที"),
        ("까치", "가치"),
        ("10²", "102"),
        ("1½", "112"),
        ("café", "cafe"),
        ("aujourd’hui", "hui"),
        ("Qur’an", "an idea"),
        ("李明", "它由李明设计"),
        ("Il n’est", "Il est"),
        ("b\u0331a\u0331", "b\u0331"),
    ],
)
def test_and_no_wrong_one_becomes_right(answer, gold):
    assert score(answer, gold, "contains") == score(answer, gold, "exact") == 0


@given(st.text(), st.text(max_size=5))
def test_any_text_agrees_with_itself_and_grades_are_in_order(answer, gold):
    exact, contains, f1 = (score(answer, gold, how) for how in ("exact", "contains", "f1"))
    assert 0 <= f1 <= 1 and exact <= contains and exact <= f1
    assert all(score(answer, answer, how) == 1 for how in ("exact", "contains", "f1"))
