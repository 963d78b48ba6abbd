"""What is shipped: the wheel and the sdist, built from a copy and used in a clean environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

import tieredsession

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    """The output of *command*; what it complained of, if it failed."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    """The ``sdist`` or ``wheel`` built from *source* into *folder*."""
    options = ("--no-isolation", f"--{kind}", "--outdir", folder)
    run(sys.executable, "-m", "build", *options, source, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that belong to the project, links as links."""
    copy = tmp_path_factory.mktemp("source")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():  # an unpacked sdist holds nothing else
        shutil.copytree(
            ROOT,
            copy,
            symlinks=True,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(".venv*", "__pycache__", ".*_cache", "dist", "build"),
        )
        return copy
    for name in run(*listing, cwd=ROOT).splitlines():
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of that copy, unpacked."""
    archive = build("sdist", source, tmp_path_factory.mktemp("sdist"))
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        assert [member.name for member in members if not (member.isfile() or member.isdir())] == []
        assert len({member.name for member in members}) == len(members)
    run(sys.executable, "-m", "tarfile", "--extract", archive, folder, cwd=folder)
    (unpacked,) = folder.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of that copy."""
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel, what it requires, and no extra."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "--disable-pip-version-check", "install", wheel, cwd=folder)
    return python


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel; no name stands there twice."""
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        assert len(set(names)) == len(names)
        return {name: archive.read(name) for name in names}


def package_files(root: Path) -> dict[str, bytes]:
    """The files of the package in the tree *root*, the stores among them."""
    found = {}
    for folder in (root / "tieredsession", root / "tieredsession" / "stores"):
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def test_the_wheel_holds_the_package(source: Path, wheel: Path) -> None:
    """The wheel holds every file of the package as a real file, stores in place, and no more."""
    files = contents(wheel)
    shipped = {name: data for name, data in files.items() if ".dist-info/" not in name}
    assert shipped == package_files(source)
    assert {"tieredsession/py.typed", "tieredsession/stores/sqlite.py"} <= shipped.keys()
    assert not any(name.startswith("stores/") for name in files)
    (license_file,) = (name for name in files if name.endswith("/licenses/LICENSE"))
    assert files[license_file] == (source / "LICENSE").read_bytes()
    assert files[license_file].startswith(b"BSD 3-Clause License")


def test_the_sdist_holds_the_project(source: Path, sdist: Path) -> None:
    """The sdist holds the package, its tests and its documents, and each file once."""
    assert package_files(sdist) == package_files(source)
    assert not (sdist / "stores").exists()
    documents = [path.name for path in source.glob("*.rst")]
    for name in (".ci/run", "Makefile", "LICENSE", "pyproject.toml", *documents):
        assert (sdist / name).read_bytes() == (source / name).read_bytes()
    tests = {path.relative_to(source) for path in (source / "tests").rglob("*.py")}
    assert tests == {path.relative_to(sdist) for path in (sdist / "tests").rglob("*.py")}


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    """A wheel built from the unpacked sdist is the wheel built from the checkout."""
    again = build("wheel", sdist, tmp_path)
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


def test_every_public_name_without_extras(python: Path, tmp_path: Path) -> None:
    """With no extra installed every public name is there; Request says what to install."""
    script = """
        import sys
        import tieredsession
        from tieredsession import MissingDependencyError, stores, testing

        assert "site-packages" in tieredsession.__file__, tieredsession.__file__
        for package in (tieredsession, stores, testing):
            for name in package.__all__:
                try:
                    getattr(package, name)
                except MissingDependencyError as error:
                    print(name, error, sep=": ")
        assert "stores" not in sys.modules
    """
    said = run_script(python, script, tmp_path).splitlines()
    command = "is not installed: run  pip install"
    assert f'Request: Werkzeug {command} "tieredsession[werkzeug]"' in said
    assert all(command in line for line in said)
    ours = [line for line in said if line.partition(":")[0] in tieredsession.__all__]
    assert [line.partition(":")[0] for line in ours] == ["Request"]


def test_a_session_without_extras(python: Path, tmp_path: Path) -> None:
    """A session goes into a cookie and comes back under plain WSGI, with no extra installed."""
    script = """
        from tieredsession import SessionMiddleware

        def app(environ, start_response):
            session = environ["tieredsession.session"]
            session["count"] = session.get("count", 0) + 1
            start_response("200 OK", [])
            return [str(session["count"]).encode()]

        site = SessionMiddleware(app, {"SECRET_KEY": "only for tests, only for tests, 1"})
        cookie = ""
        for _ in range(3):
            headers = {}
            body = site({"HTTP_COOKIE": cookie}, lambda status, found: headers.update(found))
            cookie = headers["Set-Cookie"].partition(";")[0]
            print(b"".join(body).decode())
    """
    assert run_script(python, script, tmp_path).split() == ["1", "2", "3"]


def test_the_command_is_installed(python: Path, tmp_path: Path) -> None:
    """The wheel installs the command, which knows its version and what the demo needs."""
    command = python.parent / "tieredsession"
    assert run(command, "--version", cwd=tmp_path).startswith("tieredsession 1.")
    done = subprocess.run(
        [command, "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert 'pip install "tieredsession[demo]"' in done.stderr


def run_script(python: Path, script: str, folder: Path) -> str:
    """What *script* prints, run away from the checkout and with warnings as errors."""
    path = folder / "script.py"
    path.write_text("if True:" + script)
    return run(python, "-I", "-W", "error", path, cwd=folder)
