"""The demo, walked as a visitor walks it: in a browser with a cookie jar, on every store."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from html import unescape
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from werkzeug.test import Client, TestResponse

from tieredsession import ConfigurationError
from tieredsession.demo.app import MAX_ITEMS, STORES, Demo
from tieredsession.testing import FakeClock

OLD_KEY = "the first key of the demo's tests: 0123456789"
NEW_KEY = "the second key of the demo's tests: 9876543210"
SCRIPT = "<script>alert('&\"')</script>"


@dataclass
class Browser:
    """A visitor with a cookie jar, and the page that is open."""

    app: Demo
    client: Client = field(init=False)
    response: TestResponse = field(init=False)

    def __post_init__(self) -> None:
        self.client = Client(self.app)

    @property
    def html(self) -> str:
        """The page that is open."""
        return self.response.get_data(as_text=True)

    @property
    def text(self) -> str:
        """What a person reads of it."""
        body = self.html.partition("<body>")[2]
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())

    @property
    def visits(self) -> int:
        """The number that the counter shows."""
        return int(self._find(r'<p class="count">(\d+)</p>'))

    @property
    def cookie(self) -> str:
        """The token in the jar, empty if there is none."""
        cookie = self.client.get_cookie("id")
        return "" if cookie is None else cookie.value

    def open(self, path: str = "/") -> Browser:
        """Open a page and follow where it leads."""
        self.response = self.client.get(path, follow_redirects=True)
        return self

    def send(self, path: str, **form: str) -> Browser:
        """Send a form of the page that is open, and follow where it leads."""
        token = self._find(r'name="csrf" value="([^"]*)"')
        self.response = self.client.post(path, data={"csrf": token, **form}, follow_redirects=True)
        return self

    def replay(self) -> Callable[[], str]:
        """What the command that the page shows would print, now or later."""
        command = shlex.split(unescape(self._find(r"<pre[^>]*><code>([^<]*)</code></pre>")))
        assert command[:2] == ["curl", "--cookie"]
        name, _, token = command[2].partition("=")
        url = urlsplit(command[3])

        def run() -> str:
            thief = Client(self.app)
            thief.set_cookie(name, token)
            return thief.get(url.path).get_data(as_text=True)

        return run

    def _find(self, pattern: str) -> str:
        match = re.search(pattern, self.html)
        assert match is not None, pattern
        return match[1]


Start = Callable[..., Demo]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the demo on a store; twice is a restart of the server."""
    with ExitStack() as stack:

        def start(store: str, clock: FakeClock | None = None, **environ: str) -> Demo:
            demo = Demo(store, tmp_path / ".demo", environ, clock or FakeClock())
            return stack.enter_context(closing(demo))

        yield start


@pytest.fixture(params=sorted(set(STORES) - {"gae"}))  # which needs servers
def store(request: pytest.FixtureRequest) -> str:
    """The name of each store in turn."""
    return str(request.param)


@pytest.fixture
def browser(start: Start, store: str) -> Browser:
    """A new visitor who looks at the page for the first time."""
    return Browser(start(store)).open()


# -- the page -------------------------------------------------------------------------


def test_visits_are_counted(browser: Browser) -> None:
    """The counter counts the visits of one browser."""
    assert browser.visits == 1
    assert browser.open().visits == 2
    assert Browser(browser.app).open().visits == 1


def test_login_changes_the_cookie_and_keeps_the_data(browser: Browser) -> None:
    """After a login the data is there, and the cookie is another one."""
    before = browser.cookie
    browser.send("/list/add", name="Tea").send("/login", name="Ada")
    assert "Logged in as Ada" in browser.text
    assert "Tea" in browser.text
    assert browser.cookie != before


def test_login_kills_the_old_cookie(start: Start) -> None:
    """Whoever knew the cookie from before the login has nothing."""
    browser = Browser(start("sqlite")).open()
    before = browser.replay()
    assert before().startswith("A live session")
    browser.send("/login", name="Ada")
    assert before().startswith("No session")


