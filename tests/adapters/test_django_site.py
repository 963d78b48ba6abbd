"""Django's own auth, admin, messages and test client on the engine, and its settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from adapters.django_site import (
    BASE,
    COOKIE,
    OTHER_SECRET,
    SECRET,
    STORES,
    Browser,
    Site,
    running,
)
from asgiref.sync import async_to_sync
from django.apps import apps
from django.contrib import admin
from django.core.checks import ERROR, WARNING, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, override_settings
from django.urls import path

from tieredsession.adapters.django import get_manager, make_manager
from tieredsession.stores import MemorySessionStore

AUTH = {
    "INSTALLED_APPS": [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
    ],
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    "MESSAGE_STORAGE": "django.contrib.messages.storage.session.SessionStorage",
    "PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"],
    "STATIC_URL": "/static/",
}
PASSWORD = "a password of tests"

MakeSite = Callable[..., Site]

server_stores = pytest.mark.parametrize("where", ["memory", "tiered"], indirect=True)
any_store = pytest.mark.parametrize("where", ["memory"], indirect=True)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A database with Django's own tables, and two users in it."""
    name = str(tmp_path_factory.mktemp("django") / "auth.sqlite3")
    before = connections.settings
    default = {"ENGINE": "django.db.backends.sqlite3", "NAME": name}
    connections.settings = connections.configure_settings({"default": default})
    if hasattr(connections._connections, "default"):
        del connections["default"]
    with override_settings(**{**BASE, **AUTH}):
        call_command("migrate", verbosity=0)
        users = apps.get_model("auth", "User").objects
        users.create_superuser("ann", password=PASSWORD)
        users.create_user("bob", password=PASSWORD)
    yield
    connections.close_all()
    del connections["default"]
    connections.settings = before


@pytest.fixture(params=list(STORES))
def where(request: pytest.FixtureRequest) -> str:
    """The store that the test runs on."""
    return str(request.param)


@pytest.fixture
def make_site(where: str, tmp_path: Path, database: None) -> Iterator[MakeSite]:
    """Makes a site with Django's own applications over the test's store."""
    with ExitStack() as stack:

        def make(**changes: Any) -> Site:
            changes = {**AUTH, **STORES[where], **changes}
            if "SESSION_STORE_URL" in changes:
                url = changes["SESSION_STORE_URL"]
                changes["SESSION_STORE_URL"] = url.format(folder=tmp_path)
            return stack.enter_context(running(**changes))

        yield make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A site with the settings that one has without choosing any."""
    return make_site()


def user(name: str) -> Any:
    """The user of that name."""
    return apps.get_model("auth", "User").objects.get(username=name)


def log_in(name: str) -> Callable[[HttpRequest], None]:
    """A view that logs *name* in."""

    def view(request: HttpRequest) -> None:
        from django.contrib.auth import login

        login(request, user(name), "django.contrib.auth.backends.ModelBackend")

    return view


def log_out(request: HttpRequest) -> None:
    """A view that logs out."""
    from django.contrib.auth import logout

    logout(request)


def name_of(browser: Browser) -> str:
    """Who *browser* is logged in as, empty for nobody."""
    name: str = browser.visit(lambda request: request.user.get_username()).result
    return name


# -- auth -----------------------------------------------------------------------------


def test_login_and_logout(site: Site) -> None:
    """``login()`` goes on under a new id with the data kept, and ``logout()`` ends all of it."""
    browser = site.browser(cart=[1])
    anonymous = browser.copy()
    browser.visit(log_in("ann"))
    known = browser.copy()
    assert name_of(browser) == "ann"
    assert browser.cookie != anonymous.cookie
    assert browser.data()["cart"] == [1]
    assert name_of(anonymous) == ""
    browser.visit(log_out)
    assert browser.cookie == ""
    assert browser.data() == {}
    if site.real_store.revocable:
        assert anonymous.data() == {}
        assert name_of(known) == ""


def test_a_login_as_somebody_else(site: Site) -> None:
    """What one user left in the session is not there for the next who logs in."""
    browser = site.browser()
    browser.visit(log_in("ann"), lambda request: request.session.update({"secret": "ann's"}))
    browser.visit(log_in("bob"))
    assert name_of(browser) == "bob"
    assert "secret" not in browser.data()


def test_a_new_password(site: Site) -> None:
    """``update_session_auth_hash`` keeps this session, under a new id, and no other of the user."""
    from django.contrib.auth import update_session_auth_hash

    browser, other = site.browser(), site.browser()
    browser.visit(log_in("bob"))
    other.visit(log_in("bob"))
    before = browser.cookie

    def change(request: HttpRequest) -> None:
        request.user.set_password(PASSWORD)
        request.user.save()
        update_session_auth_hash(request, request.user)

    browser.visit(change)
    assert name_of(browser) == "bob"
    assert browser.cookie != before
    assert name_of(other) == ""


def test_the_test_client(site: Site) -> None:
    """The test client logs in and out, and shows the session, as with any engine."""
    browser = Browser()
    assert not browser.client.login(username="ann", password="wrong")
    assert browser.client.login(username="ann", password=PASSWORD)
    assert name_of(browser) == "ann"
    assert browser.client.session["_auth_user_id"] == str(user("ann").pk)
    browser.client.logout()
    assert name_of(browser) == ""
    browser.client.force_login(user("bob"))
    assert name_of(browser) == "bob"


@server_stores
def test_the_test_clients_session(site: Site) -> None:
    """What a test puts into ``client.session`` and saves is there for the view."""
    browser = Browser()
    session = browser.client.session
    session["a"] = 1
    session.save()
    assert browser.data() == {"a": 1}


def test_the_async_client(make_site: MakeSite) -> None:
    """Async views have the async twins, under Django's middleware and its async client."""
    from django.contrib.auth import alogin, alogout

    async def enter(request: HttpRequest) -> HttpResponse:
        await request.session.aset("a", 1)
        await alogin(request, ann, "django.contrib.auth.backends.ModelBackend")
        return HttpResponse()

    async def see(request: HttpRequest) -> HttpResponse:
        name = (await request.auser()).get_username()
        return HttpResponse(f"{name} {await request.session.aget('a')}")

    async def leave(request: HttpRequest) -> HttpResponse:
        await alogout(request)
        return HttpResponse()

    async def walk() -> list[bytes]:
        client = AsyncClient()
        return [(await client.get(f"/{name}")).content for name in ("enter", "see", "leave", "see")]

    make_site(ROOT_URLCONF=tuple(path(view.__name__, view) for view in (enter, see, leave)))
    ann = user("ann")
    assert async_to_sync(walk)() == [b"", b"ann 1", b"", b" None"]


