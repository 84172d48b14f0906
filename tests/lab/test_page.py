"""report.html: all self-edits are in it, no text of theirs is more than text, browsers show it."""

import json
import re
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
from browser import CHROMIUM, Browser
from conftest import data_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minseal.lab.page
from minseal import People, Tokenizer, Trial, toy_passages
from minseal.experiments.knowledge import KnowledgeConfig
from minseal.lab.lab import EXPERIMENTS, settings_of
from minseal.lab.page import MOST_BYTES, page, read_contexts
from minseal.lab.run import Arm, Run, Step
from minseal.lab.table import write_report
from minseal.tasks.fewshot import FewShot
from minseal.tasks.knowledge import Knowledge
from minseal.tasks.passages import Passage
from minseal.tasks.rules import toy_puzzles
from minseal.terminal import STEERING, printable

KNOWLEDGE = EXPERIMENTS["knowledge"]
CONFIG = settings_of(KNOWLEDGE, KnowledgeConfig())
HOSTILE = [
    "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'>",
    "</script><script>window.hit = 3</script><!-- <script>",
    "]]>--></style></title></pre></textarea><svg onload=window.hit=4>",
    "{{data}} {{script_hash}} ${window.hit = 5} \\u003cb\\u003e &lt;b&gt; &#60;b>",
    "javascript:window.hit=6 \" onfocus=window.hit=7 autofocus x='",
    "\x1b[2J\x00\x07\x85 \u202eabc\u2066 \u2028 \ud800 \udc00",
    "<link rel=stylesheet href=//example.com/a.css><iframe src=https://example.com></iframe>",
    "__proto__",
    "naïve 日本 😀 שלום",
]
ANY = st.text(st.characters(exclude_categories=()), max_size=30) | st.sampled_from(HOSTILE)


def run_of(folder, steps, contexts=None):
    """A run folder with these steps: {(name, is an arm, labels): trials}."""
    run = Run(folder, json.loads(json.dumps(CONFIG)))
    for (name, is_arm, labels), trials in steps.items():
        view = run.under("", **dict(labels))
        view.prefix = ""
        view.step(name, lambda: trials, Arm(name) if is_arm else None)
    if contexts is not None:
        (folder / "contexts.json").write_text(json.dumps(contexts))
    return run


def trials_in(text):
    """{(name of the step, is an arm): trials}"""
    data, out = data_in(text), {}
    for row in data["trials"]:
        step = data["steps"][row.pop("step")]
        out.setdefault((step["name"], step["arm"]), []).append(Trial(**row))
    return out


class Tags(HTMLParser):
    """The tags of a page, and the names of their attributes."""

    def __init__(self, text):
        super().__init__()
        self.seen = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, [name for name, _ in attributes]))

    def handle_endtag(self, tag):
        self.seen.append(f"/{tag}")

    def handle_comment(self, text):
        self.seen.append("comment")


def some_trials(n=12, name="person"):
    return [
        Trial(
            f"{name} {i % 4}",
            (i % 5) / 4,
            None if i % 6 == 5 else f"Note {i} on Ann.\nShe likes rye{i}.",
            0,
            0.2,
            [f"bread {i}", ""],
            [1.0, 0.0],
            "it is \x1b no self-edit" if i % 4 == 3 else None,
            {"lr": 0.01, "notes": {"vague": i}} if i % 3 else {},
        )
        for i in range(n)
    ]


CONTEXTS = {
    f"person {i}": {
        "text": f"Ann {i} likes bread.",
        "exam": [["What?", ["bread", "rye"]], ["Who?", ["Ann"]]],
    }
    for i in range(4)
}
STEPS = {
    ("own notes", True, ()): some_trials(),
    ("round 1 contexts 1-2", False, (("loop", "round"),)): some_trials(6),
    ("round 1 contexts 3-4", False, (("loop", "round"),)): some_trials(5),
    ("round 1 in training", False, (("loop", "round"), ("round", 1))): {"reward": 0.5},
    ("round 1", True, (("loop", "round"),)): some_trials(12),
    ("round 2 contexts 1-2", False, (("loop", "round"),)): some_trials(3),
    ("kept", False, ()): [Trial("person 0", 0.5)],  # nothing to read
}
READ = {  # how a page names them, arms first
    "own notes": some_trials(),
    "round 1": some_trials(12),
    "round 1 in training": some_trials(6) + some_trials(5),
    "round 2 in training": some_trials(3),
}


# ---- the file ----


def test_every_trial_stands_in_the_page_arms_first(tmp_path):
    run = run_of(tmp_path / "r", STEPS, CONTEXTS)
    write_report(run, KNOWLEDGE)
    text = (tmp_path / "r" / "report.html").read_text()
    arms = ("own notes", "round 1")
    assert trials_in(text) == {(name, name in arms): some for name, some in READ.items()}
    assert [step["name"] for step in data_in(text)["steps"]] == list(READ)
    assert data_in(text)["contexts"] == CONTEXTS and data_in(text)["missing"] == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY, min_size=9, max_size=9))