def test_a_nested_change_is_kept(browser: Browser) -> None:
    """A number in a dict in a list is changed in place, and the change is found."""
    browser.send("/list/add", name="Tea").send("/list/add", name="Milk")
    browser.send("/list/more", item="Tea").open()
    assert "{'name': 'Tea', 'quantity': 2}, {'name': 'Milk', 'quantity': 1}" in browser.text
    browser.send("/list/remove", item="Tea").open()
    assert "[{'name': 'Milk', 'quantity': 1}]" in browser.text


def test_a_message_is_shown_once(browser: Browser) -> None:
    """A flash message is on the next page and on no other."""
    browser.send("/login", name="Ada")
    assert "Welcome, Ada." in browser.text
    assert "Welcome, Ada." not in browser.open().text


def test_logout_forgets_everything(browser: Browser) -> None:
    """After a logout the browser has another session with nothing of the old one."""
    browser.send("/login", name="Ada").send("/list/add", name="Green tea")
    before = browser.cookie
    browser.send("/logout")
    assert "You are logged out" in browser.text
    assert "Logged in as Ada" not in browser.text
    assert "Green tea" not in browser.text
    assert browser.visits == 1
    assert browser.cookie != before


def test_replay_after_logout(browser: Browser, store: str) -> None:
    """The old cookie is dead on a server store, alive on the cookie store, and the page says so."""
    browser.send("/login", name="Ada").open()
    replay, text = browser.replay(), browser.text
    assert replay().startswith("A live session: logged in as Ada.")
    browser.send("/logout")
    if store == "cookie":
        assert "After logout: Alive. A signed cookie cannot be revoked" in text
        assert "a copy replayed after logout still works" in text
        assert "not revocable" in text
        assert replay().startswith("A live session: logged in as Ada.")
    else:
        assert "After logout: Dead." in text
        assert "not revocable" not in text
        assert replay().startswith("No session")


def test_remember_me(browser: Browser) -> None:
    """The switch makes the cookie outlive the browser for 30 days, and back again."""
    browser.send("/remember", on="1")
    assert 'aria-checked="true"' in browser.html
    assert "in 30 days" in browser.text
    (line,) = browser.response.history[0].headers.getlist("Set-Cookie")
    assert "Max-Age=2592000" in line
    browser.send("/remember", on="")
    assert 'aria-checked="false"' in browser.html
    (line,) = browser.response.history[0].headers.getlist("Set-Cookie")
    assert "Max-Age" not in line


def test_the_page_tells_where_the_session_lives(browser: Browser, store: str) -> None:
    """The page names the store and its place: the file, the process or the cookie."""
    assert STORES[store].rpartition(".")[2] in browser.text
    place = {"sqlite": "sessions.sqlite3", "memory": "this process", "cookie": "cookie itself"}
    assert place[store] in browser.text


def test_the_page_tells_what_the_session_holds(browser: Browser) -> None:
    """Every key is shown with its type and value, those of the session's own features too."""
    browser.send("/list/add", name="Tea").open()
    for row in (
        "visits int 3",
        "seen datetime datetime.datetime(2027,",
        "list list [",
        "_csrf str",
    ):
        assert row in browser.text


def test_the_page_tells_what_it_cost(browser: Browser, store: str) -> None:
    """The page counts the store calls and cookie bytes of its own request and of those before."""
    browser.open()
    came = len("id=" + browser.cookie) if store != "cookie" else None
    browser.open()
    sent = sum(map(len, browser.response.headers.getlist("Set-Cookie")))
    row = re.search(r"GET / load \+ update (\d+) (\d+)", browser.text)
    assert row is not None
    assert came is None or int(row[1]) == came
    assert int(row[2]) == sent
    assert (sent == 0) is (store != "cookie")
    assert "store calls 2" in browser.text
    browser.send("/login", name="Ada")
    assert re.search(r"POST /login load \+ delete \+ create", browser.text)


def test_the_page_tells_what_happened(browser: Browser, store: str) -> None:
    """The events are those that any observer is told, the newest first."""
    browser.send("/login", name="Ada").send("/logout")
    told = re.findall(r"Session(\w+)", browser.text.rpartition("observer was told")[2])
    assert told == ["Saved", "Created", "Ended", "Saved", "Renewed", "Created"]


