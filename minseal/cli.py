"""`minseal ...`: options are the fields of the settings' dataclasses, their comments are the help."""

import argparse
import difflib
import inspect
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path

from tqdm import tqdm

from . import experiment_fewshot as fewshot
from .adapters import load_adapter
from .ask import AskConfig, ask, chat
from .bench import BenchConfig, bench_inner
from .errors import UserError
from .experiment import KnowledgeConfig, run_knowledge, settle, steps_of
from .ladders import LADDERS, kind_of
from .learn import LearnConfig, learn, taught
from .pretrain import FewShotPretrainConfig, PretrainConfig, pretrain_fewshot, pretrain_knowledge
from .report import text_report, write_report
from .runs import Run
from .show import ShowConfig, show
from .weights import export as export_folder
from .weights import load, save

DESCRIPTION = """\
minseal: SEAL (self-adapting language models, arXiv 2506.10943) from scratch.

  minseal run knowledge        the paper's ladder on a toy world, with the outer loop and its control: minutes on two cores
  minseal run fewshot          the same for grid tasks: self-edits that say how to train on a few demonstrations
  minseal run ttt              test-time training alone: what is temporary, and what stays
  minseal show TASK            a grid task as coloured blocks; --run RUN: with what was predicted before and after
  minseal report RUN           table, plots, report.md and results.json of a run folder, made again
  minseal learn FILE...        teach an open model your own documents: notes, an adapter, an exam before and after
  minseal ask QUESTION         ask a model, with an adapter or without; `minseal chat` goes on line by line
  minseal convert SOURCE OUT   open weights (Hugging Face folder, hub id, GGUF) into minseal's own folder
  minseal export SOURCE OUT    a model or a finished run, for transformers
  minseal pretrain knowledge   make the tiny model of `run knowledge` again, from nothing; pretrain fewshot: that of `run fewshot`
  minseal bench inner          the inner loop against transformers + peft

`minseal COMMAND --help` tells more."""


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(
        prog="minseal",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        metavar="run | report | show | learn | ask | chat | convert | export | pretrain | bench",
        required=True,
        parser_class=Parser,
    )
    for name, kinds, function in (
        ("run", {kind: e.settings for kind, e in EXPERIMENTS.items()}, run),
        ("pretrain", {"knowledge": PretrainConfig, "fewshot": FewShotPretrainConfig}, pretrain),
        ("bench", {"inner": BenchConfig}, bench),
    ):
        told = "\n\n".join(
            f"minseal {name} {kind}: {inspect.getdoc(settings)}" for kind, settings in kinds.items()
        )
        branch = commands.add_parser(
            name, description=told, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        branch = branch.add_subparsers(
            metavar=" | ".join(kinds), required=True, parser_class=Parser
        )
        for kind, settings in kinds.items():
            p = branch.add_parser(
                kind,
                usage=f"minseal {name} {kind} [options]",
                description=inspect.getdoc(settings),
                formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            )
            add_options(p, settings)
            p.set_defaults(function=function, settings=settings, kind=kind, parser=p)
            if name == "run":
                p.add_argument(
                    "--out",
                    default=f"runs/{kind}",
                    help="run folder; the same command again goes on where it stopped",
                )
    p = commands.add_parser(
        "report", description="Make table, plots, report.md and results.json of a run folder again."
    )
    p.add_argument("folder", metavar="RUN", help="a folder that `minseal run` made")
    p.set_defaults(function=report, parser=p)
    for name, settings, function, words in (
        ("learn", LearnConfig, learn_files, ("files", "FILE", "+", "text or Markdown files")),
        ("ask", AskConfig, ask_question, ("question", "QUESTION", None, "what to ask")),
        ("chat", AskConfig, chat_lines, None),
        (
            "show",
            ShowConfig,
            show_task,
            ("task", "TASK", None, "a task's id, or a file of ARC's JSON"),
        ),
    ):
        p = commands.add_parser(
            name,
            description=inspect.getdoc(settings),
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if words:
            p.add_argument(words[0], metavar=words[1], nargs=words[2], help=words[3])
        add_options(p, settings)
        p.set_defaults(function=function, settings=settings, parser=p)
    for name, settings, function in (
        ("convert", ConvertConfig, convert),
        ("export", ExportConfig, export),
    ):
        p = commands.add_parser(
            name,
            description=inspect.getdoc(settings),
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        p.add_argument("source", metavar="SOURCE", help=settings.SOURCE)
        p.add_argument("out", metavar="OUT", help="folder to write")
        add_options(p, settings)
        p.set_defaults(function=function, settings=settings, parser=p)

    args, unknown = parser.parse_known_args(argv)
    if unknown:
        args.parser.error(
            f"unknown option {unknown[0]}" + near(unknown[0].split("=")[0], args.parser.options())
        )
    try:
        args.function(args)
    except UserError as e:
        print(f"minseal: error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        again = {
            run: f"nothing that was finished is lost; to go on: {shlex.join(['minseal', *argv])}",
            chat_lines: "bye",
            learn_files: "notes that were announced above are kept, train on them with --notes",
        }.get(args.function, "nothing was written")
        print(f"\nminseal: stopped; {again}", file=sys.stderr)
        sys.exit(130)


@dataclass(frozen=True)
class Experiment:
    """One kind of run: its settings, what puts numbers for their zeros, how many steps it has, and the function that walks it."""

    settings: type
    settle: Callable
    steps: Callable
    walk: Callable


EXPERIMENTS = {
    "knowledge": Experiment(KnowledgeConfig, settle, steps_of, run_knowledge),
    "fewshot": Experiment(
        fewshot.FewShotConfig, fewshot.settle, fewshot.steps_of, fewshot.run_fewshot
    ),
    "ttt": Experiment(fewshot.TTTConfig, fewshot.settle, fewshot.steps_of, fewshot.run_ttt),
}


def run(args):
    print(f"minseal run {args.kind}: run folder {args.out}", flush=True)
    experiment = EXPERIMENTS[args.kind]
    config = experiment.settle(build(args.settings, vars(args)))
    with tqdm(total=experiment.steps(config), unit="step", smoothing=0, disable=None) as bar:

        def on_step(step, trials):
            bar.update()
            bar.set_postfix_str(
                step
                + (
                    f", reward {sum(t['reward'] for t in trials) / len(trials):.2f}"
                    if trials
                    else ""
                )
            )

        the_run = Run(args.out, {"kind": args.kind, **asdict(config)}, on_step)
        if LADDERS[args.kind].last in the_run.done:
            bar.disable = True
            print(f"{args.out} holds this run already, finished; its report again:")
        else:
            if the_run.done:
                bar.write(f"going on: {len(the_run.done)} steps were done already")
            experiment.walk(config, the_run, bar.write)
    results = write_report(the_run)
    print("\n" + text_report(the_run, results))
    print(
        f"{results['seconds']:.0f} s in all. In {args.out}: report.md, results.json, events.jsonl (every self-edit), plots."
    )


def report(args):
    the_run = Run(args.folder)
    if not LADDERS[kind_of(the_run.config)].order(the_run):
        raise UserError(f"{args.folder} holds no finished arm yet")
    print(text_report(the_run, write_report(the_run)))


def show_task(args):
    show(build(args.settings, vars(args)), args.task)


def learn_files(args):
    learn(build(args.settings, vars(args)), args.files)


def ask_question(args):
    print(ask(build(args.settings, vars(args)), args.question))


def chat_lines(args):
    chat(build(args.settings, vars(args)))


def convert(args):
    settings = build(args.settings, vars(args))
    refuse_to_overwrite(args.out)
    model, tokenizer = load(args.source, "cpu", settings.dtype)
    save(args.out, model, tokenizer, {"about": {"source": args.source}})
    c = model.config
    print(
        f"{args.out}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters in {str(model.wte.weight.dtype).removeprefix('torch.')}, {c.n_layer} blocks, "
        f"{c.n_embd} wide, reads {c.block_size} tokens, {tokenizer.vocab_size} tokens of {c.vocab_size}, chat format: {tokenizer.chat or 'none'}"
    )


def export(args):
    settings = build(args.settings, vars(args))
    refuse_to_overwrite(args.out)
    is_run = (Path(args.source) / "events.jsonl").is_file()
    source = Run(args.source).config["model"] if is_run else args.source
    model, tokenizer = load(source, "cpu", settings.dtype)
    if is_run:
        taught(model, args.source)
    if settings.adapter:
        adapters, _ = load_adapter(settings.adapter, model, source)
        adapters.merge()
        adapters.remove()
    export_folder(args.out, model, tokenizer)
    print(f"{args.out}: transformers.AutoModelForCausalLM.from_pretrained({args.out!r}) loads it")


def refuse_to_overwrite(out):
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise UserError(f"{out} is there already: choose another folder, or remove it")


@dataclass(frozen=True)
class ConvertConfig:
    """Open weights into minseal's own folder: GPT-2, Llama 3, SmolLM2, Qwen2.5 and Qwen3."""

    dtype: str = (
        "auto"  # auto | float32 | bfloat16 | float16: of the weights; auto: as they are stored
    )
    SOURCE = "a folder in the Hugging Face layout, a GGUF file, or a hub id such as owner/name"


@dataclass(frozen=True)
class ExportConfig:
    """A model into a folder that transformers loads to the same logits."""

    adapter: str = ""  # merge this adapter in, too
    dtype: str = (
        "auto"  # auto | float32 | bfloat16 | float16: of the weights; auto: as they are stored
    )
    SOURCE = "a model (as for convert), or a folder of `minseal run`: then the policy that its outer loop ended with"


def pretrain(args):
    {"knowledge": pretrain_knowledge, "fewshot": pretrain_fewshot}[args.kind](
        build(args.settings, vars(args))
    )


def bench(args):
    bench_inner(build(args.settings, vars(args)))


# ---- dataclasses into options --------------------------------------------------------------------------------------------


def add_options(parser, settings):
    """An option for each field of a settings dataclass; one in it gives --outer.rounds, or --rounds if no other field is called so."""
    options = dict(_fields(settings))
    last = [name.split(".")[-1] for name in options]
    for name, (default, comment) in options.items():
        choices = re.match(r"((?:[\w-]+ \| )+[\w-]+): ", comment)
        kind = (
            _boolean
            if isinstance(default, bool)
            else _choice(choices[1].split(" | "))
            if choices
            else type(default)
        )
        short = name.split(".")[-1]
        names = [
            f"--{n.replace('_', '-')}"
            for n in dict.fromkeys((name, short))
            if n == name or last.count(short) == 1
        ]
        parser.add_argument(
            *names,
            dest=name,
            type=kind,
            default=default,
            metavar=short.upper(),
            help=comment.replace("%", "%%"),
        )


def _fields(settings, prefix="", values=None):
    """(dotted name, (default, its comment in the source)) of a dataclass and of those inside it."""
    source = "".join(
        inspect.getsource(cls) for cls in settings.__mro__ if is_dataclass(cls)
    )  # a field's own class comes first
    for f in fields(settings):
        default = getattr(values, f.name) if values is not None else _default(f)
        if is_dataclass(default):
            yield from _fields(type(default), f"{prefix}{f.name}.", default)
        else:
            found = re.search(rf"^    {f.name}: .*?  # (.*)$", source, re.MULTILINE)
            yield prefix + f.name, (default, found[1] if found else "")


def build(settings, values, prefix=""):
    """The dataclass from flat option values {'outer.rounds': 3, ...}."""
    try:
        return settings(
            **{
                f.name: build(type(d), values, f"{prefix}{f.name}.")
                if is_dataclass(d := _default(f))
                else values[prefix + f.name]
                for f in fields(settings)
            }
        )
    except ValueError as e:
        raise UserError(str(e)) from None


def _default(field):
    return field.default if field.default is not MISSING else field.default_factory()


def _choice(allowed):
    def kind(value):
        if value not in allowed:
            raise argparse.ArgumentTypeError(
                f"{value!r} is not one of {', '.join(allowed)}{near(value, allowed)}"
            )
        return value

    return kind


def _boolean(value):
    if value.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{value!r} is not true or false")
    return value.lower() == "true"


def near(word, words):
    found = [w for w in words if w.split(".")[-1] == word.lstrip("-") and "." in w][
        :1
    ] or difflib.get_close_matches(word, words, 1)
    return f"; did you mean {found[0]}?" if found else ""


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line."""

    def options(self):
        return list(self._option_string_actions)

    def error(self, message):
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)
