"""memcached: which commands are sent to whom, what they cost, and what a URL can say."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pymemcache.client.base import Client

from tieredsession.contracts import Found, Handle
from tieredsession.errors import CacheError, CacheTimeout, ConfigurationError
from tieredsession.stores.memcached import MemcachedCache
from tieredsession.url import URL

if TYPE_CHECKING:
    from servers.conftest import Certificates, Impostor, Memcached, Proxy

TTL = 60.0
DAY = 24 * 3600

Open = Callable[..., MemcachedCache]


@pytest.fixture
def open_cache() -> Iterator[Open]:
    """Opens caches by their URLs."""
    opened: list[MemcachedCache] = []

    def open_one(url: str) -> MemcachedCache:
        opened.append(MemcachedCache.from_url(URL(url, "SESSION_CACHE_URL")))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


def handle_of(cache: MemcachedCache, key: str) -> Handle:
    entry = cache.get(key)
    assert entry is not None
    return entry.handle


# -- what calls cost ----------------------------------------------------------------------

COUNTED = ("cmd_get", "cmd_set", "cmd_touch", "cmd_flush", "delete_hits", "delete_misses")


def cost(server: Memcached, call: Callable[[], object]) -> dict[str, int]:
    """The commands that the server has counted during *call*."""
    before = server.counts()
    call()
    after = server.counts()
    grown = {name: after[name] - before[name] for name in COUNTED}
    return {name: number for name, number in grown.items() if number}


@pytest.mark.parametrize("protocol", ["text", "meta", "auto"])
def test_the_commands_of_each_call(protocol: str, memcached: Memcached, open_cache: Open) -> None:
    """Every call is one command, except get_or_add of nothing by text, which is two."""
    cache = open_cache(memcached.url(f"timeout=5&protocol={protocol}"))
    adding = {"cmd_get": 1, "cmd_set": 1} if protocol == "text" else {"cmd_get": 1}
    assert cost(memcached, lambda: cache.get("key")) == {"cmd_get": 1}
    assert cost(memcached, lambda: cache.set("key", b"value", TTL)) == {"cmd_set": 1}
    assert cost(memcached, lambda: cache.get("key")) == {"cmd_get": 1}
    assert cost(memcached, lambda: cache.get_or_add("key", b"", TTL)) == {"cmd_get": 1}
    assert cost(memcached, lambda: cache.get_or_add("new", b"", TTL)) == adding
    handle = handle_of(cache, "key")
    assert cost(memcached, lambda: cache.replace("key", handle, b"", TTL)) == {"cmd_set": 1}
    assert cost(memcached, lambda: cache.replace("key", handle, b"", TTL)) == {"cmd_set": 1}
    assert cost(memcached, lambda: cache.delete("key")) == {"delete_hits": 1}
    assert cost(memcached, lambda: cache.delete("key")) == {"delete_misses": 1}
    assert cost(memcached, lambda: cache.server("key")) == {}


def test_one_connection_for_calls_in_turn(memcached: Memcached, open_cache: Open) -> None:
    """No more connections are opened than there are calls at one time."""
    cache = open_cache(memcached.url())
    cache.get("key")
    before = memcached.counts()["total_connections"]
    for _ in range(50):
        cache.get("key")
    assert memcached.counts()["total_connections"] == before + 1  # the one that asked


def test_nothing_is_sent_before_the_first_call(open_cache: Open) -> None:
    """A cache can be opened while its server is down, and named without a call."""
    cache = open_cache("memcached://127.0.0.1:1")
    assert cache.server("key") == "127.0.0.1:1"


@pytest.mark.parametrize("protocol", ["text", "meta"])
def test_the_two_ways_understand_each_other(
    protocol: str, memcached: Memcached, open_cache: Open
) -> None:
    """A process that sends text and one that sends meta commands can share a server."""
    other = {"text": "meta", "meta": "text"}[protocol]
    one = open_cache(memcached.url(f"timeout=5&protocol={protocol}"))
    two = open_cache(memcached.url(f"timeout=5&protocol={other}"))
    assert one.get_or_add("key", b"lease", TTL).won
    handle = handle_of(one, "key")
    assert two.get_or_add("key", b"lease", TTL).won is False
    assert handle_of(two, "key") == handle
    assert two.replace("key", handle, b"value", TTL)
    assert one.replace("key", handle, b"late", TTL) is False


def test_a_race_between_the_two_calls(memcached: Memcached, proxy: Callable[..., Proxy]) -> None:
    """By text, who is overtaken between looking and adding does not win, and is told so."""
    between = proxy(memcached)
    url = f"memcached://{between.authority}?timeout=5&protocol=text"
    other = MemcachedCache.from_url(URL(memcached.url(), "SESSION_CACHE_URL"))

    def overtake(client: socket.socket, reply: bytes) -> None:
        other.set("key", b"theirs", TTL)
        client.sendall(reply)

    with closing(MemcachedCache.from_url(URL(url, "SESSION_CACHE_URL"))) as cache, closing(other):
        between.plan = [overtake]
        assert cache.get_or_add("key", b"mine", TTL) == Found(None, False, None)
        assert cache.get_or_add("key", b"mine", TTL).value == b"theirs"


# -- which commands a server knows ----------------------------------------------------------


def release(answer: bytes, sent: list[bytes]) -> Callable[[socket.socket], None]:
    """Behaves like a server of a release that is empty, and writes down what it is *sent*."""

    def behave(client: socket.socket) -> None:
        while command := client.recv(4096):
            sent.append(command.split()[0])
            reply = {b"version": answer, b"mg": b"EN\r\n", b"gets": b"END\r\n"}[sent[-1]]
            client.sendall(reply)

    return behave


@pytest.mark.parametrize(
    ("answer", "command"),
    [
        (b"VERSION 1.6.10\r\n", b"mg"),
        (b"VERSION 1.6.40-rc1\r\n", b"mg"),
        (b"VERSION 1.10.0\r\n", b"mg"),
        (b"VERSION 2.0.0\r\n", b"mg"),
        (b"VERSION 1.6.9\r\n", b"gets"),
        (b"VERSION 1.5.22\r\n", b"gets"),
        (b"VERSION mcrouter 41\r\n", b"gets"),
        (b"ERROR\r\n", b"gets"),
    ],
    ids=lambda value: value.decode().strip(),
)
def test_a_server_is_asked_once(
    answer: bytes, command: bytes, impostor: Callable[..., Impostor], open_cache: Open
) -> None:
    """Meta commands go to release 1.6.10 and later, text to all others; each is asked once."""
    sent: list[bytes] = []
    server = impostor(release(answer, sent))
    cache = open_cache(f"memcached://{server.authority}?timeout=5")
    for _ in range(3):
        assert cache.get("key") is None
    assert sent == [b"version", command, command, command]


def test_a_server_that_was_replaced_is_asked_again(
    impostor: Callable[..., Impostor], open_cache: Open
) -> None:
    """A server that no longer knows meta commands costs one error and is sent text then."""
    sent: list[bytes] = []
    answers: list[bytes] = [b"VERSION 1.6.18\r\n", b"ERROR\r\n", b"VERSION 1.5.22\r\n", b"END\r\n"]

    def behave(client: socket.socket) -> None:
        while command := client.recv(4096):
            sent.append(command.split()[0])
            client.sendall(answers.pop(0))

    cache = open_cache(f"memcached://{impostor(behave).authority}?timeout=5")
    with pytest.raises(CacheError):
        cache.get("key")
    assert cache.get("key") is None
    assert sent == [b"version", b"mg", b"version", b"gets"]


# -- what a server refuses ------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["text", "meta"])
def test_a_value_that_the_server_refuses(
    protocol: str, memcached: Memcached, open_cache: Open
) -> None:
    """A value larger than an item can be is a CacheError, and its set takes the old one along."""
    cache = open_cache(memcached.url(f"timeout=5&protocol={protocol}"))
    large = b"x" * (1 << 20)
    cache.set("key", b"old", TTL)
    cache.set("other", b"other", TTL)
    with pytest.raises(CacheError, match="too large"):
        cache.set("key", large, TTL)
    assert cache.get("key") is None
    with pytest.raises(CacheError, match="too large"):
        cache.replace("other", handle_of(cache, "other"), large, TTL)


@pytest.mark.parametrize("protocol", ["text", "meta"])
def test_a_server_without_ids(
    protocol: str, own_memcached: Callable[..., Memcached], open_cache: Open
) -> None:
    """A memcached that numbers no entries is refused: there every handle would fit."""
    cache = open_cache(own_memcached("-C").url(f"timeout=5&protocol={protocol}"))

    def set_and_get() -> None:
        cache.set("key", b"value", TTL)
        cache.get("key")

    with pytest.raises(CacheError, match="an answer that no memcached gives"):
        set_and_get()


@pytest.mark.parametrize(
    "key", ["", "a b", "a\r\nflush_all", "a\tb", "a\0b", "ä", "x" * 201], ids=repr
)
def test_keys_that_are_none(key: str, memcached: Memcached, open_cache: Open) -> None:
    """A key that could be read as another command is a ValueError and not sent."""
    cache = open_cache(memcached.url())
    calls: list[Callable[[], Any]] = [
        lambda: cache.get(key),
        lambda: cache.get_or_add(key, b"", TTL),
        lambda: cache.set(key, b"", TTL),
        lambda: cache.replace(key, 1, b"", TTL),
        lambda: cache.delete(key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="printable ASCII"):
            call()


def test_what_was_given_up_is_not_sent_later(
    impostor: Callable[..., Impostor], open_cache: Open
) -> None:
    """Of a command that timed out, what the server's side has not received yet is taken back."""
    given_up = threading.Event()
    received = []

    def wake_up_late(client: socket.socket) -> None:
        given_up.wait(10)
        with suppress(ConnectionResetError):
            while chunk := client.recv(1 << 16):
                received.append(len(chunk))

    server = impostor(wake_up_late)
    cache = open_cache(f"memcached://{server.authority}?timeout=0.3&protocol=text")
    with pytest.raises(CacheTimeout):
        cache.set("key", bytes(cache.max_value), TTL)
    given_up.set()
    server.wait()
    assert 0 < sum(received) < cache.max_value


