"""The toy world of grid rules: rules against numpy, tasks against every rule there is, and the texts of pretraining."""

import json
from itertools import groupby, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minseal import Tokenizer
from minseal.tasks import grids
from minseal.tasks.arc import Pair, to_text
from minseal.tasks.augment import GROUPS, training_tasks
from minseal.tasks.fewshot import STRATEGIES, SWITCHES, Directives, FewShot, read_directives
from minseal.tokenizer import train_ranks

CELLS = grids.HEIGHT * grids.WIDTH
EVERY_RULE = {
    "places": np.array(list(permutations(range(CELLS)))),
    "colours": np.array(list(permutations(range(grids.COLOURS)))),
}
TOKENIZER = Tokenizer(
    train_ranks(grids.sample_text(np.random.default_rng(0)), 511, grids.PATTERN), grids.PATTERN
)
TASK = FewShot(TOKENIZER, "tiny", palette=grids.PALETTE, most=grids.MOST)
TASKS = grids.toy_tasks(60, seed=0)
SYMMETRIES = [
    lambda a, k=k, turned=turned: np.rot90(a.T if turned else a, k)
    for turned in (False, True)
    for k in range(4)
]
WIDE, TALL = (grids.HEIGHT, grids.WIDTH), (grids.WIDTH, grids.HEIGHT)


def consistent(kind, pairs):
    """Of all rules of a kind, those that make every output of its input."""
    rules, fits = EVERY_RULE[kind], True
    for pair in pairs:
        cells, out = np.ravel(pair.input), np.ravel(pair.output)
        made = cells[rules] if kind == "places" else rules[:, cells]
        fits = fits & (made == out).all(1) & (np.shape(pair.input) == np.shape(pair.output))
    return set(map(tuple, rules[fits].tolist()))


def all_pairs(task):
    return task.demonstrations + task.tests


def changed(pairs, change):
    return [
        Pair(
            *(
                tuple(map(tuple, change(np.array(grid)).tolist()))
                for grid in (pair.input, pair.output)
            )
        )
        for pair in pairs
    ]


# ---- rules -----------------------------------------------------------------------------------------------------------


def test_a_rule_of_each_kind_by_hand():
    assert grids.apply_rule("places", (3, 0, 1, 2), ((7, 8), (9, 7))) == ((7, 7), (8, 9))
    assert grids.apply_rule("places", (1, 2, 0), ((7,), (8,), (9,))) == ((8,), (9,), (7,))
    assert grids.apply_rule("colours", (2, 0, 1), ((0, 1), (2, 0), (1, 1))) == (
        (2, 0),
        (1, 2),
        (0, 0),
    )


@given(st.data(), st.integers(1, 4), st.integers(1, 4), st.sampled_from(grids.KINDS))
def test_rules_against_numpy(data, height, width, kind):
    rule = data.draw(st.permutations(range(height * width if kind == "places" else 10)))
    cells = data.draw(st.lists(st.integers(0, 9), min_size=height * width, max_size=height * width))
    grid = np.array(cells).reshape(height, width)
    expected = np.zeros_like(grid)
    for y, x in np.ndindex(height, width):
        if kind == "places":
            expected[y, x] = grid[divmod(rule[y * width + x], width)]
        else:
            expected[grid == grid[y, x]] = rule[grid[y, x]]
    assert grids.apply_rule(kind, tuple(rule), tuple(map(tuple, grid.tolist()))) == tuple(
        map(tuple, expected.tolist())
    )


@pytest.mark.parametrize("kind", grids.KINDS)
def test_drawn_rules_are_permutations_and_any_of_them(kind):
    rng = np.random.default_rng(0)
    drawn = [grids.draw_rule(kind, rng) for _ in range(3000)]
    assert set(drawn) <= set(map(tuple, EVERY_RULE[kind].tolist()))
    assert len(set(drawn)) > 0.9 * min(
        len(EVERY_RULE[kind]), 3000
    )  # of 720 all but e^-4 = 2 % are expected


@pytest.mark.parametrize("kind", grids.KINDS)
def test_rules_of_pretraining_are_few(kind):
    seen = set(grids.SEEN[kind])
    assert (
        seen <= set(map(tuple, EVERY_RULE[kind].tolist()))
        and 0 < len(seen) < len(EVERY_RULE[kind]) / 10
    )


