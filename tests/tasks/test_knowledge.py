"""Knowledge: prompts, self-edits out of any text, exams and grades."""

import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minseal import InvalidSelfEdit, SelfEdit, Tokenizer, UserError
from minseal.selfedit import LIMITS
from minseal.tasks.knowledge import (
    MAX_NOTES,
    PROMPTS,
    Knowledge,
    Note,
    Question,
    line_of,
    split_directives,
    split_lines,
    split_questions,
)
from minseal.tasks.passages import Passage
from minseal.tokenizer import train_ranks

TOKENIZER = Tokenizer(
    train_ranks("The Seine flows through Paris. Question: Which river? Answer: the Seine", 290)
)
SEINE = Passage(
    "0: Rivers",
    "Rivers",
    "The Seine flows through Paris.",
    (("What flows through Paris?", ("The Seine", "Seine")), ("Which city?", ("Paris",))),
)
NO_TITLE = Passage("1:", "", "Iron rusts.", (("What rusts?", ("iron",)),))
decode = TOKENIZER.decode


def texts(edit):
    return [decode(d.ids) for d in edit.documents]


def loss_texts(edit):
    """What of each document carries loss."""
    return [decode([i for i, carries in zip(d.ids, d.weights) if carries]) for d in edit.documents]


# ---- grading (how two answers agree: test_grading.py) ----


@pytest.mark.parametrize(
    "grading, grades", [("exact", [1, 0, 0]), ("contains", [1, 1, 0]), ("f1", [1, 0.5, 0])]
)
def test_grades_of_an_exam_take_the_best_accepted_answer(grading, grades):
    # 'river loire flows' against 'loire': one word shared, precision 1/3, recall 1, so F1 is 1/2.
    passage = Passage(
        "x",
        "",
        "text",
        (("a?", ("The Seine", "Rhine")), ("b?", ("Seine", "Loire")), ("c?", ("Paris",))),
    )
    assert Knowledge(TOKENIZER, grading=grading).grade(
        passage, ["seine.", "the river Loire flows", "Parisian"]
    ) == pytest.approx(grades, abs=1e-12)


# ---- prompts and exams ----


@pytest.mark.parametrize("style", PROMPTS)
@pytest.mark.parametrize("passage", [SEINE, NO_TITLE], ids=["title", "no title"])
def test_prompts_hold_the_passage_and_exams_do_not(style, passage):
    task = Knowledge(TOKENIZER, style)
    prompt = decode(task.prompt(passage))
    assert passage.text in prompt and (passage.title in prompt or style in ("notes", "questions"))
    closed, opened = (
        [decode(ids) for ids in task.exam(passage)],
        [decode(ids) for ids in task.exam(passage, in_context=True)],
    )
    assert len(closed) == len(opened) == len(passage.questions)
    for (question, answers), without, with_it in zip(passage.questions, closed, opened):
        assert (
            question in without
            and question in with_it
            and without.endswith("Answer:")
            and with_it.endswith(without)
        )
        assert passage.text not in without and with_it.startswith(passage.text)
        assert not any(sentence in without for sentence in re.findall(r"[^.]+\.", passage.text))
        assert answers[0] not in without.replace(question, "")


def test_a_prompt_may_hold_braces():
    passage = Passage("x", "{title}", "{text} {0} {}", (("Q?", ("A",)),))
    assert decode(Knowledge(TOKENIZER).prompt(passage)).startswith("{text} {0} {}")


# ---- self-edits ----


def test_documents_are_the_lines_and_the_passage_last():
    task = Knowledge(TOKENIZER)
    assert texts(task.parse(NO_TITLE, "One.\n\nTwo.\n")) == ["One.\n", "Two.\n", "Iron rusts.\n"]
    assert texts(task.parse(SEINE, "One.\n---\nTwo.")) == [
        "Topic: Rivers\nOne.\n",
        "Topic: Rivers\nTwo.\n",
        "Topic: Rivers\nThe Seine flows through Paris.\n",
    ]
    assert texts(task.baseline(SEINE)) == ["Topic: Rivers\nThe Seine flows through Paris.\n"]


def test_all_tokens_carry_loss_by_default():
    edit = Knowledge(TOKENIZER).parse(SEINE, "One.\nQuestion: Why? Answer: So.")
    assert all(all(d.weights) for d in edit.documents) and loss_texts(edit) == texts(edit)


def test_under_completion_only_the_answer_of_a_question_carries_loss():
    edit = Knowledge(TOKENIZER).parse(SEINE, "loss: completion\nOne.\nQuestion: Why? Answer: So.")
    assert texts(edit)[:2] == [
        "Topic: Rivers\nOne.\n",
        "Topic: Rivers\nQuestion: Why?\nAnswer: So.\n",
    ]
    assert loss_texts(edit)[:2] == ["One.\n", " So.\n"]


def test_a_question_of_the_exam_and_one_of_a_note_have_the_same_tokens():
    """Else what is learnt from a note would not be what is asked."""
    task = Knowledge(TOKENIZER)
    note = task.parse(NO_TITLE, "loss: completion\nQuestion: What rusts? Answer: iron").documents[0]
    (asked,) = task.exam(NO_TITLE)
    assert list(note.ids[: len(asked)]) == asked and note.weights == (0.0,) * len(asked) + (
        True,
    ) * (len(note.ids) - len(asked))


