"""K LoRA adapters (arXiv 2106.09685) over one frozen model, trained and run side by side.

    with attach(model, K, LoRAConfig(rank=16)) as adapters:
        ...  # the model takes batches of K equal groups of rows; train adapters.parameters()
    ...      # the model is plain again, also after an error

    y = x W^T + scale * (x A^T) B^T        A: (K, R, in), B: (K, out, R), B = 0 at first

merge(k) adds adapter k to the weights for good and removes them all. K = 1 is ordinary LoRA.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from .model import GPT

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # the linear layers of a block


@dataclass(frozen=True)
class LoRAConfig:
    rank: int = 16  # R
    alpha: float = 32.0  # the adapter's output is scaled by alpha / rank
    targets: tuple[str, ...] = TARGETS  # which linear layers; paper's code: q and v only


def attach(model: GPT, K: int, config: LoRAConfig = LoRAConfig(), seed: int = 0) -> "Adapters":
    """Wrap the target layers of every block in K fresh adapters.

    All K start from the same A, drawn from `seed`, so one adapter trains the same alone or among
    others. Raises RuntimeError if adapters are attached already, ValueError if no layer is meant.
    """
    if model.n_adapters is not None:
        raise RuntimeError("the model has adapters already: remove() or merge() them first")
    layers = {
        name: layer
        for name, layer in model.blocks.named_modules(prefix="blocks")
        if isinstance(layer, nn.Linear) and name.rsplit(".", 1)[1] in config.targets
    }
    if not layers or set(config.targets) - set(TARGETS):
        raise ValueError(f"LoRA targets {config.targets}: expected some of {', '.join(TARGETS)}")
    trainable = [p for p in model.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    wrapped = {}
    for name, layer in layers.items():
        wrapped[name] = LoRALinear(layer, K, config, generator)
        model.set_submodule(name, wrapped[name])
    model.n_adapters = K
    return Adapters(model, wrapped, trainable)


class LoRALinear(nn.Module):
    """A frozen linear layer and K low-rank updates of it, one for each of K groups of rows."""

    def __init__(
        self, base: nn.Linear, K: int, config: LoRAConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base, self.scale = base, config.alpha / config.rank
        # Kaiming-uniform A, as in the paper's code; drawn on the CPU: all devices get the same.
        A = torch.empty(config.rank, base.in_features).uniform_(-1, 1, generator=generator)
        # Adapters learn in float32 at least, whatever the base is held in.
        W, dtype = base.weight, torch.promote_types(base.weight.dtype, torch.float32)
        A = (A / math.sqrt(base.in_features)).to(W.device, dtype)  # (R, in)
        self.A = nn.Parameter(A.repeat(K, 1, 1))  # (K, R, in)
        self.B = nn.Parameter(A.new_zeros(K, base.out_features, config.rank))  # (K, out, R)

    def forward(self, x: Tensor) -> Tensor:
        """x (K b, T, in) -> (K b, T, out); rows k b ... (k+1) b - 1 go through adapter k."""
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        if len(x) % len(A):
            raise ValueError(f"{len(x)} rows are no equal groups for {len(A)} adapters")
        groups = x.reshape(len(A), -1, x.shape[-1])  # (K, b T, in)
        low = torch.bmm(groups, A.transpose(1, 2))  # (K, b T, R)
        # In place: one pass over y less.
        y = self.base(groups).baddbmm_(low, B.transpose(1, 2), alpha=self.scale)  # (K, b T, out)
        return y.view(*x.shape[:-1], -1)  # (K b, T, out)

    def delta(self, k: int) -> Tensor:
        """The update of adapter k as a matrix, (out, in)."""
        return self.scale * (self.B[k] @ self.A[k])  # (out, in)


class Adapters:
    """K adapters attached to a model; at the end of a `with` they are removed."""

    def __init__(
        self, model: GPT, layers: dict[str, LoRALinear], trainable: list[nn.Parameter]
    ) -> None:
        self.model, self.layers, self.trainable = model, layers, trainable
        self.losses: list[list[float]] = []  # adapter k's loss at every step (inner.py)
        self.failed: dict[int, str] = {}  # why adapter k's training failed

    def __len__(self) -> int:
        return len(next(iter(self.layers.values())).A)

    def __enter__(self) -> "Adapters":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def parameters(self) -> list[nn.Parameter]:
        """All A (K, R, in) and B (K, out, R)."""
        return [p for layer in self.layers.values() for p in (layer.A, layer.B)]

    def state(self) -> dict[str, Tensor]:
        """{'blocks.0.attn.q.A': (K, R, in), ..., 'scale': ()}: copies, safe to keep."""
        tensors = {
            f"{name}.{ab}": getattr(layer, ab).detach().clone()
            for name, layer in self.layers.items()
            for ab in "AB"
        }
        scale = next(iter(self.layers.values())).scale
        return tensors | {"scale": torch.tensor(scale, dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a copy of the values of state(): of as many adapters, or of one for all."""
        mine = self.state()
        if odd := sorted(set(mine) ^ set(state)):
            raise ValueError(f"adapter for another model: {odd[0]} is in one of them only")
        for name, old in mine.items():
            if state[name].shape not in (old.shape, (1, *old.shape[1:])):
                there, here = tuple(state[name].shape), tuple(old.shape)
                raise ValueError(f"adapter for another model: {name} is {there}, here {here}")
        self.replace(state[n].expand_as(old).clone() for n, old in mine.items() if n != "scale")
        for layer in self.layers.values():
            layer.scale = float(state["scale"])

    def replace(self, tensors: Iterable[Tensor]) -> None:
        """New values for parameters(), in their order; K may be another.

        New Parameters, since autograd remembers the shapes of the old ones.
        """
        values = iter(tensors)
        for layer in self.layers.values():
            layer.A = nn.Parameter(next(values).to(layer.A))
            layer.B = nn.Parameter(next(values).to(layer.B))
        self.model.n_adapters = len(self)

    @torch.no_grad()
    def merge(self, k: int = 0) -> None:
        """Add adapter k to the weights for good, W += scale B A, and remove them all."""
        if any(self.model.get_submodule(name) is not layer for name, layer in self.layers.items()):
            raise RuntimeError("these adapters were removed")
        for layer in self.layers.values():
            layer.base.weight += layer.delta(k).to(layer.base.weight.dtype)
        self.remove()

    def remove(self) -> None:
        """Take the adapters off: the model is plain again. Nothing happens if they are off."""
        for name, layer in self.layers.items():
            if self.model.get_submodule(name) is layer:
                self.model.set_submodule(name, layer.base)
                self.model.n_adapters = None
        for p in self.trainable:
            p.requires_grad_(True)
        self.trainable = []


def merge_state(model: GPT, state: dict[str, Tensor]) -> None:
    """Add the first adapter of an Adapters.state() to the model's weights; {} changes nothing."""
    ranks = {name.split(".")[-2]: t.shape[1] for name, t in state.items() if name.endswith(".A")}
    if ranks:
        config = LoRAConfig(max(ranks.values()), targets=tuple(ranks))
        with attach(model, len(next(iter(state.values()))), config) as adapters:
            adapters.load(state)
            adapters.merge()
