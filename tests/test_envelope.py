"""The envelope: what is sealed comes back, what was touched does not, and nobody peeks."""

from __future__ import annotations

import json
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredsession.codec import MsgpackCodec
from tieredsession.contracts import Record
from tieredsession.envelope import Envelope, Refused
from tieredsession.errors import MissingDependencyError
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.tokens import decode_base64, encode_base64

NOW = 1_800_000_000.0
FORTNIGHT = 14 * 24 * 3600
SECRET = "only for tests, only for tests, 1"
KEYRING = Keyring(SECRET)
PURPOSE = "cookie:id"
CONTEXT = b"app:0123"
EXPIRES = int(NOW) + 3600
# Where an envelope is told no version, the expiry stands for it.
RECORD = Record(b"payload of a session", NOW + 3600, NOW, "ann@example.org", EXPIRES)
VECTORS = json.loads((Path(__file__).parent / "data" / "envelope-v1.json").read_text("utf-8"))
QUICK = settings(deadline=None)

MODES: dict[str, Any] = {
    "signed": {},
    "compressed": {"compress": True},
    "encrypted": {"encrypt": True},
    "both": {"encrypt": True, "compress": True},
}
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def refusal(envelope: Envelope, sealed: bytes, context: bytes = b"") -> str:
    """Why *envelope* refuses to open *sealed*; it is an error if it does not."""
    with pytest.raises(Refused) as caught:
        envelope.open(sealed, context)
    return caught.value.reason


