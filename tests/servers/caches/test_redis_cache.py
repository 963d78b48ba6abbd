"""Redis: what calls cost, what a URL can say, and where there is more than one server."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tieredsession.contracts import Entry, Found, Record
from tieredsession.errors import CacheError, ConfigurationError
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.memory import MemorySessionStore
from tieredsession.stores.redis import RedisCache
from tieredsession.stores.tiered import TieredSessionStore
from tieredsession.testing import FakeClock
from tieredsession.url import URL

if TYPE_CHECKING:
    from servers.conftest import Certificates, Impostor, Proxy, RedisServer, Server

TTL = 60.0
DAY = 24 * 3600

Open = Callable[[str], RedisCache]


@pytest.fixture
def open_cache() -> Iterator[Open]:
    """Opens caches by their URLs."""
    opened: list[RedisCache] = []

    def open_one(url: str) -> RedisCache:
        opened.append(RedisCache.from_url(URL(url, "SESSION_CACHE_URL")))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


def works(cache: RedisCache) -> None:
    """Every call does what it should."""
    assert cache.get_or_add("key", b"lease", TTL) == Found(None, True, b"lease")
    assert cache.get_or_add("key", b"late", TTL) == Found(b"lease", False, b"lease")
    assert cache.replace("key", b"lease", b"value", TTL)
    assert not cache.replace("key", b"lease", b"late", TTL)
    assert cache.get("key") == Entry(b"value", b"value")
    assert cache.set("key", b"other", TTL) == b"other"
    cache.delete("key")
    assert cache.get("key") is None


# -- what calls cost ----------------------------------------------------------------------


def test_the_commands_of_each_call(redis: RedisServer, open_cache: Open) -> None:
    """Every call is one command; a server that does not know a script yet gets it once."""
    cache = open_cache(redis.url())

    def cost(call: Callable[[], object]) -> dict[str, int]:
        redis.reset_counts()
        call()
        return redis.counts()

    cache.get("warm")  # connects
    assert cost(lambda: cache.get("key")) == {"get": 1}
    assert cost(lambda: cache.set("key", b"value", TTL)) == {"set": 1}
    assert cost(lambda: cache.delete("key")) == {"del": 1}
    assert cost(lambda: cache.server("key")) == {}
    first = {"evalsha": 1, "eval": 1, "get": 1, "set": 1}  # with what the script does
    assert cost(lambda: cache.get_or_add("key", b"lease", TTL)) == first
    assert cost(lambda: cache.get_or_add("key", b"late", TTL)) == {"evalsha": 1, "get": 1}
    assert cost(lambda: cache.get_or_add("new", b"", TTL)) == {"evalsha": 1, "get": 1, "set": 1}
    assert cost(lambda: cache.replace("key", b"lease", b"value", TTL)) == first
    assert cost(lambda: cache.replace("key", b"lease", b"late", TTL)) == {"evalsha": 1, "get": 1}


def test_a_server_that_forgot_its_scripts(redis: RedisServer, open_cache: Open) -> None:
    """After a restart or SCRIPT FLUSH a script is sent again."""
    cache = open_cache(redis.url())
    works(cache)
    redis.flush()
    works(cache)


def test_nothing_is_sent_before_the_first_call(open_cache: Open) -> None:
    """A cache can be opened while its server is down, and named without a call."""
    for url in ("redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"):
        assert "127.0.0.1" in open_cache(url).server("key")
    assert "main" in open_cache("redis+sentinel://127.0.0.1:1/main").server("key")


@pytest.mark.parametrize(
    ("ttl", "milliseconds"),
    [(0.0001, 1), (1.5, 1500), (400 * DAY, 400 * DAY * 1000), (float("inf"), 10**15)],
)
def test_how_a_ttl_is_sent(
    ttl: float, milliseconds: int, redis: RedisServer, proxy: Callable[..., Proxy], open_cache: Open
) -> None:
    """A ttl is sent in milliseconds, rounded up, and is never too large for the server."""
    between = proxy(redis)
    cache = open_cache(f"redis://{between.authority}?timeout=5")
    cache.set("key", b"value", ttl)
    assert between.requests[-1].split(b"\r\n")[-2] == b"%d" % milliseconds


# -- what a server refuses ----------------------------------------------------------------


def test_a_full_server(own_redis: Callable[..., RedisServer], open_cache: Open) -> None:
    """A set that a server without room refuses takes the old value along."""
    cache = open_cache(own_redis("--maxmemory", "3mb", "--maxmemory-policy", "noeviction").url())
    cache.set("key", b"old", TTL)
    assert cache.get_or_add("lease", b"lease", TTL).won

    def fill() -> None:
        for number in range(10_000):
            cache.set(f"fill:{number}", b"x" * 10_000, TTL)

    with pytest.raises(CacheError, match="OutOfMemoryError"):
        fill()
    with pytest.raises(CacheError, match="OutOfMemoryError"):
        cache.set("key", b"new", TTL)
    assert cache.get("key") is None
    with pytest.raises(CacheError, match="OutOfMemoryError"):
        fill()  # into what the value refused has left free
    with pytest.raises(CacheError):
        cache.replace("lease", b"lease", b"value" * 10_000, TTL)
    assert cache.get("lease") == Entry(b"lease", b"lease")


def test_a_key_of_another_type(redis: RedisServer, open_cache: Open) -> None:
    """What somebody else keeps under a key, and is no value, is a CacheError without data."""
    redis.ask(b"LPUSH secret:list one", b"QUIT")
    cache = open_cache(redis.url())
    with pytest.raises(CacheError) as error:
        cache.get("secret:list")
    assert "secret" not in str(error.value)
    cache.delete("secret:list")
    assert cache.get("secret:list") is None


def test_a_server_that_becomes_a_replica(
    own_redis: Callable[..., RedisServer], proxy: Callable[..., Proxy], open_cache: Open
) -> None:
    """When a name leads to another server and the old one only follows, the new one is found."""
    old, new = own_redis(), own_redis()
    between = proxy(old)
    cache = open_cache(f"redis://{between.authority}?timeout=5")
    works(cache)
    old.ask(b"REPLICAOF " + new.authority.replace(":", " ").encode(), b"QUIT")
    between.server = new
    with pytest.raises(CacheError, match="ReadOnlyError"):
        cache.set("key", b"value", TTL)
    works(cache)


# -- one server -----------------------------------------------------------------------------


def test_databases_are_apart(redis: RedisServer, open_cache: Open) -> None:
    """The number in the path, or db=, chooses the database."""
    caches = [
        open_cache(f"redis://{redis.authority}"),
        open_cache(f"valkey://{redis.authority}/3"),
        open_cache(redis.unix_url("db=5")),
    ]
    for number, cache in enumerate(caches):
        cache.set("key", b"%d" % number, TTL)
    caches.append(open_cache(f"redis://{redis.authority}?db=3"))
    values = [entry.value for cache in caches if (entry := cache.get("key")) is not None]
    assert values == [b"0", b"1", b"2", b"1"]


def test_passwords(own_redis: Callable[..., RedisServer], open_cache: Open) -> None:
    """A password is used, with its user's name or without, and is in no message."""
    server = own_redis("--requirepass", "a:b@c/d", "--user", *["ann", "on", ">word", "~*", "+@all"])
    quoted = "a%3Ab%40c%2Fd"
    works(open_cache(f"redis://:{quoted}@{server.authority}?timeout=5"))
    works(open_cache(f"redis://ann:word@{server.authority}?timeout=5"))
    for wrong in ("", "ann:wrong@", ":wrong@"):
        with pytest.raises(CacheError) as error:
            open_cache(f"redis://{wrong}{server.authority}?timeout=5").get("key")
        assert "wrong" not in str(error.value)


