"""Settings become options: what types and comments say is what the command line takes and tells."""

import inspect
import re
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Literal

import pytest

from minseal import UserError
from minseal.commands import cli
from minseal.config import Parser, Settings, add_options, build, did_you_mean, mix_seed


@dataclass(frozen=True)
class Inside(Settings):
    """Settings within settings."""

    rate: float = 0.5  # how fast
    seed: int = 1  # of the inside

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(rate=0)


@dataclass(frozen=True)
class Base(Settings):
    """What others share."""

    seed: int = 0  # of everything


@dataclass(frozen=True)
class Whole(Base):
    """One field of each type."""

    mode: Literal["best", "random"] = "best"  # how to choose
    loud: bool = False  # 100 % louder
    words: tuple[str, ...] = ("a", "b")  # some words

    styles: tuple[str, ...] | None = None  # perhaps words
    most: int | None = None  # at most so many; None: all
    long_name: str = ""  # a name of two words
    inside: Inside = Inside(rate=0.25)


def parsed(*words, settings=Whole):
    parser = Parser(prog="minseal test")
    add_options(parser, settings)
    return build(settings, vars(parser.parse_args(list(words))))


def refused(capsys, *words):
    """The one line of a refusal by the parser."""
    with pytest.raises(SystemExit) as stopped:
        parsed(*words)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minseal test: error: ")
    return line


def test_no_option_gives_the_defaults_those_of_the_outer_class_too():
    assert parsed() == Whole()
    assert parsed().inside.rate == 0.25


@pytest.mark.parametrize(
    "words, field, value",
    [
        ("--seed 7", "seed", 7),
        ("--seed=7", "seed", 7),
        ("--mode random", "mode", "random"),
        ("--loud true", "loud", True),
        ("--loud TRUE", "loud", True),
        ("--loud false", "loud", False),
        ("--words x,y,z", "words", ("x", "y", "z")),
        ("--words x", "words", ("x",)),
        ("--words none", "words", ()),
        ("--styles q", "styles", ("q",)),
        ("--most 3", "most", 3),
        ("--long-name x", "long_name", "x"),
    ],
)
def test_a_value_is_read_as_its_type_says(words, field, value):
    assert getattr(parsed(*words.split()), field) == value


def test_spaces_after_commas_do_not_matter():
    assert parsed("--words", "x, y,") == Whole(words=("x", "y"))


def test_a_field_inside_has_a_long_name_and_a_short_one_while_that_is_unique(capsys):
    assert parsed("--inside.rate", "2").inside.rate == parsed("--rate", "2").inside.rate == 2
    config = parsed("--seed", "5")  # both have a seed: the short name is the outer one's
    assert (config.seed, config.inside.seed) == (5, 1)
    assert parsed("--inside.seed", "6") == Whole(inside=Inside(0.25, 6))


@pytest.mark.parametrize(
    "words, told",
    [
        ("--mode rendom", ["--mode", "'rendom'", "best, random", "did you mean random?"]),
        ("--loud perhaps", ["--loud", "'perhaps'", "true, false"]),
        ("--seed one", ["--seed", "'one'"]),
        ("--seed 1.5", ["--seed", "'1.5'"]),
        ("--most many", ["--most", "'many'"]),
        ("--rate fast", ["--rate", "'fast'"]),
        ("--words", ["--words"]),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_option_and_what_came(capsys, words, told):
    line = refused(capsys, *words.split())
    assert all(part in line for part in told), line


def test_settings_refuse_bad_values_wherever_they_are_made():
    with pytest.raises(UserError, match="mode is 'worst'; expected one of best, random"):
        Whole(mode="worst")
    with pytest.raises(UserError, match="rate is -1.0; expected at least 0"):
        parsed("--rate", "-1")
    for bad in ("nan", "inf", "-inf", "1e400"):  # the kind: every number of every settings class
        with pytest.raises(UserError, match="rate is .*; expected a number below"):
            parsed(f"--rate={bad}")


@pytest.mark.parametrize(
    "word, words, told",
    [
        ("--sede", ["--seed", "--out"], "; did you mean --seed?"),
        ("--rate", ["--mode", "--inside.rate"], "; did you mean --inside.rate?"),
        ("--zzzz", ["--seed", "--out"], ""),
    ],
)
def test_did_you_mean_finds_the_nearest_and_what_lies_inside(word, words, told):
    assert did_you_mean(word, words) == told


def test_help_shows_choices_comment_and_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    parser = Parser(prog="minseal test")
    add_options(parser, Whole)
    text = " ".join(parser.format_help().split())
    for told in (
        "--seed SEED of everything (default: 0)",
        "--mode MODE best | random; how to choose (default: best)",
        "100 % louder (default: False)",
        "some words (default: a,b)",
        "--inside.rate RATE, --rate RATE how fast (default: 0.25)",
        "--inside.seed SEED of the inside (default: 1)",
    ):
        assert told in text or told.replace(" RATE,", ",") in text, told


def test_seeds_of_other_parts_are_others_and_the_same_parts_give_the_same():
    parts = [(0, 0), (0, 1), (1, 0), (0, "a"), (0, "b"), ("a", 0)]  # (1,) would be (1, 0)
    assert len({mix_seed(*p) for p in parts}) == len(parts)
    assert mix_seed(3, "round", 1) == mix_seed(3, "round", 1)


# ---- the settings of all commands ----


def settings_of_all_commands():
    """Every settings class that options are made of, those inside others included."""
    todo, found = [c.settings for c in cli.commands()], {}
    while todo:
        cls = todo.pop()
        found[cls.__name__] = cls
        todo += [type(v) for f in fields(cls) if is_dataclass(v := getattr(cls(), f.name))]
    return found


ALL = settings_of_all_commands()


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_field_has_a_help_text(name):
    parser = Parser()
    add_options(parser, ALL[name])
    for action in parser._actions[1:]:
        told = re.sub(r"^([\w.-]+ \| )+[\w.-]+; ", "", action.help)
        assert re.match(r"\S.{2,}? \(default: ", told), (action.dest, action.help)


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_settings_class_has_a_docstring_and_defaults_that_it_accepts(name):
    cls = ALL[name]
    assert is_dataclass(cls) and issubclass(cls, Settings) and cls.__dataclass_params__.frozen
    assert cls.__doc__ and not cls.__doc__.startswith(f"{name}(")
    assert parsed(settings=cls) == cls()


@pytest.mark.parametrize("name", sorted(ALL))
def test_no_comment_on_a_field_goes_on_where_help_does_not_read_it(name):
    for before, line in pairwise(inspect.getsource(ALL[name]).splitlines()):
        if re.match(r"    \w+: .*  # ", before):
            assert not line.strip().startswith("#"), line


@pytest.mark.parametrize(
    "words, expected",
    [([], None), (["--other-prompts", "none"], ()), (["--other-prompts", "a, b"], ("a", "b"))],
)
def test_words_with_commas_may_be_none_at_all_or_not_be_said(words, expected):
    @dataclass(frozen=True)
    class Asked(Settings):
        other_prompts: tuple[str, ...] | None = None

    parser = Parser()
    add_options(parser, Asked)
    assert vars(parser.parse_args(words))["other_prompts"] == expected
