"""A counter, a login and a logout, on Flask and SQLite.

::

    pip install "tieredsession[flask]" gunicorn
    export SECRET_KEY=$(python3 -c "import secrets; print(secrets.token_hex(32))")
    export SESSION_COOKIE_SECURE=false
    gunicorn --pythonpath examples/flask app:app

Without the third line the cookie is Secure, as it has to be anywhere but on one's own machine.
"""

from __future__ import annotations

import os

from flask import Flask, flash, redirect, render_template_string, request
from flask.typing import ResponseReturnValue

from tieredsession.adapters.flask import TieredSession, session

app = Flask(__name__)
app.config.update(
    SECRET_KEY=os.environ["SECRET_KEY"],
    SESSION_STORE="tieredsession.stores.SQLiteSessionStore",
    SESSION_STORE_URL=os.environ.get("SESSION_STORE_URL", "sqlite:///sessions.sqlite3"),
    SESSION_COOKIE_SECURE=os.environ.get("SESSION_COOKIE_SECURE", "true"),
)
TieredSession(app)

PAGE = """<!doctype html>
<title>tieredsession on Flask</title>
{% for message in get_flashed_messages() %}<p>{{ message }}</p>{% endfor %}
<p>Visits: {{ session.visits }}</p>
{% if session.principal %}
<form method="post" action="/logout">{{ session.principal }} <button>Log out</button></form>
{% else %}
<form method="post" action="/login"><input name="name" required> <button>Log in</button></form>
{% endif %}
"""


@app.get("/")
def index() -> ResponseReturnValue:
    """Count the visits of one browser."""
    session["visits"] = session.get("visits", 0) + 1
    return render_template_string(PAGE)


@app.post("/login")
def login() -> ResponseReturnValue:
    """Bind the session to somebody: it goes on under a new id, and the old one is dead."""
    session.bind(request.form["name"] or "somebody")  # after you have checked who it is
    flash("Welcome.")
    return redirect("/", 303)


@app.post("/logout")
def logout() -> ResponseReturnValue:
    """End the session: no copy of its cookie opens anything any more."""
    session.destroy()
    return redirect("/", 303)
