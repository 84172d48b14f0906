"""Few-shot learning: grid tasks, and self-edits that say how to train on their demonstrations (paper section 3.2)."""

import json
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..selfedit import LIMITS, Document, InvalidSelfEdit, SelfEdit
from .arc import MOST, Pair, from_text, to_text
from .augment import (
    GROUPS,
    IDENTITY,
    TRANSPOSE,
    VIEWS,
    permute_colours,
    reorder,
    training_tasks,
    transform,
)

# The keys of the paper's JSON object. Paper: colours are permuted whatever the self-edit says. Here: use_color_augmentations
# switches that, too, because a rule about colours is spoilt by it and a rule about places is learnt from it.
SWITCHES = {group: f"use_{group}_augmentations" for group in GROUPS} | {
    "color": "use_color_augmentations"
}
STRATEGIES = {"train_using_all_tokens": "all", "train_using_output_tokens": "outputs"}
MOST_LETTERS = 2000  # a longer text is no self-edit; nobody has to parse a megabyte of brackets


@dataclass(frozen=True)
class Directives:
    """What a self-edit for a grid task says: how the student is to train on it."""

    augmentations: frozenset  # names out of SWITCHES
    loss: str  # all | outputs: which tokens carry loss
    lr: float
    epochs: int

    def to_json(self):
        return json.dumps(
            {
                "data_generation": {
                    key: name in self.augmentations for name, key in SWITCHES.items()
                },
                "training": {
                    "strategy": {v: k for k, v in STRATEGIES.items()}[self.loss],
                    "learning_rate": self.lr,
                    "num_train_epochs": self.epochs,
                },
            }
        )


def read_directives(text):
    """The paper's JSON object, strictly: every key once, none unknown, numbers within LIMITS. Else InvalidSelfEdit says what is wrong.

    Paper: its code samples again until a text parses. Here: an unreadable text is a self-edit with reward 0, and counted.
    """
    if len(text) > MOST_LETTERS:
        raise InvalidSelfEdit(f"{len(text)} letters; expected at most {MOST_LETTERS}")
    try:
        data = json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=lambda name: _refuse(f"{name} is no number"),
        )
    except (json.JSONDecodeError, RecursionError) as e:
        raise InvalidSelfEdit(f"no JSON: {getattr(e, 'msg', 'nested too deep')}") from None
    generation, training = _fields(data, "the self-edit", ("data_generation", "training"))
    switches = _fields(generation, "data_generation", SWITCHES.values())
    strategy, lr, epochs = _fields(
        training, "training", ("strategy", "learning_rate", "num_train_epochs")
    )
    for key, value in zip(SWITCHES.values(), switches):
        if not isinstance(value, bool):
            _refuse(f"{key} is {_short(value)}; expected true or false")
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        _refuse(f"strategy is {_short(strategy)}; expected {' or '.join(STRATEGIES)}")
    for key, value, name, kinds in (
        ("learning_rate", lr, "lr", (int, float)),
        ("num_train_epochs", epochs, "epochs", (int,)),
    ):
        low, high = LIMITS[name]
        if (
            type(value) not in kinds or not low <= value <= high
        ):  # True is an int, and no number of epochs
            _refuse(
                f"{key} is {_short(value)}; expected {'a number' if float in kinds else 'a whole number'} from {low:g} to {high:g}"
            )
    return Directives(
        frozenset(name for name, on in zip(SWITCHES, switches) if on),
        STRATEGIES[strategy],
        float(lr),
        epochs,
    )


def _fields(data, where, keys):
    """The values of exactly these keys."""
    keys = list(keys)
    if not isinstance(data, dict):
        _refuse(f"{where} is {_short(data)}; expected an object")
    if odd := sorted(set(data) ^ set(keys)):
        _refuse(f"{where} {'lacks' if odd[0] in keys else 'has an unknown key'} {_short(odd[0])}")
    return [data[key] for key in keys]


def _once(pairs):
    if len(dict(pairs)) < len(pairs):
        _refuse("a key stands twice in one object")
    return dict(pairs)


def _refuse(why):
    raise InvalidSelfEdit(why)


def _short(value):
    try:
        return json.dumps(value)[:40]
    except RecursionError:
        return "nested too deep"


# ---- prompts ---------------------------------------------------------------------------------------------------------

# How the policy is asked: what stands above the demonstrations and below them, and the first letters of the self-edit itself.
# 'tiny' is what the tiny model learnt in pretraining; 'paper' asks as the paper does (its appendix on few-shot learning) in our words.
ASKED = """
Above are demonstrations of one unknown rule that turns an input grid into an output grid. A small adapter will be trained on
tasks made of them, and then has to apply the rule to a new input. Choose how to train. Which augmentations keep this rule true?
  use_basic_augmentations: rotations, flips, reflections, translations, transposition
  use_size_augmentations: higher resolution, height or width
  use_chain_augmentations: rotations and flips, followed by a higher resolution
  use_repeat_augmentations: copies of the grid side by side
  use_color_augmentations: other colours in the place of the colours
strategy is train_using_all_tokens or train_using_output_tokens. learning_rate is a number such as 0.0001, num_train_epochs a whole number such as 2.
Answer with one JSON object and nothing else, of this form:
{"data_generation": {"use_basic_augmentations": true or false, "use_size_augmentations": true or false, "use_chain_augmentations": true or false,
"use_repeat_augmentations": true or false, "use_color_augmentations": true or false},
"training": {"strategy": "...", "learning_rate": ..., "num_train_epochs": ...}}
"""
PROMPTS = {
    "tiny": ("", "edit:\n", ""),
    "paper": (
        "Input and output grids, a digit for each colour:\n\n",
        ASKED,
        '{"data_generation": {',
    ),
}
ARROW, END = "\n>\n", "\n\n"  # between input and output, after an output


