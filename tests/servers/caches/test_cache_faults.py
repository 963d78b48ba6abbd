"""A server that fails, in every way that one can: what a caller sees, and what comes after."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from tieredsession.contracts import Cache, Handle
from tieredsession.errors import CacheError, CacheTimeout
from tieredsession.stores.memcached import MemcachedCache
from tieredsession.stores.redis import RedisCache
from tieredsession.url import URL

if TYPE_CHECKING:
    from servers.conftest import Memcached, Proxy, RedisServer

    AnyServer = Memcached | RedisServer

T = TypeVar("T")

TIMEOUT = 0.4  # seconds, of every cache here
GENEROUS = 3.0  # seconds that a call may take on a busy machine
TTL = 60.0

FLAVOURS = ["memcached-text", "memcached-meta", "redis"]


def open_cache(flavour: str, authority: str, **options: object) -> MemcachedCache | RedisCache:
    """A cache of that flavour on the server there."""
    options = {"timeout": TIMEOUT, **options}
    if flavour != "redis":
        options["protocol"] = flavour.removeprefix("memcached-")
    query = "&".join(f"{name}={value}" for name, value in options.items())
    make = RedisCache if flavour == "redis" else MemcachedCache
    url = URL(f"{flavour.partition('-')[0]}://{authority}?{query}", "SESSION_CACHE_URL")
    return make.from_url(url)


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    flavour: str = request.param
    return flavour


@pytest.fixture
def server(flavour: str, request: pytest.FixtureRequest) -> AnyServer:
    """A healthy server of the flavour, empty. It is not to be stopped."""
    server: AnyServer = request.getfixturevalue(flavour.partition("-")[0])
    return server


@pytest.fixture
def own_server(flavour: str, request: pytest.FixtureRequest) -> Callable[[], AnyServer]:
    """Starts servers of the flavour that may be stopped."""
    start: Callable[[], AnyServer]
    start = request.getfixturevalue("own_" + flavour.partition("-")[0])
    return start


@pytest.fixture
def between(proxy: Callable[..., Proxy], server: AnyServer) -> Proxy:
    """A proxy before that server."""
    return proxy(server)


@pytest.fixture
def make_cache(flavour: str) -> Iterator[Callable[..., Cache]]:
    """Opens caches of the flavour."""
    opened: list[Any] = []

    def make(authority: str, **options: object) -> Cache:
        opened.append(open_cache(flavour, authority, **options))
        cache: Cache = opened[-1]
        return cache

    yield make
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(make_cache: Callable[..., Cache], between: Proxy) -> Cache:
    """A cache behind the proxy, with one connection, that holds key:1 and key:2."""
    cache = make_cache(between.authority, pool=1)
    cache.set("key:1", b"value 1", TTL)
    cache.set("key:2", b"value 2", TTL)
    for call in calls_of(cache, "key:0").values():
        call()  # whatever is asked or loaded once has been asked and loaded
    between.requests.clear()
    return cache


def handle_of(cache: Cache, key: str) -> Handle:
    entry = cache.get(key)
    assert entry is not None
    return entry.handle


def value_of(cache: Cache, key: str) -> bytes | None:
    entry = cache.get(key)
    return None if entry is None else entry.value


def open_connections(cache: Cache, count: int) -> None:
    """Let *count* calls be under way at once."""
    barrier = threading.Barrier(count)

    def work(number: int) -> None:
        barrier.wait(10)
        for _ in range(20):
            cache.set(f"warm:{number}", b"x" * 5000, TTL)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(work, range(count)))


def calls_of(cache: Cache, key: str = "key:1") -> dict[str, Callable[[], object]]:
    """Every call, on an entry that is there."""
    cache.set(key, b"value 1", TTL)
    handle = handle_of(cache, key)
    return {
        "get": partial(cache.get, key),
        "get_or_add": partial(cache.get_or_add, key, b"secret", TTL),
        "set": partial(cache.set, key, b"secret", TTL),
        "replace": partial(cache.replace, key, handle, b"secret", TTL),
        "delete": partial(cache.delete, key),
    }


CALLS = ["get", "get_or_add", "set", "replace", "delete"]


def fails_in_time(call: Callable[[], object], error: type[CacheError] = CacheError) -> CacheError:
    """The error of *call*, which does not take long to come."""
    begin = time.monotonic()
    with pytest.raises(error) as caught:
        call()
    assert time.monotonic() - begin < GENEROUS
    return caught.value


def is_intact(cache: Cache) -> None:
    """Each key answers its own value, several times over."""
    patiently(lambda: cache.set("key:1", b"fresh 1", TTL))
    for _ in range(3):
        for key, value in (("key:1", b"fresh 1"), ("key:2", b"value 2"), ("key:3", None)):
            assert patiently(partial(value_of, cache, key)) == value


def patiently(call: Callable[[], T]) -> T:
    """The answer of a healthy server, of a machine that has other things to do as well."""
    for _ in range(4):
        with suppress(CacheError):
            return call()
    return call()


# -- what becomes of a reply --------------------------------------------------------------


def swallow(client: socket.socket, reply: bytes) -> None:
    """Say nothing at all."""


def come_late(client: socket.socket, reply: bytes) -> None:
    """Answer when nobody waits any more."""
    threading.Event().wait(2 * TIMEOUT)
    client.sendall(reply)


def cut(client: socket.socket, reply: bytes) -> None:
    """Send half of it and hang up."""
    client.sendall(reply[: len(reply) // 2])
    client.shutdown(socket.SHUT_RDWR)


def hang_up(client: socket.socket, reply: bytes) -> None:
    """Hang up without a word; the server has done what it was told."""
    client.shutdown(socket.SHUT_RDWR)


def stall(client: socket.socket, reply: bytes) -> None:
    """Send half of it, and then no more."""
    client.sendall(reply[: len(reply) // 2])


def garble(garbage: bytes) -> Callable[[socket.socket, bytes], None]:
    def send(client: socket.socket, reply: bytes) -> None:
        client.sendall(garbage)

    return send


GARBAGE = {
    "noise": bytes(range(255, 127, -1)) + b"\r\n",
    "http": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "words": b"one two three\r\n",
    "nothing": b"\r\n\r\n",
    "a flood": b"x" * 20_000,
    "a size that is none": b"VA ten kkey:1 c1\r\n$ten\r\n",
    "a size below zero": b"VA -9 kkey:1 c1\r\n",
    "an endless size": b"VA 99999999999 kkey:1 c1\r\n",
    "too few words": b"VA\r\nVALUE\r\n",
    "an id that is none": b"VA 0 kkey:1 cx\r\n\r\n",
    "another key's value": b"VA 5 kkey:2 c1\r\nother\r\n",
    "another key's value by text": b"VALUE key:2 0 5 1\r\nother\r\nEND\r\n",
    "a value that goes on": b"VA 5 kkey:1 c1\r\notherwise\r\n",
    "a value and no end": b"VALUE key:1 0 5 1\r\nother\r\nOTHER\r\n",
    "an error": b"SERVER_ERROR secret\r\n",
    "an error of redis": b"-ERR unknown 'GET', with args beginning with: 'key:1' 'secret'\r\n",
    "a number of redis": b":seven\r\n",
    "a size of redis": b"$-7\r\n",
    "a list of redis": b"*2\r\n$3\r\nabc\r\n:1\r\n",
}

SILENCE = {"swallow": swallow, "come late": come_late, "stall": stall}


@pytest.mark.parametrize(
    ("how", "call"),
    [("come late", call) for call in CALLS]
    + [(how, call) for how in ("swallow", "stall") for call in ("get", "replace")],
)
def test_silence_ends_with_the_timeout(how: str, call: str, cache: Cache, between: Proxy) -> None:
    """A reply that does not come is a CacheTimeout, and no later call gets it."""
    make_call = calls_of(cache)[call]
    between.plan = [SILENCE[how]]
    fails_in_time(make_call, CacheTimeout)
    is_intact(cache)


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_no_answer(garbage: bytes, cache: Cache, between: Proxy) -> None:
    """Whatever a server says that is no reply to a call is a CacheError, and soon over."""
    for call in CALLS:
        make_call = patiently(partial(calls_of, cache))[call]
        between.always = garble(garbage)
        message = str(fails_in_time(make_call))
        between.always = None
        assert between.authority in message
        assert "key:1" not in message
        assert "secret" not in message
        is_intact(cache)


@pytest.mark.parametrize("call", CALLS)
def test_a_reply_that_comes_twice(call: str, cache: Cache, between: Proxy) -> None:
    """A second copy of a reply is never taken for the answer to the next call."""
    make_call = calls_of(cache)[call]
    between.plan = [lambda client, reply: client.sendall(reply + reply)]
    with suppress(CacheError):
        make_call()
    is_intact(cache)


@pytest.mark.parametrize("call", CALLS)
def test_a_reply_that_is_cut_short(call: str, cache: Cache, between: Proxy) -> None:
    """A reply of which the end is missing is no answer."""
    make_call = calls_of(cache)[call]
    between.always = cut
    fails_in_time(make_call)
    between.always = None
    is_intact(cache)


def test_a_lost_reply_of_replace_is_unknown(cache: Cache, between: Proxy) -> None:
    """A replace that had its effect and lost its reply raises; it is not repeated for a no."""
    handle = handle_of(cache, "key:1")
    between.plan = [hang_up]
    fails_in_time(lambda: cache.replace("key:1", handle, b"replaced", TTL))
    assert value_of(cache, "key:1") == b"replaced"


def test_a_lost_reply_of_get_or_add_is_unknown(flavour: str, cache: Cache, between: Proxy) -> None:
    """A get_or_add that won and lost its reply raises; it is not repeated to find itself."""
    between.plan = [hang_up]
    if flavour == "memcached-text":
        between.plan.insert(0, socket.socket.sendall)  # the first of its two calls
    fails_in_time(lambda: cache.get_or_add("key:new", b"mine", TTL))
    assert not cache.get_or_add("key:new", b"theirs", TTL).won


@pytest.mark.parametrize("protocol", ["text", "meta"])
@pytest.mark.parametrize("call", ["get", "set", "delete"])
def test_what_may_be_done_twice_is_repeated(
    call: str, protocol: str, memcached: Memcached, proxy: Callable[..., Proxy]
) -> None:
    """memcached: such a call is sent again when an idle connection turns out to be dead."""
    between = proxy(memcached)
    with closing(open_cache(f"memcached-{protocol}", between.authority, pool=1)) as cache:
        cache.set("key:1", b"value 1", TTL)
        make_call = calls_of(cache)[call]
        between.plan = [hang_up]
        make_call()
        between.plan = [hang_up, hang_up]
        fails_in_time(make_call)


def test_a_dribble_is_no_answer(memcached: Memcached, proxy: Callable[..., Proxy]) -> None:
    """memcached: the timeout is for the whole reply, however often a byte of it comes."""
    between = proxy(memcached)

    def dribble(client: socket.socket, reply: bytes) -> None:
        for byte in reply:
            client.sendall(bytes([byte]))
            threading.Event().wait(TIMEOUT / 4)

    with closing(open_cache("memcached-meta", between.authority)) as cache:
        cache.set("key:1", b"value" * 20, TTL)
        between.plan = [dribble]
        fails_in_time(lambda: cache.get("key:1"))
        assert value_of(cache, "key:1") == b"value" * 20


@pytest.mark.parametrize("size", [1, 4085, 4096, 5000])
def test_replies_in_pieces(
    size: int, flavour: str, make_cache: Callable[..., Cache], between: Proxy
) -> None:
    """A reply means the same wherever the network cuts it."""
    cache = make_cache(between.authority, timeout=5)
    value = (b"\r\nEND\r\n0123456789" * (size // 10 + 1))[:size]

    def send_in_pieces(client: socket.socket, reply: bytes) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(12):
            client.sendall(reply[start : start + 1])
            threading.Event().wait(0.002)
        client.sendall(reply[12:])

    cache.set("key:1", value, TTL)
    between.always = send_in_pieces
    for _ in range(2):
        assert value_of(cache, "key:1") == value
    assert cache.replace("key:1", handle_of(cache, "key:1"), b"next", TTL)


# -- a server that is not there -----------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_refused(call: str, cache: Cache, between: Proxy) -> None:
    """A server that is down is a CacheError that names it."""
    make_call = calls_of(cache)[call]
    between.stop()
    assert between.authority in str(fails_in_time(make_call))
    assert between.authority in str(fails_in_time(make_call))


def test_a_host_without_an_address(make_cache: Callable[..., Cache]) -> None:
    """A name that stands for no address is a CacheError like any other."""
    fails_in_time(lambda: make_cache("no-such-host.invalid").get("key:1"))
    fails_in_time(lambda: make_cache("a..b").get("key:1"))


def test_connecting_has_a_timeout(make_cache: Callable[..., Cache]) -> None:
    """A server that takes up no connection is a CacheTimeout after connect_timeout."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        host, port = full.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, port))
        cache = make_cache(f"{host}:{port}", timeout=60, connect_timeout=TIMEOUT)
        fails_in_time(lambda: cache.get("key:1"))


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_hangs(
    call: str, make_cache: Callable[..., Cache], own_server: Callable[[], AnyServer]
) -> None:
    """A call to a stopped process ends in time, and when it goes on, answers are right."""
    server = own_server()
    cache = make_cache(server.authority, pool=2)
    cache.set("key:1", b"value 1", TTL)
    cache.set("key:2", b"value 2", TTL)
    make_call = calls_of(cache, "key:late")[call]  # for it may have its effect when it goes on
    server.freeze()
    fails_in_time(make_call, CacheTimeout)
    server.thaw()
    is_intact(cache)