def test_a_forged_cookie_is_an_event(browser: Browser) -> None:
    """A cookie that nobody issued is a new session, and the page says why it was refused."""
    browser.client.set_cookie("id", browser.cookie[:-2] + ("AA", "BB")["AA" in browser.cookie])
    assert browser.open().visits == 1
    assert "TokenRefused" in browser.text


def test_an_untouched_session_costs_nothing(browser: Browser) -> None:
    """A page that does not look at its session makes no call, sets no cookie and varies on none."""
    page = browser.client.get("/untouched")
    assert page.status_code == 303
    assert "Set-Cookie" not in page.headers
    assert "Vary" not in page.headers
    assert "GET /untouched none" in browser.open().text


# -- what it refuses ------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/login", "/logout", "/remember", "/list/add", "/list/more"])
def test_a_form_without_its_token_is_refused(browser: Browser, path: str) -> None:
    """A form that another site wrote changes nothing, whichever form it is."""
    browser.send("/login", name="Ada").send("/list/add", name="Tea").open()
    before = browser.visits
    for forged in ({}, {"csrf": ""}, {"csrf": "guessed"}):
        form = {"name": "Eve, uninvited", "item": "Tea", "on": "1", **forged}
        response = browser.client.post(path, data=form)
        assert response.status_code == 403
        assert "Refused" in response.get_data(as_text=True)
    browser.open()
    assert browser.visits == before + 1
    assert "Logged in as Ada" in browser.text
    assert "uninvited" not in browser.text
    assert "[{'name': 'Tea', 'quantity': 1}]" in browser.text


def test_a_token_dies_with_its_session(browser: Browser) -> None:
    """A form from before a login is refused after it."""
    stale = browser.html
    browser.send("/login", name="Ada")
    token = re.findall(r'name="csrf" value="([^"]*)"', stale)[0]
    assert browser.client.post("/logout", data={"csrf": token}).status_code == 403


@pytest.mark.parametrize("path", ["/login", "/list/add"])
@pytest.mark.parametrize("name", ["", "   ", "x" * 41], ids=["empty", "blank", "long"])
def test_a_bad_name_is_explained(start: Start, path: str, name: str) -> None:
    """A name that is empty or too long is refused in words, and nothing is kept of it."""
    browser = Browser(start("memory")).open().send(path, name=name)
    assert "has 1 to 40 characters" in browser.text
    assert "Logged in as nobody" in browser.text
    assert "Nothing yet." in browser.text


def test_an_item_is_on_the_list_once(start: Start) -> None:
    """An item that is there already is refused in words."""
    browser = Browser(start("memory")).open().send("/list/add", name="Tea")
    assert "Tea is on the list." in browser.send("/list/add", name="Tea").text


@pytest.mark.parametrize("path", ["/list/more", "/list/remove"])
def test_an_item_that_is_gone_changes_nothing(start: Start, path: str) -> None:
    """A form about an item that another tab removed is no error."""
    browser = Browser(start("memory")).open().send(path, item="Tea")
    assert browser.response.status_code == 200
    assert "Nothing yet." in browser.text


def test_a_list_has_an_end(start: Start) -> None:
    """On a server store the list takes as many items as it says, and refuses the next."""
    browser = Browser(start("memory")).open()
    for number in range(MAX_ITEMS):
        browser.send("/list/add", name=f"item {number}")
    assert "items at most" not in browser.text
    assert "items at most" in browser.send("/list/add", name="one more").text


def test_a_cookie_that_would_not_fit(start: Start) -> None:
    """When the list outgrows the cookie the page says so, and what was there before stays."""
    browser = Browser(start("cookie")).open()
    items = 0
    while browser.response.status_code == 200 and items < MAX_ITEMS:
        before = browser.cookie
        # No compression makes these shorter.
        browser.send("/list/add", name="".join(chr(0x4E00 + byte) for byte in os.urandom(40)))
        items += 1
    assert browser.response.status_code == 413
    assert "browsers keep 4096" in browser.text
    assert browser.cookie == before
    assert browser.open().html.count("one more") == items - 1


@pytest.mark.parametrize("path", ["/nowhere", "/login", "/list"])
def test_other_addresses_are_not_found(start: Start, path: str) -> None:
    """What is no page is answered with 404, without a session."""
    response = Client(start("memory")).get(path)
    assert response.status_code == 404
    assert "Set-Cookie" not in response.headers


