"""The tiny models in tiny_data/, from nothing."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ..checkpoint import save
from ..config import Settings
from ..files import claim
from ..inner import losses, pack
from ..model import GPT, GPTConfig
from ..sample import sample
from ..selfedit import Document
from ..tasks import people, rules
from ..tasks.fewshot import GRID_END, FewShot
from ..tasks.people import Probes
from ..tokenizer import Tokenizer, train_ranks


@dataclass(frozen=True)
class PretrainConfig(Settings):
    """Pretraining of the tiny GPT on text of the toy world."""

    n_layer: int = 4  # blocks
    n_embd: int = 96  # width
    seed: int = 0  # of the weights and of the text
    tokens: int = 11_000_000  # how many to train on
    batch: int = 24  # rows in a step
    row_tokens: int = 256  # tokens in a row; documents are packed into rows
    lr: float = 3e-3  # AdamW's, after a warm-up of 100 steps; falls linearly to 0
    out: str = "runs/tiny"  # folder for the checkpoint; the one that `run` loads is in tiny_data/

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(n_layer=1, n_embd=1, seed=0, tokens=1, batch=1, row_tokens=1, lr=0)


@dataclass(frozen=True)
class FewShotPretrainConfig(PretrainConfig):
    """Pretraining of the tiny GPT on puzzles with few rules, and on self-edits drawn at random."""

    # Three blocks: to find a colour in a demonstration and what became of it takes two, and one
    # more to be fluent.
    n_layer: int = 3  # blocks
    n_embd: int = 64  # width
    tokens: int = 13_000_000  # how many to train on
    batch: int = 8  # rows in a step; what is learnt here takes steps rather than text
    out: str = "runs/tiny-grids"  # folder for the checkpoint; `run` loads the one in tiny_data/


def pretrain_knowledge(config: PretrainConfig) -> dict[str, float]:
    """Tokenizer and model of the toy world of people, into config.out; returns what it measured."""
    rng = np.random.default_rng(config.seed)
    text = "\n".join(people.pretraining_text(rng) for _ in range(3000))
    tokenizer = Tokenizer(train_ranks(text, 511))
    shape = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=2048, **size_of(config))

    def draw() -> Document:
        ids = tokenizer.begin(people.pretraining_text(rng) + "\n")
        return Document.completion([], [*ids, tokenizer.eot])

    with claim(config.out):
        return pretrain("knowledge", config, shape, tokenizer, draw, people.probes(tokenizer), "\n")


def pretrain_fewshot(config: FewShotPretrainConfig) -> dict[str, float]:
    """The same for the toy world of rules."""
    rng = np.random.default_rng(config.seed)
    text = rules.tokenizer_text(rng)
    tokenizer = Tokenizer(train_ranks(text, 511, rules.PATTERN), rules.PATTERN)
    size = dict(size_of(config), rope_theta=200.0)  # small, as the texts are short
    shape = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=16384, **size)
    task, probes = FewShot(tokenizer, "tiny"), rules.probes(tokenizer)
    draw = lambda: rules.pretraining_document(task, rng)
    with claim(config.out):
        return pretrain("fewshot", config, shape, tokenizer, draw, probes, GRID_END)


def size_of(config: PretrainConfig) -> dict[str, int]:
    """The sizes of a GPTConfig: three heads whatever the width, and an MLP 8/3 as wide."""
    wide = dict(n_embd=config.n_embd, mlp_dim=8 * config.n_embd // 3)
    return dict(n_layer=config.n_layer, n_head=3, n_kv_head=3, **wide)


def pretrain(
    kind: str,
    config: PretrainConfig,
    shape: GPTConfig,
    tokenizer: Tokenizer,
    draw: Callable[[], Document],
    probes: Probes,
    stop: str,
    say: Callable[[str], None] = tqdm.write,
) -> dict[str, float]:
    """Train a GPT of this shape on documents as they are drawn, measure it, and save it."""
    start = time.time()
    model = GPT(shape).init_weights(torch.Generator().manual_seed(config.seed))
    say(f"{model.size() / 1e6:.2f} M parameters, {tokenizer.vocab_size} tokens in the vocabulary")
    how = dict(lr=config.lr, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), **how)
    steps = math.ceil(config.tokens / (config.batch * config.row_tokens))
    rate = lambda step: min((step + 1) / 100, 1 - step / steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step in tqdm(range(1, steps + 1), unit="step", disable=None):
        rows = []
        while len(rows) < config.batch:
            rows += pack([draw() for _ in range(2 * config.batch)], config.row_tokens)
        loss = losses(model, [rows[: config.batch]])[0]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0 or step == steps:
            measured = measure(model, tokenizer, probes, stop)
            told = ", ".join(f"{name} {value:.2f}" for name, value in measured.items())
            say(f"step {step} of {steps}: loss {loss.item():.3f}, {told}")
    minutes = round((time.time() - start) / 60, 1)
    how = ("n_layer", "n_embd", "seed", "tokens")
    options = " ".join(f"--{name.replace('_', '-')} {getattr(config, name)}" for name in how)
    about = {"command": f"minseal pretrain {kind} {options}", "minutes": minutes, **measured}
    save(config.out, model.eval(), tokenizer, {"about": about})
    for name, value in measured.items():
        say(f"{name}: {value:.3f}")
    say(f"{minutes} minutes; checkpoint in {config.out}")
    return measured


def measure(model: GPT, tokenizer: Tokenizer, probes: Probes, stop: str) -> dict[str, float]:
    """Share of probes that are answered as expected, by name; an answer ends before `stop`."""
    out = {}
    for name, items in probes.items():
        prompts = [ids for ids, _ in items]
        texts = sample(model, tokenizer, prompts, max_tokens=24, temperature=0, stop=stop)
        right = [text.strip() == expected for (text,), (_, expected) in zip(texts, items)]
        out[name] = round(float(np.mean(right)), 3)
    return out
