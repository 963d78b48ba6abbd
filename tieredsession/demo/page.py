"""The demo's HTML. Whatever comes from outside passes through :func:`_e`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from tieredsession import Session
from tieredsession.cookies import MAX_LINE
from tieredsession.demo.meter import Cost
from tieredsession.events import Event

_STYLE = Path(__file__).with_name("style.css").read_text("utf-8")
_LOGO = (
    '<svg class="logo" viewBox="0 0 32 32" aria-hidden="true">'
    '<rect x="3" y="4" width="26" height="6" rx="3" opacity=".45"/>'
    '<rect x="3" y="13" width="26" height="6" rx="3" opacity=".7"/>'
    '<rect x="3" y="22" width="26" height="6" rx="3"/></svg>'
)
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32' "
    "fill='%230f766e'%3E%3Crect x='3' y='4' width='26' height='6' rx='3' opacity='.45'/%3E"
    "%3Crect x='3' y='13' width='26' height='6' rx='3' opacity='.7'/%3E"
    "%3Crect x='3' y='22' width='26' height='6' rx='3'/%3E%3C/svg%3E"
)
_SHOWN = 200  # characters of a value


@dataclass(frozen=True)
class Place:
    """Where a store keeps sessions, in the words of the page."""

    store: str
    where: str
    revocable: bool
    restart: str
    replay: str


def place(store: str, where: str) -> Place:
    """The words for *store*, one of the demo's; *where* is SQLite's file, or the cache."""
    dead = "Dead. The store has forgotten it, and a copy opens nothing."
    if store == "cookie":
        return Place(
            "SecureCookieSessionStore",
            "in the cookie itself, signed; nothing is kept on this machine",
            False,
            "Survived: all of it is in the browser.",
            "Alive. A signed cookie cannot be revoked: logging out makes this browser forget it, "
            "and a copy replayed after logout still works until it expires.",
        )
    if store == "memory":
        return Place(
            "MemorySessionStore",
            "in a dict of this process",
            True,
            "Not survived: the sessions end with the process.",
            dead,
        )
    if store == "gae":
        return Place(
            "GAESessionStore",
            f"in {where}, written through into Google's Datastore emulator",
            True,
            "Not survived: the emulator of this demo keeps nothing. Datastore does.",
            "Dead, in both tiers. The store has forgotten it, and a copy opens nothing.",
        )
    return Place("SQLiteSessionStore", where, True, "Survived: the file stays.", dead)


def render(
    session: Session,
    *,
    csrf: str,
    notice: str | None,
    flashes: Sequence[tuple[str, Any]],
    place: Place,
    cost: Cost,
    recent: Sequence[Cost],
    events: Sequence[tuple[float, Event]],
    replay: str,
    now: float,
) -> str:
    """The whole page."""
    badge = "revocable" if place.revocable else "not revocable"
    messages = [("error", notice)] if notice else []
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>tieredsession demo</title>
<link rel="icon" href="{_ICON}">
<style>{_STYLE}</style>
</head>
<body>
<header>
  {_LOGO}
  <h1>tieredsession <span>demo</span></h1>
  <p class="badges"><span class="badge">{_e(place.store)}</span>
  <span class="badge {"good" if place.revocable else "warn"}">{badge}</span></p>
</header>
{_messages([*messages, *flashes])}
<main>
<div class="column">
{_visitor(session, csrf)}
{_list(session.get("list", []), csrf)}
{_replay(place, replay)}
{_whereabouts(session, place, now)}
</div>
<div class="column">
{_cost(cost, recent)}
{_contents(session)}
{_events(events)}
</div>
</main>
</body>
</html>
"""


def plain(session: Session) -> str:
    """The session in two lines of text, for a command line."""
    if session.new:
        return "No session: this cookie opens nothing.\n"
    who = f"logged in as {session.principal}" if session.principal else "not logged in"
    return f"A live session: {who}.\nvisits: {session.get('visits', 0)}\n"


# -- what a visitor does ----------------------------------------------------------------


def _messages(messages: Iterable[tuple[str, Any]]) -> str:
    return "".join(
        f'<p class="message {_e(category)}" role="status">{_e(text)}</p>'
        for category, text in messages
    )


def _visitor(session: Session, csrf: str) -> str:
    visits = session.get("visits", 0)
    if session.principal is None:
        who = _form(
            "/login",
            csrf,
            '<label for="name">Your name</label><div class="row">'
            '<input id="name" name="name" required maxlength="40" autocomplete="off" '
            'placeholder="any name will do"><button class="primary">Log in</button></div>',
        )
    else:
        who = _form(
            "/logout",
            csrf,
            f'<div class="row"><p class="grow">Logged in as <strong>{_e(session.principal)}'
            "</strong></p><button>Log out</button></div>",
        )
    on = bool(session.persistent)
    remember = _form(
        "/remember",
        csrf,
        f'<button class="switch" name="on" value="{"" if on else "1"}" role="switch" '
        f'aria-checked="{str(on).lower()}"><span class="track"></span>'
        "<span>Remember me for 30 days</span></button>",
    )
    return f"""<section class="card visitor" aria-labelledby="visitor">
<h2 id="visitor">Visit</h2>
<p class="count">{_e(visits)}</p>
<div class="who">{who}{remember}</div>
</section>"""


