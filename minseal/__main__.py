"""`python -m minseal` and `minseal`: Ctrl-C and SIGTERM are one line, from the first line on."""

import os
import signal
from collections.abc import Callable
from types import FrameType

from .terminal import complain, prepare


def main() -> None:
    """The command line. What takes seconds to import is imported once signals are looked after."""
    answer_signals(leave)
    prepare()
    from .commands.cli import main as command_line

    answer_signals(interrupt)
    try:
        command_line()
    finally:  # all is done, or said; packages clean up, which no exception shall disturb
        answer_signals(signal.SIG_IGN)


def answer_signals(answer: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Call `answer` on Ctrl-C and SIGTERM, unless they are ignored (nohup, a job in background)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, answer)


def leave(number: int, frame: FrameType | None) -> None:
    """At once: while packages are imported, an exception could end up anywhere."""
    complain("minseal: stopped; nothing had begun")
    os._exit(128 + number)


def interrupt(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt(number), for SIGTERM too; a second signal ends it without a word."""
    answer_signals(lambda number, frame: os._exit(128 + number))
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    main()
