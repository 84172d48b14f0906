"""The toy world of rules: two kinds that want opposite augmentations.

    places    the cells change places, always in the same way. Permuted colours keep such a rule
              and show more of it; turned or flipped, the demonstrations contradict each other.
    colours   each colour becomes another one. Turned and flipped grids keep such a rule and show
              more of it; with permuted colours the demonstrations contradict each other.

So the best self-edit depends on the puzzle; if one suited all, the outer loop could only learn a
constant. What makes grids larger than TOY_SIDE x TOY_SIDE (size, chain, repeat, reflections) is
never drawn: switches that change nothing but which draws come up.
"""

import json
import math
from typing import Literal

from numpy.random import Generator, default_rng

from ..files import UserError
from ..selfedit import Document
from ..tokenizer import Tokenizer
from .arc import Grid, Pair, Puzzle, to_text
from .fewshot import STRATEGIES, SWITCHES, Directives, FewShot, PuzzleLoss, pairs_to_text

Kind = Literal["places", "colours"]
Rule = tuple[int, ...]
Probes = dict[str, list[tuple[list[int], str]]]  # name -> [(ids of a question, its answer)]
KINDS: tuple[Kind, ...] = ("places", "colours")
WIDE, TALL = (2, 3), (3, 2)  # shapes of grids
TOY_SIDE = 3
PALETTE = range(6)
RATES, EPOCHS = (0.001, 0.003, 0.006, 0.012), (1, 3, 6)  # of pretraining's self-edits
# What suits each kind, found by trying: it is the oracle's, and nobody tells the policy.
ORACLE = {
    "places": Directives(frozenset({"color"}), "outputs", 0.006, 6),
    "colours": Directives(frozenset({"basic"}), "outputs", 0.003, 6),
}


def draw_rule(kind: Kind, rng: Generator) -> Rule:
    """A permutation: of cells (out[i] = in[rule[i]]), or of colours (out[i] = rule[in[i]])."""
    return tuple(rng.permutation(math.prod(WIDE) if kind == "places" else len(PALETTE)).tolist())


def apply_rule(kind: Kind, rule: Rule, grid: Grid) -> Grid:
    """The output grid that the rule makes of an input grid."""
    cells, width = [cell for row in grid for cell in row], len(grid[0])
    out = [cells[i] for i in rule] if kind == "places" else [rule[cell] for cell in cells]
    return tuple(tuple(out[i : i + width]) for i in range(0, len(out), width))


# The few rules of pretraining. With many, the model would learn to read any rule off its
# demonstrations, and there would be nothing to train for.
_rng = default_rng(12345)
FAMILIAR_RULES: dict[Kind, list[Rule]] = {
    "places": [draw_rule("places", _rng) for _ in range(8)],
    "colours": [draw_rule("colours", _rng) for _ in range(12)],
}


def draw_puzzle(
    kind: Kind, rule: Rule, rng: Generator, n: int = 4, shape: tuple[int, int] = WIDE, id: str = ""
) -> Puzzle:
    """A puzzle with n demonstrations of this rule and one test; each input is another grid."""
    inputs: dict[Grid, None] = {}  # a set that keeps the order
    while len(inputs) <= n:
        inputs[tuple(map(tuple, rng.integers(len(PALETTE), size=shape).tolist()))] = None
    pairs = tuple(Pair(grid, apply_rule(kind, rule, grid)) for grid in inputs)
    return Puzzle(id, pairs[:-1], pairs[-1:], kind)


def toy_puzzles(n: int, seed: int) -> list[Puzzle]:
    """n puzzles, both kinds in turn, every rule another one and none of pretraining's."""
    most = 2 * (math.factorial(len(PALETTE)) - max(map(len, FAMILIAR_RULES.values())))
    if n > most:
        raise UserError(f"{n} puzzles, but rules for {most}: lower --contexts or --rounds")
    used = {(kind, rule) for kind in KINDS for rule in FAMILIAR_RULES[kind]}
    rng, puzzles = default_rng(seed), []
    while len(puzzles) < n:
        kind = KINDS[len(puzzles) % 2]
        rule = draw_rule(kind, rng)
        if (kind, rule) not in used:
            used.add((kind, rule))
            puzzles.append(draw_puzzle(kind, rule, rng, id=f"{kind} {len(puzzles) // 2 + 1}"))
    return puzzles


# ---- pretraining ----