# -- a server that comes back ---------------------------------------------------------------


def test_restart(make_cache: Callable[..., Cache], own_server: Callable[[], AnyServer]) -> None:
    """The first calls after a restart find an empty server, over new connections."""
    server = own_server()
    cache = make_cache(server.authority, timeout=5, pool=8)
    open_connections(cache, 8)
    cache.set("key:1", b"old", TTL)
    handle = handle_of(cache, "key:1")
    server.restart()
    assert cache.replace("key:1", handle, b"late", TTL) is False
    for number in range(20):
        assert cache.get(f"key:{number}") is None
        assert cache.get_or_add(f"key:{number}", b"value", TTL).won


def test_a_handle_ends_with_its_server(own_memcached: Callable[..., Memcached]) -> None:
    """memcached: an id of the old server's does not fit the new server's entry of that id."""
    server = own_memcached()
    with (
        closing(open_cache("memcached-meta", server.authority)) as one,
        closing(open_cache("memcached-meta", server.authority)) as other,
    ):
        old = one.set("key:1", b"old", TTL)
        assert isinstance(old, int)
        server.restart()
        new = other.set("key:1", b"new", TTL)
        assert old == new  # the server has counted to the same number, or this shows nothing
        assert one.replace("key:1", old, b"late", TTL) is False
        assert value_of(one, "key:1") == b"new"