def test_the_admin(make_site: MakeSite) -> None:
    """The admin logs its user in, shows its pages, and logs out."""
    with override_settings(**AUTH):
        urls = (path("admin/", admin.site.urls), *BASE["ROOT_URLCONF"])
    make_site(ROOT_URLCONF=urls)
    browser = Browser()
    assert browser.client.get("/admin/").status_code == 302
    form = {"username": "ann", "password": PASSWORD, "next": "/admin/"}
    response = browser.client.post("/admin/login/", form, follow=True)
    assert response.status_code == 200
    assert b"Site administration" in response.content
    browser.client.post("/admin/logout/")
    assert browser.client.get("/admin/").status_code == 302


def test_messages(site: Site) -> None:
    """A message that is kept in the session waits for the next page, once."""
    from django.contrib import messages

    browser = site.browser()
    browser.visit(lambda request: messages.success(request, "Saved."))

    def read(request: HttpRequest) -> list[str]:
        return [message.message for message in messages.get_messages(request)]

    assert browser.visit(read).result == ["Saved."]
    assert browser.visit(read).result == []


# -- whose session it is --------------------------------------------------------------


@pytest.mark.parametrize("where", ["hybrid"], indirect=True)
def test_a_login_moves_to_the_server(site: Site) -> None:
    """With a hybrid store an anonymous session is a cookie, and a login can be revoked."""
    browser = site.browser(a=1)
    assert site.rows == 0
    browser.visit(log_in("ann"))
    assert site.rows == 1
    thief = browser.copy()
    browser.visit(log_out)
    assert name_of(thief) == ""


@server_stores
def test_the_sessions_of_a_user(make_site: MakeSite) -> None:
    """With ``SESSION_PRINCIPALS`` the manager lists a user's sessions, and ends all but this."""
    site = make_site(SESSION_PRINCIPALS=True)
    here, there, bobs = (site.browser() for _ in range(3))
    for browser, name in ((here, "ann"), (there, "ann"), (bobs, "bob")):
        browser.visit(log_in(name))
    ann = str(user("ann").pk)

    def show(request: HttpRequest) -> list[bool]:
        infos = get_manager().sessions_of(ann, current=request.session)
        return sorted(info.current for info in infos)

    assert here.visit(show).result == [False, True]
    here.visit(lambda request: get_manager().end_all(ann, keep=request.session))
    assert [name_of(browser) for browser in (here, there, bobs)] == ["ann", "", "bob"]
    here.visit(log_out)
    assert get_manager().sessions_of(ann) == []


