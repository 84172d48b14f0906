"""The toy world of rules: against numpy, against every rule there is, and pretraining's text."""

import json
from itertools import groupby, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minseal import Tokenizer
from minseal.tasks import rules
from minseal.tasks.arc import Pair, to_text
from minseal.tasks.augment import GROUPS, draw_training_puzzles
from minseal.tasks.fewshot import STRATEGIES, SWITCHES, Directives, FewShot, read_directives
from minseal.tokenizer import train_ranks

CELLS, COLOURS = 6, 6
EVERY_RULE = {
    "places": np.array(list(permutations(range(CELLS)))),
    "colours": np.array(list(permutations(range(COLOURS)))),
}
TOKENIZER = Tokenizer(
    train_ranks(rules.tokenizer_text(np.random.default_rng(0)), 511, rules.PATTERN), rules.PATTERN
)
TASK = FewShot(TOKENIZER, "tiny", palette=rules.PALETTE, max_side=rules.TOY_SIDE)
PUZZLES = rules.toy_puzzles(60, seed=0)
SYMMETRIES = [
    lambda a, k=k, turned=turned: np.rot90(a.T if turned else a, k)
    for turned in (False, True)
    for k in range(4)
]
WIDE, TALL = (2, 3), (3, 2)


def consistent(kind, pairs):
    """Of all rules of a kind, those that make every output of its input."""
    rules, fits = EVERY_RULE[kind], True
    for pair in pairs:
        cells, out = np.ravel(pair.input), np.ravel(pair.output)
        made = cells[rules] if kind == "places" else rules[:, cells]
        fits = fits & (made == out).all(1) & (np.shape(pair.input) == np.shape(pair.output))
    return set(map(tuple, rules[fits].tolist()))


def all_pairs(puzzle):
    return puzzle.demonstrations + puzzle.tests


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


# ---- rules ----


def test_a_rule_of_each_kind_by_hand():
    assert rules.apply_rule("places", (3, 0, 1, 2), ((7, 8), (9, 7))) == ((7, 7), (8, 9))
    assert rules.apply_rule("places", (1, 2, 0), ((7,), (8,), (9,))) == ((8,), (9,), (7,))
    assert rules.apply_rule("colours", (2, 0, 1), ((0, 1), (2, 0), (1, 1))) == (
        (2, 0),
        (1, 2),
        (0, 0),
    )


@given(st.data(), st.integers(1, 4), st.integers(1, 4), st.sampled_from(rules.KINDS))
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
    assert rules.apply_rule(kind, tuple(rule), tuple(map(tuple, grid.tolist()))) == tuple(
        map(tuple, expected.tolist())
    )


@pytest.mark.parametrize("kind", rules.KINDS)
def test_drawn_rules_are_permutations_and_any_of_them(kind):
    rng = np.random.default_rng(0)
    drawn = [rules.draw_rule(kind, rng) for _ in range(3000)]
    assert set(drawn) <= set(map(tuple, EVERY_RULE[kind].tolist()))
    # Of 720 all but e^-4 = 2 % are expected.
    assert len(set(drawn)) > 0.9 * min(len(EVERY_RULE[kind]), 3000)


@pytest.mark.parametrize("kind", rules.KINDS)
def test_rules_of_pretraining_are_few(kind):
    seen = set(rules.FAMILIAR_RULES[kind])
    assert (
        seen <= set(map(tuple, EVERY_RULE[kind].tolist()))
        and 0 < len(seen) < len(EVERY_RULE[kind]) / 10
    )


# ---- puzzles ----


@given(
    st.integers(0, 10**6),
    st.sampled_from(rules.KINDS),
    st.integers(1, 6),
    st.sampled_from([WIDE, TALL]),
)
@settings(max_examples=40)
def test_a_puzzle_has_one_rule_and_every_input_once(seed, kind, n, shape):
    rng = np.random.default_rng(seed)
    rule = rules.draw_rule(kind, rng)
    puzzle = rules.draw_puzzle(kind, rule, rng, n, shape, "x")
    assert (puzzle.id, puzzle.kind, len(puzzle.demonstrations), len(puzzle.tests)) == (
        "x",
        kind,
        n,
        1,
    )
    assert rule in consistent(kind, all_pairs(puzzle))
    assert len({pair.input for pair in all_pairs(puzzle)}) == n + 1
    for pair in all_pairs(puzzle):
        assert np.shape(pair.input) == shape and set(np.ravel(pair.input).tolist()) <= set(
            range(COLOURS)
        ) == set(rules.PALETTE)


