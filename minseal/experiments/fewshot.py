"""`minseal run fewshot`: self-edits that say how to train on a puzzle's demonstrations."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

from ..lab.lab import CONTROL, SEAL, Lab, experiment
from ..outer import MStepConfig, OuterConfig, Tried
from ..tasks.fewshot import Directives
from .puzzle_report import (
    FIRST,
    LAST,
    conclude,
    describe,
    directive_tables,
    notes,
    plot_directives,
    plot_predictions,
    puzzle_columns,
)
from .puzzles import PuzzleConfig, hold_out, puzzles


@dataclass(frozen=True)
class FewShotConfig(PuzzleConfig):
    """SEAL for few-shot learning: puzzles, and self-edits that say how to train on them.

    The paper's values that are named at --outer and --inner are those of its knowledge half.
    """

    reliability_contexts: int = 6  # contexts of round 1 that are run twice more: is it luck?
    views: int = 2400  # views of winners that the M-step learns; 0: each once, as it is (paper)
    replay: bool = True  # toy world: the M-step learns a pretraining text after every second view
    constants: int = 8  # self-edits that compete for the best constant one, on training puzzles
    control: bool = True  # run the control: same M-step, winners drawn at random
    outer: OuterConfig = OuterConfig(
        rounds=4,
        contexts=40,
        samples=12,
        temperature=0.6,
        select="all-best",
        m_step=MStepConfig(lr=3e-3, epochs=1, batch=8, decay="linear"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(reliability_contexts=0, views=0, constants=1)


@experiment(
    "fewshot",
    FewShotConfig,
    open=puzzles,
    score="share of the puzzles solved",
    describe=describe,
    columns=puzzle_columns,
    conclude=conclude,
    notes=notes,
    blocks=directive_tables,
    pictures=(plot_directives, plot_predictions("in context")),
)
def fewshot(lab: Lab, config: FewShotConfig) -> None:
    """Does a policy learn to look at a puzzle before it says how to train on it?"""
    task, held_out, own = lab.task, hold_out(lab, config), "own self-edits"
    lab.arm("in context", lambda: lab.plain(held_out, in_context=True))
    study = lambda: lab.study_own(held_out)
    first = lab.arm(own, study, over="in context", series=(SEAL, CONTROL), at=0, rival=True)
    history = lab.outer_loop("round", series=SEAL, over=own, follow=True)
    last = lab.run.result(f"round {config.outer.rounds}") if history else first

    # Is the gain in what the policy writes, or in the weights that train on it?
    lab.arm(FIRST, lambda: lab.study(held_out, [t.text for t in first]), over=own)
    lab.reset()
    lab.arm(LAST, lambda: lab.study(held_out, [t.text for t in last]), over=own)

    constant = partial(task.edit, directives=best_constant(lab, history, config.constants))
    lab.arm("best constant", lambda: lab.study(held_out, constant), over=own, rival=True)
    lab.reliability(history, config.reliability_contexts)
    if config.control:
        # One drawn at random from several is one: the control samples no more.
        control = dict(select="random", samples=1, series=CONTROL, over=own, rival=True)
        lab.outer_loop("control", **control)
        lab.reset()
    lab.arm("oracle", lambda: lab.study(held_out, task.oracle), over="in context")


def best_constant(lab: Lab, history: list[Tried], constants: int) -> Directives:
    """The one self-edit that, written for every training puzzle, solves most of them.

    Those that were right most often in the E-steps compete with the oracle's and with plain
    test-time training: all on a first lot of training puzzles, the best four on a second one, too.
    """
    task, train = lab.task, lab.train
    trials = [t for tried in history for _, of_one in tried for t in of_one]
    right = Counter(Directives.from_chosen(t.chose) for t in trials if t.reward == 1)
    often = [directives for directives, _ in right.most_common(constants)]
    candidates = list(dict.fromkeys([*task.best.values(), task.plain, *often]))
    scores: Counter = Counter()
    for number, lot in enumerate((train[:16], train[16:40]), 1):
        if not lot:
            continue
        edits = [partial(task.edit, directives=d) for d in candidates for _ in lot]
        study = lambda: lab.study(lot * len(candidates), edits)
        trials = lab.step(f"constants, lot {number}", study)
        for i, d in enumerate(candidates):
            scores[d] += sum(t.reward for t in trials[i * len(lot) : (i + 1) * len(lot)])
        candidates = sorted(candidates, key=lambda d: -scores[d])[:4]
    return max(candidates, key=lambda d: scores[d])
