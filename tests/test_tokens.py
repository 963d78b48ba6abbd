"""Session ids: the minted are random, the forged open nothing, the stored tell nothing."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.tokens import (
    MAC_BYTES,
    TOKEN_LENGTH,
    Owners,
    SessionIds,
    decode_base64,
    encode_base64,
)

SECRET = "only for tests, only for tests, 1"
KEYRING = Keyring(SECRET)
AUTHENTICATOR = KEYRING.authenticator("id:__Host-id:", MAC_BYTES)
IDS = SessionIds(AUTHENTICATOR)
VECTORS = json.loads((Path(__file__).parent / "data" / "tokens-v1.json").read_text("utf-8"))
QUICK = settings(deadline=None)


def ids_from(secret: bytes) -> SessionIds:
    """Ids whose every random part is *secret*."""
    return SessionIds(AUTHENTICATOR, random=lambda size: secret[:size])


# -- what is minted -----------------------------------------------------------------------


def test_a_token_is_random_bits_and_a_mac() -> None:
    """A token is 32 cookie-safe characters: 128 random bits and 64 bits of MAC over them."""
    token, _ = IDS.mint()
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", token)
    assert len(token) == TOKEN_LENGTH
    raw = decode_base64(token)
    assert raw is not None
    assert len(raw) == 16 + 8
    assert AUTHENTICATOR.verify(raw[:16], raw[16:])


def test_the_storage_key_is_a_hash() -> None:
    """The key is the prefix and the SHA-256 of the random part, and tells nothing of the token."""
    ids = SessionIds(AUTHENTICATOR, "app:")
    token, key = ids.mint()
    raw = decode_base64(token)
    assert raw is not None
    assert key == "app:" + sha256(raw[:16]).hexdigest()
    assert ids.key(token) == key
    assert token not in key
    assert raw[:16].hex() not in key


@given(st.binary(min_size=16, max_size=16))
@QUICK
def test_the_random_source_decides_everything(secret: bytes) -> None:
    """Under one key, the injected random bytes alone decide token and key."""
    asked: list[int] = []

    def source(size: int) -> bytes:
        asked.append(size)
        return secret

    first = SessionIds(AUTHENTICATOR, "p:", random=source).mint()
    assert asked == [16]
    assert SessionIds(AUTHENTICATOR, "p:", random=source).mint() == first
    assert decode_base64(first[0]) == secret + AUTHENTICATOR.tag(secret)
    assert SessionIds(AUTHENTICATOR, "p:").key(first[0]) == first[1]


def test_tokens_look_random() -> None:
    """Of 20,000 tokens, all differ, and bits and bytes of both parts are evenly spread."""
    raws = [decode_base64(IDS.mint()[0]) or b"" for _ in range(20_000)]
    assert len({raw[:16] for raw in raws}) == len(raws)
    for part in (slice(0, 16), slice(16, 24)):
        bits = len(raws) * 8 * len(raws[0][part])
        ones = sum(int.from_bytes(raw[part], "big").bit_count() for raw in raws)
        assert abs(ones - bits / 2) < 7 * (bits / 4) ** 0.5  # seven standard deviations
    expected = len(raws) / 256
    for position in range(24):
        counts = Counter(raw[position] for raw in raws)
        chi_square = sum((counts[byte] - expected) ** 2 / expected for byte in range(256))
        assert 90 < chi_square < 480  # 255 degrees of freedom: beyond is less likely than 1e-14


def test_threads_mint_no_token_twice() -> None:
    """Threads that share one source mint different tokens."""
    with ThreadPoolExecutor(16) as pool:
        batches = list(pool.map(lambda _: [IDS.mint()[0] for _ in range(500)], range(16)))
    assert len({token for batch in batches for token in batch}) == 16 * 500


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_processes_mint_no_token_twice() -> None:
    """Processes forked after the first token mint different tokens."""
    script = f"""
import os, sys
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions

ids = StoreOptions(Keyring({SECRET!r}), "id").ids
ids.mint()
children = []
for _ in range(4):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, "".join(ids.mint()[0] + " " for _ in range(100)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        print(pipe.read())
    os.wait()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    tokens = done.stdout.split()
    assert len(tokens) == len(set(tokens)) == 400


# -- what is refused ----------------------------------------------------------------------


def test_every_flipped_bit_is_forged() -> None:
    """A token with any one bit changed opens nothing."""
    raw = decode_base64(IDS.mint()[0])
    assert raw is not None
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        token = encode_base64(bytes(changed))
        assert IDS.key(token) is None
        assert IDS.refusal(token) == "forged"


def test_made_up_tokens_are_forged() -> None:
    """Tokens of the right form that were never issued open nothing."""
    source = random.Random(20260101)
    for _ in range(2000):
        assert IDS.key(encode_base64(source.randbytes(24))) is None


GOOD = ids_from(b"\xfb\xef\xbe" * 6).mint()[0]  # its random part is "----..."


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        GOOD[:-1],
        GOOD + "A",
        GOOD + "=",
        GOOD + "\n",
        GOOD[:-1] + "=",
        " " + GOOD[:-1],
        GOOD[:-1] + "\n",
        GOOD.replace("-", "+"),
        GOOD.replace("-", "+", 1),
        GOOD.replace("-", "/", 1),
        GOOD[:10] + "\x00" + GOOD[11:],
        GOOD[:10] + "\r\n" + GOOD[12:],
        GOOD[:10] + "é" + GOOD[11:],
        GOOD[:10] + "\ud800" + GOOD[11:],
        "../" * 10 + "..",
        "get key\r\nset key 0 0 1\r\nx\r\nend!",
        "*" * 32,
        "%00" * 10 + "%0",
        "A" * 31 + "=",
        "=" * 32,
        "A" * 251,
        "A" * 1_000_000,
    ],
    ids=lambda token: repr(token[:40]),
)
def test_malformed_tokens_open_nothing(token: str) -> None:
    """Whatever is no token in its one spelling opens nothing and does no harm."""
    assert IDS.key(GOOD) is not None
    assert IDS.key(token) is None
    assert IDS.label(token) is None
    assert IDS.refusal(token) == "malformed"


@given(st.text(max_size=40))
@QUICK
def test_any_text_is_refused(text: str) -> None:
    """No text opens a session by chance or raises an error."""
    assert IDS.key(text) is None
    assert IDS.refusal(text) in ("malformed", "forged")


def test_a_storage_key_is_no_token() -> None:
    """What a dump of the database shows opens no session, cut or encoded in any way."""
    _, key = IDS.mint()
    digest = bytes.fromhex(key)
    for token in (key, key[:32], key[32:], encode_base64(digest), encode_base64(digest[:24])):
        assert IDS.key(token) is None


@pytest.mark.parametrize(
    "other",
    [
        StoreOptions(Keyring("only for tests, only for tests, 2"), "__Host-id"),
        StoreOptions(KEYRING, "id"),
        StoreOptions(KEYRING, "__Host-id", prefix="app:"),
    ],
    ids=["key", "cookie", "prefix"],
)
def test_tokens_of_others_are_forged(other: StoreOptions) -> None:
    """A token of another key, cookie name or application opens nothing here."""
    ours = StoreOptions(KEYRING, "__Host-id").ids
    theirs = other.ids.mint()[0]
    assert other.ids.key(theirs) is not None
    assert ours.key(theirs) is None
    assert ours.refusal(theirs) == "forged"


def test_old_keys_open_and_the_first_signs() -> None:
    """After a rotation, tokens under the old key open as before and new ones need the new key."""
    old, new = "only for tests, only for tests, 1", "only for tests, only for tests, 2"
    before = StoreOptions(Keyring(old), "id").ids
    during = StoreOptions(Keyring(new, [old]), "id").ids
    after = StoreOptions(Keyring(new), "id").ids
    token, key = before.mint()
    assert during.key(token) == key
    assert after.key(token) is None
    token, key = during.mint()
    assert after.key(token) == key
    assert before.key(token) is None


def test_a_rotation_gives_the_same_id_a_token_of_the_first_key() -> None:
    """A token of an old key becomes one of the first key for the same session; its own stays."""
    old, new = "only for tests, only for tests, 1", "only for tests, only for tests, 2"
    token, key = StoreOptions(Keyring(old), "id").ids.mint()
    during = StoreOptions(Keyring(new, [old]), "id").ids
    current = during.current(token)
    assert current != token
    assert StoreOptions(Keyring(new), "id").ids.key(current) == key
    assert during.current(current) == current


class CountingAuthenticator:
    """An authenticator, with a count of the tags that it was asked for."""

    def __init__(self) -> None:
        self.count = 0

    def tag(self, message: bytes) -> bytes:
        self.count += 1
        return AUTHENTICATOR.tag(message)

    def tags(self, message: bytes) -> list[bytes]:
        return AUTHENTICATOR.tags(message)

    def verify(self, message: bytes, tag: bytes) -> bool:
        return AUTHENTICATOR.verify(message, tag)


def test_a_token_is_checked_once_for_all_layers() -> None:
    """The token of a request is checked once, however many forged ones come in between."""
    authenticator = CountingAuthenticator()
    ids = SessionIds(authenticator)
    token, key = IDS.mint()
    assert ids.key(token) == key
    others = [StoreOptions(KEYRING, "another").ids.mint()[0] for _ in range(1000)]
    assert [ids.key(other) for other in others] == [None] * 1000
    asked = authenticator.count
    assert asked >= 1000
    assert ids.key(token) == key
    assert ids.current(token) == token
    assert ids.label(token) == key[:12]
    assert authenticator.count == asked


