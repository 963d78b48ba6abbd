"""The purge's page: who may call it, what he is answered, and what everybody else is."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from google.auth.exceptions import TransportError
from werkzeug.test import Client, TestResponse

from tieredsession import ConfigurationError, MissingDependencyError, SessionMiddleware, Settings
from tieredsession.cron import PurgeView
from tieredsession.events import Event, Purged, PurgeRefused
from tieredsession.oidc import CallerVerifier, KeysUnavailable
from tieredsession.purge import GRACE
from tieredsession.stores import MemorySessionStore
from tieredsession.testing import Chaos, FakeClock
from tieredsession.wsgi import SESSION_KEY

if TYPE_CHECKING:
    from conftest import MakeSite

SECRET = "a long enough text, for tests alone: 0123456789"
TOKEN = "another long enough text, for the tests of the purge"
URL = "/sessions/purge_old_sessions"
IDLE = 14 * 24 * 3600.0
ACCOUNT = "cron@example.iam.gserviceaccount.com"
AUDIENCE = "https://example.org/sessions/purge_old_sessions"

pytestmark = pytest.mark.any_store


class Cron:
    """A site with an expired session, and whoever calls its purge."""

    def __init__(self, make_site: MakeSite, clock: FakeClock, environ: dict[str, str]) -> None:
        self.site = make_site()
        self.site.browser(a=1)
        clock.advance(IDLE + GRACE + 1)
        self._clock = clock
        self._environ = environ
        self.chaos = Chaos()
        self.events: list[Event] = []
        self.transport = Keys()

    def client(self, **settings: Any) -> Client:
        view = PurgeView(
            self.chaos.wrap(self.site.real_store),
            Settings({"SECRET_KEY": SECRET, **settings}),
            observers=[self.events.append],
            environ=self._environ,
            transport=self.transport,
            clock=self._clock,
        )
        return Client(view)

    def call(self, headers: dict[str, str], method: str = "GET", **settings: Any) -> TestResponse:
        return self.client(**settings).open(URL, method=method, headers=headers)

    def assert_refused(self, response: TestResponse) -> str:
        """403, nothing asked, nothing told; the reason that the operator sees."""
        assert response.status_code == 403
        assert response.get_json() == {"error": "forbidden"}
        assert self.chaos.calls == []
        assert self.site.rows == 1
        (event,) = self.events
        assert isinstance(event, PurgeRefused)
        return event.reason


@pytest.fixture
def environ() -> dict[str, str]:
    """The environment of a process that is not on App Engine."""
    return {}


@pytest.fixture
def cron(make_site: MakeSite, clock: FakeClock, environ: dict[str, str]) -> Cron:
    return Cron(make_site, clock, environ)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# -- App Engine -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("name", ["GAE_ENV", "GAE_INSTANCE"])
def test_cron_of_app_engine(cron: Cron, environ: dict[str, str], name: str, method: str) -> None:
    """On App Engine its cron may call, and is answered with the report (case 33)."""
    environ[name] = "standard"
    response = cron.call({"X-Appengine-Cron": "true"}, method)
    assert (response.status_code, response.mimetype) == (200, "application/json")
    report = response.get_json()
    assert (report["deleted"], report["completed"]) == (1, True)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Content-Length"] == str(len(response.data))
    assert cron.site.rows == 0
    (event,) = cron.events
    assert isinstance(event, Purged)


def test_the_header_of_app_engine_elsewhere(cron: Cron) -> None:
    """Where App Engine does not run, anybody can send its header (security row 82)."""
    reason = cron.assert_refused(cron.call({"X-Appengine-Cron": "true"}))
    assert "X-Appengine-Cron" in reason


@pytest.mark.parametrize("headers", [{}, {"X-Appengine-Cron": "false"}, {"X-Cron": "true"}])
def test_a_stranger_on_app_engine(
    cron: Cron, environ: dict[str, str], headers: dict[str, str]
) -> None:
    """On App Engine a request without its header is refused (case 34, security row 83)."""
    environ["GAE_ENV"] = "standard"
    cron.assert_refused(cron.call(headers))


# -- a shared secret ------------------------------------------------------------------


def test_a_credential_that_is_no_text_of_wsgi() -> None:
    """Whatever a server of another kind makes of a header, a wrong credential is refused."""
    settings = Settings({"SECRET_KEY": SECRET, "SESSION_PURGE_TOKEN": TOKEN})
    status, _, _ = PurgeView(object(), settings).answer("GET", "Bearer \u20ac", "")
    assert status == "403 Forbidden"


def test_the_token(cron: Cron) -> None:
    """Whoever has the shared secret may call."""
    response = cron.call(_bearer(TOKEN), SESSION_PURGE_TOKEN=TOKEN)
    assert response.status_code == 200
    assert cron.site.rows == 0


def test_the_token_from_a_file(cron: Cron) -> None:
    """The line break at the end of a file is no part of the secret: no header could carry it."""
    assert cron.call(_bearer(TOKEN), SESSION_PURGE_TOKEN=f"{TOKEN}\n").status_code == 200


@pytest.mark.parametrize("text", ["\xfc" + TOKEN, "\u20ac" + TOKEN, "\U0001f511" + TOKEN])
def test_a_token_beyond_ascii(cron: Cron, text: str) -> None:
    """A secret may have any characters: what counts are its bytes in UTF-8."""
    environ = {"HTTP_AUTHORIZATION": f"Bearer {text}".encode().decode("latin-1")}
    client = cron.client(SESSION_PURGE_TOKEN=text)
    assert client.get(URL, environ_overrides=environ).status_code == 200
    environ = {"HTTP_AUTHORIZATION": f"Bearer {text}x".encode().decode("latin-1")}
    assert client.get(URL, environ_overrides=environ).status_code == 403


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}, Bearer {TOKEN}",
        f"Basic eA==, Bearer {TOKEN}",
        f"Bearer\t{TOKEN}",
        TOKEN,
        "Bearer caf\xe9",
        "Bearer " + "x" * 100_000,
    ],
    ids=[
        *("none", "bare", "empty", "wrong", "longer", "shorter", "basic"),
        *("twice", "second", "tab", "alone", "latin", "long"),
    ],
)
def test_a_wrong_token(cron: Cron, header: str) -> None:
    """Any other credential is refused before anything is asked of the store."""
    cron.assert_refused(cron.call({"Authorization": header}, SESSION_PURGE_TOKEN=TOKEN))


def test_a_token_where_none_is_set(cron: Cron) -> None:
    """Without a secret in the settings no token opens the page."""
    assert cron.assert_refused(cron.call(_bearer(TOKEN))) == "wrong token"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS"])
def test_other_methods(cron: Cron, method: str) -> None:
    """Who may call, may call with GET and POST alone."""
    response = cron.call(_bearer(TOKEN), method, SESSION_PURGE_TOKEN=TOKEN)
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, POST"
    assert cron.chaos.calls == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS"])
def test_a_stranger_is_not_told_the_methods(cron: Cron, method: str) -> None:
    """A stranger gets the same answer to any method."""
    response = cron.call({}, method, SESSION_PURGE_TOKEN=TOKEN)
    assert response.status_code == 403


def test_a_token_that_is_no_text(cron: Cron) -> None:
    """A secret from an environment that is not UTF-8 opens nothing, and stops nothing."""
    token = "\udcfc" + TOKEN
    cron.assert_refused(cron.call(_bearer(TOKEN), SESSION_PURGE_TOKEN=token))


def test_a_credential_that_no_header_carries(cron: Cron) -> None:
    """A server that hands over text of another kind than WSGI's does not break the page."""
    settings = Settings({"SECRET_KEY": SECRET, "SESSION_PURGE_TOKEN": TOKEN})
    view = PurgeView(cron.chaos.wrap(cron.site.real_store), settings)
    assert view.answer("GET", f"Bearer {TOKEN}\u20ac", "").status == "403 Forbidden"


