"""The tiny models in tiny_data/, from nothing."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .errors import UserError, at_least
from .inner import losses, pack
from .model import GPT, GPTConfig
from .sample import sample
from .selfedit import Document
from .tasks import grids, world
from .tasks.fewshot import FewShot
from .tokenizer import Tokenizer, train_ranks
from .weights import save


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining of the tiny GPT on text of the toy world."""

    seed: int = 0  # of the weights and of the text
    tokens: int = 11_000_000  # how many to train on
    batch: int = 24  # rows in a step
    row_tokens: int = 256  # tokens in a row; documents are packed into rows
    lr: float = 3e-3  # AdamW's, after a warm-up of 100 steps; falls linearly to 0
    out: str = "runs/tiny"  # folder for the checkpoint; the one that `run` loads is in tiny_data/

    def __post_init__(self):
        at_least(self, seed=0, tokens=1, batch=1, row_tokens=1, lr=0)


@dataclass(frozen=True)
class FewShotPretrainConfig(PretrainConfig):
    """Pretraining of the tiny GPT on grid tasks with the few rules of pretraining, and on self-edits drawn at random."""

    tokens: int = 13_000_000  # how many to train on
    batch: int = 8  # rows in a step; few, because what is learnt here takes steps rather than text
    out: str = (
        "runs/tiny-grids"  # folder for the checkpoint; the one that `run` loads is in tiny_data/
    )


def pretrain_knowledge(config, say=print):
    """Train tokenizer and model of the toy world of people, measure, and write the checkpoint to config.out; returns what it measured."""
    rng = np.random.default_rng(config.seed)
    tokenizer = Tokenizer(train_ranks("\n".join(world.document(rng) for _ in range(3000)), 511))
    shape = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        block_size=2048,
        n_embd=96,
        n_head=3,
        n_kv_head=3,
        mlp_dim=256,
    )
    return pretrain("knowledge", config, shape, tokenizer, documents(tokenizer, rng), measure, say)


def pretrain_fewshot(config, say=print):
    """The same for the toy world of grid rules."""
    rng = np.random.default_rng(config.seed)
    tokenizer = Tokenizer(train_ranks(grids.sample_text(rng), 511, grids.PATTERN), grids.PATTERN)
    # Three blocks: to find a colour in a demonstration and what became of it takes two, and one more to be fluent. theta is small, as the texts are short.
    shape = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        block_size=16384,
        n_layer=3,
        n_embd=64,
        n_head=3,
        n_kv_head=3,
        mlp_dim=170,
        rope_theta=200.0,
    )
    task = FewShot(tokenizer, "tiny")
    text = iter(lambda: grids.document(task, rng), None)
    return pretrain("fewshot", config, shape, tokenizer, text, measure_grids, say)


def pretrain(kind, config, shape, tokenizer, text, measure, say):
    """Train a GPT of this shape on the documents that `text` yields."""
    start = time.time()
    try:
        Path(config.out).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make the folder {config.out}: {e}") from None
    model = GPT(shape).init_weights(torch.Generator().manual_seed(config.seed))
    say(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {tokenizer.vocab_size} tokens in the vocabulary"
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.1
    )
    steps = math.ceil(config.tokens / (config.batch * config.row_tokens))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 100, 1 - s / steps)
    )
    bar = tqdm(range(steps), unit="step")
    for step in bar:
        rows = []
        while len(rows) < config.batch:
            rows += pack([next(text) for _ in range(2 * config.batch)], config.row_tokens)
        loss = losses(model, [rows[: config.batch]])[0]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % max(1, steps // 10) == 0:
            bar.write(
                f"step {step + 1}: "
                + ", ".join(f"{k} {v:.2f}" for k, v in measure(model, tokenizer).items())
            )
    measured = measure(model, tokenizer)
    minutes = (time.time() - start) / 60
    for name, value in measured.items():
        say(f"{name}: {value:.3f}")
    save(
        config.out,
        model.eval(),
        tokenizer,
        {
            "about": {
                "command": f"minseal pretrain {kind} --seed {config.seed} --tokens {config.tokens}",
                "minutes": round(minutes, 1),
                **measured,
            }
        },
    )
    say(f"{minutes:.1f} minutes; checkpoint in {Path(config.out)}")
    return measured


def documents(tokenizer, rng):
    while True:
        yield Document.of(tokenizer, world.document(rng) + "\n", end=True)


def measure(model, tokenizer, n=50, seed=1):
    """Share of right answers: read off a passage about a stranger, general knowledge, strangers and known people closed book."""
    rng = np.random.default_rng(seed)
    strangers = world.people(n, rng, unseen=True)
    general = [
        (a.general_question.format(v=v), t)
        for a in world.ATTRIBUTES.values()
        for v, t in a.implied.items()
    ]
    return {
        "reading": _right(
            model,
            tokenizer,
            [(world.passage(p, rng) + "\n", *qa) for p in strangers for qa in world.exam(p)],
        ),
        "general knowledge": _right(model, tokenizer, [("", *qa) for qa in general]),
        "known people": _right(
            model, tokenizer, [("", *qa) for p in world.KNOWN[:n] for qa in world.exam(p)]
        ),
        "strangers, closed book": _right(
            model, tokenizer, [("", *qa) for p in strangers for qa in world.exam(p)]
        ),
    }


def _right(model, tokenizer, items):
    prompts = [
        tokenizer.encode(before + world.question_line(question)) for before, question, _ in items
    ]
    texts = sample(model, tokenizer, prompts, max_tokens=8, temperature=0, stop="\n")
    return round(
        float(np.mean([text.strip() == answer for (text,), (_, _, answer) in zip(texts, items)])), 3
    )


def measure_grids(model, tokenizer, n=100, seed=1):
    """Share of tasks answered right in context, by kind of rule: rules of pretraining, and others, which are not to be known, but whose kind is."""
    rng, task = np.random.default_rng(seed), FewShot(tokenizer, "tiny")
    known = [grids.seen_task(rng, 4) for _ in range(2 * n)]
    task.make_room(known)
    out = {}
    for name, tasks in (
        ("rules of pretraining", known),
        ("other rules", grids.toy_tasks(2 * n, seed)),
    ):
        texts = sample(
            model,
            tokenizer,
            [p for t in tasks for p in task.exam(t)],
            max_tokens=task.answer_tokens,
            temperature=0,
            stop=task.stop,
        )
        right = [task.grade(t, [text.strip()])[0] for t, (text,) in zip(tasks, texts)]
        out |= {
            f"{name}, {kind}": round(
                float(np.mean([r for r, t in zip(right, tasks) if t.kind == kind])), 3
            )
            for kind in grids.KINDS
        }
    told = sample(
        model,
        tokenizer,
        [list(task.told(t, "").ids[:-1]) for t in tasks],
        max_tokens=16,
        temperature=0,
    )
    return out | {
        "kind of other rules": round(
            float(np.mean([text == grids.statement(t.kind) for t, (text,) in zip(tasks, told)])), 3
        )
    }