# ---- tasks -----------------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**6),
    st.sampled_from(grids.KINDS),
    st.integers(1, 6),
    st.sampled_from([WIDE, TALL]),
)
@settings(max_examples=40)
def test_a_task_has_one_rule_and_every_input_once(seed, kind, n, shape):
    rng = np.random.default_rng(seed)
    rule = grids.draw_rule(kind, rng)
    task = grids.make_task(kind, rule, rng, n, shape, "x")
    assert (task.id, task.kind, len(task.demonstrations), len(task.tests)) == ("x", kind, n, 1)
    assert rule in consistent(kind, all_pairs(task))
    assert len({pair.input for pair in all_pairs(task)}) == n + 1
    for pair in all_pairs(task):
        assert np.shape(pair.input) == shape and set(np.ravel(pair.input).tolist()) <= set(
            range(grids.COLOURS)
        ) == set(grids.PALETTE)


def test_toy_tasks_are_of_both_kinds_in_turn_and_each_follows_a_rule():
    assert [task.kind for task in TASKS] == list(grids.KINDS) * 30
    assert [task.id for task in TASKS if not consistent(task.kind, all_pairs(task))] == []
    assert len({task.id for task in TASKS}) == 60 and all(task.kind in task.id for task in TASKS)


def test_toy_tasks_have_rules_of_their_own_and_none_of_pretrainings():
    for seed in range(5):
        rules = [
            (task.kind, consistent(task.kind, all_pairs(task)))
            for task in grids.toy_tasks(60, seed)
        ]
        known = [
            (kind, *found) for kind, found in rules if len(found) == 1
        ]  # what the grids leave open says nothing
        assert len(known) > 50 and len(set(known)) == len(known)
        assert [rule for rule in known if rule[1] in grids.SEEN[rule[0]]] == []


def test_no_rule_of_pretraining_is_used_even_where_it_would_be_drawn(monkeypatch):
    """All but 40 rules of each kind are seen: a draw that did not look would hit them at once."""
    left = {kind: set(map(tuple, rules[:40].tolist())) for kind, rules in EVERY_RULE.items()}
    monkeypatch.setattr(
        grids,
        "SEEN",
        {kind: list(map(tuple, rules[40:].tolist())) for kind, rules in EVERY_RULE.items()},
    )
    tasks = grids.toy_tasks(60, seed=0)
    assert [
        task.id for task in tasks if not consistent(task.kind, all_pairs(task)) & left[task.kind]
    ] == []
    for kind in grids.KINDS:
        known = [
            found
            for task in tasks
            if task.kind == kind and len(found := consistent(kind, all_pairs(task))) == 1
        ]
        assert len(known) > 20 and len(set().union(*known)) == len(known)  # 30 of 40, none twice


def test_same_seed_same_tasks_and_more_of_them_begin_alike():
    assert grids.toy_tasks(20, 3) == grids.toy_tasks(20, 3) != grids.toy_tasks(20, 4)
    assert grids.toy_tasks(20, 3)[:10] == grids.toy_tasks(10, 3) and grids.toy_tasks(0, 3) == []
    assert {pair for task in grids.toy_tasks(10, 3) for pair in all_pairs(task)}.isdisjoint(
        pair for task in grids.toy_tasks(10, 4) for pair in all_pairs(task)
    )


def recolourings(rng):
    permuted = rng.permutation(grids.COLOURS)
    return lambda grid: permuted[grid]


@pytest.mark.parametrize("kind", grids.KINDS)
def test_each_kind_is_kept_by_one_augmentation_and_broken_by_the_other(kind):
    """Kept: the demonstrations as they are and the changed ones together still follow the task's rule. Broken: no rule makes both."""
    rng = np.random.default_rng(0)
    for task in (task for task in TASKS if task.kind == kind):
        pairs = all_pairs(task)
        coloured = [
            consistent(kind, (*pairs, *changed(pairs, recolourings(rng)))) for _ in range(8)
        ]
        turned = [consistent(kind, (*pairs, *changed(pairs, symmetry))) for symmetry in SYMMETRIES]
        kept, broken = (coloured, turned) if kind == "places" else (turned, coloured)
        rules = consistent(kind, pairs)
        assert rules and all(found and found <= rules for found in kept)
        assert (
            sum(not found for found in broken) >= 3
        )  # a rule that happens to commute with some of the 8 is still broken by others


# ---- self-edits ------------------------------------------------------------------------------------------------------


