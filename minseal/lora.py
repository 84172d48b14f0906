"""K LoRA adapters (arXiv 2106.09685) over one frozen model, trained and run side by side.

    adapters = attach(model, K, LoRAConfig(rank=16))   # the model now takes batches of K equal groups of rows
    ... train adapters.parameters(), run the model ...
    adapters.merge(); adapters.unmerge(); adapters.remove()

    y = x W^T + scale * (x A^T) B^T        A: (K, R, in), B: (K, out, R), B = 0 at first

Every call is explicit: train() and eval() change nothing. K = 1 is ordinary LoRA; there is no second code path.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # the linear layers of a block


@dataclass(frozen=True)
class LoRAConfig:
    rank: int = 16  # R
    alpha: float = 32.0  # the adapter's output is scaled by alpha / rank
    targets: tuple = TARGETS  # which linear layers; paper's code: q and v only


def attach(model, K, config=LoRAConfig(), seed=0):
    """Wrap the target layers of every block in K fresh adapters; returns the Adapters.

    All K start from the same A, drawn from `seed`, so one adapter trains the same alone or among others.
    Raises RuntimeError if adapters are attached already, ValueError if no layer is a target.
    """
    if model.n_adapters is not None:
        raise RuntimeError("the model has adapters already: remove() or merge them first")
    unknown = set(config.targets) - set(TARGETS)
    sites = [
        (f"blocks.{i}.{part}.{name}", getattr(block, part), name)
        for i, block in enumerate(model.blocks)
        for part in ("attn", "mlp")
        for name in config.targets
        if isinstance(getattr(getattr(block, part), name, None), nn.Linear)
    ]
    if unknown or not sites:
        raise ValueError(
            f"LoRA targets {config.targets} name no layer of a block: choose from {', '.join(TARGETS)}"
        )
    generator = torch.Generator().manual_seed(seed)
    frozen = [p for p in model.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    layers = {}
    for path, parent, name in sites:
        layers[path] = LoRALinear(getattr(parent, name), K, config, generator)
        setattr(parent, name, layers[path])
    model.n_adapters = K
    return Adapters(model, layers, [parent for _, parent, _ in sites], frozen)


class LoRALinear(nn.Module):
    """A frozen linear layer and K low-rank updates of it, one for each of K groups of rows."""

    def __init__(self, base, K, config, generator):
        super().__init__()
        self.base, self.scale = base, config.alpha / config.rank
        # Kaiming-uniform A as in the LoRA paper's code; drawn on the CPU in float32, so that every device gets the same.
        A = torch.empty(config.rank, base.in_features).uniform_(
            -1, 1, generator=generator
        ) / math.sqrt(base.in_features)
        dtype = torch.promote_types(
            base.weight.dtype, torch.float32
        )  # adapters learn in float32, whatever the base is in
        self.A = nn.Parameter(A.to(base.weight.device, dtype).repeat(K, 1, 1))  # (K, R, in)
        self.B = nn.Parameter(
            torch.zeros(K, base.out_features, config.rank, device=base.weight.device, dtype=dtype)
        )  # (K, out, R)
        self.on = True

    def forward(self, x):
        """x (K b, T, in) -> (K b, T, out); rows k b ... (k+1) b - 1 go through adapter k."""
        if not self.on:
            return self.base(x)
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        if len(x) % len(A):
            raise ValueError(f"{len(x)} rows cannot be shared out equally among {len(A)} adapters")
        groups = x.reshape(len(A), -1, x.shape[-1])  # (K, b T, in)
        low = torch.bmm(groups, A.transpose(1, 2))  # (K, b T, R)
        y = self.base(groups).baddbmm_(
            low, B.transpose(1, 2), alpha=self.scale
        )  # (K, b T, out), in place: one pass less
        return y.view(*x.shape[:-1], -1)  # (K b, T, out)

    def delta(self, k):
        """The update of adapter k as a matrix, (out, in)."""
        return self.scale * (self.B[k] @ self.A[k])  # (out, in)


class Adapters:
    """K adapters attached to a model. The inner loop notes their `losses` and, by number, why one `failed`."""

    def __init__(self, model, layers, parents, frozen):
        self.model, self.layers, self.parents, self.frozen = model, layers, parents, frozen
        self.attached, self.merged, self.losses, self.failed = True, None, [], {}

    def __len__(self):
        return next(iter(self.layers.values())).A.shape[0]

    def parameters(self):
        """All A (K, R, in) and B (K, out, R)."""
        return [p for layer in self.layers.values() for p in (layer.A, layer.B)]

    def state(self):
        """{'blocks.0.attn.q.A': (K, R, in), ...}: copies, safe to keep."""
        return {
            f"{path}.{ab}": getattr(layer, ab).detach().clone()
            for path, layer in self.layers.items()
            for ab in "AB"
        }

    def load(self, state):
        """Take over a copy of the values of state(); K may change, layers and rank may not."""
        self._require_on(True, "load() while merged: unmerge() first")
        mine = self.state()
        if odd := sorted(set(mine) ^ set(state)):
            raise ValueError(f"adapter for another model: {odd[0]} is in one of them only")
        for name, old in mine.items():
            if old.shape[1:] != state[name].shape[1:]:
                raise ValueError(
                    f"adapter for another model: {name} has shape {tuple(state[name].shape)}, here {tuple(old.shape)}"
                )
        self.replace([state[name].clone() for name in mine])

    def replace(self, tensors):
        """New values for parameters(), in their order; K may change. New Parameters, since autograd remembers old shapes."""
        tensors = iter(tensors)
        for layer in self.layers.values():
            layer.A, layer.B = (
                nn.Parameter(next(tensors).to(layer.A)),
                nn.Parameter(next(tensors).to(layer.B)),
            )
        self.model.n_adapters = len(self)

    @torch.no_grad()
    def merge(self, k=0):
        """Add adapter k to the weights themselves: W += scale B A. The adapters stay attached, switched off."""
        self._require_on(True, "merge() twice: the adapters are merged already")
        for layer in self.layers.values():
            layer.base.weight += layer.delta(k).to(layer.base.weight.dtype)
            layer.on = False
        self.merged = k

    @torch.no_grad()
    def unmerge(self):
        """Undo merge(), up to rounding."""
        self._require_on(False, "unmerge() without merge()")
        for layer in self.layers.values():
            layer.base.weight -= layer.delta(self.merged).to(layer.base.weight.dtype)
            layer.on = True

    def remove(self):
        """Take the adapters off; what was merged stays in the weights. The model is plain again."""
        if not self.attached:
            raise RuntimeError("these adapters were removed")
        for (path, layer), parent in zip(self.layers.items(), self.parents):
            setattr(parent, path.rsplit(".", 1)[1], layer.base)
        for p in self.frozen:
            p.requires_grad_(True)
        self.model.n_adapters, self.attached = None, False

    def _require_on(self, on, message):
        if next(iter(self.layers.values())).on is not on or not self.attached:
            raise RuntimeError(message if self.attached else "these adapters were removed")