def peak(call: Callable[[], object]) -> int:
    """The most memory, in bytes, that *call* had in use."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def sign(body: bytes, context: bytes = b"") -> bytes:
    """*body* as somebody with the key would seal it."""
    return body + KEYRING.authenticator(PURPOSE).tag(context + body)


# -- there and back -----------------------------------------------------------------------


@every_mode
@given(
    payload=st.one_of(st.binary(max_size=600), st.binary(max_size=9).map(lambda b: b * 150)),
    expires=st.integers(0, 2**32 - 1),
    span=st.one_of(st.just(FORTNIGHT), st.integers(0, 2**33)),
    principal=st.one_of(st.none(), st.text(max_size=200)),
    context=st.binary(max_size=80),
    version=st.integers(0, 2**63),
)
@settings(QUICK, max_examples=60)
def test_round_trip(
    mode: dict[str, Any],
    payload: bytes,
    expires: int,
    span: int,
    principal: str | None,
    context: bytes,
    version: int,
) -> None:
    """Every record comes back as it was sealed, with the version that is put into it."""
    envelope = Envelope(KEYRING, PURPOSE, **mode)
    record = Record(payload, float(expires), float(expires - span), principal, 99)
    opened = envelope.open(envelope.seal(record, context), context, version)
    assert opened == record._replace(version=version)
    assert type(opened.expires) is type(opened.created) is float


@every_mode
def test_fractions_of_a_second_are_cut(mode: dict[str, Any]) -> None:
    """Times are kept in whole seconds, as the contract of a record says."""
    envelope = Envelope(KEYRING, PURPOSE, **mode)
    opened = envelope.open(envelope.seal(Record(b"", NOW + 9.9, NOW + 0.9)))
    assert (opened.expires, opened.created) == (NOW + 9, NOW)


@every_mode
def test_a_record_that_began_after_its_end(mode: dict[str, Any]) -> None:
    """A record whose times come from two clocks that differ is sealed all the same."""
    envelope = Envelope(KEYRING, PURPOSE, **mode)
    opened = envelope.open(envelope.seal(Record(b"x", NOW, NOW + 200)))
    assert opened.expires == NOW
    assert opened.created <= NOW + 200


@every_mode
def test_either_way_of_sealing_is_opened(mode: dict[str, Any]) -> None:
    """Servers of one site may differ in encryption and compression while a setting changes."""
    record = RECORD._replace(payload=b"some text, " * 50)
    sealed = Envelope(KEYRING, PURPOSE, **mode).seal(record)
    for other in MODES.values():
        assert Envelope(KEYRING, PURPOSE, **other).open(sealed) == record


def test_threads_share_an_envelope() -> None:
    """Threads that share one envelope never mix up their records."""
    envelopes = [Envelope(KEYRING, PURPOSE, **mode) for mode in MODES.values()]

    def work(number: int) -> None:
        record = Record(b"text of %d, " % number * 60, NOW + number, NOW, None, int(NOW) + number)
        for _ in range(50):
            for envelope in envelopes:
                assert envelope.open(envelope.seal(record)) == record

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


# -- what was touched ---------------------------------------------------------------------


@every_mode
def test_every_flipped_bit_is_forged(mode: dict[str, Any]) -> None:
    """Any one bit changed makes a record forged, and never one that is parsed."""
    envelope = Envelope(KEYRING, PURPOSE, **mode)
    sealed = envelope.seal(RECORD._replace(payload=b"abc " * 70), CONTEXT)
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        # The high half of the first byte is the version: another one is no format at all.
        expected = "malformed" if bit in (4, 5, 6, 7) else "forged"
        assert refusal(envelope, bytes(changed), CONTEXT) == expected


@every_mode
def test_every_truncation_is_refused(mode: dict[str, Any]) -> None:
    """A record cut short at either end, or followed by more, is refused."""
    envelope = Envelope(KEYRING, PURPOSE, **mode)
    sealed = envelope.seal(RECORD, CONTEXT)
    pieces = [sealed[:end] for end in range(len(sealed))]
    pieces += [sealed[start:] for start in range(1, len(sealed))]
    pieces += [sealed + b"\0", b"\0" + sealed, sealed * 2]
    for piece in pieces:
        assert refusal(envelope, piece, CONTEXT) in ("malformed", "forged")


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x10", b"\x1f", b"\x20"]))
@QUICK
def test_hostile_bytes(data: bytes, start: bytes) -> None:
    """Arbitrary bytes are refused, never another exception."""
    for mode in MODES.values():
        assert refusal(Envelope(KEYRING, PURPOSE, **mode), start + data)


@every_mode
def test_no_other_algorithm(mode: dict[str, Any]) -> None:
    """No first byte but its own opens a record: there is no downgrade and no "none"."""
    envelope = Envelope(KEYRING, PURPOSE, **mode)
    sealed = envelope.seal(RECORD)
    for first in set(range(256)) - {sealed[0]}:
        refusal(envelope, bytes((first,)) + sealed[1:])
    body = Envelope(KEYRING, PURPOSE).seal(RECORD)[:-16]
    for unsigned in (body, body + bytes(16), b"\x00" + body[1:], b"\x00" + body[1:] + bytes(16)):
        refusal(envelope, unsigned)


@every_mode
def test_another_purpose_context_or_key_is_forged(mode: dict[str, Any]) -> None:
    """A record of another purpose, storage key or site is refused."""
    sealed = Envelope(KEYRING, PURPOSE, **mode).seal(RECORD, CONTEXT)
    other = Keyring("only for tests, only for tests, 2")
    strangers = [
        (Envelope(KEYRING, "cookie:other", **mode), CONTEXT),
        (Envelope(KEYRING, "record:", **mode), CONTEXT),
        (Envelope(other, PURPOSE, **mode), CONTEXT),
        (Envelope(KEYRING, PURPOSE, **mode), b"app:0124"),
        (Envelope(KEYRING, PURPOSE, **mode), b""),
        (Envelope(KEYRING, PURPOSE, **mode), CONTEXT + sealed[:1]),
    ]
    for envelope, context in strangers:
        assert refusal(envelope, sealed, context) == "forged"


def test_cookies_and_records_of_one_site_differ() -> None:
    """What is sealed for a cookie, another cookie, or the tiers, passes for no other of them."""
    options = [StoreOptions(KEYRING, "id"), StoreOptions(KEYRING, "other", prefix="app:")]
    envelopes = [e for o in options for e in (o.cookie_envelope, o.record_envelope)]
    for envelope in envelopes:
        sealed = envelope.seal(RECORD)
        assert envelope.open(sealed) == RECORD
        for other in envelopes:
            assert other is envelope or refusal(other, sealed) == "forged"


def test_nothing_is_inflated_before_the_tag_is_verified() -> None:
    """A compressed record with a wrong tag is refused without the memory it would inflate to."""
    envelope = Envelope(KEYRING, PURPOSE, compress=True)
    sealed = envelope.seal(RECORD._replace(payload=bytes(200_000)))
    forged = sealed[:-1] + bytes((sealed[-1] ^ 1,))

    assert peak(lambda: envelope.open(sealed)) > 200_000
    assert peak(lambda: refusal(envelope, forged)) < 100_000


# -- what somebody with a key may do ------------------------------------------------------


def _deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -12)
    return deflater.compress(data) + deflater.flush()


TIMES = int(NOW).to_bytes(4, "big")
MALFORMED = {
    "no times": b"\x11",
    "a span without an end": b"\x11" + TIMES + b"\x80",
    "a long span without an end": b"\x11" + TIMES + b"\xff" * 4000,
    "a span beyond all time": b"\x11" + TIMES + b"\xff" * 4000 + b"\x01",
    "a principal that is no text": b"\x12" + TIMES + b"\x02\xff\xfe",
    "a principal without a length": b"\x12" + TIMES,
    "no deflate stream": b"\x14" + TIMES + b"\xff\xff\xff",
    "a deflate stream cut short": b"\x14" + TIMES + _deflate(b"abc" * 99)[:-2],
    "an empty deflate stream": b"\x14" + TIMES,
    "an inflate bomb": b"\x14" + TIMES + _deflate(bytes(50_000_000)),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_authentic_nonsense_is_malformed(body: bytes) -> None:
    """Nonsense under a valid tag is malformed, in bounded memory; under another, forged."""
    envelope = Envelope(KEYRING, PURPOSE)
    reasons = []
    assert peak(lambda: reasons.append(refusal(envelope, sign(body)))) < 2_000_000
    assert reasons == ["malformed"]
    assert refusal(envelope, sign(body)[:-1] + b"\0") == "forged"


def test_encrypted_nonsense_is_malformed() -> None:
    """An encrypted body without a record in it is malformed."""
    envelope = Envelope(KEYRING, PURPOSE, encrypt=True)
    nonce = bytes(12)
    for body in (b"", b"\0" * 32, b"\x80", b"\x11\x80"):
        sealed = b"\x20" + nonce + KEYRING.cipher(PURPOSE).encrypt(nonce, body, b"\x20")
        assert refusal(envelope, sealed) == "malformed"


# -- keys ---------------------------------------------------------------------------------


@every_mode
def test_a_ring_of_three_keys(mode: dict[str, Any]) -> None:
    """The first of three keys seals and all open; a removed key takes its records with it."""
    one, two, three = (f"only for tests, only for tests, {number}" for number in "123")
    sealed = {
        key: Envelope(Keyring(key), PURPOSE, **mode).seal(RECORD) for key in (one, two, three)
    }
    ring = Envelope(Keyring(one, [two, three]), PURPOSE, **mode)
    assert all(ring.open(old) == RECORD for old in sealed.values())

    again = ring.seal(ring.open(sealed[three]))
    assert Envelope(Keyring(one), PURPOSE, **mode).open(again) == RECORD
    for key in (two, three):
        assert refusal(Envelope(Keyring(key), PURPOSE, **mode), again) == "forged"

    shorter = Envelope(Keyring(one, [three]), PURPOSE, **mode)
    assert refusal(shorter, sealed[two]) == "forged"
    assert shorter.open(sealed[one]) == shorter.open(sealed[three]) == RECORD


@every_mode
def test_a_new_key_is_rolled_out_in_two_steps(mode: dict[str, Any]) -> None:
    """A key that all nodes open before any seals with it never costs a session."""
    old, new = "only for tests, only for tests, 1", "only for tests, only for tests, 2"
    before, readable, after = (
        Envelope(Keyring(first, fallbacks), PURPOSE, **mode)
        for first, fallbacks in [(old, []), (old, [new]), (new, [old])]
    )
    for pair in [(before, readable), (readable, after)]:
        for one, other in [pair, pair[::-1]]:
            assert other.open(one.seal(RECORD)) == RECORD


# -- encryption ---------------------------------------------------------------------------


def test_encryption_differs_each_time() -> None:
    """The same record is never sealed to the same bytes twice, nor under the same nonce."""
    envelope = Envelope(KEYRING, PURPOSE, encrypt=True)
    sealed = [envelope.seal(RECORD) for _ in range(1000)]
    assert len({s[1:13] for s in sealed}) == 1000
    assert len({s[13:] for s in sealed}) == 1000


def test_encryption_shows_nothing() -> None:
    """An encrypted record shows neither data, nor principal, nor times."""
    record = RECORD._replace(payload=b"correct horse battery staple " * 20)
    sealed = Envelope(KEYRING, PURPOSE, encrypt=True).seal(record)
    for secret in (b"horse", b"ann@", int(RECORD.expires).to_bytes(4, "big")):
        assert secret not in sealed
        assert secret in Envelope(KEYRING, PURPOSE).seal(record)
    assert sealed[0] == 0x20


def test_encryption_hides_the_length() -> None:
    """The length of an encrypted record tells that of its data to 32 bytes at best."""
    envelope = Envelope(KEYRING, PURPOSE, encrypt=True)
    sizes = [len(envelope.seal(Record(bytes(n), NOW, NOW - FORTNIGHT))) for n in range(200)]
    assert {size % 32 for size in sizes} == {(1 + 12 + 16) % 32}
    assert all(sizes.count(size) == 32 for size in sorted(set(sizes))[1:-1])


@pytest.mark.parametrize("end", [b"", b"\0", b"\x80", b"\x80\0\0", b"\0" * 64], ids=repr)
def test_padding_does_not_eat_data(end: bytes) -> None:
    """Data that looks like padding survives encryption."""
    envelope = Envelope(KEYRING, PURPOSE, encrypt=True)
    for size in range(40):
        record = Record(bytes(size) + end, NOW, NOW - FORTNIGHT, None, int(NOW))
        assert envelope.open(envelope.seal(record)) == record


def test_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, encrypting says how to install it, and encrypted records are refused."""
    sealed = Envelope(KEYRING, PURPOSE, encrypt=True).seal(RECORD)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "tieredsession\[encrypt\]"'):
        Envelope(KEYRING, PURPOSE, encrypt=True)
    signing = Envelope(KEYRING, PURPOSE)
    assert signing.open(signing.seal(RECORD)) == RECORD
    assert refusal(signing, sealed) == "malformed"


