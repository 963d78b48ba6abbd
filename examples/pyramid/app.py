"""Sessions in Pyramid: a counter, a login, a logout. README.rst has the command."""

from html import escape

from pyramid.authentication import SessionAuthenticationHelper
from pyramid.config import Configurator
from pyramid.csrf import get_csrf_token
from pyramid.httpexceptions import HTTPSeeOther
from pyramid.response import Response
from pyramid.security import forget, remember

PAGE = """<!DOCTYPE html>
<title>tieredsession with Pyramid</title>
<p>Visit {visits} of {name}.</p>
<form method="post">
<input type="hidden" name="csrf_token" value="{token}">
<input name="name"> <button formaction="/login">Log in</button>
<button formaction="/logout">Log out</button>
</form>
"""


class Policy(SessionAuthenticationHelper):
    """Whoever gives a name is believed."""

    def identity(self, request):
        return self.authenticated_userid(request)

    def permits(self, request, context, permission):
        return self.authenticated_userid(request) is not None


def index(request):
    """Count the visit."""
    session = request.session
    session["visits"] = session.get("visits", 0) + 1
    name, token = escape(request.authenticated_userid or "nobody"), get_csrf_token(request)
    return Response(PAGE.format(visits=session["visits"], name=name, token=token))


def login(request):
    """Go on under a new id, and with a new CSRF token."""
    name = request.POST.get("name") or "somebody"
    request.session.bind(name)
    return HTTPSeeOther("/", headers=remember(request, name))


def logout(request):
    """End the session."""
    headers = forget(request)
    request.session.invalidate()
    return HTTPSeeOther("/", headers=headers)


def main(global_config=None, **settings):
    """The WSGI application; *settings* are those of an ini file."""
    config = Configurator(settings=settings, security_policy=Policy())
    config.include("tieredsession.adapters.pyramid")  # what the file lacks, the environment has
    config.set_default_csrf_options(require_csrf=True)
    config.add_view(index)
    config.add_view(login, name="login", request_method="POST")
    config.add_view(logout, name="logout", request_method="POST")
    return config.make_wsgi_app()


app = main()
