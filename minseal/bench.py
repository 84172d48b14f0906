"""minseal against its peers: ratios of things run in turn in one process, on the same documents and weights."""

import json
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from .adapters import save_adapter
from .errors import UserError, at_least, one_of
from .inner import InnerConfig, adapt
from .lora import LoRAConfig, attach
from .tasks import world
from .tasks.knowledge import Knowledge, toy_contexts
from .weights import DTYPES, export, load


@dataclass(frozen=True)
class BenchConfig:
    """The inner loop: K adapters at once on packed rows, against transformers + peft on the same model and self-edits."""

    model: str = "tiny_data/knowledge"  # a folder (minseal's own or Hugging Face's), a GGUF file, or a hub id such as owner/name
    device: str = "auto"  # auto | cpu | cuda: auto takes a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16: of the model's weights; auto: as they are stored
    edits: int = 64  # self-edits for minseal; peft and K = 1 get every eighth of them (an open model: 16 take a while)
    epochs: int = 8  # passes over each self-edit
    repeats: int = 5  # rounds through all contestants; medians are printed
    seed: int = 0  # of the self-edits
    json: str = ""  # write the numbers to this file, too

    def __post_init__(self):
        at_least(self, edits=1, epochs=1, repeats=1, seed=0)
        one_of(self, dtype=("auto", *DTYPES))


def bench_inner(config, say=print):
    """Print milliseconds per self-edit, ratios, and the share of the measured matmul rate; returns them as a dict."""
    try:
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as e:
        raise UserError(f"the bench needs {e.name}: pip install 'minseal[test]'") from None
    model, tokenizer = load(config.model, config.device, config.dtype)
    weight = model.wte.weight
    edits = self_edits(config, Knowledge(tokenizer))
    tokens = np.mean([length(e) for e in edits])
    say(
        f"{len(edits)} self-edits of {np.mean([len(e.documents) for e in edits]):.1f} documents and {tokens:.0f} tokens, {config.epochs} epochs, "
        f"{torch.get_num_threads()} threads, {weight.device}, {str(weight.dtype).removeprefix('torch.')}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"
    )
    peer = Peer(model, tokenizer)
    ordered = sorted(edits, key=length)  # as the outer loop does
    few = ordered[
        ::8
    ]  # one self-edit after another is slow: an eighth of them, long and short alike
    contestants = {
        "peft, batch size 1": (few, lambda: [peer.adapt(e, config.epochs, 1) for e in few]),
        "peft, padded batch": (few, lambda: [peer.adapt(e, config.epochs, 0) for e in few]),
    }
    for K in [K for K in (1, 8, 32, 64) if K == 1 or K <= len(edits)]:
        some = ordered if K > 1 else few
        contestants[f"minseal, K = {K}"] = (
            some,
            lambda some=some, K=K: ours(model, some, K, InnerConfig(epochs=config.epochs)),
        )
    most = min(32, len(edits))
    contestants[f"minseal, K = {most}, one document a step"] = (
        ordered,
        lambda: ours(model, ordered, most, InnerConfig(epochs=config.epochs, batch=1)),
    )

    times, rates = {name: [] for name in contestants}, []
    for _, run in contestants.values():  # once for nothing: caches, thread pools
        run()
    for _ in tqdm(range(config.repeats), unit="round", disable=None):
        rates.append(matmul_rate(weight))
        for name, (some, run) in contestants.items():
            start = now(weight.device)
            run()
            # per token, then for the mean length: the eighth is not as long as the whole
            times[name].append((now(weight.device) - start) / sum(map(length, some)) * tokens * 1e3)
    flop = flop_per_token(model, InnerConfig().rank) * tokens * config.epochs
    rows = {}
    for name, ms in times.items():
        over = [
            np.median(np.array(times[peer_name]) / np.array(ms)) for peer_name in list(times)[:2]
        ]
        share = np.median(flop / (np.array(ms) / 1e3) / np.array(rates))
        rows[name] = {
            "ms": float(np.median(ms)),
            "over batch size 1": float(over[0]),
            "over padded batch": float(over[1]),
            "share of matmul rate": float(share),
        }
    same = same_losses(model, peer, few[0], config.epochs)

    say(
        f"\n{'':38}{'ms per self-edit':>18}{'x batch size 1':>16}{'x padded batch':>16}{'of matmul rate':>16}{'tokens/s':>10}"
    )
    for name, r in rows.items():
        say(
            f"{name:38}{r['ms']:18.1f}{r['over batch size 1']:16.1f}{r['over padded batch']:16.1f}{r['share of matmul rate']:16.0%}{tokens * config.epochs / r['ms'] * 1e3:10.0f}"
        )
    say(
        f"\nmatmul rate, {str(weight.dtype).removeprefix('torch.')}: {np.median(rates) / 1e9:.0f} GFLOP/s; one self-edit is {flop / 1e9:.1f} GFLOP here (linear layers and head, forward and backward)."
    )
    say(
        f"Both train alike: their losses differ by at most {same:.0e} over all steps of one self-edit."
    )
    results = {
        "rows": rows,
        "matmul_gflops": float(np.median(rates) / 1e9),
        "gflop_per_self_edit": float(flop / 1e9),
        "loss_difference": same,
    }
    if config.json:
        try:
            with open(config.json, "w") as f:
                json.dump(results, f, indent=1)
        except OSError as e:
            raise UserError(f"cannot write {config.json}: {e}") from None
    return results


