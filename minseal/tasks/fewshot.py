"""Few-shot learning: puzzles, and self-edits that say how to train on them (section 3.2)."""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from numpy.random import Generator, default_rng

from ..files import UserError, parse_json
from ..selfedit import Document, InvalidSelfEdit, SelfEdit, Task, check_directive
from ..tokenizer import Tokenizer
from . import augment
from .arc import MAX_SIDE, Grid, Pair, Puzzle, from_text, to_text
from .augment import GROUPS, IDENTITY, TRANSPOSE, VIEWS, Augmentation
from .gridview import blocks

PuzzleLoss = Literal["all", "outputs"]  # which tokens of a puzzle carry loss
ARROW, GRID_END = "\n>\n", "\n\n"  # between input and output, after an output

# The keys of the paper's JSON object. Paper: colours are permuted whatever the self-edit says.
# Here: use_color_augmentations switches that, too, because a rule about colours is spoilt by it
# and a rule about places is learnt from it.
SWITCHES = {name: f"use_{name}_augmentations" for name in (*GROUPS, "color")}
STRATEGIES = {"train_using_all_tokens": "all", "train_using_output_tokens": "outputs"}
MAX_VOTE = 100
MAX_LETTERS = 2000  # a longer text is no self-edit; nobody has to parse a megabyte of brackets


@dataclass(frozen=True)
class Directives:
    """What a self-edit for a puzzle says: how the student is to train on it."""

    augmentations: frozenset[str]  # names out of SWITCHES
    loss: PuzzleLoss
    lr: float
    epochs: int

    def to_json(self) -> str:
        """The paper's JSON object; read_directives() reads it."""
        switches = {key: name in self.augmentations for name, key in SWITCHES.items()}
        (strategy,) = (key for key, loss in STRATEGIES.items() if loss == self.loss)
        training = {"strategy": strategy, "learning_rate": self.lr, "num_train_epochs": self.epochs}
        return json.dumps({"data_generation": switches, "training": training})

    def to_chosen(self) -> dict[str, Any]:
        """As values for the log."""
        return {**vars(self), "augmentations": sorted(self.augmentations)}

    @classmethod
    def from_chosen(cls, chose: dict[str, Any]) -> "Directives":
        """What SelfEdit.chose, or the log, holds of them."""
        return cls(frozenset(chose["augmentations"]), chose["loss"], chose["lr"], chose["epochs"])


