"""minseal against transformers + peft: in turn, in one process, on the same self-edits."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..config import ModelConfig
from ..files import need
from ..inner import InnerConfig, adapt
from ..lab.table import aligned
from ..lora import LoRAConfig, attach
from ..model import GPT
from ..open_models.export import export
from ..open_models.load import load
from ..open_models.peft import save_adapter
from ..selfedit import SelfEdit
from ..tasks.people import People, toy_passages, write_random_notes
from ..terminal import say
from ..tokenizer import Tokenizer

PEERS = ("peft, batch size 1", "peft, padded batch")


@dataclass(frozen=True)
class BenchConfig(ModelConfig):
    """The inner loop, K adapters at once on packed rows, against transformers + peft."""

    model: str = "tiny_data/knowledge"  # a folder, a GGUF file, or a hub id such as owner/name
    edits: int = 64  # self-edits for minseal; peft and K = 1 get every eighth of them
    epochs: int = 8  # passes over each self-edit
    repeats: int = 5  # rounds through all contestants; medians are printed
    seed: int = 0  # of the self-edits

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(edits=1, epochs=1, repeats=1, seed=0)


def bench_inner(config: BenchConfig, say: Callable[[str], None] = say) -> dict[str, Any]:
    """Print milliseconds a self-edit, ratios and speed, and whether both sides train alike."""
    for package in ("peft", "transformers"):
        need(package, "test", "the bench")
    model, tokenizer = load(config.model, config.device, config.dtype)
    device, dtype = model.wte.weight.device, str(model.wte.weight.dtype).removeprefix("torch.")
    inner = InnerConfig(epochs=config.epochs)
    edits = sorted(write_edits(config, tokenizer), key=SelfEdit.length)  # as the outer loop does
    tokens = float(np.mean([edit.length() for edit in edits]))
    say(
        f"{len(edits)} self-edits of {tokens:.0f} tokens, {config.epochs} epochs, {device}, "
        f"{dtype}, {torch.get_num_threads()} threads, {model.size() / 1e6:.2f} M parameters"
    )
    peer = to_transformers(model, tokenizer)
    contestants = enter(model, peer, edits, inner)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in tqdm(range(1 + config.repeats), unit="round", disable=None):
        for name, (some, train) in contestants.items():
            start = now(device)
            train(some)
            # By token, then for the mean length: an eighth is not as long as the whole.
            seconds = (now(device) - start) / sum(map(SelfEdit.length, some))
            times[name].append(seconds * tokens * 1e3)
    ms = {name: np.array(some[1:]) for name, some in times.items()}  # the first one warms up

    rows, table = {}, [["", "ms per self-edit", "x batch size 1", "x padded batch", "tokens/s"]]
    for name in contestants:
        middle = float(np.median(ms[name]))
        one, padded = (float(np.median(ms[rival] / ms[name])) for rival in PEERS)
        rows[name] = {"ms": middle, "over batch size 1": one, "over padded batch": padded}
        speed = tokens * config.epochs / middle * 1e3
        table.append([name, f"{middle:.1f}", f"{one:.1f}", f"{padded:.1f}", f"{speed:.0f}"])
    say("\n" + aligned(table))
    worst = compare_losses(model, peer, edits[:1], inner)
    say(f"\nBoth train alike: on one self-edit their losses differ by at most {worst:.0e}.")
    return {"rows": rows, "loss_difference": worst}


def enter(model: GPT, peer: Any, edits: list[SelfEdit], inner: InnerConfig) -> dict[str, tuple]:
    """{contestant: (self-edits, what trains on them)}, in the order of the table."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=inner.rank, lora_alpha=inner.alpha, target_modules="all-linear")
    wrap = partial(get_peft_model, peer, lora)
    few = edits[::8]  # one self-edit after another is slow: an eighth, long and short alike
    single, most = replace(inner, batch=1), min(32, len(edits))  # one document a step
    contestants = {
        PEERS[0]: (few, partial(train_peer, wrap, single)),
        PEERS[1]: (few, partial(train_peer, wrap, inner)),
    }
    for K in (1, 8, 32, 64):
        if K <= len(edits):
            some = few if K == 1 else edits
            contestants[f"minseal, K = {K}"] = (some, partial(train_ours, model, inner, K))
    last = f"minseal, K = {most}, one document a step"
    return contestants | {last: (edits, partial(train_ours, model, single, most))}


def train_ours(model: GPT, inner: InnerConfig, K: int, edits: list[SelfEdit]) -> None:
    """K adapters at once."""
    for i in range(0, len(edits), K):
        with adapt(model, edits[i : i + K], inner):
            pass


def train_peer(wrap: Callable[[], Any], inner: InnerConfig, edits: list[SelfEdit]) -> list[float]:
    """One adapter of peft's, wrap(), after another; returns the losses of the last one."""
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    for edit in edits:
        model = wrap()
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=inner.lr, weight_decay=0)
        documents = [torch.tensor(d.ids, device=model.device) for d in edit.documents]
        losses, size = [], inner.batch or len(documents)
        for _ in range(inner.epochs):
            for i in range(0, len(documents), size):
                some = documents[i : i + size]
                ids, real = pad(some), pad([torch.ones_like(d) for d in some])  # each (B, T)
                labels = ids.masked_fill(real == 0, -100)  # (B, T)
                loss = model(input_ids=ids, attention_mask=real, labels=labels).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        model.unload()
    return losses


def compare_losses(model: GPT, peer: Any, edits: list[SelfEdit], inner: InnerConfig) -> float:
    """Largest difference of minseal's and peft's losses, from the same first weights."""
    from peft import PeftModel

    lora = LoRAConfig(inner.rank, inner.alpha)
    with attach(model, 1, lora) as adapters:
        state = adapters.state()
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(folder, model, state, lora, "the bench's model")
        wrap = partial(PeftModel.from_pretrained, peer, folder, is_trainable=True)
        theirs = train_peer(wrap, inner, edits)
    with adapt(model, edits, inner) as adapters:
        return float(np.abs(np.subtract(theirs, adapters.losses[0])).max())


def to_transformers(model: GPT, tokenizer: Tokenizer) -> Any:
    """The same model in transformers."""
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()
    weight = model.wte.weight
    with tempfile.TemporaryDirectory() as folder:
        export(folder, model, tokenizer)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=weight.dtype)
    return theirs.to(weight.device)


def write_edits(config: BenchConfig, tokenizer: Tokenizer) -> list[SelfEdit]:
    """Self-edits as pretraining made the policy write them: a passage and 3 to 8 notes."""
    rng, task = np.random.default_rng(config.seed), People(tokenizer)
    passages = toy_passages(config.edits, config.seed)
    return [task.parse(p, "\n".join(write_random_notes(p.person, rng))) for p in passages]


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
