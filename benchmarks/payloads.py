"""The sessions that are encoded. Every contestant gets the same, as far as it can hold it."""

from __future__ import annotations

import datetime as dt
from typing import Any

Data = dict[str, Any]

_NOUNS = ("Mug", "Lamp", "Scarf", "Kettle", "Notebook", "Basket", "Clock", "Towel", "Vase", "Tray")
_KINDS = ("blue", "oak", "linen", "small", "striped", "brass", "round")
_PRICES = (499, 850, 999, 1299, 1495, 1999, 2450, 2999, 4995, 7900, 12900)


def _item(n: int, price: int) -> Data:
    noun = _NOUNS[n % 10]
    return {
        "sku": f"{noun[:2].upper()}-{(n * 7919 + 1013) % 10000:04d}",
        "qty": n * n % 4 + 1,
        "price": price,
        "name": f"{noun}, {_KINDS[n % 7]}",
    }


def _items(count: int) -> list[Data]:
    """Line items that repeat each other as much as those of a shop do, and no more."""
    return [_item(n, _PRICES[n * n % 11]) for n in range(count)]


TINY: Data = {"count": 1}

TYPICAL: Data = {
    "user_id": 48213,
    "csrf_token": "8c1f0e5ab36d47929be4d1f7a03c6e58",
    "locale": "en_GB",
    "flashes": [
        ["success", "Your profile was updated."],
        ["info", "You have 3 unread messages."],
        ["warning", "Your card runs out next month."],
    ],
    "last_seen": dt.datetime(2026, 3, 14, 15, 9, 26, tzinfo=dt.timezone.utc),
}

UNUSUAL: Data = {
    "kundennummer": 48213,
    "formularschutz": TYPICAL["csrf_token"],
    "sprache": "de_CH",
    "hinweise": [
        ["erfolg", "Ihr Profil wurde geändert."],
        ["hinweis", "Sie haben 3 ungelesene Nachrichten."],
        ["warnung", "Ihre Karte läuft nächsten Monat ab."],
    ],
    "zuletzt": TYPICAL["last_seen"],
}
"""The same in words that no dictionary of a compressor foresees: ours has one of English."""

CART: Data = {"cart": _items(30)}

CART_NOISE: Data = {"cart": [_item(n, 295 + n * 4337 % 9000) for n in range(30)]}
"""Prices without a pattern: random bytes to msgpack, and only ten digits to JSON."""

CART_FLOATS: Data = {"cart": [{**item, "price": item["price"] / 100} for item in _items(30)]}
"""Prices as floats, which JSON writes in five characters and msgpack in nine bytes."""

LARGE: Data = {
    **TYPICAL,
    "roles": ["editor", "translator", "reviewer"],
    "preferences": {"theme": "dark", "page_size": 50, "columns": list(range(12))},
    "recent": [
        {"id": 100_003 + n * 7919, "title": f"{_KINDS[n % 7]} {_NOUNS[n * 3 % 10]} no. {n}"}
        for n in range(40)
    ],
    "cart": _items(12),
}

PAYLOADS: dict[str, Data] = {
    "tiny": TINY,
    "typical": TYPICAL,
    "unusual": UNUSUAL,
    "cart": CART,
    "cart, odd prices": CART_NOISE,
    "cart, floats": CART_FLOATS,
    "large": LARGE,
}


def without_datetimes(data: Data) -> Data:
    """*data* for those who can hold JSON and no more: datetimes as ISO text."""
    return {
        key: value.isoformat() if isinstance(value, dt.datetime) else value
        for key, value in data.items()
    }
