"""Data to the value of a cookie and back, ours and each peer's.

Each goes the way that its own requests go: the same public calls with the same arguments,
keyed objects made once where it makes them once and each time where it makes them each
time. A cookie that is refused decodes to ``None``.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from importlib import import_module
from time import time
from typing import Any, NamedTuple

from tieredsession.contracts import Record
from tieredsession.registry import open_manager
from tieredsession.settings import Settings

SECRET = "only for benchmarks: 0123456789abcdef"
LIFETIME = 14 * 24 * 3600

Data = dict[str, Any]


class CookieCodec(NamedTuple):
    """How somebody writes and reads a cookie. *datetimes*: whether it can hold them."""

    encode: Callable[[Data], str]
    decode: Callable[[str], Data | None]
    datetimes: bool = False


def ours(**settings: Any) -> CookieCodec:
    """The codec, the record and the store, as the manager calls them."""
    manager = open_manager(Settings({"SECRET_KEY": SECRET, **settings}))
    codec, store = manager.codec, manager.store

    def encode(data: Data) -> str:
        now = time()
        created = float(int(now))
        record = Record(codec.encode(data), created + LIFETIME, created)
        return store.create(record, now).token

    def decode(value: str) -> Data | None:
        record = store.load(value, time())
        return None if record is None else codec.decode(record.payload)

    return CookieCodec(encode, decode, datetimes=True)


def flask() -> CookieCodec:
    """``SecureCookieSessionInterface``, which makes its serializer for each use."""
    app = import_module("flask").Flask("benchmark")
    app.secret_key = SECRET
    refused = import_module("itsdangerous").BadSignature
    serializer = app.session_interface.get_signing_serializer

    def encode(data: Data) -> str:
        value: str = serializer(app).dumps(dict(data))
        return value

    def decode(value: str) -> Data | None:
        try:
            data: Data = serializer(app).loads(value, max_age=LIFETIME)
        except refused:
            return None
        return data

    return CookieCodec(encode, decode, datetimes=True)


def starlette() -> CookieCodec:
    """The body of ``SessionMiddleware.__call__``, with its signer."""
    middleware = import_module("starlette.middleware.sessions").SessionMiddleware
    signer = middleware(None, SECRET).signer
    refused = import_module("itsdangerous").BadSignature

    def encode(data: Data) -> str:
        value: bytes = signer.sign(b64encode(json.dumps(data).encode("utf-8")))
        return value.decode("utf-8")

    def decode(value: str) -> Data | None:
        try:
            signed = signer.unsign(value.encode("utf-8"), max_age=LIFETIME)
        except refused:
            return None
        data: Data = json.loads(b64decode(signed))
        return data

    return CookieCodec(encode, decode)


def django() -> CookieCodec:
    """``django.core.signing`` with the arguments of the ``signed_cookies`` backend."""
    configure_django()
    signing = import_module("django.core.signing")
    salt = "django.contrib.sessions.backends.signed_cookies"
    serializer = signing.JSONSerializer

    def encode(data: Data) -> str:
        value: str = signing.dumps(data, compress=True, salt=salt, serializer=serializer)
        return value

    def decode(value: str) -> Data | None:
        try:
            data: Data = signing.loads(value, serializer=serializer, max_age=LIFETIME, salt=salt)
        except signing.BadSignature:
            return None
        return data

    return CookieCodec(encode, decode)


def configure_django() -> Any:
    """The settings of this process's Django, which can be configured once."""
    settings = import_module("django.conf").settings
    if not settings.configured:
        settings.configure(
            SECRET_KEY=SECRET,
            ALLOWED_HOSTS=["localhost"],
            ROOT_URLCONF="benchmarks.django_urls",
            INSTALLED_APPS=["django.contrib.sessions"],
            SESSION_SERIALIZER="django.contrib.sessions.serializers.JSONSerializer",
            SESSION_COOKIE_SECURE=True,
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            LOGGING_CONFIG=None,
            USE_I18N=False,
        )
        import_module("django").setup()
    return settings


def pyramid() -> CookieCodec:
    """The serializer of ``SignedCookieSessionFactory``, over times and data as it writes them."""
    json_serializer = import_module("pyramid.session").JSONSerializer()
    return _pyramid(
        import_module("webob.cookies").SignedSerializer(
            SECRET, "pyramid.session.", "sha512", serializer=json_serializer
        )
    )


def pyramid_nacl() -> CookieCodec:
    """The serializer of ``pyramid_nacl_session``, over times and data as Pyramid writes them."""
    session = import_module("pyramid_nacl_session.serializer")
    serializer = session.EncryptedSerializer(
        SECRET.encode()[:32], import_module("pyramid.session").JSONSerializer()
    )
    return _pyramid(serializer)


