"""The keyring: standard constructions, one key a purpose, and secrets that never show."""

from __future__ import annotations

import copy
import hmac
import pickle
import sys
import traceback
from collections.abc import Callable

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredsession.errors import ConfigurationError, MissingDependencyError
from tieredsession.keyring import Cipher, HmacAuthenticator, Keyring, check_secret
from tieredsession.options import StoreOptions
from tieredsession.settings import Settings

SECRET = "only for tests, only for tests, 1"
OTHER = "only for tests, only for tests, 2"
KEYRING = Keyring(SECRET)
NONCE = bytes(12)
QUICK = settings(deadline=None)


def derive(secret: str, purpose: str) -> bytes:
    """The key of one *purpose*, by somebody else's HKDF (RFC 5869)."""
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=b"tieredsession 1", info=purpose.encode())
    return hkdf.derive(secret.encode())


# -- the constructions --------------------------------------------------------------------


@given(
    st.text(min_size=32, max_size=200).filter(lambda text: len(set(text.encode())) >= 8),
    st.text(max_size=40),
    st.binary(max_size=300),
    st.integers(8, 32),
)
@QUICK
def test_tags_are_hmac_under_hkdf(secret: str, purpose: str, message: bytes, size: int) -> None:
    """A tag is HMAC-SHA256, cut, under a key that HKDF-SHA256 derives for the purpose."""
    try:
        authenticator = Keyring(secret).authenticator(purpose, size)
    except ConfigurationError:
        return  # a sample text
    expected = hmac.digest(derive(secret, "mac:" + purpose), message, "sha256")[:size]
    assert authenticator.tag(message) == expected
    assert authenticator.verify(message, expected)


@pytest.mark.parametrize("size", [1, 32, 63, 64, 65, 131])
def test_hmac_for_keys_of_any_size(size: int) -> None:
    """The authenticator is HMAC-SHA256 (RFC 2104) for short keys and for long ones."""
    key = bytes(range(size))
    expected = hmac.digest(key, b"message", "sha256")
    assert HmacAuthenticator([key], 32).tag(b"message") == expected


def test_hmac_vector() -> None:
    """The second test case of RFC 4231 gives the tag that the RFC prints."""
    tag = HmacAuthenticator([b"Jefe"], 32).tag(b"what do ya want for nothing?")
    assert tag.hex() == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"


@given(st.text(max_size=40), st.binary(max_size=200), st.binary(max_size=40))
@QUICK
def test_ciphers_are_aes_gcm_under_hkdf(purpose: str, plain: bytes, context: bytes) -> None:
    """Encryption is AES-256-GCM under a key that HKDF-SHA256 derives for the purpose."""
    cipher = KEYRING.cipher(purpose)
    theirs = AESGCM(derive(SECRET, "aead:" + purpose))
    sealed = cipher.encrypt(NONCE, plain, context)
    assert sealed == theirs.encrypt(NONCE, plain, context)
    assert theirs.decrypt(NONCE, sealed, context) == plain
    assert cipher.decrypt(NONCE, sealed, context) == plain


def test_purposes_have_keys_of_their_own() -> None:
    """Each purpose has its own key, and encryption another one than the MAC."""
    purposes = ["", "a", "b", "mac:a", "aead:a", "cookie:id", "id:id:", "record:"]
    assert len({KEYRING.authenticator(purpose).tag(b"x") for purpose in purposes}) == len(purposes)
    ciphers = {KEYRING.cipher(purpose).encrypt(NONCE, b"x", b"") for purpose in purposes}
    assert len(ciphers) == len(purposes)
    with pytest.raises(InvalidTag):
        AESGCM(derive(SECRET, "mac:a")).decrypt(
            NONCE, KEYRING.cipher("a").encrypt(NONCE, b"x", b""), b""
        )


@pytest.mark.parametrize("secret", [SECRET.encode(), SECRET], ids=["bytes", "str"])
def test_text_and_bytes_are_interchangeable(secret: str | bytes) -> None:
    """A secret given as text or as its UTF-8 bytes is the same secret."""
    assert Keyring(secret).authenticator("a").tag(b"x") == KEYRING.authenticator("a").tag(b"x")


