"""Passages: every layout reads to the same, and what is refused names file and passage."""

import json
import re

import pytest

from minseal import UserError
from minseal.tasks.passages import read_passages, read_questions

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


def rows(passages):
    """As the package datasets has SQuAD: a row a question, those of a passage anywhere."""
    found = [
        {
            "id": f"{n}",
            "title": title,
            "context": text,
            "question": question,
            "answers": {"text": answers, "answer_start": [0] * len(answers)},
        }
        for title, text, qas in passages
        for n, (question, answers) in enumerate(qas)
    ]
    return sorted(found, key=lambda row: row["id"])


def mrqa(passages):
    """MRQA 2019's lines (https://github.com/mrqa/MRQA-Shared-Task-2019): a header, passages."""
    lines = [{"header": {"dataset": "SQuAD", "split": "dev"}}]
    for n, (_, text, qas) in enumerate(passages):
        questions = [
            {
                "qid": f"{n}",
                "question": question,
                "question_tokens": [[question, 0]],
                "detected_answers": [{"text": a, "char_spans": [[0, 1]]} for a in answers],
                **({"answers": answers} if n else {}),
            }
            for question, answers in qas
        ]
        lines.append({"context": text, "qas": questions, "context_tokens": [[text, 0]]})
    return lines


LAYOUTS = {
    "squad": json.dumps(squad(PASSAGES)),
    "squad, indented": json.dumps(squad(PASSAGES), indent=2, ensure_ascii=False),
    "list": json.dumps(flat(PASSAGES), ensure_ascii=False),
    "list, indented": json.dumps(flat(PASSAGES), indent=1),
    "jsonl": jsonl(flat(PASSAGES), True),
    "jsonl, not ascii": jsonl(flat(PASSAGES), False),
    "jsonl with blank lines": "\n" + jsonl(flat(PASSAGES), True).replace("\n", "\n\n"),
    "squad's articles": json.dumps(squad(PASSAGES)["data"]),
    "squad's articles, jsonl": jsonl(squad(PASSAGES)["data"], False),
    "squad's paragraphs": json.dumps(
        [{"title": a["title"], **p} for a in squad(PASSAGES)["data"] for p in a["paragraphs"]]
    ),
    "rows": json.dumps(rows(PASSAGES)),
    "rows, jsonl": jsonl(rows(PASSAGES), True),
    "rows under data": json.dumps({"version": "1.1", "data": rows(PASSAGES)}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_to_the_same_passages(tmp_path, layout):
    (tmp_path / "data").write_bytes(LAYOUTS[layout].encode())
    got = read_passages(tmp_path / "data")
    assert [(c.title, c.text, [(q, list(a)) for q, a in c.questions]) for c in got] == PASSAGES
    assert len({c.id for c in got}) == 3 and all(c.title in c.id for c in got)


def test_one_answer_as_a_string_and_one_passage_as_an_object(tmp_path):
    (tmp_path / "data").write_text(json.dumps(flat(PASSAGES[:1], "answer")[0]))
    (passage,) = read_passages(tmp_path / "data")
    assert passage.questions == (("What flows?", ("The Seine",)), ("Where?", ("Paris",)))


def test_squads_impossible_questions_are_left_out(tmp_path):
    data = squad(PASSAGES)
    data["data"][0]["paragraphs"][0]["qas"].insert(
        1, {"question": "Why?", "answers": [], "is_impossible": True}
    )
    (tmp_path / "data").write_text(json.dumps(data))
    assert [q for q, _ in read_passages(tmp_path / "data")[0].questions] == [
        "What flows?",
        "Where?",
    ]


@pytest.mark.parametrize("n", [1, 3])
def test_lines_of_mrqa_read_to_the_same_passages_without_titles(tmp_path, n):
    (tmp_path / "data.jsonl").write_text(jsonl(mrqa(PASSAGES[:n]), True))
    got = read_passages(tmp_path / "data.jsonl")
    assert [(c.text, [(q, list(a)) for q, a in c.questions]) for c in got] == [
        passage[1:] for passage in PASSAGES[:n]
    ]


def test_paragraphs_alone_are_passages(tmp_path):
    paragraphs = [p for a in squad(PASSAGES)["data"] for p in a["paragraphs"]]
    for data in (paragraphs, {"paragraphs": paragraphs}, {"data": paragraphs}):
        (tmp_path / "data").write_text(json.dumps(data))
        got = read_passages(tmp_path / "data")
        assert [c.text for c in got] == [text for _, text, _ in PASSAGES]
        assert [len(c.questions) for c in got] == [2, 1, 1]


IMPOSSIBLE = [
    {"question": "Why?", "answers": [], "plausible_answers": [{"text": "x"}], "is_impossible": True}
]
NOBODY_KNOWS = {
    "squad 2.0, all impossible": {"paragraphs": [{"context": "No.", "qas": IMPOSSIBLE}]},
    "squad, without questions": {"paragraphs": [{"context": "No.", "qas": []}]},
    "a paragraph, all impossible": {"context": "No.", "qas": IMPOSSIBLE * 3},
    "a row of squad 2.0": {
        "context": "No.",
        "question": "Why?",
        "answers": {"text": [], "answer_start": []},
    },
    "ours, without questions": {"context": "No.", "questions": []},
}


@pytest.mark.parametrize("kind", NOBODY_KNOWS)
def test_passages_about_which_nothing_can_be_answered_are_left_out_and_counted(tmp_path, kind):
    first, *others = squad(PASSAGES)["data"]
    told, path = [], tmp_path / "data.json"
    path.write_text(json.dumps([first, NOBODY_KNOWS[kind], *others]))
    got = read_passages(path, told.append)
    assert [(c.text, len(c.questions)) for c in got] == [(t, len(q)) for _, t, q in PASSAGES]
    assert [c.id for c in got] == ["0: Rivers", "2:", "3: Rivers"]  # where they stand in the file
    assert told == [f"{path}: 1 of 4 passages left out: no question has an answer"]
    path.write_text(json.dumps([NOBODY_KNOWS[kind]]))
    assert "passage 1: no questions that have an answer, nor in any other" in refused(path)
    path.write_text(json.dumps(squad(PASSAGES)))
    assert read_passages(path, told.append) and len(told) == 1  # nothing to tell


def test_who_calls_it_without_more_is_told_too(tmp_path, capsys):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([*flat(PASSAGES), NOBODY_KNOWS["squad, without questions"]]))
    assert len(read_passages(path)) == 3
    assert "1 of 4 passages left out" in capsys.readouterr().out


def refused(path):
    with pytest.raises(UserError) as e:
        read_passages(path)
    assert len(str(e.value).splitlines()) == 1 and str(path) in str(e.value)
    return str(e.value)


def written(tmp_path, data):
    path = tmp_path / "data.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return refused(path)


def item(**changes):
    return {
        "title": "T",
        "context": "Some text.",
        "questions": [{"question": "Q?", "answer": "A"}],
        **changes,
    }


@pytest.mark.parametrize("text", [None, "", " \n", 3, ["text"]])
def test_a_passage_without_text_is_named(tmp_path, text):
    assert "passage 2: no text" in written(tmp_path, [item(), item(context=text), item()])


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
        {"answers": {"text": "x"}},
    ],
)
def test_a_question_without_an_answer_is_named(tmp_path, answer):
    questions = [{"question": "Q?", "answer": "A"}, {"question": "R?", **answer}]
    assert "passage 1, question 2 has no answer" in written(tmp_path, [item(questions=questions)])


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
    assert told in written(tmp_path, [item(questions=questions)])


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
    line = int(re.search(r"line (\d+)", written(tmp_path, "\n".join(lines)))[1])
    assert line == broken or (broken == 1 and line == 2)  # a first line may go on, for all we know