def test_any_text_comes_back_and_none_is_markup(tmp_path_factory, texts):
    run = Run(tmp_path_factory.getbasetemp() / "nothing there", {})

    def made(a, b, c, d, e, f, g, h, i):
        trials = [Trial(a, 0.5, b, 0, 0.1, [c], [1.0], d, {e: [f]})]
        run.steps = {g: Step(g, 0.0, trials, arm=Arm(g))}
        contexts = {a: {"text": h, "exam": [[i, [b]]]}}
        return trials, contexts, page(run, [["arm"], [g, a]], [c, d], [e, f], [], contexts)

    trials, contexts, text = made(*texts)
    assert trials_in(text) == {(texts[6], True): trials} and data_in(text)["contexts"] == contexts
    assert not STEERING.search(text)
    assert Tags(text).seen == Tags(made(*"abcdefghi")[2]).seen
    text.encode()  # and no half of a character


def test_five_thousand_self_edits_take_ten_megabytes_at_most(tmp_path):
    run = run_of(tmp_path / "r", {("own notes", True, ()): many(5000)}, {})
    text = page_of(run)
    assert data_in(text)["missing"] == 0 and 4_000_000 < len(text.encode()) <= MOST_BYTES


def test_what_is_too_much_is_counted_and_arms_go_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(minseal.lab.page, "MOST_BYTES", 200_000)
    trials = [Trial(f"{i:2}", 0.5, "<" * 1000) for i in range(60)]  # six bytes a letter
    loop = (("loop", "round"),)
    steps = {("round 1 contexts", False, loop): trials, ("a", True, ()): trials[:10]}
    contexts = {t.context: {"text": "x" * 1000, "exam": []} for t in trials}
    text = page_of(run_of(tmp_path / "r", steps, contexts))
    there = trials_in(text)
    n = len(there["round 1 in training", False])
    assert there == {("a", True): trials[:10], ("round 1 in training", False): trials[:n]}
    assert (
        data_in(text)["missing"] == 60 - n and data_in(text)["contexts"].keys() <= contexts.keys()
    )
    assert 190_000 < len(text.encode()) <= 200_000


def test_a_trial_without_a_number_for_its_reward_is_counted_too(tmp_path):
    run = run_of(tmp_path / "r", {("a", True, ()): some_trials(3)})
    run.steps["a"].trials[1].reward = float("nan")
    text = page_of(run)
    assert trials_in(text) == {("a", True): some_trials(3)[::2]} and data_in(text)["missing"] == 1


def test_an_arm_leads_to_its_self_edits_where_there_are_any(tmp_path):
    """An arm that measures something else, as a mean over an order of passages, is no link."""
    of_means = [Trial(f"order {i}", 0.5) for i in range(2)]
    run = run_of(tmp_path, {("with", True, ()): some_trials(2), ("without", True, ()): of_means})
    text = page(run, [["arm"], ["with"], ["without"]], [], [], [], {})
    assert re.findall('href="#step=([^"]*)"', text) == ["with"] and ">without<" in text


def test_pictures_are_inside(tmp_path):
    pytest.importorskip("matplotlib")
    run = run_of(tmp_path / "r", STEPS)
    write_report(run, KNOWLEDGE)
    text = (tmp_path / "r" / "report.html").read_text()
    assert (
        text.count('src="data:image/png;base64,iVBORw0KGgo')
        == len([*(tmp_path / "r").glob("*.png")])
        >= 1
    )


def page_of(run):
    """The page without a report above the self-edits."""
    return page(run, [["arm"]], [], [], [], read_contexts(run, {"left out": []}))


def many(n):
    """Self-edits as long as the tiny model's longest."""
    line = "Question: What covers the animal of Tamo Breck? Answer: feathers & scales <b>\n"
    return [
        Trial(f"person {i % 300}", (i % 5) / 4, f"{i} {line * 9}", 0, 0.2, ["France", "bank"] * 2,
              [1.0, 0.0] * 2, None, {"lr": 0.001, "notes": {"implies": 3, "vague": i % 7}})
        for i in range(n)
    ]  # fmt: skip


# ---- contexts ----


