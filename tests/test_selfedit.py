"""How text becomes a self-edit: directives with limits, lines, questions, and which tokens carry loss."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minseal import Document, InvalidSelfEdit, Tokenizer
from minseal.selfedit import LIMITS, MAX_LINES, read_directives, split_lines, split_questions
from minseal.tokenizer import train_ranks

TOKENIZER = Tokenizer(train_ranks("some text, and more text: the text of the tests", 280))
DIRECTIVE = re.compile(r"\s*(lr|epochs|loss)\s*[:=]")


def test_directives_are_read_and_leave_the_text():
    text = "lr: 0.001\nepochs = 4\n  loss:completion \nA note.\nlr: 5 is no directive down here"
    assert read_directives(text) == (
        {"lr": 0.001, "epochs": 4, "loss": "completion"},
        "A note.\nlr: 5 is no directive down here",
    )


@pytest.mark.parametrize(
    "text, found",
    [
        ("lr: 1e-3\nx", {"lr": 1e-3}),
        ("\n\nepochs: 50\nx", {"epochs": 50}),
        ("loss: all\nx", {"loss": "all"}),
        ("x", {}),
        ("epochs: 1\nlr=0.1\nx", {"epochs": 1, "lr": 0.1}),
        ("lr: 1e-6\nx", {"lr": 1e-6}),
    ],
)
def test_values_up_to_the_limits_are_taken(text, found):
    assert read_directives(text) == (found, "x")


@pytest.mark.parametrize(
    "line, reason",
    [
        ("lr: 1e9", "expected 1e-06 to 0.1"),
        ("lr: nan", "lr is nan"),
        ("lr: -1", "lr is -1"),
        ("lr: inf", "lr is inf"),
        ("lr: 0", "lr is 0"),
        ("lr: fast", "lr is 'fast'; expected a number"),
        ("lr:", "lr is ''"),
        ("epochs: 10000", "epochs is 10000; expected 1 to 50"),
        ("epochs: 0", "epochs is 0"),
        ("epochs: -3", "epochs is -3"),
        ("epochs: 2.5", "epochs is '2.5'; expected a whole number"),
        ("epochs: " + "9" * 400, "epochs is"),
        ("epochs: " + "9" * 5000, "epochs is"),
        ("loss: nonsense", "loss is 'nonsense'; expected all or completion"),
        ("lr: 0.01\nlr: 0.01", "directive lr twice"),
        ("loss: all\nepochs: 3\nloss: all", "directive loss twice"),
    ],
)
def test_nonsense_is_refused_with_its_reason(line, reason):
    with pytest.raises(InvalidSelfEdit, match=re.escape(reason)) as e:
        read_directives(f"{line}\nA note.")
    assert len(str(e.value)) < 120  # the log keeps it for every such self-edit


@given(st.text())
@example("lr 0.5\nx")
@example(" \n\nx\n")
def test_text_without_directives_stays_as_it_is(text):
    if not DIRECTIVE.match(text.strip("\n")):
        assert read_directives(text) == ({}, text.strip("\n"))


VALUES = (
    st.text("0123456789.eE+-_naif lcompti", max_size=12)
    | st.floats().map(str)
    | st.integers().map(str)
)


@given(
    st.lists(st.tuples(st.sampled_from(["lr", "epochs", "loss"]), VALUES), max_size=4),
    st.text(max_size=20),
)
def test_what_is_taken_lies_within_the_limits(lines, text):
    try:
        directives, _ = read_directives(
            "".join(f"{name}: {value}\n" for name, value in lines) + text
        )
    except InvalidSelfEdit:
        return
    for name, (low, high) in LIMITS.items():
        assert name not in directives or low <= directives[name] <= high
    assert isinstance(directives.get("epochs", 1), int) and directives.get("loss", "all") in (
        "all",
        "completion",
    )


@pytest.mark.parametrize(
    "text, lines",
    [
        ("One.\nTwo.\n", ["One.", "Two."]),
        ("  One.  \n\n \n\tTwo.", ["One.", "Two."]),
        ("One.\n---\nTwo.\n---\n", ["One.", "Two."]),
        ("One. --- Two.", ["One.", "Two."]),
        ("Here are some implications:\n1. One.\n2. Two.", ["1. One.", "2. Two."]),
        ("Here are some implications:\n\n1. One.", ["1. One."]),
        ("1. One.\n2. Two.", ["1. One.", "2. Two."]),
        ("Intro.\nmore intro\n1. One.", ["Intro.", "more intro", "1. One."]),
        ("", []),
        ("\n \n---\n", []),
    ],
)
def test_split_lines(text, lines):
    assert split_lines(text) == lines


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="-\n")), max_size=50
    )
)
def test_lines_keep_their_order_and_words_up_to_a_cap(lines):
    expected = [line.strip() for line in lines if line.strip()]
    if len(expected) < 2 or not expected[1].startswith("1."):
        assert split_lines("\n".join(lines)) == expected[:MAX_LINES]
        assert split_lines("\n---\n".join(lines)) == expected[:MAX_LINES]


@pytest.mark.parametrize(
    "text, parts",
    [
        (
            "Question 1: Who?\nAnswer: Me.\n\nQuestion 2: Why?\nAnswer: So.\n",
            ["Question 1: Who?\nAnswer: Me.", "Question 2: Why?\nAnswer: So."],
        ),
        ("Well.\nQuestion 12: Who?", ["Well.", "Question 12: Who?"]),
        ("No question here. Question one: no.", ["No question here. Question one: no."]),
        ("Question 1: a Question 2: b", ["Question 1: a", "Question 2: b"]),
        (" \n", []),
    ],
)
def test_split_questions(text, parts):
    assert split_questions(text) == parts


def test_questions_are_capped():
    assert split_questions("".join(f"Question {i}: x\n" for i in range(100))) == [
        f"Question {i}: x" for i in range(MAX_LINES)
    ]


@given(
    st.text(max_size=30),
    st.text(max_size=30),
    st.sampled_from(["all", "completion"]),
    st.booleans(),
)
def test_document_is_prompt_then_text_and_its_mask_says_who_carries_loss(
    text, prompt, carries, end
):
    document = Document.of(TOKENIZER, text, prompt, carries, end)
    n = len(TOKENIZER.encode(prompt))
    assert TOKENIZER.decode(document.ids[:n]) == prompt
    assert TOKENIZER.decode(document.ids[n : len(document.ids) - end]) == text
    assert (document.ids[-1:] == (TOKENIZER.eot,)) == end
    assert document.loss[:n] == (carries == "all",) * n
    assert document.loss[n:] == (True,) * (len(document.ids) - n)
