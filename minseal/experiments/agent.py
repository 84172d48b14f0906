"""`minseal run agent`: told one thing after another, what is left of the first? Edits that stay."""

from dataclasses import dataclass, replace
from typing import Any

from ..config import ModelConfig, mix_seed
from ..files import UserError
from ..lab.agent import Agent, AgentConfig
from ..lab.lab import Lab, experiment
from ..lab.run import Run
from ..open_models.load import load
from ..tasks.people import People
from .agent_report import columns, describe, plot_ages
from .streams import EVERY, as_trial, draw_stream, live


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
        if self.interactions % (4 * EVERY):
            raise UserError(
                f"--interactions {self.interactions}: expected a multiple of {4 * EVERY}"
            )
        if not self.agent.gate or self.agent.seed:
            raise UserError(
                "the arms set --agent.gate, and --seed sets --agent.seed: leave them out"
            )


def open_streams(config: AgentRunConfig, run: Run) -> Lab:
    """The model, and the lives."""
    policy, tokenizer = load(config.model, config.device, config.dtype)
    n, numbers = config.interactions // EVERY, range(1, config.streams + 1)
    lives = [draw_stream(f"stream {i}", n, mix_seed(config.seed, i)) for i in numbers]
    return Lab(policy, People(tokenizer), [], lives, run, config.agent.inner, seed=config.seed)


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

    def arm(
        name: str, over: str = "never edits", edits: dict[str, Any] | None = None, window: int = 0,
        **declared: Any,
    ) -> None:  # fmt: skip
        lives = []
        for stream in lab.held_out:

            def compute() -> dict[str, Any]:
                lab.reset()
                agent = None
                if edits is not None:
                    mine = replace(settings, **edits, seed=mix_seed(config.seed, stream.id))
                    agent = Agent(lab.policy, lab.task, mine, knew=knew)
                return live(lab, stream, agent, window)

            lives.append(lab.step(f"{name}, {stream.id}", compute))
            lab.reset()
        trials = list(map(as_trial, lab.held_out, lives))
        lab.arm(name, lambda: trials, over=over, **declared)

    always, gated = dict(gate=False), dict(gate=True)
    arm("never edits", over="")
    arm("context window", window=config.window, rival=True)
    arm("edits always", edits=always | dict(replay=0), rival=True)
    arm("edits always, replay", edits=always, rival=True)
    arm("edits that help", edits=gated | dict(replay=0), series="agent", rival=True)
    arm("edits that help, replay", "edits always", edits=gated, series="agent")
