"""minseal against its peers: ratios of things run in turn in one process, on the same documents."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
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
from ..tokenizer import Tokenizer

PEERS = ("peft, batch size 1", "peft, padded batch")


@dataclass(frozen=True)
class BenchConfig(ModelConfig):
    """The inner loop: K adapters at once on packed rows, against transformers + peft.

    Both train on the same self-edits of the same model.
    """

    model: str = "tiny_data/knowledge"  # a folder, a GGUF file, or a hub id such as owner/name
    edits: int = 64  # self-edits for minseal; peft and K = 1 get every eighth of them
    epochs: int = 8  # passes over each self-edit
    repeats: int = 5  # rounds through all contestants; medians are printed
    seed: int = 0  # of the self-edits

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(edits=1, epochs=1, repeats=1, seed=0)


@dataclass
class Contestant:
    """A way to train on self-edits, and how long it took in each round."""

    edits: list[SelfEdit]
    run: Callable[[], Any]
    ms: list[float]  # for a self-edit of mean length


def bench_inner(config: BenchConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Print milliseconds a self-edit, ratios, and the share of the measured matmul rate."""
    for package in ("peft", "transformers"):
        need(package, "test", "the bench")
    model, tokenizer = load(config.model, config.device, config.dtype)
    weight, dtype = model.wte.weight, str(model.wte.weight.dtype).removeprefix("torch.")
    edits = sorted(make_edits(config, tokenizer), key=length)  # as the outer loop does
    tokens = float(np.mean([length(edit) for edit in edits]))
    documents = np.mean([len(edit.documents) for edit in edits])
    say(
        f"{len(edits)} self-edits of {documents:.1f} documents and {tokens:.0f} tokens, "
        f"{config.epochs} epochs, {torch.get_num_threads()} threads, {weight.device}, {dtype}, "
        f"{model.size() / 1e6:.2f} M parameters"
    )
    peer = Peer(model, tokenizer)
    contestants = enter(config, model, peer, edits)
    for contestant in contestants.values():  # once for nothing: caches, thread pools
        contestant.run()
    rates = []
    for _ in tqdm(range(config.repeats), unit="round", disable=None):
        rates.append(matmul_rate(weight))
        for contestant in contestants.values():
            start = now(weight.device)
            contestant.run()
            # By token, then for the mean length: an eighth is not as long as the whole.
            seconds = (now(weight.device) - start) / sum(map(length, contestant.edits))
            contestant.ms.append(seconds * tokens * 1e3)

    flop = flop_per_token(model, InnerConfig().rank) * tokens * config.epochs
    rows = {}
    for name, contestant in contestants.items():
        ms = np.array(contestant.ms)
        over = [float(np.median(np.array(contestants[peer].ms) / ms)) for peer in PEERS]
        share = float(np.median(flop / (ms / 1e3) / np.array(rates)))
        rows[name] = {
            "ms": float(np.median(ms)),
            "over batch size 1": over[0],
            "over padded batch": over[1],
            "share of matmul rate": share,
        }
    header = [
        "",
        "ms per self-edit",
        "x batch size 1",
        "x padded batch",
        "of matmul rate",
        "tokens/s",
    ]
    table = [header]
    for name, (ms, one, padded, share) in ((n, r.values()) for n, r in rows.items()):
        speed = tokens * config.epochs / ms * 1e3
        table.append(
            [name, f"{ms:.1f}", f"{one:.1f}", f"{padded:.1f}", f"{share:.0%}", f"{speed:.0f}"]
        )
    say("\n" + aligned(table))
    same = compare_losses(model, peer, contestants[PEERS[0]].edits[0], config.epochs)
    gflops = float(np.median(rates) / 1e9)
    say(
        f"\nmatmul rate, {dtype}: {gflops:.0f} GFLOP/s; one self-edit is {flop / 1e9:.1f} GFLOP "
        "here (linear layers and head, forward and backward).\nBoth train alike: their losses "
        f"differ by at most {same:.0e} over all steps of one self-edit."
    )
    return {"rows": rows, "matmul_gflops": gflops, "loss_difference": same}


