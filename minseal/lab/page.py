"""report.html: a run as one page that opens anywhere, with every self-edit of it to read.

The template beside this file shows it. Into it go the report, as markup without a script, and the
self-edits, as JSON that its script shows as text. Nothing is fetched, and nothing of it is run.
"""

import base64
import html
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..config import from_json
from ..files import UserError, read_json, read_text
from ..outer import Trial
from ..terminal import STEERING, printable
from .lab import attempt
from .run import Run

TEMPLATE = Path(__file__).with_suffix(".html")
MOST_BYTES = 10_000_000  # what a browser opens at once, and a mail takes
Contexts = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Reading:
    """What Task.to_read() says of a context, as contexts.json has it."""

    text: str
    exam: list[list[str | list[str]]]  # [[question, [accepted answer, ...]], ...]

    def __post_init__(self) -> None:
        if any([type(part) for part in pair] != [str, list] for pair in self.exam):
            raise UserError("expected an exam like [[question, [answer, ...]], ...]")


def read_contexts(run: Run, results: dict[str, Any]) -> Contexts:
    """{id: what a context says}; what cannot be read is left out. An older run has none."""
    path = run.folder / "contexts.json"
    if not path.is_file():
        return {}
    found, out = attempt(results, path.name, lambda: read_json(path, once=True), {}), {}
    for id, value in found.items():
        read = lambda: asdict(from_json(Reading, value, f"context {id!r:.60}"))
        if (reading := attempt(results, path.name, read)) is not None:
            out[id] = reading
    return out


def page(
    run: Run,
    rows: list[list[str]],
    sentences: list[str],
    blocks: list[str],
    pictures: list[str],
    contexts: Contexts,
) -> str:
    """The whole file: rows, sentences and blocks of the report, pictures, and all self-edits."""
    template = read_text(TEMPLATE)
    style, script = (
        re.search(f"<{tag}>(.*?)</{tag}>", template, re.S)[1] for tag in ("style", "script")
    )
    parts = {
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "title": _text(run.folder.name, one_line=True),
        "table": _table(rows, {name for is_arm, name in steps_to_read(run) if is_arm}),
        "sentences": "\n".join(f"<li>{_text(s)}</li>" for s in sentences),
        "blocks": "\n".join(f'<pre class="card">{_text(block)}</pre>' for block in blocks),
        "pictures": "\n".join(_picture(run.folder / name) for name in pictures),
    }
    used = sum(len(text.encode()) for text in (template, *parts.values()))
    parts["data"] = self_edits(run, contexts, MOST_BYTES - used)
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def self_edits(run: Run, contexts: Contexts, most: int) -> str:
    """The JSON that the page's script reads: {steering, steps, missing, contexts, trials}.

    A trial is a line, as in events.jsonl; arms come first. most: letters in all. What does not
    fit, or holds no number where one should be, is left out and counted as missing.
    """
    steps = steps_to_read(run)
    names = [{"name": name, "arm": is_arm} for is_arm, name in steps]
    head = {"steering": STEERING.pattern, "steps": names, "has_contexts": bool(contexts)}
    lines: list[str] = []
    shown: dict[str, str] = {}
    room, missing = most - len(embed(head)) - 100, 0
    for number, trials in enumerate(steps.values()):
        for trial in trials:
            told = {k: v for k, v in vars(trial).items() if v not in (None, [], {})}
            try:
                line, context = embed({"step": number, **told}), ""
            except ValueError:  # NaN, in a run that goes on: none was read back
                missing += 1
                continue
            if trial.context in contexts and trial.context not in shown:
                context = f"{embed(trial.context)}: {embed(contexts[trial.context])}"
            if (size := len(line) + len(context) + 4) > room:
                missing += 1
                continue
            room -= size
            lines.append(line)
            if context:
                shown[trial.context] = context
    top = embed({**head, "missing": missing}).removesuffix("}")
    texts, edits = ",\n".join(shown.values()), ",\n".join(lines)
    return f'{top},\n"contexts": {{\n{texts}}},\n"trials": [\n{edits}]}}'


def steps_to_read(run: Run) -> dict[tuple[bool, str], list[Trial]]:
    """{(is an arm, name): trials}, arms first. The parts of an E-step are one."""
    out: dict[tuple[bool, str], list[Trial]] = {}
    rounds: Counter = Counter()  # that are done, by loop
    for step in run.steps.values():
        loop, name = step.labels.get("loop"), step.name
        rounds[loop] += "round" in step.labels
        if loop is not None and step.arm is None:  # as the step is named that sums it up
            name = f"{loop} {rounds[loop] + 1} in training"
        trials = [t for t in step.trials if t.text is not None or t.answers or t.invalid]
        if trials:
            out.setdefault((step.arm is not None, name), []).extend(trials)
    return dict(sorted(out.items(), key=lambda item: not item[0][0]))


def embed(data: Any) -> str:
    """JSON in ASCII that no text in it can end, comment out or run when it stands in a script."""
    text = json.dumps(data, allow_nan=False)
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _text(text: str, one_line: bool = False) -> str:
    """As text of the page; what steers the order of letters is spelt out."""
    return html.escape(printable(text, one_line))


def _table(rows: list[list[str]], to_read: set[str]) -> str:
    """The arms; the name of each leads to its self-edits, where there are any to read."""
    header, *arms = rows
    out = ["<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in header) + "</tr>"]
    for name, *cells in arms:
        first = f"<bdi>{_text(name, one_line=True)}</bdi>"
        if name in to_read:
            link = f"#step={quote(printable(name, one_line=True), safe='')}"
            first = f'<a href="{link}">{first}</a>'
        rest = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        out.append(f"<tr><th>{first}</th>{rest}</tr>")
    return "\n".join(out)


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{_text(path.stem)}" src="data:image/png;base64,{data}">'


def _hash(source: str) -> str:
    """What a Content-Security-Policy lets run: this very text and no other."""
    return "'sha256-" + base64.b64encode(sha256(source.encode()).digest()).decode() + "'"
