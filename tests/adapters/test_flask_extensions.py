"""Flask-Login and Flask-WTF, unchanged, on the adapter's sessions."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import flask
import flask_login
import pytest
from flask.testing import FlaskClient
from flask_wtf import FlaskForm
from flask_wtf.csrf import CSRFProtect
from wtforms import StringField  # type: ignore[import-untyped]  # it comes without types

from tieredsession.adapters.flask import TieredSession, session
from tieredsession.testing import Chaos

SECRET = "a long enough text, for tests alone: 0123456789"
COOKIE = "__Host-id"
STORES = {
    "cookie-signed": "tieredsession.stores.SecureCookieSessionStore",
    "memory": "tieredsession.stores.MemorySessionStore",
}

pytestmark = pytest.mark.one_of_each


class User(flask_login.UserMixin):  # type: ignore[misc]  # it comes without types
    """A user with the name as the id."""

    def __init__(self, name: str) -> None:
        self.id = name


class NameForm(FlaskForm):  # type: ignore[misc]  # it comes without types
    """A form with a CSRF token."""

    name = StringField()


def site(kind: str, **config: Any) -> flask.Flask:
    """A site with a login by Flask-Login and a form of Flask-WTF."""
    app = flask.Flask("site")
    app.config.update({"TESTING": True, "SECRET_KEY": SECRET, "SESSION_STORE": STORES[kind]})
    app.config.update(config)
    TieredSession(app)
    login = flask_login.LoginManager(app)
    login.login_view = "login"
    login.user_loader(User)

    @app.get("/")
    def index() -> str:
        flask.session["n"] = flask.session.get("n", 0) + 1
        return f"{flask_login.current_user.get_id()} {flask.session['n']}"

    @app.route("/login", methods=["GET", "POST"])
    def login_() -> str:
        remember = "remember" in flask.request.form
        return str(flask_login.login_user(User("ada"), remember=remember))

    @app.get("/become/<name>")
    def become(name: str) -> str:
        return str(flask_login.login_user(User(name)))

    @app.get("/rename/<name>")
    def rename(name: str) -> str:
        flask_login.login_user(User(name))
        session.bind(f"user {name}")
        return ""

    @app.get("/bind/<name>")
    def bind(name: str) -> str:
        session.bind(name)
        flask_login.login_user(User(name))
        return ""

    @app.get("/logout")
    def logout() -> str:
        return str(flask_login.logout_user())

    @app.get("/members")
    @flask_login.fresh_login_required  # type: ignore[untyped-decorator]  # nor this
    def members() -> str:
        return "members"

    @app.route("/form", methods=["GET", "POST"])
    def form() -> Any:
        form = NameForm()
        if form.validate_on_submit():
            return form.name.data
        return str(form.csrf_token), 400 if form.is_submitted() else 200

    login.login_view = "login_"
    return app


@pytest.fixture
def app(kind: str) -> flask.Flask:
    """That site with the settings that one has without choosing any."""
    return site(kind)


@pytest.fixture
def client(app: flask.Flask) -> FlaskClient:
    """A visitor who has been there before."""
    client = app.test_client()
    assert client.get("/").text == "None 1"
    return client


def token(client: FlaskClient) -> str:
    """What the visitor's cookie holds."""
    cookie = client.get_cookie(COOKIE)
    assert cookie is not None
    return cookie.value


# -- Flask-Login ----------------------------------------------------------------------


def test_a_login_and_a_logout(client: FlaskClient) -> None:
    """A visitor who logs in is known until they log out, and their data stays."""
    assert client.post("/login").text == "True"
    assert client.get("/").text == "ada 2"
    assert client.get("/members").text == "members"
    assert client.get("/logout").text == "True"
    assert client.get("/").text == "None 3"


def test_a_visitor_who_has_to_log_in(client: FlaskClient) -> None:
    """Who is not logged in is sent to the login and told why, by a flashed message."""
    response = client.get("/members")
    assert response.status_code in (302, 303)
    assert response.headers["Location"] == "/login?next=%2Fmembers"
    with client.session_transaction() as kept:
        assert kept["_flashes"] == [("message", "Please log in to access this page.")]


@pytest.mark.any_store
def test_a_planted_id(app: flask.Flask, client: FlaskClient) -> None:
    """A login gives the session a new id, so that an id that somebody planted opens nothing."""
    planted = token(client)
    client.post("/login")
    assert token(client) != planted
    thief = app.test_client()
    thief.set_cookie(COOKIE, planted)
    assert thief.get("/").text == "None 1"


