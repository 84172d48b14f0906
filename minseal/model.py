"""GPT: one decoder class; GPT-2, Llama 3, SmolLM2, Qwen2.5 and Qwen3 are settings of it.

Shape letters, here and everywhere in minseal:
B rows, T tokens, C channels, H heads, D head size, V vocabulary, K adapters, R LoRA rank
(and S: tokens in a key-value cache, new ones included; H_kv: key-value heads, at most H).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class GPTConfig:
    """What distinguishes one decoder from another. The defaults are a small Llama."""

    vocab_size: int = 512
    block_size: int = 512  # most tokens that one document may have
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 4  # fewer than n_head: grouped-query attention
    n_embd: int = 128
    head_dim: int = 32  # D; Qwen3 has head_dim != n_embd / n_head
    mlp_dim: int = 344  # width inside the MLP
    norm: str = "rms"  # rms | layer
    norm_eps: float = 1e-5
    position: str = "rope"  # rope | learned
    rope_theta: float = 10_000.0
    rope_scaling: tuple | None = None  # Llama 3: (factor, low freq, high freq, original block_size)
    qkv_bias: bool = False  # GPT-2 and Qwen2.5 have one
    bias: bool = False  # on the other linear layers (GPT-2)
    qk_norm: bool = False  # Qwen3: RMSNorm of every head's query and key
    mlp: str = "swiglu"  # swiglu | gelu
    tied: bool = True  # the head is the transposed token embedding

    def __post_init__(self) -> None:
        words = {
            "norm": ("rms", "layer"),
            "position": ("rope", "learned"),
            "mlp": ("swiglu", "gelu"),
        }
        for name, allowed in words.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"GPTConfig.{name} is {value!r}; expected one of {allowed}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"{self.n_head} heads cannot share {self.n_kv_head} key-value heads")


class GPT(nn.Module):
    """A decoder-only transformer. `model(ids)` gives logits."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.n_adapters: int | None = None  # how many LoRA adapters are attached (lora.py)
        # Gradient checkpointing: keep each block's input only, run it again for the backward pass.
        self.recompute = False
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        learned = config.position == "learned"
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if learned else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.wte.weight
        if config.position == "rope":
            for name, table in zip(("cos", "sin"), rope_table(config)):
                self.register_buffer(name, table, persistent=False)

    def forward(self, ids: Tensor, docs: Tensor | None = None, cache: Any = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `ids` (B, T).

        docs: (B, T) integers, the document that each token belongs to; -1 is padding. A token
            attends only to earlier tokens of its own document, and positions restart with each
            document, so several can be packed into one row. None: every row is one document.
        cache: a sample.KVCache of the tokens before `ids`; it is extended by them.
        Raises ValueError if a document is longer than block_size.
        """
        return self.head(self.hidden(ids, docs, cache))  # (B, T, V)

    def hidden(self, ids: Tensor, docs: Tensor | None = None, cache: Any = None) -> Tensor:
        """Like forward, but stops before the head: (B, T, C)."""
        if cache is not None:
            positions, mask = cache.extend(ids, docs)  # (B, T), (B, 1, T, S)
        elif docs is not None:
            positions = positions_in_document(docs).masked_fill(docs < 0, 0)  # (B, T)
            mask = same_document(docs, docs)  # (B, 1, T, T)
        else:
            positions, mask = torch.arange(ids.shape[1], device=ids.device)[None], None  # (1, T)
        # Only a row longer than block_size can hold too long a document; to look costs a GPU sync.
        width, most = ids.shape[1] if mask is None else mask.shape[-1], self.config.block_size
        if width > most and (longest := int(positions.max()) + 1) > most:
            raise ValueError(f"a document has {longest} tokens; the model reads {most}")

        x = self.wte(ids)  # (B, T, C)
        if self.wpe is not None:
            x, rope = x + self.wpe(positions), None  # (B, T, C)
        else:
            rope = self.cos[positions][:, None], self.sin[positions][:, None]  # each (B, 1, T, D)
        for i, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, mask, cache, i, use_reentrant=False)  # (B, T, C)
            else:
                x = block(x, rope, mask, cache, i)  # (B, T, C)
        return self.norm(x)

    def size(self) -> int:
        """How many parameters."""
        return sum(p.numel() for p in self.parameters())

    def init_weights(self, generator: torch.Generator) -> "GPT":
        """Fresh weights as in GPT-2: N(0, 0.02), residual projections / sqrt(2 n_layer)."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("attn.o.weight", "mlp.down.weight"))
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02
                nn.init.normal_(p, 0.0, std, generator=generator)
            else:
                nn.init.constant_(p, 0.0 if name.endswith("bias") else 1.0)
        return self


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1, self.attn = make_norm(config), Attention(config)
        self.norm2, self.mlp = make_norm(config), MLP(config)

    def forward(self, x, rope, mask, cache, layer):
        x = x + self.attn(self.norm1(x), rope, mask, cache, layer)  # (B, T, C)
        return x + self.mlp(self.norm2(x))  # (B, T, C)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config, C, D = config, config.n_embd, config.head_dim
        # q, k and v are separate layers: one LoRA each, nothing to cut apart on the way in or out.
        self.q = nn.Linear(C, config.n_head * D, bias=config.qkv_bias)
        self.k = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.v = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.o = nn.Linear(config.n_head * D, C, bias=config.bias)
        self.q_norm = nn.RMSNorm(D, config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(D, config.norm_eps) if config.qk_norm else None

    def forward(self, x, rope, mask, cache, layer):
        (B, T, _), D = x.shape, self.config.head_dim
        q = self.q(x).view(B, T, -1, D)  # (B, T, H, D)
        k = self.k(x).view(B, T, -1, D)  # (B, T, H_kv, D)
        v = self.v(x).view(B, T, -1, D).transpose(1, 2)  # (B, H_kv, T, D)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # (B, H, T, D), (B, H_kv, T, D)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.store(layer, k, v)  # (B, H_kv, S, D)
        grouped = self.config.n_kv_head != self.config.n_head
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
        )  # (B, H, T, D)
        return self.o(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C, wide, bias = config.n_embd, config.mlp_dim, config.bias
        self.gate = nn.Linear(C, wide, bias=bias) if config.mlp == "swiglu" else None
        self.up = nn.Linear(C, wide, bias=bias)
        self.down = nn.Linear(wide, C, bias=bias)

    def forward(self, x):
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))  # (B, T, C)
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # (B, T, C)


