"""`minseal ...`: a table of commands. Options are the fields of settings, their comments the help."""

import argparse
import inspect
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import experiments  # noqa: F401  (declares them)
from ..config import Parser, Settings, add_options, build, did_you_mean
from ..files import UserError
from ..lab.lab import EXPERIMENTS, settings_of, walk
from ..lab.run import Run, Step
from ..lab.table import write_report
from .ask import AskConfig, ask, chat
from .bench import BenchConfig, bench_inner
from .convert import ConvertConfig, ExportConfig, convert, export
from .learn import LearnConfig, learn
from .pretrain import FewShotPretrainConfig, PretrainConfig, pretrain_fewshot, pretrain_knowledge
from .show import ShowConfig, show

DESCRIPTION = """\
minseal: SEAL (self-adapting language models, arXiv 2506.10943) from scratch.

  minseal run knowledge        the paper's ladder on a toy world, with the outer loop and its
                               control: minutes on two cores
  minseal run fewshot          the same for puzzles: self-edits that say how to train on a few
                               demonstrations
  minseal run ttt              test-time training alone: what is temporary, and what stays
  minseal show PUZZLE          a puzzle as coloured blocks; --run RUN: with what was predicted
  minseal report RUN           table, plots, report.md and results.json of a run, made again
  minseal learn FILE...        teach an open model your own documents: notes, an adapter, an exam
                               before and after
  minseal ask QUESTION         ask a model, with an adapter or without; `minseal chat`: line by line
  minseal convert SOURCE OUT   open weights (Hugging Face folder, hub id, GGUF) into minseal's own
                               folder
  minseal export SOURCE OUT    a model or a finished run, for transformers
  minseal pretrain knowledge   make the tiny model of `run knowledge` again, from nothing; pretrain
                               fewshot: that of `run fewshot`
  minseal bench inner          the inner loop against transformers + peft

`minseal COMMAND --help` tells more."""


@dataclass(frozen=True)
class Command:
    """One command: its words, its settings, and the function (settings, *positional) it calls."""

    words: str  # 'pretrain knowledge'
    settings: type
    call: Callable[..., Any]
    positional: tuple[tuple[str, str, str], ...] = ()  # (NAME, help, how many: '' is one, or '+')
    stopped: str = "nothing was written"  # what Ctrl-C says


SOURCE = "a folder in the Hugging Face layout, a GGUF file, or a hub id such as owner/name"
NOTES_KEPT = "what was announced as done is kept: the same command goes on from there"


def commands() -> list[Command]:
    """All commands, those of the declared experiments included."""
    runs = [
        Command(f"run {e.name}", e.settings, lambda config, out, e=e: run(e, config, out))
        for e in EXPERIMENTS.values()
    ]
    out = ("OUT", "folder to write", "")
    return [
        *runs,
        Command("report", Settings, report, (("RUN", "a folder that `minseal run` made", ""),)),
        Command("show", ShowConfig, show, (("PUZZLE", "its id, or a file of ARC's JSON", ""),)),
        Command(
            "learn",
            LearnConfig,
            learn,
            (("FILE", "text or Markdown files", "+"),),
            stopped=NOTES_KEPT,
        ),
        Command("ask", AskConfig, print_answer, (("QUESTION", "what to ask", ""),)),
        Command("chat", AskConfig, chat, stopped="bye"),
        Command("convert", ConvertConfig, convert, (("SOURCE", SOURCE, ""), out)),
        Command(
            "export",
            ExportConfig,
            export,
            (
                ("SOURCE", "a model, or a folder of `minseal run`: the policy it ended with", ""),
                out,
            ),
        ),
        Command("pretrain knowledge", PretrainConfig, pretrain_knowledge),
        Command("pretrain fewshot", FewShotPretrainConfig, pretrain_fewshot),
        Command("bench inner", BenchConfig, bench_inner),
    ]


