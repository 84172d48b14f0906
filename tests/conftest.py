"""Shared fixtures: tiny random models, their twins in transformers, the pretrained tiny model."""

import copy
import json
import math
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import settings

import minseal
from minseal import GPT, GPTConfig, Tokenizer
from minseal.tasks.people import pretraining_text
from minseal.tokenizer import train_ranks

# For matrices this small a second thread only waits, 30 times longer if its core is taken.
# Started in the background by a shell, Ctrl-C is ignored, and so it would be in what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
# A busy machine is no failure; `pytest -m fuzz` tries a million more.
settings.register_profile("minseal", deadline=None, max_examples=50)
settings.load_profile("minseal")
TINY = Path(__file__).parent.parent / "tiny_data" / "knowledge"
SMALL = dict(
    vocab_size=48,
    block_size=128,
    n_layer=2,
    n_head=4,
    n_kv_head=2,
    n_embd=32,
    head_dim=12,
    mlp_dim=56,
    tied=False,
)


@pytest.fixture
def make_gpt():
    """make_gpt(seed, **settings): a tiny random GPT."""

    def make(seed=0, **settings):
        return scramble(GPT(GPTConfig(**{**SMALL, **settings})), seed).eval()

    return make


@pytest.fixture
def gpt(make_gpt):
    return make_gpt()


@pytest.fixture
def twins():
    """twins(family, seed, **settings): a random transformers model, and a GPT with its weights."""

    def make(family="llama", seed=0, **settings):
        config = GPTConfig(**{**SMALL, **settings})
        theirs = scramble(their_model(family, config), seed).eval()
        mine = GPT(config).eval()
        missing, unexpected = mine.load_state_dict(
            my_names(theirs.state_dict(), family, config), strict=False
        )
        assert not unexpected and set(missing) <= ({"head.weight"} if config.tied else set())
        return theirs, mine

    return make


@pytest.fixture(scope="session")
def _pretrained():
    return minseal.load(TINY)


@pytest.fixture
def pretrained(_pretrained):
    """(model, tokenizer) of tiny_data/knowledge; the model is a copy, free to change."""
    model, tokenizer = _pretrained
    return copy.deepcopy(model), tokenizer


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """The folder of a model that knows nothing, for tests about the way and not the scores."""
    folder, rng = tmp_path_factory.mktemp("models") / "untrained", np.random.default_rng(0)
    tokenizer = Tokenizer(train_ranks("\n".join(pretraining_text(rng) for _ in range(200)), 400))
    shape = {**SMALL, "n_layer": 1, "n_head": 2, "n_embd": 16, "head_dim": 8, "mlp_dim": 16}
    config = GPTConfig(**{**shape, "vocab_size": tokenizer.vocab_size, "block_size": 1024})
    model = GPT(config).init_weights(torch.Generator().manual_seed(0)).eval()
    minseal.save(folder, model, tokenizer, {})
    return str(folder)


@pytest.fixture
def letters():
    """letters(vocab_size, eot): a tokenizer in which token i is the i-th letter; eot is none."""

    def make(
        vocab_size=48, eot=47, alphabet="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    ):
        return SimpleNamespace(
            vocab_size=vocab_size,
            eot=eot,
            ends={eot},
            decode=lambda ids: "".join(alphabet[i] for i in ids if i != eot),
        )

    return make


def scramble(model, seed):
    """Random weights, large enough that every part of the model changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 2:
                p.copy_(noise / math.sqrt(32))
            else:
                p.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))
    return model


def their_model(family, c):
    import transformers

    if family == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=c.vocab_size,
                n_positions=c.block_size,
                n_embd=c.n_embd,
                n_layer=c.n_layer,
                n_head=c.n_head,
                n_inner=c.mlp_dim,
                layer_norm_epsilon=c.norm_eps,
                tie_word_embeddings=c.tied,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_scaling is not None:
        factor, low, high, original = c.rope_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
    config, model = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }[family]
    return model(
        config(
            vocab_size=c.vocab_size,
            hidden_size=c.n_embd,
            intermediate_size=c.mlp_dim,
            num_hidden_layers=c.n_layer,
            head_dim=c.head_dim,
            num_attention_heads=c.n_head,
            num_key_value_heads=c.n_kv_head,
            max_position_embeddings=c.block_size,
            rms_norm_eps=c.norm_eps,
            tie_word_embeddings=c.tied,
            rope_parameters=rope,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


LLAMA_NAMES = [
    ("model.embed_tokens", "wte"),
    ("model.layers", "blocks"),
    ("model.norm", "norm"),
    ("lm_head", "head"),
    ("self_attn", "attn"),
    ("_proj", ""),
    ("input_layernorm", "norm1"),
    ("post_attention_layernorm", "norm2"),
]
GPT2_NAMES = [
    ("transformer.h.", "blocks."),
    ("transformer.ln_f", "norm"),
    ("transformer.", ""),
    ("lm_head", "head"),
    ("ln_1", "norm1"),
    ("ln_2", "norm2"),
    ("attn.c_proj", "attn.o"),
    ("mlp.c_fc", "mlp.up"),
    ("mlp.c_proj", "mlp.down"),
]


def my_names(state, family, config):
    """transformers' state_dict -> ours."""
    out = {}
    for name, value in state.items():
        for theirs, mine in GPT2_NAMES if family == "gpt2" else LLAMA_NAMES:
            name = name.replace(theirs, mine)
        if family == "gpt2" and value.dim() == 2 and name.startswith("blocks."):
            value = value.T  # GPT-2 keeps its linear layers as (in, out)
        if "c_attn" in name:
            for part, piece in zip("qkv", value.chunk(3)):
                out[name.replace("c_attn", part)] = piece
        elif not (name == "head.weight" and config.tied):
            out[name] = value
    return out


def events(folder):
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def data_in(page):
    """What the script of a report.html reads: as a browser does, up to the end of its element."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script', page, re.S)
    return json.loads(found)


def without_seconds(x):
    """Results, or a log, but for what differs from run to run."""
    if isinstance(x, dict):
        return {k: without_seconds(v) for k, v in x.items() if k != "seconds"}
    return [without_seconds(v) for v in x] if isinstance(x, list) else x


def grows_linearly(work, n):
    """Whether 4 n take at most 8 times as long as n: caches and noise, but not the square."""

    def seconds(size):
        start = time.process_time()
        work(size)
        return time.process_time() - start

    few, many = (min(seconds(size) for _ in range(3)) for size in (n, 4 * n))
    return many < 8 * few + 0.05
