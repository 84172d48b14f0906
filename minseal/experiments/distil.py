"""`minseal run distil`: the inner loop's other loss, the same model with the passage in view."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inner import Rows, cross_entropy, pack, to_tensors
from ..lab.lab import Lab, experiment
from ..model import GPT
from ..outer import Trial
from ..sample import sample
from ..selfedit import Document, InvalidSelfEdit, SelfEdit
from ..tasks.knowledge import find_question, line_of
from ..tasks.passages import Passage
from .passages import PassageConfig, count_tokens, people, tokens, tokens_column

DISTILLED, LIKELIEST = "distilled", "likeliest token"  # what a teacher tells: all, or its best


@dataclass(frozen=True)
class DistilConfig(PassageConfig):
    """Context distillation: learn what the model itself would say with the passage in view."""

    questions: int = 4  # that the model asks itself about a passage; of equal ones one counts

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(questions=1)


@dataclass(frozen=True)
class Lesson(Document):
    """A document, and what a teacher expects at each of its n tokens that carry loss."""

    teacher: Tensor = field(kw_only=True, compare=False)  # (n, V), probabilities


def distillation(model: GPT, rows: list[Rows]) -> Tensor:
    """inner.losses() whose targets are the teacher's probabilities: (K,), each adapter's loss.

    It is the KL divergence from teacher to student and a constant. Paper: the next token. Here also
    this, the logits' half of Deep Context Distillation (arXiv 2503.08727).
    """
    ids, docs, targets, weights = (x.to(model.wte.weight.device) for x in to_tensors(rows))
    carries = targets >= 0  # (K b, T), b rows an adapter
    teacher = torch.cat([d.teacher for mine in rows for row in mine for d in row])  # (N, V)
    each = cross_entropy(model.head, model.hidden(ids, docs)[carries], teacher)  # (N,)
    owner = carries.view(len(rows), -1).nonzero()[:, 0]  # (N,)
    total = each.new_zeros(len(rows)).index_add(0, owner, each * weights[carries])  # (K,)
    return total / owner.bincount(minlength=len(rows)).clamp(min=1)  # (K,)


@torch.no_grad()
def with_view(lab: Lab, passage: Passage, edit: SelfEdit, hard: bool = False) -> SelfEdit:
    """The self-edit's documents as lessons: the teacher is the model, the passage before each.

    hard: a teacher who is sure of the token that it finds likeliest.
    """
    tokenizer, model = lab.task.tokenizer, lab.policy
    before, bos = tokenizer.begin(f"{passage.text}\n"), len(tokenizer.bos)  # which is there once
    after = [(0.0, *d.weights[1:])[bos:] for d in edit.documents]  # without its bos
    zeros = (0.0,) * len(before)
    seen = [Document((*before, *d.ids[bos:]), zeros + w) for d, w in zip(edit.documents, after)]
    if (n := max(len(d.ids) for d in seen)) > model.config.block_size:
        raise InvalidSelfEdit(f"the passage and the longest document have {n} tokens together")
    rows = [pack(seen, lab.inner.row_tokens)]
    ids, docs, targets, _ = (x.to(model.wte.weight.device) for x in to_tensors(rows))
    teacher = model.head(model.hidden(ids, docs)[targets >= 0]).float().softmax(-1)  # (N, V)
    if hard:
        teacher = F.one_hot(teacher.argmax(-1), teacher.shape[-1]).float()  # (N, V)
    parts = teacher.split([sum(x != 0 for x in w) for w in after])
    documents = [Lesson(d.ids, d.weights, teacher=p) for d, p in zip(edit.documents, parts)]
    return replace(edit, documents=tuple(documents))


def ask_oneself(lab: Lab, passages: list[Passage], n: int) -> list[list[str]]:
    """A line for each question that the model asks, and answers, with the passage in view."""
    tokenizer, how = lab.task.tokenizer, dict(max_tokens=2 * lab.task.answer_tokens, seed=lab.seed)
    prompts = [tokenizer.begin(f"{passage.text}\nQuestion:") for passage in passages]
    written = sample(lab.policy, tokenizer, prompts, n, **how)
    found = [[find_question(f"Question:{text}") for text in texts] for texts in written]
    return [list(dict.fromkeys(line_of(q) for q in some if q)) for some in found]


@experiment("distil", DistilConfig, open=people, describe=tokens, columns=tokens_column)
def distil(lab: Lab, config: DistilConfig) -> None:
    """The same tokens by two losses: what stands there, or what a reader expects there."""
    task, held_out, nothing = lab.task, lab.held_out, [()] * len(lab.held_out)

    def arm(name: str, lines: list[Sequence[str]], over: str, teacher: str = "") -> None:
        about = {passage.id: written for passage, written in zip(held_out, lines)}

        def edit(passage: Passage) -> SelfEdit:
            edit = task.edit(passage, [task.read_note(line) for line in about[passage.id]])
            edit = count_tokens(edit, lab.inner)
            return with_view(lab, passage, edit, teacher == LIKELIEST) if teacher else edit

        def measure() -> list[Trial]:
            trials = lab.study(held_out, edit, loss=distillation if teacher else None)
            return [replace(t, text="\n".join(about[t.context]) or None) for t in trials]

        lab.arm(name, measure, over=over)

    lab.arm("no adaptation", lambda: lab.plain(held_out))
    arm("passage only", nothing, "no adaptation")
    arm(f"passage only, {DISTILLED}", nothing, "passage only", DISTILLED)
    texts = lab.step("notes", lambda: lab.write(held_out))
    notes = [[line_of(note) for note in task.notes(text)] for text in texts]
    asked = lab.step("questions", lambda: ask_oneself(lab, held_out, config.questions))
    both = [mine + more for mine, more in zip(notes, asked)]
    for own, lines in ("notes", notes), ("questions", asked), ("notes and questions", both):
        arm(f"own {own}", lines, "passage only")
        arm(f"own {own}, {DISTILLED}", lines, f"own {own}", DISTILLED)
    arm(f"own notes, {LIKELIEST}", notes, "own notes", LIKELIEST)
    oracle = lambda passage: count_tokens(task.oracle(passage), lab.inner)
    lab.arm("oracle notes", lambda: lab.study(held_out, oracle), over="passage only")
    lab.arm("passage in context", lambda: lab.plain(held_out, True), over="no adaptation")