def test_tls(
    certificates: Certificates, own_redis: Callable[..., RedisServer], open_cache: Open
) -> None:
    """rediss:// knows a server by its certificate; ca= says whom to believe, verify=0 anybody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = ["--tls-cert-file", certificates.chain, "--tls-key-file", certificates.key]
    own_redis("--tls-port", str(port), "--tls-auth-clients", "no", *map(str, files))
    works(open_cache(f"rediss://127.0.0.1:{port}?timeout=5&ca={certificates.ca}"))
    works(open_cache(f"valkeys://127.0.0.1:{port}?timeout=5&verify=0"))
    works(open_cache(f"redis://127.0.0.1:{port}?timeout=5&tls=1&ca={certificates.ca}"))
    with pytest.raises(CacheError):
        open_cache(f"rediss://127.0.0.1:{port}?timeout=5").get("key")
    with pytest.raises(CacheError):  # it is a certificate for an address, not for this name
        open_cache(f"rediss://localhost:{port}?timeout=5&ca={certificates.ca}").get("key")


# -- fakeredis ------------------------------------------------------------------------------


def test_fakes_of_one_name_are_one(open_cache: Open) -> None:
    """Within a process all caches of one fakeredis:// URL share their entries."""
    name = uuid4()
    one, two = open_cache(f"fakeredis:///{name}"), open_cache(f"fakeredis:///{name}")
    other = open_cache(f"fakeredis:///{uuid4()}")
    works(one)
    one.set("key", b"value", TTL)
    assert two.get("key") == Entry(b"value", b"value")
    assert other.get("key") is None


