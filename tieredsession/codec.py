"""Session data to bytes: msgpack with extension types.

What goes in comes out equal and of the same type: the JSON types, bytes, and datetime
(naive or aware), date, time, timedelta, Decimal, UUID, set, frozenset, tuple, complex and
integers of any size, nested in any way. Keys of nested dicts may be any of these that
Python can hash; keys of the session itself are strings. A bytearray or memoryview comes
back as bytes. Subclasses (an enum, a named tuple, an ordered dict, a markup string) are
refused, because they would come back as something else, unless an adapter brings the type,
or its framework's own sessions keep them as what they are made of, as JSON does.

Decoding is bounded: by the size of the input, which also bounds the items of a container
(each takes a byte), and by depth: 1024 lists and dicts in the decoder itself, 16 sets and
tuples. It builds no object but the types above and never guesses: one format, one decoder.
"""

from __future__ import annotations

import datetime as dt
import pickle as pickling
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack

from tieredsession.errors import DecodeError, UnstorableError
from tieredsession.tables import to_columns, to_floats, to_rows, to_scaled

MAX_BYTES = 1 << 20
_TABLES_FROM = 256  # bytes; a shorter session has no list that is worth the search
MAX_EXTENSION_DEPTH = 16  # sets and tuples inside one another

# Extension codes of format 1. They are never given a second meaning. Those of an OwnType
# begin at 64.
_DATETIME_NAIVE = 2
_DATETIME_ZONED = 3
_DATE = 4
_TIME = 5
_TIMEDELTA = 6
_DECIMAL = 7
_UUID = 8
_SET = 9
_FROZENSET = 10
_TUPLE = 11
_COMPLEX = 12
_BIG_INTEGER = 13
_PICKLE = 14
_TABLE = 15
_SCALED = 16

_EPOCH = dt.datetime(1970, 1, 1)
_EPOCH_UTC = _EPOCH.replace(tzinfo=dt.timezone.utc)
_MICROSECOND = dt.timedelta(microseconds=1)

_ALWAYS_STORABLE = frozenset({bool, int, float, type(None)})
_SURELY_FITS = 1 << 16
_CONTAINERS = (dict, list, tuple, set, frozenset)
_OF_JSON = (dict, list, tuple)
_PATH_SEARCHED = 300  # characters of the path to a value that is to blame


