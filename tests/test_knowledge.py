"""Passages and questions: files in, prompts, exams and grades out, and what is refused."""

import collections
import json
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minseal import (
    InvalidSelfEdit,
    Knowledge,
    SelfEdit,
    Tokenizer,
    UserError,
    read_contexts,
    toy_contexts,
)
from minseal.tasks.knowledge import PROMPTS, Context, normalise, score
from minseal.tokenizer import train_ranks

TOKENIZER = Tokenizer(
    train_ranks("The Seine flows through Paris. Question: Which river? Answer: the Seine", 290)
)
SEINE = Context(
    "0: Rivers",
    "Rivers",
    "The Seine flows through Paris.",
    (("What flows through Paris?", ("The Seine", "Seine")), ("Which city?", ("Paris",))),
)
NO_TITLE = Context("1:", "", "Iron rusts.", (("What rusts?", ("iron",)),))
TOY = toy_contexts(3, world_seed=0)
decode = TOKENIZER.decode


def texts(edit):
    return [decode(d.ids) for d in edit.documents]


def loss_texts(edit):
    """What of each document carries loss."""
    return [decode([i for i, carries in zip(d.ids, d.loss) if carries]) for d in edit.documents]


# ---- files -------------------------------------------------------------------------------------------------------------

PASSAGES = [
    (
        "Rivers",
        "The Seine flows\nthrough Paris.",
        [("What flows?", ["The Seine", "Seine"]), ("Where?", ["Paris"])],
    ),
    ("", "Größe, naïveté and 東京 \u2028 in one\x85line \x1c.", [("What is 東京?", ["a city"])]),
    ("Rivers", "The Rhine does not.", [("What does not?", ["The Rhine"])]),
]


def squad(passages):
    def question(q, answers):
        return {
            "id": "x",
            "question": q,
            "answers": [{"text": a, "answer_start": 0} for a in answers],
        }

    return {
        "version": "1.1",
        "data": [
            {
                "title": title,
                "paragraphs": [{"context": text, "qas": [question(*qa) for qa in qas]}],
            }
            for title, text, qas in passages
        ],
    }


def flat(passages, key="answers"):
    return [
        {
            "title": title,
            "context": text,
            "questions": [
                {"question": q, key: answers if key == "answers" else answers[0]}
                for q, answers in qas
            ],
        }
        for title, text, qas in passages
    ]


def jsonl(items, ascii_only):
    return "\n".join(json.dumps(item, ensure_ascii=ascii_only) for item in items) + "\n"


LAYOUTS = {
    "squad": json.dumps(squad(PASSAGES)),
    "squad, indented": json.dumps(squad(PASSAGES), indent=2, ensure_ascii=False),
    "list": json.dumps(flat(PASSAGES), ensure_ascii=False),
    "list, indented": json.dumps(flat(PASSAGES), indent=1),
    "jsonl": jsonl(flat(PASSAGES), True),
    "jsonl, not ascii": jsonl(flat(PASSAGES), False),
    "jsonl with blank lines": "\n" + jsonl(flat(PASSAGES), True).replace("\n", "\n\n"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_to_the_same_contexts(tmp_path, layout):
    (tmp_path / "data").write_bytes(LAYOUTS[layout].encode())
    got = read_contexts(tmp_path / "data")
    assert [(c.title, c.text, [(q, list(a)) for q, a in c.questions]) for c in got] == PASSAGES
    assert len({c.id for c in got}) == 3 and all(c.title in c.id and c.person is None for c in got)


def test_one_answer_as_a_string_and_one_passage_as_an_object(tmp_path):
    (tmp_path / "data").write_text(json.dumps(flat(PASSAGES[:1], "answer")[0]))
    (context,) = read_contexts(tmp_path / "data")
    assert context.questions == (("What flows?", ("The Seine",)), ("Where?", ("Paris",)))


def test_squads_impossible_questions_are_left_out(tmp_path):
    data = squad(PASSAGES)
    data["data"][0]["paragraphs"][0]["qas"].insert(
        1, {"question": "Why?", "answers": [], "is_impossible": True}
    )
    (tmp_path / "data").write_text(json.dumps(data))
    assert [q for q, _ in read_contexts(tmp_path / "data")[0].questions] == [
        "What flows?",
        "Where?",
    ]


def refused(path):
    with pytest.raises(UserError) as e:
        read_contexts(path)
    assert len(str(e.value).splitlines()) == 1 and str(path) in str(e.value)
    return str(e.value)


def written(tmp_path, data):
    path = tmp_path / "data.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return refused(path)


def passage(**changes):
    return {
        "title": "T",
        "context": "Some text.",
        "questions": [{"question": "Q?", "answer": "A"}],
        **changes,
    }


@pytest.mark.parametrize("text", [None, "", " \n", 3, ["text"]])
def test_a_passage_without_text_is_named(tmp_path, text):
    assert "passage 2: no text" in written(tmp_path, [passage(), passage(context=text), passage()])


def test_a_squad_passage_without_text_is_named(tmp_path):
    data = squad(PASSAGES)
    del data["data"][1]["paragraphs"][0]["context"]
    assert "passage 2: no text" in written(tmp_path, data)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"answer": ""},
        {"answer": " "},
        {"answer": None},
        {"answer": 3},
        {"answers": []},
        {"answers": ["x", ""]},
        {"answers": "letters"},
        {"answers": {"text": ["x"]}},
    ],
)
def test_a_question_without_an_answer_is_named(tmp_path, answer):
    questions = [{"question": "Q?", "answer": "A"}, {"question": "R?", **answer}]
    assert "passage 1, question 2 has no answer" in written(
        tmp_path, [passage(questions=questions)]
    )