# -- time -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "sent"),
    [
        (0.001, b"1"),
        (1, b"1"),
        (1.2, b"2"),
        (30 * DAY, b"%d" % (30 * DAY)),
        (30 * DAY + 0.5, b"%d" % (1_000_000 + 30 * DAY + 1)),
        (365 * DAY, b"%d" % (1_000_000 + 365 * DAY)),
        (100 * 365 * DAY, b"0"),
        (float("inf"), b"0"),
    ],
)
def test_how_a_ttl_is_sent(ttl: float, sent: bytes, impostor: Callable[..., Impostor]) -> None:
    """Seconds are rounded up; above 30 days they become a time of day, and then for ever."""
    commands: list[bytes] = []

    def behave(client: socket.socket) -> None:
        while command := client.recv(4096):
            commands.append(command)
            client.sendall(b"STORED\r\n")

    host, port = impostor(behave).authority.split(":")
    clients = {"one": lambda: Client((host, int(port)), connect_timeout=5)}
    cache = MemcachedCache(clients, timeout=5, protocol="text", clock=lambda: 1_000_000.0)
    with closing(cache):
        cache.set("key", b"v", ttl)
    assert commands == [b"set key 0 %b 1\r\nv\r\n" % sent]


# -- several servers --------------------------------------------------------------------------


