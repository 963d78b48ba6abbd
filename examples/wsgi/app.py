"""Sessions in plain WSGI: a counter, a login, a logout. README.rst has the command."""

from html import escape
from urllib.parse import parse_qs

from tieredsession import SessionMiddleware
from tieredsession.wsgi import SESSION_KEY

PAGE = """<!DOCTYPE html>
<title>tieredsession with WSGI</title>
<p>Visit {visits} of {name}.</p>
<form method="post">
<input type="hidden" name="csrf_token" value="{token}">
<input name="name"> <button formaction="/login">Log in</button>
<button formaction="/logout">Log out</button>
</form>
"""


def site(environ, start_response):
    """The whole site."""
    session = environ[SESSION_KEY]
    if environ["REQUEST_METHOD"] == "POST":
        return act(session, environ, start_response)
    if environ["PATH_INFO"] != "/":
        return answer(start_response, "404 Not Found", "There is nothing here.")
    session["visits"] = session.get("visits", 0) + 1
    name, token = escape(session.principal or "nobody"), session.csrf_token()
    page = PAGE.format(visits=session["visits"], name=name, token=token)
    return answer(start_response, "200 OK", page)


def act(session, environ, start_response):
    """What the buttons do."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    form = dict(parse_qs(environ["wsgi.input"].read(length).decode()))
    if not session.check_csrf_token(form.get("csrf_token", [""])[0]):
        return answer(start_response, "400 Bad Request", "That form was not from here.")
    if environ["PATH_INFO"] == "/login":
        session.bind(form.get("name", ["somebody"])[0])  # under a new id, and a new CSRF token
    else:
        session.destroy()
    return answer(start_response, "303 See Other", "", ("Location", "/"))


def answer(start_response, status, text, *headers):
    """A response of HTML."""
    start_response(status, [("Content-Type", "text/html; charset=utf-8"), *headers])
    return [text.encode()]


app = SessionMiddleware(site)  # settings from the environment
