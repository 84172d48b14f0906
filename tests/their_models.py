"""Models of transformers with random weights and a small tokenizer: what is loaded in these tests.

Parity to 1e-5: both sides compute in float32 with logits of size 1 to 10, and add up the same
products in another order.
"""

import functools
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import tokenizers
import torch
from conftest import SMALL, scramble, their_model

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import transformers

from minseal import GPT, GPTConfig, Tokenizer, UserError, load
from minseal.open_models.tokenizers import QWEN_PATTERN
from minseal.sample import KVCache, left_padded
from minseal.tokenizer import train_ranks

GPT2 = dict(
    tied=True,
    n_kv_head=4,
    head_dim=8,
    norm="layer",
    position="learned",
    mlp="gelu",
    bias=True,
    qkv_bias=True,
)
KINDS = {
    "llama": ("llama", {}),
    "llama-3.1": ("llama", dict(rope_scaling=(8.0, 1.0, 4.0, 32), rope_theta=5e5)),
    "smollm2": ("llama", dict(tied=True, n_kv_head=1)),
    "qwen2": ("qwen2", dict(head_dim=8, qkv_bias=True, norm_eps=1e-6, rope_theta=1e6)),
    "qwen2-tied": ("qwen2", dict(qkv_bias=True, tied=True)),
    "qwen3": ("qwen3", dict(qk_norm=True)),
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", GPT2 | dict(tied=False)),
}
TEXTS = [
    "Many years ago, in a house by the sea",
    "for i in range(12):\n    print(i)\n\n",
    "naïve café – 東京 🦭",
]
TINY = dict(
    vocab_size=280,
    block_size=64,
    n_layer=1,
    n_head=2,
    n_kv_head=1,
    n_embd=16,
    head_dim=8,
    mlp_dim=24,
)
TOKENIZER = Tokenizer(train_ranks("some text, and more text: the text of the tests", 279))


def tiny(seed=0, **settings):
    """A GPT of our own that TOKENIZER fits."""
    model = GPT(GPTConfig(**{**TINY, **settings}))
    return model.init_weights(torch.Generator().manual_seed(seed)).eval()


def bpe(kind):
    """A byte-level BPE of transformers, 300 tokens; the special one is number 0, as SmolLM2's."""
    return _bpe(kind.startswith("qwen"))


@functools.cache
def _bpe(qwen):
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    pre = tokenizers.pre_tokenizers
    bpe.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    if qwen:  # cuts text its own way: transformers insists on that for its model_type
        bpe.normalizer = tokenizers.normalizers.NFC()
        split = pre.Split(tokenizers.Regex(QWEN_PATTERN), "isolated")
        byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre.Sequence([split, byte_level])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*TEXTS, Path(__file__).read_text(encoding="utf-8")], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")


def make_theirs(kind, seed=0, **more):
    family, settings = KINDS[kind]
    size = 320 if settings.get("tied") else 300  # 320: padded rows, as in Qwen's
    config = GPTConfig(**{**SMALL, "vocab_size": size, **settings, **more})
    return scramble(their_model(family, config), seed).eval()


def write_theirs(path, kind, dtype=torch.float32, **save):
    """A folder that transformers wrote; returns the model that transformers reads from it."""
    make_theirs(kind).to(dtype).save_pretrained(path, **save)
    bpe(kind).save_pretrained(path)
    # Not .to(dtype).float(): that would round their rope, too.
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@torch.no_grad()
def difference(mine, theirs):
    """The largest difference of logits."""
    ids = torch.randint(0, 300, (2, 60), generator=torch.Generator().manual_seed(0))
    a, b = mine(ids), theirs(ids).logits
    assert b.std() > 0.3  # no model of zeros
    return (a - b).abs().max().item()


@torch.no_grad()
def greedy(model, prompts, n=64, real=300):
    """Prompts (lists of ids), each with n more: always the likeliest of the `real` tokens."""
    ids, docs = left_padded(prompts)
    cache, texts = KVCache(model, len(prompts), ids.shape[1] + n), [list(p) for p in prompts]
    for _ in range(n):
        ids, docs = model(ids, docs, cache)[:, -1:, :real].argmax(-1), None  # (B, 1)
        for text, new in zip(texts, ids[:, 0].tolist()):
            text.append(new)
    return texts


@torch.no_grad()
def they_write(theirs, text, n=64, real=300):
    """Whether transformers, greedy, goes on from text[:-n] to text.

    One reading shows it, since each token is right if all before it are.
    """
    logits = theirs(torch.tensor([text])).logits[0, -n - 1 : -1, :real]
    return logits.argmax(-1).tolist() == text[-n:]


def refused(path):
    """The message that loading gives; it is one line and names the source."""
    with pytest.raises(UserError) as e:
        load(path)
    assert len(str(e.value).splitlines()) == 1 and str(path) in str(e.value)
    return str(e.value)


def change(path, **values):
    """Change values of a JSON file."""
    about = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps(about))
    return about


def rewrite(folder, f):
    """Change the tensors of a folder."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    f(tensors)
    safetensors.torch.save_file(tensors, path)
