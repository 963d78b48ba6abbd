"""The rules of the house, read off the source: who imports whom, and what is written down."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tieredsession.settings import ALIASES, SETTINGS, Settings

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tieredsession"

ORDER = (
    {"errors"},
    {"contracts", "tokens", "url", "events", "tables"},
    {"codec", "keyring", "envelope", "options", "session", "settings", "cookies", "merge"}
    | {"foreign", "importing", "marks", "pace", "state", "lifetimes", "moving", "principals"}
    | {"observers"},
    {"registry", "manager", "purge", "testing", "oidc", "frontend", "login"},
    {"cron"},
    {"wsgi"},
    {"adapters"},
    {"__init__"},
    {"cli", "cli_purge", "demo", "__main__"},
)
"""The rooms of the core. A file imports from its own line and those above."""

FOR_STORES = {
    *("errors", "contracts", "tokens", "url", "events"),
    *("observers", "codec", "keyring", "envelope", "options"),
}

HOMES = {
    "msgpack": "codec",
    "cryptography": "keyring",
    "itsdangerous": "foreign",
    "opentelemetry": "observers",
    "pymemcache": "stores.memcached",
    "redis": "stores.redis",
    "fakeredis": "stores.redis",
    "google.cloud": "stores.datastore",
    "google.auth": "stores.datastore",
    "google.oauth2": "oidc",
    "grpc": "stores.datastore",
}
"""Where a third-party library may be imported."""

FRAMEWORKS = {
    "adapters.werkzeug": {"werkzeug"},
    "adapters.flask": {"flask", "markupsafe", "werkzeug"},
    "adapters.django": {"asgiref", "django"},
    "adapters.asgi": {"anyio"},
    "adapters.pyramid": {"pyramid", "zope"},
    "demo.app": {"werkzeug"},
}
"""The framework of each adapter, with what that framework itself stands on."""


class Import(NamedTuple):
    """One imported module. *typing* imports are for a type checker and never run."""

    target: str
    typing: bool
    deferred: bool


# -- who imports whom -----------------------------------------------------------------


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package, by its name below ``tieredsession``."""
    found = {}
    for path in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE / "stores").rglob("*.py")]):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts)] = ast.parse(path.read_text("utf-8"))
    return found