# -- several servers ------------------------------------------------------------------------


def ask_until(server: Server, command: bytes, answer: bytes) -> None:
    """Ask again and again until *answer* is in what the server says."""
    end = time.monotonic() + 20
    while answer not in server.ask(command, b"QUIT"):
        assert time.monotonic() < end, f"{command!r} is not answered by {answer!r}"
        threading.Event().wait(0.05)


@pytest.fixture
def cluster(
    own_redis: Callable[..., RedisServer], free_port: Callable[[], int]
) -> list[RedisServer]:
    """A cluster of two nodes, each with half of the slots."""
    options = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
    buses = [str(free_port()), str(free_port())]
    nodes = [own_redis(*options, "--cluster-port", bus) for bus in buses]
    nodes[0].ask(b"CLUSTER ADDSLOTSRANGE 0 8191", b"QUIT")
    nodes[1].ask(b"CLUSTER ADDSLOTSRANGE 8192 16383", b"QUIT")
    address = nodes[1].authority.replace(":", " ")
    nodes[0].ask(f"CLUSTER MEET {address} {buses[1]}".encode(), b"QUIT")
    for node in nodes:
        ask_until(node, b"CLUSTER INFO", b"cluster_slots_ok:16384")
        ask_until(node, b"CLUSTER INFO", b"cluster_state:ok")
    return nodes


def test_a_cluster(cluster: list[RedisServer], open_cache: Open) -> None:
    """Keys are where the cluster has them, and a node that is down takes its own keys along."""
    cache = open_cache(f"redis+cluster://{cluster[0].authority}?timeout=5")
    keys = [f"key:{number}" for number in range(30)]
    for key in keys:
        assert cache.get_or_add(key, b"lease", TTL).won
        assert cache.replace(key, b"lease", key.encode(), TTL)
    assert {cache.server(key) for key in keys} == {f"cluster of {cluster[0].authority}"}
    works(cache)
    held = [int(node.ask(b"DBSIZE", b"QUIT").split()[0][1:]) for node in cluster]
    assert 0 < held[0] < sum(held) == 30
    cluster[1].stop()
    begin = time.monotonic()
    answered = 0
    for key in keys:
        with suppress(CacheError):
            assert cache.get(key) == Entry(key.encode(), key.encode())
            answered += 1
    assert answered == held[0]
    assert time.monotonic() - begin < 10


def test_a_logout_while_a_cluster_fails_over(
    cluster: list[RedisServer],
    own_redis: Callable[..., RedisServer],
    free_port: Callable[[], int],
    open_cache: Open,
) -> None:
    """A session that ended while its node was away is not shown by the node that takes over."""
    bus = str(free_port())
    replica = own_redis("--cluster-enabled", "yes", "--cluster-port", bus)
    address = replica.authority.replace(":", " ")
    cluster[0].ask(f"CLUSTER MEET {address} {bus}".encode(), b"QUIT")
    name = cluster[1].ask(b"CLUSTER MYID", b"QUIT").split(b"\r\n")[1]
    ask_until(replica, b"CLUSTER NODES", name)
    replica.ask(b"CLUSTER REPLICATE " + name, b"QUIT")
    ask_until(replica, b"INFO replication", b"master_link_status:up")

    options = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")
    durable = MemorySessionStore.from_options(options)
    cache = open_cache(f"redis+cluster://{cluster[0].authority}?timeout=1")
    clock = FakeClock()
    store = TieredSessionStore(cache, durable, options.ids, options.record_envelope, clock=clock)
    saved = [store.create(Record(b"", 2000.0, 0.0), 1000.0) for _ in range(20)]
    size = cluster[1].ask(b"DBSIZE", b"QUIT").split(b"\r\n")[0]
    ask_until(replica, b"DBSIZE", size + b"\r\n")
    cluster[1].stop()
    for one in saved:
        store.delete(one.token, 1000.0, one.version)
    replica.ask(b"CLUSTER FAILOVER TAKEOVER", b"QUIT")
    port = replica.authority.partition(":")[2].encode()
    ask_until(cluster[0], b"CLUSTER SLOTS", b":" + port)
    for _ in range(3):
        clock.advance(60)
        assert [store.load(one.token, 1000.0) for one in saved] == [None] * 20


