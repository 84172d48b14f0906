"""`python -m minseal` and `minseal`: nothing heavy is imported before Ctrl-C is one line."""

import sys


def main() -> None:
    try:
        from .commands.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        print("\nminseal: stopped; nothing had begun", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
