"""The codec: what goes in comes out equal and of the same type, and nothing else goes in."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import io
import json
import pickle
import random
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tieredsession.codec import MAX_BYTES, MAX_EXTENSION_DEPTH, MsgpackCodec, OwnType
from tieredsession.errors import DecodeError, UnstorableError

CODEC = MsgpackCodec()
TABLES = MsgpackCodec(tables=True)
VECTORS = json.loads((Path(__file__).parent / "data" / "codec-v1.json").read_text("utf-8"))
BERLIN = ZoneInfo("Europe/Berlin")
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def exact(value: Any) -> Any:
    """*value* with every type and order in it made visible, for comparing."""
    kind = type(value)
    if kind is dict:
        return kind, [(exact(key), exact(part)) for key, part in value.items()]
    if kind in (list, tuple):
        return kind, tuple(exact(part) for part in value)
    if kind in (set, frozenset):
        return kind, frozenset(exact(part) for part in value)
    return kind, repr(value)


def round_trip(value: Any, codec: MsgpackCodec = CODEC) -> Any:
    return codec.decode(codec.encode({"v": value}))["v"]


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


# An offset that never changes has no hour twice, so there a fold says nothing.
offsets = st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(dt.timezone)
fixed = st.one_of(st.just(dt.timezone.utc), offsets)
zones = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]
).map(ZoneInfo)
leaves: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**2000), 2**2000),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.datetimes(),
    st.datetimes(timezones=fixed).map(lambda value: value.replace(fold=0)),
    st.datetimes(timezones=zones),
    st.dates(),
    st.times(timezones=st.one_of(st.none(), fixed)).map(lambda value: value.replace(fold=0)),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.complex_numbers(allow_nan=False),
)
hashables: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda part: st.one_of(st.frozensets(part, max_size=3), st.lists(part, max_size=3).map(tuple)),
    max_leaves=3,
)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(hashables, st.sets(hashables, max_size=3)),
    lambda part: st.one_of(
        st.lists(part, max_size=3),
        st.lists(part, max_size=3).map(tuple),
        st.dictionaries(hashables, part, max_size=3),
    ),
    max_leaves=5,
)
sessions = st.dictionaries(st.text(max_size=9), values, max_size=2)


# -- what goes in comes out ---------------------------------------------------------------


@given(sessions)
@settings(QUICK, max_examples=150)
def test_round_trip(data: dict[str, Any]) -> None:
    """Any nesting of the supported types comes back equal, of the same types and in order."""
    for codec in (CODEC, TABLES):
        back = codec.decode(codec.encode(data))
        assert back == data
        assert exact(back) == exact(data)


@pytest.mark.parametrize(
    "value",
    [
        0,
        2**63 - 1,
        2**63,
        2**64 - 1,
        2**64,
        -(2**63),
        -(2**63) - 1,
        10**3000,
        float("inf"),
        -0.0,
        float("nan"),
        5e-324,
        complex(float("nan"), -0.0),
        Decimal("NaN"),
        Decimal("sNaN7"),
        Decimal("-Infinity"),
        Decimal("1.10"),
        Decimal("-0E-7"),
        Decimal("1E+999999"),
        "",
        "\x00",
        "\N{ROCKET}\u0301",
        b"",
        dt.date.min,
        dt.date.max,
        dt.datetime.min,
        dt.datetime.max,
        dt.datetime.min.replace(tzinfo=dt.timezone.utc),
        dt.datetime.max.replace(tzinfo=dt.timezone.utc),
        dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=14))),
        dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=14))),
        dt.datetime.min.replace(tzinfo=BERLIN),
        dt.datetime.max.replace(tzinfo=ZoneInfo("America/New_York")),
        dt.datetime(1883, 11, 18, tzinfo=dt.timezone(dt.timedelta(seconds=-17762, microseconds=3))),
        dt.datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN),
        dt.datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN, fold=1),
        dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN),
        dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
        dt.datetime(2026, 10, 25, 2, 30),
        dt.datetime(2026, 10, 25, 2, 30, fold=1),
        dt.datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")),
        dt.time.min,
        dt.time.max,
        dt.time(23, 59, tzinfo=dt.timezone(dt.timedelta(hours=-3, seconds=1))),
        dt.timedelta.min,
        dt.timedelta.max,
        dt.timedelta(microseconds=-1),
        uuid.UUID(int=0),
        uuid.UUID(int=2**128 - 1),
        (),
        set(),
        frozenset(),
        [[], {}, ((),), {frozenset({frozenset()})}],
        {None: 1, False: 2, 2: 3, 2.5: 4, "k": 5, b"k": 6, (1, (2,)): 7, frozenset({3}): 8},
        {dt.date(2026, 1, 2): 1, Decimal("2.50"): 2, uuid.UUID(int=3): 3, 4j: 4, 2**80: 5},
    ],
    ids=lambda value: repr(value)[:40],
)
def test_edges(value: Any) -> None:
    """The ends of every type's range, and the strange values within, come back as they were."""
    assert exact(round_trip(value)) == exact(value)


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize("zone", [None, BERLIN], ids=["naive", "zone"])
def test_the_hour_that_happens_twice(zone: ZoneInfo | None, fold: int) -> None:
    """A time in the hour that a zone has twice stays the same instant."""
    value = dt.datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=fold)
    assert round_trip(value).fold == fold
    assert round_trip(value).timestamp() == value.timestamp()


