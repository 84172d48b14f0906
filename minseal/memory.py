"""How many adapters fit side by side: an estimate of what one takes while it trains."""

from dataclasses import replace

from .inner import Course, InnerConfig
from .model import GPT
from .selfedit import SelfEdit


def side_by_side(
    model: GPT, edits: list[SelfEdit], config: InnerConfig, at_most: int, memory: float = 0.0
) -> list[list[int]]:
    """Cut the edits, in order, into groups that train at once: lists of their indices.

    As many as fit into `memory` GB (0: no limit), at most `at_most`, at least one.
    """
    sizes = [footprint(model, edit, config) if memory else 0 for edit in edits]
    groups: list[list[int]] = []
    for i in range(len(edits)):
        larger = (groups[-1] if groups else []) + [i]
        # The largest counts: the others are padded to it.
        too_much = len(larger) * max(sizes[j] for j in larger) > memory * 1e9
        if not groups or len(larger) > at_most or too_much:
            groups.append([i])
        else:
            groups[-1].append(i)
    return groups


def footprint(model: GPT, edit: SelfEdit, config: InnerConfig) -> float:
    """About how many bytes one adapter takes while it trains on this edit."""
    c, bytes_of = model.config, model.wte.weight.element_size()
    heads, kv = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    # In and out of q and o, k and v, the MLP.
    widths = 2 * (heads + c.n_embd) + 2 * (kv + c.n_embd) + 3 * (c.mlp_dim + c.n_embd)
    # float32: A and B, their gradients, two moments of Adam, two copies while adapters leave.
    lora = c.n_layer * widths * config.rank * 4 * 6
    steps = Course.of(replace(edit, epochs=1), config, 0).steps
    tokens = max(sum(len(d.ids) for row in rows for d in row) for rows in steps)
    # What a block keeps for the backward pass, numbers a token (counted).
    embd = 4 * c.n_embd
    attention = (4 if c.qk_norm else 3) * heads + 2 * kv
    mlp = (4 if c.mlp == "swiglu" else 2) * c.mlp_dim
    block = 1.25 * bytes_of * (embd + attention + mlp + 7 * config.rank)  # 1/4: comes and goes
    kept = block + c.n_layer * c.n_embd * bytes_of if config.recompute else c.n_layer * block
    return lora + tokens * kept