def test_a_cluster_that_is_down(free_port: Callable[[], int], open_cache: Open) -> None:
    """A cluster of which no node answers is a CacheError, each time, and in time."""
    nodes = ",".join(f"127.0.0.1:{free_port()}" for _ in range(3))
    cache = open_cache(f"redis+cluster://{nodes}?timeout=0.2")
    begin = time.monotonic()
    for _ in range(3):
        with pytest.raises(CacheError):
            cache.get("key")
    assert time.monotonic() - begin < 5


def test_many_threads_before_a_cluster_that_is_silent(open_cache: Open) -> None:
    """Threads that come together to a cluster of which no node answers do not wait in turn."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent, ExitStack() as stack:
        host, port = silent.getsockname()
        for _ in range(4):  # until it takes up no more connections
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, port))
        cache = open_cache(f"redis+cluster://{host}:{port}?timeout=0.2")

        def ask(_: int) -> float:
            begin = time.monotonic()
            with pytest.raises(CacheError):
                cache.get("key")
            return time.monotonic() - begin

        with ThreadPoolExecutor(30) as threads:
            assert max(threads.map(ask, range(30))) < 3


def test_sentinel_and_a_failover(
    own_redis: Callable[..., RedisServer],
    start_server: Callable[..., Server],
    free_port: Callable[[], int],
    tmp_path: Path,
    open_cache: Open,
) -> None:
    """A service is found by asking Sentinels, also after another server has taken over."""
    master, replica = own_redis(), own_redis()
    host, port = master.authority.split(":")
    replica.ask(f"REPLICAOF {host} {port}".encode(), b"QUIT")
    ask_until(replica, b"INFO replication", b"master_link_status:up")
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"port {(own := free_port())}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor main {host} {port} 1\n"
        "sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 3000\n"
    )
    sentinel = start_server("redis-server", ("127.0.0.1", own), str(settings), "--sentinel")
    ask_until(sentinel, b"SENTINEL REPLICAS main", replica.authority.encode())
    dead = f"127.0.0.1:{free_port()}"
    cache = open_cache(f"redis+sentinel://{dead},{sentinel.authority}/main?timeout=5")
    works(cache)
    assert cache.server("key") == "main (by Sentinel)"
    master.stop()
    with pytest.raises(CacheError):
        cache.get("key")
    ask_until(replica, b"ROLE", b"master")
    port_line = replica.authority.partition(":")[2].encode()
    ask_until(sentinel, b"SENTINEL MASTERS", port_line)
    works(cache)


SENTINEL_ANSWER = ["name", "main", "ip", "{host}", "port", "{port}", "flags", "master"]
SENTINEL_ANSWER += ["num-other-sentinels", "0", "quorum", "1"]


@pytest.fixture
def behind_sentinel(impostor: Callable[..., Impostor]) -> Callable[[str], str]:
    """Makes a URL by which a Sentinel leads to the server of that address."""

    def url(authority: str) -> str:
        host, port = authority.split(":")
        words = [word.format(host=host, port=port) for word in SENTINEL_ANSWER]
        answer = f"*1\r\n*{len(words)}\r\n" + "".join(f"${len(w)}\r\n{w}\r\n" for w in words)

        def be_sentinel(client: socket.socket) -> None:
            while request := client.recv(4096):
                client.sendall(answer.encode() if b"MASTERS" in request.upper() else b"+OK\r\n")

        return f"redis+sentinel://{impostor(be_sentinel).authority}/main"

    return url


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
def test_more_threads_than_connections_to_several_servers(
    kind: str, request: pytest.FixtureRequest, redis: RedisServer, open_cache: Open
) -> None:
    """Threads that find every connection busy wait for one there, too, and are not refused."""
    if kind == "cluster":
        url = f"redis+cluster://{request.getfixturevalue('cluster')[0].authority}"
    else:
        url = request.getfixturevalue("behind_sentinel")(redis.authority)
    cache = open_cache(f"{url}?timeout=5&pool=2")
    together = threading.Barrier(12)

    def ask(number: int) -> None:
        value = b"%d" % number * 1000
        cache.set(f"key:{number}", value, TTL)
        together.wait(20)
        for _ in range(20):
            assert cache.get(f"key:{number}") == Entry(value, value)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(ask, range(12)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_while_every_connection_is_busy(
    redis: RedisServer,
    proxy: Callable[..., Proxy],
    behind_sentinel: Callable[[str], str],
    open_cache: Open,
) -> None:
    """A child has every connection to give, also those that its parent's threads were using."""
    between = proxy(redis)
    cache = open_cache(f"{behind_sentinel(between.authority)}?timeout=5&pool=1")
    cache.set("key", b"value", TTL)
    busy, go_on = threading.Event(), threading.Event()

    def hold(client: socket.socket, reply: bytes) -> None:
        busy.set()
        go_on.wait(20)
        client.sendall(reply)

    between.plan = [hold]
    thread = threading.Thread(target=cache.get, args=("key",))
    thread.start()
    assert busy.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            os._exit(0 if cache.get("key") == Entry(b"value", b"value") else 1)
        except BaseException:
            os._exit(2)
    ended = os.waitpid(child, 0)[1]
    go_on.set()
    thread.join()
    assert ended == 0