@pytest.mark.parametrize("key", ["Europe/Berlin", "UTC", "Etc/GMT+5", "Asia/Kathmandu"])
def test_a_zone_keeps_its_rules(key: str) -> None:
    """A time in a named zone comes back in that zone, so next summer's offset is right."""
    back = round_trip(dt.datetime(2026, 1, 15, 12, tzinfo=ZoneInfo(key)))
    assert back.tzinfo is ZoneInfo(key)


class _FarZone(dt.tzinfo):
    """A zone as other libraries have them: no ZoneInfo and no fixed timezone."""

    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=5, minutes=45)

    def dst(self, moment: dt.datetime | None) -> None:
        return None

    def tzname(self, moment: dt.datetime | None) -> str:
        return "far"


def test_other_zones_become_their_offset() -> None:
    """A time in another library's zone comes back as the same instant at its offset."""
    value = dt.datetime(2026, 1, 15, 12, tzinfo=_FarZone())
    back = round_trip(value)
    assert back == value
    assert back.tzinfo == dt.timezone(dt.timedelta(hours=5, minutes=45))


def test_a_zone_without_a_name_becomes_its_offset() -> None:
    """A time in a zone that was read from a file comes back as the same instant."""
    counts = struct.pack(">6l", 0, 0, 0, 0, 1, 4)  # one type of four letters, no transitions
    file = b"TZif" + bytes(16) + counts + struct.pack(">lbb", 5400, 0, 0) + b"XST\0"
    value = dt.datetime(2026, 1, 15, 12, tzinfo=ZoneInfo.from_file(io.BytesIO(file)))
    back = round_trip(value)
    assert back == value
    assert back.tzinfo == dt.timezone(dt.timedelta(hours=1, minutes=30))


@pytest.mark.parametrize(
    "value", [bytearray(b"\x00ab"), memoryview(b"\x00ab")], ids=["array", "view"]
)
def test_other_bytes_become_bytes(value: Any) -> None:
    """A bytearray and a memoryview come back as bytes, as documented."""
    assert exact(round_trip([value])) == exact([b"\x00ab"])


@given(st.lists(hashables, max_size=6, unique=True), st.randoms(use_true_random=False))
@QUICK
def test_equal_sets_are_equal_bytes(items: list[Any], order: random.Random) -> None:
    """Equal sets give equal bytes, in whatever order they were filled."""
    shuffled = items[:]
    order.shuffle(shuffled)
    for make in (set, frozenset):
        one, other = {"s": [make(items)]}, {"s": [make(shuffled)]}
        assert CODEC.encode(one) == CODEC.encode(other)


@given(sessions)
@QUICK
def test_encoding_is_stable(data: dict[str, Any]) -> None:
    """What was decoded encodes to the same bytes, so an untouched session is not written."""
    payload = CODEC.encode(data)
    assert CODEC.encode(CODEC.decode(payload)) == payload
    assert MsgpackCodec(pickle=True).encode(data) == payload


# -- vectors: what an earlier release wrote is read for ever -------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    """The stored bytes of format 1 decode to the same value, and are still what is written."""
    codec = MsgpackCodec(tables=vector["tables"])
    names = {"datetime": dt, "Decimal": Decimal, "UUID": uuid.UUID, "ZoneInfo": ZoneInfo}
    value = eval(vector["value"], names)
    assert exact(CODEC.decode(bytes.fromhex(vector["hex"]))) == exact({"v": value})
    assert codec.encode({"v": value}).hex() == vector["hex"]


