"""Checkpoints: a folder with config.json, weights.pt and ranks.tiktoken."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch

from .errors import UserError
from .model import GPT, GPTConfig
from .tokenizer import Tokenizer


def load(path, device="auto"):
    """A checkpoint folder -> (model, tokenizer). A relative path is looked up here, then in minseal's own clone."""
    path = Path(path) if Path(path).exists() else Path(__file__).parent.parent / path
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if not (path / "config.json").is_file():
        raise UserError(f"no checkpoint at {path}: expected a folder with config.json, weights.pt and ranks.tiktoken")
    try:
        fields = json.loads((path / "config.json").read_text(encoding="utf-8"))["model"]
        config = GPTConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        model = GPT(config)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError) as e:
        raise UserError(f"{path / 'config.json'} describes no model of minseal: {e}") from None
    state = load_tensors(path / "weights.pt")
    mine = model.state_dict()
    if config.tied:
        mine.pop("head.weight")
    if odd := sorted(set(mine) ^ set(state)):
        raise UserError(f"{path / 'weights.pt'}: {odd[0]} is {'missing' if odd[0] in mine else 'not a part of the model that config.json describes'}")
    for name, tensor in state.items():
        if tensor.shape != mine[name].shape:
            raise UserError(f"{path / 'weights.pt'}: {name} has shape {tuple(tensor.shape)}, config.json says {tuple(mine[name].shape)}")
    model.load_state_dict(state, strict=False)
    tokenizer = Tokenizer.load(path / "ranks.tiktoken")
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}")
    return model.to(device).eval(), tokenizer


def save(path, model, tokenizer, about):
    """Write a checkpoint folder; `about` (a dict) is kept in config.json beside the model's settings."""
    path = Path(path)
    state = model.state_dict()
    if model.config.tied:
        state.pop("head.weight")
    config = json.dumps({"model": asdict(model.config), **about}, indent=1) + "\n"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make the folder {path}: {e}") from None
    write_whole({path / "weights.pt": lambda temporary: torch.save({k: v.cpu() for k, v in state.items()}, temporary),
                 path / "ranks.tiktoken": tokenizer.save, path / "config.json": lambda temporary: temporary.write_text(config, encoding="utf-8")})


def save_tensors(path, tensors):
    """Write {name: tensor} to one file."""
    write_whole({Path(path): lambda temporary: torch.save({k: v.detach().cpu() for k, v in tensors.items()}, temporary)})


def write_whole(writers):
    """{path: function(temporary path) that writes it}: all under temporary names, then renamed.

    A kill or a full disk never leaves half a file, and what was there before survives.
    """
    temporaries = {path: Path(f"{path}.tmp") for path in writers}
    try:
        for path, temporary in temporaries.items():
            writers[path](temporary)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch.save turns a full disk into a RuntimeError
        for temporary in temporaries.values():
            if temporary.exists():
                temporary.unlink()
        raise UserError(f"cannot write {path}: {e}; what was there before is untouched") from None


def load_tensors(path):
    """{name: tensor} from a file; never runs code from it (weights_only)."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except Exception as e:  # torch.load knows a dozen errors for a file that is none of its own
        told = f"{type(e).__name__}: {e}".split("\n")[0][:100]
        raise UserError(f"{path} is damaged or no checkpoint ({told}): make or fetch it again") from None
    if not isinstance(tensors, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in tensors.items()):
        raise UserError(f"{path} is no checkpoint: expected names with tensors")
    return tensors
