"""The `kvviz` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from kvviz.commands import ab, distill, profile, runs
from kvviz.config import ConfigError
from kvviz.errors import ExplainedError
from kvviz.version import __version__

COMMANDS = (profile, distill, runs, ab)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 2 for input that cannot be used, 1 for a run that failed."""
    parser = argparse.ArgumentParser(
        prog="kvviz", description="See how one language model's KV cache maps onto another's."
    )
    parser.add_argument("--version", action="version", version=f"kvviz {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except ExplainedError as error:
        print(f"kvviz: {error.what}\n  why: {error.why}\n  do:  {error.do}", file=sys.stderr)
    except ConfigError as error:
        print(f"kvviz: {error}", file=sys.stderr)
    except BrokenPipeError:
        # `kvviz runs | head`: nobody reads on. Python would complain again when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 2
