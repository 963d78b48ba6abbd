"""What every session store promises, as tests.

Subclass :class:`StoreContract` in a test module and give it a fixture ``store``; add
:class:`SweepContract` for a store that can sweep and :class:`PrincipalContract` for one that
can find a principal's sessions::

    class TestMyStore(StoreContract, SweepContract):
        @pytest.fixture
        def store(self):
            return MyStore(...)
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from tieredsession.contracts import ByPrincipal, Record, SessionStore
from tieredsession.errors import Conflict, Gone
from tieredsession.purge import find_sweepable

NOW = 1_800_000_000.0
HOUR = 3600.0
_RECORD = Record(b"payload", NOW + HOUR, NOW)
_THEN = 1_600_000_000.0
_OLD = Record(b"payload", _THEN + HOUR, _THEN)


class IndexedStore(SessionStore, ByPrincipal, Protocol):
    """A store that keeps an index of principals."""


def raised(error: type[Exception], call: Callable[[], object]) -> Any:
    """The *error* that *call* raises; raising nothing, or another one, fails the test."""
    try:
        call()
    except error as caught:
        return caught
    raise AssertionError(f"{error.__name__} was not raised")


class StoreContract:
    """Tests of :class:`~tieredsession.contracts.SessionStore`.

    A store whose conditional write does not look at the old expiry sets
    *update_checks_expiry* to false: the session manager looks before it writes.
    """

    update_checks_expiry = True

    def test_what_was_created_is_loaded(self, store: SessionStore) -> None:
        """A created session is loaded as it was given, at the version that was answered."""
        record = Record(b"\x00\xff any bytes", NOW + HOUR, NOW - 5, "Zoë")
        saved = store.create(record, NOW)
        assert store.load(saved.token, NOW) == record._replace(version=saved.version)

    def test_payloads_of_any_size(self, store: SessionStore) -> None:
        """An empty payload and one of 1,000 bytes are kept alike."""
        for payload in (b"", bytes(range(250)) * 4):
            saved = store.create(_RECORD._replace(payload=payload), NOW)
            loaded = store.load(saved.token, NOW)
            assert loaded is not None
            assert loaded.payload == payload

    def test_no_principal_is_none(self, store: SessionStore) -> None:
        """A session of nobody is loaded as a session of nobody."""
        loaded = store.load(store.create(_RECORD, NOW).token, NOW)
        assert loaded is not None
        assert loaded.principal is None

    def test_tokens_are_cookie_safe(self, store: SessionStore) -> None:
        """A token needs no quoting in a cookie."""
        token = store.create(_RECORD, NOW).token
        assert token.isascii()
        assert token.replace("-", "").replace("_", "").isalnum()

    def test_strange_tokens_are_no_session(self, store: SessionStore) -> None:
        """Malformed and forged tokens answer None like a missing session."""
        good = store.create(_RECORD, NOW).token
        strange = [
            "",
            "x",
            "..",
            "a b",
            "get x\r\n",
            "\x00",
            "é",
            good[:-1],
            good + "A",
            good * 200,
        ]
        strange += [good[::-1], good.swapcase()]
        for token in strange:
            assert store.load(token, NOW) is None

    def test_every_changed_character_is_forged(self, store: SessionStore) -> None:
        """A token with any one character changed answers None."""
        good = store.create(_RECORD, NOW).token
        for index, character in enumerate(good):
            other = "A" if character != "A" else "B"
            assert store.load(good[:index] + other + good[index + 1 :], NOW) is None

    def test_expiry_is_to_the_second(self, store: SessionStore) -> None:
        """A session is live until its expiry and not at it."""
        token = store.create(_RECORD, NOW).token
        assert store.load(token, NOW + HOUR - 1) is not None
        assert store.load(token, NOW + HOUR) is None
        assert store.load(token, NOW + HOUR * 1000) is None

    def test_update_replaces_everything(self, store: SessionStore) -> None:
        """An update replaces payload, expiry and principal."""
        saved = store.create(_RECORD, NOW)
        new = Record(b"new", NOW + 2 * HOUR, NOW, "ann", saved.version)
        again = store.update(saved.token, new, NOW + 1)
        assert store.load(again.token, NOW + 1) == new._replace(version=again.version)

    def test_update_keeps_the_token_of_a_revocable_session(self, store: SessionStore) -> None:
        """A store that can revoke keeps one token for the life of a session."""
        saved = store.create(_RECORD, NOW)
        again = store.update(saved.token, _RECORD._replace(version=saved.version), NOW)
        assert not store.revocable or again.token == saved.token

    def test_updates_in_a_row(self, store: SessionStore) -> None:
        """Each update stands on the version that the one before it answered."""
        saved = store.create(_RECORD, NOW)
        for number in range(5):
            record = _RECORD._replace(payload=b"%d" % number, version=saved.version)
            saved = store.update(saved.token, record, NOW)
        loaded = store.load(saved.token, NOW)
        assert loaded is not None
        assert loaded.payload == b"4"

    def test_a_stale_update_is_a_conflict(self, store: SessionStore) -> None:
        """An update on an older version raises Conflict with what is stored now."""
        if not store.revocable:
            return
        first = store.create(_RECORD, NOW)
        newer = _RECORD._replace(payload=b"newer", version=first.version)
        second = store.update(first.token, newer, NOW)
        stale = _RECORD._replace(payload=b"stale", version=first.version)
        conflict = raised(Conflict, lambda: store.update(first.token, stale, NOW))
        assert conflict.current == newer._replace(version=second.version)
        assert store.load(first.token, NOW) == conflict.current

    def test_update_of_the_dead_is_gone(self, store: SessionStore) -> None:
        """An update never brings a deleted session back."""
        if not store.revocable:
            return
        saved = store.create(_RECORD, NOW)
        store.delete(saved.token, NOW)
        late = _RECORD._replace(version=saved.version)
        raised(Gone, lambda: store.update(saved.token, late, NOW))
        assert store.load(saved.token, NOW) is None

    def test_update_of_the_expired_is_gone(self, store: SessionStore) -> None:
        """An update never brings an expired session back."""
        if not self.update_checks_expiry:
            return
        saved = store.create(_RECORD, NOW)
        late = Record(b"late", NOW + 9 * HOUR, NOW, None, saved.version)
        raised(Gone, lambda: store.update(saved.token, late, NOW + 2 * HOUR))
        assert store.load(saved.token, NOW + 2 * HOUR) is None

    def test_update_of_a_strange_token_is_gone(self, store: SessionStore) -> None:
        """An update under a token of no session creates none."""
        raised(Gone, lambda: store.update("A" * 32, _RECORD, NOW))

    def test_delete_ends_a_session(self, store: SessionStore) -> None:
        """A deleted session is not loaded again, at any time."""
        if not store.revocable:
            return
        saved = store.create(_RECORD, NOW)
        store.delete(saved.token, NOW)
        assert store.load(saved.token, NOW) is None
        assert store.load(saved.token, NOW + HOUR) is None

    def test_delete_twice_or_of_nothing(self, store: SessionStore) -> None:
        """Deleting what is not there is no error."""
        saved = store.create(_RECORD, NOW)
        for token in (saved.token, saved.token, "A" * 32, "", "no token"):
            store.delete(token, NOW)

    def test_a_conditional_delete_needs_the_version(self, store: SessionStore) -> None:
        """Of two that delete one version, one succeeds and the other is told."""
        if not store.revocable:
            return
        first = store.create(_RECORD, NOW)
        second = store.update(first.token, _RECORD._replace(version=first.version), NOW)
        conflict = raised(Conflict, lambda: store.delete(first.token, NOW, first.version))
        assert conflict.current.version == second.version
        assert store.load(first.token, NOW) is not None
        store.delete(first.token, NOW, second.version)
        raised(Gone, lambda: store.delete(first.token, NOW, second.version))
        raised(Gone, lambda: store.delete("A" * 32, NOW, second.version))

    def test_sessions_do_not_touch_each_other(self, store: SessionStore) -> None:
        """Saving or ending one session leaves the others as they were."""
        tokens = [store.create(_RECORD._replace(payload=b"%d" % n), NOW).token for n in range(8)]
        assert len(set(tokens)) == 8
        store.delete(tokens[0], NOW)
        for number, token in enumerate(tokens[1:], 1):
            loaded = store.load(token, NOW)
            assert loaded is not None
            assert loaded.payload == b"%d" % number

    def test_one_of_many_writers_wins(self, store: SessionStore) -> None:
        """Of eight threads that update one version, one succeeds and seven are told."""
        if not store.revocable:
            return
        saved = store.create(_RECORD, NOW)

        def write(number: int) -> bool:
            record = _RECORD._replace(payload=b"%d" % number, version=saved.version)
            try:
                store.update(saved.token, record, NOW)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(write, range(8)))
        assert outcomes.count(True) == 1
        loaded = store.load(saved.token, NOW)
        assert loaded is not None
        assert loaded.payload == b"%d" % outcomes.index(True)

    def test_a_label_tells_nothing(self, store: SessionStore) -> None:
        """The label of a session is no part of its token."""
        token = store.create(_RECORD, NOW).token
        label = store.label(token)
        assert (label is not None) == store.revocable
        assert label is None or label not in token


class SweepContract:
    """Tests of :class:`~tieredsession.contracts.Sweepable`.

    The time is years ago, for a server that knows the time deletes nothing before its own.
    """

    def test_a_sweep_takes_the_expired_alone(self, store: SessionStore) -> None:
        """Of live and expired sessions, a sweep deletes the expired ones."""
        dead = [store.create(_OLD, _THEN).token for _ in range(5)]
        live = store.create(_OLD._replace(expires=_THEN + 9 * HOUR), _THEN).token
        assert _sweep(store, _THEN + 3 * HOUR, 100) == 5
        assert store.load(live, _THEN + 3 * HOUR) is not None
        assert all(store.load(token, _THEN) is None for token in dead)
        assert _sweep(store, _THEN + 3 * HOUR, 100) == 0

    def test_a_sweep_goes_page_by_page(self, store: SessionStore) -> None:
        """A page deletes no more than its limit, and the pages end when nothing is left."""
        for _ in range(7):
            store.create(_OLD, _THEN)
        part = find_sweepable(store)
        pages = [part.sweep(shard, 0.0, _THEN + 3 * HOUR, 3) for shard in part.shards]
        assert all(page.deleted <= 3 for page in pages)
        assert sum(page.deleted for page in pages) + _sweep(store, _THEN + 3 * HOUR, 3) == 7
        assert _sweep(store, _THEN + 3 * HOUR, 3) == 0

    def test_a_dry_run_deletes_nothing(self, store: SessionStore) -> None:
        """A dry run counts what is expired and leaves it there."""
        token = store.create(_OLD, _THEN).token
        part = find_sweepable(store)
        pages = [part.sweep(shard, 0.0, _THEN + 3 * HOUR, 9, dry_run=True) for shard in part.shards]
        assert sum(page.deleted for page in pages) == 1
        assert store.load(token, _THEN) is not None

    def test_an_extended_session_is_spared(self, store: SessionStore) -> None:
        """A session that was extended after its first expiry was set is not swept."""
        saved = store.create(_OLD, _THEN)
        later = _OLD._replace(expires=_THEN + 9 * HOUR, version=saved.version)
        store.update(saved.token, later, _THEN + 1)
        assert _sweep(store, _THEN + 3 * HOUR, 100) == 0
        assert store.load(saved.token, _THEN + 3 * HOUR) is not None

    def test_the_oldest_is_told(self, store: SessionStore) -> None:
        """The store tells when the row that expires first does so, and that there is none."""
        part = find_sweepable(store)
        assert all(part.oldest(shard) is None for shard in part.shards)
        for hours in (5, 2, 8):
            store.create(_OLD._replace(expires=_THEN + hours * HOUR), _THEN)
        found = [part.oldest(shard) for shard in part.shards]
        assert min(oldest for oldest in found if oldest is not None) == _THEN + 2 * HOUR


class PrincipalContract:
    """Tests of :class:`~tieredsession.contracts.ByPrincipal`."""

    def test_sessions_of_a_principal(self, store: IndexedStore) -> None:
        """The live sessions of one principal are found, and nobody else's."""
        mine = [store.create(_RECORD._replace(principal="ann"), NOW) for _ in range(3)]
        store.create(_RECORD._replace(principal="ann", expires=NOW + 5), NOW)
        store.create(_RECORD._replace(principal="bob"), NOW)
        store.create(_RECORD, NOW)
        owned = store.sessions_of("ann", NOW + 10)
        labels = {store.label(saved.token) for saved in mine}
        assert {label for label in labels if any(label and label in one.key for one in owned)} == (
            labels
        )
        assert [one.record for one in owned] == [
            _RECORD._replace(principal="ann", version=one.record.version) for one in owned
        ]
        assert len(owned) == 3
        assert store.sessions_of("nobody", NOW) == []

    def test_an_index_follows_a_change_of_principal(self, store: IndexedStore) -> None:
        """A session that becomes nobody's is found under nobody."""
        saved = store.create(_RECORD._replace(principal="ann"), NOW)
        store.update(saved.token, _RECORD._replace(version=saved.version), NOW)
        assert store.sessions_of("ann", NOW) == []

    def test_a_key_ends_a_session_and_opens_none(self, store: IndexedStore) -> None:
        """What the index tells ends a session, on condition if asked, and opens none."""
        record = _RECORD._replace(principal="ann")
        first = store.create(record, NOW)
        saved = store.update(first.token, record._replace(version=first.version, payload=b"2"), NOW)
        (owned,) = store.sessions_of("ann", NOW)
        assert store.load(owned.key, NOW) is None
        raised(Conflict, lambda: store.end(owned.key, NOW, first.version))
        store.end(owned.key, NOW, owned.record.version)
        assert store.load(saved.token, NOW) is None
        raised(Gone, lambda: store.end(owned.key, NOW, owned.record.version))
        store.end(owned.key, NOW)


def _sweep(store: object, until: float, limit: int) -> int:
    """Sweep every shard to its end; how many sessions were deleted."""
    part = find_sweepable(store)
    deleted = 0
    for shard in part.shards:
        after: str | None = None
        for _ in range(1000):
            page = part.sweep(shard, 0.0, until, limit, after)
            deleted += page.deleted
            after = page.after
            if after is None:
                break
        else:
            raise AssertionError("the sweep did not end")
    return deleted