def length(edit):
    """Tokens of a self-edit."""
    return sum(len(d.ids) for d in edit.documents)


def self_edits(config, task):
    """Self-edits from the prior that pretraining gave the policy: a passage and 3 to 8 notes."""
    rng = np.random.default_rng(config.seed)
    return [
        task.parse(c, "\n".join(world.random_notes(c.person, rng)))
        for c in toy_contexts(config.edits, config.seed)
    ]


def ours(model, edits, K, inner):
    for i in range(0, len(edits), K):
        adapt(model, edits[i : i + K], inner).remove()


class Peer:
    """The same model in transformers, with an adapter of peft and torch's AdamW, one self-edit after another."""

    def __init__(self, model, tokenizer):
        from transformers import AutoModelForCausalLM, logging

        logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder:
            export(folder, model, tokenizer)
            self.model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=model.wte.weight.dtype
            ).to(model.wte.weight.device)

    def adapt(self, edit, epochs, batch, start=None):
        """Train one adapter (batch 0: all documents, padded, in one step); returns the losses. start: folder of its first weights."""
        from peft import LoraConfig, PeftModel, get_peft_model

        inner, device = InnerConfig(), self.model.device
        if start is None:
            model = get_peft_model(
                self.model,
                LoraConfig(r=inner.rank, lora_alpha=inner.alpha, target_modules="all-linear"),
            )
        else:
            model = PeftModel.from_pretrained(self.model, start, is_trainable=True)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=inner.lr, weight_decay=0
        )
        documents, losses = [torch.tensor(d.ids, device=device) for d in edit.documents], []
        size = batch or len(documents)
        for _ in range(epochs):
            for i in range(0, len(documents), size):
                ids = torch.nn.utils.rnn.pad_sequence(
                    documents[i : i + size], batch_first=True
                )  # (B, T)
                real = torch.nn.utils.rnn.pad_sequence(
                    [torch.ones_like(d) for d in documents[i : i + size]], batch_first=True
                )
                loss = model(
                    input_ids=ids, attention_mask=real, labels=ids.masked_fill(real == 0, -100)
                ).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        model.unload()
        return losses


def same_losses(model, peer, edit, epochs):
    """Largest difference between the losses of minseal and of peft, from the same first weights on one self-edit."""
    lora = LoRAConfig(InnerConfig().rank, InnerConfig().alpha)
    with tempfile.TemporaryDirectory() as start:
        adapters = attach(model, 1, lora, seed=0)
        save_adapter(start, model, adapters.state(), lora, "the bench's model")
        adapters.remove()
        theirs = peer.adapt(edit, epochs, 0, start)
    adapters = adapt(model, [edit], InnerConfig(epochs=epochs), seed=0)
    adapters.remove()
    return float(np.abs(np.array(adapters.losses[0]) - np.array(theirs)).max())


def matmul_rate(like, times=6):
    """Measured matmul rate in FLOP/s, on the device and in the dtype of `like`."""
    n = 1536 if like.device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=like.device).to(like.dtype) for _ in range(2))
    a @ b
    start = now(like.device)
    for _ in range(times):
        a @ b
    return 2 * n**3 * times / (now(like.device) - start)


def now(device):
    """Seconds, once the device has done what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def flop_per_token(model, rank):
    """Forward and backward of one token: 4 FLOP a frozen weight (its own gradient is not needed), 6 an adapter weight."""
    linears = [m for m in model.blocks.modules() if isinstance(m, torch.nn.Linear)]
    frozen = sum(m.weight.numel() for m in linears) + model.head.weight.numel()
    return 4 * frozen + 6 * rank * sum(m.in_features + m.out_features for m in linears)
