"""What every experiment gets without asking, shown on one that is declared here and nowhere else."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from minseal import InnerConfig, Trial, UserError, exam, load, merge_state, try_out
from minseal.commands.cli import main
from minseal.experiments.knowledge import KnowledgeConfig, people
from minseal.files import load_tensors
from minseal.lab.lab import EXPERIMENTS, Lab, experiment, settings_of, summary, walk
from minseal.lab.plots import matrix
from minseal.lab.run import Run
from minseal.lab.table import write_report
from minseal.outer import OuterConfig


@dataclass(frozen=True)
class ContinualConfig(KnowledgeConfig):
    """Knowledge that is to stay."""

    stages: int = 3  # passages that are learnt, one after another
    replay: int = 1  # earlier passages that are learnt again at each stage


@experiment("continual", ContinualConfig, open=people, pictures=[matrix("one after another", "with replay")])  # fmt: skip  # noqa: E501
def continual(lab, config):
    """Passages learnt one after another, for good: what is left of the first when the last is in?"""  # noqa: E501
    passages = lab.held_out[: config.stages]
    lab.arm("no adaptation", lambda: lab.plain(passages))
    for name, replay in (("one after another", 0), ("with replay", config.replay)):
        lab.reset()
        notes = []
        for stage, passage in enumerate(passages, 1):
            here = f"{name}, stage {stage}"
            (text,) = lab.write([passage], draw=here)
            notes.append((passage, text))
            lab.learn_for_good(here, notes[-1 - replay :])
            lab.arm(here, lambda: lab.plain(passages), over="no adaptation", series=name, at=stage)