def _list(items: Sequence[dict[str, Any]], csrf: str) -> str:
    rows = "".join(_item(item, csrf) for item in items)
    body = f'<ul class="items">{rows}</ul>' if rows else '<p class="empty">Nothing yet.</p>'
    add = _form(
        "/list/add",
        csrf,
        '<label for="item">New item</label><div class="row">'
        '<input id="item" name="name" required maxlength="40" autocomplete="off">'
        '<button class="primary">Add</button></div>',
    )
    return f"""<section class="card" aria-labelledby="list">
<h2 id="list">Shopping list</h2>
<p class="lead">Dicts in a list, changed in place:
<code>item["quantity"] += 1</code> is found without any flag.</p>
{body}{add}
</section>"""


def _item(item: dict[str, Any], csrf: str) -> str:
    name = _e(item["name"])
    hidden = f'<input type="hidden" name="item" value="{name}">'
    more = _form("/list/more", csrf, f'{hidden}<button aria-label="one more {name}">+1</button>')
    remove = _form(
        "/list/remove", csrf, f'{hidden}<button aria-label="remove {name}">Remove</button>'
    )
    return (
        f'<li><span class="quantity">{_e(item["quantity"])} &times;</span>'
        f'<span class="grow">{name}</span>{more}{remove}</li>'
    )


def _replay(place: Place, replay: str) -> str:
    kind = "good" if place.revocable else "warn"
    return f"""<section class="card" aria-labelledby="replay">
<h2 id="replay">Replay the cookie</h2>
<p class="lead">Copy this line, log out, then run it: it sends the cookie that you have now.</p>
<pre tabindex="0" aria-label="the command"><code>{_e(replay)}</code></pre>
<p class="verdict {kind}"><strong>After logout:</strong> {_e(place.replay)}</p>
</section>"""


def _form(action: str, csrf: str, inside: str) -> str:
    return (
        f'<form method="post" action="{action}">'
        f'<input type="hidden" name="csrf" value="{_e(csrf)}">{inside}</form>'
    )


# -- what it costs and where it is ------------------------------------------------------


def _cost(cost: Cost, recent: Sequence[Cost]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_e(c.request)}</th><td>{_e(" + ".join(c.calls) or "none")}</td>'
        f'<td class="number">{c.cookie_in}</td><td class="number">{c.cookie_out}</td>'
        f'<td class="number">{_micro(c.seconds)}</td>'
        f'<td class="number">{_micro(c.in_store)}</td></tr>'
        for c in recent
    )
    calls = "call" if len(cost.calls) == 1 else "calls"
    return f"""<section class="card" aria-labelledby="cost">
<h2 id="cost">What this request cost</h2>
<dl class="figures">
<div><dt>store {calls}</dt><dd>{len(cost.calls)}</dd></div>
<div><dt>cookie in</dt><dd>{cost.cookie_in}<small> B</small></dd></div>
<div><dt>cookie out</dt><dd>{cost.cookie_out}<small> B</small></dd></div>
<div><dt>session layer</dt><dd>{_micro(cost.seconds)}<small> µs</small></dd></div>
</dl>
<div class="scroll"><table>
<caption>The latest requests, newest first. A cookie may take {MAX_LINE} bytes, name and
attributes included.</caption>
<thead><tr><th scope="col">request</th><th scope="col">store calls</th>
<th scope="col" class="number">in, B</th><th scope="col" class="number">out, B</th>
<th scope="col" class="number">µs</th>
<th scope="col" class="number">in store</th></tr></thead>
<tbody>{rows}</tbody>
</table></div>
<p class="lead"><a href="/untouched">Ask for a page that never looks at its session</a>:
it calls no store and sends no cookie.</p>
</section>"""


def _contents(session: Session) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{_e(key)}</code></th><td>{_e(type(value).__name__)}</td>'
        f"<td><code>{_e(_short(repr(value)))}</code></td></tr>"
        for key, value in session.items()
    )
    return f"""<section class="card" aria-labelledby="contents">
<h2 id="contents">What the session holds</h2>
<table class="contents"><thead><tr><th scope="col">key</th><th scope="col">type</th>
<th scope="col">value</th></tr></thead><tbody>{rows}</tbody></table>
</section>"""


def _whereabouts(session: Session, place: Place, now: float) -> str:
    expires = session.expires or now
    kept = "until it expires" if session.persistent else "until the browser closes"
    facts = {
        "Store": place.store,
        "Place": place.where,
        "Revocable": "yes" if place.revocable else "no",
        "Logged in as": session.principal or "nobody",
        "Began": _clock(session.created or now),
        "Ends if unused": f"{_clock(expires)}, in {(expires - now) / 86400:.0f} days",
        "Browser keeps it": kept,
        "Restart of the server": place.restart,
    }
    rows = "".join(f"<div><dt>{_e(k)}</dt><dd>{_e(v)}</dd></div>" for k, v in facts.items())
    return f"""<section class="card" aria-labelledby="where">
<h2 id="where">Where it lives</h2>
<dl class="facts">{rows}</dl>
</section>"""


def _events(events: Sequence[tuple[float, Event]]) -> str:
    rows = "".join(
        f"<li><time>{_clock(when)[11:19]}</time> <strong>{_e(type(event).__name__)}</strong> "
        f"{_e(_details(event))}</li>"
        for when, event in events
    )
    body = f'<ol class="events">{rows}</ol>' if rows else '<p class="empty">None yet.</p>'
    return f"""<section class="card" aria-labelledby="events">
<h2 id="events">What an observer was told</h2>
{body}
</section>"""


def _details(event: Event) -> str:
    values = ((field.name, getattr(event, field.name)) for field in fields(event))
    return ", ".join(f"{name} {value}" for name, value in values if value is not None)


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _e(value: object) -> str:
    """*value* as text that is only text, between tags and in quoted attributes."""
    return escape(str(value), quote=True)