def make_norm(config: GPTConfig) -> nn.Module:
    """The normalisation over C."""
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.n_embd, eps=config.norm_eps)


# ---- documents in a row: who sees whom, and where each one begins --------------------------------


def positions_in_document(docs: Tensor) -> Tensor:
    """(B, T) document numbers -> (B, T) positions that restart at 0 with each document."""
    index = torch.arange(docs.shape[1], device=docs.device).expand_as(docs)  # (B, T)
    starts = torch.ones_like(docs, dtype=torch.bool)
    starts[:, 1:] = docs[:, 1:] != docs[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values  # (B, T)


def same_document(docs_q: Tensor, docs_k: Tensor) -> Tensor:
    """(B, T) and (B, S) document numbers -> (B, 1, T, S): in its own document, and not ahead.

    The queries are the last T of the S keys. Padding sees padding: harmless, and no row is empty.
    """
    T, S = docs_q.shape[1], docs_k.shape[1]
    causal = torch.ones(T, S, dtype=torch.bool, device=docs_q.device).tril(S - T)  # (T, S)
    return ((docs_q[:, :, None] == docs_k[:, None, :]) & causal).unsqueeze(1)  # (B, 1, T, S)


# ---- rotary positions ----------------------------------------------------------------------------


def rope_frequencies(config: GPTConfig) -> Tensor:
    """(D/2,) radians per token, float64."""
    D = config.head_dim
    freq = config.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)  # (D/2,)
    if config.rope_scaling is not None:
        # Llama 3.1: wavelengths beyond the original context are stretched by `factor`, short ones
        # kept, those between are blended.
        factor, low, high, original = config.rope_scaling
        turns = original * freq / (2 * math.pi)  # (D/2,)
        blend = ((turns - low) / (high - low)).clamp(0, 1)  # 1: keep, 0: stretch
        freq = blend * freq + (1 - blend) * freq / factor  # (D/2,)
    return freq


def rope_table(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, each (block_size, D): RoPE (arXiv 2104.09864), halves as in Hugging Face."""
    positions = torch.arange(config.block_size, dtype=torch.float64)
    angle = torch.outer(positions, rope_frequencies(config))  # (block_size, D/2)
    angle = torch.cat([angle, angle], dim=1)  # (block_size, D)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of x (B, H, T, D) by its position's angle."""
    a, b = x.chunk(2, dim=-1)  # each (B, H, T, D/2)
    turned = torch.cat([-b, a], dim=-1)  # (B, H, T, D)
    return torch.addcmul(x * cos.to(x.dtype), turned, sin.to(x.dtype))  # (B, H, T, D)