def imports(name: str) -> Iterator[Import]:
    """What module *name* imports, wherever in it."""

    def walk(node: ast.AST, typing: bool, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, typing, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            assert node.module is not None
            for alias in node.names:
                yield Import(resolve(node.module, alias.name), typing, deferred)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                yield from walk(statement, True, deferred)
        else:
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for child in ast.iter_child_nodes(node):
                yield from walk(child, typing, deferred or function)

    yield from walk(modules()[name], False, False)


def resolve(module: str, name: str) -> str:
    """The module that ``from module import name`` loads."""
    inner = f"{module}.{name}".removeprefix("tieredsession.")
    is_module = inner in modules() or f"{inner}.__init__" in modules()
    return f"{module}.{name}" if is_module else module


def own(name: str) -> Iterator[tuple[str, Import]]:
    """The modules of the package that *name* imports when it runs, below ``tieredsession``."""
    for imported in imports(name):
        top, _, inner = imported.target.partition(".")
        if top == "tieredsession" and not imported.typing:
            yield inner or "__init__", imported


def room(name: str) -> str:
    """The room that module *name* is in."""
    return name.partition(".")[0]


def is_part(whole: str, part: str) -> bool:
    """Whether *part* is a file that belongs to the same store as *whole*, and to it alone."""
    return part.startswith(whole.partition("_")[0] + "_") or (whole, part) == (
        "stores.tiered",
        "stores.breaker",
    )


@pytest.mark.parametrize("name", [name for name in modules() if room(name) != "stores"])
def test_a_room_imports_from_above(name: str) -> None:
    """A file of the core imports from its own line of the order and those above, no store."""
    level = {inner: number for number, rooms in enumerate(ORDER) for inner in rooms}
    assert room(name) in level, f"{name} has no place in the order yet"
    for target, imported in own(name):
        if room(target) == "stores":
            # Names become stores there, on demand.
            assert name == "registry", f"{name} imports {target}"
            assert imported.deferred, f"{name} imports {target} at once"
        else:
            assert level.get(room(target), 99) <= level[room(name)], f"{name} imports {target}"


@pytest.mark.parametrize("name", [name for name in modules() if room(name) == "stores"])
def test_a_store_stands_alone(name: str) -> None:
    """A store imports the contracts, the keys and its own parts, and never another store."""
    for target, _ in own(name):
        if room(target) == "stores":
            assert is_part(name, target), f"{name} imports {target}"
        else:
            assert room(target) in FOR_STORES, f"{name} imports {target}"


def test_no_circle() -> None:
    """No two modules import each other, not even through others, when they are loaded."""
    waiting = {
        name: {target for target, imported in own(name) if not imported.deferred} - {name}
        for name in modules()
    }
    while waiting:
        free = [name for name, targets in waiting.items() if not targets & waiting.keys()]
        assert free, f"these import each other: {sorted(waiting)}"
        for name in free:
            del waiting[name]


@pytest.mark.parametrize("name", modules())
def test_a_library_is_imported_in_one_room(name: str) -> None:
    """Each third-party library is imported in one room, even for its types."""
    for imported in imports(name):
        top = imported.target.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("tieredsession", "_typeshed"):
            continue
        assert top != "stores", f"{name}: stores are imported as tieredsession.stores"
        if room(name) in ("adapters", "demo"):
            assert top in FRAMEWORKS.get(name, ()), f"{name} imports {top}"
        else:
            library = top if top in HOMES else ".".join(imported.target.split(".")[:2])
            home = HOMES[library]
            beside = (name, library) == ("oidc", "google.auth")  # which google.oauth2 stands on
            assert name == home or is_part(home, name) or beside, f"{name} imports {library}"


@pytest.mark.parametrize(
    ("statement", "libraries"),
    [
        ("import tieredsession", set()),
        ("import tieredsession.cli", set()),
        ("from tieredsession import SessionMiddleware", {"msgpack"}),
        ("from tieredsession import SessionManager, Session, Settings", set()),
        ("from tieredsession.adapters.werkzeug import Request", {"msgpack", "werkzeug"}),
        ("import tieredsession.adapters.django", {"msgpack", "django", "asgiref"}),
    ],
    ids=["package", "command", "middleware", "core", "werkzeug", "django"],
)
def test_an_import_loads_no_more_than_it_needs(statement: str, libraries: set[str]) -> None:
    """What an application does not use is not loaded: no framework, no backend, no store."""
    loaded = loaded_by(statement) - loaded_by("pass")
    tops = {name.partition(".")[0] for name in loaded if not name.startswith("_sysconfigdata")}
    assert tops - sys.stdlib_module_names - {"tieredsession", "markupsafe"} == libraries
    assert not {name for name in loaded if name.startswith("tieredsession.stores")}


def test_no_module_is_called_stores() -> None:
    """The folder ``stores`` is reached as ``tieredsession.stores`` alone, a name of ours."""
    statement = "import tieredsession.stores as s; [getattr(s, name) for name in s.__all__]"
    loaded = loaded_by(statement)
    assert "tieredsession.stores.sqlite" in loaded
    assert "stores" not in loaded


def loaded_by(statement: str) -> set[str]:
    """The modules that a new interpreter has loaded after *statement*."""
    # What a compiled module makes up in memory has no spec.
    names = "n for n, m in sys.modules.items() if getattr(m, '__spec__', None)"
    script = f"{statement}\nimport sys; print(*({names}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


# -- what is written down -------------------------------------------------------------


def test_every_test_says_what_it_promises() -> None:
    """Every test has a docstring of one sentence; this one checks itself as well."""
    wrong = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for folder in (ROOT / "tests", PACKAGE / "testing")
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if not is_one_sentence(ast.get_docstring(node))
    ]
    assert wrong == []