def test_an_interrupted_call_behind_sentinel(
    redis: RedisServer,
    proxy: Callable[..., Proxy],
    behind_sentinel: Callable[[str], str],
    open_cache: Open,
) -> None:
    """A call that is broken off takes its connection along there, too."""
    between = proxy(redis)
    cache = open_cache(f"{behind_sentinel(between.authority)}?timeout=1&pool=1")
    cache.set("key:1", b"value 1", TTL)
    cache.set("key:2", b"value 2", TTL)

    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    def break_off(client: socket.socket, reply: bytes) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        threading.Event().wait(0.4)
        client.sendall(reply)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        between.plan = [break_off]
        with pytest.raises(Interrupted):
            cache.get("key:1")
    finally:
        signal.signal(signal.SIGUSR1, previous)
    for _ in range(3):
        assert cache.get("key:2") == Entry(b"value 2", b"value 2")


# -- URLs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://", "redis://host:port"),
        ("redis://a,b", "redis://host:port"),
        ("redis:///0", "redis://host:port"),
        ("redis://h/first", "'first'"),
        ("redis://h/1/2", "'1/2'"),
        ("redis://h/1?db=2", "unknown option: db"),
        ("redis://h?db=-1", "db='-1'"),
        ("redis://h?timeout=never", "timeout='never'"),
        ("redis://h?connect_timeout=0", "connect_timeout='0'"),
        ("redis://h?pool=0", "pool='0'"),
        ("redis://h?retry=3", "unknown option: retry"),
        ("redis://h?decode_responses=1", "unknown option: decode_responses"),
        ("redis://h?ca=/etc/hosts", "unknown option: ca"),
        ("rediss://h?verify=perhaps", "verify='perhaps'"),
        ("redis+unix://h/path", "redis+unix:///path"),
        ("redis+unix://", "redis+unix:///path"),
        ("redis+sentinel://h", "redis+sentinel://host:port"),
        ("redis+sentinel:///main", "redis+sentinel://host:port"),
        ("redis+cluster://", "redis+cluster://host:port"),
        ("redis+cluster://h/1", "redis+cluster://host:port"),
        ("redis+cluster://h?db=1", "unknown option: db"),
        ("fakeredis://h", "fakeredis:///name"),
        ("fakeredis:///name?timeout=1", "unknown option: timeout"),
        ("memcached://h", "'memcached'"),
    ],
    ids=lambda text: text,
)
def test_urls_that_stop_the_start(url: str, problem: str, open_cache: Open) -> None:
    """A URL that is not understood to the end is a ConfigurationError that says why."""
    with pytest.raises(ConfigurationError, match=r"^SESSION_CACHE_URL ") as error:
        open_cache(url)
    assert problem in str(error.value)
