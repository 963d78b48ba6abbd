"""The command ``tieredsession``: what it prints and how it ends."""

from __future__ import annotations

import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tieredsession.cli import main


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
    ],
    ids=["nothing", "command", "store", "word", "large", "negative"],
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
    """A SQLite file that is none ends the start with a sentence that names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".demo").mkdir()
    (tmp_path / ".demo" / "sessions.sqlite3").write_bytes(b"no database at all " * 100)
    assert main(["demo", "--port", "0"]) == 2
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
