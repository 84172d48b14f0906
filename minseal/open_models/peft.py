"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors."""

import math
from pathlib import Path
from typing import Any

import regex
import torch
from torch import Tensor, nn

from ..checkpoint import is_finite, is_number
from ..files import UserError, first_line, read_json, write_folder, write_json
from ..lora import TARGETS, Adapters, LoRAConfig, attach
from ..model import GPT
from .families import Stored, family_of, place_of
from .safetensors import FLOATS, read_safetensors, write_safetensors

# Settings of PEFT that leave an adapter y = x W^T + scale (x A^T) B^T on the model as it is. Any
# other that has a value, known or yet to be invented, makes it something else: it is refused.
OF_ANY_VALUE = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern"),  # read below
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # as stored
    *("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "task_type"),
    *("lora_dropout", "inference_mode", "fan_in_fan_out", "ensure_weight_tying", "runtime_config"),
    # These count only beside a setting that is refused.
    *("megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
OF_SOME_VALUES = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (True,),
    # Others (pissa, olora, corda, loftq, lora_ga) take from the base what they give the adapter.
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal", "mica"),
}
NO_VALUE = (None, False, "", [], {})
SECONDS = 0.1  # that a pattern may take for a name: one that tracks back could take for ever
LARGEST = 2**24  # numbers in an adapter, whatever the size of the model


def save_adapter(
    path: str | Path,
    model: GPT,
    state: dict[str, Tensor],
    config: LoRAConfig,
    base: str,
    k: int = 0,
    about: dict[str, Any] | None = None,
) -> None:
    """Write adapter k of an Adapters.state() to a folder that peft loads.

    config: the one it was made with. base: name of the model underneath. about: to minseal.json.
    """
    family = family_of(model.config)
    parts: dict[str, list] = {}  # their layer -> [(third, A, B)]
    for layer in (name.removesuffix(".A") for name in state if name.endswith(".A")):
        place = place_of(f"{layer}.weight", family.names)
        A, B = (state[f"{layer}.{ab}"][k].float().cpu() for ab in "AB")  # (R, in), (out, R)
        parts.setdefault(place.name.removesuffix(".weight"), []).append((place.third, A, B))
    tensors, ranks = {}, {}
    for theirs, some in parts.items():
        A, B = torch.cat([A for _, A, _ in some]), some[0][2]  # (R, in), (out, R)
        if some[0][0] is not None:
            # GPT-2's q, k and v are one layer there: one adapter, of up to three times the rank.
            B = torch.zeros(3, len(B), len(A))  # (3, C, up to 3 R)
            for i, (third, _, part) in enumerate(some):
                B[third, :, i * config.rank : (i + 1) * config.rank] = part
            B, ranks[_suffix(theirs)] = B.flatten(0, 1), len(A)  # (3 C, up to 3 R)
        name = f"base_model.model.{family.prefix}{theirs}"
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": sorted({_suffix(name) for name in parts}),
        "fan_in_fan_out": family.name == "gpt2",
        "rank_pattern": ranks,
        "alpha_pattern": {name: config.alpha * r / config.rank for name, r in ranks.items()},
    }
    ours = {"base": base, "fingerprint": fingerprint(model), **(about or {})}
    files = {"adapter_config.json": write_json(settings), "minseal.json": write_json(ours)}
    files["adapter_model.safetensors"] = write_safetensors(tensors, path)
    write_folder(path, files)


def load_adapter(
    path: str | Path, model: GPT, name: str = "this model"
) -> tuple[Adapters, LoRAConfig]:
    """Attach the adapter in a folder of PEFT's (or of save_adapter) to the model.

    Raises UserError if it was made for another model than `name`, or is no plain LoRA.
    """
    path = Path(path)
    weights, ours = path / "adapter_model.safetensors", path / "minseal.json"
    for file in (path / "adapter_config.json", weights):
        if not file.is_file():
            raise UserError(f"no adapter at {path}: it has no {file.name}")
    settings = read_json(path / "adapter_config.json")
    for key, value in settings.items():
        if key not in OF_ANY_VALUE and value not in (*NO_VALUE, *OF_SOME_VALUES.get(key, ())):
            how = "expected plain LoRA (let peft merge it, or convert it to that)"
            raise UserError(f"{path}: {key!r:.60} is {value!r:.60}; {how}")
    base = settings.get("base_model_name_or_path")
    other = f"{path} was made for another model ({base!r:.80}) than {name}"
    told = read_json(ours) if ours.is_file() else {}
    if "fingerprint" in told and not has_fingerprint(model, told["fingerprint"], ours):
        raise UserError(f"{other}: their weights differ")
    ranks = _Ranks(settings, path)
    pairs = _match(ranks, read_safetensors(weights), model, other)
    R = max(len(A) for A, _ in pairs.values())
    if R * sum(len(B) + A.shape[1] for A, B in pairs.values()) > max(LARGEST, 2 * model.size()):
        raise UserError(f"{path}: a rank of {R} would make it larger than the model")
    targets = tuple(t for t in TARGETS if any(layer.endswith(f".{t}") for layer in pairs))
    config = LoRAConfig(R, ranks.scale * R, targets)
    adapters = attach(model, 1, config)
    state = adapters.state()  # B is 0: what is not filled changes nothing, and can still learn
    for layer, (A, B) in pairs.items():
        state[f"{layer}.A"][0, : len(A)] = A.to(model.wte.weight.device)
        state[f"{layer}.B"][0, :, : len(A)] = B.to(model.wte.weight.device)
    adapters.load(state)
    return adapters, config


