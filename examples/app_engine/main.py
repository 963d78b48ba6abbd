"""Sessions in Datastore on App Engine, with the purge by its cron. README.rst has the commands."""

from werkzeug.wrappers import Response

from tieredsession import Request, SessionMiddleware


@Request.application
def site(request):
    """Count the visit."""
    request.session["visits"] = request.session.get("visits", 0) + 1
    return Response(f"Visit {request.session['visits']}.\n")


app = SessionMiddleware(site)  # settings from env_variables in app.yaml
