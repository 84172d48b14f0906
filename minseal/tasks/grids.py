"""The toy world of grid rules: two kinds that want opposite augmentations, so that the best self-edit depends on the task.

    places    the cells of the grid change places, always in the same way. Permuted colours keep such a rule and show more of it;
              turned or flipped, the demonstrations contradict each other.
    colours   each colour becomes another one, wherever it stands. Turned and flipped grids keep such a rule and show more of it;
              with permuted colours the demonstrations contradict each other.

If one self-edit suited every task, the outer loop could only learn a constant. Grids are at most MOST x MOST here, so augmentations that make
them larger (size, chain, repeat, reflections) are never drawn: switches that change nothing but which draws come up.
"""

import json
import math

import numpy as np

from ..errors import UserError
from .arc import GridTask, Pair
from .fewshot import STRATEGIES, SWITCHES, Directives, shown

HEIGHT, WIDTH, COLOURS, MOST = 2, 3, 6, 3
PALETTE = range(COLOURS)
KINDS = ("places", "colours")
LR, EPOCHS = (0.001, 0.003, 0.006, 0.012), (1, 3, 6)  # what pretraining has seen in self-edits
# What suits each kind, found by trying: it is the oracle's, and nobody tells the policy.
ORACLE = {
    "places": Directives(frozenset({"color"}), "outputs", 0.006, 6),
    "colours": Directives(frozenset({"basic"}), "outputs", 0.003, 6),
}


def draw_rule(kind, rng):
    """A permutation: of the cells (out[i] = in[rule[i]]), or of the colours (out[i] = rule[in[i]])."""
    return tuple(rng.permutation(HEIGHT * WIDTH if kind == "places" else COLOURS).tolist())


def apply_rule(kind, rule, grid):
    cells, width = [cell for row in grid for cell in row], len(grid[0])
    out = [cells[i] for i in rule] if kind == "places" else [rule[cell] for cell in cells]
    return tuple(tuple(out[i : i + width]) for i in range(0, len(out), width))


# The few rules of pretraining. With many, the model would learn to read any rule off its demonstrations, and there would be nothing to train for.
_rng = np.random.default_rng(12345)
SEEN = {
    "places": [draw_rule("places", _rng) for _ in range(8)],
    "colours": [draw_rule("colours", _rng) for _ in range(12)],
}


def make_task(kind, rule, rng, demonstrations=4, shape=(HEIGHT, WIDTH), id=""):
    """A task whose grids are random, each input another one."""
    inputs = {}
    while len(inputs) <= demonstrations:
        inputs[tuple(map(tuple, rng.integers(COLOURS, size=shape).tolist()))] = None
    pairs = tuple(Pair(grid, apply_rule(kind, rule, grid)) for grid in inputs)
    return GridTask(id, pairs[:-1], pairs[-1:], kind)


def toy_tasks(n, seed):
    """n tasks, both kinds in turn, every rule another one and none of pretraining's."""
    if n > (most := 2 * (math.factorial(COLOURS) - max(map(len, SEEN.values())))):
        raise UserError(
            f"{n} toy tasks were asked for, and there are rules for {most}: lower --contexts, --rounds or --eval-contexts"
        )
    rng, used, out = (
        np.random.default_rng(seed),
        {(kind, rule) for kind in KINDS for rule in SEEN[kind]},
        [],
    )
    while len(out) < n:
        kind = KINDS[len(out) % 2]
        if (rule := (kind, draw_rule(kind, rng))) not in used:
            used.add(rule)
            out.append(make_task(kind, rule[1], rng, id=f"{kind} {len(out) // 2 + 1}"))
    return out


# ---- pretraining -------------------------------------------------------------------------------------------------------

# How the tiny tokenizer cuts: each digit alone, a key of a self-edit whole, with its colon: where a value is to be written, the model has the key before it.
PATTERN = r'''\d|"[a-z_]+"(?:: )?|[a-z]+|[^\da-z"]+|"'''


def sample_text(rng, n=300):
    """Text for the tokenizer: tasks, kinds and self-edits. A digit between them, since prompt and answer are encoded apart."""
    return "0".join(
        part
        for _ in range(n)
        for part in (
            shown(seen_task(rng).demonstrations),
            "edit:\n",
            random_directives(KINDS[0], rng).to_json(),
            "rule:\n",
            statement(KINDS[rng.integers(2)]),
        )
    )


def statement(kind):
    """What there is to say about a rule: {"places": true, "colours": false}"""
    return json.dumps({name: name == kind for name in KINDS})


def seen_task(rng, demonstrations=None):
    """A task with a rule of pretraining."""
    kind = KINDS[rng.integers(2)]
    shape = (
        (WIDTH, HEIGHT) if kind == "colours" and rng.random() < 0.4 else (HEIGHT, WIDTH)
    )  # a place is one in a grid of one shape
    return make_task(
        kind,
        SEEN[kind][rng.integers(len(SEEN[kind]))],
        rng,
        demonstrations or int(rng.integers(2, 6)),
        shape,
    )


# How often pretraining's self-edits switch on what changes nothing here: a taste that depends on the rule, as any language model's words depend on
# what it reads. The two switches that matter, and all numbers, are drawn evenly.
TASTE = {"places": {"size": 0.8, "chain": 0.2}, "colours": {"size": 0.2, "chain": 0.8}}


def random_directives(kind, rng):
    """A self-edit of pretraining: what matters is drawn evenly, so that the policy starts without an opinion about it."""
    on = frozenset(name for name in SWITCHES if rng.random() < TASTE[kind].get(name, 0.5))
    return Directives(
        on,
        list(STRATEGIES.values())[rng.integers(2)],
        LR[rng.integers(len(LR))],
        EPOCHS[rng.integers(len(EPOCHS))],
    )


def document(task, rng):
    """A document of pretraining, written down by `task` (fewshot.FewShot).

    Most are tasks with a rule of pretraining, and then a statement of its kind. The others are any rule at all, of which only the statement is
    learnt, or a self-edit drawn at random: so the model has a notion of the kinds, as an open model has of rotations and colours, but not of what
    follows from them for a self-edit. (Without statements `true` and `false` would become one token to it: drawn evenly, they stand in each other's places.)
    """
    if rng.random() < 0.55:
        context = seen_task(rng)
        return task.told(context, statement(context.kind), "outputs")
    kind = KINDS[rng.integers(2)]
    context = make_task(kind, draw_rule(kind, rng), rng, int(rng.integers(2, 6)))
    if rng.random() < 0.5:
        return task.told(context, statement(kind))
    return task.lesson(context, task.text_of(random_directives(kind, rng)))