def _match(
    ranks: "_Ranks", found: dict[str, Stored], model: GPT, other: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """{our layer: (A, B)}; what a layer's own scale is over that of all goes into its B."""
    family = family_of(model.config)
    pairs, used = {}, set()
    for layer, module in model.blocks.named_modules(prefix="blocks"):
        if not isinstance(module, nn.Linear):
            continue
        place = place_of(f"{layer}.weight", family.names)
        theirs = family.prefix + place.name.removesuffix(".weight")
        names = [f"base_model.model.{theirs}.lora_{ab}.weight" for ab in "AB"]
        if found.keys().isdisjoint(names):
            continue
        R, scale = ranks.of(theirs)
        fused = 1 if place.third is None else 3  # GPT-2's q, k and v are one layer there
        expected = [(R, module.in_features), (fused * module.out_features, R)]
        parts = [found.get(name) for name in names]
        shapes = [s.shape if s and s.dtype in FLOATS.values() else None for s in parts]
        if shapes != expected:
            raise UserError(f"{other}: {theirs} has {shapes!s:.60}; expected {expected}")
        A, B = (part.read().float() for part in parts)  # (R, in), (out, R)
        B = B * (scale / ranks.scale)  # (out, R)
        if not (is_finite(A) and is_finite(B)):
            raise UserError(f"{ranks.path}: numbers of {theirs} are not finite: it is damaged")
        if fused > 1:
            B = B.chunk(3)[place.third]  # (out, R)
            mine = B.any(0)  # (R,), q, k and v side by side: take back this one's part
            if not mine.any():  # no part yet (a fresh adapter): any columns will do
                mine[: ranks.rank] = True
            A, B = A[mine], B[:, mine]  # (fewer R, in), (out, fewer R)
        pairs[layer] = A, B
        used.update(names)
    if not pairs or used != found.keys():
        left = sorted(found.keys() - used)[:1]
        raise UserError(f"{other}, or adapts more than its blocks: no place for {left!s:.160}")
    return pairs


class _Ranks:
    """Each layer's rank and scale, as PEFT takes them from an adapter_config.json."""

    def __init__(self, settings: dict[str, Any], path: Path) -> None:
        self.path, self.root = path, settings.get("use_rslora")
        self.tables = []  # (rank or alpha of all, [(a layer's pattern, its own), ...])
        for key, kind in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            default, own = settings.get(key, 8), settings.get(kind) or {}  # 8 is PEFT's default
            if not isinstance(own, dict) or len("".join(own)) > 2**16 or any(map(_counts_far, own)):
                raise UserError(f"{path}: {kind} is {own!r:.60}; expected short names with numbers")
            for name, value in [(key, default), *own.items()]:
                if not is_number(value) or key == "r" and (type(value) is not int or value < 1):
                    expected = "a whole number above 0" if key == "r" else "a number"
                    raise UserError(f"{path}: {name!r:.60} is {value!r:.60}; expected {expected}")
            try:  # the expression of PEFT's get_pattern_key()
                patterns = [(regex.compile(rf"(.*\.)?({p})$"), value) for p, value in own.items()]
            except (regex.error, RuntimeError) as e:
                raise UserError(f"{path}: {kind} has no pattern: {first_line(e)}") from None
            self.tables.append((default, patterns))
        self.rank, self.scale = self.of("")  # of all
        self.scale = self.scale or 1.0  # with 0 nothing would learn

    def of(self, layer: str) -> tuple[int, float]:
        """(rank, scale) of a layer, by its full name in PEFT; of all layers without a name."""
        try:
            rank, alpha = (
                next((own for p, own in patterns if p.match(layer, timeout=SECONDS)), default)
                for default, patterns in self.tables
            )
        except TimeoutError:
            raise UserError(f"{self.path}: a pattern takes too long for {layer}") from None
        return rank, alpha / (math.sqrt(rank) if self.root else rank)


def _counts_far(pattern: str) -> bool:
    """Whether x{60000} and its like, in each other, would take all memory to be compiled."""
    return math.prod(int(n[:4]) for n in regex.findall(r"[{,]0*([1-9]\d*)", pattern)) > 1000


def fingerprint(model: GPT) -> list[float]:
    """A few weights by which a model is known again, whatever dtype it is held in."""
    layer = model.blocks[0].attn.q
    W = layer.weight if isinstance(layer, nn.Linear) else layer.base.weight  # adapters attached
    flat = W.detach().flatten()
    return [round(x, 4) for x in flat[:: max(1, len(flat) // 16)][:16].float().tolist()]


def has_fingerprint(model: GPT, there: Any, where: Path) -> bool:
    """Whether it is this model's, in whatever precision. UserError if it is none; where it lies."""
    here = fingerprint(model)
    if not isinstance(there, list) or len(there) != len(here) or not all(map(is_number, there)):
        raise UserError(f"{where}: fingerprint is {there!r:.60}; expected {len(here)} numbers")
    both = torch.tensor(there, dtype=torch.float), torch.tensor(here)
    return torch.allclose(*both, rtol=0.05, atol=1e-3)


def _suffix(name: str) -> str:
    """'h.0.attn.c_attn' -> 'attn.c_attn': how PEFT names the same layer of all blocks."""
    return ".".join(name.split(".")[-2:])
