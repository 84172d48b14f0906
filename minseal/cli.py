"""`minseal ...`: options are the fields of the settings' dataclasses, their comments are the help."""

import argparse
import difflib
import inspect
import re
import sys
import time
from dataclasses import MISSING, asdict, fields, is_dataclass

from .errors import UserError

DESCRIPTION = """\
minseal: SEAL (self-adapting language models, arXiv 2506.10943) from scratch.

  minseal run knowledge        the paper's ladder on a toy world, with the outer loop and its control: a few minutes on two cores
  minseal report RUN           table, plots, report.md and results.json of a run folder, made again
  minseal pretrain knowledge   make the tiny model of `run knowledge` again, from nothing
  minseal bench inner          the inner loop against transformers + peft

`minseal COMMAND --help` tells more."""


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="minseal", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="run | report | pretrain | bench", required=True, parser_class=Parser)
    for name, kinds, function in (("run", ["knowledge"], run), ("pretrain", ["knowledge"], pretrain), ("bench", ["inner"], bench)):
        _branch(commands, name, kinds, function, argv)
    p = commands.add_parser("report", description="Make table, plots, report.md and results.json of a run folder again.")
    p.add_argument("folder", metavar="RUN", help="a folder that `minseal run` made")
    p.set_defaults(function=report)
    args = parser.parse_args(argv)
    try:
        args.function(args)
    except UserError as e:
        sys.exit(_complain(e))
    except KeyboardInterrupt:
        print(f"\nstopped; nothing done is lost. To go on: minseal {' '.join(argv)}", file=sys.stderr)
        sys.exit(130)


def _complain(e):
    print(f"minseal: error: {e}", file=sys.stderr)
    return 2


def run(args):
    print(f"minseal run knowledge: loading the model; run folder {args.out}", flush=True)  # before torch, which takes seconds
    from tqdm import tqdm

    from .experiment import run_knowledge, steps_of
    from .report import text_report, write_report
    from .runs import Run
    config = args.build()
    with tqdm(total=steps_of(config), unit="step", smoothing=0, disable=None) as bar:
        def on_step(step, trials):
            bar.update()
            rewards = [t["reward"] for t in trials]
            bar.set_postfix_str(f"{step}" + (f", reward {sum(rewards) / len(rewards):.2f}" if rewards else ""))
        folder = Run(args.out, asdict(config), on_step)
        finished = (folder.folder / "results.json").exists()
        if finished:
            bar.disable = True
            print(f"{args.out} holds this run already, finished; its report again:")
        else:
            run_knowledge(config, folder, bar.write)
    results = write_report(folder)
    print("\n" + text_report(folder, results))
    print(f"{results['seconds']:.0f} s in all. In {args.out}: report.md, results.json, events.jsonl (every self-edit), plots.")


def report(args):
    from .report import text_report, write_report
    from .runs import Run
    folder = Run(args.folder)
    if not folder.done:
        raise UserError(f"{args.folder} holds no finished step yet")
    print(text_report(folder, write_report(folder)))


def pretrain(args):
    print("minseal pretrain knowledge: some eight minutes on two cores", flush=True)
    from .pretrain import pretrain_knowledge
    pretrain_knowledge(args.build())


def bench(args):
    print("minseal bench inner", flush=True)
    from .bench import bench_inner
    bench_inner(args.build())


# ---- dataclasses into options --------------------------------------------------------------------------------------------

def _branch(commands, name, kinds, function, argv):
    p = commands.add_parser(name, description=f"minseal {name} {' | '.join(kinds)}")
    sub = p.add_subparsers(dest="kind", metavar=" | ".join(kinds), required=True, parser_class=Parser)
    for kind in kinds:
        q = sub.add_parser(kind, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        q.set_defaults(function=function)
        if [name, kind] == argv[:2]:  # only then: the settings live beside torch, and importing it takes seconds
            cls = _settings(name, kind)
            q.description = inspect.getdoc(cls)
            add_options(q, cls)
            if name == "run":
                q.add_argument("--out", default=f"runs/{kind}", help="run folder; the same command again goes on where it stopped")


def _settings(name, kind):
    if name == "run":
        from .experiment import KnowledgeConfig
        return KnowledgeConfig
    if name == "pretrain":
        from .pretrain import PretrainConfig
        return PretrainConfig
    from .bench import BenchConfig
    return BenchConfig


def add_options(parser, cls):
    """An option for each field of a settings dataclass; a dataclass in it gives --outer.rounds and the like."""
    flat = dict(_fields(cls))
    for name, (field, default, comment) in flat.items():
        choices = re.match(r"((?:[\w-]+ \| )+[\w-]+): ", comment)
        kind = _boolean if isinstance(default, bool) else _choice(choices[1].split(" | ")) if choices else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, default=default, metavar=field.name.upper(), help=comment.replace("%", "%%"))
    parser.set_defaults(build=None)
    parser.finish = lambda args: setattr(args, "build", lambda: _build(cls, vars(args)))


def _fields(cls, prefix="", values=None):
    """(dotted name, (field, default, its comment in the source)) of a dataclass and those inside it."""
    source = inspect.getsource(cls)
    for f in fields(cls):
        default = getattr(values, f.name) if values is not None else f.default if f.default is not MISSING else f.default_factory()
        if is_dataclass(default):
            yield from _fields(type(default), f"{prefix}{f.name}.", default)
        else:
            found = re.search(rf"^    {f.name}: .*?  # (.*)$", source, re.MULTILINE)
            yield prefix + f.name, (f, default, found[1] if found else "")


def _build(cls, values, prefix=""):
    """The dataclass from flat option values."""
    kwargs = {}
    for f in fields(cls):
        default = f.default if f.default is not MISSING else f.default_factory()
        kwargs[f.name] = _build(type(default), values, f"{prefix}{f.name}.") if is_dataclass(default) else values[prefix + f.name]
    return cls(**kwargs)


def _choice(allowed):
    def kind(value):
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"{value!r} is not one of {', '.join(allowed)}{_near(value, allowed)}")
        return value
    return kind


def _boolean(value):
    if value.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{value!r} is not true or false")
    return value.lower() == "true"


def _near(word, words):
    found = difflib.get_close_matches(word, words, 1)
    return f"; did you mean {found[0]}?" if found else ""


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line, and a mistyped option gets its near match."""

    def parse_known_args(self, args=None, namespace=None):
        namespace, rest = super().parse_known_args(args, namespace)
        if getattr(self, "finish", None):
            self.finish(namespace)
        unknown = [a for a in rest if a.startswith("-")]
        if unknown and getattr(self, "finish", None):
            self.error(f"unknown option {unknown[0]}" + _near(unknown[0].split("=")[0], list(self._option_string_actions)))
        return namespace, rest

    def error(self, message):
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
