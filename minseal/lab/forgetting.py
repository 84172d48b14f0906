"""What a model of the toy world forgets as it learns: how that is measured, and held back."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import UserError
from ..inner import InnerConfig, Loss, Rows, adapt, losses, pack, to_tensors
from ..lora import LoRALinear
from ..model import GPT
from ..sample import sample
from ..selfedit import Document, SelfEdit
from ..tasks.people import People, pretraining_text, probes


class Before:
    """A model as it was: its weights, and what it expected of texts like those of pretraining.

    texts: how many of them; questions: at least so many of those on general knowledge are asked.
    """

    def __init__(self, model: GPT, task: People, texts: int = 8, questions: int = 44) -> None:
        self.model, self.task = model, task
        self.weights = {name: w.clone() for name, w in model.state_dict().items()}
        rng, tokenizer = np.random.default_rng(2509_04259), task.tokenizer
        documents = [tokenizer.encode(pretraining_text(rng)) for _ in range(texts)]
        rows = pack([Document.completion((), ids, "all") for ids in documents], 256)
        ids, docs, targets, _ = to_tensors([rows])
        device = model.wte.weight.device
        self.ids, self.docs, self.carries = ids.to(device), docs.to(device), targets >= 0
        asked = probes(tokenizer)["general knowledge"]
        self.questions = [asked[i] for i in range(0, len(asked), max(1, len(asked) // questions))]
        self.expected = self._log_probabilities()

    @torch.no_grad()
    def _log_probabilities(self) -> Tensor:
        hidden = self.model.hidden(self.ids, self.docs)[self.carries]  # (N, C)
        return F.log_softmax(self.model.head(hidden).float(), dim=-1)  # (N, V)

    def kl(self) -> float:
        """KL(before || now) a token of the texts, in nats (RL's Razor, arXiv 2509.04259)."""
        now = self._log_probabilities()
        return (self.expected.exp() * (self.expected - now)).sum(-1).mean().item()

    def general_knowledge(self) -> float:
        """The share of the questions that is still answered right."""
        prompts, answers = zip(*self.questions)
        stop, how = self.task.stop, dict(max_tokens=self.task.answer_tokens, temperature=0)
        texts = sample(self.model, self.task.tokenizer, list(prompts), stop=stop, **how)
        return float(np.mean([text.strip() == right for (text,), right in zip(texts, answers)]))

    def own_samples(self, n: int, seed: int, tokens: int = 40) -> list[Document]:
        """What the model now asks and answers with nothing in view: whole lines of n texts."""
        tokenizer = self.task.tokenizer
        start = tokenizer.begin("Question:")
        (texts,) = sample(self.model, tokenizer, [start], n, tokens, seed=seed) if n else [[]]
        texts = [text[: text.rfind("\n") + 1] or text for text in texts]
        return [Document.completion(start, tokenizer.encode(text), "all") for text in texts]

    def pull(self, strength: float) -> Loss:
        """Next-token loss + strength * |W - W before|^2, over the layers of one adapter."""

        def loss(model: GPT, rows: list[Rows]) -> Tensor:
            far = sum(
                (layer.base.weight + layer.delta(0) - self.weights[f"{name}.weight"]).pow(2).sum()
                for name, layer in model.named_modules()
                if isinstance(layer, LoRALinear)
            )
            return losses(model, rows) + strength * far  # (1,)

        return loss


@dataclass(frozen=True)
class Way:
    """How a model that has learnt before learns one more self-edit, for good."""

    rate: float = 1.0  # times the learning rate
    merge: float = 1.0  # how much of the adapter is merged
    notes: bool = False  # the documents of earlier self-edits are replayed
    samples: int = 0  # so many texts are replayed that the model writes now, of what it still knows
    pull: float = 0.0  # strength of L2 towards the model before all edits

    def learn(
        self,
        model: GPT,
        edit: SelfEdit,
        earlier: list[Document],
        inner: InnerConfig,
        before: Before,
        seed: int,
    ) -> None:
        """Train an adapter on the self-edit, with what is replayed beside it, and merge it.

        earlier: the documents of all self-edits before. Raises UserError if training fails.
        """
        inner = replace(inner, lr=self.rate * inner.lr)
        documents = [*edit.documents, *(earlier if self.notes else ())]
        documents += before.own_samples(self.samples, seed)
        loss = before.pull(self.pull) if self.pull else None
        with adapt(model, [SelfEdit(tuple(documents))], inner, seed, loss=loss) as adapters:
            if adapters.failed:
                raise UserError(f"training: {adapters.failed[0]}; try a lower --inner.lr")
            state = adapters.state()
            adapters.load({**state, "scale": self.merge * state["scale"]})
            adapters.merge()


PULL = 0.01  # found on other passages
WAYS = {
    "sequential": Way(),
    "a third of the rate": Way(rate=1 / 3),
    "half merged": Way(merge=0.5),
    "L2 to the base": Way(pull=PULL),
    "replay: own samples": Way(samples=8),
    "replay: notes": Way(notes=True),
    "replay: notes, L2": Way(notes=True, pull=PULL),
}