def test_a_squad_question_without_an_answer_is_named(tmp_path):
    data = squad(PASSAGES)
    data["data"][0]["paragraphs"][0]["qas"][1]["answers"] = []
    assert "passage 1, question 2 has no answer" in written(tmp_path, data)


@pytest.mark.parametrize(
    "questions, told",
    [
        (None, "passage 1: no questions"),
        ([], "passage 1: no questions"),
        ("Q?", "passage 1: no questions"),
        ({"a": 1}, "passage 1: no questions"),
        ([{"answer": "A"}], "question 1: no text"),
        ([{"question": " ", "answer": "A"}], "question 1: no text"),
        (["Q?"], "question 1: no text"),
    ],
)
def test_a_passage_without_questions_is_named(tmp_path, questions, told):
    assert told in written(tmp_path, [passage(questions=questions)])


def test_broken_json_names_its_line(tmp_path):
    lines = json.dumps(flat(PASSAGES), indent=1).splitlines()
    for i in (1, 2, 5, len(lines) - 2):
        broken = (
            lines[:i]
            + [lines[i].replace(":", "", 1) if ":" in lines[i] else lines[i] + " what"]
            + lines[i + 1 :]
        )
        line = int(re.search(r"line (\d+)", written(tmp_path, "\n".join(broken)))[1])
        assert line in (i + 1, i + 2)  # a missing comma or colon shows at the next thing


def test_json_cut_off_names_its_last_line(tmp_path):
    lines = json.dumps(flat(PASSAGES), indent=1).splitlines()[:6]
    assert "line 6" in written(tmp_path, "\n".join(lines))


@pytest.mark.parametrize("broken", [1, 2, 3])
@pytest.mark.parametrize("cut", [1, 20, -1])
def test_broken_jsonl_names_its_line(tmp_path, broken, cut):
    lines = jsonl(flat(PASSAGES), True).splitlines()
    lines[broken - 1] = lines[broken - 1][:cut]
    assert f"line {broken}:" in written(tmp_path, "\n".join(lines))


def test_lines_are_counted_as_editors_count_them(tmp_path):
    lines = jsonl(flat(PASSAGES), False).split(
        "\n"
    )  # the second holds characters at which only Python ends a line
    lines[2] = lines[2][:30]
    (tmp_path / "data.json").write_bytes("\n".join(lines).encode())
    assert "line 3:" in refused(tmp_path / "data.json")


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("[]", "no passages"),
        ('{"data": []}', "no passages"),
        ("3", "expected a list"),
        ('"text"', "expected a list"),
        ("null", "expected a list"),
        ("[[1]]", "passage 1: no text"),
        ("{}", "passage 1: no text"),
        ("hello", "line 1"),
        ("[" * 100_000, "JSON"),
        ('{"data": [{"paragraphs": [{"context": "x"}]}]}', "data > paragraphs > qas"),
        ('{"data": {"a": 1}}', "data > paragraphs > qas"),
        ('{"data": 3}', "data > paragraphs > qas"),
    ],
    ids=lambda x: x[:20],
)
def test_a_file_of_something_else(tmp_path, text, told):
    assert told in written(tmp_path, text)


