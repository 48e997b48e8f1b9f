"""``mptcp-proxy completion``: what makes a shell complete our commands and options."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "tcsh")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "completion",
        help="print a completion script for a shell",
        description="Prints a script by which the shell completes commands and options. For bash: "
        "mptcp-proxy completion bash >/usr/share/bash-completion/completions/mptcp-proxy",
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Prints the script of the shell that is named."""
    import shtab

    # Late: it is this very package that makes the parser.
    from proxy.cli import make_parser

    print(shtab.complete(make_parser(), options.shell))
    return 0