def test_lines_are_counted_as_editors_count_them(tmp_path):
    # The second holds characters at which only Python ends a line.
    lines = jsonl(flat(PASSAGES), False).split("\n")
    lines[2] = lines[2][:30]
    (tmp_path / "data.json").write_bytes("\n".join(lines).encode())
    assert "line 3 " in refused(tmp_path / "data.json")


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
        ('{"data": [3]}', "passage 1: no text"),
        ('{"data": [{"paragraphs": 3}]}', "passage 1: no text"),
        ('{"data": [{"paragraphs": {"a": 1}}]}', "passage 1: no text"),
        ('[{"context": "x", "qas": 3}]', "data > paragraphs > qas"),
        ('[{"context": "x", "qas": ["Q?"]}]', "question 1: no text"),
        ('[{"context": "x", "qas": [{"question": "Q?"}]}]', "question 1 has no answer"),
        ('[{"context": "x", "qas": [{"question": "Q?", "answers": "A"}]}]', "has no answer"),
        ('[{"context": "x", "qas": [{"question": "Q?", "answers": 3}]}]', "has no answer"),
        ('[{"context": "x", "qas": [{"answers": ["A"]}]}]', "question 1: no text"),
        ('[{"context": "x", "question": "Q?", "answers": {"a": 1}}]', "has no answer"),
        ('[{"context": "x", "question": "Q?", "answers": {"text": "A"}}]', "has no answer"),
        ('[{"context": "x", "question": "Q?"}]', "question 1 has no answer"),
        ('[{"question": "Q?", "answers": ["A"]}]', "passage 1: no text"),
        ('{"header": {"dataset": "SQuAD"}}', "no passages"),
    ],
    ids=lambda x: x[:20],
)
def test_a_file_of_something_else(tmp_path, text, told):
    assert told in written(tmp_path, text)


def test_half_a_character_does_not_get_in(tmp_path):
    """JSON can hold lone surrogates, which no file takes: they would stop a run at its end."""
    (tmp_path / "data.json").write_text(json.dumps([item(title="\ud800")]))
    assert "passage 1: its text holds half a character" in refused(tmp_path / "data.json")


def test_missing_folder_and_binary_files(tmp_path):
    assert "no file" in refused(tmp_path / "missing.json")
    refused(tmp_path)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    refused(tmp_path / "binary")


# ---- exams ----


@pytest.mark.parametrize(
    "text",
    [
        '[{"question": "Q?", "answer": "A"}, {"question": "R?", "answers": ["B", "C"]}]',
        '{"question": "Q?", "answer": "A"}\n{"question": "R?", "answers": ["B", "C"]}\n',
        '{"questions": [{"question": "Q?", "answer": "A"}, '
        '{"question": "R?", "answers": ["B", "C"]}]}',
    ],
    ids=["list", "jsonl", "under questions"],
)
def test_an_exam_is_read_from_every_layout(tmp_path, text):
    (tmp_path / "exam.json").write_text(text)
    assert read_questions(tmp_path / "exam.json") == (("Q?", ("A",)), ("R?", ("B", "C")))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "empty"),
        ("[]", "no questions"),
        ("3", "no questions"),
        ("{}", "question 1: no text"),
        ('[{"question": "Q?"}]', "question 1 has no answer"),
    ],
)
def test_what_is_no_exam_is_refused(tmp_path, text, reason):
    (tmp_path / "exam.json").write_text(text)
    with pytest.raises(UserError, match=reason) as e:
        read_questions(tmp_path / "exam.json")
    assert "exam.json" in str(e.value) and len(str(e.value).splitlines()) == 1
