"""A model goes out for transformers and comes back; a run goes out with what it learnt."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from minseal import UserError, load, merge_state
from minseal.commands.cli import main
from minseal.commands.convert import ConvertConfig, ExportConfig, convert, export
from minseal.lab.run import Run
from minseal.lora import LoRAConfig, attach
from minseal.open_models.peft import load_adapter, save_adapter

IDS = torch.arange(20)[None]
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def tree(folder):
    return {str(p): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture
def adapted(tmp_path, untrained):
    """(folder of an adapter of the untrained model, the logits it gives)."""
    model, _ = load(untrained)
    with attach(model, 1, lora := LoRAConfig(2, 4.0)) as adapters:
        for p in adapters.parameters():
            p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(p.numel()))
        state = adapters.state()
        with torch.no_grad():
            logits = model(IDS)
    save_adapter(tmp_path / "adapter", model, state, lora, untrained)
    return str(tmp_path / "adapter"), logits


@torch.no_grad()
def test_a_model_goes_out_and_comes_back(tmp_path, untrained, capsys):
    there, back = str(tmp_path / "hf"), str(tmp_path / "back")
    export(ExportConfig(), untrained, there)
    assert there in capsys.readouterr().out
    assert {p.name for p in Path(there).iterdir()} == FILES
    convert(ConvertConfig(), there, back)
    assert "M parameters in float32" in capsys.readouterr().out
    (a, mine), (b, again) = load(untrained), load(back)
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    assert again.vocab_size == mine.vocab_size
    text = "Question: Where does Ann work? Answer: <|endoftext|>"
    assert again.encode(text) == mine.encode(text)


def test_the_dtype_is_what_was_asked_for(tmp_path, untrained, capsys):
    convert(ConvertConfig(dtype="bfloat16"), untrained, str(tmp_path / "half"))
    assert "in bfloat16" in capsys.readouterr().out
    assert load(tmp_path / "half", dtype="stored")[0].wte.weight.dtype == torch.bfloat16


@torch.no_grad()
def test_transformers_sees_the_adapter_that_was_merged(tmp_path, untrained, adapted):
    from transformers import AutoModelForCausalLM

    folder, logits = adapted
    export(ExportConfig(adapter=folder), untrained, str(tmp_path / "hf"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(theirs(IDS).logits, logits, rtol=0, atol=1e-4)


def test_nothing_is_overwritten_and_a_mistake_leaves_nothing(tmp_path, untrained):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for out in ("mine", "file"):
        with pytest.raises(UserError, match="is there already"):
            convert(ConvertConfig(), untrained, str(tmp_path / out))
        with pytest.raises(UserError, match="is there already"):
            export(ExportConfig(), untrained, str(tmp_path / out))
    for source in ("no", "mine"):
        with pytest.raises(UserError, match="no model at"):
            convert(ConvertConfig(), str(tmp_path / source), str(tmp_path / "out"))
    assert tree(tmp_path) == before and not (tmp_path / "out").exists()


# ---- what a run learnt ----


@pytest.fixture(scope="module")
def run(tmp_path_factory, untrained):
    """A small finished run whose M-step had something to learn from."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    sizes = "--rounds 1 --contexts 2 --samples 2 --inner.epochs 1 --eval-contexts 1"
    more = "--reliability-contexts 0 --control false --select random --prompt none"
    more += " --other-prompts none"
    main(
        ["run", "knowledge", "--out", str(folder), "--model", untrained]
        + sizes.split()
        + more.split()
    )
    return folder


@torch.no_grad()
def test_a_finished_run_goes_out_with_what_its_outer_loop_taught(run, tmp_path, untrained):
    export(ExportConfig(), str(run), str(tmp_path / "hf"))
    model, _ = load(untrained)
    before = model(IDS)
    merge_state(model, torch.load(run / "checkpoints" / "round-1-M-step.pt"))
    learnt, _ = load(tmp_path / "hf")
    torch.testing.assert_close(learnt(IDS), model(IDS), rtol=0, atol=1e-6)
    assert (learnt(IDS) - before).abs().max() > 1e-4


def test_the_policy_of_a_run_writes_the_notes_of_an_adapter_for_the_model_itself(
    run, tmp_path, untrained
):
    (tmp_path / "rivers.md").write_text("The Seine flows through Paris.")
    exam = [{"question": "What flows through Paris?", "answer": "The Seine"}]
    (tmp_path / "exam.json").write_text(json.dumps(exam))
    learn = ["learn", str(tmp_path / "rivers.md"), "--model", untrained, "--epochs", "1"]
    learn += ["--exam", str(tmp_path / "exam.json")]
    main([*learn, "--out", str(tmp_path / "plain")])
    main([*learn, "--out", str(tmp_path / "adapter"), "--policy", str(run)])
    plain, other = ((tmp_path / f / "notes.md").read_bytes() for f in ("plain", "adapter"))
    assert plain != other
    load_adapter(tmp_path / "adapter", load(untrained)[0])[0].remove()


def test_a_run_without_a_finished_outer_loop_has_no_policy(run, tmp_path):
    begun = Run(tmp_path / "begun", Run(run).config)
    begun.step("no adaptation", lambda: [])
    with pytest.raises(UserError, match="a finished outer loop"):
        export(ExportConfig(), str(tmp_path / "begun"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ---- kills, other processes ----


def test_what_a_kill_left_is_not_in_the_way(tmp_path, untrained):
    """Half a model goes, a whole one stays; a folder that another process fills is refused."""
    half = tmp_path / "out" / ".minseal-1.tmp"
    half.mkdir(parents=True)
    (half / "weights.pt").write_bytes(b"half")
    convert(ConvertConfig(), untrained, str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob(".minseal-*")) and load(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".minseal-2.done")
    (tmp_path / "new").mkdir()
    (tmp_path / ".minseal-2.done").rename(tmp_path / "new" / ".minseal-2.done")
    with pytest.raises(UserError, match="is there already"):
        convert(ConvertConfig(), untrained, str(tmp_path / "new"))
    assert load(tmp_path / "new")


@pytest.mark.parametrize("how", ["missing", "empty", "no M-step", "rounds", "model"])
def test_a_damaged_policy_is_called_damaged_and_not_another_models(run, tmp_path, how):
    folder = tmp_path / "r"
    shutil.copytree(run, folder)
    log, config = folder / "events.jsonl", json.loads((folder / "config.json").read_text())
    checkpoint = folder / "checkpoints" / "round-1-M-step.pt"
    if how == "missing":
        checkpoint.unlink()
    elif how == "empty":
        checkpoint.write_bytes(b"")
    elif how == "no M-step":
        lines = [line for line in log.read_text().splitlines(True) if "M-step" not in line]
        log.write_text("".join(lines))
    elif how == "rounds":
        config["outer"] = {"rounds": "1"}
    else:
        config["model"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as e:
        export(ExportConfig(), str(folder), str(tmp_path / "out"))
    assert str(folder) in str(e.value) and "another model" not in str(e.value)
    assert not (tmp_path / "out").exists()