def test_directives_arrive():
    edit = Knowledge(TOKENIZER).parse(SEINE, "lr: 0.01\nepochs: 3\nOne.")
    assert (edit.lr, edit.epochs) == (0.01, 3) and texts(edit)[0] == "Topic: Rivers\nOne.\n"
    edit = Knowledge(TOKENIZER).parse(SEINE, "One.")
    assert (edit.lr, edit.epochs) == (None, None)


def test_self_qa_is_cut_before_each_question_and_gets_the_form_of_the_exam():
    task = Knowledge(TOKENIZER, "self-qa")
    # The prompt ends with 'Question 1:'.
    edit = task.parse(NO_TITLE, " What?\nAnswer: This.\n\nQuestion 2: Why?\nAnswer: So.")
    assert texts(edit) == [
        "Question: What?\nAnswer: This.\n",
        "Question: Why?\nAnswer: So.\n",
        "Iron rusts.\n",
    ]
    asked = Passage("x", "", "Iron rusts.", (("What?", ("This.",)),))
    assert decode(task.exam(asked)[0]) == "Question: What?\nAnswer:"
    assert decode(task.prompt(NO_TITLE)).endswith("Question 1:")


@pytest.mark.parametrize("style", PROMPTS)
def test_a_line_that_began_in_the_prompt_is_whole_in_the_notes(style):
    """A note is what the model wrote and what the prompt ended with before it."""
    task, opening = Knowledge(TOKENIZER, style), PROMPTS[style][1]
    begun = opening[opening.rfind("\n") + 1 :]
    first, *rest = task.notes(" Which river? Answer: The Seine\nIron rusts.")
    if style == "self-qa":  # lines belong to the question that they follow
        assert (first, rest) == (Question("Which river?", "The Seine"), [])
    elif style == "questions":
        assert (first, rest) == (Question("Which river?", "The Seine"), [Note("Iron rusts.")])
    else:
        assert not begun and rest == [Note("Iron rusts.")]
        assert first == Note("Which river? Answer: The Seine")


@pytest.mark.parametrize("style", PROMPTS)
@pytest.mark.parametrize("text", ["", " \n\t\n", "---\n---", "...\n!!", "lr: 0.01", "lr: 0.01\n\n"])
def test_a_text_without_words_is_no_self_edit(style, text):
    with pytest.raises(InvalidSelfEdit, match=r"\w"):
        Knowledge(TOKENIZER, style).parse(SEINE, text)


LINES = st.sampled_from(
    [
        "lr: 0.01",
        "epochs:",
        "loss: all",
        "loss: completion",
        "---",
        "Question 1:",
        "Answer:",
        "Answer 2: y",
        "Question: Answer:",
        "1.",
        "\n",
        "\r",
        "x",
    ]
)


@given(st.text() | st.lists(LINES).map("\n".join), st.sampled_from(sorted(PROMPTS)))
def test_any_text_is_a_self_edit_or_an_invalid_one(text, style):
    task = Knowledge(TOKENIZER, style)
    try:
        edit = task.parse(SEINE, text)
    except InvalidSelfEdit as e:
        assert str(e)
        return
    assert isinstance(edit, SelfEdit) and 2 <= len(edit.documents) <= 31
    assert texts(edit)[-1] == "Topic: Rivers\nThe Seine flows through Paris.\n"
    assert all(any(d.weights[1:]) for d in edit.documents)  # every document teaches something


def test_oracle_is_what_the_passage_has_or_the_exam_with_its_answers():
    task = Knowledge(TOKENIZER)
    assert texts(task.oracle(SEINE)) == [
        "Topic: Rivers\nQuestion: What flows through Paris?\nAnswer: The Seine\n",
        "Topic: Rivers\nQuestion: Which city?\nAnswer: Paris\n",
        *texts(task.baseline(SEINE)),
    ]
    own = replace(NO_TITLE, oracle=("Iron and water make rust.", "Question: Why? Answer: So."))
    assert texts(task.oracle(own)) == [
        "Iron and water make rust.\n",
        "Question: Why?\nAnswer: So.\n",
        *texts(task.baseline(own)),
    ]


def test_the_oracle_never_cuts_a_question_of_the_exam_apart():
    asked = Passage("x", "", "Text.", (("What does 'Answer: 42' mean?", ("all\nof it",)),))
    document = texts(Knowledge(TOKENIZER).oracle(asked))[0]
    assert document == "Question: What does 'Answer: 42' mean?\nAnswer: all\nof it\n"


@pytest.mark.parametrize("text", ["One.\nTwo.", "lr: 0.01\n{x} <|endoftext|>", "", "\n"])
def test_winner_learns_the_text_and_its_end_after_the_prompt(text):
    task = Knowledge(TOKENIZER)
    winner = task.lessons([(SEINE, text)], 0)[0]
    n = len(task.prompt(SEINE))
    assert list(winner.ids[:n]) == task.prompt(SEINE) and winner.weights == (0.0,) * n + (1.0,) * (
        len(winner.ids) - n
    )
    assert (
        decode(winner.ids[n:-1]) == text
        and winner.ids[-1] == TOKENIZER.eot
        and TOKENIZER.eot not in winner.ids[:-1]
    )