def test_vectors_cover_the_format() -> None:
    """There is a vector for every extension code of format 1 that needs no pickle."""
    codes = set()

    def note(code: int, data: bytes) -> bytes:
        codes.add(code)
        if code in (9, 10, 11, 15, 16):  # these hold other values
            msgpack.unpackb(data, ext_hook=note, strict_map_key=False)
        return data

    for vector in VECTORS:
        msgpack.unpackb(bytes.fromhex(vector["hex"]), ext_hook=note, strict_map_key=False)
    assert codes == {*range(2, 14), 15, 16}  # 1 was given up before there was a release


# -- lists of alike dicts as tables -------------------------------------------------------


floats = st.one_of(
    st.floats(),
    st.decimals(-(10**9), 10**9, places=2).map(float),
    st.decimals(-(10**9), 10**9, places=4).map(float),
    st.sampled_from([0.0, -0.0, 1.5, -2.25, 0.1 + 0.2, 1e300, 2.0**53]),
)
columns = st.one_of(
    st.lists(floats, min_size=6, max_size=6),
    st.lists(st.one_of(values, floats), min_size=6, max_size=6),
)
tables = st.dictionaries(st.text(max_size=4), columns, min_size=1, max_size=6).map(
    lambda named: [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]
)


@given(tables, st.integers(0, 6))
@QUICK
def test_tables_round_trip(rows: list[dict[str, Any]], count: int) -> None:
    """Lists of alike dicts come back as they were, written as tables or not, anywhere."""
    data = {"t": rows[:count], "d": {"e": {"t": rows}}, "l": [rows], "s": (rows,)}
    payload = TABLES.encode(data)
    for codec in (TABLES, CODEC):
        back = codec.decode(payload)
        assert exact(back) == exact(data)
        assert TABLES.encode(back) == payload
    assert CODEC.encode(back) == CODEC.encode(data)


@pytest.mark.parametrize(
    "column",
    [
        [1.5, 2.25, 3.0, 19.99],
        [1.5, float("nan"), 2.5, 3.5],
        [float("nan"), 1.5, 2.5, 3.5],
        [1.5, float("inf"), 2.5, float("-inf")],
        [1.5, 0.0, -0.0, 2.5],
        [1.5, True, 1, 2.5],
        [-0.001, 0.001, -0.00001, 0.5],
        [0.1 + 0.2, 1.0, 2.0, 3.0],
        [2.0**53 / 10**4, 1.0, 2.0, 3.0],
        [1e308, 1.0, 2.0, 3.0],
        [5e-324, 1.0, 2.0, 3.0],
    ],
    ids=repr,
)
def test_columns_of_numbers(column: list[Any]) -> None:
    """Prices and stranger numbers in a table come back to the last bit."""
    rows = [{"price": number} for number in column]
    assert exact(round_trip(rows, TABLES)) == exact(rows)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{}] * 5,
        [{"a": 1}] * 3,
        [{"a": 1}] * 4 + [{"b": 1}],
        [{"a": 1}] * 4 + [{"a": 1, "b": 2}],
        [{"a": 1, "b": 2}] * 4 + [{"b": 2, "a": 1}],
        [{"a": 1}] * 4 + [[("a", 1)]],
        [{1: "a"}] * 4,
        [{"a": 1, 1: "a"}] * 4,
        [{"a": {"b": 1}}] * 5,
        [{"a": [{"b": 1.5}] * 5}] * 5,
        [{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}] * 5,
    ],
    ids=lambda rows: repr(rows)[:40],
)
def test_what_is_a_table_and_what_is_not(rows: list[Any]) -> None:
    """Rows of no, few, odd, nested or differing keys come back as they were."""
    assert exact(round_trip(rows, TABLES)) == exact(rows)


def test_tables_are_shorter() -> None:
    """A shopping cart takes less than half as many bytes as a table."""
    cart = [{"sku": f"A{n}", "quantity": n, "price": n + 0.99} for n in range(30)]
    assert len(TABLES.encode({"cart": cart})) < len(CODEC.encode({"cart": cart})) / 2


def test_tables_refuse_the_same_values() -> None:
    """A value that cannot be stored is refused with its path, in a table as elsewhere."""
    rows: list[dict[str, Any]] = [{"a": 1, "b": 2.5} for _ in range(5)]
    rows[3]["b"] = Thing()
    with pytest.raises(UnstorableError, match=r"^session\['t'\]\[3\]\['b'\] is a .*Thing and"):
        TABLES.check("t", rows)
    looped: dict[str, Any] = {}
    looped["self"] = looped
    with pytest.raises(UnstorableError, match=r"nested too deeply"):
        TABLES.check("t", looped)