@dataclass
class FewShot(Task):
    """The few-shot task: prompts, self-edits, exams and grades of puzzles."""

    tokenizer: Tokenizer
    style: str = "paper"  # one of PROMPTS, how the policy is asked
    _: KW_ONLY
    edit_tokens: int = 128  # longest self-edit
    answer_tokens: int = 16  # longest answer: longest_answer() of the puzzles
    stop: str = GRID_END
    train_puzzles: int = 16  # puzzles in a self-edit's training data
    palette: Sequence[int] = range(10)  # the colours that may be permuted
    max_side: int = MAX_SIDE  # of an augmented grid
    max_tokens: int = 10**9  # of a training document; longer ones are left out
    seed: int = 0  # of the draws of training puzzles
    vote: int = 0  # answers in each of VIEWS, the majority wins (section 4); 0: one greedy answer
    attempts: int = 2  # different answers that may be given: ARC's rule and the paper's
    plain: Directives = Directives(frozenset(), "outputs", 1e-4, 2)  # of plain test-time training
    best: dict[str, Directives] = field(default_factory=dict)  # by kind of rule; "": any other
    views: int = 0  # views of the winners that the M-step learns; 0: the winners as they are
    # A document of pretraining, learnt again after every second lesson.
    replay: Callable[["FewShot", Generator], Document] | None = None

    def __post_init__(self) -> None:
        if self.style not in PROMPTS:
            raise UserError(f"prompt {self.style!r}: expected one of {', '.join(PROMPTS)}")
        voters(self.vote)

    def prompt(self, puzzle: Puzzle) -> list[int]:
        """The ids after which the policy writes its self-edit."""
        above, below, opening = PROMPTS[self.style]
        ask = above + pairs_to_text(puzzle.demonstrations) + below
        return [*self.tokenizer.prompt(ask), *self.tokenizer.encode(opening)]

    def parse(self, puzzle: Puzzle, text: str) -> SelfEdit:
        """What the policy wrote -> SelfEdit. Raises InvalidSelfEdit."""
        return self.edit(puzzle, read_directives(PROMPTS[self.style][2] + text))

    def text_of(self, directives: Directives) -> str:
        """The text with which the policy would say this; parse() reads it."""
        return directives.to_json().removeprefix(PROMPTS[self.style][2])

    def edit(self, puzzle: Puzzle, directives: Directives) -> SelfEdit:
        """Training documents, drawn alike whatever is augmented. Raises InvalidSelfEdit."""
        names, luck = directives.augmentations, _luck(puzzle, self.seed)
        how = (names - {"color"}, "color" in names, self.train_puzzles, luck)
        puzzles = augment.draw_training_puzzles(puzzle, *how, self.palette, self.max_side)
        documents = [self.document(new, directives.loss) for new in puzzles]
        documents = [d for d in documents if len(d.ids) <= self.max_tokens]
        if not documents:
            raise InvalidSelfEdit("it makes every puzzle longer than the model can read")
        chose = {"kind": puzzle.kind, **directives.to_chosen()}
        return SelfEdit(tuple(documents), directives.lr, directives.epochs, chose)

    def document(self, puzzle: Puzzle, loss: PuzzleLoss) -> Document:
        """A puzzle with its answers; `outputs`: of demonstrations and tests alike."""
        ids, weight = [*self.tokenizer.bos], float(loss == "all")
        weights = [weight] * len(ids)
        for pair in puzzle.demonstrations + puzzle.tests:
            before = self.tokenizer.encode(to_text(pair.input) + ARROW)
            output = self.tokenizer.encode(to_text(pair.output) + GRID_END)
            ids += before + output
            weights += [weight] * len(before) + [1.0] * len(output)
        return Document(tuple(ids), tuple(weights))

    def baseline(self, puzzle: Puzzle) -> SelfEdit:
        """Plain test-time training: the same for every puzzle."""
        return self.edit(puzzle, self.plain)

    def oracle(self, puzzle: Puzzle) -> SelfEdit:
        """The self-edit of someone who knows the kind of rule."""
        return self.edit(puzzle, self.best.get(puzzle.kind) or self.best[""])

    def lessons(self, winners: list[tuple[Puzzle, str]], seed: int) -> list[Document]:
        """What the M-step learns from all winners [(puzzle, text), ...].

        Paper: each prompt as it was. Here: `views` of them in all, the winners in turn, each time
        in another view (symmetry, colours, order of demonstrations), because the few prompts of a
        round are else learnt by heart: one self-edit for every puzzle. After every second lesson
        a document of pretraining (`replay`): else the weights forget to learn from self-edits.
        """
        rng, out = default_rng(seed), []
        for i in range(self.views or len(winners)):
            puzzle, text = winners[i % len(winners)]
            if self.views:
                view = augment.transform(puzzle, VIEWS[rng.integers(len(VIEWS))])
                puzzle = augment.permute_colours(augment.reorder(view, rng), rng, self.palette)
            out.append(self.lesson(puzzle, text))
            if self.replay and i % 2:
                out.append(self.replay(self, rng))
        return out

    def exam(self, puzzle: Puzzle, in_context: bool = False) -> list[list[int]]:
        """Demonstrations and a test's input, test by test, each in all views; in_context or not."""
        prompts = []
        for i in range(len(puzzle.tests)):
            rng = _luck(puzzle, self.seed)
            for number, symmetry in enumerate(voters(self.vote)):
                again = self.vote and number % self.vote  # demonstrations in another order
                view = augment.reorder(puzzle, rng) if again else puzzle
                view = augment.transform(view, symmetry)  # which never outgrows the grid
                shown = self.tokenizer.begin(pairs_to_text(view.demonstrations))
                asked = self.tokenizer.encode(to_text(view.tests[i].input) + ARROW)
                prompts.append(shown + asked)
        return prompts

    def to_read(self, puzzle: Puzzle) -> dict[str, Any]:
        """The demonstrations as digits, and each test in each view that exam() asks it in."""
        shown = (blocks([pair.input, pair.output], False) for pair in puzzle.demonstrations)
        views = [(test, view.apply) for test in puzzle.tests for view in voters(self.vote)]
        exam = [
            (to_text(turn(t.input)), [to_text(turn(t.output))] if t.output else [])
            for t, turn in views
        ]
        return {"text": "\n\n".join(shown), "exam": exam}

    def grade(self, puzzle: Puzzle, answers: list[str]) -> list[float]:
        """[1.0] if every test is right within `attempts` predictions, else [0.0]: the paper's."""
        return [float(solves(puzzle, answers, self.vote, self.attempts))]

    def right_answers(self, puzzle: Puzzle) -> list[Document]:
        """The tests in their first view with their right outputs, which alone carry loss."""
        questions = self.exam(puzzle)[:: len(voters(self.vote))]
        return [
            Document.completion(ids, self.tokenizer.encode(to_text(test.output) + GRID_END))
            for test, ids in zip(puzzle.tests, questions)
        ]


def voters(vote: int) -> list[Augmentation]:
    """The symmetries in which a test is asked, one for each answer that has a vote. UserError."""
    if type(vote) is not int or not 0 <= vote <= MAX_VOTE:
        raise UserError(f"vote is {vote!r:.20}; expected a whole number from 0 to {MAX_VOTE}")
    return [view for view in VIEWS for _ in range(vote)] or [IDENTITY]


def predictions(puzzle: Puzzle, answers: Sequence[str], vote: int) -> list[list[Grid]]:
    """Answers to the exam -> for each test its different predicted grids, most votes first.

    Ties go to the earlier view; an unreadable answer has no vote. No answers: no predictions.
    """
    views, out = voters(vote), []
    for i in range(len(puzzle.tests)):
        some = answers[i * len(views) : (i + 1) * len(views)]
        grids = [from_text(answer) for answer in some]
        votes = Counter(v.inverse(g) for v, g in zip(views, grids) if g is not None)
        out.append([grid for grid, _ in votes.most_common()])  # keeps the order among equals
    return out


