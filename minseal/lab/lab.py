"""What every experiment shares: a model, a task, contexts, and a run that every step goes through.

An experiment is a settings class and a function that asks the Lab for arms, in the order in which
the table shall show them:

    @experiment("longer", KnowledgeConfig, open=people)
    def longer(lab, config):
        lab.arm("no adaptation", lambda: lab.plain(lab.held_out))
        ...

That is all: `minseal run longer`, its help, progress, going on after a kill, table, intervals,
plots and results.json come from it.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import from_json, mix_seed
from ..files import UserError, Writer, first_line, write_json
from ..inner import InnerConfig, Loss, OnStep, adapt
from ..lora import merge_state
from ..model import GPT
from ..outer import Edit, Improve, OuterConfig, Trial, Tried, outer_loop, try_out
from ..rewards import REWARDS, Reward, exam
from ..sample import sample
from ..selfedit import Document, InvalidSelfEdit, SelfEdit, Task
from ..terminal import say
from .run import Arm, Run, Step

Edits = list[Edit] | Callable[[Any], SelfEdit]
Results = dict[str, Any]
Draw = int | str | tuple[int | str, ...]  # names the luck of a sampling, whatever else is drawn
SEAL, CONTROL = "SEAL", "control: random winners"  # the series of a ladder
OWN = 99  # the draw of the policy's own self-edits: a number that no round has


@dataclass
class Lab:
    """What arms are made of. An experiment's settings open one: `open(config, run) -> Lab`."""

    policy: GPT
    task: Task
    train: list[Any]  # contexts of the outer loop
    held_out: list[Any]  # contexts on which every arm is measured
    run: Run
    inner: InnerConfig = InnerConfig()
    outer: OuterConfig = OuterConfig()
    seed: int = 0  # of everything drawn
    student: GPT | None = None  # who trains on the self-edits; None: the policy itself

    def __post_init__(self) -> None:
        self.original = {k: v.clone() for k, v in self.policy.state_dict().items()}
        self.measured: set[str] = set()  # names of arms
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.policy.wte.weight.device)
        with torch.no_grad():
            if not self.policy(ids).isfinite().all():
                raise UserError("the model computes NaN or infinite numbers: it is damaged")

    def arm(self, name: str, measure: Callable[[], list[Trial]], **declared: Any) -> list[Trial]:
        """Measure a row of the table, once; declared: the other fields of Arm."""
        arm = Arm(name, **declared)
        if name in self.measured:
            raise ValueError(f"there are two arms of the name {name!r}")
        if arm.over and arm.over not in self.run.steps:
            raise ValueError(f"the arm {name!r} is over {arm.over!r}, which was not measured")
        self.measured.add(name)
        return self.run.step(name, measure, arm)

    def step(self, name: str, compute: Callable[[], Any]) -> Any:
        """Something that is computed once, and no row."""
        return self.run.step(name, compute)

    def reset(self) -> None:
        """The policy as it was in the beginning."""
        self.policy.load_state_dict(self.original)

    def but(self, **others: Any) -> "Lab":
        """The same lab with other fields: a task, a student, a policy (that reset() is not of)."""
        other = copy.copy(self)
        for name, value in others.items():
            setattr(other, name, value)
        return other

    def write(self, contexts: list[Any], draw: Draw = OWN) -> list[str]:
        """The policy's self-edit of each context; another draw gives others."""
        return [text for (text,) in self.write_many(contexts, 1, draw)]

    def write_many(self, contexts: list[Any], n: int, draw: Draw) -> list[list[str]]:
        """n self-edits of each context."""
        prompts = [self.task.prompt(context) for context in contexts]
        seed = mix_seed(self.seed, *(draw if isinstance(draw, tuple) else (draw,)))
        how = dict(temperature=self.outer.temperature, top_p=self.outer.top_p, seed=seed)
        return sample(self.policy, self.task.tokenizer, prompts, n, self.task.edit_tokens, **how)

    def study(
        self,
        contexts: list[Any],
        edits: Edits,
        seed: int | None = None,
        reward: Reward = exam,
        loss: Loss | None = None,
    ) -> list[Trial]:
        """Adapt the student on each context's self-edit, ask, and throw the adapter away.

        edits: one for each context, or a function that makes it, such as task.oracle. loss: as in
        adapt().
        """
        edits = [edits] * len(contexts) if callable(edits) else edits
        seed, limits = self.seed if seed is None else seed, (self.outer.at_once, self.outer.memory)
        pairs = list(zip(contexts, edits, strict=True))
        student = self.student or self.policy
        return try_out(student, self.task, pairs, self.inner, reward, seed, *limits, loss)

    def study_own(self, contexts: list[Any]) -> list[Trial]:
        """The policy's own self-edits, one of each context."""
        return self.study(contexts, self.write(contexts))

    def plain(self, contexts: list[Any], in_context: bool = False) -> list[Trial]:
        """Ask the student without training it."""
        trials = []
        for i in range(0, len(contexts), self.outer.at_once):
            part = contexts[i : i + self.outer.at_once]
            outcomes = exam(self.student or self.policy, self.task, part, in_context=in_context)
            trials += [Trial(c.id, **vars(o)) for c, o in zip(part, outcomes)]
        return trials

    def learn_for_good(
        self,
        name: str,
        pairs: list[tuple[Any, str | SelfEdit]],
        start: dict[str, Tensor] | None = None,
        on_step: OnStep | None = None,
    ) -> dict[str, Tensor]:
        """Train one adapter on the self-edits of all pairs (context, self-edit) and merge it.

        Returns its state. A text that is no self-edit teaches nothing. start, on_step: as in
        adapt(). Raises UserError if training fails.
        """

        def train() -> dict[str, Tensor]:
            documents: list[Document] = []
            for context, edit in pairs:
                try:
                    edit = self.task.parse(context, edit) if isinstance(edit, str) else edit
                except InvalidSelfEdit:
                    continue
                documents += edit.documents
            if not documents:
                return {}
            whole = SelfEdit(tuple(documents))
            with adapt(self.policy, [whole], self.inner, self.seed, start, on_step) as adapters:
                if adapters.failed:
                    raise UserError(f"training: {adapters.failed[0]}; try a lower --inner.lr")
                return adapters.state()

        state = self.step(f"{name}, learnt", train)
        merge_state(self.policy, state)
        return state

    def outer_loop(
        self,
        name: str,
        improve: Improve | None = None,
        reward: Reward | None = None,
        follow: bool = False,
        every: int = 1,
        **declared: Any,
    ) -> list[Tried]:
        """The outer loop; after each round an arm `name r`, the policy's own held-out self-edits.

        every: an arm after every so many rounds, and after the last.

        declared: fields of OuterConfig that are others here (select="random"), and of these arms;
        rival: the last one is. follow: from round 2 on the gain is over the round before.
        """
        ours = {f.name for f in fields(OuterConfig)} & declared.keys()
        outer = replace(self.outer, **{key: declared.pop(key) for key in ours})
        run, rival = self.run.under(name, loop=name), declared.pop("rival", False)

        def measure(r: int, tried: Tried) -> None:
            run.under(str(r), round=r).step("in training", lambda: summarise_round(tried))
            if r % every and r != outer.rounds:
                return
            arm = {"series": name, **declared, "at": r, "rival": rival and r == outer.rounds}
            if follow and r > 1:
                arm["over"] = f"{name} {r - 1}"
            self.arm(f"{name} {r}", lambda: self.study_own(self.held_out), **arm)

        how = dict(student=self.student, reward=reward, improve=improve, step=run.step)
        setting = self.policy, self.task, self.train, outer, self.inner
        return outer_loop(*setting, seed=self.seed, on_round=measure, **how)

    def reliability(self, history: list[Tried], n: int) -> None:
        """The self-edits of n contexts of round 1 under other first weights: is the reward luck?

        The policy must be reset() to what it was in round 1.
        """
        first = history[0][:n] if history else []
        if not first:
            return
        contexts, trials = zip(*((c, t) for c, of_one in first for t in of_one))
        texts, reward = [t.text for t in trials], REWARDS[self.outer.reward]
        runs = [[t.reward for t in trials]]
        for i in (1, 2):
            study = partial(self.study, list(contexts), texts, self.seed + i, reward)
            runs.append([t.reward for t in self.step(f"reliability, run {i}", study)])
        shape = len(first), len(first[0][1]), len(runs)  # (contexts, self-edits, runs)
        self.step("reliability", lambda: np.array(runs).T.reshape(shape).tolist())