def test_half_a_character_does_not_get_in(tmp_path):
    """JSON can hold lone surrogates, which no file or terminal takes: they would stop a run at its very end."""
    (tmp_path / "data.json").write_text(json.dumps([passage(title="\ud800")]))
    try:
        (context,) = read_contexts(tmp_path / "data.json")
    except UserError as e:
        assert "data.json" in str(e)
    else:
        assert f"{context.id}{context.title}".encode()


def test_missing_folder_and_binary_files(tmp_path):
    assert "no file" in refused(tmp_path / "missing.json")
    refused(tmp_path)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    refused(tmp_path / "binary")


# ---- grading -----------------------------------------------------------------------------------------------------------


def squad_normal(text):
    """Independent of minseal: letter by letter, word by word. An article is one only if it stands between non-word characters."""
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
    "the The a an An theatre Seine seine, 1,000 don't — «x» U.S.A. the-end river".split()
) | st.text(max_size=4)
WORDS = st.lists(WORD, max_size=7).map(" ".join)


@given(WORDS)
@example("The  Seine, the river; a—an ªthe Éclair!")
def test_normalisation_equals_an_independent_one(text):
    assert normalise(text) == squad_normal(text)


@given(WORDS, WORDS)
@example("the", "a")
@example("the river Seine", "Seine river river")
def test_f1_equals_an_independent_one(answer, gold):
    assert score(answer, gold, "f1") == pytest.approx(
        squad_f1(answer, gold), abs=1e-12
    )  # two ways to round the same fraction


@given(WORDS, WORDS)
def test_exact_and_contains(answer, gold):
    a, g = squad_normal(answer).split(), squad_normal(gold).split()
    assert score(answer, gold, "exact") == (a == g)
    if g:
        assert score(answer, gold, "contains") == any(a[i : i + len(g)] == g for i in range(len(a)))
    assert score(answer, gold, "exact") <= score(answer, gold, "contains") or not g
    assert (
        score(gold, gold, "exact") == score(gold, gold, "contains") == score(gold, gold, "f1") == 1
    )


@pytest.mark.parametrize(
    "grading, grades", [("exact", [1, 0, 0]), ("contains", [1, 1, 0]), ("f1", [1, 0.5, 0])]
)
def test_grades_of_an_exam_take_the_best_accepted_answer(grading, grades):
    # 'river loire flows' against 'loire': one word shared, precision 1/3, recall 1, so F1 is 1/2.
    context = Context(
        "x",
        "",
        "text",
        (("a?", ("The Seine", "Rhine")), ("b?", ("Seine", "Loire")), ("c?", ("Paris",))),
    )
    assert Knowledge(TOKENIZER, grade=grading).grade(
        context, ["seine.", "the river Loire flows", "Parisian"]
    ) == pytest.approx(grades, abs=1e-12)


# ---- prompts and exams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", PROMPTS)
@pytest.mark.parametrize("context", [SEINE, NO_TITLE, *TOY[:1]], ids=["title", "no title", "toy"])
def test_prompts_hold_the_passage_and_exams_do_not(style, context):
    task = Knowledge(TOKENIZER, style)
    prompt = decode(task.prompt(context))
    assert context.text in prompt and (context.title in prompt or style == "notes")
    closed, opened = (
        [decode(ids) for ids in task.exam(context)],
        [decode(ids) for ids in task.exam(context, in_context=True)],
    )
    assert len(closed) == len(opened) == len(context.questions)
    for (question, answers), without, with_it in zip(context.questions, closed, opened):
        assert (
            question in without
            and question in with_it
            and without.endswith("Answer:")
            and with_it.endswith(without)
        )
        assert context.text not in without and with_it.startswith(context.text)
        assert not any(sentence in without for sentence in re.findall(r"[^.]+\.", context.text))
        assert answers[0] not in without.replace(question, "")