def even(drawn, chances):
    """Whether each value of `chances` was drawn as often as its chance says: within 4.5 standard deviations, 1 in 100,000 lies outside."""
    return all(
        abs(drawn.count(value) - len(drawn) * p) <= 4.5 * (len(drawn) * p * (1 - p)) ** 0.5
        for value, p in chances.items()
    ) and set(drawn) == set(chances)


@pytest.mark.parametrize("kind", grids.KINDS)
def test_random_directives_can_be_read_and_reach_every_value(kind):
    rng = np.random.default_rng(0)
    drawn = [grids.random_directives(kind, rng) for _ in range(2000)]
    assert [i for i, d in enumerate(drawn) if read_directives(d.to_json()) != d] == []
    assert even([d.lr for d in drawn], dict.fromkeys(grids.LR, 1 / len(grids.LR))) and even(
        [d.epochs for d in drawn], dict.fromkeys(grids.EPOCHS, 1 / len(grids.EPOCHS))
    )
    assert even([d.loss for d in drawn], dict.fromkeys(STRATEGIES.values(), 1 / 2))
    for name in SWITCHES:
        taste = (
            0.5 if name in ("basic", "color") else grids.TASTE[kind].get(name, 0.5)
        )  # no opinion about the two that matter
        assert even([name in d.augmentations for d in drawn], {True: taste, False: 1 - taste})
    assert {d.augmentations & {"basic", "color"} for d in drawn} == set(
        map(frozenset, ([], ["basic"], ["color"], ["basic", "color"]))
    )


@pytest.mark.parametrize("kind", grids.KINDS)
def test_the_oracle_wants_what_keeps_the_rule_and_the_policy_can_say_it(kind):
    oracle = grids.ORACLE[kind]
    assert read_directives(oracle.to_json()) == oracle
    keeps, breaks = ("color", "basic") if kind == "places" else ("basic", "color")
    assert keeps in oracle.augmentations and breaks not in oracle.augmentations
    assert oracle.lr in grids.LR and oracle.epochs in grids.EPOCHS


def test_in_the_toy_world_only_two_switches_do_anything():
    without = {name for name in GROUPS if name != "basic"}
    for task in TASKS[:10]:
        for rows in (
            task,
            grids.make_task(
                "colours", grids.SEEN["colours"][0], np.random.default_rng(1), shape=TALL
            ),
        ):
            made = training_tasks(
                rows, set(GROUPS), True, 40, np.random.default_rng(0), grids.PALETTE, grids.MOST
            )
            shapes = {
                np.shape(grid)
                for t in made
                for pair in all_pairs(t)
                for grid in (pair.input, pair.output)
            }
            assert shapes == {WIDE, TALL}
            assert {
                cell
                for t in made
                for pair in all_pairs(t)
                for cell in np.ravel(pair.input).tolist()
            } <= set(grids.PALETTE)
            plain = training_tasks(
                rows, without, False, 40, np.random.default_rng(0), grids.PALETTE, grids.MOST
            )
            assert {pair for t in plain for pair in all_pairs(t)} <= set(rows.demonstrations)


def test_documents_of_a_self_edit_keep_the_rule_that_its_augmentation_suits():
    for task in TASKS[:20]:
        for name, keeps in (("color", "places"), ("basic", "colours")):
            found = TASK.edit(task, Directives(frozenset({name}), "outputs", 1e-3, 1))
            pairs = [pair for d in found.documents for pair in read(TOKENIZER.decode(d.ids))[0]]
            assert bool(consistent(task.kind, pairs)) == (task.kind == keeps)


# ---- texts of pretraining --------------------------------------------------------------------------------------------


def read(text):
    """Pairs out of text, and what stands after the last one."""
    *blocks, rest = text.split("\n\n")
    return [
        Pair(
            *(
                tuple(tuple(map(int, row)) for row in part.split("\n"))
                for part in block.split("\n>\n")
            )
        )
        for block in blocks
    ], rest


def carried(document):
    """What carries loss, as a list of unbroken texts."""
    return [
        TOKENIZER.decode([id for id, _ in run])
        for carries, run in groupby(zip(document.ids, document.loss), lambda x: x[1])
        if carries
    ]


def kind_in(statement):
    """The one kind of which a statement says true; it names every kind."""
    said = json.loads(statement)
    (kind,) = (kind for kind, true in said.items() if true is True)
    assert set(said) == set(grids.KINDS) and {
        kind for kind, true in said.items() if true is not False
    } == {kind}
    return kind