def test_toy_puzzles_are_of_both_kinds_in_turn_and_each_follows_a_rule():
    assert [puzzle.kind for puzzle in PUZZLES] == list(rules.KINDS) * 30
    assert [puzzle.id for puzzle in PUZZLES if not consistent(puzzle.kind, all_pairs(puzzle))] == []
    assert len({puzzle.id for puzzle in PUZZLES}) == 60 and all(
        puzzle.kind in puzzle.id for puzzle in PUZZLES
    )


def test_toy_puzzles_have_rules_of_their_own_and_none_of_pretrainings():
    for seed in range(5):
        found = [
            (puzzle.kind, consistent(puzzle.kind, all_pairs(puzzle)))
            for puzzle in rules.toy_puzzles(60, seed)
        ]
        # What the grids leave open says nothing.
        known = [(kind, *fits) for kind, fits in found if len(fits) == 1]
        assert len(known) > 50 and len(set(known)) == len(known)
        assert [rule for rule in known if rule[1] in rules.FAMILIAR_RULES[rule[0]]] == []


def test_no_rule_of_pretraining_is_used_even_where_it_would_be_drawn(monkeypatch):
    """All but 40 rules of each kind are seen: a draw that did not look would hit them at once."""
    left = {kind: set(map(tuple, rules[:40].tolist())) for kind, rules in EVERY_RULE.items()}
    monkeypatch.setattr(
        rules,
        "FAMILIAR_RULES",
        {kind: list(map(tuple, rules[40:].tolist())) for kind, rules in EVERY_RULE.items()},
    )
    puzzles = rules.toy_puzzles(60, seed=0)
    assert [
        puzzle.id
        for puzzle in puzzles
        if not consistent(puzzle.kind, all_pairs(puzzle)) & left[puzzle.kind]
    ] == []
    for kind in rules.KINDS:
        known = [
            found
            for puzzle in puzzles
            if puzzle.kind == kind and len(found := consistent(kind, all_pairs(puzzle))) == 1
        ]
        assert len(known) > 20 and len(set().union(*known)) == len(known)  # 30 of 40, none twice


def test_same_seed_same_puzzles_and_more_of_them_begin_alike():
    assert rules.toy_puzzles(20, 3) == rules.toy_puzzles(20, 3) != rules.toy_puzzles(20, 4)
    assert (
        rules.toy_puzzles(20, 3)[:10] == rules.toy_puzzles(10, 3) and rules.toy_puzzles(0, 3) == []
    )
    assert {pair for puzzle in rules.toy_puzzles(10, 3) for pair in all_pairs(puzzle)}.isdisjoint(
        pair for puzzle in rules.toy_puzzles(10, 4) for pair in all_pairs(puzzle)
    )


def recolourings(rng):
    permuted = rng.permutation(COLOURS)
    return lambda grid: permuted[grid]


@pytest.mark.parametrize("kind", rules.KINDS)
def test_each_kind_is_kept_by_one_augmentation_and_broken_by_the_other(kind):
    """Kept: demonstrations as they are and as they become follow one rule. Broken: none."""
    rng = np.random.default_rng(0)
    for puzzle in (puzzle for puzzle in PUZZLES if puzzle.kind == kind):
        pairs = all_pairs(puzzle)
        coloured = [
            consistent(kind, (*pairs, *changed(pairs, recolourings(rng)))) for _ in range(8)
        ]
        turned = [consistent(kind, (*pairs, *changed(pairs, symmetry))) for symmetry in SYMMETRIES]
        kept, broken = (coloured, turned) if kind == "places" else (turned, coloured)
        rules = consistent(kind, pairs)
        assert rules and all(found and found <= rules for found in kept)
        # A rule that happens to commute with some of the 8 is still broken by others.
        assert sum(not found for found in broken) >= 3


# ---- self-edits ----


def even(drawn, chances):
    """Whether each value was drawn as often as its chance says, within 4.5 standard deviations."""
    return all(
        abs(drawn.count(value) - len(drawn) * p) <= 4.5 * (len(drawn) * p * (1 - p)) ** 0.5
        for value, p in chances.items()
    ) and set(drawn) == set(chances)