def test_keys_are_spread_evenly(open_cache: Open) -> None:
    """Each of several servers has its share of the keys."""
    cache = open_cache("memcached://a,b,c,d,e")
    shares = Counter(cache.server(f"key:{number}") for number in range(5000))
    assert set(shares) == {f"{host}:11211" for host in "abcde"}
    assert all(800 < share < 1200 for share in shares.values())


def test_the_order_of_servers_does_not_matter(open_cache: Open) -> None:
    """Processes that name the same servers in another order agree on every key."""
    one, two = open_cache("memcached://a,b,c"), open_cache("memcached://c,a,b:11211")
    keys = [f"key:{number}" for number in range(500)]
    assert [one.server(key) for key in keys] == [two.server(key) for key in keys]


def test_a_server_more_takes_its_share_only(open_cache: Open) -> None:
    """A new server takes keys over; none moves between the old ones."""
    old, new = open_cache("memcached://a,b,c"), open_cache("memcached://a,b,c,d")
    moved = 0
    for key in (f"key:{number}" for number in range(2000)):
        if old.server(key) != new.server(key):
            assert new.server(key) == "d:11211"
            moved += 1
    assert 400 < moved < 600


# -- TLS --------------------------------------------------------------------------------------


def test_tls(
    certificates: Certificates, own_memcached: Callable[..., Memcached], open_cache: Open
) -> None:
    """With tls=1 and ca= the server is known by a certificate, and no other is believed."""
    options = f"ssl_chain_cert={certificates.chain},ssl_key={certificates.key}"
    server = own_memcached("-Z", "-o", options)
    address = server.authority
    cache = open_cache(f"memcached://{address}?timeout=5&tls=1&ca={certificates.ca}")
    cache.set("key", b"x" * 100_000, TTL)
    for _ in range(3):
        entry = cache.get("key")
        assert entry is not None
        assert entry.value == b"x" * 100_000
    with pytest.raises(CacheError, match="certificate"):
        open_cache(f"memcached://{address}?timeout=5&tls=1").get("key")
    with pytest.raises(CacheError):
        open_cache(f"memcached://{address}?timeout=0.5").get("key")