def test_what_expects_an_answer_is_graded_right():
    """The accepted answers on the page, given as answers, are a whole exam."""
    letters = Tokenizer({bytes([i]): i for i in range(256)})
    person = toy_passages(1, 0)[0]
    passage = Passage(
        "p", "Bees", "Bees fly.", (("What flies?", ("bees", "Bees")), ("Do they?", ("yes",)))
    )
    (puzzle,) = toy_puzzles(1, 0)
    tasks = [(People(letters), person), (Knowledge(letters), passage)]
    tasks += [(FewShot(letters, vote=vote), puzzle) for vote in (0, 2)]
    for task, context in tasks:
        exam = task.to_read(context)["exam"]
        assert len(exam) == len(task.exam(context))
        assert set(task.grade(context, [accepted[-1] for _, accepted in exam])) == {1.0}
    assert tasks[1][0].to_read(passage)["text"] == "Bees\n\nBees fly."
    shown = re.sub(r"[\s>-]", "", tasks[2][0].to_read(puzzle)["text"])
    pairs = puzzle.demonstrations
    cells = [
        cell for pair in pairs for grid in (pair.input, pair.output) for row in grid for cell in row
    ]
    assert sorted(shown) == sorted(map(str, cells))


EDITED = """
no JSON
[]
{"a": 1}
{"a": {"text": ""}}
{"a": {"text": 1, "exam": []}}
{"a": {"text": "", "exam": [], "x": 1}}
{"a": {"text": "", "exam": [["q"]]}}
{"a": {"text": "", "exam": [["q", "a"]]}}
"""


@pytest.mark.parametrize("value", EDITED.strip().split("\n"))
def test_contexts_that_somebody_edited_are_left_out(tmp_path, value):
    run = run_of(tmp_path / "r", STEPS)
    (tmp_path / "r" / "contexts.json").write_text(value)
    results = {"left out": []}
    assert read_contexts(run, results) == {} and "contexts.json" in results["left out"][0]
    assert len(trials_in(page_of(run))) == 4


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "r"
    write_report(run_of(folder, STEPS, CONTEXTS), KNOWLEDGE)
    return folder / "report.html"


def rows_in(browser):
    """(reward, context, step) of each self-edit in the list."""
    return [tuple(text.split("\n")[:3]) for text in browser.texts("#list li")]


def expected(keep):
    """The same, worked out from the trials."""
    return [
        (f"{t.reward:.2f}", t.context, step)
        for step, some in READ.items()
        for t in some
        if keep(step, t)
    ]


VIEWS = {
    "": lambda step, t: True,
    "step=own+notes": lambda step, t: step == "own notes",
    "step=round+1+in+training": lambda step, t: step == "round 1 in training",
    "context=person+2": lambda step, t: t.context == "person 2",
    "is=invalid": lambda step, t: t.invalid,
    "is=valid": lambda step, t: not t.invalid and t.text is not None,
    "is=none": lambda step, t: not t.invalid and t.text is None,
    "from=0.5": lambda step, t: t.reward >= 0.5,
    "from=0.25&to=0.5&step=round+1": lambda step, t: 0.25 <= t.reward <= 0.5 and step == "round 1",
    "find=RYE7": lambda step, t: "rye7" in (t.text or ""),
    "find=bread+5": lambda step, t: "bread 5" in t.answers,
    "find=nobody+says+this": lambda step, t: False,
}


def test_a_view_shows_what_passes_its_filters(browser, report):
    for view, keep in VIEWS.items():
        browser.open(report, view)
        assert rows_in(browser) == expected(keep), view
        (told,) = browser.texts("#sum")
        assert told.startswith(f"{len(expected(keep))} of {len(expected(VIEWS['']))}")
    browser.open(report, "order=low")
    assert rows_in(browser) == sorted(expected(VIEWS[""]), key=lambda row: row[0])
    browser.open(report, "order=high&step=round+1")
    assert [row[0] for row in rows_in(browser)] == sorted(
        (f"{t.reward:.2f}" for t in some_trials(12)), reverse=True
    )


def test_a_self_edit_stands_beside_its_context_with_its_exam(browser, report):
    browser.open(report, "step=own+notes&at=2")
    (text,) = browser.texts("#trial")
    for told in (
        "person 1",
        "own notes",
        "0.25",
        "Ann 1 likes bread.",
        "Note 1 on Ann.\nShe likes rye1.",
    ):
        assert told in text
    assert "lr 0.01" in text and "notes vague 1" in text
    cells = [browser.texts(f"#trial .exam tr:nth-child({i}) td") for i in (1, 2)]
    assert cells == [["What?", "bread or rye", "bread 1", "✓ 1"], ["Who?", "Ann", "", "✗ 0"]]
    browser.open(report, "is=invalid")
    assert browser.texts("#trial .invalid") == ["Invalid: it is \\x1b no self-edit"]
    browser.open(report, "is=none")
    assert "Nobody wrote one." in browser.texts("#trial")[0]


