"""What others call our settings and tensors: a table for each family of models, one for GGUF.

To read another family, add a table.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..files import UserError
from ..model import GPTConfig
from ..tokenizer import Tokenizer


@dataclass(frozen=True)
class Family:
    """One family of models in the Hugging Face layout."""

    name: str  # model_type in its config.json
    architecture: str  # its class in transformers
    settings: dict  # GPTConfig fields that make the family what it is
    keys: dict  # GPTConfig field -> key of its config.json
    expected: dict  # key -> the value it must have, if it is there; else it is another model
    names: dict  # our layer -> theirs; {} is the number of the block
    transposed: tuple = ()  # layers that it stores as (in, out)
    unused: tuple = ()  # tensors that carry nothing: patterns
    prefix: str = ""  # in front of the names of all tensors but the head's


LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "head_dim": "head_dim",
    "mlp_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "tied": "tie_word_embeddings",
}
LLAMA_NAMES = {
    "wte": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "blocks.{}.norm1": "model.layers.{}.input_layernorm",
    "blocks.{}.norm2": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.attn.q": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.attn.k": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.attn.v": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.attn.o": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.attn.q_norm": "model.layers.{}.self_attn.q_norm",
    "blocks.{}.attn.k_norm": "model.layers.{}.self_attn.k_norm",
    "blocks.{}.mlp.gate": "model.layers.{}.mlp.gate_proj",
    "blocks.{}.mlp.up": "model.layers.{}.mlp.up_proj",
    "blocks.{}.mlp.down": "model.layers.{}.mlp.down_proj",
}
GPT2_KEYS = {
    "vocab_size": "vocab_size",
    "block_size": "n_positions",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "mlp_dim": "n_inner",
    "norm_eps": "layer_norm_epsilon",
    "tied": "tie_word_embeddings",
}
GPT2_NAMES = {
    "wte": "wte",
    "wpe": "wpe",
    "norm": "ln_f",
    "head": "lm_head",
    "blocks.{}.norm1": "h.{}.ln_1",
    "blocks.{}.norm2": "h.{}.ln_2",
    "blocks.{}.attn.q": "h.{}.attn.c_attn[0]",  # q, k and v: thirds of one layer
    "blocks.{}.attn.k": "h.{}.attn.c_attn[1]",
    "blocks.{}.attn.v": "h.{}.attn.c_attn[2]",
    "blocks.{}.attn.o": "h.{}.attn.c_proj",
    "blocks.{}.mlp.up": "h.{}.mlp.c_fc",
    "blocks.{}.mlp.down": "h.{}.mlp.c_proj",
}
LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
LLAMA = dict(norm="rms", position="rope", mlp="swiglu", bias=False, qkv_bias=False, qk_norm=False)
GPT2 = dict(norm="layer", position="learned", mlp="gelu", bias=True, qkv_bias=True, qk_norm=False)

GPT2_FAMILY = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    settings=GPT2,
    keys=GPT2_KEYS,
    expected={
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    names=GPT2_NAMES,
    transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    unused=(r"h\.\d+\.attn\.(masked_)?bias",),
    prefix="transformer.",
)
LLAMA_FAMILY = Family(  # Llama 3 and SmolLM2
    name="llama",
    architecture="LlamaForCausalLM",
    settings=LLAMA,
    keys=LLAMA_KEYS,
    expected={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    names=LLAMA_NAMES,
    unused=(r".*rotary_emb\.inv_freq",),
)
QWEN2_FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    settings=LLAMA | {"qkv_bias": True},
    keys=LLAMA_KEYS,
    expected={"hidden_act": "silu", "use_sliding_window": False},
    names=LLAMA_NAMES,
)
QWEN3_FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    settings=LLAMA | {"qk_norm": True},
    keys=LLAMA_KEYS,
    expected={"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False},
    names=LLAMA_NAMES,
)
FAMILIES = {
    family.name: family for family in (GPT2_FAMILY, LLAMA_FAMILY, QWEN2_FAMILY, QWEN3_FAMILY)
}

# GGUF names keys and tensors alike in every family (keys without the architecture in front).
GGUF_KEYS = {
    "block_size": "context_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_kv_head": "attention.head_count_kv",
    "n_embd": "embedding_length",
    "head_dim": "attention.key_length",
    "mlp_dim": "feed_forward_length",
    "rope_theta": "rope.freq_base",
}
GGUF_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "norm": "output_norm",
    "head": "output",
    "blocks.{}.norm1": "blk.{}.attn_norm",
    "blocks.{}.norm2": "blk.{}.ffn_norm",
    "blocks.{}.attn.q": "blk.{}.attn_q",
    "blocks.{}.attn.k": "blk.{}.attn_k",
    "blocks.{}.attn.v": "blk.{}.attn_v",
    "blocks.{}.attn.o": "blk.{}.attn_output",
    "blocks.{}.attn.q_norm": "blk.{}.attn_q_norm",
    "blocks.{}.attn.k_norm": "blk.{}.attn_k_norm",
    "blocks.{}.mlp.gate": "blk.{}.ffn_gate",
    "blocks.{}.mlp.up": "blk.{}.ffn_up",
    "blocks.{}.mlp.down": "blk.{}.ffn_down",
}
GGUF_GPT2_NAMES = GGUF_NAMES | {
    "blocks.{}.attn.q": "blk.{}.attn_qkv[0]",
    "blocks.{}.attn.k": "blk.{}.attn_qkv[1]",
    "blocks.{}.attn.v": "blk.{}.attn_qkv[2]",
}


def family_of(config: GPTConfig) -> Family:
    """The family that a model belongs to. Raises UserError if there is none."""
    for family in FAMILIES.values():
        if all(getattr(config, name) == value for name, value in family.settings.items()):
            return family
    raise UserError(f"no family of Hugging Face ({', '.join(FAMILIES)}) has the settings {config}")


# ---- what every format is turned into ----


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str  # a str: the file's word for numbers that are no weights
    read: Callable[[], Tensor]


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
    place: Callable[[str], Place] = field(default=Place)  # of our parameter; default: same names


def place_of(ours: str, names: dict[str, str], transposed: tuple[str, ...] = ()) -> Place:
    """'blocks.3.attn.q.weight' -> its Place, by the names and transposed layers of a family."""
    layer, kind = ours.rsplit(".", 1)
    pattern = re.sub(r"^blocks\.\d+", "blocks.{}", layer)
    theirs = names[pattern].format(*re.findall(r"\d+", layer)[:1])
    theirs, third = re.fullmatch(r"(.*?)(?:\[(\d)\])?", theirs).groups()
    turned = kind == "weight" and theirs.endswith(transposed)
    return Place(f"{theirs}.{kind}", int(third) if third else None, turned)
