"""`minseal ...`: a table of commands; options are fields of settings, their comments the help."""

import argparse
import inspect
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import experiments  # noqa: F401  (declares them)
from ..config import Parser, Settings, add_options, build, did_you_mean
from ..files import UserError, first_line
from ..lab.lab import EXPERIMENTS, Experiment, read_run, settings_of, walk
from ..lab.run import Run, Step
from ..lab.table import write_report
from ..terminal import complain, hang_up, say
from .ask import AskConfig, ChatConfig, ask, chat
from .bench import BenchConfig, bench_inner
from .convert import ConvertConfig, ExportConfig, convert, export
from .learn import LearnConfig, learn
from .pretrain import FewShotPretrainConfig, PretrainConfig, pretrain_fewshot, pretrain_knowledge
from .show import ShowConfig, show

KEPT = "what was announced as done is kept: the same command goes on from there"
GO_ON = "nothing that was finished is lost; to go on: {again}"


@dataclass(frozen=True)
class ReportConfig(Settings):
    """Make report.html, report.md, results.json and plots of a run folder again."""


@dataclass(frozen=True)
class Command:
    """One command: its words, its settings, and the function (settings, *positional) it calls."""

    words: str  # 'pretrain knowledge'
    settings: type
    call: Callable[..., Any]
    positional: tuple[tuple[str, ...], ...] = ()  # (NAME, help), or (NAME, help, '+') for several
    stopped: str = "the same command begins again"  # what Ctrl-C says
    out: str = ""  # the default of --out, which is handed on like a positional

    def usage(self) -> str:
        """'minseal learn FILE...'"""
        names = [name + "..." * len(many) for name, _, *many in self.positional]
        return " ".join(["minseal", self.words, *names])


def commands() -> list[Command]:
    """All commands, those of the declared experiments included."""
    run_folder = ("RUN", "a folder that `minseal run` made")
    puzzle = ("PUZZLE", "its id, or a file of ARC's JSON")
    weights = ("SOURCE", "a folder in the Hugging Face layout, a GGUF file, or a hub id")
    model = ("SOURCE", "a model, or a folder of `minseal run`: the policy it ended with")
    question, out = ("QUESTION", "what to ask"), ("OUT", "folder to write")
    runs = [
        Command(f"run {name}", e.settings, partial(run, e), stopped=GO_ON, out=f"runs/{name}")
        for name, e in EXPERIMENTS.items()
    ]
    return [
        *runs,
        Command("report", ReportConfig, report, (run_folder,)),
        Command("show", ShowConfig, show, (puzzle,)),
        Command("learn", LearnConfig, learn, (("FILE", "text or Markdown (.md)", "+"),), KEPT),
        Command("ask", AskConfig, lambda *given: say(ask(*given)), (question,)),
        Command("chat", ChatConfig, chat, stopped="bye"),
        Command("convert", ConvertConfig, convert, (weights, out)),
        Command("export", ExportConfig, export, (model, out)),
        Command("pretrain knowledge", PretrainConfig, pretrain_knowledge),
        Command("pretrain fewshot", FewShotPretrainConfig, pretrain_fewshot),
        Command("bench inner", BenchConfig, bench_inner),
    ]


def main(argv: list[str] | None = None) -> None:
    """The command line. A UserError is one line and exit code 2, Ctrl-C one line and 130."""
    argv = sys.argv[1:] if argv is None else argv
    stopped = "nothing had begun"
    try:
        args, unknown = parser().parse_known_args(argv)
        command: Command = args.command
        if unknown:
            near = did_you_mean(unknown[0].split("=")[0], list(args.parser._option_string_actions))
            what = "unknown option" if unknown[0].startswith("-") else "too much (quotes missing?):"
            args.parser.error(f"{what} {unknown[0]}{near}")
        stopped = command.stopped.format(again=shlex.join(["minseal", *argv]))
        config = build(command.settings, vars(args))
        given = [getattr(args, name) for name, *_ in command.positional]
        command.call(config, *given, *([args.out] if command.out else []))
    except UserError as e:
        complain(f"minseal: error: {e}")
        sys.exit(2)
    except BrokenPipeError:  # `minseal ... | head`
        sys.exit(1)
    except OSError as e:  # no permission, a name too long, a full disk: wherever it was met
        told = f"{e.filename}: {e.strerror}" if e.filename else first_line(e)
        complain(f"minseal: error: {told}")
        sys.exit(2)
    except KeyboardInterrupt as e:
        complain(f"minseal: stopped; {stopped}", apart=True)
        sys.exit(128 + next(iter(e.args), signal.SIGINT))
    finally:
        hang_up()