# -- what is refused ----------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


class Word(str, enum.Enum):
    ONE = "one"


class Flagged(enum.IntFlag):
    ON = 1


class Point(NamedTuple):
    x: int


class Markup(str):
    __slots__ = ()


class Real(float):
    pass


class Blob(bytes):
    pass


class Moment(dt.datetime):
    pass


class Thing:
    pass


class _NoOffset(_FarZone):
    def utcoffset(self, moment: dt.datetime | None) -> None:  # type: ignore[override]  # ill-behaved
        return None


def _generator() -> Iterator[int]:
    yield 1


REFUSED: list[tuple[object, str, str]] = [
    (Colour.RED, r"\w*test_codec\.Colour", "store its parts as plain values"),
    (Number.ONE, r"\w*test_codec\.Number", r"store int\(value\)"),
    (Flagged.ON, r"\w*test_codec\.Flagged", r"store int\(value\)"),
    (Point(1), r"\w*test_codec\.Point", r"store tuple\(value\)"),
    (collections.OrderedDict(a=1), r"collections\.OrderedDict", r"store dict\(value\)"),
    (collections.defaultdict(int), r"collections\.defaultdict", r"store dict\(value\)"),
    (collections.Counter("aa"), r"collections\.Counter", r"store dict\(value\)"),
    (Markup("<b>"), r"\w*test_codec\.Markup", r"store str\(value\)"),
    (time.gmtime(0), r"time\.struct_time", r"store tuple\(value\)"),
    (Word.ONE, r"\w*test_codec\.Word", "store its value"),
    (Real(1), r"\w*test_codec\.Real", r"store float\(value\)"),
    (Blob(b"x"), r"\w*test_codec\.Blob", r"store bytes\(value\)"),
    (Moment(2026, 1, 1), r"\w*test_codec\.Moment", "store"),
    (Thing(), r"\w*test_codec\.Thing", "SESSION_PICKLE = True"),
    (object(), "object", "SESSION_PICKLE = True"),
    (Thing, "type", "SESSION_PICKLE = True"),
    (_generator(), "generator", "SESSION_PICKLE = True"),
    (range(3), "range", "SESSION_PICKLE = True"),
    (collections.deque([1]), r"collections\.deque", "SESSION_PICKLE = True"),
    (Fraction(1, 3), r"fractions\.Fraction", "SESSION_PICKLE = True"),
    (ValueError("x"), "ValueError", "SESSION_PICKLE = True"),
    ("lone \ud800", "str", "lone surrogate"),
    (dt.datetime(2026, 1, 1, tzinfo=_NoOffset()), r"datetime\.datetime", "no fixed offset"),
    (dt.time(12, tzinfo=BERLIN), r"datetime\.time", "no fixed offset"),
]


@pytest.mark.parametrize(
    ("value", "type_name", "advice"), REFUSED, ids=[type(row[0]).__name__ for row in REFUSED]
)
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda v: v, r"session\['a'\]"),
        (lambda v: [0, {"b": v}], r"session\['a'\]\[1\]\['b'\]"),
        (lambda v: ({"b": (0, v)},), r"session\['a'\]\[0\]\['b'\]\[1\]"),
        (lambda v: {"b": [{3: v}]}, r"session\['a'\]\['b'\]\[0\]\[3\]"),
    ],
    ids=["plain", "list", "tuple", "dict"],
)
def test_refusals_name_path_and_type(
    value: object, type_name: str, advice: str, wrap: Callable[[object], object], path: str
) -> None:
    """A value that would not come back the same is refused, with its path, type and the fix."""
    pattern = rf"^{path} is a (\w+\.)*{type_name} and cannot be stored: .*{advice}"
    with pytest.raises(UnstorableError, match=pattern):
        CODEC.check("a", wrap(value))
    with pytest.raises(UnstorableError, match=pattern):
        CODEC.encode({"ok": 1, "a": wrap(value)})


@pytest.mark.parametrize("key", [Markup("k"), Number.ONE, Colour.RED, Point(1), "\ud800"], ids=repr)
def test_refused_keys_are_named(key: object) -> None:
    """A key of a nested dict that would not come back the same is refused as a key."""
    with pytest.raises(
        UnstorableError, match=r"^a key of session\['a'\]\[0\] is a .*: store|holds"
    ):
        CODEC.check("a", [{key: 1}])