def test_down_and_up_again(
    make_cache: Callable[..., Cache], own_server: Callable[[], AnyServer]
) -> None:
    """A cache whose server was down for a while works when it is up, without a restart."""
    server = own_server()
    cache = make_cache(server.authority)
    cache.set("key:1", b"old", TTL)
    server.stop()
    for _ in range(3):
        fails_in_time(lambda: cache.get("key:1"))
    server.start()
    assert cache.get("key:1") is None
    cache.set("key:2", b"value 2", TTL)
    is_intact(cache)


def test_one_dead_server_of_two(own_memcached: Callable[..., Memcached]) -> None:
    """memcached: the keys of a dead server fail, and go nowhere else; the others are there."""
    servers = [own_memcached() for _ in range(2)]
    both = ",".join(server.authority for server in servers)
    keys = [f"key:{number}" for number in range(40)]
    with closing(open_cache("memcached-meta", both)) as cache:
        homes = {key: cache.server(key) for key in keys}
        assert set(homes.values()) == {server.authority for server in servers}
        for key in keys:
            cache.set(key, key.encode(), TTL)
        servers[0].stop()
        for key in keys:
            assert cache.server(key) == homes[key]
            if homes[key] == servers[0].authority:
                fails_in_time(partial(cache.get, key))
                fails_in_time(partial(cache.set, key, b"new", TTL))
            else:
                assert value_of(cache, key) == key.encode()