@pytest.mark.parametrize("kind", rules.KINDS)
def test_random_directives_can_be_read_and_reach_every_value(kind):
    rng = np.random.default_rng(0)
    drawn = [rules.draw_directives(kind, rng) for _ in range(2000)]
    assert [i for i, d in enumerate(drawn) if read_directives(d.to_json()) != d] == []
    assert even([d.lr for d in drawn], dict.fromkeys(rules.RATES, 1 / len(rules.RATES))) and even(
        [d.epochs for d in drawn], dict.fromkeys(rules.EPOCHS, 1 / len(rules.EPOCHS))
    )
    assert even([d.loss for d in drawn], dict.fromkeys(STRATEGIES.values(), 1 / 2))
    for name in SWITCHES:
        # No opinion about the two that matter.
        taste = 0.5 if name in ("basic", "color") else rules.TASTE[kind].get(name, 0.5)
        assert even([name in d.augmentations for d in drawn], {True: taste, False: 1 - taste})
    assert {d.augmentations & {"basic", "color"} for d in drawn} == set(
        map(frozenset, ([], ["basic"], ["color"], ["basic", "color"]))
    )


@pytest.mark.parametrize("kind", rules.KINDS)
def test_the_oracle_wants_what_keeps_the_rule_and_the_policy_can_say_it(kind):
    oracle = rules.ORACLE[kind]
    assert read_directives(oracle.to_json()) == oracle
    keeps, breaks = ("color", "basic") if kind == "places" else ("basic", "color")
    assert keeps in oracle.augmentations and breaks not in oracle.augmentations
    assert oracle.lr in rules.RATES and oracle.epochs in rules.EPOCHS


def test_in_the_toy_world_only_two_switches_do_anything():
    without = {name for name in GROUPS if name != "basic"}
    for puzzle in PUZZLES[:10]:
        for rows in (
            puzzle,
            rules.draw_puzzle(
                "colours", rules.FAMILIAR_RULES["colours"][0], np.random.default_rng(1), shape=TALL
            ),
        ):
            made = draw_training_puzzles(
                rows, set(GROUPS), True, 40, np.random.default_rng(0), rules.PALETTE, rules.TOY_SIDE
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
            } <= set(rules.PALETTE)
            plain = draw_training_puzzles(
                rows, without, False, 40, np.random.default_rng(0), rules.PALETTE, rules.TOY_SIDE
            )
            assert {pair for t in plain for pair in all_pairs(t)} <= set(rows.demonstrations)


def test_documents_of_a_self_edit_keep_the_rule_that_its_augmentation_suits():
    for puzzle in PUZZLES[:20]:
        for name, keeps in (("color", "places"), ("basic", "colours")):
            found = TASK.edit(puzzle, Directives(frozenset({name}), "outputs", 1e-3, 1))
            pairs = [pair for d in found.documents for pair in read(TOKENIZER.decode(d.ids))[0]]
            assert bool(consistent(puzzle.kind, pairs)) == (puzzle.kind == keeps)


# ---- texts of pretraining ----


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
        for carries, run in groupby(zip(document.ids, document.weights), lambda x: x[1])
        if carries
    ]


def kind_in(statement):
    """The one kind of which a statement says true; it names every kind."""
    said = json.loads(statement)
    (kind,) = (kind for kind, true in said.items() if true is True)
    assert set(said) == set(rules.KINDS) and {
        kind for kind, true in said.items() if true is not False
    } == {kind}
    return kind


def test_every_document_of_pretraining_is_well_formed():
    rng, n = np.random.default_rng(0), 600
    counts, shapes, odd = dict.fromkeys(("edits", "any rule", "puzzles"), 0), set(), []
    for i in range(n):
        document = rules.pretraining_document(TASK, rng)
        pairs, rest = read(TOKENIZER.decode(document.ids))
        shapes |= {np.shape(grid) for pair in pairs for grid in (pair.input, pair.output)}
        assert (
            document.ids[-1] == TOKENIZER.eot
            and document.weights[-1]
            and TOKENIZER.eot not in document.ids[:-1]
            and len(pairs) >= 2
        )
        head, _, tail = rest.partition("\n")
        assert head in ("edit:", "rule:")
        outputs = [to_text(pair.output) + "\n\n" for pair in pairs]
        seen = [
            kind
            for kind in rules.KINDS
            if consistent(kind, pairs) & set(rules.FAMILIAR_RULES[kind])
        ]
        if head == "edit:":
            read_directives(tail)
            counts["edits"] += 1
            odd += [i] * (
                carried(document) != [tail]
                or not any(consistent(kind, pairs) for kind in rules.KINDS)
            )
        elif len(carried(document)) == 1:
            counts["any rule"] += 1
            odd += [i] * (carried(document) != [tail] or not consistent(kind_in(tail), pairs))
        else:
            counts["puzzles"] += 1
            odd += [i] * (carried(document) != [*outputs, tail] or kind_in(tail) not in seen)
    assert odd == []
    assert shapes == {WIDE, TALL}
    # 'most are puzzles with a rule of pretraining'.
    assert min(counts.values()) > n / 20 and counts["puzzles"] > 0.4 * n