# -- URLs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("memcached://", "memcached://host:port"),
        ("memcached:///path", "memcached://host:port"),
        ("memcached://h/path", "memcached://host:port"),
        ("memcached://user:word@h", "memcached://host:port"),
        ("memcached://h,h:11211", "names h:11211 twice"),
        ("memcached://h:0", "port"),
        ("memcached+unix://h/path", "memcached+unix:///path"),
        ("memcached+unix://", "memcached+unix:///path"),
        ("memcached+unix:///path?tls=1", "unknown option: tls"),
        ("memcached://h?timeout=0", "timeout='0'"),
        ("memcached://h?timeout=inf", "timeout='inf'"),
        ("memcached://h?connect_timeout=x", "connect_timeout='x'"),
        ("memcached://h?pool=0", "pool='0'"),
        ("memcached://h?pool=many", "pool='many'"),
        ("memcached://h?protocol=binary", "protocol='binary'"),
        ("memcached://h?tls=maybe", "tls='maybe'"),
        ("memcached://h?tls=1&ca=/no/such/file", "ca='/no/such/file'"),
        ("memcached://h?ca=/etc/hosts", "needs tls=1"),
        ("memcached://h?retries=3", "unknown option: retries"),
        ("redis://h", "memcached://host:port"),
    ],
    ids=lambda text: text,
)
def test_urls_that_stop_the_start(url: str, problem: str, open_cache: Open) -> None:
    """A URL that is not understood to the end is a ConfigurationError that says why."""
    with pytest.raises(ConfigurationError, match=r"^SESSION_CACHE_URL ") as error:
        open_cache(url)
    assert problem in str(error.value)


def test_a_client_of_ones_own(memcached: Memcached) -> None:
    """Servers can be given as functions that make pymemcache clients."""
    host, port = memcached.authority.split(":")
    clients: Mapping[str, Any] = {
        "main": lambda: Client((host, int(port)), connect_timeout=5, no_delay=True)
    }
    with closing(MemcachedCache(clients, timeout=5)) as cache:
        cache.set("key", b"value", TTL)
        assert handle_of(cache, "key") == cache.get_or_add("key", b"", TTL).handle
        assert cache.server("key") == "main"


def test_closing_is_not_the_end(memcached: Memcached, open_cache: Open, tmp_path: Path) -> None:
    """A closed cache opens new connections when it is used again."""
    cache = open_cache(memcached.url())
    cache.set("key", b"value", TTL)
    cache.close()
    cache.close()
    assert cache.get("key") is not None