# -- OIDC -----------------------------------------------------------------------------


class Response(NamedTuple):
    status: int
    data: bytes


def _no_route() -> Exception:
    make: Callable[[str], Exception] = TransportError
    return make("no route")


class Keys:
    """Google's public keys, of which one is ours; counts how often they are fetched."""

    def __init__(self) -> None:
        self.fetched = 0
        self.down = False
        self.status = 200
        self.data = json.dumps({"key-1": _certificate()}).encode()

    def __call__(self, url: str, method: str = "GET", **options: Any) -> Response:
        self.fetched += 1
        assert options["timeout"] <= 10
        if self.down:
            raise _no_route()
        return Response(self.status, self.data)


_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _certificate() -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(_KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(_KEY, hashes.SHA256())
        .public_bytes(Encoding.PEM)
        .decode()
    )


def _token(key: rsa.RSAPrivateKey = _KEY, algorithm: str = "RS256", **claims: Any) -> str:
    """An OIDC token as Cloud Scheduler sends it."""
    now = int(time.time())  # google-auth asks the same clock
    content = {
        "iss": "https://accounts.google.com",
        "aud": AUDIENCE,
        "email": ACCOUNT,
        "email_verified": True,
        "iat": now - 10,
        "exp": now + 3000,
        **claims,
    }
    head = {"alg": algorithm, "kid": "key-1", "typ": "JWT"}
    parts = [urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=") for p in (head, content)]
    signature = key.sign(b".".join(parts), padding.PKCS1v15(), hashes.SHA256())
    return b".".join([*parts, urlsafe_b64encode(signature).rstrip(b"=")]).decode()


OIDC = {"SESSION_PURGE_ACCOUNT": ACCOUNT, "SESSION_PURGE_AUDIENCE": AUDIENCE}


def test_cloud_scheduler(cron: Cron) -> None:
    """A service account that Google vouches for may call."""
    response = cron.call(_bearer(_token()), "POST", **OIDC)
    assert response.status_code == 200
    assert cron.site.rows == 0


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": "https://example.com/"}, "for another audience"),
        ({"aud": None}, "for another audience"),
        ({"email": "eve@example.iam.gserviceaccount.com"}, "of another account"),
        ({"email_verified": False}, "of another account"),
        ({"iss": "https://example.org"}, "not signed by Google, or out of date"),
        ({"exp": 1_000_000_000, "iat": 999_999_000}, "not signed by Google, or out of date"),
        ({"iat": int(time.time()) + 3600}, "not signed by Google, or out of date"),
    ],
    ids=["audience", "no audience", "account", "unverified", "issuer", "expired", "future"],
)
def test_a_wrong_claim(cron: Cron, claims: dict[str, Any], reason: str) -> None:
    """A token for another purpose, of another account or another time is refused."""
    assert cron.assert_refused(cron.call(_bearer(_token(**claims)), **OIDC)) == reason