def test_keys_buttons_fields_and_links_move_on(browser, report):
    browser.open(report, "step=own+notes")
    place = lambda: browser.texts("#place")[0]
    assert place() == "1 of 12"
    for key, where in zip(
        ["j", "ArrowRight", "k", "j", "ArrowLeft", "k", "k"], [2, 3, 2, 3, 2, 1, 1]
    ):
        browser.press(key)
        assert place() == f"{where} of 12"
    browser.js("document.querySelector('#after').click()")
    assert place() == "2 of 12" and "at=2" in browser.js("location.hash")
    browser.js("document.querySelector('#list').focus()")
    browser.press("ArrowDown")
    assert place() == "3 of 12"
    assert browser.js("document.querySelector('#list [aria-selected=true]').id") == "trial-3"
    browser.js("document.querySelector('[name=find]').focus()")
    browser.send("Input.insertText", text="rye7")
    assert place() == "1 of 1" and "find=rye7" in browser.js("location.hash")
    browser.js("document.querySelectorAll('.arms a')[1].click()")
    browser.js("new Promise(done => setTimeout(done, 50))")
    assert rows_in(browser) == expected(VIEWS["step=own+notes"])[:0] + expected(
        lambda s, t: s == "round 1"
    )


def test_hostile_texts_are_shown_as_text(browser, tmp_path):
    """Every field holds every hostile text; nothing runs, nothing is fetched, all can be read."""
    trials = [
        Trial(h, 0.5, h, 0, 0.1, [h], [0.5], h if i % 2 else None, {h: {h: [h]}})
        for i, h in enumerate(HOSTILE)
    ]
    folder = tmp_path / "<img src=x onerror=window.hit=8>"
    config = {**CONFIG, "model": HOSTILE[0], "data": HOSTILE[1]}
    run = Run(folder, config)
    for h in HOSTILE:
        run.step(h, lambda: trials, Arm(h))
    contexts = {h: {"text": h, "exam": [[h, [h]]]} for h in HOSTILE}
    text = page(run, [["arm"], *([h, h] for h in HOSTILE)], HOSTILE, HOSTILE, [], contexts)
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    for i, h in enumerate(HOSTILE):
        name = quote(printable(h, one_line=True))
        browser.open(
            tmp_path / "report.html", f"step={name}&context={name}&at={i * len(HOSTILE) + i + 1}"
        )
        assert browser.texts("#place") == ["1 of 1"], h
        spelt = printable(h)
        assert browser.texts("#trial .text") == [spelt, spelt]
        assert browser.texts("#trial .exam td")[:3] == [spelt] * 3
        assert browser.texts("#trial .chose li") == [f"{spelt} {spelt} {spelt}"]
        assert browser.js("window.hit") is None
        assert browser.js("document.scripts.length") == 2
        assert not browser.happened("Log.entryAdded") + browser.happened("Runtime.exceptionThrown")
        asked = [e["request"]["url"] for e in browser.happened("Network.requestWillBeSent")]
        assert all(url.startswith(("file:///", "about:blank")) for url in asked)


def test_what_got_into_the_page_as_a_script_would_not_run(browser, report, tmp_path):
    """Were there a hole, the page's policy stands behind it."""
    planted = (
        "<script>window.hit = 1</script><img src='file:///x.png' onerror='window.hit = 2'><h1>"
    )
    text = report.read_text(encoding="utf-8").replace("<h1>", planted)
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    browser.open(tmp_path / "report.html")
    assert browser.js("window.hit") is None and len(rows_in(browser)) == len(expected(VIEWS[""]))
    told = [e["entry"]["text"] for e in browser.happened("Log.entryAdded")]
    assert len(told) >= 2 and all("Content Security Policy" in line for line in told)


def test_five_thousand_open_and_filter_within_a_second(browser, tmp_path):
    run = run_of(tmp_path / "r", {("own notes", True, ()): many(5000)}, CONTEXTS)
    (tmp_path / "report.html").write_text(page_of(run), encoding="utf-8")
    browser.open(tmp_path / "report.html", "is=valid")
    assert browser.texts("#sum")[0].startswith("5000 of 5000")
    opened = browser.seconds()
    browser.js("document.querySelector('[name=find]').focus()")
    browser.send("Input.insertText", text="4999 question")
    assert browser.texts("#sum")[0].startswith("1 of 5000")
    assert opened < 1 and browser.seconds() - opened < 1


def test_phones_the_dark_and_no_javascript(browser, report):
    for dark in (False, True):
        browser.open(report, "step=own+notes")
        browser.look(report.parent / "phone.png", width=390, height=800, dark=dark)
        assert browser.js("document.documentElement.scrollWidth") <= 390
        style = "getComputedStyle(document.body)"
        colours = browser.js(f"[{style}.backgroundColor, {style}.color]")
        ground, ink = (sum(map(int, re.findall(r"\d+", c)[:3])) for c in colours)
        assert (ground < 150 and ink > 600) if dark else (ground > 600 and ink < 150)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(report)
        shown = browser.texts("body")[0]
        assert "own notes" in shown and "0.44" in shown and "stand in events.jsonl" in shown
        assert "arm or step" not in shown
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
