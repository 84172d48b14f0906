"""`minseal run agent`: told one thing after another, what is left of the first? Edits that stay."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import ModelConfig, mix_seed
from ..lab.agent import Agent, AgentConfig
from ..lab.lab import Lab, experiment
from ..lab.plots import COLOURS
from ..lab.run import Run, Step
from ..open_models.load import load
from ..outer import Trial
from ..tasks.people import People
from .streams import AGES, EVERY, as_trial, draw_stream, last_quarter, live, over_time

COLUMNS = ("1 ago", "8 ago", "corrected", "general", "kept")


@dataclass(frozen=True)
class AgentRunConfig(ModelConfig):
    """An agent that is told things, and asked 1, 8 and 32 interactions later: what stays?"""

    model: str = "tiny_data/knowledge"  # a folder of a model of the toy world
    seed: int = 0  # of the people, of sampling, of the adapters' first weights
    streams: int = 8  # lives, each with people of its own
    interactions: int = 64  # of a life: every fourth tells something, the others ask
    window: int = 1  # texts in view of an agent without edits, the newest; it misreads two
    agent: AgentConfig = AgentConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(seed=0, streams=1, interactions=48, window=1)  # 32 ago, in the last quarter


def open_streams(config: AgentRunConfig, run: Run) -> Lab:
    """The model, and the lives."""
    policy, tokenizer = load(config.model, config.device, config.dtype)
    n, numbers = config.interactions // EVERY, range(1, config.streams + 1)
    lives = [draw_stream(f"stream {i}", n, mix_seed(config.seed, i)) for i in numbers]
    return Lab(policy, People(tokenizer), [], lives, run, config.agent.inner, seed=config.seed)


def describe(run: Run, step: Step) -> dict[str, Any]:
    """Means over the streams: by age after each thing told, general knowledge, edits kept."""
    lives = [t.chose for t in step.trials]
    last = np.mean([last_quarter(life["ages"]) for life in lives], 0).tolist()
    more = {k: float(np.mean([life[k] for life in lives])) for k in ("corrected", "kept")}
    general = np.mean([life["general"] for life in lives], 0).tolist()
    more |= {"general": general[-1], "general by quarter": general, "over time": over_time(lives)}
    more["seconds"] = sum(t.seconds for t in step.trials)  # of the lives, steps of their own
    return dict(zip((f"{age} ago" for age in AGES), last)) | more


def columns(results: dict[str, Any]) -> tuple[list[str], Callable]:
    return list(COLUMNS), lambda a: [*(f"{a[c]:.2f}" for c in COLUMNS[:-1]), f"{a['kept']:.1f}"]


def plot_ages(run: Run, results: dict[str, Any], save: Callable) -> None:
    """ages.png: right answers over the interactions, a panel an age, a line an arm."""

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(AGES), sharey=True)
        for axes, (age, back) in zip(panels, AGES.items()):
            for a, colour in zip(results["arms"], COLOURS):
                y = np.array(a["over time"][age], float)
                y = np.convolve(y, np.ones(4) / 4, "valid")
                x = EVERY * (np.arange(len(y)) + back + 4)
                axes.plot(x, y, color=colour, label=a["arm"])
            axes.set(title=f"told {age} ago", xlabel="interactions", ylim=(0, 1.02))
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("right answers")
        panels[0].legend(frameon=False, fontsize=7, loc="center left")

    save("ages.png", draw, (9, 3.2))


@experiment(
    "agent",
    AgentRunConfig,
    open=open_streams,
    score="right answers on what was told 32 interactions ago, in the last quarter",
    describe=describe,
    columns=columns,
    pictures=(plot_ages,),
)
def agent(lab: Lab, config: AgentRunConfig) -> None:
    """One thing told after another, each learnt for good: does the agent keep what it learnt?"""
    settings = replace(config.agent, seed=config.seed)
    knew = lab.step("what it knew", lambda: Agent(lab.policy, lab.task, settings).knew)

    def measure(name: str, window: int = 0, **settings_here: Any) -> list[Trial]:
        trials = []
        for stream in lab.held_out:

            def compute() -> dict[str, Any]:
                lab.reset()
                some = replace(settings, **settings_here, seed=mix_seed(config.seed, stream.id))
                agent = Agent(lab.policy, lab.task, some, knew=knew) if settings_here else None
                return live(lab, stream, agent, window)

            life = lab.step(f"{name}, {stream.id}", compute)
            lab.reset()
            trials.append(as_trial(stream, life))
        return trials

    def arm(name: str, over: str = "never edits", **how: Any) -> None:
        declared = {k: how.pop(k) for k in ("series", "rival") if k in how}
        trials = measure(name, **how)
        lab.arm(name, lambda: trials, over=over, **declared)

    arm("never edits", over="")
    arm("context window", window=config.window, rival=True)
    arm("edits always", gate=False, replay=0, rival=True)
    arm("edits always, replay", gate=False, rival=True)
    arm("edits that help", gate=True, replay=0, series="agent", rival=True)
    arm("edits that help, replay", "edits always", gate=True, series="agent")