# ---- from text to notes ----

DIRECTIVE = re.compile(r"\s*(lr|epochs|loss)\s*[:=]")


def test_directives_are_read_and_leave_the_text():
    text = "lr: 0.001\nepochs = 4\n  loss:completion \nA note.\nlr: 5 is no directive down here"
    assert split_directives(text) == (
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
    assert split_directives(text) == (found, "x")


@pytest.mark.parametrize(
    "line, reason",
    [
        ("lr: 1e9", "expected a number from 1e-06 to 0.1"),
        ("lr: nan", "lr is NaN"),
        ("lr: -1", "lr is -1.0"),
        ("lr: inf", "lr is Infinity"),
        ("lr: 0", "lr is 0.0"),
        ("lr: fast", 'lr is "fast"; expected a number from 1e-06 to 0.1'),
        ("lr:", 'lr is ""'),
        ("epochs: 10000", "epochs is 10000; expected a whole number from 1 to 50"),
        ("epochs: 0", "epochs is 0"),
        ("epochs: -3", "epochs is -3"),
        ("epochs: 2.5", 'epochs is "2.5"; expected a whole number'),
        ("epochs: " + "9" * 400, "epochs is"),
        ("epochs: " + "9" * 5000, "epochs is"),
        ("loss: nonsense", "loss is 'nonsense'; expected all or completion"),
        ("lr: 0.01\nlr: 0.01", "directive lr twice"),
        ("loss: all\nepochs: 3\nloss: all", "directive loss twice"),
    ],
)
def test_nonsense_is_refused_with_its_reason(line, reason):
    with pytest.raises(InvalidSelfEdit, match=re.escape(reason)) as e:
        split_directives(f"{line}\nA note.")
    assert len(str(e.value)) < 120  # the log keeps it for every such self-edit


@given(st.text())
@example("lr 0.5\nx")
@example(" \n\nx\n")
def test_text_without_directives_stays_as_it_is(text):
    if not DIRECTIVE.match(text.strip("\n")):
        assert split_directives(text) == ({}, text.strip("\n"))


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
        directives, _ = split_directives(
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
        assert split_lines("\n".join(lines)) == expected[:MAX_NOTES]
        assert split_lines("\n---\n".join(lines)) == expected[:MAX_NOTES]


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
        f"Question {i}: x" for i in range(MAX_NOTES)
    ]


def test_what_a_text_says_becomes_values():
    task = Knowledge(TOKENIZER)
    text = "lr: 0.001\nepochs: 4\nOne.\nQuestion 2: Who?  Answer: me"
    notes, directives = task.read(text)
    assert notes == [Note("One."), Question("Who?", "me")]
    assert directives == task.parse(SEINE, text).chose == {"lr": 0.001, "epochs": 4}
    assert task.parse(SEINE, "loss: completion\nOne.").chose == {"loss": "completion"}
    assert task.parse(SEINE, "One.").chose == task.baseline(SEINE).chose == {}


@pytest.mark.parametrize("style", ["notes", "self-qa"])  # the others are read like notes
@given(text=st.lists(LINES).map("\n".join) | st.lists(LINES).map(" ".join) | st.text())
@example(text=" What?\r\nAnswer: This.\rQuestion 2: Why\u2028so? Answer: So\x85.")
@example(text="lr: 0.01\nAnswer:\n\n\nAnswer:\nlr: 0.01")  # an 'Answer:' inside a question
def test_notes_written_as_lines_are_read_back(style, text):
    """So notes can be kept in a file, edited, and trained on as if they came from the policy."""
    task = Knowledge(TOKENIZER, style)
    notes = task.notes(text)
    for note in notes:
        assert not isinstance(note, Question) or (note.question and note.answer)
    lines = [line_of(note) for note in notes]
    assert not any("\n" in line or "\r" in line for line in lines)
    assert [task.read_note(line) for line in lines] == notes
    assert task.edit(SEINE, notes) == task.edit(SEINE, [task.read_note(line) for line in lines])


@pytest.mark.parametrize(
    "text, note",
    [
        (" What?\nAnswer: This.\nmore", Question("What?", "This.")),
        (" What is\nit?\nAnswer 1:\n  This. ", Question("What is it?", "This.")),
        (" What?\nAnswer:\n\nThis.", Question("What?", "This.")),
        (" What?\nNobody knows.", Note("Question 1: What? Nobody knows.")),
    ],
)
def test_an_answer_ends_with_its_line(text, note):
    assert Knowledge(TOKENIZER, "self-qa").notes(text) == [note]


def test_unknown_styles_and_grades_are_refused():
    with pytest.raises(UserError, match="'Notes': expected one of notes, questions, implications"):
        Knowledge(TOKENIZER, "Notes")
    with pytest.raises(UserError, match="'F1': expected one of exact, contains, f1"):
        Knowledge(TOKENIZER, grading="F1")
