"""GPT -> a folder that transformers loads, to the same logits and ids."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import parameters_of
from ..files import UserError, write_folder, write_json
from ..model import GPT, GPTConfig
from ..tokenizer import Tokenizer
from .families import LLAMA3_ROPE, Family, family_of, place_of
from .safetensors import write_safetensors
from .tokenizers import to_open


def export(path: str | Path, model: GPT, tokenizer: Tokenizer) -> None:
    """Write config.json, model.safetensors and the tokenizer's files in Hugging Face's layout."""
    family, about = to_hugging_face(model.config)
    about["dtype"] = str(model.wte.weight.dtype).removeprefix("torch.")
    about["eos_token_id"] = tokenizer.eot
    about["bos_token_id"] = next(iter(tokenizer.bos), None)
    weights = write_safetensors(their_tensors(model, family), path)
    files = {"model.safetensors": weights, "config.json": write_json(about)}
    write_folder(path, files | to_open(tokenizer).files())


def their_tensors(model: GPT, family: Family) -> dict[str, Tensor]:
    """{their name: tensor}: every parameter where load() would look for it."""
    parts: dict[str, list[Tensor]] = {}  # q, k and v of GPT-2 come in the order of their thirds
    for ours, parameter in parameters_of(model).items():
        place = place_of(ours, family.names, family.transposed)
        name = place.name if place.name.startswith("lm_head.") else family.prefix + place.name
        turned = parameter.detach().T if place.transposed else parameter.detach()
        parts.setdefault(name, []).append(turned)
    return {name: torch.cat(some, -1) if some[1:] else some[0] for name, some in parts.items()}


def to_hugging_face(config: GPTConfig) -> tuple[Family, dict[str, Any]]:
    """GPTConfig -> its Family, and what their config.json says. (Back: load.from_hugging_face.)"""
    family = family_of(config)
    grouped, width = config.n_kv_head != config.n_head, config.n_head * config.head_dim
    if family.name == "gpt2" and (grouped or width != config.n_embd):
        raise UserError("GPT-2 has no grouped heads and no head_dim: this model is not exported")
    about = {"architectures": [family.architecture], "model_type": family.name, **family.expected}
    about |= {theirs: getattr(config, ours) for ours, theirs in family.keys.items()}
    if config.rope_scaling is not None:
        scaling = dict(zip(LLAMA3_ROPE, config.rope_scaling))
        about["rope_scaling"] = {"rope_type": "llama3", **scaling}
    return family, about
