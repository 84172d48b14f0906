"""What is fuzzed: everything that reads a text or a file which somebody else wrote.

A Target has valid examples, a way to damage them, and a function that reads the damaged one: it
may succeed, or raise UserError or InvalidSelfEdit, and nothing else.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from fuzzing.mutations import mutate_bytes, mutate_file, mutate_json, mutate_jsonl, mutate_text

from minseal import GPT, GPTConfig, Tokenizer
from minseal.open_models.families import FAMILIES
from minseal.tasks.passages import Passage
from minseal.tasks.people import pretraining_text, toy_passages
from minseal.tasks.rules import toy_puzzles
from minseal.tokenizer import train_ranks

Mutate = Callable[[Random, Any, tuple, list], Any]  # (luck, an example, words, all examples)


@dataclass
class Target:
    """One thing that reads. path: of a reader of files, where the damaged file is put."""

    name: str
    examples: list  # texts; of a reader of files bytes
    read: Callable  # of a parser: text -> anything; of a reader of files: () -> anything
    share: float = 1.0  # how much of the budget, beside the others of its kind
    words: tuple = ()  # of the format, to put in
    mutate: Mutate = mutate_text
    path: Path | None = None
    seconds: float = 2.0  # of processor time that one input may take

    def input(self, seed: int, number: int) -> Any:
        """Input number `number` under this seed; 0, 1, ... are the examples as they are."""
        if number < len(self.examples):
            return self.examples[number]
        rng = Random(f"{seed}/{self.name}/{number}")
        return self.mutate(rng, rng.choice(self.examples), self.words, self.examples)

    def put(self, data: bytes) -> None:
        """Write the file anew: what is still mapped of the last one stays as it was."""
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(data)


# ---- how a file is damaged ----


def structured(change: Callable) -> Mutate:
    return lambda rng, data, words, others: mutate_file(rng, data, words, others, change)


JSON, JSONL, TEXT = structured(mutate_json), structured(mutate_jsonl), structured(None)
BYTES: Mutate = lambda rng, data, words, others: mutate_bytes(rng, data)


def keys_of(value: Any) -> list[str]:
    """Every key in it."""
    if isinstance(value, dict):
        return [*value, *(key for inside in value.values() for key in keys_of(inside))]
    return [key for inside in value for key in keys_of(inside)] if isinstance(value, list) else []


def json_file(
    name: str, path: Path, read: Callable, share: float = 1.0, more: tuple = ()
) -> Target:
    """A Target of a JSON file that is there; more: others of its kind."""
    examples = [path.read_bytes(), *(json.dumps(value).encode() for value in more)]
    words = tuple(dict.fromkeys(keys_of([json.loads(e) for e in examples])))[:60]
    return Target(name, examples, read, share, words, JSON, path)


# ---- small valid things ----

SHAPE = dict(vocab_size=300, block_size=64, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, head_dim=8)
RANKS = train_ranks("\n".join(pretraining_text(np.random.default_rng(0)) for _ in range(20)), 290)
PLAIN = Tokenizer(RANKS)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
CHAT = Tokenizer(RANKS, specials={name: 290 + i for i, name in enumerate(SPECIALS)}, chat="chatml")
LLAMA3 = Tokenizer(RANKS, specials={"<|endoftext|>": 295}, bos=[295], chat="llama3")
PEOPLE = toy_passages(3, 0)
PUZZLES = toy_puzzles(4, 0)
PASSAGE = Passage(
    "0: Zürich",
    "Zürich",
    "Zürich is a town in Switzerland. 东京是日本的首都。\nIt has a lake (the Zürichsee).",
    (("Where is Zürich?", ("Switzerland", "in Switzerland")), ("日本的首都?", ("东京",))),
)


def make_model(family: str = "llama", tied: bool = False, **more: int) -> GPT:
    """A tiny random model of a family."""
    shape = {**SHAPE, **FAMILIES[family].settings, "mlp_dim": 24, "tied": tied, **more}
    if family == "gpt2":
        shape |= {"n_kv_head": 2}
    if family == "llama":
        shape |= {"rope_scaling": (8.0, 1.0, 4.0, 32)}
    return GPT(GPTConfig(**shape)).init_weights(torch.Generator().manual_seed(0)).eval()