# -- size ---------------------------------------------------------------------------------


def test_a_counter_makes_a_small_cookie() -> None:
    """The cookie of a fresh counter page, with the default settings, is 39 characters."""
    payload = MsgpackCodec().encode({"count": 1})
    envelope = Envelope(KEYRING, "cookie:__Host-id", compress=True)
    sealed = envelope.seal(Record(payload, NOW + FORTNIGHT, NOW))
    assert len(encode_base64(sealed)) == 39
    assert len(sealed) == len(payload) + 21


def test_compression_is_for_what_gets_shorter() -> None:
    """A payload is deflated when it is 256 bytes or more and gets shorter, and not else."""
    plain, packing = Envelope(KEYRING, PURPOSE), Envelope(KEYRING, PURPOSE, compress=True)

    def sizes(payload: bytes) -> tuple[int, int]:
        record = Record(payload, NOW, NOW - FORTNIGHT)
        return len(packing.seal(record)), len(plain.seal(record))

    packed, unpacked = sizes(b"user_id csrf_token " * 20)
    assert packed < unpacked / 4
    noise = Keyring(SECRET).authenticator("noise", 32)
    random = b"".join(noise.tag(bytes((n,))) for n in range(32))
    for payload in (random, b"a" * 255, bytes(2**18 + 1)):
        packed, unpacked = sizes(payload)
        assert packed == unpacked
    packed, unpacked = sizes(bytes(2**18))
    assert packed < unpacked