def is_one_sentence(text: str | None) -> bool:
    """Whether *text* ends once, with a full stop."""
    words = " ".join((text or "").split())
    return words.endswith(".") and not re.search(r"[.!?] [A-Z]", words)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A promise.", True),
        ("A promise\n    on two lines (case 3).", True),
        (None, False),
        ("", False),
        ("No full stop", False),
        ("One promise. Another promise.", False),
    ],
    ids=["one", "wrapped", "missing", "empty", "open", "two"],
)
def test_a_sentence_is_told_from_two(text: str | None, verdict: bool) -> None:
    """The check of docstrings tells one sentence from none, half and two."""
    assert is_one_sentence(text) is verdict


@pytest.mark.parametrize("name", modules())
def test_public_names_are_explained(name: str) -> None:
    """Every module, public class and public function of the package has a docstring."""
    tree = modules()[name]
    assert ast.get_docstring(tree), f"{name} has no docstring"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


@pytest.mark.parametrize("name", [name for name in modules() if name.endswith("__init__")])
def test_all_is_what_is_exported(name: str) -> None:
    """``__all__`` names what a type checker sees, sorted, and every name of it can be had."""
    package = importlib.import_module(f"tieredsession.{name}".removesuffix(".__init__"))
    exported = [
        alias.asname or alias.name
        for node in ast.walk(modules()[name])
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tieredsession.")
        for alias in node.names
    ]
    promised = getattr(package, "__all__", [])
    assert sorted(promised) == sorted(exported)
    assert list(promised) == sorted(promised)
    for public in promised:
        assert getattr(package, public) is not None


def test_nothing_of_a_machine_is_written_down() -> None:
    """No file names a path of somebody's machine or the host of a package registry."""
    # In pieces, or this file would be the first to be found.
    folders = "|".join(("work/", "home/", "root/", "Users/", "tmp/t/"))
    hosts = "|".join(("pypi", "pythonhosted", "npmjs", "debian")) + r")\.(?:org|com|net"
    pattern = re.compile(rf"(?<![\w.:~/-])/(?:{folders})\w|\b(?:{hosts})\b")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in text_files()
        for match in pattern.finditer(path.read_text("utf-8"))
    ]
    assert found == []


def text_files() -> Iterator[Path]:
    """The files of the checkout, or of the unpacked release, that are text."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and (ROOT / ".git").exists():
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        tops = [path for path in ROOT.iterdir() if not path.name.startswith(".")]
        paths = [path for top in tops for path in (top, *top.rglob("*"))]
    for path in paths:
        if path.is_file() and path.suffix not in (".png", ".pyc", ".gz", ".sqlite3"):
            yield path


# -- the settings table ---------------------------------------------------------------


def test_the_readme_lists_every_setting() -> None:
    """The README's table holds each setting, its default and its sentence, in their order."""
    readme = (ROOT / "README.rst").read_text("utf-8")
    table = readme.partition("\nSettings\n--------\n")[2]
    rows = re.findall(r"^   \* - ``([A-Z_]+)``\n     - (.+)\n     - (.+)$", table, re.MULTILINE)
    made = Settings({"SECRET_KEY": "only for tests, only for tests, 1"})
    expected = []
    for setting in SETTINGS:
        value = getattr(made, setting.name.lower())
        default = f"``{value!r}``" if value not in (None, (), "", {}) else "none"
        if setting.name in ("SESSION_STORE", "SESSION_COOKIE_NAME"):
            default = f"``{value}``"
        if setting.name == "SECRET_KEY":
            default = "required"
        expected.append((setting.name, default, setting.text))
    assert rows == expected


def test_the_documents_name_no_unknown_setting() -> None:
    """No document speaks of a setting that does not exist."""
    djangos = {"SESSION_ENGINE", "SESSION_SERIALIZER", "SESSION_SAVE_EVERY_REQUEST"}
    known = {setting.name for setting in SETTINGS} | set(ALIASES) | djangos
    for path in [*ROOT.glob("*.rst"), *(ROOT / "docs").rglob("*.rst")]:
        names = set(re.findall(r"\bSESSION_[A-Z_]*[A-Z]\b", path.read_text("utf-8")))
        assert names - known == set(), path.name