# -- a call that is broken off --------------------------------------------------------------


class Interrupted(BaseException):
    """What a worker's time-out raises, wherever the request happens to be."""


@pytest.mark.parametrize("call", CALLS)
def test_an_interrupted_call(call: str, cache: Cache, between: Proxy) -> None:
    """A call that is broken off takes its connection along, and gives back its place."""
    make_call = calls_of(cache)[call]
    is_interrupted(make_call, between)
    assert value_of(cache, "key:2") == b"value 2"
    is_intact(cache)


def is_interrupted(call: Callable[[], object], between: Proxy) -> None:
    """Make *call*, and break it off while its reply is on the way."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    def break_off(client: socket.socket, reply: bytes) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        threading.Event().wait(TIMEOUT / 2)
        client.sendall(reply)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        between.plan = [break_off]
        with pytest.raises(Interrupted):
            call()
    finally:
        signal.signal(signal.SIGUSR1, previous)


# -- threads and processes --------------------------------------------------------------------


def test_more_threads_than_connections(make_cache: Callable[..., Cache], server: AnyServer) -> None:
    """Threads that find every connection busy wait for one, and all get their own answers."""
    cache = make_cache(server.authority, timeout=5, pool=2)

    def work(thread: int) -> int:
        right = 0
        for number in range(30):
            cache.set(f"key:{thread}", b"%d" % number, TTL)
            right += value_of(cache, f"key:{thread}") == b"%d" % number
        return right

    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(work, range(12))) == [30] * 12


def test_waiting_for_a_connection_ends(cache: Cache, between: Proxy) -> None:
    """Of many threads before a silent server none waits for longer than a few timeouts."""
    between.always = swallow
    begin = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(cache.get, "key:1") for _ in range(8)]
        assert all(isinstance(call.exception(), CacheError) for call in calls)
    assert time.monotonic() - begin < GENEROUS
    between.always = None
    is_intact(cache)


FORKING = """
import os, sys
from {module} import {name} as Cache
from tieredsession.url import URL

cache = Cache.from_url(URL(sys.argv[1], "SESSION_CACHE_URL"))

def work(me):
    for number in range(150):
        value = b"%d:%d" % (me, number)
        cache.set(f"key:{{me}}", value, 60)
        entry = cache.get(f"key:{{me}}")
        assert entry is not None and entry.value == value, (me, number, entry)

work(0)
children = []
for me in range(1, 5):
    pid = os.fork()
    if pid == 0:
        try:
            work(me)
        except BaseException as error:  # nothing of the parent may run in the child
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    children.append(pid)
work(0)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
work(0)
cache.close()
"""


def test_forked_processes_have_their_own_connections(flavour: str, server: AnyServer) -> None:
    """After a fork no process reads what was sent for another one."""
    library, _, protocol = flavour.partition("-")
    name = "RedisCache" if library == "redis" else "MemcachedCache"
    script = FORKING.format(module=f"tieredsession.stores.{library}", name=name)
    url = server.url("timeout=5" + (f"&protocol={protocol}" if protocol else ""))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