def test_a_site_says_what_is_for_what() -> None:
    """Ids, cookies and records of two cookie names and prefixes share no key."""
    options = [
        StoreOptions(KEYRING, "id"),
        StoreOptions(KEYRING, "id2"),
        StoreOptions(KEYRING, "id", prefix="app:"),
    ]
    tags = {o.ids.mint()[0] for o in options}
    assert len(tags) == 3
    for one in options:
        for other in options:
            assert (other.ids.key(one.ids.mint()[0]) is not None) == (one is other)


# -- verification -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16, 32])
def test_only_the_whole_tag_verifies(size: int) -> None:
    """A tag that was changed, cut, extended or made for another message is refused."""
    authenticator = KEYRING.authenticator("a", size)
    tag = authenticator.tag(b"message")
    assert authenticator.verify(b"message", tag)
    for bit in range(size * 8):
        changed = bytearray(tag)
        changed[bit // 8] ^= 1 << bit % 8
        assert not authenticator.verify(b"message", bytes(changed))
    for wrong in (b"", tag[:-1], tag[1:], tag + b"\0", tag * 2):
        assert not authenticator.verify(b"message", wrong)
    assert not authenticator.verify(b"massage", tag)
    assert not authenticator.verify(b"", tag)


def test_the_first_key_tags_and_all_verify() -> None:
    """Tags are made under the first key; those of the fallbacks verify, those of others do not."""
    third = "only for tests, only for tests, 3"
    ring = Keyring(SECRET, [OTHER, third]).authenticator("a")
    singles = [Keyring(key).authenticator("a") for key in (SECRET, OTHER, third)]
    assert ring.tag(b"x") == singles[0].tag(b"x")
    assert ring.tags(b"x") == [single.tag(b"x") for single in singles]
    assert all(ring.verify(b"x", single.tag(b"x")) for single in singles)
    assert not ring.verify(b"x", Keyring(third + "4").authenticator("a").tag(b"x"))
    assert not singles[0].verify(b"x", singles[1].tag(b"x"))


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    """Encryption uses the first key; what a fallback encrypted is read, another's is not."""
    ring = Keyring(SECRET, [OTHER]).cipher("a")
    old, new = Keyring(OTHER).cipher("a"), Keyring(SECRET).cipher("a")
    assert ring.encrypt(NONCE, b"x", b"c") == new.encrypt(NONCE, b"x", b"c")
    assert ring.decrypt(NONCE, old.encrypt(NONCE, b"x", b"c"), b"c") == b"x"
    assert new.decrypt(NONCE, old.encrypt(NONCE, b"x", b"c"), b"c") is None
    assert ring.decrypt(NONCE, ring.encrypt(NONCE, b"x", b"c"), b"d") is None


def test_threads_and_order_do_not_matter() -> None:
    """A tag depends on its message alone, whatever was tagged before."""
    authenticator = KEYRING.authenticator("a")
    first = authenticator.tag(b"one")
    authenticator.tag(b"two" * 100)
    assert authenticator.tag(b"one") == first
    assert KEYRING.authenticator("a").tag(b"one") == first


# -- weak secrets -------------------------------------------------------------------------


WEAK = {
    "empty": "",
    "short": "0123456789abcdef0123456789abcde",
    "short bytes": b"0123456789abcdef",
    "one letter": "x" * 64,
    "few letters": "deadbeef" * 8,
    "few letters in no order": "aababbbaabbabaaabbbbabababbaabaabbab",
    "one pattern": "0123456789" * 5,
    "one long pattern": "correct horse battery " * 2,
    "zeros": bytes(32),
    "Kay's": "ReplaceItWithSecretString, which is what the sample says",
    "another sample": "please set your own secret key here, 0123456789",
    "changeme": "changeme-0123456789-changeme-abcdefgh",
    "CHANGE ME": b"CHANGE ME 0123456789 abcdefghijklmnop",
    "Django's": "django-insecure-1a2b3c4d5e6f7g8h9i0jklmnopqrstuv",
    "insecure": "insecure 0123456789 abcdefghijklmnopqr",
    "secret": "secret 0123456789 abcdefghijklmnopqrst",
}


@pytest.mark.parametrize("secret", WEAK.values(), ids=WEAK)
def test_weak_secrets_stop_the_start(secret: str | bytes) -> None:
    """A short, repeated or sample secret is refused in one sentence with the setting and a fix."""
    calls: dict[str, Callable[[], object]] = {
        "MY_KEY": lambda: check_secret(secret, "MY_KEY"),
        "SECRET_KEY": lambda: Keyring(secret),
        "SECRET_KEY_FALLBACKS": lambda: Keyring(SECRET, [secret]),
    }
    for name, call in calls.items():
        with pytest.raises(ConfigurationError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith(name + " ")
        assert message.endswith(
            'make one with  python3 -c "import secrets; print(secrets.token_hex(32))"'
        )
        assert "\n" not in message
        assert not secret or repr(secret)[:20] not in message


@pytest.mark.parametrize(
    "secret",
    [
        "4f5a" + "0123456789abcdef" * 3 + "9c7e",
        bytes(range(32)),
        "näive text with letters, 32 byte",
        "\udcff\udcfe as the environment hands out bytes that are no text",
    ],
    ids=["hex", "bytes", "text", "no text"],
)
def test_good_secrets_are_taken(secret: str | bytes) -> None:
    """A secret of 32 bytes that is no sample is taken, whatever its bytes."""
    assert len(check_secret(secret, "SECRET_KEY")) >= 32
    Keyring(secret, [SECRET]).authenticator("a")


# -- what never shows ---------------------------------------------------------------------


HOLDERS: dict[str, Callable[[], object]] = {
    "keyring": lambda: Keyring(SECRET, [OTHER]),
    "authenticator": lambda: KEYRING.authenticator("a"),
    "cipher": lambda: KEYRING.cipher("a"),
}
SHOWN = {
    "options": lambda: StoreOptions(Keyring(SECRET, [OTHER]), "id"),
    "settings": lambda: Settings({"SECRET_KEY": SECRET, "SECRET_KEY_FALLBACKS": [OTHER]}),
}


@pytest.mark.parametrize("make", [*HOLDERS.values(), *SHOWN.values()], ids=[*HOLDERS, *SHOWN])
def test_secrets_are_not_shown(make: Callable[[], object]) -> None:
    """No way of printing a holder of keys shows a secret or a key derived from it."""
    holder = make()
    derived = [derive(SECRET, f"{kind}:a") for kind in ("mac", "aead")]
    shown = [repr(holder), str(holder), f"{holder}", "%s" % (holder,), repr([holder])]  # noqa: UP031 - a way of its own
    for text in shown:
        assert "only for tests" not in text
        assert not any(key.hex() in text or repr(key)[2:-1] in text for key in derived)


@pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS)
def test_holders_of_keys_are_not_copied(make: Callable[[], object]) -> None:
    """A holder of keys is neither pickled nor copied, so keys do not leave by that way."""
    for write in (pickle.dumps, copy.copy, copy.deepcopy, lambda h: pickle.dumps([h], 0)):
        with pytest.raises(TypeError, match="holds keys and is not pickled"):
            write(make())


def test_tracebacks_show_no_secrets() -> None:
    """A call that fails inside shows no secret in its traceback."""
    calls: list[Callable[[], object]] = [
        lambda: KEYRING.authenticator("a").tag("text"),  # type: ignore[arg-type]  # a mistake
        lambda: KEYRING.cipher("a").encrypt(b"", b"x", b""),
        lambda: Keyring(SECRET[:31]),
        lambda: Keyring(SECRET, [3]),  # type: ignore[list-item]  # another
    ]
    for call in calls:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of any kind
            call()
        text = "".join(traceback.format_exception(caught.value))
        lines = [line for line in text.splitlines() if "lambda" not in line]
        assert not any("only for" in line for line in lines)


def test_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encryption without its extra says how to install it."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "tieredsession\[encrypt\]"'):
        Cipher([bytes(32)])