def solves(puzzle: Puzzle, answers: Sequence[str], vote: int, attempts: int) -> bool:
    """Whether every test is right within its first `attempts` predictions."""
    found = predictions(puzzle, answers, vote)
    return all(test.output in grids[:attempts] for test, grids in zip(puzzle.tests, found))


def longest_answer(tokenizer: Tokenizer, puzzles: Sequence[Puzzle]) -> int:
    """Tokens that an answer needs, by the largest grid; what the tests' outputs are is unknown."""
    pairs = [pair for puzzle in puzzles for pair in puzzle.demonstrations]
    grids = [grid for pair in pairs for grid in (pair.input, pair.output)]
    grids += [test.input for puzzle in puzzles for test in puzzle.tests]
    grids += [TRANSPOSE.apply(grid) for grid in grids]  # views turn grids
    return 2 + max(len(tokenizer.encode(to_text(grid))) for grid in grids)


def pairs_to_text(pairs: Iterable[Pair]) -> str:
    """Input and output of each pair."""
    return "".join(to_text(p.input) + ARROW + to_text(p.output) + GRID_END for p in pairs)


def _luck(puzzle: Puzzle, seed: int) -> Generator:
    return default_rng([seed, zlib.crc32(puzzle.id.encode())])


def read_directives(text: str) -> Directives:
    """The paper's JSON object, strictly: every key once, none unknown, numbers within LIMITS.

    Paper: its code samples again until a text parses. Here: an unreadable text raises
    InvalidSelfEdit with the reason and has reward 0, because drawing again would hide how often
    the policy fails.
    """
    if len(text) > MAX_LETTERS:
        raise InvalidSelfEdit(f"{len(text)} letters; expected at most {MAX_LETTERS}")
    try:
        return _directives(parse_json(text, "it", once=True))
    except (UserError, RecursionError) as e:
        raise InvalidSelfEdit(str(e)[:120]) from None


def _directives(data: Any) -> Directives:
    generation, training = _values(data, "the self-edit", ["data_generation", "training"])
    switches = _values(generation, "data_generation", list(SWITCHES.values()))
    keys = ["strategy", "learning_rate", "num_train_epochs"]
    strategy, lr, epochs = _values(training, "training", keys)
    for key, value in zip(SWITCHES.values(), switches):
        if not isinstance(value, bool):
            raise InvalidSelfEdit(f"{key} is {_quote(value)}; expected true or false")
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise InvalidSelfEdit(f"strategy is {_quote(strategy)}; expected {' or '.join(STRATEGIES)}")
    check_directive("lr", lr, called="learning_rate")
    check_directive("epochs", epochs, called="num_train_epochs")
    augmentations = frozenset(name for name, on in zip(SWITCHES, switches) if on)
    return Directives(augmentations, STRATEGIES[strategy], float(lr), epochs)


def _values(data: Any, where: str, keys: list[str]) -> list[Any]:
    """The values of exactly these keys."""
    if not isinstance(data, dict):
        raise InvalidSelfEdit(f"{where} is {_quote(data)}; expected an object")
    if unfit := sorted(data.keys() ^ set(keys)):
        what = "lacks" if unfit[0] in keys else "has an unknown key"
        raise InvalidSelfEdit(f"{where} {what} {_quote(unfit[0])}")
    return [data[key] for key in keys]


def _quote(value: Any) -> str:
    return json.dumps(value)[:40]


# How the policy is asked: what stands above the demonstrations and below them, and the first
# letters of the self-edit itself. 'tiny' is what the tiny model learnt in pretraining; 'paper'
# asks as the paper does (its appendix on few-shot learning) in our words.
QUESTION = """
Above are demonstrations of one unknown rule that turns an input grid into an output grid. \
A small adapter will be trained on
tasks made of them, and then has to apply the rule to a new input. Choose how to train. \
Which augmentations keep this rule true?
  use_basic_augmentations: rotations, flips, reflections, translations, transposition
  use_size_augmentations: higher resolution, height or width
  use_chain_augmentations: rotations and flips, followed by a higher resolution
  use_repeat_augmentations: copies of the grid side by side
  use_color_augmentations: other colours in the place of the colours
strategy is train_using_all_tokens or train_using_output_tokens. \
learning_rate is a number such as 0.0001, num_train_epochs a whole number such as 2.
Answer with one JSON object and nothing else, of this form:
{"data_generation": {"use_basic_augmentations": true or false, \
"use_size_augmentations": true or false, "use_chain_augmentations": true or false,
"use_repeat_augmentations": true or false, "use_color_augmentations": true or false},
"training": {"strategy": "...", "learning_rate": ..., "num_train_epochs": ...}}
"""
ABOVE = "Input and output grids, a digit for each colour:\n\n"
PROMPTS = {"tiny": ("", "edit:\n", ""), "paper": (ABOVE, QUESTION, '{"data_generation": {')}