def shown(pairs):
    """Input and output of each pair as text."""
    return "".join(to_text(p.input) + ARROW + to_text(p.output) + END for p in pairs)


class FewShot:
    """The few-shot task: prompts, self-edits, exams and grades of grid tasks. It knows text and tokens, never training.

    prompt: one of PROMPTS. train_tasks: how many tasks a self-edit's training data holds. palette: the colours that may be permuted.
    vote: 0: one greedy answer; n: n answers in each of VIEWS, each with the demonstrations in another order, the majority wins (section 4's
    evaluation). attempts: how many different answers may be given (ARC's rule and the paper's: 2; without a vote there is only one).
    oracle: {kind of rule: Directives}, "" for any other kind. views: how many views of the winners the M-step learns from; 0: the winners as they are. replay(task, rng) -> a Document of pretraining
    that is learnt again after every second view, or None. most: the largest side of an augmented grid. max_tokens: of a
    training document, longer ones are left out. fixed: the Directives of plain test-time training. seed: of the draws of training tasks.
    """

    edit_tokens = 128  # longest self-edit
    stop = END  # an answer ends with its grid

    def __init__(
        self,
        tokenizer,
        prompt="paper",
        train_tasks=16,
        palette=range(10),
        vote=0,
        attempts=2,
        oracle=None,
        views=0,
        replay=None,
        most=MOST,
        max_tokens=10**9,
        fixed=None,
        seed=0,
    ):
        if prompt not in PROMPTS:
            raise UserError(f"prompt {prompt!r}: expected one of {', '.join(PROMPTS)}")
        self.tokenizer, self.style, self.train_tasks, self.palette, self.vote = (
            tokenizer,
            prompt,
            train_tasks,
            palette,
            vote,
        )
        (
            self.attempts,
            self.best_known,
            self.views,
            self.replay,
            self.most,
            self.max_tokens,
            self.seed,
        ) = (attempts, oracle or {}, views, replay, most, max_tokens, seed)
        self.fixed = fixed or Directives(frozenset(), "outputs", 1e-4, 2)
        self.answer_tokens = 16  # of the longest answer: see make_room()

    def make_room(self, contexts):
        """Let answers be as long as the largest grid of these tasks needs, known outputs of tests apart: those are not to be known."""
        seen = [
            g
            for c in contexts
            for p in (*c.demonstrations, *(Pair(t.input, None) for t in c.tests))
            for g in (p.input, p.output)
            if g
        ]
        self.answer_tokens = 2 + max(
            len(self.tokenizer.encode(to_text(g)))
            for grid in seen
            for g in (grid, TRANSPOSE.apply(grid))
        )  # views turn grids

    # -- self-edits

    def prompt(self, context):
        """The ids after which the policy writes its self-edit."""
        above, below, begun = PROMPTS[self.style]
        return self.tokenizer.prompt(
            above + shown(context.demonstrations) + below
        ) + self.tokenizer.encode(begun)

    def parse(self, context, text):
        """A text of the policy -> SelfEdit; raises InvalidSelfEdit."""
        return self.edit(context, self.directives(text))

    def directives(self, text):
        """A text of the policy -> Directives; raises InvalidSelfEdit."""
        return read_directives(PROMPTS[self.style][2] + text)

    def edit(self, context, directives):
        """Training documents as the directives want them. The same draws of demonstrations whatever they say."""
        groups, rng = (
            directives.augmentations - {"color"},
            np.random.default_rng([self.seed, zlib.crc32(context.id.encode())]),
        )
        tasks = training_tasks(
            context,
            groups,
            "color" in directives.augmentations,
            self.train_tasks,
            rng,
            self.palette,
            self.most,
        )
        documents = tuple(
            d
            for d in (self.document(t, directives.loss) for t in tasks)
            if len(d.ids) <= self.max_tokens
        )
        if not documents:
            raise InvalidSelfEdit(
                "its augmentations make every task longer than the model can read"
            )
        return SelfEdit(documents, directives.lr, directives.epochs)

    def text_of(self, directives):
        """The text with which the policy would say this."""
        return directives.to_json().removeprefix(PROMPTS[self.style][2])

    def document(self, task, loss):
        """A task with its answer as a Document; loss: on 'all' tokens, or on the 'outputs' of demonstrations and test."""
        ids, carries = list(self.tokenizer.bos), [loss == "all"] * len(self.tokenizer.bos)
        for pair in task.demonstrations + task.tests:
            for text, wanted in (
                (to_text(pair.input) + ARROW, loss == "all"),
                (to_text(pair.output) + END, True),
            ):
                new = self.tokenizer.encode(text)
                ids, carries = ids + new, carries + [wanted] * len(new)
        return Document(tuple(ids), tuple(carries))

    def baseline(self, context):
        """The self-edit, as text, of plain test-time training: the same for every task."""
        return self.text_of(self.fixed)

    def oracle(self, context):
        """The self-edit, as text, of someone who knows the kind of rule."""
        return self.text_of(self.best_known.get(context.kind) or self.best_known[""])

    def lessons(self, pairs, seed):
        """What the M-step learns from winners [(context, text), ...]: prompts and the texts that should follow; only the texts carry loss.

        Paper: each prompt as it was. Here: `views` of them in all, the winners in turn, each time in another view (symmetry, colours, order of
        demonstrations), because the few prompts of a round are else learnt by heart, and all that is left is one self-edit for every task. After
        every second view a text of pretraining, if there is one (`replay`): else the weights forget how to learn from self-edits while they learn to write them.
        """
        rng, out = np.random.default_rng(seed), []
        for i in range(self.views or len(pairs)):
            context, text = pairs[i % len(pairs)]
            if self.views:
                context = permute_colours(
                    reorder(transform(context, VIEWS[rng.integers(len(VIEWS))]), rng),
                    rng,
                    self.palette,
                )
            out += [
                self.lesson(context, text),
                *([self.replay(self, rng)] if self.replay and i % 2 else []),
            ]
        return out

    def lesson(self, context, text):
        """A prompt and the self-edit that should follow; only the self-edit carries loss."""
        ids, after = self.prompt(context), self.tokenizer.encode(text) + [self.tokenizer.eot]
        return Document(tuple(ids + after), (False,) * len(ids) + (True,) * len(after))

    def told(self, context, statement, loss=None):
        """All pairs of a task (loss: as in document(), or None of them), and after them what can be said about its rule: a text of pretraining."""
        seen, ask, after = (
            self.document(context, loss or "all"),
            self.tokenizer.encode("rule:\n"),
            self.tokenizer.encode(statement) + [self.tokenizer.eot],
        )
        carries = seen.loss if loss else (False,) * len(seen.ids)
        return Document(
            (*seen.ids, *ask, *after), carries + (False,) * len(ask) + (True,) * len(after)
        )

    def describe(self, context, text):
        """What a self-edit chose, and for which kind of rule; None if it is unreadable."""
        try:
            d = self.directives(text)
        except InvalidSelfEdit:
            return None
        return {
            "kind": context.kind,
            "augmentations": sorted(d.augmentations),
            "loss": d.loss,
            "lr": d.lr,
            "epochs": d.epochs,
        }

    # -- exams

    def looks(self, context):
        """The views in which every test is asked: [(context seen in the view, Augmentation)]"""
        if not self.vote:
            return [(context, IDENTITY)]
        rng = np.random.default_rng([self.seed, zlib.crc32(context.id.encode())])
        # A view never outgrows the grid, but it may turn it: all six fit.
        return [
            (transform(reorder(context, rng) if i else context, view), view)
            for view in VIEWS
            for i in range(self.vote)
        ]

    def exam(self, context, in_context=False):
        """The prompts, each a list of ids: the demonstrations and a test's input, test by test, each in all looks."""
        return [
            [
                *self.tokenizer.bos,
                *self.tokenizer.encode(shown(look.demonstrations)),
                *self.tokenizer.encode(to_text(look.tests[i].input) + ARROW),
            ]
            for i in range(len(context.tests))
            for look, _ in self.looks(context)
        ]

    def predictions(self, context, answers):
        """Answers to the exam -> for each test its different predicted grids, most votes first (ties: the earlier look)."""
        back = [view.inverse for _, view in self.looks(context)]
        out = []
        for i in range(len(context.tests)):
            grids = [from_text(a) for a in answers[i * len(back) : (i + 1) * len(back)]]
            votes = Counter(undo(grid) for grid, undo in zip(grids, back) if grid is not None)
            out.append(
                [grid for grid, _ in votes.most_common()]
            )  # keeps the order of first votes among equals
        return out

    def grade(self, context, answers):
        """[1.0] if every test is right within `attempts` predictions, else [0.0]: the paper's reward."""
        right = all(
            test.output in predicted[: self.attempts]
            for test, predicted in zip(context.tests, self.predictions(context, answers))
        )
        return [float(right)]

    def answers(self, context):
        """The tests with their right outputs as Documents whose outputs alone carry loss: for a reward by likelihood."""
        out = []
        for test, ids in zip(context.tests, self.exam(context)[:: len(self.looks(context))]):
            gold = self.tokenizer.encode(to_text(test.output) + END)
            out.append(Document(tuple(ids + gold), (False,) * len(ids) + (True,) * len(gold)))
        return out
