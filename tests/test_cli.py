"""The command ``tieredsession``: what it prints and how it ends."""

from __future__ import annotations

import json
import os
import pty
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

import pytest

from tieredsession import Settings
from tieredsession.cli import main
from tieredsession.contracts import Record
from tieredsession.registry import open_store


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` prints the name and the installed version, and succeeds."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tieredsession {version('tieredsession')}\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["demo", "--store", "tape"], "invalid choice: 'tape'"),
        (["demo", "--port", "http"], "'http' is not a number from 0 to 65535"),
        (["demo", "--port", "65536"], "'65536' is not a number from 0 to 65535"),
        (["demo", "--port", "-1"], "'-1' is not a number from 0 to 65535"),
        (["purge", "--limit", "0"], "'0' is not a whole number above 0"),
        (["purge", "--budget", "soon"], "'soon' is not a whole number above 0"),
    ],
    ids=["nothing", "command", "store", "word", "large", "negative", "limit", "budget"],
)
def test_wrong_arguments(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong argument is named, with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_the_demo_stays_on_its_machine(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A host that others can reach is refused with one sentence and exit code 2."""
    assert main(["demo", "--host", host]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"tieredsession: --host {host} is not an address of this machine alone")
    assert said.count("\n") == 1


def test_a_port_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A port that somebody else has is named in one sentence, and no file is made."""
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"tieredsession: --host 127.0.0.1 --port {port}: ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("SECRET_KEY", "too short", "SECRET_KEY has 9 bytes and needs at least 32"),
        ("SECRET_KEY_FALLBACKS", "too short", "SECRET_KEY_FALLBACKS has 9 bytes"),
    ],
    ids=["key", "fallback"],
)
def test_a_weak_key(
    name: str,
    value: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A weak key from the environment ends the start with one sentence and exit code 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    assert main(["demo", "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A SQLite file that is none ends the start with 1 and a sentence that names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".demo").mkdir()
    (tmp_path / ".demo" / "sessions.sqlite3").write_bytes(b"no database at all " * 100)
    assert main(["demo", "--port", "0"]) == 1
    assert "sessions.sqlite3" in capsys.readouterr().err


def test_the_module_is_the_command() -> None:
    """``python -m tieredsession`` does what ``tieredsession`` does."""
    done = subprocess.run(
        [sys.executable, "-m", "tieredsession", "demo", "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tieredsession: --host 0.0.0.0 is not")
    assert done.stdout == ""


def test_the_demo_without_werkzeug() -> None:
    """Without Werkzeug the command says what to install."""
    script = (
        "import sys; sys.modules['werkzeug.serving'] = None;"
        "from tieredsession.cli import main; sys.exit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert 'pip install "tieredsession[demo]"' in done.stderr
    assert done.stderr.count("\n") == 1


# -- the purge ------------------------------------------------------------------------

DAY = 24 * 3600


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Settings of a site on SQLite in the environment, with 7 expired sessions and a live one."""
    for name in list(os.environ):
        if name.startswith(("SESSION_", "SECRET_KEY")):
            monkeypatch.delenv(name)
    given = {
        "SECRET_KEY": "a long enough text, for tests alone: 0123456789",
        "SESSION_STORE": "tieredsession.stores.SQLiteSessionStore",
        "SESSION_STORE_URL": f"sqlite:///{tmp_path}/s.sqlite3",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    store = open_store(Settings(given))
    now = time.time()
    for age in [20 * DAY] * 7 + [0]:
        store.create(Record(b"x", now - age + 14 * DAY, now - age), now - age)
    store.close()  # type: ignore[attr-defined]  # of this store

    def count() -> int:
        with closing(sqlite3.connect(tmp_path / "s.sqlite3")) as connection:
            (number,) = connection.execute("SELECT count(*) FROM sessions").fetchone()
        return int(number)

    return count


def test_purge(rows: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> None:
    """``purge`` deletes what has expired, says so in a sentence, and ends with 0."""
    assert main(["purge"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("7 expired sessions deleted in ")
    assert "1 of 1 shards done." in said
    assert rows() == 1


def test_purge_as_json(rows: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` prints the report for a program."""
    assert main(["purge", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["deleted"], report["completed"]) == (7, True)


def test_purge_within_a_limit(rows: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> None:
    """With a limit the command ends with 3, says how to go on, and does so."""
    assert main(["purge", "--limit", "3"]) == 3
    assert "Run it again to go on." in capsys.readouterr().out
    assert rows() == 5
    assert main(["purge", "--limit", "9"]) == 0
    assert rows() == 1


def test_purge_that_only_counts(
    rows: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """``--dry-run`` deletes nothing and says what would be."""
    assert main(["purge", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("7 expired sessions would be deleted")
    assert rows() == 8


def test_purge_check(rows: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> None:
    """``--check`` ends with 1 while an expired session has been left for too long."""
    assert main(["purge", "--check"]) == 1
    assert "the purge does not keep up" in capsys.readouterr().out
    assert main(["purge", "--check", "--max-age", str(7 * DAY)]) == 0
    assert rows() == 8
    assert main(["purge"]) == 0
    capsys.readouterr()
    assert main(["purge", "--check"]) == 0
    assert capsys.readouterr().out == "No expired session is left.\n"
    assert main(["purge", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["late"] is False


def test_purge_by_a_settings_module(
    rows: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--settings`` names a module in the folder where the command was given."""
    (tmp_path / "site_settings.py").write_text(
        "SECRET_KEY = 'a long enough text, for tests alone: 0123456789'\n"
        "SESSION_STORE = 'tieredsession.stores.SQLiteSessionStore'\n"
        "SESSION_STORE_URL = 'sqlite:///s.sqlite3'\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SE")}
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "tieredsession"),
            "purge",
            "--settings",
            "site_settings",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("7 expired sessions deleted")
    assert rows() == 1


