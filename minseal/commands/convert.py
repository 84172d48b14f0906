"""Open weights into minseal's own folder, and any model out again for transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..checkpoint import save
from ..config import Settings
from ..files import claim
from ..lab.lab import model_of, restore_policy
from ..lab.run import Run
from ..open_models import export as write_for_transformers
from ..open_models.load import load
from ..open_models.peft import load_adapter
from ..terminal import say


@dataclass(frozen=True)
class ConvertConfig(Settings):
    """Open weights into minseal's own folder: GPT-2, Llama 3, SmolLM2, Qwen2.5 and Qwen3."""

    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"  # what it is written in


@dataclass(frozen=True)
class ExportConfig(ConvertConfig):
    """A model into a folder that transformers loads to the same logits."""

    adapter: str = ""  # merge this adapter in, too


def convert(config: ConvertConfig, source: str, out: str) -> None:
    """Load and save; prints what it was."""
    with claim(out):
        model, tokenizer = load(source, "cpu", config.dtype)
        save(out, model, tokenizer, {"about": {"source": source}})
    c, dtype = model.config, str(model.wte.weight.dtype).removeprefix("torch.")
    say(
        f"{out}: {model.size() / 1e6:.1f} M parameters in {dtype}, {c.n_layer} blocks, {c.n_embd} "
        f"wide, reads {c.block_size} tokens, {tokenizer.vocab_size} tokens of {c.vocab_size}, "
        f"chat format: {tokenizer.chat or 'none'}"
    )


def export(config: ExportConfig, source: str, out: str) -> None:
    """Load, restore the policy if `source` is a run, merge the adapter, write."""
    with claim(out):
        is_run = (Path(source) / "events.jsonl").is_file()
        weights = model_of(Run(source)) if is_run else source
        model, tokenizer = load(weights, "cpu", config.dtype)
        if is_run:
            restore_policy(model, source)
        if config.adapter:
            load_adapter(config.adapter, model, weights)[0].merge()
        write_for_transformers.export(out, model, tokenizer)
    say(f"{out}: transformers.AutoModelForCausalLM.from_pretrained({out!r}) loads it")