def summarise_round(tried: Tried) -> dict[str, Any]:
    """What one E-step saw: mean reward, invalid self-edits, contexts that teach nothing."""
    trials = [t for _, of_one in tried for t in of_one]
    return {
        "reward": float(np.mean([t.reward for t in trials])),
        "self_edits": len(trials),
        "invalid": sum(t.invalid is not None for t in trials),
        "contexts": len(tried),
        "alike": sum(len({t.reward for t in of_one}) == 1 for _, of_one in tried),
    }


def restore_policy(model: GPT, folder: str) -> None:
    """Turn the model into the policy that the outer loop of a run folder ended with."""
    run = Run(folder)
    made, outer = model_of(run), run.config.get("outer")
    rounds = outer.get("rounds") if isinstance(outer, dict) else None
    loop = next((s.labels["loop"] for s in run.steps.values() if "loop" in s.labels), "")
    if type(rounds) is not int or f"{loop} {rounds}" not in run.steps:
        told = f"{folder}: expected a run with a finished outer loop of {rounds or 'some'} rounds"
        raise UserError(f"{told}, such as one of `minseal run knowledge`")
    states = []
    for name in (f"{loop} {r} M-step" for r in range(1, rounds + 1)):
        if name not in run.steps:
            raise UserError(f"{folder} is damaged: there is no {name!r} in its events.jsonl")
        states.append(run.result(name))
    try:
        for state in states:
            merge_state(model, state)
    except (ValueError, LookupError, RuntimeError, TypeError, AttributeError) as e:
        told = f"{folder} holds the policy of another model ({made})"
        raise UserError(f"{told}: {first_line(e)}") from None


