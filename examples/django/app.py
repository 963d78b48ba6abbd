"""Sessions in Django: a counter, a login, a logout. README.rst has the command."""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseRedirect
from django.middleware.csrf import get_token, rotate_token
from django.urls import path
from django.utils.html import format_html
from django.views.decorators.http import require_POST

PAGE = """<!DOCTYPE html>
<title>tieredsession with Django</title>
<p>Visit {visits} of {name}.</p>
<form method="post">
<input type="hidden" name="csrfmiddlewaretoken" value="{token}">
<input name="name"> <button formaction="/login">Log in</button>
<button formaction="/logout">Log out</button>
</form>
"""


def index(request):
    """Count the visit."""
    session = request.session
    session["visits"] = session.get("visits", 0) + 1
    name, token = session.get("name", "nobody"), get_token(request)
    return HttpResponse(format_html(PAGE, visits=session["visits"], name=name, token=token))


@require_POST
def login(request):
    """Go on under a new id, as django.contrib.auth.login() does for users with a password."""
    request.session.cycle_key()
    request.session["name"] = request.POST.get("name") or "somebody"
    rotate_token(request)
    return HttpResponseRedirect("/")


@require_POST
def logout(request):
    """End the session."""
    request.session.flush()
    return HttpResponseRedirect("/")


settings.configure(
    SECRET_KEY=os.environ["SECRET_KEY"],
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
    ROOT_URLCONF=(path("", index), path("login", login), path("logout", logout)),
    SESSION_ENGINE="tieredsession.adapters.django",
    SESSION_STORE=os.environ["SESSION_STORE"],
    SESSION_STORE_URL=os.environ.get("SESSION_STORE_URL"),
)
app = get_wsgi_application()
