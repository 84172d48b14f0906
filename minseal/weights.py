"""Checkpoints: a folder with config.json, weights.pt and ranks.tiktoken."""

import json
import os
import pickle
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
        fields = json.loads((path / "config.json").read_text())["model"]
        config = GPTConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path / 'config.json'} describes no model of minseal: {e}") from None
    model = GPT(config)
    state = load_tensors(path / "weights.pt")
    mine = model.state_dict()
    if config.tied:
        mine.pop("head.weight")
    for name in sorted(set(mine) ^ set(state)):
        raise UserError(f"{path / 'weights.pt'}: {name} is {'missing' if name in mine else 'not a part of the model that config.json describes'}")
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
    path.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    if model.config.tied:
        state.pop("head.weight")
    save_tensors(path / "weights.pt", state)
    tokenizer.save(path / "ranks.tiktoken")
    (path / "config.json").write_text(json.dumps({"model": asdict(model.config), **about}, indent=1) + "\n")


def save_tensors(path, tensors):
    """Write {name: tensor} to a temporary name, then rename: a kill or a full disk never leaves half a file."""
    temporary = Path(f"{path}.tmp")
    try:
        torch.save({k: v.detach().cpu() for k, v in tensors.items()}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {e}; what was there before is untouched") from None


def load_tensors(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as e:
        raise UserError(f"{path} is damaged or no checkpoint ({str(e).splitlines()[0][:80]}): make or fetch it again") from None
