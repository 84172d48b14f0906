"""LoRA adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors, written and read."""

import re
from pathlib import Path

import torch

from .errors import UserError
from .families import located
from .files import read_json, read_safetensors, write_folder, write_json, write_safetensors
from .lora import TARGETS, LoRAConfig, attach
from .weights import describe

# Settings of PEFT with which an adapter is more than y = x W^T + scale (x A^T) B^T.
PLAIN = {
    "use_dora": False,
    "use_rslora": False,
    "lora_bias": False,
    "bias": "none",
    "modules_to_save": None,
}


def save_adapter(path, model, state, config, base, k=0, about=None):
    """Write adapter k of an Adapters.state() to a folder that peft loads.

    config: the LoRAConfig it was made with. base: name of the model underneath. about: a dict, kept in minseal.json.
    """
    family, _ = describe(model.config)
    parts = {}  # their layer -> [(third, A, B)]
    for layer in dict.fromkeys(name.rsplit(".", 1)[0] for name in state):
        theirs, third, _ = located(f"{layer}.weight", family)
        parts.setdefault(theirs.removesuffix(".weight"), []).append(
            (third, state[f"{layer}.A"][k].cpu(), state[f"{layer}.B"][k].cpu())
        )
    tensors, wide = {}, {}
    for theirs, some in parts.items():
        A, B = torch.cat([A for _, A, _ in some]), some[0][2]  # (R, in), (out, R)
        if some[0][0] is not None:
            # GPT-2's q, k and v are one layer there: their adapters become one, of up to three times the rank.
            B = torch.zeros(3, len(B), len(A))  # (3, C, up to 3 R)
            for i, (third, _, part) in enumerate(some):
                B[third, :, i * config.rank : (i + 1) * config.rank] = part
            B, wide[_suffix(theirs)] = B.flatten(0, 1), len(A)  # (3 C, up to 3 R)
        name = f"base_model.model.{'transformer.' if family.name == 'gpt2' else ''}{theirs}"
        tensors |= {f"{name}.lora_A.weight": A.float(), f"{name}.lora_B.weight": B.float()}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({_suffix(name) for name in parts}),
        "fan_in_fan_out": family.name == "gpt2",
        "rank_pattern": wide,
        "alpha_pattern": {name: config.alpha * r / config.rank for name, r in wide.items()},
        **PLAIN,
    }
    write_folder(
        path,
        {
            "adapter_model.safetensors": write_safetensors(tensors),
            "adapter_config.json": write_json(settings),
            "minseal.json": write_json(
                {"base": base, "fingerprint": fingerprint(model), **(about or {})}
            ),
        },
    )


def load_adapter(path, model, name="this model"):
    """Attach the adapter in a folder of PEFT's (or of save_adapter) to the model: (Adapters, its LoRAConfig).

    Raises UserError if it was made for another model (both are named), or uses what minseal's LoRA does not have.
    """
    path = Path(path)
    if not (path / "adapter_config.json").is_file():
        raise UserError(
            f"no adapter at {path}: expected a folder with adapter_config.json and adapter_model.safetensors"
        )
    settings = read_json(path / "adapter_config.json")
    base = settings.get("base_model_name_or_path")
    for key, value in {**PLAIN, "peft_type": "LORA"}.items():
        if settings.get(key, value) not in (value, []) and settings[key] is not None:
            raise UserError(
                f"{path}: {key} is {settings[key]!r}; minseal's LoRA has it {value!r} only"
            )
    if not (path / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{path} has no adapter_model.safetensors (pickles are refused: they can run code when read)"
        )
    other = f"{path} was made for another model ({base}) than {name}"
    try:
        there = (
            read_json(path / "minseal.json").get("fingerprint")
            if (path / "minseal.json").is_file()
            else None
        )
        if there and not torch.allclose(
            torch.tensor(there), torch.tensor(fingerprint(model)), rtol=0.05, atol=1e-3
        ):
            raise UserError(f"{other}: their weights differ")
        pairs, scale = _pairs(
            settings, read_safetensors(path / "adapter_model.safetensors"), model, other
        )
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, RuntimeError, re.error) as e:
        raise UserError(
            f"{path} is damaged: {type(e).__name__} {str(e).splitlines()[0][:100] if str(e) else ''}"
        ) from None
    R = max(len(A) for A, _ in pairs.values())
    config = LoRAConfig(
        R, scale * R, tuple(t for t in TARGETS if any(layer.endswith(f".{t}") for layer in pairs))
    )
    adapters = attach(model, 1, config)
    state = adapters.state()  # B is 0: what is not filled changes nothing, and can still learn
    for layer, (A, B) in pairs.items():
        state[f"{layer}.A"][0, : len(A)], state[f"{layer}.B"][0, :, : len(A)] = (
            A.to(model.wte.weight.device),
            B.to(model.wte.weight.device),
        )
    adapters.load(state)
    return adapters, config


