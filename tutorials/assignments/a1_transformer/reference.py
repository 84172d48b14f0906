"""Assignment 1 by minseal itself: the same functions as answer.py, as adapters."""

from types import SimpleNamespace

from torch import Tensor

from minseal import model, sample


def causal_attention(q: Tensor, k: Tensor, v: Tensor, docs: Tensor) -> Tensor:
    return attention(q, k, v, model.same_document(docs, docs), None)


grouped_attention = causal_attention


def rotary(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    longest = int(positions.max()) + 1
    config = model.GPTConfig(head_dim=x.shape[3], rope_theta=theta, block_size=longest)
    cos, sin = model.rope_table(config)  # each (block_size, D)
    return model.rotate(x, cos[positions][:, None], sin[positions][:, None])  # (B, H, T, D)


def decode_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    docs: Tensor,
    cached_k: Tensor,
    cached_v: Tensor,
    cached_docs: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (B, H_kv, N, D), S = k.shape, cached_k.shape[2]
    config = model.GPTConfig(n_layer=1, n_head=q.shape[1], n_kv_head=H_kv, head_dim=D)
    like_model = SimpleNamespace(config=config, wte=SimpleNamespace(weight=k))
    cache = sample.KVCache(like_model, B, S + N)
    cache.extend(cached_docs, cached_docs)
    cache.store(0, cached_k, cached_v)
    _, mask = cache.extend(docs, docs)  # (B, 1, N, S + N)
    return attention(q, k, v, mask, cache), cache.k[0], cache.v[0], cache.docs


def choose(logits: Tensor, dice: Tensor, temperature: float, top_p: float) -> Tensor:
    return sample.choose(logits, dice, temperature, top_p)


def document_positions(docs: Tensor) -> Tensor:
    return model.positions_in_document(docs).masked_fill(docs < 0, 0)  # as in GPT.hidden


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, cache: sample.KVCache | None
) -> Tensor:
    """minseal's Attention with its projections replaced by what they would give."""
    (B, H, T, D), H_kv = q.shape, k.shape[1]
    projected = [x.transpose(1, 2).reshape(B, T, -1) for x in (q, k, v)]  # each (B, T, heads D)
    layer = SimpleNamespace(
        config=model.GPTConfig(n_head=H, n_kv_head=H_kv, head_dim=D),
        **{name: lambda x, given=given: given for name, given in zip("qkv", projected)},
        o=lambda y: y,
        q_norm=None,
    )
    y = model.Attention.forward(layer, projected[0], None, mask, cache, 0)  # (B, T, H D)
    return y.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)
