"""Context distillation: the loss, the teacher, and the arms."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import events, without_seconds
from kills import stop_at

from minseal import InnerConfig, People, SelfEdit, Tokenizer, UserError, adapt, toy_passages
from minseal.experiments.distil import DistilConfig, Lesson, ask_oneself, distillation, with_view
from minseal.inner import losses, pack
from minseal.lab.lab import EXPERIMENTS, Lab, settings_of, walk
from minseal.lab.run import Run
from minseal.lab.table import summarise, table_rows
from minseal.lora import LoRAConfig, attach
from minseal.selfedit import InvalidSelfEdit
from minseal.tasks.knowledge import Note
from minseal.tasks.people import kind_of, write_implications

INNER = InnerConfig(epochs=3, rank=4)


def lesson(n, generator, hard=False, vocab=48):
    """n random tokens, some without loss, some with half of it, and a teacher."""
    ids = torch.randint(vocab, (n,), generator=generator)
    weights = torch.tensor([0.0, 0.5, 1.0])[torch.randint(3, (n,), generator=generator)]
    weights[-1] = 1.0
    carries = weights[1:] != 0
    teacher = torch.randn(int(carries.sum()), vocab, generator=generator).softmax(-1)
    if hard:
        teacher = F.one_hot(ids[1:][carries], vocab).float()
    return Lesson(tuple(ids.tolist()), tuple(weights.tolist()), teacher=teacher)


def lessons(seed, sizes=((5, 9), (3,), (4, 4, 30)), **how):
    """Three self-edits with documents of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [SelfEdit(tuple(lesson(n, generator, **how) for n in mine)) for mine in sizes]


def slow_loss(model, edit):
    """distillation() of one self-edit: a document, a token, a word of the vocabulary at a time."""
    total, count = 0.0, 0
    for d in edit.documents:
        logits = model(torch.tensor([d.ids]))[0]  # (T, V)
        teacher = iter(d.teacher.double())
        for t, weight in enumerate(d.weights[1:]):
            if weight:
                logs = logits[t] - torch.logsumexp(logits[t], 0)
                total -= weight * sum(p * log for p, log in zip(next(teacher), logs))
                count += 1
    return total / count


def test_loss_and_gradient_equal_a_slow_loop_in_float64(gpt):
    model, edits = gpt.double(), lessons(0)
    with adapt(model, edits, INNER) as adapters:  # so that B is not 0
        state = adapters.state()
        fast = distillation(model, [pack(list(edit.documents), 20) for edit in edits])  # (K,)
        gradients = torch.autograd.grad(fast.sum(), adapters.parameters())
    for k, edit in enumerate(edits):
        with attach(model, 1, LoRAConfig(INNER.rank)) as adapters:
            adapters.load({n: t[k : k + 1] if t.dim() else t for n, t in state.items()})
            slow = slow_loss(model, edit)
            expected = torch.autograd.grad(slow, adapters.parameters())
        assert fast[k].item() == pytest.approx(slow.item(), rel=1e-6)  # its logits are float32
        for g, e in zip(gradients, expected):
            torch.testing.assert_close(g[k : k + 1], e, rtol=1e-5, atol=1e-6)


def test_together_equals_one_by_one(gpt):
    edits = lessons(1)
    with adapt(gpt, edits, INNER, loss=distillation) as adapters:
        together = adapters.state()
    for k, edit in enumerate(edits):
        with adapt(gpt, [edit], INNER, loss=distillation) as adapters:
            for name, alone in adapters.state().items():
                there = together[name][k : k + 1] if alone.dim() else together[name]
                torch.testing.assert_close(there, alone, rtol=1e-4, atol=1e-5)