# -- settings -------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["cookie", "sqlite"], indirect=True)
def test_a_rotation_of_secrets(make_site: MakeSite) -> None:
    """A session and its login outlive the secret that they were made under, as a fallback."""
    browser = make_site().browser()
    browser.visit(log_in("ann"))
    make_site(SECRET_KEY=OTHER_SECRET, SECRET_KEY_FALLBACKS=[SECRET, "weak"])
    assert name_of(browser) == "ann"
    make_site(SECRET_KEY=OTHER_SECRET)
    assert name_of(browser) == "ann"
    make_site()
    assert name_of(browser) == ""


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a weak key": ({"SECRET_KEY": "too short"}, "SECRET_KEY has 9 bytes and needs at least 32"),
    "a key of startproject": (
        {"SECRET_KEY": f"django-insecure-{SECRET}"},
        "SECRET_KEY looks like a sample text",
    ),
    "a weak key of startproject": (
        {"SECRET_KEY": "django-insecure-" + "short" * 3, "DEBUG": True},
        "SECRET_KEY has 15 bytes and needs at least 32",
    ),
    "an unknown name": ({"SESSION_STROE": "x"}, "SESSION_STROE is not a setting: did you mean"),
    "no store": ({"SESSION_STORE": "no.such.Store"}, "SESSION_STORE 'no.such.Store' cannot be"),
    "no such database": (
        {**STORES["sqlite"], "SESSION_STORE_URL": "oracle://x"},
        "SESSION_STORE_URL is not of the form sqlite:///file",
    ),
    "a cache of a cookie": ({"SESSION_CACHE_URL": "memory://"}, "SESSION_CACHE_URL is for stores"),
    "a prefix that browsers refuse": (
        {"SESSION_COOKIE_NAME": "__Host-id"},
        "SESSION_COOKIE_NAME '__Host-id' needs SESSION_COOKIE_SECURE = True",
    ),
    "an age of nothing": ({"SESSION_COOKIE_AGE": 0}, "SESSION_COOKIE_AGE must be a number of"),
    "a setting of another front end": (
        {"SESSION_REFRESH": 0.5},
        "SESSION_REFRESH has no effect: with Django, an expiry is counted from the last change",
    ),
    "an import that Django does not show": (
        {"SESSION_IMPORT_FROM": {"kind": "flask"}},
        "SESSION_IMPORT_FROM: Django shows the cookie 'sessionid' alone, and this is 'session'",
    ),
    "a flag that Django does not write": (
        {"SESSION_COOKIE_PARTITIONED": True},
        "SESSION_COOKIE_PARTITIONED has no effect: Django's SessionMiddleware writes the cookie",
    ),
}