def test_what_is_remembered_is_bounded() -> None:
    """The tokens of visitors who have left are forgotten: memory holds few of them at once."""
    authenticator = CountingAuthenticator()
    ids = SessionIds(authenticator)
    token, key = IDS.mint()
    assert ids.key(token) == key
    for _ in range(1000):
        ids.key(IDS.mint()[0])
    asked = authenticator.count
    assert ids.key(token) == key
    assert authenticator.count == asked + 1


# -- labels and owners --------------------------------------------------------------------


def test_a_label_is_part_of_the_hash() -> None:
    """A log calls a session by twelve hex digits of its hash, without the prefix."""
    ids = SessionIds(AUTHENTICATOR, "a long prefix:")
    token, key = ids.mint()
    label = ids.label(token)
    assert label == key.removeprefix("a long prefix:")[:12] == ids.label_of(key)
    assert re.fullmatch("[0-9a-f]{12}", label)
    assert label not in token


def test_owners_are_named_by_keyed_hashes() -> None:
    """An index names a principal by a hash that nobody without the key can make."""
    owners = Owners(KEYRING.authenticator("owner:"))
    name = owners.name("ann@example.org")
    assert name is not None
    assert re.fullmatch("[0-9a-f]{32}", name)
    assert name == owners.name("ann@example.org")
    assert name != owners.name("ann@example.org ")
    assert name not in (sha256(b"ann@example.org").hexdigest(), sha256(b"").hexdigest())
    assert Owners(Keyring(SECRET + "0").authenticator("owner:")).name("ann@example.org") != name
    assert owners.name(None) is None


def test_owners_are_found_after_a_rotation() -> None:
    """A principal's names include the one from before the keys changed."""
    old, new = "only for tests, only for tests, 1", "only for tests, only for tests, 2"
    before = Owners(Keyring(old).authenticator("owner:"))
    after = Owners(Keyring(new, [old]).authenticator("owner:"))
    assert after.names("ann") == [after.name("ann"), before.name("ann")]
    assert before.names("ann") == [before.name("ann")]


def test_principals_are_indexed_only_when_wanted() -> None:
    """A site without an index of principals has no names for them."""
    assert StoreOptions(KEYRING, "id").owners is None
    owners = StoreOptions(KEYRING, "id", principals=True).owners
    other = StoreOptions(KEYRING, "id", prefix="app:", principals=True).owners
    assert owners is not None
    assert other is not None
    assert owners.name("ann") != other.name("ann")


# -- base64url ----------------------------------------------------------------------------


@given(st.binary(max_size=100))
@QUICK
def test_base64_round_trip(data: bytes) -> None:
    """Bytes come back from base64url, which has no padding and needs no quoting."""
    text = encode_base64(data)
    assert re.fullmatch("[A-Za-z0-9_-]*", text)
    assert decode_base64(text) == data


@given(
    st.binary(max_size=12),
    st.integers(0, 16),
    st.integers(0, 2),
    st.text(st.sampled_from("Aw-_+/=! \n\x00\x7f\xe9\u0100"), max_size=3),
)
@settings(QUICK, max_examples=500)
def test_base64_has_one_spelling(data: bytes, place: int, cut: int, put: str) -> None:
    """Whatever is done to a text, it is refused or the only one that decodes to its bytes."""
    text = encode_base64(data)
    changed = text[:place] + put + text[place + cut :]
    back = decode_base64(changed)
    assert back is None or encode_base64(back) == changed


@pytest.mark.parametrize("text", ["QQ==", "QR", "Q", "QQ\n", " QQ", "Q Q", "+w", "/w", "é", "QUJ="])
def test_other_spellings_are_refused(text: str) -> None:
    """Padding, stray bits, blanks, the other alphabet and foreign letters are refused."""
    assert decode_base64(text) is None


# -- vectors: what an earlier release issued is recognised for ever -------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["cookie_name"])
def test_vectors(vector: dict[str, str]) -> None:
    """The stored tokens are recognised, stand for the same keys, and are still what is minted."""
    options = StoreOptions(
        Keyring(vector["secret"]), vector["cookie_name"], prefix=vector["prefix"]
    )
    assert options.ids.key(vector["token"]) == vector["key"]
    purpose = f"id:{vector['cookie_name']}:{vector['prefix']}"
    ids = SessionIds(
        options.keyring.authenticator(purpose, MAC_BYTES),
        vector["prefix"],
        random=lambda size: bytes.fromhex(vector["random"])[:size],
    )
    assert ids.mint() == (vector["token"], vector["key"])


def test_the_vector_of_an_owner() -> None:
    """A principal stands in the index under the name that it always had."""
    secret = "not a secret, but a text for the test vectors"
    owners = StoreOptions(Keyring(secret), "id", prefix="app:", principals=True).owners
    assert owners is not None
    assert owners.name("zo\xeb@example.org") == "5a87052d03dfad2989d68212581c1eff"