@pytest.mark.parametrize(
    "token",
    [
        _token(_OTHER_KEY),
        _token(algorithm="none"),
        _token(algorithm="HS256"),
        _token().rpartition(".")[0] + ".",
        _token()[:-8] + "AAAAAAAA",
        "a.b.c",
        "a.b",
        "..",
        "\xe9.\xe9.\xe9",
        "x." + urlsafe_b64encode(b"[" * 100_000).decode() + ".x",
        "x." + urlsafe_b64encode(b"[]").decode() + ".x",
        urlsafe_b64encode(b"[" * 100_000).decode() + _token()[_token().index(".") :],
    ],
    ids=[
        *("other key", "none", "hmac", "unsigned", "bent", "no JSON", "two", "dots", "latin"),
        *("deep", "list", "deep head"),
    ],
)
def test_a_token_that_google_did_not_sign(cron: Cron, token: str) -> None:
    """A token that does not verify is refused, whatever it claims of its algorithm."""
    cron.assert_refused(cron.call(_bearer(token), **OIDC))


def test_strangers_fetch_no_keys(cron: Cron) -> None:
    """A token that claims the wrong things costs no fetch of Google's keys."""
    for token in (_token(aud="another"), _token(email="eve@example.org"), "a.b.c"):
        cron.call(_bearer(token), **OIDC)
    assert cron.transport.fetched == 0


def test_keys_are_kept_for_an_hour() -> None:
    """Google's keys are fetched once an hour."""
    keys, clock = Keys(), FakeClock(0.0)
    verifier = CallerVerifier(ACCOUNT, AUDIENCE, keys, clock)
    assert [verifier.refusal(_token()) for _ in range(3)] == [None] * 3
    assert keys.fetched == 1
    clock.advance(3600.0)
    assert verifier.refusal(_token()) is None
    assert keys.fetched == 2