def parser() -> Parser:
    """`minseal WORD ...` and `minseal WORD KIND ...`."""
    table: dict[str, list[Command]] = {}  # by their first word
    for command in commands():
        table.setdefault(command.words.split()[0], []).append(command)
    told = [
        "minseal: SEAL (self-adapting language models, arXiv 2506.10943) from scratch.",
        overview([command for mine in table.values() for command in mine]),
        "`minseal COMMAND --help` tells more.",
    ]
    as_it_is = argparse.RawDescriptionHelpFormatter
    top = Parser(prog="minseal", description="\n\n".join(told), formatter_class=as_it_is)
    branch = top.add_subparsers(metavar=" | ".join(table), required=True, parser_class=Parser)
    for first, mine in table.items():
        if mine[0].words == first:
            _add(branch, first, mine[0])
            continue
        kinds = branch.add_parser(first, description=overview(mine), formatter_class=as_it_is)
        names = [command.words.split()[1] for command in mine]
        twigs = kinds.add_subparsers(metavar=" | ".join(names), required=True, parser_class=Parser)
        for name, command in zip(names, mine):
            _add(twigs, name, command)
    return top


def overview(some: list[Command]) -> str:
    """How each command is called, and the first line on its settings."""
    lines = [f"{c.usage()}: {inspect.getdoc(c.settings).splitlines()[0]}" for c in some]
    indent = dict(initial_indent="  ", subsequent_indent="      ")
    return "\n".join(textwrap.fill(line, 80, **indent) for line in lines)


def _add(branch: Any, name: str, command: Command) -> None:
    usage, about = f"{command.usage()} [options]", inspect.getdoc(command.settings)
    p = branch.add_parser(name, usage=usage, description=about)
    for NAME, told, *many in command.positional:
        p.add_argument(NAME, metavar=NAME, help=told, nargs=many[0] if many else None)
    add_options(p, command.settings)
    if command.out:
        told = "run folder; the same command again goes on where it stopped (default: %(default)s)"
        p.add_argument("--out", default=command.out, metavar="OUT", help=told)
    p.set_defaults(command=command, parser=p)


# ---- run and report ------------------------------------------------------------------------------


def run(experiment: Experiment, config: Any, out: str) -> None:
    """Walk through an experiment, a line a step, and report."""
    say(f"minseal run {experiment.name}: run folder {out}")
    the_run = Run(out, settings_of(experiment, config), tell_steps())
    if the_run.steps:
        say(f"going on after {len(the_run.steps)} steps that were done already")
    walk(experiment, config, the_run)
    say("\n" + write_report(the_run, experiment))
    files = "report.html (every self-edit, for a browser), report.md, results.json, events.jsonl"
    say(f"{the_run.seconds():.0f} s in all. In {out}: {files}, plots if any.")


def tell_steps() -> Callable[[Step, bool], None]:
    """A function for Run that says a line for each step that took work."""
    start = time.time()

    def tell(step: Step, new: bool) -> None:
        if step.lost:
            say(f"{step.lost}: {step.name} was done again")
        if new and step.seconds >= 0.01:
            rewards = [t.reward for t in step.trials]
            told = f"reward {sum(rewards) / len(rewards):.2f}" if rewards else ""
            say(f"{time.time() - start:6.0f} s  {step.name:<36} {told}".rstrip())

    return tell


def report(config: ReportConfig, folder: str) -> None:
    """Make the report of a run folder again."""
    the_run, experiment = read_run(folder)
    say(write_report(the_run, experiment))
    done = len(the_run.steps)
    say(f"{done} steps done; a run that was stopped goes on with the command that began it.")