def test_text_stays_text(browser: Browser) -> None:
    """Whatever a visitor types, and whatever Host a request names, is shown as text."""
    browser.send("/login", name=SCRIPT).send("/list/add", name=SCRIPT)
    assert SCRIPT in browser.text
    assert "<script" not in browser.html.lower()
    page = browser.client.get("/", headers={"Host": "a\"'><script>"})
    assert "<script" not in page.get_data(as_text=True).lower()
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


# -- restart and change of key --------------------------------------------------------


def restart(browser: Browser, app: Demo) -> Browser:
    """The same browser at another server."""
    other = Browser(app)
    other.client.set_cookie("id", browser.cookie)
    return other.open()


@pytest.mark.parametrize(("store", "visits"), [("sqlite", 2), ("cookie", 2), ("memory", 1)])
def test_restart(start: Start, store: str, visits: int) -> None:
    """A restart keeps the sessions in the file and in cookies, and ends those in memory."""
    browser = Browser(start(store)).open()
    survives = "Survived" if visits == 2 else "Not survived"
    assert f"Restart of the server {survives}" in browser.text
    assert restart(browser, start(store)).visits == visits


@pytest.mark.parametrize("store", ["sqlite", "cookie"])
def test_change_of_key(start: Start, store: str) -> None:
    """With the old key as a fallback a session survives; without it a new one begins quietly."""
    first = Browser(start(store, SECRET_KEY=OLD_KEY)).open()
    second = restart(first, start(store, SECRET_KEY=NEW_KEY, SECRET_KEY_FALLBACKS=OLD_KEY))
    assert second.visits == 2
    third = restart(first, start(store, SECRET_KEY=NEW_KEY))
    assert third.response.status_code == 200
    assert third.visits == 1
    assert "TokenRefused reason forged" in third.text
    assert third.cookie != first.cookie


def test_the_key_is_kept_from_others(start: Start, tmp_path: Path) -> None:
    """The demo's own key is random, readable by its owner alone, and stays the same."""
    start("cookie")
    path = tmp_path / ".demo" / "secret_key"
    secret = path.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", secret)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    start("cookie")
    assert path.read_text() == secret


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A start in a folder that cannot hold the demo's files ends with one sentence."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Demo("sqlite", tmp_path / "file", {})


# -- over real HTTP -------------------------------------------------------------------


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Host and port of ``python -m tieredsession demo``, from the line that it prints."""
    command = [sys.executable, "-m", "tieredsession", "demo", "--port", "0"]
    environ = {name: value for name, value in os.environ.items() if "SECRET_KEY" not in name}
    server = subprocess.Popen(
        command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert server.stdout is not None
    with server:
        try:
            found = re.search(rb"http://127\.0\.0\.1:(\d+)/", server.stdout.readline())
            assert found is not None
            yield "127.0.0.1", int(found[1])
        finally:
            server.terminate()


def test_the_command_serves_the_demo(address: tuple[str, int], tmp_path: Path) -> None:
    """The command prints an address at which the whole walk works over HTTP."""
    cookie = ""

    def ask(path: str, **form: str) -> str:
        nonlocal cookie
        with closing(HTTPConnection(*address, timeout=30)) as connection:
            headers = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST" if form else "GET", path, urlencode(form), headers)
            response = connection.getresponse()
            page = response.read().decode()
            assert response.status in (200, 303)
            if line := response.headers["Set-Cookie"]:
                assert "Secure" not in line
                cookie = line.partition(";")[0]
            return page

    def token(page: str) -> str:
        return str(re.findall(r'name="csrf" value="([^"]*)"', page)[0])

    ask("/")
    csrf = token(ask("/"))
    before = cookie
    ask("/list/add", csrf=csrf, name="Tea")
    ask("/login", csrf=csrf, name="Ada")
    assert cookie != before
    page = ask("/")
    assert '<p class="count">3</p>' in page
    assert "Logged in as <strong>Ada</strong>" in page
    old = cookie
    ask("/logout", csrf=token(page))
    cookie = old
    assert ask("/plain").startswith("No session")
    assert (tmp_path / ".demo" / "sessions.sqlite3").exists()
