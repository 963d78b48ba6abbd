"""The command ``tieredsession``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from tieredsession.errors import SessionError, StoreError

_FAILED = 1  # the exit code of a tier that fails
_WRONG = 2  # the exit code of a wrong setting, the same as argparse's for a wrong option
_INTERRUPTED = 130  # as the shell has it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments*, or those of the process, and answer its exit code.

    What is wrong with a setting is said in one sentence, with exit code 2; what a tier says that
    fails, with 1.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except SessionError as error:
        print(f"tieredsession: {error}", file=sys.stderr)
        return _FAILED if isinstance(error, StoreError) else _WRONG
    except KeyboardInterrupt:
        return _INTERRUPTED
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
    _add_purge(commands.add_parser("purge", help="delete the sessions that have expired"))
    return parser


def _add_purge(purge: argparse.ArgumentParser) -> None:
    purge.description = (
        "Delete the sessions that have expired. Ends with 0 when nothing is left, 3 when the "
        "budget or the limit ended it first or another worker is at the rest, 1 when a tier "
        "failed, 2 when a setting is wrong."
    )
    purge.add_argument(
        "--settings",
        metavar="MODULE",
        help="the site's settings, as SessionMiddleware has them (default: the environment)",
    )
    purge.add_argument(
        "--budget", type=_positive, metavar="SECONDS", help="stop after that (SESSION_PURGE_BUDGET)"
    )
    purge.add_argument(
        "--limit", type=_positive, metavar="ROWS", help="delete at most so many sessions"
    )
    purge.add_argument("--dry-run", action="store_true", help="count, and delete nothing")
    purge.add_argument(
        "--full",
        action="store_true",
        help="read every session, also those that the index does not know of",
    )
    purge.add_argument(
        "--no-ramp",
        action="store_true",
        help="delete as fast as Datastore lets, instead of by its 500/50/5 rule",
    )
    purge.add_argument("--json", action="store_true", help="print the report as JSON")
    purge.add_argument(
        "--check",
        action="store_true",
        help="delete nothing: say for how long the oldest expired session has been left, and end "
        "with 1 if that is longer than --max-age",
    )
    purge.add_argument(
        "--max-age",
        type=_positive,
        default=4 * 3600,
        metavar="SECONDS",
        help="for --check (default: %(default)s)",
    )
    purge.set_defaults(run=_purge)


def _demo(options: argparse.Namespace) -> int:
    from tieredsession.demo.app import serve

    serve(options.store, options.host, options.port)
    return 0


def _purge(options: argparse.Namespace) -> int:
    from tieredsession.cli_purge import check, run

    return check(options) if options.check else run(options)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 65535")
    return int(text)