def test_purge_of_nothing(
    monkeypatch: pytest.MonkeyPatch, rows: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """With a store that keeps no rows the command says so and ends with 0."""
    monkeypatch.setenv("SESSION_STORE", "tieredsession.stores.SecureCookieSessionStore")
    monkeypatch.delenv("SESSION_STORE_URL")
    for arguments in (["purge"], ["purge", "--check"]):
        assert main(arguments) == 0
        assert "keeps no rows" in capsys.readouterr().out


def test_purge_of_a_damaged_file(
    rows: Callable[[], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that cannot be opened is named in one sentence, with exit code 1."""
    (tmp_path / "s.sqlite3").write_bytes(b"no database at all " * 100)
    for arguments in (["purge"], ["purge", "--check"]):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert "s.sqlite3" in said
        assert said.count("\n") == 1


def test_a_tier_that_fails_under_the_purge(
    rows: Callable[[], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tier that fails on the way is told in the report, and the command ends with 1."""
    with closing(sqlite3.connect(tmp_path / "s.sqlite3")) as other:
        other.execute("DROP TABLE sessions")
    assert main(["purge"]) == 1
    assert "1 calls failed: StoreError" in capsys.readouterr().out
    assert main(["purge", "--check"]) == 1
    assert "s.sqlite3" in capsys.readouterr().err


def test_purge_shows_its_progress(rows: Callable[[], int]) -> None:
    """On a terminal a bar shows how far the purge is, and nothing of it is left at the end."""
    primary, secondary = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "tieredsession", "purge"], stdout=subprocess.PIPE, stderr=secondary
    ) as process:
        os.close(secondary)
        shown = b""
        with suppress(OSError):
            while chunk := os.read(primary, 4096):
                shown += chunk
        assert process.wait(60) == 0
    os.close(primary)
    assert b"[##############################] 1/1 shards, 7 deleted" in shown
    assert shown.endswith(b"\r\x1b[K")