@pytest.mark.parametrize(("changes", "sentence"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting(changes: dict[str, Any], sentence: str) -> None:
    """A wrong setting is one sentence, for who makes a manager as for ``manage.py check``."""
    with override_settings(**{**BASE, **changes}):
        with pytest.raises(ImproperlyConfigured) as caught:
            make_manager()
        assert sentence in str(caught.value)
        (error,) = run_checks(tags=["security"])
        assert (error.id, error.level) == ("tieredsession.E001", ERROR)
        assert sentence in error.msg


RIGHT: dict[str, dict[str, Any]] = {
    "what startproject writes": {"SECRET_KEY": f"django-insecure-{SECRET}", "DEBUG": True},
    "SameSite left out": {"SESSION_COOKIE_SAMESITE": False},
    "all that is Django's own": {
        "SESSION_FILE_PATH": "somewhere",
        "SESSION_CACHE_ALIAS": "sessions",
        "SESSION_SAVE_EVERY_REQUEST": True,
        "SESSION_EXPIRE_AT_BROWSER_CLOSE": True,
        "SESSION_COOKIE_DOMAIN": ".example.org",
        "SESSION_COOKIE_PATH": "/app/",
        "SESSION_COOKIE_HTTPONLY": False,
    },
    "a fallback from before": {"SECRET_KEY_FALLBACKS": ["weak", f"django-insecure-{SECRET}"]},
    "another library's names": {"COOKIE_NAME": "x", "COOKIE_AGE": -1},
    "__Secure-": {"SESSION_COOKIE_NAME": "__Secure-id", "SESSION_COOKIE_SECURE": True},
}


@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT)
def test_no_false_alarm(changes: dict[str, Any]) -> None:
    """What is right for Django is right for the engine."""
    with override_settings(**{**BASE, **changes}):
        assert run_checks(tags=["security"]) == []
        browser = Browser()
        browser.put(a=1)
        assert browser.data() == {"a": 1}


def test_a_serializer_has_no_use() -> None:
    """Another serializer than Django's own is named by ``manage.py check``, as a warning."""
    with override_settings(**BASE, SESSION_SERIALIZER="json.JSONEncoder"):
        (warning,) = run_checks(tags=["security"])
    assert (warning.id, warning.level) == ("tieredsession.W001", WARNING)
    assert "SESSION_SERIALIZER has no effect" in warning.msg


def test_the_settings_of_another_engine() -> None:
    """Where Django has another engine, there is nothing to check."""
    other = "django.contrib.sessions.backends.signed_cookies"
    with override_settings(**{**BASE, "SESSION_ENGINE": other, "SECRET_KEY": "weak"}):
        assert run_checks(tags=["security"]) == []


def test_a_changed_setting() -> None:
    """Once a test has changed a setting, a new manager is made, and else it stays the same."""
    with override_settings(**BASE):
        before = get_manager()
        with override_settings(LANGUAGE_CODE="de"):
            assert get_manager() is before
        with override_settings(SESSION_COOKIE_NAME="another"):
            assert get_manager().cookie.name == "another"
        assert get_manager().cookie.name == COOKIE


class Closing(MemorySessionStore):
    """A store that tells how often it was closed."""

    closed = 0

    def close(self) -> None:
        type(self).closed += 1


def test_what_a_changed_setting_leaves_behind() -> None:
    """The store of the settings before is closed, so that a test leaves no connection open."""
    with override_settings(**BASE, SESSION_STORE=f"{__name__}.Closing"):
        get_manager()
        assert Closing.closed == 0
    assert Closing.closed == 1


# -- the start ------------------------------------------------------------------------

PROJECT = """
import sys
DEBUG = {debug}
SECRET_KEY = "{key}"
INSTALLED_APPS = {apps}
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware"]
SESSION_ENGINE = "tieredsession.adapters.django"
ROOT_URLCONF = "project"
USE_TZ = True
urlpatterns = []
"""
SERVE = "from django.core.wsgi import get_wsgi_application as serve; serve(); print('served')"
CHECK = "from django.core.management import execute_from_command_line as run; run(['', 'check'])"
TEST = """
import django
from django.test.utils import setup_test_environment
django.setup()
setup_test_environment(debug=False)
from django.conf import settings
from django.test import Client, override_settings
assert settings.DEBUG is False
Client().session
with override_settings(SESSION_COOKIE_AGE=10):
    print("served", Client().session.session_key)
"""


def start(folder: Path, script: str, **project: Any) -> subprocess.CompletedProcess[str]:
    """Run *script* in a project of its own."""
    project = {"debug": False, "key": SECRET, "apps": [], **project}
    (folder / "project.py").write_text(PROJECT.format(**project))
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "project"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("script", [SERVE, TEST], ids=["server", "tests"])
def test_a_start(tmp_path: Path, script: str) -> None:
    """A server starts with good settings, and the tests of a project with a developer's key."""
    key = SECRET if script is SERVE else f"django-insecure-{SECRET}"
    done = start(tmp_path, script, key=key, debug=script is TEST)
    assert done.stdout.startswith("served"), done.stderr


def test_a_start_with_a_wrong_setting(tmp_path: Path) -> None:
    """A wrong setting stops the start of a server, and its last line is the sentence."""
    done = start(tmp_path, SERVE, key=f"django-insecure-{SECRET}")
    assert done.returncode == 1
    assert "SECRET_KEY looks like a sample text: make one" in done.stderr.splitlines()[-1]


def test_the_command_check(tmp_path: Path) -> None:
    """Among the installed applications, the engine has ``manage.py check`` say the sentence."""
    engine = ["tieredsession.adapters.django"]
    done = start(tmp_path, CHECK, apps=engine, key="short")
    assert done.returncode == 1
    assert "(tieredsession.E001) SECRET_KEY has 5 bytes" in done.stderr
    assert start(tmp_path, CHECK, apps=engine).returncode == 0


def test_without_django(tmp_path: Path) -> None:
    """Where Django is not installed, the engine says which command installs it."""
    block = "import sys; sys.modules['django'] = None; import tieredsession.adapters.django"
    done = start(tmp_path, block)
    assert 'pip install "tieredsession[django]"' in done.stderr.splitlines()[-1]