def _pairs(settings, found, model, other):
    """({our layer: (A, B)}, the scale of all): a layer's own scale goes into its B."""
    family, _ = describe(model.config)
    found = {
        name.removeprefix("base_model.model.").removeprefix("transformer."): t
        for name, t in found.items()
    }
    pairs, used, scale = {}, set(), settings["lora_alpha"] / settings["r"]
    for layer, module in model.named_modules():
        if (
            not layer.startswith("blocks.")
            or layer.split(".")[-1] not in TARGETS
            or not isinstance(module, torch.nn.Linear)
        ):
            continue
        theirs, third, _ = located(f"{layer}.weight", family)
        theirs = theirs.removesuffix(".weight")
        names = f"{theirs}.lora_A.weight", f"{theirs}.lora_B.weight"
        if names[0] not in found:
            continue
        A, B = (found[name].read().float() for name in names)  # (R, in), (out, R)
        if third is not None and len(B) == 3 * module.out_features:
            B = B.chunk(3)[third]  # (out, R)
            mine = B.any(0)  # (R,), q, k and v side by side: take back this one's part
            mine[
                : settings["r"]
            ] |= not mine.any()  # no part yet (a fresh adapter): any columns will do
            A, B = A[mine], B[:, mine]  # (fewer R, in), (out, fewer R)
        if A.shape[1] != module.in_features or tuple(B.shape) != (module.out_features, len(A)):
            raise UserError(
                f"{other}: A {tuple(A.shape)} and B {tuple(B.shape)} of {theirs} do not fit {layer}, which is ({module.out_features}, {module.in_features})"
            )
        pairs[layer] = (
            A,
            B
            * (
                _of(settings, "alpha_pattern", "lora_alpha", theirs)
                / _of(settings, "rank_pattern", "r", theirs)
                / scale
            ),
        )
        used.update(names)
    if odd := sorted(set(found) - used) or not pairs and ["no tensor"]:
        raise UserError(
            f"{other}, or adapts more than the linear layers of its blocks: {odd[0]} has no place here"
        )
    return pairs, scale


def fingerprint(model):
    """A few weights by which a model is known again, whatever dtype it is held in."""
    W = (
        model.blocks[0].attn.q.weight
        if isinstance(model.blocks[0].attn.q, torch.nn.Linear)
        else model.blocks[0].attn.q.base.weight
    )
    flat = W.detach().flatten()
    return [round(x, 4) for x in flat[:: max(1, len(flat) // 16)][:16].float().tolist()]


def _suffix(name):
    """'h.0.attn.c_attn' -> 'attn.c_attn': how PEFT names the same layer of all blocks."""
    return ".".join(name.split(".")[-2:])


def _of(settings, pattern, default, name):
    """A layer's own rank or alpha, or the one of all."""
    for key, value in (settings.get(pattern) or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return settings[default]