def test_rules_of_which_only_the_kind_is_learnt_are_any_rules_of_both_kinds():
    rng, found = np.random.default_rng(1), []
    while len(found) < 60:
        document = rules.pretraining_document(TASK, rng)
        pairs, rest = read(TOKENIZER.decode(document.ids))
        if rest.startswith("rule:\n") and len(carried(document)) == 1:
            found.append((kind_in(rest.removeprefix("rule:\n")), pairs))
    assert {kind for kind, _ in found} == set(rules.KINDS)
    seen = sum(
        bool(consistent(kind, pairs) & set(rules.FAMILIAR_RULES[kind])) for kind, pairs in found
    )
    # A rule of pretraining is one in sixty or fewer, and few demonstrations fit some more.
    assert seen < 20


def test_seen_puzzles_have_rules_of_pretraining_in_both_kinds_and_shapes():
    rng = np.random.default_rng(0)
    puzzles = [rules.draw_familiar_puzzle(rng) for _ in range(200)]
    assert [
        t
        for t in puzzles
        if not consistent(t.kind, all_pairs(t)) & set(rules.FAMILIAR_RULES[t.kind])
    ] == []
    assert {(t.kind, np.shape(t.tests[0].input)) for t in puzzles} == {
        ("places", WIDE),
        ("colours", WIDE),
        ("colours", TALL),
    }
    assert (
        len({len(t.demonstrations) for t in puzzles}) > 1
        and len(rules.draw_familiar_puzzle(rng, 3).demonstrations) == 3
    )


def test_documents_follow_from_their_generator():
    a, b, c = (
        [rules.pretraining_document(TASK, rng) for _ in range(20)]
        for rng in map(np.random.default_rng, (0, 0, 1))
    )
    assert a == b != c


def test_the_tokenizer_cuts_self_edits_short_and_grids_by_the_cell():
    rng = np.random.default_rng(5)
    drawn = [rules.draw_directives(kind, rng) for kind in rules.KINDS for _ in range(50)] + list(
        rules.ORACLE.values()
    )
    for directives in drawn:
        tokens = [TOKENIZER.decode([id]) for id in TOKENIZER.encode(directives.to_json())]
        data = json.loads("".join(tokens))
        for key in (*data, *data["data_generation"], *data["training"]):
            assert tokens.count(f'"{key}": ') == 1  # a key is one token
        assert tokens.count("true") + tokens.count("false") == len(SWITCHES)
        # About 50 of them; the policy has room for it and for the end of text.
        assert len(tokens) + 1 <= 64 <= TASK.edit_tokens
    for puzzle in PUZZLES[:10]:
        grid = puzzle.tests[0].input
        assert [TOKENIZER.decode([id]) for id in TOKENIZER.encode(to_text(grid))] == list(
            to_text(grid)
        )


def test_probes_ask_for_what_the_rules_make_of_the_tests():
    probes = rules.probes(TOKENIZER, n=5, seed=3)
    assert list(probes) == [
        "rules of pretraining, places",
        "rules of pretraining, colours",
        "other rules, places",
        "other rules, colours",
        "kind of other rules",
    ]
    kinds = probes.pop("kind of other rules")
    assert len(kinds) == 10 == sum(len(asked) for name, asked in probes.items() if "other" in name)
    for ids, answer in kinds:
        pairs, rest = read(TOKENIZER.decode(ids))
        assert rest == "rule:\n" and consistent(kind_in(answer), pairs)
    for name, asked in probes.items():
        kind = name.split(", ")[1]
        for ids, answer in asked:
            pairs, rest = read(TOKENIZER.decode(ids))
            test, _ = read(f"{rest}{answer}\n\n")
            fits = consistent(kind, [*pairs, *test])
            assert fits and bool(fits & set(rules.FAMILIAR_RULES[kind])) >= ("pretraining" in name)