@pytest.mark.any_store
def test_a_login_of_who_is_logged_in(client: FlaskClient) -> None:
    """Who logs in again as who they are keeps the id."""
    client.post("/login")
    before = token(client)
    client.post("/login")
    assert token(client) == before


@pytest.mark.any_store
def test_whose_session_it_is(app: flask.Flask, client: FlaskClient) -> None:
    """A session is its user's from login to logout, by the name that the application gives."""

    def owner(path: str) -> Any:
        with client:
            assert client.get(path).status_code == 200
            return session.principal, session.get("n")

    assert owner("/become/ada") == ("ada", 1)
    known = token(client)
    assert owner("/become/bob") == ("bob", 1)
    assert owner("/logout") == (None, 1)
    assert token(client) != known
    assert owner("/rename/ada") == ("user ada", 1)
    assert owner("/become/ada") == ("user ada", 1)
    assert client.get("/members").text == "members"
    assert owner("/become/bob") == ("user ada", 1)
    assert owner("/logout") == (None, 1)
    client.delete_cookie(COOKIE)
    client.get("/")
    assert owner("/bind/ada") == ("ada", 1)
    assert owner("/logout") == (None, 1)
    assert owner("/bind/ada") == ("ada", 1)
    assert owner("/bind/bob") == ("bob", None)  # as bind promises


@pytest.mark.any_store
def test_whose_session_it_is_by_other_ids(app: flask.Flask) -> None:
    """A user's id that is a number counts as text, and one that is nothing as nobody's."""
    with app.test_request_context():
        for user, principal in ((7, "7"), (None, None), (0, "0"), ("", None)):
            session["_user_id"] = user
            assert session.principal == principal


@pytest.mark.any_store
def test_a_hybrid_store(kind: str, tmp_path: Path) -> None:
    """A login moves the session to the server, where a copy of its cookie ends with the logout."""
    app = site(
        kind,
        SESSION_STORE="tieredsession.stores.HybridSessionStore",
        SESSION_STORE_URL=f"sqlite:///{tmp_path}/sessions.sqlite3",
    )
    with closing(app.extensions["tieredsession"].store):
        client, thief = app.test_client(), app.test_client()
        client.get("/")
        client.post("/login")
        thief.set_cookie(COOKIE, token(client))
        assert thief.get("/members").text == "members"
        client.get("/logout")
        assert thief.get("/").text == "None 1"


def test_a_visitor_who_is_remembered(client: FlaskClient) -> None:
    """A visitor with Flask-Login's cookie for it is known in a new session, which is not fresh."""
    client.post("/login", data={"remember": "yes"})
    client.delete_cookie(COOKIE)
    assert client.get("/").text == "ada 1"
    assert client.get("/members").status_code == 401


@pytest.mark.parametrize("protection", ["strong", None])
def test_session_protection(kind: str, protection: str | None) -> None:
    """``SESSION_PROTECTION`` is Flask-Login's, and does what it says."""
    client = site(kind, SESSION_PROTECTION=protection).test_client()
    client.post("/login")
    expected = "ada 1" if protection is None else "None 1"
    assert client.get("/", headers={"User-Agent": "another"}).text == expected


@pytest.mark.any_store
def test_a_login_that_cannot_be_looked_up(app: flask.Flask, client: FlaskClient) -> None:
    """With a store that does not answer, each page is a 503, and nobody is logged out."""
    client.post("/login")
    manager = app.extensions["tieredsession"]
    store, chaos = manager.store, Chaos()
    manager.store = chaos.wrap(store)
    chaos.down()
    app.testing = False
    assert [client.get(path).status_code for path in ("/", "/members", "/form")] == [503] * 3
    chaos.up()
    assert client.get("/members").text == "members"


def test_its_test_client(app: flask.Flask) -> None:
    """Flask-Login's own test client logs a user in."""
    app.test_client_class = flask_login.FlaskLoginClient
    assert app.test_client(user=User("ada")).get("/").text == "ada 1"


# -- Flask-WTF ------------------------------------------------------------------------


def test_a_form(client: FlaskClient) -> None:
    """A form is taken with the token of the visitor's session, and with no other."""
    html = client.get("/form").text
    found = re.search(r'value="([^"]+)"', html)
    assert found is not None
    fields = {"name": "Ada", "csrf_token": found[1]}
    assert client.post("/form", data=fields).text == "Ada"
    assert client.post("/form", data={"name": "Ada"}).status_code == 400
    client.delete_cookie(COOKIE)
    assert client.post("/form", data=fields).status_code == 400


def test_a_site_that_checks_every_form(app: flask.Flask) -> None:
    """``CSRFProtect`` refuses a POST without the token."""
    CSRFProtect(app)
    assert app.test_client().post("/login").status_code == 400