def _from_int(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


def _to_int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _pack_datetime(value: dt.datetime) -> msgpack.ExtType | msgpack.Timestamp:
    zone = value.tzinfo
    if zone is dt.timezone.utc:
        # msgpack's own type, which its decoder makes without calling back.
        since = value - _EPOCH_UTC
        return msgpack.Timestamp(since.days * 86400 + since.seconds, since.microseconds * 1000)
    # The wall clock is what is kept, so that no date near the ends of the calendar and no
    # hour that a zone has twice or never changes on the way.
    local = (value.replace(tzinfo=None) - _EPOCH) // _MICROSECOND
    if zone is None and not value.fold:
        return msgpack.ExtType(_DATETIME_NAIVE, _from_int(local))
    where: str | int | None
    if zone is None:
        where = None
    elif isinstance(zone, ZoneInfo) and zone.key:
        where = zone.key
    else:
        offset = value.utcoffset()
        if offset is None:
            raise TypeError("a time zone without an offset")
        where = offset // _MICROSECOND
    return msgpack.ExtType(_DATETIME_ZONED, msgpack.packb([local, where, value.fold]))


def _unpack_zoned(data: bytes) -> dt.datetime:
    local, where, fold = msgpack.unpackb(data)
    value: dt.datetime = _EPOCH + local * _MICROSECOND
    if where is None:
        return value.replace(fold=fold)
    if isinstance(where, str):
        return value.replace(tzinfo=ZoneInfo(where), fold=fold)
    return value.replace(tzinfo=dt.timezone(where * _MICROSECOND))


def _pack_time(value: dt.time) -> msgpack.ExtType:
    offset = value.utcoffset()
    if value.tzinfo is not None and offset is None:
        raise TypeError("a time of day whose zone has no fixed offset")
    # Not isoformat(): its reader takes an offset of less than a second for none.
    since = dt.timedelta(
        hours=value.hour,
        minutes=value.minute,
        seconds=value.second,
        microseconds=value.microsecond,
    )
    where = None if offset is None else offset // _MICROSECOND
    parts = [since // _MICROSECOND, where, value.fold]
    return msgpack.ExtType(_TIME, msgpack.packb(parts))


def _unpack_time(data: bytes) -> dt.time:
    since, where, fold = msgpack.unpackb(data)
    value: dt.time = (_EPOCH + since * _MICROSECOND).time().replace(fold=fold)
    return value if where is None else value.replace(tzinfo=dt.timezone(where * _MICROSECOND))


_PLAIN_ENCODERS: dict[type, Callable[[Any], msgpack.ExtType | msgpack.Timestamp]] = {
    dt.datetime: _pack_datetime,
    dt.date: lambda v: msgpack.ExtType(_DATE, _from_int(v.toordinal())),
    dt.time: _pack_time,
    dt.timedelta: lambda v: msgpack.ExtType(_TIMEDELTA, _from_int(v // _MICROSECOND)),
    Decimal: lambda v: msgpack.ExtType(_DECIMAL, str(v).encode()),
    UUID: lambda v: msgpack.ExtType(_UUID, v.bytes),
    complex: lambda v: msgpack.ExtType(_COMPLEX, struct.pack(">dd", v.real, v.imag)),
    int: lambda v: msgpack.ExtType(_BIG_INTEGER, _from_int(v)),
}

_PLAIN_DECODERS: dict[int, Callable[[bytes], Any]] = {
    _DATETIME_NAIVE: lambda d: _EPOCH + _to_int(d) * _MICROSECOND,
    _DATETIME_ZONED: _unpack_zoned,
    _DATE: lambda d: dt.date.fromordinal(_to_int(d)),
    _TIME: _unpack_time,
    _TIMEDELTA: lambda d: _to_int(d) * _MICROSECOND,
    _DECIMAL: lambda d: Decimal(d.decode()),
    _UUID: lambda d: UUID(bytes=d),
    _COMPLEX: lambda d: complex(*struct.unpack(">dd", d)),
    _BIG_INTEGER: _to_int,
}

_SUBCLASSED = (
    *(bool, int, float, complex, str, bytes, dict, list, tuple, set, frozenset),
    *(dt.datetime, dt.date, dt.time, dt.timedelta, Decimal, UUID),
)

_MADE_OF: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__pos__,
    float: float.__pos__,
    dict: lambda v: dict(v.items()),
    list: list,
    tuple: tuple,
}
"""What JSON takes a value of a subclass for, to exactly that type."""

_COLLECTION_CODES: dict[type, int] = {set: _SET, frozenset: _FROZENSET, tuple: _TUPLE}
_COLLECTIONS: dict[int, Callable[[list[Any]], Any]] = {
    _SET: set,
    _FROZENSET: frozenset,
    _TUPLE: tuple,
    _TABLE: to_rows,
    _SCALED: to_floats,
}


class OwnType(NamedTuple):
    """How a framework's own *kind* of value is kept: to bytes and back.

    *code* marks it in what is stored, and is never given a second meaning: 64 is the markup
    of Flask. What has such a value in it is not a session to a front end that lacks the type.
    """

    code: int
    kind: type
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]


class MsgpackCodec:
    """The codec of every store.

    Args:
        pickle: also keep values of any other type by pickling them. Only for stores whose
            records never leave the server; ``SESSION_PICKLE`` switches it on.
        tables: keep lists of alike dicts as columns, for where every byte is weighed.
            They are decoded in any case.
        own_types: what else can be kept, of exactly these types.
        subclasses: keep a value of a subclass of what JSON knows as one of that type.
    """

    def __init__(
        self,
        *,
        pickle: bool = False,
        tables: bool = False,
        own_types: Iterable[OwnType] = (),
        subclasses: bool = False,
    ) -> None:
        self._pickle = pickle
        self._tables = tables
        self._subclasses = subclasses
        self._own_encoders = {own.kind: own for own in own_types}
        self._own_decoders = {own.code: own.unpack for own in self._own_encoders.values()}
        self._local = threading.local()
        self._ext_hook = self._hook_at(0)

    def check(self, key: str, value: Any) -> None:
        """Raise ``UnstorableError`` if *value* cannot be kept under *key*."""
        kind = type(value)
        if key.isascii():
            if kind in _ALWAYS_STORABLE:
                return
            if (kind is bytes or (kind is str and value.isascii())) and len(value) < _SURELY_FITS:
                return
        self.encode({key: value})

    def encode(self, data: Mapping[str, Any]) -> bytes:
        """The bytes of *data*; the same data gives the same bytes.

        Raises:
            UnstorableError: a value (its path and type are named), its size or its depth
                is beyond what a session keeps.
        """
        packer = self._packer(0)
        try:
            payload: bytes = packer.pack(data)
            if self._tables and len(payload) >= _TABLES_FROM:
                tabled = self._with_tables(data)
                if tabled is not data:
                    payload = packer.pack(tabled)
        except Exception as error:
            raise self._explain(data, error) from None
        if len(payload) > MAX_BYTES:
            raise UnstorableError(
                f"the session takes {len(payload)} bytes and may take {MAX_BYTES}: "
                "keep large values elsewhere and their names in the session"
            )
        if self._subclasses and vars(self._local).pop("converted", False):
            return self.encode(_unpack(payload, self._ext_hook))  # the bytes of what comes back
        return payload

    def decode(self, payload: bytes) -> dict[str, Any]:
        """What :meth:`encode` was given. Call it with authentic bytes only.

        Raises:
            DecodeError: the bytes are too many, damaged or not a session.
        """
        if len(payload) > MAX_BYTES:
            raise DecodeError(f"a session of {len(payload)} bytes")
        try:
            data = _unpack(payload, self._ext_hook)
        except Exception as error:
            # Damaged bytes surface as ValueError, OverflowError, TypeError, KeyError or
            # whatever the constructor of an extension type raises.
            raise DecodeError(f"not a session: {type(error).__name__}") from None
        if type(data) is not dict:
            raise DecodeError("not a session: not a dict")
        for key in data:
            if type(key) is not str:
                raise DecodeError("not a session: its keys are not strings")
        return data

    def _packer(self, depth: int) -> msgpack.Packer:
        """The packer of this thread for sets, tuples and tables inside *depth* others.

        A packer with a hook is not safe to share between threads, nor to call from its hook.
        """
        try:
            packers: list[msgpack.Packer] = self._local.packers
        except AttributeError:
            packers = self._local.packers = []
        while len(packers) <= depth:
            packers.append(self._new_packer(len(packers)))
        return packers[depth]

    def _new_packer(self, depth: int) -> msgpack.Packer:
        def default(value: Any) -> Any:
            kind = type(value)
            encoder = _PLAIN_ENCODERS.get(kind)
            if encoder is not None:
                return encoder(value)
            code = _COLLECTION_CODES.get(kind)
            if code is not None:
                if depth >= MAX_EXTENSION_DEPTH:
                    raise ValueError("sets and tuples nested too deeply")
                items = self._items(value, depth + 1)
                return msgpack.ExtType(code, b"".join(items))
            own = self._own_encoders.get(kind)
            if own is not None:
                return msgpack.ExtType(own.code, own.pack(value))
            if self._pickle:
                return msgpack.ExtType(_PICKLE, pickling.dumps(value, 4))
            if self._subclasses:
                for base, convert in _MADE_OF.items():
                    if isinstance(value, base):
                        self._local.converted = True
                        made = convert(value)
                        return default(made) if base in (int, tuple) else made
            raise TypeError(kind)

        return msgpack.Packer(default=default, strict_types=True)

    def _with_tables(self, data: Mapping[Any, Any]) -> Mapping[Any, Any]:
        """*data* with the lists in it, and in the dicts in it, as tables where they can be."""
        changed: dict[Any, Any] = {}
        for key, value in data.items():
            if type(value) is list:
                columns = to_columns(value)
                if columns is not None:
                    changed[key] = self._table(columns)
            elif type(value) is dict:
                inner = self._with_tables(value)
                if inner is not value:
                    changed[key] = inner
        return {**data, **changed} if changed else data

    def _table(self, columns: list[list[Any]]) -> msgpack.ExtType:
        packer = self._packer(1)
        table: list[Any] = [*columns]
        for place, column in enumerate(columns):
            scaled = to_scaled(column)
            if scaled is not None:
                table[place] = msgpack.ExtType(_SCALED, packer.pack(scaled))
        return msgpack.ExtType(_TABLE, packer.pack(table))

    def _items(self, values: Any, depth: int) -> list[bytes]:
        packer = self._packer(depth)
        items = [packer.pack(value) for value in values]
        if type(values) is not tuple:
            items.sort()  # sets have no order of their own; equal sets are equal bytes
        return [packer.pack_array_header(len(items)), *items]

    def _hook_at(self, depth: int) -> Callable[[int, bytes], Any]:
        def hook(code: int, data: bytes) -> Any:
            decoder = _PLAIN_DECODERS.get(code) or self._own_decoders.get(code)
            if decoder is not None:
                return decoder(data)
            if code == _PICKLE and self._pickle:
                # Sealed by this site, and its seal was verified before.
                return pickling.loads(data)  # noqa: S301
            make = _COLLECTIONS[code]
            if depth >= MAX_EXTENSION_DEPTH:
                raise ValueError("sets and tuples nested too deeply")
            return make(_unpack(data, self._hook_at(depth + 1)))

        return hook

    def _explain(self, data: Mapping[str, Any], error: Exception) -> UnstorableError:
        found = self._find(data, "session", set())
        if found is None:
            if any(word in str(error) for word in ("recursion", "nested")):
                deep = [key for key, value in data.items() if not self._can_pack(value)]
                where = f"session[{deep[0]!r}]" if deep else "the session"
                return UnstorableError(f"{where} is nested too deeply, or holds itself")
            return UnstorableError(f"the session cannot be stored: {error}")
        path, value = found
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        advice = "store its parts as plain values"
        bases = [base for base in _SUBCLASSED if isinstance(value, base)]
        if type(value) is str:
            advice = "it holds a lone surrogate, which no encoding can carry"
        elif type(value) in (dt.datetime, dt.time):
            advice = "its time zone has no fixed offset"
        elif bases and bases[0] in _PLAIN_ENCODERS and bases[0] not in (int, complex):
            advice = f"store a plain {bases[0].__name__}"
        elif isinstance(value, Enum) and isinstance(value, str):
            advice = "store its value"
        elif bases:
            advice = f"store {bases[0].__name__}(value)"
        elif not self._pickle:
            advice += ", or set SESSION_PICKLE = True with a store that keeps data on the server"
        return UnstorableError(f"{path} is a {kind} and cannot be stored: {advice}")

    def _find(self, value: Any, path: str, seen: set[int]) -> tuple[str, Any] | None:
        """The first part of *value* that cannot be packed by itself, and where it is.

        What was *seen* is not looked into again: a value may be in many places, or in itself.
        """
        if not (type(value) in _CONTAINERS or (self._subclasses and isinstance(value, _OF_JSON))):
            return None if self._can_pack(value) else (path, value)
        if id(value) in seen or len(path) > _PATH_SEARCHED:
            return None
        seen.add(id(value))
        parts = (
            [(f"{path}[{key!r}]", part) for key, part in value.items()]
            + [(f"a key of {path}", key) for key in value]
            if isinstance(value, dict)
            else [(f"{path}[{index}]", part) for index, part in enumerate(value)]
        )
        for where, part in parts:
            found = self._find(part, where, seen)
            if found is not None:
                return found
        return None

    def _can_pack(self, value: Any) -> bool:
        try:
            self._packer(0).pack(value)
        except Exception:
            return False
        return True


def _unpack(data: bytes, hook: Callable[[int, bytes], Any]) -> Any:
    return msgpack.unpackb(data, ext_hook=hook, strict_map_key=False, timestamp=3)