def test_a_prompt_may_hold_braces():
    context = Context("x", "{title}", "{text} {0} {}", (("Q?", ("A",)),))
    assert decode(Knowledge(TOKENIZER).prompt(context)).startswith("{text} {0} {}")


# ---- self-edits --------------------------------------------------------------------------------------------------------


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
    assert all(all(d.loss) for d in edit.documents) and loss_texts(edit) == texts(edit)


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
    assert list(note.ids[: len(asked)]) == asked and note.loss == (False,) * len(asked) + (
        True,
    ) * (len(note.ids) - len(asked))


def test_directives_arrive():
    edit = Knowledge(TOKENIZER).parse(SEINE, "lr: 0.01\nepochs: 3\nOne.")
    assert (edit.lr, edit.epochs) == (0.01, 3) and texts(edit)[0] == "Topic: Rivers\nOne.\n"
    edit = Knowledge(TOKENIZER).parse(SEINE, "One.")
    assert (edit.lr, edit.epochs) == (None, None)


def test_self_qa_is_cut_before_each_question_and_gets_the_form_of_the_exam():
    task = Knowledge(TOKENIZER, "self-qa")
    edit = task.parse(
        NO_TITLE, " What?\nAnswer: This.\n\nQuestion 2: Why?\nAnswer: So."
    )  # the prompt ends with 'Question 1:'
    assert texts(edit) == [
        "Question: What?\nAnswer: This.\n",
        "Question: Why?\nAnswer: So.\n",
        "Iron rusts.\n",
    ]
    asked = Context("x", "", "Iron rusts.", (("What?", ("This.",)),))
    assert decode(task.exam(asked)[0]) == "Question: What?\nAnswer:"
    assert decode(task.prompt(NO_TITLE)).endswith("Question 1:")


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
        "1.",
        "\n",
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
    assert all(any(d.loss[1:]) for d in edit.documents)  # every document teaches something


def test_oracle_is_what_the_passage_implies_or_the_exam_with_its_answers():
    task = Knowledge(TOKENIZER)
    assert texts(task.oracle(SEINE))[:2] == [
        "Topic: Rivers\nQuestion: What flows through Paris?\nAnswer: The Seine\n",
        "Topic: Rivers\nQuestion: Which city?\nAnswer: Paris\n",
    ]
    toy = texts(task.oracle(TOY[0]))
    assert [line.strip() for line in toy[:-1]] == list(TOY[0].oracle) and toy[-1].strip() == TOY[
        0
    ].text
    assert all(any(answer in line for line in toy[:-1]) for _, (answer,) in TOY[0].questions)


@pytest.mark.parametrize("text", ["One.\nTwo.", "lr: 0.01\n{x} <|endoftext|>", "", "\n"])
def test_winner_learns_the_text_and_its_end_after_the_prompt(text):
    task = Knowledge(TOKENIZER)
    winner = task.lessons([(SEINE, text)], 0)[0]
    n = len(task.prompt(SEINE))
    assert list(winner.ids[:n]) == task.prompt(SEINE) and winner.loss == (False,) * n + (True,) * (
        len(winner.ids) - n
    )
    assert (
        decode(winner.ids[n:-1]) == text
        and winner.ids[-1] == TOKENIZER.eot
        and TOKENIZER.eot not in winner.ids[:-1]
    )


def test_mix_counts_kinds_in_the_toy_world_only():
    context, task = TOY[0], Knowledge(TOKENIZER)
    text = "\n".join([*context.oracle, "People are interesting.", "Who knows?", context.oracle[0]])
    assert task.describe(context, text) == {"implies": 5, "vague": 1, "other": 1}
    assert task.describe(SEINE, text) is None


def test_toy_contexts_are_the_same_for_a_seed():
    assert toy_contexts(5, 3) == toy_contexts(5, 3)
    assert {c.id for c in toy_contexts(50, 1)} != {c.id for c in toy_contexts(50, 2)}
    assert all(c.person.name == c.id and c.text.startswith(c.id) for c in toy_contexts(5, 3))
