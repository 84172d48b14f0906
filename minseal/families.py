"""What others call our settings and tensors: a table for each family of models in the Hugging Face layout, and one for GGUF."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One family of models in the Hugging Face layout."""

    name: str  # model_type in its config.json
    architecture: str  # its class in transformers
    settings: dict  # GPTConfig fields that make the family what it is
    keys: dict  # GPTConfig field -> key of its config.json
    expected: dict  # key -> the value it must have, if it is there: with any other value it is another model
    names: dict  # our layer -> theirs; {} is the number of the block
    transposed: tuple = ()  # layers that it stores as (in, out)
    unused: tuple = ()  # tensors that carry nothing: patterns


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
GPT2_NAMES = {
    "wte": "wte",
    "wpe": "wpe",
    "norm": "ln_f",
    "head": "lm_head",
    "blocks.{}.norm1": "h.{}.ln_1",
    "blocks.{}.norm2": "h.{}.ln_2",
    "blocks.{}.attn.q": "h.{}.attn.c_attn[0]",
    "blocks.{}.attn.k": "h.{}.attn.c_attn[1]",
    "blocks.{}.attn.v": "h.{}.attn.c_attn[2]",  # thirds of one layer
    "blocks.{}.attn.o": "h.{}.attn.c_proj",
    "blocks.{}.mlp.up": "h.{}.mlp.c_fc",
    "blocks.{}.mlp.down": "h.{}.mlp.c_proj",
}
LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE_RMS = dict(norm="rms", position="rope", mlp="swiglu", bias=False)

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            dict(
                norm="layer",
                position="learned",
                mlp="gelu",
                bias=True,
                qkv_bias=True,
                qk_norm=False,
            ),
            {
                "vocab_size": "vocab_size",
                "block_size": "n_positions",
                "n_layer": "n_layer",
                "n_head": "n_head",
                "n_embd": "n_embd",
                "mlp_dim": "n_inner",
                "norm_eps": "layer_norm_epsilon",
                "tied": "tie_word_embeddings",
            },
            dict(
                activation_function="gelu_new",
                scale_attn_weights=True,
                scale_attn_by_inverse_layer_idx=False,
                add_cross_attention=False,
            ),
            GPT2_NAMES,
            ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
            (r"h\.\d+\.attn\.(masked_)?bias",),
        ),
        # Llama 3 and SmolLM2
        Family(
            "llama",
            "LlamaForCausalLM",
            dict(**ROPE_RMS, qkv_bias=False, qk_norm=False),
            LLAMA_KEYS,
            dict(hidden_act="silu", attention_bias=False, mlp_bias=False),
            LLAMA_NAMES,
            unused=(r".*rotary_emb\.inv_freq",),
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            dict(**ROPE_RMS, qkv_bias=True, qk_norm=False),
            LLAMA_KEYS,
            dict(hidden_act="silu", use_sliding_window=False),
            LLAMA_NAMES,
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            dict(**ROPE_RMS, qkv_bias=False, qk_norm=True),
            LLAMA_KEYS,
            dict(hidden_act="silu", use_sliding_window=False, attention_bias=False),
            LLAMA_NAMES,
        ),
    )
}

# GGUF names keys and tensors alike in every family (the key without the architecture in front).
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

GGUF_FUSED = {
    f"blocks.{{}}.attn.{part}": f"blk.{{}}.attn_qkv[{i}]" for i, part in enumerate("qkv")
}  # GPT-2


def located(ours, family):
    """Our parameter -> (the tensor of theirs that holds it, which third of it or None, whether it lies there as (in, out))."""
    layer, kind = ours.rsplit(".", 1)
    block = re.match(r"blocks\.(\d+)\.", layer)
    theirs = family.names[layer.replace(f".{block[1]}.", ".{}.", 1) if block else layer].format(
        block and block[1]
    )
    theirs, third = re.fullmatch(r"(.*?)(?:\[(\d)\])?", theirs).groups()
    return (
        f"{theirs}.{kind}",
        third and int(third),
        kind == "weight" and theirs.endswith(family.transposed),
    )


def names_of(family):
    """A function: our parameter -> (the tensor of theirs, a function that turns that into ours)."""

    def names(ours):
        theirs, third, transposed = located(ours, family)

        def turn(t):
            t = t.T if transposed else t
            return t if third is None else t.chunk(3)[third]

        return theirs, turn

    return names
