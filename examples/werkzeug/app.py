"""Sessions in Werkzeug: a counter, a login, a logout. README.rst has the command."""

from html import escape

from werkzeug.utils import redirect
from werkzeug.wrappers import Response

from tieredsession import Request, SessionMiddleware

PAGE = """<!DOCTYPE html>
<title>tieredsession with Werkzeug</title>
<p>Visit {visits} of {name}.</p>
<form method="post">
<input type="hidden" name="csrf_token" value="{token}">
<input name="name"> <button formaction="/login">Log in</button>
<button formaction="/logout">Log out</button>
</form>
"""


@Request.application
def site(request):
    """The whole site."""
    session = request.session
    if request.method == "POST":
        if not session.check_csrf_token(request.form.get("csrf_token", "")):
            return Response("That form was not from here.", 400)
        if request.path == "/login":
            session.bind(request.form["name"] or "somebody")  # a new id, and a new CSRF token
        else:
            session.destroy()
        return redirect("/", 303)
    if request.path != "/":
        return Response("There is nothing here.", 404)
    session["visits"] = session.get("visits", 0) + 1
    name, token = escape(session.principal or "nobody"), session.csrf_token()
    page = PAGE.format(visits=session["visits"], name=name, token=token)
    return Response(page, mimetype="text/html")


app = SessionMiddleware(site)  # settings from the environment
