"""run_subcommand: one command for the several measurements of a package."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

Command = Callable[[Sequence[str] | None], int]


def run_subcommand(
    prog: str, description: str, commands: Mapping[str, tuple[Command, str]], arguments: Sequence[str] | None
) -> int:
    """Run the command that the first argument names with the arguments after it.

    Args:
        prog: name of the whole command, for its help text.
        description: first line of its help text.
        commands: for each name the command and what it measures.
        arguments: the command line after ``prog``; None takes it from sys.argv.

    Returns:
        The exit code of the command that was run.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog="\n".join(f"{name:12}{text}" for name, (_, text) in commands.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=tuple(commands), metavar="WHAT", help=", ".join(commands))
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="its options; try WHAT --help")
    options = parser.parse_args(arguments)
    command, _ = commands[options.what]
    return command(options.options)