def test_every_document_of_pretraining_is_well_formed():
    rng, n = np.random.default_rng(0), 600
    counts, shapes, odd = dict.fromkeys(("edits", "any rule", "tasks"), 0), set(), []
    for i in range(n):
        document = grids.document(TASK, rng)
        pairs, rest = read(TOKENIZER.decode(document.ids))
        shapes |= {np.shape(grid) for pair in pairs for grid in (pair.input, pair.output)}
        assert (
            document.ids[-1] == TOKENIZER.eot
            and document.loss[-1]
            and TOKENIZER.eot not in document.ids[:-1]
            and len(pairs) >= 2
        )
        head, _, tail = rest.partition("\n")
        assert head in ("edit:", "rule:")
        outputs = [to_text(pair.output) + "\n\n" for pair in pairs]
        seen = [kind for kind in grids.KINDS if consistent(kind, pairs) & set(grids.SEEN[kind])]
        if head == "edit:":
            read_directives(tail)
            counts["edits"] += 1
            odd += [i] * (
                carried(document) != [tail]
                or not any(consistent(kind, pairs) for kind in grids.KINDS)
            )
        elif len(carried(document)) == 1:
            counts["any rule"] += 1
            odd += [i] * (carried(document) != [tail] or not consistent(kind_in(tail), pairs))
        else:
            counts["tasks"] += 1
            odd += [i] * (carried(document) != [*outputs, tail] or kind_in(tail) not in seen)
    assert odd == []
    assert shapes == {WIDE, TALL}
    assert (
        min(counts.values()) > n / 20 and counts["tasks"] > 0.4 * n
    )  # 'most are tasks with a rule of pretraining'


def test_rules_of_which_only_the_kind_is_learnt_are_any_rules_of_both_kinds():
    rng, found = np.random.default_rng(1), []
    while len(found) < 60:
        document = grids.document(TASK, rng)
        pairs, rest = read(TOKENIZER.decode(document.ids))
        if rest.startswith("rule:\n") and len(carried(document)) == 1:
            found.append((kind_in(rest.removeprefix("rule:\n")), pairs))
    assert {kind for kind, _ in found} == set(grids.KINDS)
    seen = sum(bool(consistent(kind, pairs) & set(grids.SEEN[kind])) for kind, pairs in found)
    assert (
        seen < 20
    )  # a rule of pretraining is one in sixty or fewer, and few demonstrations fit some more


def test_seen_tasks_have_rules_of_pretraining_in_both_kinds_and_shapes():
    rng = np.random.default_rng(0)
    tasks = [grids.seen_task(rng) for _ in range(200)]
    assert [
        t for t in tasks if not consistent(t.kind, all_pairs(t)) & set(grids.SEEN[t.kind])
    ] == []
    assert {(t.kind, np.shape(t.tests[0].input)) for t in tasks} == {
        ("places", WIDE),
        ("colours", WIDE),
        ("colours", TALL),
    }
    assert (
        len({len(t.demonstrations) for t in tasks}) > 1
        and len(grids.seen_task(rng, 3).demonstrations) == 3
    )


def test_documents_follow_from_their_generator():
    a, b, c = (
        [grids.document(TASK, rng) for _ in range(20)]
        for rng in map(np.random.default_rng, (0, 0, 1))
    )
    assert a == b != c


def test_the_tokenizer_cuts_self_edits_short_and_grids_by_the_cell():
    rng = np.random.default_rng(5)
    drawn = [grids.random_directives(kind, rng) for kind in grids.KINDS for _ in range(50)] + list(
        grids.ORACLE.values()
    )
    for directives in drawn:
        tokens = [TOKENIZER.decode([id]) for id in TOKENIZER.encode(directives.to_json())]
        data = json.loads("".join(tokens))
        for key in (*data, *data["data_generation"], *data["training"]):
            assert tokens.count(f'"{key}": ') == 1  # a key is one token
        assert tokens.count("true") + tokens.count("false") == len(SWITCHES)
        assert (
            len(tokens) + 1 <= 64 <= TASK.edit_tokens
        )  # about 50 of them; the policy has room for it and for the end of text
    for task in TASKS[:10]:
        grid = task.tests[0].input
        assert [TOKENIZER.decode([id]) for id in TOKENIZER.encode(to_text(grid))] == list(
            to_text(grid)
        )
