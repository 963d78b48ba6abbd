"""The command ``tieredsession``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from tieredsession.errors import SessionError

_WRONG = 2  # the exit code of a wrong setting, the same as argparse's for a wrong option


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments*, or those of the process, and answer its exit code.

    What is wrong with a setting is said in one sentence, with exit code 2.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except SessionError as error:
        print(f"tieredsession: {error}", file=sys.stderr)
        return _WRONG
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tieredsession", description="Sessions for Python web applications."
    )
    parser.add_argument(
        "--version", action="version", version=f"tieredsession {version('tieredsession')}"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="serve a page that shows a session at work",
        description="Serve a page that shows a session at work, on this machine alone.",
    )
    demo.add_argument(
        "--store",
        choices=("sqlite", "cookie", "memory", "gae"),
        default="sqlite",
        help="where sessions live (default: %(default)s)",
    )
    demo.add_argument(
        "--host", default="127.0.0.1", help="a loopback address (default: %(default)s)"
    )
    demo.add_argument(
        "--port",
        type=_port,
        default=8000,
        help="a port, or 0 for any that is free (default: %(default)s)",
    )
    demo.set_defaults(run=_demo)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from tieredsession.demo.app import serve

    serve(options.store, options.host, options.port)
    return 0


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 65535")
    return int(text)