# -- vectors: what an earlier release sealed is opened for ever ----------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    """The stored bytes of format 1 open to the same record, and are still what is sealed."""
    keyring = Keyring(vector["secret"])
    context, sealed = vector["context"].encode(), bytes.fromhex(vector["sealed"])
    record = Record(
        bytes.fromhex(vector["payload"]),
        float(vector["expires"]),
        float(vector["created"]),
        vector["principal"],
        vector["expires"],
    )
    opened = Envelope(keyring, vector["purpose"]).open(sealed, context)
    assert opened == record
    assert MsgpackCodec().decode(opened.payload) == vector["data"]
    envelope = Envelope(
        keyring,
        vector["purpose"],
        encrypt="nonce" in vector,
        random=lambda size: bytes.fromhex(vector["nonce"])[:size],
    )
    if not vector["deflated"]:  # those bytes depend on the release of zlib
        assert envelope.seal(record, context).hex() == vector["sealed"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_site_opens_the_vectors(vector: dict[str, Any]) -> None:
    """The purposes of a site's settings are part of the format: they open what they sealed."""
    kind, _, rest = vector["purpose"].partition(":")
    cookie_name, _, prefix = rest.partition(":") if kind == "cookie" else ("id", "", rest)
    options = StoreOptions(Keyring(vector["secret"]), cookie_name, prefix=prefix)
    envelope = options.cookie_envelope if kind == "cookie" else options.record_envelope
    opened = envelope.open(bytes.fromhex(vector["sealed"]), vector["context"].encode())
    assert opened.payload.hex() == vector["payload"]


def test_vectors_of_cookies() -> None:
    """The token of a cookie is its sealed bytes in base64url, then as now."""
    tokens = {v["name"]: v["token"] for v in VECTORS if "token" in v}
    assert tokens
    for vector in VECTORS:
        if "token" in vector:
            assert decode_base64(vector["token"]) == bytes.fromhex(vector["sealed"])