# How the tiny tokenizer cuts: each digit alone, a key of a self-edit whole, with its colon.
PATTERN = r'''\d|"[a-z_]+"(?:: )?|[a-z]+|[^\da-z"]+|"'''
# How often pretraining's self-edits switch on what changes nothing here: a taste that depends on
# the rule, as any language model's words depend on what it reads. The two switches that matter,
# and all numbers, are drawn evenly.
TASTE = {"places": {"size": 0.8, "chain": 0.2}, "colours": {"size": 0.2, "chain": 0.8}}


def tokenizer_text(rng: Generator, n: int = 300) -> str:
    """Text to train the tokenizer on: puzzles, kinds and self-edits."""
    parts = []
    for _ in range(n):
        parts += [pairs_to_text(draw_familiar_puzzle(rng).demonstrations), "edit:\n"]
        parts += [draw_directives(KINDS[0], rng).to_json(), "rule:\n"]
        parts += [statement(KINDS[rng.integers(2)])]
    return "0".join(parts)  # a digit parts them, since prompt and answer are encoded apart


def statement(kind: Kind) -> str:
    """What there is to say about a rule: {"places": true, "colours": false}"""
    return json.dumps({name: name == kind for name in KINDS})


def draw_familiar_puzzle(rng: Generator, demonstrations: int = 0) -> Puzzle:
    """A puzzle with a rule of pretraining, with 2 to 5 demonstrations or as many as asked for."""
    kind = KINDS[rng.integers(2)]
    # A place is one in a grid of one shape, a colour is one in any.
    shape = TALL if kind == "colours" and rng.random() < 0.4 else WIDE
    rule = FAMILIAR_RULES[kind][rng.integers(len(FAMILIAR_RULES[kind]))]
    return draw_puzzle(kind, rule, rng, demonstrations or int(rng.integers(2, 6)), shape)


def draw_directives(kind: Kind, rng: Generator) -> Directives:
    """A self-edit of pretraining: the policy starts without an opinion about what matters."""
    on = frozenset(name for name in SWITCHES if rng.random() < TASTE[kind].get(name, 0.5))
    loss, lr = list(STRATEGIES.values())[rng.integers(2)], RATES[rng.integers(len(RATES))]
    return Directives(on, loss, lr, EPOCHS[rng.integers(len(EPOCHS))])


def pretraining_document(task: FewShot, rng: Generator) -> Document:
    """One document, as `task` writes it down: most are puzzles with a rule of pretraining.

    The others are any rule at all, of which only the statement of its kind is learnt, or a
    self-edit drawn at random: so the model has a notion of the kinds, as an open model has of
    rotations and colours, but not of what follows from them for a self-edit. (Without statements
    `true` and `false` become one token to it: drawn evenly, they stand in each other's places.)
    """
    if rng.random() < 0.55:
        puzzle = draw_familiar_puzzle(rng)
        return rule_document(task, puzzle, statement(puzzle.kind), "outputs")
    kind = KINDS[rng.integers(2)]
    puzzle = draw_puzzle(kind, draw_rule(kind, rng), rng, int(rng.integers(2, 6)))
    if rng.random() < 0.5:
        return rule_document(task, puzzle, statement(kind))
    return task.lesson(puzzle, task.text_of(draw_directives(kind, rng)))


def rule_document(
    task: FewShot, puzzle: Puzzle, said: str, loss: PuzzleLoss | None = None
) -> Document:
    """All pairs of a puzzle (loss: which tokens of them carry it), then what to say of its rule."""
    pairs = task.document(puzzle, loss or "all").weighted(1.0 if loss else 0.0)
    answer = [*task.tokenizer.encode(said), task.tokenizer.eot]
    rule = Document.completion(task.tokenizer.encode("rule:\n"), answer)
    return Document(pairs.ids + rule.ids, pairs.weights + rule.weights)


def probes(tokenizer: Tokenizer, n: int = 100, seed: int = 1) -> Probes:
    """What a pretrained model is measured by: puzzles in context, and the kinds of new rules.

    A grid ends before GRID_END, a kind with eot.
    """
    rng, task, out = default_rng(seed), FewShot(tokenizer, "tiny"), {}
    familiar = [draw_familiar_puzzle(rng, 4) for _ in range(2 * n)]
    others = toy_puzzles(2 * n, seed)
    for name, puzzles in (("rules of pretraining", familiar), ("other rules", others)):
        for kind in KINDS:
            asked = [(task.exam(p)[0], p.tests[0].output) for p in puzzles if p.kind == kind]
            out[f"{name}, {kind}"] = [(ids, to_text(output)) for ids, output in asked]
    kinds = [(list(rule_document(task, p, "").ids[:-1]), statement(p.kind)) for p in others]
    return {**out, "kind of other rules": kinds}
