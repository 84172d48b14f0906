"""`minseal run ttt`: test-time training alone. What is temporary, and what stays?"""

from dataclasses import dataclass

from ..checkpoint import parameters_of
from ..files import UserError
from ..inner import adapt
from ..lab.lab import Lab, experiment, restore_policy
from ..outer import Trial
from ..tasks.fewshot import SWITCHES
from .puzzle_report import conclude, describe, notes, plot_predictions, puzzle_columns
from .puzzles import PuzzleConfig, hold_out, puzzles


@dataclass(frozen=True)
class TTTConfig(PuzzleConfig):
    """Test-time training alone: one self-edit for every puzzle.

    Its adapter is thrown away after the puzzle, or kept.
    """

    augmentations: tuple[str, ...] = ("basic",)  # of basic, size, chain, repeat, color, or none
    policy: str = ""  # a folder of `minseal run fewshot` on this model: its policy is measured, too

    def __post_init__(self) -> None:
        if unknown := set(self.augmentations) - set(SWITCHES):
            words = ", ".join(SWITCHES)
            raise UserError(f"--augmentations {min(unknown)!r}; expected some of {words}")
        super().__post_init__()


@experiment(
    "ttt",
    TTTConfig,
    open=puzzles,
    score="share of the puzzles solved",
    describe=describe,
    columns=puzzle_columns,
    conclude=conclude,
    notes=notes,
    pictures=(plot_predictions("before", "adapter on"),),
)
def ttt(lab: Lab, config: TTTConfig) -> None:
    """What test-time training leaves behind: nothing if its adapter is thrown away."""
    if config.policy:
        restore_policy(lab.policy, config.policy)  # refuse another model's before anything is spent
        lab.reset()
    task, held_out = lab.task, hold_out(lab, config)

    def ask() -> list[Trial]:
        return lab.plain(held_out, in_context=True)

    lab.arm("before", ask)
    lab.arm("adapter on", lambda: lab.study(held_out, task.baseline), over="before")
    lab.arm("adapter thrown away", ask, over="before")
    if config.policy:
        restore_policy(lab.policy, config.policy)
        lab.arm("policy, before", ask, over="before")
        lab.arm("policy, adapter on", lambda: lab.study_own(held_out), over="before")
        lab.arm("policy, adapter thrown away", ask, over="before")
        lab.reset()

    def one_after_another() -> list[Trial]:
        trials = []
        for puzzle in held_out:
            with adapt(lab.policy, [task.baseline(puzzle)], lab.inner, lab.seed) as adapters:
                adapters.merge()
            trials += lab.plain([puzzle])
        return trials

    def kept_weights() -> dict:
        lab.reset()
        one_after_another()
        return parameters_of(lab.policy)

    def asked_at_once() -> list[Trial]:
        trials = one_after_another()
        lab.step("kept weights", lambda: parameters_of(lab.policy))
        return trials

    lab.arm("kept, asked at once", asked_at_once, over="before")
    kept = lab.step("kept weights", kept_weights)  # read back, or made again
    lab.policy.load_state_dict(kept, strict=False)  # a tied head is the embedding
    lab.arm("kept, asked at the end", ask, over="before")