def test_a_teacher_who_is_sure_of_the_next_token_teaches_the_next_token(gpt):
    edits = lessons(2, hard=True)
    rows = [pack(list(edit.documents), 20) for edit in edits]
    torch.testing.assert_close(distillation(gpt, rows[:1]), losses(gpt, rows[:1]))
    states = []
    for loss in (None, distillation):
        with adapt(gpt, edits, INNER, loss=loss) as adapters:
            states.append(adapters.state())
    for name, by_next_token in states[0].items():
        torch.testing.assert_close(states[1][name], by_next_token, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bos", [(), (512,)], ids=["plain", "bos"])
def test_the_teacher_is_the_model_with_the_passage_before_each_document(pretrained, bos):
    model, tokenizer = pretrained
    tokenizer = Tokenizer(tokenizer.ranks, bos=[tokenizer.eot] if bos else [])
    lab = Lab(model, People(tokenizer), [], [], run=None)
    (passage,) = toy_passages(1, 3)
    edit = lab.task.oracle(passage)
    taught, sure = with_view(lab, passage, edit), with_view(lab, passage, edit, hard=True)
    before = tokenizer.begin(passage.text + "\n")
    for plain, d, h in zip(edit.documents, taught.documents, sure.documents, strict=True):
        assert (d.ids, d.weights) == (plain.ids, plain.weights)
        text = d.ids[len(bos) :]
        with torch.no_grad():
            logits = model(torch.tensor([[*before, *text]]))[0]  # (T, V)
        expected = logits[len(before) - (1 if bos else 0) :][: len(d.ids) - 1].softmax(-1)
        torch.testing.assert_close(d.teacher, expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(h.teacher.argmax(-1), d.teacher.argmax(-1))
        assert set(h.teacher.unique().tolist()) == {0.0, 1.0}


def test_a_passage_too_long_to_be_read_before_its_documents_is_no_lesson(pretrained):
    model, tokenizer = pretrained
    lab = Lab(model, People(tokenizer), [], [], run=None)
    text = "so it goes " * model.config.block_size
    passage = replace(toy_passages(1, 3)[0], text=text)
    with pytest.raises(InvalidSelfEdit, match="tokens together"):
        with_view(lab, passage, lab.task.oracle(passage))


def test_a_wrong_note_is_put_right_by_one_who_reads_the_passage(pretrained):
    """By the next token it is learnt as it stands."""
    model, tokenizer = pretrained
    lab, right = Lab(model, People(tokenizer), [], [], run=None), {}
    passages = toy_passages(4, 5)

    def wrong(passage):  # each implication, of another person with the same name
        stranger = replace(passage.person, values=toy_passages(1, 99)[0].person.values)
        lines = write_implications(stranger, np.random.default_rng(0))
        return lab.task.edit(passage, [Note(line) for line in lines])

    edits = {None: wrong, distillation: lambda passage: with_view(lab, passage, wrong(passage))}
    for loss, edit in edits.items():
        right[loss] = np.mean([t.reward for t in lab.study(passages, edit, loss=loss)])
    assert right[None] < 0.25 and right[distillation] > right[None] + 0.3, right


def test_the_model_asks_and_answers_in_view(pretrained):
    model, tokenizer = pretrained
    lab = Lab(model, People(tokenizer), [], [], run=None)
    passages = toy_passages(8, 7)
    asked = ask_oneself(lab, passages, 4)
    assert asked == ask_oneself(lab, passages, 4)
    assert all(1 <= len(lines) == len(set(lines)) <= 4 for lines in asked)
    kinds = [kind_of(line, p.person) for p, lines in zip(passages, asked) for line in lines]
    assert kinds.count("asks") > 0.9 * len(kinds)


# ---- the experiment ----


def go(config, folder, on_step=lambda step, new: None):
    """Walk; what results.json will hold."""
    run = Run(folder, settings_of(EXPERIMENTS["distil"], config), on_step)
    walk(EXPERIMENTS["distil"], config, run, say=list)
    return summarise(run, EXPERIMENTS["distil"])


PASSAGES = [
    {
        "title": f"City {i}",
        "context": f"City {i} has a tower. It was built in 19{i}0.",
        "questions": [{"question": "When was it built?", "answer": f"19{i}0"}],
    }
    for i in range(6)
]


@pytest.fixture(scope="module", params=["toy", "data"])
def config(request, untrained, tmp_path_factory):
    small = DistilConfig(model=untrained, eval_contexts=2, edit_tokens=24, inner=INNER)
    if request.param == "toy":
        return small
    path = tmp_path_factory.mktemp("data") / "passages.json"
    path.write_text(json.dumps(PASSAGES))
    return replace(small, data=str(path))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distil") / "run"
    return folder, go(config, folder)


def test_both_losses_have_the_same_tokens_and_texts(finished):
    folder, results = finished
    arms = {a["arm"]: a for a in results["arms"]}
    pairs = [(name, f"{name}, distilled") for name in arms if f"{name}, distilled" in arms]
    assert len(pairs) == 4 and "tokens" in table_rows(EXPERIMENTS["distil"], results)[0]
    written = {}
    for event in events(folder):
        if "context" in event:
            written.setdefault(event["step"], []).append(event.get("text"))
    for a, b in [*pairs, ("own notes", "own notes, likeliest token")]:
        assert arms[b]["over"] == a and arms[a]["tokens"] == arms[b]["tokens"] > 0
        assert written[a] == written[b]
    assert arms["no adaptation"]["tokens"] is None


def test_stopped_and_resumed_gives_the_same(finished, config, tmp_path):
    for n in (2, 5, 9):
        with pytest.raises(KeyboardInterrupt):
            go(config, tmp_path / "run", stop_at(n))
    again = go(config, tmp_path / "run")
    assert without_seconds(again) == without_seconds(finished[1])


def test_no_questions_is_refused():
    with pytest.raises(UserError, match="questions is 0; expected at least 1"):
        DistilConfig(questions=0)