def test_what_is_too_far_away_is_still_refused() -> None:
    """A value behind a path too long to print is refused by its type."""
    with pytest.raises(UnstorableError, match=r"^the session cannot be stored: .*Thing"):
        CODEC.check("key" * 1000, [[Thing()]])


def test_a_refused_member_of_a_set_is_named() -> None:
    """A member of a set that cannot be stored is named with the set's path."""
    with pytest.raises(UnstorableError, match=r"session\['a'\]\[\d\] is a .*Point and cannot"):
        CODEC.check("a", {1, Point(2), 3})


@pytest.mark.parametrize("value", ["plain", 1, None, [1]], ids=repr)
def test_a_key_that_no_encoding_can_carry(value: object) -> None:
    """A session key with a lone surrogate is refused when it is assigned, not at the save."""
    with pytest.raises(UnstorableError, match=r"a key of session is a str .* lone surrogate"):
        CODEC.check("\ud800", value)


@pytest.mark.parametrize("make", [dict, list], ids=["dict", "list"])
def test_data_inside_itself_is_refused(make: type) -> None:
    """A container that holds itself is refused for its depth, not for its type."""
    value = make()
    if make is dict:
        value["self"] = value
    else:
        value.append(value)
    with pytest.raises(UnstorableError, match="nested too deeply"):
        CODEC.check("a", value)


def test_data_inside_itself_twice_is_refused_at_once() -> None:
    """A container that holds itself twice is refused without walking every path in it."""
    script = (
        "from tieredsession.codec import MsgpackCodec\n"
        "from tieredsession.errors import UnstorableError\n"
        "value = []\n"
        "value.extend([value, value])\n"
        "try:\n"
        "    MsgpackCodec().check('a', value)\n"
        "except UnstorableError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert "nested too deeply" in done.stdout


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: {"k": v}, lambda v: (v,)], ids=["list", "dict", "tuple"]
)
def test_depth_is_bounded(wrap: Callable[[Any], Any]) -> None:
    """What is too deep to be read back is refused when it is written, and says so."""
    with pytest.raises(UnstorableError, match="nested too deeply"):
        CODEC.check("a", nested(2000, wrap))


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"k": v}], ids=["list", "dict"])
@pytest.mark.parametrize("depth", [1, 100, 500, 509, 510, 511, 512, 1021, 1022, 1023, 1024])
def test_what_is_written_can_be_read(depth: int, wrap: Callable[[Any], Any]) -> None:
    """At every depth, data is either refused at once or comes back."""
    data = {"a": nested(depth, wrap)}
    try:
        payload = CODEC.encode(data)
    except UnstorableError:
        assert depth > 100
        return
    assert CODEC.encode(CODEC.decode(payload)) == payload