@pytest.mark.parametrize(
    "fault",
    [{"down": True}, {"status": 500}, {"data": b"<html>log in first</html>"}, {"data": b"[]"}],
    ids=["down", "status", "page", "list"],
)
def test_keys_that_fail_are_asked_for_twice_a_minute(fault: dict[str, Any]) -> None:
    """While Google's keys cannot be had, callers do not each wait for a fetch of them."""
    keys, clock = Keys(), FakeClock(0.0)
    verifier = CallerVerifier(ACCOUNT, AUDIENCE, keys, clock)
    before = {name: getattr(keys, name) for name in fault}
    vars(keys).update(fault)
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            verifier.refusal(_token())
    assert keys.fetched == 1
    vars(keys).update(before)
    clock.advance(30.0)
    assert verifier.refusal(_token()) is None


class SlowKeys(Keys):
    """Keys that are on their way while something else happens."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], object]] = []

    def __call__(self, url: str, method: str = "GET", **options: Any) -> Response:
        while self.meanwhile:
            self.meanwhile.pop()()
        return super().__call__(url, method, **options)


@pytest.mark.parametrize("kept", [True, False], ids=["an hour old", "none yet"])
def test_one_caller_waits_for_the_keys(kept: bool) -> None:
    """While one waits for Google's keys, others go by the keys of before, or come again."""
    keys, clock = SlowKeys(), FakeClock(0.0)
    verifier = CallerVerifier(ACCOUNT, AUDIENCE, keys, clock)
    answers: list[str | None] = []

    def call() -> None:
        clock.advance(9.0)
        try:
            answers.append(verifier.refusal(_token()))
        except KeysUnavailable:
            answers.append("come again")

    if kept:
        verifier.refusal(_token())
        clock.advance(3600.0)
    keys.meanwhile = [call, call]
    assert verifier.refusal(_token()) is None
    assert answers == [None if kept else "come again"] * 2
    assert keys.fetched == 1 + kept


def test_keys_that_cannot_be_had(cron: Cron) -> None:
    """While Google's keys cannot be had, the caller is asked to come again."""
    cron.transport.down = True
    response = cron.call(_bearer(_token()), **OIDC)
    assert response.status_code == 503
    assert cron.chaos.calls == []


def test_a_secret_beside_oidc(cron: Cron) -> None:
    """With both set, either will do."""
    assert cron.call(_bearer(TOKEN), SESSION_PURGE_TOKEN=TOKEN, **OIDC).status_code == 200
    assert cron.call(_bearer(_token()), SESSION_PURGE_TOKEN=TOKEN, **OIDC).status_code == 200


