"""What the documentation says is held by what it names."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import requires
from pathlib import Path

from tieredsession.settings import SETTINGS

ROOT = Path(__file__).resolve().parent.parent


def test_the_promises_name_tests_that_exist() -> None:
    """Every test that the table of promises names is there."""
    named = set(re.findall(r"``(test_\w+)``", (ROOT / "docs" / "promises.rst").read_text()))
    sources = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("tieredsession/testing/*.py")]
    text = "\n".join(path.read_text() for path in sources)
    assert len(named) > 10
    assert {name for name in named if f"def {name}(" not in text} == set()


def test_cron_calls_the_purge_where_it_is() -> None:
    """The deployed cron calls the path that the settings have, and within the budget."""
    defaults = {setting.name: setting.default for setting in SETTINGS}
    cron = (ROOT / "examples" / "app_engine" / "cron.yaml").read_text()
    assert f"url: {defaults['SESSION_PURGE_URL']}\n" in cron
    app = (ROOT / "examples" / "app_engine" / "app.yaml").read_text()
    timeout = re.search(r"--timeout (\d+)", app)
    assert timeout is not None
    assert defaults["SESSION_PURGE_BUDGET"] < int(timeout[1])


def test_an_example_installs_what_it_imports() -> None:
    """What the README of the examples has one install is what the example imports and is run by."""
    text = (ROOT / "examples" / "README.rst").read_text()
    rows = re.findall(
        r"   \* - ``(\w+)/.*\n     - ``(.+)``\n     - ``(\w+) .+``$", text, re.MULTILINE
    )
    assert [name for name, _, _ in rows] == [
        *("wsgi", "werkzeug", "pyramid", "flask", "django", "starlette", "fastapi")
    ]
    extras = "\n".join(requires("tieredsession") or ())
    for name, packages, server in rows:
        installed = {"gunicorn", *packages.split()}
        for extra in re.findall(r"\[(\w+)\]", packages):
            installed.update(re.findall(rf"^([\w-]+).*; extra == [\"']{extra}[\"']", extras, re.M))
        tree = ast.parse((ROOT / "examples" / name / "app.py").read_text())
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        tops = {str(module).partition(".")[0] for module in modules} - sys.stdlib_module_names
        assert (tops | {server}) - {"tieredsession"} <= installed, name