def test_depth_of_sets_and_tuples() -> None:
    """Sets and tuples nest to the depth that is documented, and no further."""
    good = nested(MAX_EXTENSION_DEPTH, lambda v: (v,))
    assert round_trip(good) == good
    with pytest.raises(UnstorableError, match="nested too deeply"):
        CODEC.check("a", (good,))
    mixed = nested(MAX_EXTENSION_DEPTH // 2, lambda v: frozenset({(v,)}))
    assert round_trip(mixed) == mixed
    with pytest.raises(UnstorableError, match="nested too deeply"):
        CODEC.check("a", {mixed})


def test_size_is_bounded() -> None:
    """A session of a mebibyte is kept and a byte more is refused, with both sizes named."""
    overhead = len(CODEC.encode({"a": bytes(MAX_BYTES - 100)})) - (MAX_BYTES - 100)
    payload = CODEC.encode({"a": bytes(MAX_BYTES - overhead)})
    assert len(payload) == MAX_BYTES
    assert len(CODEC.decode(payload)["a"]) == MAX_BYTES - overhead
    with pytest.raises(
        UnstorableError, match=f"takes {MAX_BYTES + 1} bytes and may take {MAX_BYTES}"
    ):
        CODEC.encode({"a": bytes(MAX_BYTES - overhead + 1)})
    with pytest.raises(DecodeError, match=f"{MAX_BYTES + 1} bytes"):
        CODEC.decode(payload + b"\0")


def test_a_refusal_leaves_no_trace() -> None:
    """After a value was refused half-way, the codec writes the next one as before."""
    good = {"a": [1, {2, 3}, (4,)]}
    payload = CODEC.encode(good)
    for bad in ([1, 2, Thing()], {"x": {"y": "\ud800"}}, (1, Thing()), nested(2000, lambda v: [v])):
        with pytest.raises(UnstorableError):
            CODEC.check("a", bad)
        assert CODEC.encode(good) == payload


# -- bytes that are not a session ------------------------------------------------------------


def decodes_or_refuses(payload: bytes, codec: MsgpackCodec = CODEC) -> bool:
    """Whether *payload* is a session; anything but a dict or a DecodeError escapes."""
    try:
        data = codec.decode(payload)
    except DecodeError:
        return False
    assert type(data) is dict
    assert all(type(key) is str for key in data)
    return True


@given(st.binary(max_size=64))
@settings(QUICK, max_examples=300)
def test_hostile_bytes(payload: bytes) -> None:
    """Arbitrary bytes are a session or a DecodeError, never another exception."""
    decodes_or_refuses(payload)
    decodes_or_refuses(b"\x81\xa1v" + payload)


@given(st.integers(-128, 127), st.binary(max_size=64))
@settings(QUICK, max_examples=300)
def test_hostile_extensions(code: int, body: bytes) -> None:
    """An extension of any code with any body is a value or a DecodeError."""
    decodes_or_refuses(b"\x81\xa1v\xc7" + bytes((len(body), code % 256)) + body)


@given(sessions, st.data())
@QUICK
def test_changed_bytes(data: dict[str, Any], choice: st.DataObject) -> None:
    """A valid payload with any one byte changed is a session or a DecodeError."""
    payload = bytearray(CODEC.encode(data))
    payload[choice.draw(st.integers(0, len(payload) - 1))] = choice.draw(st.integers(0, 255))
    decodes_or_refuses(bytes(payload))


@given(sessions)
@QUICK
def test_truncated_bytes(data: dict[str, Any]) -> None:
    """A payload cut short or followed by more is never a session."""
    payload = CODEC.encode(data)
    assert not decodes_or_refuses(payload + b"\xc0")
    for end in range(min(len(payload), 200)):
        assert not decodes_or_refuses(payload[:end])


def extension(code: int, body: bytes) -> bytes:
    return b"\xc8" + len(body).to_bytes(2, "big") + bytes((code,)) + body


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x90",
        b"\x81\x01\x02",
        b"\x81\xc4\x01a\x02",
        b"\x81\x90\x02",
        b"\x81\xa1v\xdd\xff\xff\xff\xff",
        b"\x81\xa1v\xc6\xff\xff\xff\xff",
        b"\x81\xa1v\xdf\xff\xff\xff\xff",
        b"\x81\xa1v" + b"\x91" * 5000 + b"\xc0",
        b"\x81\xa1v\xa2\xff\xfe",
        b"\x81\xa1v" + extension(1, b"\x7f" * 40),
        b"\x81\xa1v" + extension(2, b"\x7f" * 40),
        b"\x81\xa1v" + extension(255, bytes(4) + b"\x7f" * 8),
        b"\x81\xa1v" + extension(255, b"\x00" * 5),
        b"\x81\xa1v" + extension(3, b"\x93\x00\xa9../passwd\x00"),
        b"\x81\xa1v" + extension(3, b"\x93\x00\xabNo/Such/One\x00"),
        b"\x81\xa1v" + extension(3, b"\x93\x00\xa3UTC\x02"),
        b"\x81\xa1v" + extension(4, b"\x00"),
        b"\x81\xa1v" + extension(5, b"noon"),
        b"\x81\xa1v" + extension(7, b"1E+9999999999999999999999"),
        b"\x81\xa1v" + extension(8, b"short"),
        b"\x81\xa1v" + extension(9, b"\x91\x90"),
        b"\x81\xa1v" + extension(12, b"short"),
        b"\x81\xa1v" + extension(15, b""),
        b"\x81\xa1v" + extension(15, b"\x90"),
        b"\x81\xa1v" + extension(15, b"\x91\x91\xa1a"),
        b"\x81\xa1v" + extension(15, b"\x92\x91\xa1a\x01"),
        b"\x81\xa1v" + extension(15, b"\x92\x91\x90\x91\x01"),
        b"\x81\xa1v" + extension(15, b"\x93\x92\xa1a\xa1b\x91\x01\x92\x01\x02"),
        b"\x81\xa1v" + extension(16, b""),
        b"\x81\xa1v" + extension(16, b"\x90"),
        b"\x81\xa1v" + extension(16, b"\x92\x02\xa1x"),
        b"\x81\xa1v" + extension(16, b"\x92\xff\x01"),
        b"\x81\xa1v" + extension(16, b"\x92\xce\x01\x00\x00\x00\x01"),
        b"\x81\xa1v" + extension(99, b"x"),
    ],
    ids=lambda payload: payload[:20].hex(),
)
def test_known_hostile_bytes(payload: bytes) -> None:
    """Lies about lengths, keys, zones, numbers and depth are refused and cost nothing."""
    assert not decodes_or_refuses(payload)


