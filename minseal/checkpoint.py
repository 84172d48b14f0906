"""minseal's own model folder: config.json, weights.pt, and the tokenizer's files."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import UserError, load_tensors, read_json, write_folder, write_json, write_tensors
from .model import GPT, GPTConfig, rope_frequencies
from .tokenizer import Tokenizer

LARGEST_TABLE = 2**24  # values of a table of cos or sin (64 MB) that any model may have
OPTIONAL = ("n_kv_head", "head_dim", "mlp_dim", "rope_theta")


def save(path: str | Path, model: GPT, tokenizer: Tokenizer, about: dict[str, Any]) -> None:
    """Write minseal's own folder. about: goes to config.json, beside the settings."""
    settings = {"model": asdict(model.config), "tokenizer": tokenizer.settings(), **about}
    files = {"weights.pt": write_tensors(parameters_of(model)), **tokenizer.files()}
    write_folder(path, files | {"config.json": write_json(settings)})


def read(path: Path) -> tuple[GPTConfig, dict[str, Tensor], dict[str, Any] | None]:
    """A folder that save() wrote -> (settings of the model, mapped weights, the tokenizer's)."""
    about = read_json(path / "config.json")
    if not isinstance(about.get("model"), dict):
        raise UserError(f'{path / "config.json"}: expected settings under "model"')
    # JSON has lists where GPTConfig has tuples.
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in about["model"].items()}
    config = make_config(values, path / "config.json")
    return config, load_tensors(path / "weights.pt"), about.get("tokenizer")


def parameters_of(model: GPT) -> dict[str, Tensor]:
    """{name: parameter} of a model without adapters; a tied head is there once."""
    if model.n_adapters is not None:
        raise UserError("the model has adapters: merge or remove them before it is written")
    return dict(model.named_parameters())


def make_config(values: dict[str, Any], where: object, keys: dict[str, str] = {}) -> GPTConfig:
    """GPTConfig(**values) with a stranger's values. keys: our field -> what it is called there."""
    for name, value in values.items():
        expected, fits = FITS.get(type(getattr(GPTConfig, name, "")), ("", lambda v: True))
        if not fits(value):
            name = keys.get(name, name)
            raise UserError(f"{where}: {name} is {value!r:.60}; expected {expected}")
    if missing := [key for name, key in keys.items() if name not in {*values, *OPTIONAL}]:
        raise UserError(f"{where} has no {missing[0]}")
    if "n_head" in values and "n_embd" in values:  # what follows from these may be left out
        heads, width = values["n_head"], values["n_embd"]
        values = {"n_kv_head": heads, "head_dim": width // heads, "mlp_dim": 4 * width} | values
    try:
        config = GPTConfig(**values)
        if config.head_dim < 1 or config.position == "rope" and config.head_dim % 2:
            raise ValueError(f"head_dim is {config.head_dim}; rotary positions need an even one")
        return config
    except (ValueError, TypeError, ArithmeticError) as e:
        raise UserError(f"{where} describes no model: {e}") from None


def is_finite(t: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite (isfinite().all(): 30 times the time)."""
    return all(map(math.isfinite, torch.aminmax(t)))


def check_positions(config: GPTConfig, size: int, where: object) -> None:
    """Raises UserError if the rotary positions are no numbers, or more than all `size` weights.

    (Qwen2.5 of a million tokens: 1 % of 14 billion.)
    """
    if not rope_frequencies(config).isfinite().all():
        raise UserError(f"{where} describes no model: its rotary positions are not finite")
    if config.block_size * config.head_dim > max(LARGEST_TABLE, size):
        names = "max_position_embeddings, context_length or block_size"
        raise UserError(f"{where}: no room for {config.block_size} rotary positions ({names})")


def is_number(v: Any) -> bool:
    """Whether a stranger's value is a number that one can go on with."""
    return type(v) in (int, float) and abs(v) < 1e18


def _is_above_0(v: Any) -> bool:
    return is_number(v) and v > 0


def _scales(v: Any) -> bool:
    return v is None or type(v) is tuple and len(v) == 4 and all(map(_is_above_0, v))


FITS = {  # what a field of GPTConfig may be, by the type of its default
    bool: ("true or false", lambda v: type(v) is bool),
    int: ("a whole number above 0", lambda v: type(v) is int and 0 < v < 2**31),
    float: ("a number above 0", _is_above_0),
    type(None): ("4 numbers above 0", _scales),  # rope_scaling
}