def main(argv: list[str] | None = None) -> None:
    """The command line. A UserError is one line and exit code 2, Ctrl-C one line and 130."""
    argv = sys.argv[1:] if argv is None else argv
    args, unknown = parser().parse_known_args(argv)
    command: Command = args.command
    if unknown:
        options = list(args.parser._option_string_actions)
        near = did_you_mean(unknown[0].split("=")[0], options)
        args.parser.error(f"unknown option {unknown[0]}{near}")
    values = vars(args)
    try:
        config = build(command.settings, values)
        given = [values[name] for name, *_ in command.positional]
        if command.words.startswith("run "):
            given.append(args.out)
        command.call(config, *given)
    except UserError as e:
        print(f"minseal: error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        again = f"nothing that was finished is lost; to go on: {shlex.join(['minseal', *argv])}"
        told = again if command.words.startswith("run ") else command.stopped
        print(f"\nminseal: stopped; {told}", file=sys.stderr)
        sys.exit(130)


def parser() -> Parser:
    """`minseal WORD ...` and `minseal WORD KIND ...`."""
    top = Parser(
        prog="minseal",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    all_of_them = commands()
    firsts = dict.fromkeys(c.words.split()[0] for c in all_of_them)
    branch = top.add_subparsers(metavar=" | ".join(firsts), required=True, parser_class=Parser)
    for first in firsts:
        mine = [c for c in all_of_them if c.words.split()[0] == first]
        if " " not in mine[0].words:
            _add(branch, first, mine[0])
            continue
        told = "\n".join(f"minseal {c.words}: {inspect.getdoc(c.settings)}" for c in mine)
        formatter = argparse.RawDescriptionHelpFormatter
        kinds = branch.add_parser(first, description=told, formatter_class=formatter)
        names = [c.words.split()[1] for c in mine]
        twigs = kinds.add_subparsers(metavar=" | ".join(names), required=True, parser_class=Parser)
        for name, command in zip(names, mine):
            _add(twigs, name, command)
    return top


def _add(branch: Any, name: str, command: Command) -> None:
    described = inspect.getdoc(command.settings if command.settings is not Settings else report)
    words = " ".join(f"{NAME}{'...' if many else ''}" for NAME, _, many in command.positional)
    usage = f"minseal {command.words} {words}{' ' if words else ''}[options]"
    p = branch.add_parser(name, usage=usage, description=described)
    for NAME, told, many in command.positional:
        p.add_argument(NAME, metavar=NAME, help=told, **({"nargs": many} if many else {}))
    add_options(p, command.settings)
    if command.words.startswith("run "):
        told = "run folder; the same command again goes on where it stopped (default: %(default)s)"
        p.add_argument("--out", default=f"runs/{name}", metavar="OUT", help=told)
    p.set_defaults(command=command, parser=p)


# ---- run and report ------------------------------------------------------------------------------


def run(experiment: Any, config: Any, out: str) -> None:
    """Walk through an experiment, a line a step, and report."""
    print(f"minseal run {experiment.name}: run folder {out}", flush=True)
    the_run = Run(out, settings_of(experiment, config), tell_steps())
    if done := len(the_run.steps):
        print(f"going on: {done} steps were done already", flush=True)
    walk(experiment, config, the_run, lambda line: print(line, flush=True))
    print("\n" + write_report(the_run, experiment))
    print(
        f"{the_run.seconds():.0f} s in all. In {out}: report.md, results.json, events.jsonl "
        "(every self-edit), plots."
    )


def tell_steps() -> Callable[[Step, bool], None]:
    """A function for Run that prints a line for each step that took work."""
    start = time.time()

    def tell(step: Step, new: bool) -> None:
        if not new or step.seconds < 0.01:
            return
        rewards = [t.reward for t in step.trials]
        told = f"reward {sum(rewards) / len(rewards):.2f}" if rewards else ""
        print(f"{time.time() - start:6.0f} s  {step.name:<36} {told}".rstrip(), flush=True)

    return tell


def report(config: Settings, folder: str) -> None:
    """Make table, plots, report.md and results.json of a run folder again."""
    the_run = Run(folder)
    experiment = EXPERIMENTS.get(the_run.config.get("kind"))
    if experiment is None or not the_run.arms():
        raise UserError(f"{folder} holds no finished arm of {', '.join(EXPERIMENTS)} yet")
    print(write_report(the_run, experiment))


def print_answer(config: AskConfig, question: str) -> None:
    print(ask(config, question))