def test_the_depth_of_extensions_is_bounded_in_decoding() -> None:
    """Tuples inside one another are refused beyond the depth that can be written."""
    inner = b"\x91\x01"
    for _ in range(MAX_EXTENSION_DEPTH):
        inner = b"\x91" + extension(11, inner)
    with pytest.raises(DecodeError):
        CODEC.decode(b"\x81\xa1v" + extension(11, inner))


def test_errors_show_no_data() -> None:
    """The error of damaged bytes tells nothing of what is in them."""
    payload = CODEC.encode({"password": "correct horse"})[:-2]
    with pytest.raises(DecodeError) as caught:
        CODEC.decode(payload)
    assert "horse" not in str(caught.value)
    assert caught.value.__suppress_context__


# -- pickle -----------------------------------------------------------------------------------


PICKLED = MsgpackCodec(pickle=True)


@pytest.mark.parametrize(
    "value",
    [
        Fraction(1, 3),
        collections.OrderedDict(b=1, a=2),
        collections.deque([1, 2], 3),
        range(3),
        [{"k": (Fraction(1, 2), {Fraction(2, 3)})}],
    ],
    ids=lambda value: type(value).__name__,
)
def test_pickle_keeps_other_types(value: object) -> None:
    """With pickle on, other types come back equal and of the same type, nested too."""
    PICKLED.check("v", value)
    assert exact(round_trip(value, PICKLED)) == exact(value)


def test_pickle_is_off_by_default() -> None:
    """What was pickled is not opened by a codec with pickle off."""
    payload = PICKLED.encode({"v": Fraction(1, 3)})
    with pytest.raises(DecodeError):
        CODEC.decode(payload)
    assert PICKLED.decode(payload) == {"v": Fraction(1, 3)}


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (lambda: 0, "function"),
        (threading.Lock(), "lock"),
        (_generator(), "generator"),
        (sys, "module"),
    ],
    ids=["lambda", "lock", "generator", "module"],
)
def test_pickle_refuses_what_it_cannot_keep(value: object, type_name: str) -> None:
    """With pickle on, what no pickle can keep is refused by path and type, without the advice."""
    pattern = rf"^session\['a'\]\[1\] is a (\w+\.)?{type_name} and cannot be stored"
    with pytest.raises(UnstorableError, match=pattern) as caught:
        PICKLED.check("a", [0, value])
    assert "SESSION_PICKLE" not in str(caught.value)


def test_damaged_pickles() -> None:
    """A pickle that does not load is a DecodeError, wherever it was cut."""
    payload = pickle.dumps(Fraction(1, 3), 4)
    assert decodes_or_refuses(b"\x81\xa1v" + extension(14, payload), PICKLED)
    for end in range(len(payload)):
        assert not decodes_or_refuses(b"\x81\xa1v" + extension(14, payload[:end]), PICKLED)
    missing = payload.replace(b"Fraction", b"Friction")
    assert not decodes_or_refuses(b"\x81\xa1v" + extension(14, missing), PICKLED)


# -- threads ----------------------------------------------------------------------------------


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Threads that take turns far more often than usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless_threads")
def test_threads_share_a_codec() -> None:
    """Threads that share one codec never mix up their sessions."""
    codec = MsgpackCodec()
    start = threading.Barrier(12)

    def work(number: int) -> None:
        name = f"thread {number} "
        data: dict[str, Any] = {
            "a": [{name * 3, name}, (number, (name, frozenset({number})))],
            "b": {number: name},
        }
        payload = codec.encode(data)
        start.wait(30)
        for turn in range(150):
            data["b"][turn % 7] = dt.date.fromordinal(number * 1000 + turn + 1)
            assert codec.decode(codec.encode(data)) == data
            with pytest.raises(UnstorableError, match=r"session\['b'\]\['bad'\]"):
                codec.encode({**data, "b": {"bad": Thing()}})
        data["b"] = {number: name}
        assert codec.encode(data) == payload

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))


# -- types of a framework -------------------------------------------------------------


class Shout(str):
    """A framework's own kind of text."""

    __slots__ = ()


class Louder(Shout):
    """A kind of that kind."""

    __slots__ = ()