def _pyramid(serializer: Any) -> CookieCodec:
    def encode(data: Data) -> str:
        now = int(time())
        value: bytes = serializer.dumps((now, now, data))
        return value.decode("ascii")

    def decode(value: str) -> Data | None:
        try:
            _, _, data = serializer.loads(value.encode("ascii"))
        except ValueError:
            return None
        plain: Data = data
        return plain

    return CookieCodec(encode, decode)


def nacl() -> CookieCodec:
    """A SecretBox over JSON, written by hand as in the encrypted sessions made for Pyramid."""
    box = import_module("nacl.secret").SecretBox(SECRET.encode()[:32])
    refused = import_module("nacl.exceptions").CryptoError

    def encode(data: Data) -> str:
        return urlsafe_b64encode(box.encrypt(json.dumps(data).encode())).decode("ascii")

    def decode(value: str) -> Data | None:
        try:
            data: Data = json.loads(box.decrypt(urlsafe_b64decode(value)))
        except refused:
            return None
        return data

    return CookieCodec(encode, decode)


def beaker() -> CookieCodec:
    """What Beaker's ``CookieSession`` does between the data and its signed cookie, as JSON."""
    session = import_module("beaker.session")

    def encode(data: Data) -> str:
        made = session.CookieSession({}, validate_key=SECRET, data_serializer="json")
        made.update(data)
        made.save()
        value: str = made.cookie[made.key].coded_value
        return value

    def decode(value: str) -> Data | None:
        request = {"cookie": f"beaker.session.id={value}"}
        try:
            read = session.CookieSession(request, validate_key=SECRET, data_serializer="json")
        except import_module("beaker.exceptions").BeakerException:
            return None
        return {key: item for key, item in read.items() if key[:1] != "_"}

    return CookieCodec(encode, decode)


def aiohttp_session() -> CookieCodec:
    """The bodies of ``load_session`` and ``save_session`` of ``EncryptedCookieStorage``."""
    sessions = import_module("aiohttp_session")
    cookie_storage = import_module("aiohttp_session.cookie_storage")
    refused = import_module("cryptography.fernet").InvalidToken
    key = SECRET.encode()[:32]
    storage = cookie_storage.EncryptedCookieStorage(key, max_age=LIFETIME)

    def encode(data: Data) -> str:
        session = sessions.Session(None, data=None, new=True, max_age=LIFETIME)
        session.update(data)
        plain = storage._encoder(storage._get_session_data(session)).encode()
        value: bytes = storage._fernet.encrypt(plain)
        return value.decode()

    def decode(value: str) -> Data | None:
        try:
            plain = storage._fernet.decrypt(value.encode(), ttl=LIFETIME).decode()
        except refused:
            return None
        loaded = storage._decoder(plain)
        return dict(sessions.Session(None, data=loaded, new=False, max_age=LIFETIME))

    return CookieCodec(encode, decode)


def secure_cookie() -> CookieCodec:
    """``SecureCookie``, once a part of Werkzeug. It answers a forged cookie by an empty one."""
    cookie = import_module("secure_cookie.cookie").SecureCookie

    def encode(data: Data) -> str:
        value: bytes = cookie(data, SECRET).serialize()
        return value.decode("ascii")

    def decode(value: str) -> Data | None:
        return cookie.unserialize(value, SECRET) or None

    return CookieCodec(encode, decode)


OURS: dict[str, Callable[[], CookieCodec]] = {
    "ours": ours,
    "ours, not compressed": lambda: ours(SESSION_COOKIE_COMPRESS=False),
    "ours, encrypted": lambda: ours(SESSION_COOKIE_ENCRYPT=True),
}
"""The default settings first."""

PEERS: dict[str, Callable[[], CookieCodec]] = {
    "Flask": flask,
    "Starlette": starlette,
    "Django": django,
    "Pyramid": pyramid,
    "Pyramid, NaCl": pyramid_nacl,
    "Beaker": beaker,
    "aiohttp-session": aiohttp_session,
    "NaCl box, JSON": nacl,
    "secure-cookie": secure_cookie,
}


def present(
    makers: dict[str, Callable[[], CookieCodec]], skipped: dict[str, str]
) -> dict[str, CookieCodec]:
    """Those of *makers* that work here; the others are put into *skipped* with the reason."""
    codecs: dict[str, CookieCodec] = {}
    for name, make in makers.items():
        try:
            codecs[name] = make()
        except ImportError as error:
            skipped[name] = why(error)
    return codecs


def why(error: ImportError) -> str:
    """What *error* says, without the paths of this machine."""
    return str(error).partition(" (/")[0]