def model_of(run: Run) -> str:
    """The model that a run began with."""
    if not isinstance(made := run.config.get("model"), str):
        raise UserError(f"{run.folder / 'config.json'}: model is {made!r:.60}; expected its name")
    return made


def read_run(folder: str) -> tuple[Run, "Experiment"]:
    """The run in a folder, to look at, and its experiment; its settings are checked."""
    run = Run(folder)
    experiment = EXPERIMENTS.get(str(run.config.pop("kind", None)))
    if experiment is None:
        raise UserError(f"{folder} is no run of an experiment here: {', '.join(EXPERIMENTS)}")
    config = from_json(experiment.settings, run.config, run.folder / "config.json")
    run.config = settings_of(experiment, config)
    return run, experiment


def attempt(results: Results, what: str, compute: Callable[[], Any], otherwise: Any = None) -> Any:
    """compute(); where what somebody did to the log makes that fail, a line in "left out"."""
    try:
        return compute()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        told = str(e) if isinstance(e, UserError) else f"{type(e).__name__} {first_line(e)}"
        results["left out"].append(f"{what}: {told}")
        return otherwise


@dataclass(frozen=True)
class Experiment:
    """What `minseal run NAME` does, and what its report shows beyond what every report shows."""

    name: str
    settings: type
    walk: Callable[[Lab, Any], None]
    open: Callable[[Any, Run], Lab]
    score: str = "share of the exam"  # what the score is
    places: str = "round"  # what the places of a series are
    # Further keys of an arm's row in results.json, and of results.json itself.
    describe: Callable[[Run, Step], Results] = lambda run, step: {}
    conclude: Callable[[Run, Results], Results] = lambda run, results: {}
    # Further columns of the table: their headers, and a function from a row to its cells.
    columns: Callable[[Results], tuple[list[str], Callable]] = lambda results: ([], lambda row: [])
    # Sentences below the table, and whole blocks of text below those.
    notes: Callable[[Run, Results], list[str]] = lambda run, results: []
    blocks: Callable[[Run, Results], list[str]] = lambda run, results: []
    pictures: tuple[Callable, ...] = ()  # (run, results, save): see lab/plots.py


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(
    name: str, settings: type, open: Callable[[Any, Run], Lab], **shown: Any
) -> Callable:
    """Declare the function below as an experiment; shown: the other fields of Experiment."""

    def declare(walk: Callable[[Lab, Any], None]) -> Callable[[Lab, Any], None]:
        EXPERIMENTS[name] = Experiment(name, settings, walk, open, **shown)
        return walk

    return declare


def walk(experiment: Experiment, config: Any, run: Run, say: Callable[[str], None] = say) -> None:
    """Go through an experiment, every step by way of `run`."""
    lab = experiment.open(config, run)
    contexts = f"{len(lab.train)} contexts to train on, {len(lab.held_out)} held out"
    say(f"{lab.policy.size() / 1e6:.2f} M parameters, {contexts}")
    used = max(1000, lab.outer.rounds * lab.outer.contexts)  # of a large file only the first are
    some = [*lab.held_out, *lab.train[:used]]
    run.at_first["contexts.json"] = write_contexts(lab.task, some)
    experiment.walk(lab, config)


def write_contexts(task: Task, contexts: list[Any]) -> Writer:
    """{id: what a context says}, for the report."""

    def write(path: Path) -> None:
        found = {context.id: task.to_read(context) for context in contexts}
        write_json({id: told for id, told in found.items() if told is not None})(path)

    return write


def settings_of(experiment: Experiment, config: Any) -> dict[str, Any]:
    """What a run folder is known by."""
    return {"kind": experiment.name, **asdict(config)}
