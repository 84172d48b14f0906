"""The functions of answer.py as adapters over minseal: for the grader, not for reading along."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minseal import Document, inner
from minseal.lora import LoRAConfig, attach
from minseal.model import positions_in_document


def pack(documents: list[dict], row_tokens: int):
    rows, tensors = [], inner.pack(_documents(documents), row_tokens)
    for row in tensors:
        first = sum(map(len, rows))
        rows.append(list(range(first, first + len(row))))
    ids, docs, _, _ = inner.to_tensors([tensors])  # each (B, T)
    return rows, ids, docs, positions_in_document(docs).masked_fill(docs < 0, 0)


def label(documents: list[dict], rows: list[list[int]]):
    made = _documents(documents)
    return inner.to_tensors([[[made[i] for i in row] for row in rows]])[2:]  # each (B, T)


def losses(logits: Tensor, targets: Tensor, weights: Tensor, K: int) -> Tensor:
    rows = [
        [Document((0, *ids), (0.0, *by))] for ids, by in zip(targets.tolist(), weights.tolist())
    ]
    b = len(rows) // K
    head = nn.Identity()
    head.out_features = logits.shape[-1]
    model = SimpleNamespace(
        wte=SimpleNamespace(weight=logits),
        hidden=lambda ids, docs: F.pad(logits, (0, 0, 0, 1)),  # the last token has no target
        head=head,
    )
    return inner.losses(model, [rows[k * b : (k + 1) * b] for k in range(K)])  # (K,)


def gradient(logits: Tensor, targets: Tensor, weights: Tensor, K: int) -> Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(losses(logits, targets, weights, K).sum(), logits)[0]


def train(documents, row_tokens, E, P, W, A, B, scale, rates):
    edits = [{"documents": documents, "rates": rates}]
    curves, A, B, _ = train_all(edits, row_tokens, E, P, W, A, B, scale)
    return curves[0], A[0], B[0]


def train_all(edits, row_tokens, E, P, W, A, B, scale):
    model = Tiny(E, P, W)
    courses = [
        Course([inner.pack(_documents(e["documents"]), row_tokens)] * len(e["rates"]), e["rates"])
        for e in edits
    ]
    with attach(model, len(edits), LoRAConfig(len(A))) as adapters:
        start = {"blocks.0.up.A": A[None], "blocks.0.up.B": B[None], "scale": torch.tensor(scale)}
        adapters.load(start)
        inner.train(model, adapters, courses, "none", None, inner.losses)
        state = adapters.state()
    failed = [c.failed and f"{c.failed} (step {len(c.losses)})" for c in courses]
    return adapters.losses, state["blocks.0.up.A"], state["blocks.0.up.B"], failed


@dataclass
class Course(inner.Course):
    """minseal's, with a learning rate for each step."""

    def rate(self, step: int, decay: str) -> float:
        return self.lr[step]


class Tiny(nn.Module):
    """The language model of problems 3.5 and 3.6 in the form that minseal.inner expects."""

    def __init__(self, E: Tensor, P: Tensor, W: Tensor) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding.from_pretrained(E), nn.Embedding.from_pretrained(P)
        up = nn.Linear(W.shape[1], len(W), bias=False, dtype=W.dtype)
        up.weight.data.copy_(W)
        self.blocks = nn.ModuleList([nn.ModuleDict({"up": up})])
        self.head, self.n_adapters = nn.Identity(), None
        self.head.out_features = len(W)

    def hidden(self, ids: Tensor, docs: Tensor) -> Tensor:
        positions = positions_in_document(docs).masked_fill(docs < 0, 0)  # (B, T)
        return self.blocks[0]["up"](self.wte(ids) + self.wpe(positions))  # (B, T, V)


def _documents(documents: list[dict]) -> list[Document]:
    return [Document(tuple(d["ids"]), tuple(d["weights"])) for d in documents]
