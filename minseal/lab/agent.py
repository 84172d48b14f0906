"""An agent that lives with its edits: told something, it writes a self-edit, learns it, and stays.

    agent = Agent(model, People(tokenizer))
    edit = agent.learn("Mamo Satov grew up in Lyon.")  # edit.questions, edit.kept, edit.why
    agent.undo()

With the text in view it asks itself questions and answers them. These are the notes that it trains
on, and from then on they are in the rehearsal exam that it sits before and after every edit: one
that makes it worse at what it knew is rejected, and leaves the weights as they were, to the bit.

    weights = base + the adapters of all kept edits, merged in their order

So an edit is taken back without a trace, and a folder (agent_folder.py) needs to hold no more.
"""

import copy
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..config import Settings, mix_seed
from ..files import UserError
from ..inner import InnerConfig, adapt, losses
from ..lora import merge_state
from ..model import GPT
from ..sample import sample
from ..selfedit import Document, SelfEdit
from ..tasks.grading import score
from ..tasks.knowledge import Knowledge, Question
from ..tasks.passages import Passage
from ..tasks.people import People

Answers = dict[str, str]  # question -> its answer


@dataclass(frozen=True)
class GentleConfig(InnerConfig):
    """The inner loop for an agent: small steps, since all of them stay."""

    lr: float = 2e-3  # learning rate
    epochs: int = 4  # passes over a self-edit and what is replayed with it


@dataclass(frozen=True)
class AgentConfig(Settings):
    """How an agent learns what it is told."""

    samples: int = 16  # questions that it asks itself about what it is told
    sure: float = 0.8  # an answer counts that is so likely, or stands in the text
    gate: bool = True  # keep an edit only if the rehearsal exam does not get worse
    tolerance: float = 0.25  # by so much the likelihood of older answers may fall
    exam: int = 16  # questions of the exam on older edits, and on what it knew; of more, a sample
    replay: int = 8  # so many of each are trained on again with a new edit
    seed: int = 0  # of all that is drawn
    inner: GentleConfig = GentleConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(samples=1, sure=0, tolerance=0, exam=0, replay=0, seed=0)


@dataclass
class Edit:
    """What the agent was told, and what it made of it."""

    text: str
    questions: Answers = field(default_factory=dict)  # its own questions, with its answers
    kept: bool = False
    why: str = ""
    seconds: float = 0.0


