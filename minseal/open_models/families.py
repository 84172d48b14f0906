"""What others call our settings and tensors, family by family. To read another, add to the tables.

Llama's names are also those of SmolLM2, Qwen2.5 and Qwen3; GGUF has one set for all families.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..files import UserError
from ..model import GPTConfig, rope_frequencies
from ..tokenizer import Tokenizer


@dataclass(frozen=True)
class Family:
    """One family of models in the Hugging Face layout."""

    name: str  # model_type in its config.json
    architecture: str  # its class in transformers
    settings: dict  # GPTConfig fields that make the family what it is
    keys: dict  # GPTConfig field -> key of its config.json
    names: dict  # our layer -> theirs
    expected: dict  # key -> the value it must have, if it is there; else it is another model
    transposed: tuple = ()  # layers that it stores as (in, out)
    prefix: str = ""  # in front of the names of all tensors but the head's


# fmt: off
KEYS = {
    # ours:          Llama's,                     GPT-2's,               GGUF's
    "vocab_size":   ("vocab_size",                "vocab_size",          ""),
    "block_size":   ("max_position_embeddings",   "n_positions",         "context_length"),
    "n_layer":      ("num_hidden_layers",         "n_layer",             "block_count"),
    "n_head":       ("num_attention_heads",       "n_head",              "attention.head_count"),
    "n_kv_head":    ("num_key_value_heads",       "",                    "attention.head_count_kv"),
    "n_embd":       ("hidden_size",               "n_embd",              "embedding_length"),
    "head_dim":     ("head_dim",                  "",                    "attention.key_length"),
    "mlp_dim":      ("intermediate_size",         "n_inner",             "feed_forward_length"),
    "norm_eps":     ("rms_norm_eps",              "layer_norm_epsilon",  ""),
    "rope_theta":   ("rope_theta",                "",                    "rope.freq_base"),
    "tied":         ("tie_word_embeddings",       "tie_word_embeddings", ""),
}
NAMES = {  # [i]: the i-th third of a layer
    "wte":          ("model.embed_tokens",        "wte",                 "token_embd"),
    "wpe":          ("",                          "wpe",                 "position_embd"),
    "norm":         ("model.norm",                "ln_f",                "output_norm"),
    "head":         ("lm_head",                   "lm_head",             "output"),
    "blocks":       ("model.layers",              "h",                   "blk"),
    ".norm1":       (".input_layernorm",          ".ln_1",               ".attn_norm"),
    ".norm2":       (".post_attention_layernorm", ".ln_2",               ".ffn_norm"),
    ".attn.q":      (".self_attn.q_proj",         ".attn.c_attn[0]",     ".attn_q"),
    ".attn.k":      (".self_attn.k_proj",         ".attn.c_attn[1]",     ".attn_k"),
    ".attn.v":      (".self_attn.v_proj",         ".attn.c_attn[2]",     ".attn_v"),
    ".attn.o":      (".self_attn.o_proj",         ".attn.c_proj",        ".attn_output"),
    ".attn.q_norm": (".self_attn.q_norm",         "",                    ".attn_q_norm"),
    ".attn.k_norm": (".self_attn.k_norm",         "",                    ".attn_k_norm"),
    ".mlp.gate":    (".mlp.gate_proj",            "",                    ".ffn_gate"),
    ".mlp.up":      (".mlp.up_proj",              ".mlp.c_fc",           ".ffn_up"),
    ".mlp.down":    (".mlp.down_proj",            ".mlp.c_proj",         ".ffn_down"),
}
# fmt: on


def column(table: dict[str, tuple], i: int) -> dict[str, str]:
    """{ours: theirs} of one column."""
    return {ours: row[i] for ours, row in table.items() if row[i]}


LLAMA_KEYS, GPT2_KEYS, GGUF_KEYS = (column(KEYS, i) for i in range(3))
LLAMA_NAMES, GPT2_NAMES, GGUF_NAMES = (column(NAMES, i) for i in range(3))
LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")

LLAMA = dict(norm="rms", position="rope", mlp="swiglu", bias=False, qkv_bias=False, qk_norm=False)
GPT2 = dict(norm="layer", position="learned", mlp="gelu", bias=True, qkv_bias=True, qk_norm=False)
# fmt: off
FAMILIES = {family.name: family for family in (
    Family(
        "gpt2", "GPT2LMHeadModel", GPT2, GPT2_KEYS, GPT2_NAMES,
        {"activation_function": "gelu_new", "scale_attn_weights": True,
         "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        prefix="transformer.",
    ),
    Family(  # Llama 3 and SmolLM2
        "llama", "LlamaForCausalLM", LLAMA, LLAMA_KEYS, LLAMA_NAMES,
        {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    ),
    Family(
        "qwen2", "Qwen2ForCausalLM", LLAMA | {"qkv_bias": True}, LLAMA_KEYS, LLAMA_NAMES,
        {"hidden_act": "silu", "use_sliding_window": False},
    ),
    Family(
        "qwen3", "Qwen3ForCausalLM", LLAMA | {"qk_norm": True}, LLAMA_KEYS, LLAMA_NAMES,
        {"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False},
    ),
)}
# fmt: on


def family_of(config: GPTConfig) -> Family:
    """The family that a model belongs to. Raises UserError if there is none."""
    for family in FAMILIES.values():
        if all(getattr(config, name) == value for name, value in family.settings.items()):
            return family
    raise UserError(f"no family of Hugging Face ({', '.join(FAMILIES)}) has the settings {config}")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str  # a str: the file's word for numbers that are no weights
    read: Callable[[], Tensor]


def _is_causal_mask(t: Tensor, config: GPTConfig) -> bool:
    return (
        t.dim() == 4
        and t.numel() > 0
        and torch.equal(t[0, 0] != 0, torch.ones_like(t[0, 0]).tril() != 0)
    )


def _are_frequencies(t: Tensor, config: GPTConfig) -> bool:
    if t.shape != (config.head_dim // 2,):
        return False
    return torch.allclose(t.double(), rope_frequencies(config), rtol=0.01, atol=1e-6)  # in 16 bits


UNUSED = {  # tensors of older files that are made of the settings: name -> whether it is as made
    r"h\.\d+\.attn\.bias": _is_causal_mask,
    r"h\.\d+\.attn\.masked_bias": lambda t, config: bool((t < -1000).all()),
    r".*rotary_emb\.inv_freq": _are_frequencies,
}


@dataclass(frozen=True)
class Place:
    """Where one of our parameters lies among their tensors, and how."""

    name: str
    third: int | None = None  # GPT-2 keeps q, k and v as thirds of one tensor
    transposed: bool = False  # it lies there as (in, out)
    heads: int | None = None  # GGUF pairs the rows of so many heads in an order of its own

    def turn(self, t: Tensor) -> Tensor:
        """Their tensor -> our parameter."""
        t = t.T if self.transposed else t
        t = t if self.third is None else t.chunk(3)[self.third]
        if self.heads:  # (0, 1), (2, 3), ... of a head turn together there, (i, i + D/2) here
            t = t.view(self.heads, -1, 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape)
        return t


@dataclass(frozen=True)
class Source:
    """A model on disk: all that is needed to fill a GPT."""

    config: GPTConfig
    tensors: dict[str, Stored]
    tokenizer: Tokenizer
    place: Callable[[str], Place] = Place  # of our parameter; default: same names


def place_of(ours: str, names: dict[str, str], transposed: tuple[str, ...] = ()) -> Place:
    """'blocks.3.attn.q.weight' -> its Place, by the names and transposed layers of a family."""
    layer, kind = ours.rsplit(".", 1)
    first, number, part = re.fullmatch(r"(\w+)(\.\d+)?(.*)", layer).groups("")  # blocks .3 .attn.q
    theirs = names[first] + number + (names[part] if part else "")
    theirs, third = re.fullmatch(r"(.*?)(?:\[(\d)\])?", theirs).groups()
    turned = kind == "weight" and theirs.endswith(transposed)
    return Place(f"{theirs}.{kind}", int(third) if third else None, turned)