def test_oidc_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without google-auth the start ends with the command that installs it."""
    import sys

    monkeypatch.setitem(sys.modules, "google.oauth2", None)
    monkeypatch.delitem(sys.modules, "tieredsession.oidc", raising=False)
    with pytest.raises(MissingDependencyError, match=r'pip install "tieredsession\[oidc\]"'):
        PurgeView(object(), Settings({"SECRET_KEY": SECRET, **OIDC}))


# -- settings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"SESSION_PURGE_TOKEN": "short"}, "SESSION_PURGE_TOKEN has 5 bytes"),
        ({"SESSION_PURGE_TOKEN": SECRET}, "make another"),
        ({"SESSION_PURGE_ACCOUNT": ACCOUNT}, "go together"),
        ({"SESSION_PURGE_AUDIENCE": AUDIENCE}, "go together"),
        ({"SESSION_PURGE_URL": "purge"}, "SESSION_PURGE_URL must begin with '/'"),
        ({"SESSION_PURGE_GRACE": -1}, "SESSION_PURGE_GRACE must be"),
        ({"SESSION_PURGE_BUDGET": 0}, "SESSION_PURGE_BUDGET must be"),
    ],
    ids=["token", "secret", "account", "audience", "url", "grace", "budget"],
)
def test_wrong_settings(settings: dict[str, Any], problem: str) -> None:
    """A wrong setting of the purge stops the start with a sentence that names it."""
    with pytest.raises(ConfigurationError, match=problem):
        Settings({"SECRET_KEY": SECRET, **settings})


def test_a_grace_of_nothing() -> None:
    """A site whose servers share one clock can do without a grace."""
    assert Settings({"SECRET_KEY": SECRET, "SESSION_PURGE_GRACE": "0"}).session_purge_grace == 0


# -- in the middleware ----------------------------------------------------------------


def _inner(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"inner" if environ[SESSION_KEY] is not None else b""]


def _site(**settings: Any) -> Callable[..., TestResponse]:
    given = {"SECRET_KEY": SECRET, "SESSION_PURGE_TOKEN": TOKEN, **settings}
    client = Client(SessionMiddleware(_inner, given))
    return client.get


MEMORY = "tieredsession.stores.MemorySessionStore"


def test_the_middleware_has_the_page() -> None:
    """The middleware answers at the path of the setting, and nowhere else."""
    get = _site(SESSION_STORE=MEMORY)
    assert get(URL).status_code == 403
    assert get(URL, headers=_bearer(TOKEN)).get_json()["completed"] is True
    assert get(URL + "/").data == b"inner"
    assert get("/").data == b"inner"


def test_another_path() -> None:
    """The path can be another one."""
    get = _site(SESSION_STORE=MEMORY, SESSION_PURGE_URL="/cron")
    assert get("/cron", headers=_bearer(TOKEN)).status_code == 200
    assert get(URL, headers=_bearer(TOKEN)).data == b"inner"


def test_no_path() -> None:
    """With an empty path there is no page."""
    get = _site(SESSION_STORE=MEMORY, SESSION_PURGE_URL="")
    assert get(URL, headers=_bearer(TOKEN)).data == b"inner"


def test_the_page_on_a_store_without_rows() -> None:
    """With sessions in cookies, cron is told that there is nothing to do (R21)."""
    answer = _site()(URL, headers=_bearer(TOKEN))
    assert answer.status_code == 200
    assert answer.get_json()["completed"] is True


def test_a_tier_that_fails(cron: Cron) -> None:
    """If a tier fails, cron is answered 503 with what was done, and no server is named."""
    cron.chaos.fail("sweep")
    response = cron.call(_bearer(TOKEN), SESSION_PURGE_TOKEN=TOKEN)
    assert response.status_code == 503
    report = response.get_json()
    assert (report["failed"], report["completed"]) == (1, False)
    assert report["error"] == "a tier failed"
    (event,) = cron.events
    assert isinstance(event, Purged)
    assert event.error == "StoreUnavailable: sweep was made to fail"


def test_the_budget_of_the_settings(cron: Cron, clock: FakeClock) -> None:
    """The page stops at the budget of the settings, and says that there is more."""

    def slow() -> None:
        passed[0] += 10.0

    passed = [0.0]
    for _ in range(3):
        cron.site.browser(a=1)
    clock.advance(IDLE + GRACE + 1)
    cron.chaos.before("sweep", slow)
    view = PurgeView(
        cron.chaos.wrap(cron.site.real_store),
        Settings({"SECRET_KEY": SECRET, "SESSION_PURGE_TOKEN": TOKEN, "SESSION_PURGE_BUDGET": 9}),
        clock=clock,
        timer=lambda: passed[0],
        limit=None,
    )
    report = Client(view).get(URL, headers=_bearer(TOKEN)).get_json()
    assert report["seconds"] == 10.0


def test_the_page_does_not_touch_the_session() -> None:
    """A call of the page opens no session and sets no cookie."""
    store = Chaos()
    settings = Settings({"SECRET_KEY": SECRET, "SESSION_STORE": MEMORY})
    wrapped: MemorySessionStore = store.wrap(MemorySessionStore.__new__(MemorySessionStore))
    answer = Client(SessionMiddleware(_inner, settings, store=wrapped)).get(URL)
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers
    assert store.calls == []


def test_the_observers_of_a_site_are_its_purges(make_site: MakeSite) -> None:
    """Whoever watches a site, given as any iterable, is told of its sessions and its purge."""
    site = make_site()
    events: list[Event] = []
    settings = {"SECRET_KEY": SECRET, "SESSION_PURGE_TOKEN": TOKEN, "SESSION_PURGE_URL": URL}
    observers = (observer for observer in [events.append])
    middleware = SessionMiddleware(
        _inner, settings, store=site.real_store, observers=observers, clock=site.clock
    )
    session = middleware.manager.open(None)
    session["a"] = 1
    middleware.manager.close(session)
    Client(middleware).get(URL)
    assert [type(event).__name__ for event in events] == ["SessionCreated", "PurgeRefused"]