class Agent:
    """A model that changes with what it is told.

    knew: questions of its own from before it was told anything; None: it writes them now.
    """

    def __init__(
        self,
        model: GPT,
        task: Knowledge,
        config: AgentConfig = AgentConfig(),
        knew: Answers | None = None,
    ) -> None:
        self.model, self.task, self.config = model, task, config
        self.first = copy.deepcopy(model)  # as it was before it was told anything
        self.edits: list[Edit] = []
        self.states: list[dict[str, Tensor]] = []  # the adapter of each edit; {}: rejected
        self.knew = self.own_questions() if knew is None else knew

    def learn(self, text: str) -> Edit:
        """Write a self-edit about a text, train on it, and keep it if the exam allows."""
        start, config, rng = time.time(), self.config, np.random.default_rng(self.seed("replay"))
        edit, state = Edit(text, self.own_questions(text)), {}
        old = [{q: a for q, a in some.items() if q not in edit.questions} for some in self.older()]
        exams = [*(pick(s, config.exam, rng) for s in old), edit.questions] if config.gate else []
        before = [self.certainty(answers) for answers in exams]
        documents = [*self.documents(edit.questions), *self.task.baseline(told(text)).documents]
        for some in old:
            documents += self.documents(pick(some, config.replay, rng))
        whole = SelfEdit(tuple(documents))
        with adapt(self.model, [whole], config.inner, self.seed("adapter")) as adapters:
            after = [self.certainty(answers) for answers in exams]
            against = adapters.failed.get(0, "")
            if exams and not edit.questions:
                against = against or "it finds nothing new there that it could ask itself"
            elif exams:
                against = against or self.objection(before, after)
            edit.kept = not against
            state = adapters.state() if edit.kept else {}
        passed = (
            "the new answers are likelier, the older ones not much less" if exams else "no exam"
        )
        edit.why = against or passed
        edit.seconds = round(time.time() - start, 3)
        self.add(edit, state)
        return edit

    def objection(self, before: list[float], after: list[float]) -> str:
        """Why not to keep an edit, or nothing. Both: certainty of (older, known, new) answers."""
        for what, b, a in zip(("answers of older edits", "what it knew"), before, after):
            if b - a > self.config.tolerance:
                return f"{what} became less likely: {b:.2f}, then {a:.2f}"
        gain = f"{before[-1]:.2f}, then {after[-1]:.2f}"
        return "" if after[-1] > before[-1] else f"the new answers became no likelier: {gain}"

    def undo(self) -> Edit | None:
        """Take back the last edit that was kept, and what was rejected since; returns it."""
        if not any(edit.kept for edit in self.edits):
            return None
        edit = self.drop()
        while not edit.kept:
            edit = self.drop()
        self.build()
        return edit

    def add(self, edit: Edit, state: dict[str, Tensor]) -> None:
        """One more edit, and its adapter in the weights."""
        self.edits.append(edit)
        self.states.append(state)
        merge_state(self.model, state)

    def drop(self) -> Edit:
        """One edit less; build() takes it out of the weights."""
        self.states.pop()
        return self.edits.pop()

    def build(self) -> None:
        """The weights, from the base and the kept edits."""
        self.model.load_state_dict(self.first.state_dict())
        for state in self.states:
            merge_state(self.model, state)

    # ---- questions -------------------------------------------------------------------------------

    def own_questions(self, text: str = "") -> Answers:
        """Questions that it asks itself, text in view, with answers that it is sure of.

        The model as it was in the beginning reads: what it learnt since would answer for the text
        where the text corrects it. About what the text does not say it asks, too, but what it makes
        up then is not likely. An answer that it is sure of without the text is no news.
        """
        reader = Knowledge(self.task.tokenizer, "self-qa")
        if isinstance(self.task, People):  # one question a sample, the one form that it has
            ids = reader.tokenizer.begin(f"{text}\nQuestion:" if text else "Question:")
            n, most, stop = self.config.samples if text else 256, 24, "\n"
        else:  # worked examples show an open model how; it writes a list
            ids, n, most, stop = (
                reader.prompt(told(text)),
                2 if text else 16,
                reader.edit_tokens,
                None,
            )
        if len(ids) + most > (reads := self.model.config.block_size):
            raise UserError(f"the text makes {len(ids)} tokens; the model reads {reads - most}")
        how = dict(temperature=0.7, stop=stop, seed=self.seed(f"questions {text}"))
        (texts,) = sample(self.first, reader.tokenizer, [ids], n, most, **how)
        notes = [note for written in texts for note in reader.notes(written)]
        asked = [note for note in notes if isinstance(note, Question) and fits(note, text)]
        pairs = list(dict.fromkeys((note.question, note.answer) for note in asked))
        seen = self.likelihoods(self.first, pairs, text)
        unseen = self.likelihoods(self.first, pairs) if text else [0.0] * len(pairs)
        sure, best = self.config.sure, {}
        for (question, answer), p, without in zip(pairs, seen, unseen):
            if without < sure and (p >= sure or (text and score(text, answer, "contains"))):
                best[question] = max(best.get(question, (0.0, "")), (p, answer))
        return {question: answer for question, (_, answer) in best.items()}

    @torch.no_grad()
    def likelihoods(
        self, model: GPT, pairs: Iterable[tuple[str, str]], text: str = ""
    ) -> list[float]:
        """How likely the answer is, as a whole, of each (question, answer), text in view or not."""
        documents, before = [], f"{text}\n" if text else ""
        for question, answer in pairs:
            ids = self.task.tokenizer.begin(before + self.task.asked(told(text), question))
            documents.append(Document.completion(ids, self.task.tokenizer.encode(f" {answer}\n")))
        if not documents:
            return []
        each = losses(model, [[[d]] for d in documents])  # (N,), means over tokens
        return [p ** sum(d.weights) for p, d in zip(torch.exp(-each).tolist(), documents)]

    def certainty(self, answers: Answers) -> float:
        """The mean likelihood of answers, no text in view; of none 0."""
        return float(np.mean(self.likelihoods(self.model, answers.items()) or [0.0]))

    def older(self) -> tuple[Answers, Answers]:
        """Questions of kept edits, the newest answer counts; and those from before all edits."""
        return {
            q: a for edit in self.edits if edit.kept for q, a in edit.questions.items()
        }, self.knew

    def documents(self, answers: Answers) -> list[Document]:
        """Questions to train on; the answers alone carry loss."""
        exam = tuple((question, (answer,)) for question, answer in answers.items())
        return self.task.right_answers(Passage("own", "", "", exam))

    def seed(self, what: str) -> int:
        return mix_seed(self.config.seed, len(self.edits), what)


def fits(note: Question, text: str) -> bool:
    """Whether the names in a question stand in the text: a misspelt one is of somebody else."""
    names = re.findall(r"(?<!^)\b[A-Z]\w*", note.question)
    return not text or all(re.search(rf"\b{name}\b", text) for name in names)


def told(text: str) -> Passage:
    """A text as a passage without title or exam."""
    return Passage("told", "", text, ())


def pick(answers: Answers, most: int, rng: np.random.Generator) -> Answers:
    """At most so many of them, drawn at random."""
    pairs = list(answers.items())
    return dict(pairs[i] for i in rng.permutation(len(pairs))[:most])