def enter(
    config: BenchConfig, model: GPT, peer: "Peer", edits: list[SelfEdit]
) -> dict[str, Contestant]:
    """All contestants, in the order of the table."""
    few = edits[::8]  # one self-edit after another is slow: an eighth, long and short alike
    inner, most = InnerConfig(epochs=config.epochs), min(32, len(edits))
    one_document = InnerConfig(epochs=config.epochs, batch=1)

    def peers(batch: int) -> Callable[[], Any]:
        return lambda: [peer.adapt(edit, config.epochs, batch) for edit in few]

    def ours(some: list[SelfEdit], K: int, inner: InnerConfig) -> Contestant:
        return Contestant(some, lambda: train_in_groups(model, some, K, inner), [])

    out = {PEERS[0]: Contestant(few, peers(1), []), PEERS[1]: Contestant(few, peers(0), [])}
    out["minseal, K = 1"] = ours(few, 1, inner)
    for K in (8, 32, 64):
        if K <= len(edits):
            out[f"minseal, K = {K}"] = ours(edits, K, inner)
    out[f"minseal, K = {most}, one document a step"] = ours(edits, most, one_document)
    return out


def train_in_groups(model: GPT, edits: list[SelfEdit], K: int, inner: InnerConfig) -> None:
    for i in range(0, len(edits), K):
        with adapt(model, edits[i : i + K], inner):
            pass


def make_edits(config: BenchConfig, tokenizer: Tokenizer) -> list[SelfEdit]:
    """Self-edits from the prior that pretraining gave the policy: a passage and 3 to 8 notes."""
    rng, task = np.random.default_rng(config.seed), People(tokenizer)
    passages = toy_passages(config.edits, config.seed)
    return [task.parse(p, "\n".join(write_random_notes(p.person, rng))) for p in passages]


def length(edit: SelfEdit) -> int:
    """Tokens of a self-edit."""
    return sum(len(d.ids) for d in edit.documents)


class Peer:
    """The same model in transformers, with peft and torch's AdamW, one self-edit after another."""

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        from transformers import AutoModelForCausalLM, logging

        logging.disable_progress_bar()
        weight = model.wte.weight
        with tempfile.TemporaryDirectory() as folder:
            export(folder, model, tokenizer)
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=weight.dtype)
        self.model = theirs.to(weight.device)

    def adapt(
        self, edit: SelfEdit, epochs: int, batch: int, start: str | None = None
    ) -> list[float]:
        """Train one adapter; returns the losses.

        batch 0: all documents, padded, in one step. start: the folder of its first weights.
        """
        from peft import LoraConfig, PeftModel, get_peft_model

        inner, device = InnerConfig(), self.model.device
        if start is None:
            lora = LoraConfig(r=inner.rank, lora_alpha=inner.alpha, target_modules="all-linear")
            model = get_peft_model(self.model, lora)
        else:
            model = PeftModel.from_pretrained(self.model, start, is_trainable=True)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=inner.lr, weight_decay=0)
        documents = [torch.tensor(d.ids, device=device) for d in edit.documents]
        losses, size = [], batch or len(documents)
        pad = torch.nn.utils.rnn.pad_sequence
        for _ in range(epochs):
            for i in range(0, len(documents), size):
                some = documents[i : i + size]
                ids = pad(some, batch_first=True)  # (B, T)
                real = pad([torch.ones_like(d) for d in some], batch_first=True)  # (B, T)
                labels = ids.masked_fill(real == 0, -100)  # (B, T)
                loss = model(input_ids=ids, attention_mask=real, labels=labels).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        model.unload()
        return losses


def compare_losses(model: GPT, peer: Peer, edit: SelfEdit, epochs: int) -> float:
    """Largest difference of minseal's and peft's losses, from the same first weights."""
    inner = InnerConfig(epochs=epochs)
    lora = LoRAConfig(inner.rank, inner.alpha)
    with tempfile.TemporaryDirectory() as start:
        with attach(model, 1, lora, seed=0) as adapters:
            state = adapters.state()
        save_adapter(start, model, state, lora, "the bench's model")
        theirs = peer.adapt(edit, epochs, 0, start)
    with adapt(model, [edit], inner, seed=0) as adapters:
        mine = adapters.losses[0]
    return float(np.abs(np.array(mine) - np.array(theirs)).max())


def matmul_rate(like: Tensor, times: int = 6) -> float:
    """Measured matmul rate in FLOP/s, on the device and in the dtype of `like`."""
    n = 1536 if like.device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=like.device).to(like.dtype) for _ in range(2))
    a @ b
    start = now(like.device)
    for _ in range(times):
        a @ b
    return 2 * n**3 * times / (now(like.device) - start)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def flop_per_token(model: GPT, rank: int) -> int:
    """Forward and backward of one token: 4 FLOP a frozen weight, 6 an adapter's.

    A frozen weight's own gradient is not needed.
    """
    linears = [m for m in model.blocks.modules() if isinstance(m, torch.nn.Linear)]
    frozen = sum(m.weight.numel() for m in linears) + model.head.weight.numel()
    return 4 * frozen + 6 * rank * sum(m.in_features + m.out_features for m in linears)
