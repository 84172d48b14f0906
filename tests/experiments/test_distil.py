"""Context distillation: the loss, the teacher, and the arms."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import events, without_seconds

from minseal import InnerConfig, SelfEdit, UserError, adapt
from minseal.experiments.distil import DistilConfig, Lesson, ask_oneself, distillation, with_view
from minseal.experiments.knowledge import people
from minseal.inner import losses, pack
from minseal.lab.lab import EXPERIMENTS, settings_of, walk
from minseal.lab.run import Run
from minseal.lab.table import write_report

INNER = InnerConfig(epochs=3, rank=4)


def lesson(n, generator, hard=False, vocab=48):
    """n random tokens, some without loss, some with half of it, and a teacher."""
    ids = torch.randint(vocab, (n,), generator=generator)
    weights = torch.tensor([0.0, 0.5, 1.0])[torch.randint(3, (n,), generator=generator)]
    weights[-1] = 1.0
    carries = weights[1:] != 0
    teacher = torch.randn(int(carries.sum()), vocab, generator=generator).softmax(-1)
    if hard:
        teacher = F.one_hot(ids[1:][carries], vocab).float()
    return Lesson(tuple(ids.tolist()), tuple(weights.tolist()), teacher=teacher)


def lessons(seed, sizes=((5, 9), (3,), (4, 4, 30)), **how):
    """Three self-edits with documents of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [SelfEdit(tuple(lesson(n, generator, **how) for n in mine)) for mine in sizes]


def slow_loss(model, edit):
    """distillation() of one self-edit: a document, a token, a word of the vocabulary at a time."""
    total, count = 0.0, 0
    for d in edit.documents:
        logits = model(torch.tensor([d.ids]))[0]  # (T, V)
        teacher = iter(d.teacher.double())
        for t, weight in enumerate(d.weights[1:]):
            if weight:
                logs = logits[t] - torch.logsumexp(logits[t], 0)
                total -= weight * sum(p * log for p, log in zip(next(teacher), logs))
                count += 1
    return total / count


def test_loss_and_gradient_equal_a_slow_loop_in_float64(gpt):
    model, edits = gpt.double(), lessons(0)
    for edit in edits:
        for d in edit.documents:
            object.__setattr__(d, "teacher", d.teacher.double())
    with adapt(model, edits, replace(INNER, epochs=1)) as adapters:  # so that B is not 0
        state = adapters.state()
        fast = distillation(model, [pack(list(edit.documents), 20) for edit in edits])  # (K,)
        gradients = torch.autograd.grad(fast.sum(), adapters.parameters())
    for k, edit in enumerate(edits):
        one = {n: t[k : k + 1] if t.dim() else t for n, t in state.items()}
        nothing = SelfEdit(edit.documents, epochs=1, lr=0.0)
        with adapt(model, [nothing], INNER, start=one) as adapters:
            slow = slow_loss(model, edit)
            expected = torch.autograd.grad(slow, adapters.parameters())
        assert fast[k].item() == pytest.approx(slow.item(), rel=1e-6)
        for g, e in zip(gradients, expected):
            torch.testing.assert_close(g[k : k + 1], e, rtol=1e-5, atol=1e-8)
