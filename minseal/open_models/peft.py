"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import UserError, first_line, read_json, write_folder, write_json
from ..lora import TARGETS, Adapters, LoRAConfig, attach
from ..model import GPT
from .families import Stored, family_of, place_of
from .safetensors import read_safetensors, write_safetensors

# With other values of these, an adapter is more than y = x W^T + scale (x A^T) B^T.
PLAIN = {"use_dora": False, "use_rslora": False, "bias": "none", "modules_to_save": None}


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
    for key, value in (PLAIN | {"peft_type": "LORA"}).items():
        if settings.get(key, value) not in (value, [], None):
            raise UserError(f"{path}: {key} is {settings[key]!r}; expected {value!r}")
    base = settings.get("base_model_name_or_path")
    other = f"{path} was made for another model ({base}) than {name}"
    try:
        here = fingerprint(model)
        there = read_json(ours).get("fingerprint", here) if ours.is_file() else here
        if not torch.allclose(torch.tensor(there), torch.tensor(here), rtol=0.05, atol=1e-3):
            raise UserError(f"{other}: their weights differ")
        pairs, scale = _match(settings, read_safetensors(weights), model, other)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, RuntimeError, re.error) as e:
        raise UserError(f"{path} is damaged: {type(e).__name__} {first_line(e)}") from None
    R = max(len(A) for A, _ in pairs.values())
    targets = tuple(t for t in TARGETS if any(layer.endswith(f".{t}") for layer in pairs))
    config = LoRAConfig(R, scale * R, targets)
    adapters = attach(model, 1, config)
    state = adapters.state()  # B is 0: what is not filled changes nothing, and can still learn
    for layer, (A, B) in pairs.items():
        state[f"{layer}.A"][0, : len(A)] = A.to(model.wte.weight.device)
        state[f"{layer}.B"][0, :, : len(A)] = B.to(model.wte.weight.device)
    adapters.load(state)
    return adapters, config


def _match(
    settings: dict[str, Any], found: dict[str, Stored], model: GPT, other: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """({our layer: (A, B)}, the scale of all): a layer's own scale goes into its B."""
    family = family_of(model.config)
    pairs, used, scale = {}, set(), settings["lora_alpha"] / settings["r"]
    for layer, module in model.blocks.named_modules(prefix="blocks"):
        if not isinstance(module, nn.Linear):
            continue
        place = place_of(f"{layer}.weight", family.names)
        theirs = place.name.removesuffix(".weight")
        names = [f"base_model.model.{family.prefix}{theirs}.lora_{ab}.weight" for ab in "AB"]
        if names[0] not in found:
            continue
        A, B = (found[name].read().float() for name in names)  # (R, in), (out, R)
        B = B * (_alpha(settings, theirs) / len(A) / scale)  # (out, R)
        if place.third is not None and len(B) == 3 * module.out_features:
            B = B.chunk(3)[place.third]  # (out, R)
            mine = B.any(0)  # (R,), q, k and v side by side: take back this one's part
            if not mine.any():  # no part yet (a fresh adapter): any columns will do
                mine[: settings["r"]] = True
            A, B = A[mine], B[:, mine]  # (fewer R, in), (out, fewer R)
        if A.shape[1] != module.in_features or tuple(B.shape) != (module.out_features, len(A)):
            raise UserError(f"{other}: the shapes of {theirs} do not fit {layer}")
        pairs[layer] = A, B
        used.update(names)
    if not pairs or used != found.keys():
        left = sorted(found.keys() - used)[:1]
        raise UserError(f"{other}, or adapts more than its blocks: no place for {left}")
    return pairs, scale


def _alpha(settings: dict[str, Any], layer: str) -> float:
    """A layer's own alpha, or the one of all."""
    for key, alpha in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return alpha
    return settings["lora_alpha"]


def fingerprint(model: GPT) -> list[float]:
    """A few weights by which a model is known again, whatever dtype it is held in."""
    layer = model.blocks[0].attn.q
    W = layer.weight if isinstance(layer, nn.Linear) else layer.base.weight  # adapters attached
    flat = W.detach().flatten()
    return [round(x, 4) for x in flat[:: max(1, len(flat) // 16)][:16].float().tolist()]


def _suffix(name: str) -> str:
    """'h.0.attn.c_attn' -> 'attn.c_attn': how PEFT names the same layer of all blocks."""
    return ".".join(name.split(".")[-2:])
