"""``tieredsession purge``: the purge from a shell, a cron table or a container job."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable

from tieredsession.events import Purged
from tieredsession.purge import NothingToSweep, as_dict, oldest_expired_age, purge
from tieredsession.registry import open_store
from tieredsession.settings import Settings

DONE = 0
FAILED = 1
STOPPED = 3

_BAR = 30  # characters
_LINE_EVERY = 10.0  # seconds between two lines where there is no terminal

Progress = Callable[[int, int, int], None]


def run(options: Namespace) -> int:
    """Purge, show how it goes on the standard error, and print the report."""
    settings = _settings(options)
    progress, clear = _bar() if sys.stderr.isatty() else _lines()
    store = open_store(settings)
    try:
        report = purge(
            store,
            budget=options.budget or settings.session_purge_budget,
            grace=settings.session_purge_grace,
            limit=options.limit,
            dry_run=options.dry_run,
            full=options.full,
            ramp=not options.no_ramp,
            progress=progress,
        )
    except NothingToSweep as nothing:
        print(nothing)
        return DONE
    finally:
        clear()
        _close(store)
    print(json.dumps(as_dict(report)) if options.json else in_words(report))
    if report.failed:
        return FAILED
    return DONE if report.completed else STOPPED


def check(options: Namespace) -> int:
    """Say for how long the oldest expired row has been left; whether that is too long."""
    store = open_store(_settings(options))
    try:
        age = oldest_expired_age(store, time.time())
    except NothingToSweep as nothing:
        print(nothing)
        return DONE
    finally:
        _close(store)
    late = age is not None and age > options.max_age
    if options.json:
        print(json.dumps({"oldest_expired_age": age, "max_age": options.max_age, "late": late}))
    elif age is None:
        print("No expired session is left.")
    else:
        verdict = "the purge does not keep up" if late else "fine"
        print(f"The oldest expired session was left for {age:,.0f} s: {verdict}.")
    return FAILED if late else DONE


def in_words(report: Purged) -> str:
    """The report in a sentence or two."""
    done = "would be deleted" if report.dry_run else "deleted"
    words = [
        f"{report.deleted:,} expired sessions {done} in {report.seconds:,.1f} s,"
        f" {report.shards_done} of {report.shards} shards done."
    ]
    if report.spared:
        words.append(f"{report.spared:,} were alive after all.")
    if report.odd:
        words.append(f"{report.odd:,} could not be judged, and were left alone.")
    if report.shards_taken:
        words.append(f"{report.shards_taken} shards were left to another worker.")
    if report.oldest_expired_age is not None:
        words.append(f"The oldest that is left expired {report.oldest_expired_age:,.0f} s ago.")
    if report.stuck:
        words.append(f"In {report.stuck} shards the sweep did not delete what it should have.")
    if report.failed:
        words.append(f"{report.failed} calls failed: {report.error}.")
    if not report.completed and not report.next:
        words.append("Run it again to go on.")
    return " ".join(words)


def _settings(options: Namespace) -> Settings:
    if options.settings is not None:
        sys.path.insert(0, "")  # where the command was given, as for python -m
    return Settings(options.settings)


def _close(store: object) -> None:
    close = getattr(store, "close", None)
    if close is not None:
        close()


def _bar() -> tuple[Progress, Callable[[], None]]:
    def show(done: int, shards: int, deleted: int) -> None:
        full = _BAR * done // shards
        bar = "#" * full + "-" * (_BAR - full)
        sys.stderr.write(f"\r\x1b[K[{bar}] {done}/{shards} shards, {deleted:,} deleted")
        sys.stderr.flush()

    def clear() -> None:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

    return show, clear


def _lines() -> tuple[Progress, Callable[[], None]]:
    shown = time.monotonic()

    def show(done: int, shards: int, deleted: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= _LINE_EVERY:
            shown = time.monotonic()
            print(f"{done} of {shards} shards, {deleted:,} deleted", file=sys.stderr, flush=True)

    return show, lambda: None