OWN = MsgpackCodec(own_types=[OwnType(100, Shout, Shout.encode, lambda data: Shout(data.decode()))])


def test_an_own_type_comes_back() -> None:
    """A type that the codec was given comes back as what it was, at any depth."""
    value = [Shout("a"), {"b": (Shout("é"), "c")}, {Shout("d")}]
    assert exact(round_trip(value, OWN)) == exact(value)


def test_an_own_type_is_that_type_alone() -> None:
    """A subclass of a type that the codec was given is refused as any other."""
    with pytest.raises(UnstorableError, match=r"session\['v'\] is a .*Louder"):
        OWN.check("v", Louder("a"))


def test_an_own_type_is_unknown_elsewhere() -> None:
    """To a codec without the type, what has such a value in it is no session."""
    payload = OWN.encode({"v": Shout("a")})
    with pytest.raises(DecodeError):
        CODEC.decode(payload)
    with pytest.raises(UnstorableError):
        CODEC.encode({"v": Shout("a")})


def test_an_own_type_goes_before_pickle() -> None:
    """A type that the codec was given is not pickled where others are."""
    both = MsgpackCodec(pickle=True, own_types=[OwnType(100, Shout, Shout.encode, Shout)])
    assert both.encode({"v": Shout("a")}) == OWN.encode({"v": Shout("a")})


# -- values of subclasses --------------------------------------------------------------


class Huge(int):
    pass


class Items(list[Any]):
    pass


class Shown(dict[str, Any]):
    """A dict whose methods show the last of several values, as web frameworks have it."""

    def items(self) -> Any:
        return {key: values[-1] for key, values in super().items()}.items()


OF_JSON = MsgpackCodec(subclasses=True, tables=True)

MADE_OF: dict[str, tuple[object, object]] = {
    "a string": (Word.ONE, "one"),
    "markup": (Markup("<b>"), "<b>"),
    "an integer": (Number.ONE, 1),
    "a big integer": (Huge(1 << 70), 1 << 70),
    "a float": (Real(-0.0), -0.0),
    "a dict": (collections.OrderedDict(a=collections.OrderedDict(b=Word.ONE)), {"a": {"b": "one"}}),
    "a dict with another look": (Shown({"a": [1, 2]}), {"a": 2}),
    "a list": (Items([Word.ONE, 2]), ["one", 2]),
    "a tuple": (Point(1), (1,)),
    "a key": ({Word.ONE: 1, Point(1): 2}, {"one": 1, (1,): 2}),
    "members of a set": ({Word.ONE, Point(1)}, {"one", (1,)}),
    "a list of rows": (
        [collections.OrderedDict(a=n, b="text") for n in range(50)],
        [{"a": n, "b": "text"} for n in range(50)],
    ),
}


@pytest.mark.parametrize(("value", "plain"), MADE_OF.values(), ids=MADE_OF)
def test_a_subclass_is_what_it_is_made_of(value: object, plain: object) -> None:
    """Where subclasses are kept, each is the bytes of the plain value, nested in any way."""
    for wrap in (lambda v: v, lambda v: [v, {"x": v}], lambda v: (v, [v])):
        OF_JSON.check("v", wrap(value))
        payload = OF_JSON.encode({"v": wrap(value)})
        assert payload == OF_JSON.encode({"v": wrap(plain)})
        assert exact(OF_JSON.decode(payload)) == exact({"v": wrap(plain)})


@pytest.mark.parametrize("value", [Colour.RED, Blob(b"x"), Moment(2026, 1, 1), Thing()], ids=type)
def test_what_json_cannot_take_is_refused_in_a_subclass(value: object) -> None:
    """Where subclasses are kept, what JSON does not know is refused, and found inside them."""
    with pytest.raises(UnstorableError, match=r"^session\['a'\]\['b'\]\[1\] is a "):
        OF_JSON.check("a", collections.OrderedDict(b=Items([0, value])))


def test_a_subclass_in_itself_is_refused() -> None:
    """A value of a subclass that holds itself is refused as any other."""
    value: dict[str, Any] = collections.OrderedDict()
    value["me"] = value
    with pytest.raises(UnstorableError, match="nested too deeply, or holds itself"):
        OF_JSON.check("a", value)


def test_a_subclass_is_pickled_where_that_is_allowed() -> None:
    """Where pickles are kept as well, a value of a subclass comes back as one."""
    both = MsgpackCodec(pickle=True, subclasses=True)
    value = collections.OrderedDict(b=1)
    assert exact(round_trip(value, both)) == exact(value)
