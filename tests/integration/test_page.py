"""The demo page in headless Chromium, over the DevTools protocol, with a whole flowtx behind it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from flowtx.auth import mint
from tests.integration.async_flow_process import AsyncFlowProcess, free_ports, until, until_async

reactor: Any = global_reactor

PATIENCE = 20.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)

CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason=f"THE PAGE IS NOT TESTED: there is no {', '.join(NAMES)} on the PATH (apt install chromium)",
)

# --- parts: a browser, its tabs ---------------------------------------------------------------------


class Browser(ProcessProtocol):
    """A headless Chromium, spoken to over a pipe: it ends with it, even if this process is killed.

    It reads commands on its descriptor 3 and writes answers and events on 4, each a JSON text and a NUL.
    """

    transport: Any

    def __init__(self, program: str) -> None:
        self._profile = Path(mkdtemp(prefix="ftx-chromium-"))
        self._numbers = count(1)
        self._asked: dict[int, Deferred[dict[str, Any]]] = {}
        self._buffer = b""
        self._log = b""
        self._tabs: dict[str, Tab] = {}
        self._ended: Deferred[None] = Deferred()
        descriptors = {0: "w", 1: "r", 2: "r", 3: "w", 4: "r"}
        command = [program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        reactor.spawnProcess(self, program, command, None, childFDs=descriptors)

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803 - Twisted's name
        if childFD != 4:
            self._log += data
            return
        *texts, self._buffer = (self._buffer + data).split(b"\0")
        for text in texts:
            self._told(json.loads(text))

    def _told(self, message: dict[str, Any]) -> None:
        if "id" not in message:
            tab = self._tabs.get(message.get("sessionId", ""))
            if tab is not None:
                tab.told(message["method"], message["params"])
            return
        asked = self._asked.pop(message["id"], None)
        if asked is None:
            return
        if "error" in message:
            asked.errback(AssertionError(message["error"]))
        else:
            asked.callback(message["result"])

    def processEnded(self, reason: Failure) -> None:
        asked, self._asked = self._asked, {}
        for deferred in asked.values():
            deferred.errback(AssertionError(f"Chromium has ended: {self._log.decode(errors='replace')}"))
        self._ended.callback(None)

    async def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """Carry out a command of the DevTools protocol."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        if session is not None:
            command["sessionId"] = session
        answer = self._asked[number] = Deferred()
        self.transport.writeToChild(3, json.dumps(command).encode() + b"\0")
        return await answer.addTimeout(PATIENCE, reactor)

    @contextlib.asynccontextmanager
    async def tab(self, *, width: int = 1280, height: int = 900) -> AsyncIterator[Tab]:
        """Open a tab in a window of its own, without cookies or storage, and close it at the end."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        try:
            created = await self.call(
                "Target.createTarget",
                url="about:blank",
                browserContextId=context,
                newWindow=True,
                width=width,
                height=height,
            )
            session = await self.call("Target.attachToTarget", targetId=created["targetId"], flatten=True)
            tab = self._tabs[session["sessionId"]] = Tab(self, session["sessionId"])
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.call(f"{domain}.enable")
            yield tab
        finally:
            await self.call("Target.disposeBrowserContext", browserContextId=context)

    async def close(self) -> None:
        """End it."""
        try:
            if not self._ended.called:
                self.transport.closeChildFD(3)
                ended: Deferred[None] = Deferred()
                self._ended.chainDeferred(ended)
                try:
                    await ended.addTimeout(PATIENCE, reactor)
                except BaseException:
                    self.transport.signalProcess("KILL")
                    raise
        finally:
            shutil.rmtree(self._profile, ignore_errors=True)


class Tab:
    """One page in the browser.

    Attributes:
        problems: the console's errors and warnings, exceptions, and what the browser itself complains
            of, such as a violation of the Content-Security-Policy.
        requests: the URLs that were asked for.
        joins: the payloads with which the page joined its channel.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.joins: list[dict[str, Any]] = []

    def told(self, event: str, parameters: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.problems.append(f"console: {[one.get('value') for one in parameters['args']]}")
        elif event == "Runtime.exceptionThrown":
            self.problems.append(f"exception: {parameters['exceptionDetails']}")
        elif event == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{parameters['entry']['source']}: {parameters['entry']['text']}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event == "Network.webSocketCreated":
            self.requests.append(parameters["url"])
        elif event == "Network.webSocketFrameSent" and '"phx_join"' in parameters["response"]["payloadData"]:
            self.joins.append(json.loads(parameters["response"]["payloadData"])[4])

    def problems_but_lost_connections(self) -> list[str]:
        """What is left of them where the server was away or not ready; browsers log that by themselves."""
        expected = re.compile(
            "WebSocket connection to .* failed|ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|status of 503"
        )
        return [problem for problem in self.problems if not expected.search(problem)]

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        return await self._browser.call(method, self._session, **parameters)

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript, await what it gives, and return that as JSON."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str, within: float = PATIENCE) -> None:
        """Wait for JavaScript to be true; a page that is being loaded is waited for."""

        async def ask() -> bool:
            answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
            return bool(answer["result"].get("value"))

        try:
            await until_async(ask, within)
        except AssertionError:
            text = await self.evaluate("document.body.innerText")
            raise AssertionError(
                f"{expression} was not true; problems {self.problems}; page: {text}"
            ) from None

    async def text(self, selector: str) -> str:
        """What is to be read in an element."""
        found: str = await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return found

    async def click(self, selector: str) -> None:
        """Click with the mouse where an element is to be seen."""
        name = json.dumps(selector)
        await self.until(f"document.querySelector({name})?.checkVisibility()")
        x, y = await self.evaluate(
            "(found => { found.scrollIntoView({block: 'center'}); const box = found.getBoundingClientRect();"
            f" return [box.x + box.width / 2, box.y + box.height / 2] }})(document.querySelector({name}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def press(self, key: str, code: str, number: int, text: str = "") -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            parameters = {"type": kind, "key": key, "code": code, "windowsVirtualKeyCode": number}
            await self.call("Input.dispatchKeyEvent", **parameters, **({"text": text} if text else {}))

    async def shows(self, title: str, times: int = 1) -> None:
        """Wait until so many of the listed notifications have this title."""
        titles = "[...document.querySelectorAll('#list .title')].map(one => one.textContent)"
        await self.until(f"{titles}.filter(one => one === {json.dumps(title)}).length === {times}")

    async def unread(self, number: int) -> None:
        """Wait until the page tells this number of unread notifications, and marks as many."""
        await self.until(
            f"document.querySelector('#unread').textContent === '{number}' && "
            f"document.querySelectorAll('#list .unread').length === {number}"
        )

    async def state(self, state: str) -> None:
        """Wait for a state of the connection."""
        await self.until(f"document.querySelector('#state')?.dataset.state === '{state}'")


class Person(NamedTuple):
    """A user of one test."""

    id: str
    name: str
    token: str


Module = pytest_twisted.async_yield_fixture(scope="module")


@Module
async def flow() -> AsyncIterator[AsyncFlowProcess]:
    async with AsyncFlowProcess("--demo", "--reconnect-window=0.5") as flow:
        yield flow


@Module
async def browser() -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    browser = Browser(CHROMIUM)
    try:
        yield browser
    finally:
        await browser.close()


NewPerson = Callable[..., Coroutine[Any, Any, Person]]
_numbers = count(1)


@pytest.fixture
def new_person(flow: AsyncFlowProcess) -> NewPerson:
    """Makes a user whom no other test has."""

    async def make(name: str = "Eve Example") -> Person:
        person = f"person-{next(_numbers)}"
        await flow.command("users", "add", person, "--name", name, "--email", f"{person}@example.com")
        return Person(person, name, await flow.token(person))

    return make


def link(flow: AsyncFlowProcess, token: str) -> str:
    """The page's URL as the server prints it."""
    return f"{flow.admin_url}/demo#socket={flow.url}&token={token}"


# --- what the page does -----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_printed_link_shows_the_user_and_the_session(
    flow: AsyncFlowProcess, browser: Browser
) -> None:
    printed = re.search(r"^ +Open +(\S+)$", flow.log, re.MULTILINE)
    assert printed is not None, flow.log
    async with browser.tab() as tab:
        await tab.open(printed[1])
        await tab.state("connected")
        assert await tab.text("#user-name") == "Alice Adams"
        assert await tab.text("#user-email") == "alice@example.com"
        assert await tab.text("#avatar") == "AA"
        assert re.fullmatch("[0-9a-f]{32}", await tab.text("#session-id"))
        assert await tab.text("#last-seq") == "0"
        assert re.match("in (59 minutes|1 hour)", await tab.text("#expiry"))
        await tab.unread(0)
        # The empty inbox says how to fill it, without giving the key away.
        curl = await tab.text("#curl")
        assert f"curl -X POST {flow.admin_url}/api/notifications" in curl
        assert "$(cat " in curl
        assert flow.api_key not in await tab.evaluate("document.documentElement.outerHTML")
        # The token is out of the address bar and the history, and a reload works all the same.
        assert await tab.evaluate("location.href") == f"{flow.admin_url}/demo"
        await tab.evaluate("window.old = true")
        await tab.call("Page.reload")
        await tab.until("!window.old")
        await tab.state("connected")
        assert await tab.text("#user-name") == "Alice Adams"
        assert await tab.evaluate("document.title") == "Alice Adams · flowtx"
        # Nothing is asked of anybody else, and nothing complains.
        assert {re.sub(r"\?.*", "", url) for url in tab.requests} == {
            f"{flow.admin_url}/demo",
            f"{flow.admin_url}/static/page.css",
            f"{flow.admin_url}/static/page.js",
            f"{flow.admin_url}/static/phoenix.mjs",
            f"{flow.admin_url}/static/favicon.svg",
            f"{flow.url}/websocket",
        }
        assert tab.problems == []


@pytest_twisted.ensureDeferred
async def test_a_notification_appears_as_it_comes(
    flow: AsyncFlowProcess, browser: Browser, new_person: NewPerson
) -> None:
    person = await new_person()
    await flow.push(person.id, "deal.won", {"title": "Before", "amount": 5})
    async with browser.tab() as tab:
        await tab.open(link(flow, person.token))
        await tab.shows("Before")
        await tab.unread(1)
        await tab.evaluate("window.same = true")
        await flow.push(person.id, "deal.won", {"title": "Acme signed", "amount": 12000})
        await tab.shows("Acme signed")
        await flow.push(person.id, "export.ready", {"rows": [1, 2], "note": None})
        await tab.unread(3)
        assert await tab.evaluate("window.same") is True
        seqs = "[...document.querySelectorAll('#list .item')].map(one => one.dataset.seq).join()"
        assert await tab.evaluate(seqs) == "3,2,1"
        assert await tab.text("[data-seq='3'] .badge") == "export.ready"
        assert json.loads(await tab.text("[data-seq='3'] .json")) == {"rows": [1, 2], "note": None}
        assert (await tab.text("[data-seq='2'] .fields")).split() == ["amount", "12,000"]
        assert re.match("(just now|. seconds ago) · .*:", await tab.text("[data-seq='2'] time"))
        assert await tab.text("#last-seq") == "3"
        assert await tab.evaluate("document.title") == f"(3) {person.name} · flowtx"
        assert "export.ready" in await tab.evaluate("document.querySelector('#announcer').textContent")
        assert tab.problems == []


@pytest_twisted.ensureDeferred
async def test_what_one_tab_reads_is_read_in_the_other(
    flow: AsyncFlowProcess, browser: Browser, new_person: NewPerson
) -> None:
    person = await new_person()
    for number in (1, 2, 3, 4):
        await flow.push(person.id, "task.assigned", {"title": f"Task {number}"})
    async with browser.tab() as one, browser.tab() as other:
        for tab in (one, other):
            await tab.open(link(flow, person.token))
            await tab.unread(4)
        await one.click("[data-seq='3'] button")
        for tab in (one, other):
            await tab.until("!document.querySelector('[data-seq=\"3\"]').classList.contains('unread')")
            await tab.unread(3)
        # The focus goes on to the next one, and the keyboard does what the mouse does.
        assert await one.evaluate("document.activeElement.closest('.item').dataset.seq") == "2"
        await one.press("Enter", "Enter", 13, "\r")
        for tab in (one, other):
            await tab.until("!document.querySelector('[data-seq=\"2\"]').classList.contains('unread')")
            await tab.unread(2)
        await other.click("#mark-all")
        for tab in (one, other):
            await tab.unread(0)
            await tab.until("document.querySelector('#mark-all').ariaDisabled === 'true'")
        # So the server has it, too.
        await one.call("Page.reload")
        await one.until("document.querySelector('#empty')?.checkVisibility()")
        await one.unread(0)
        assert await one.text("#last-seq") == "4"
        assert one.problems == other.problems == []


@pytest_twisted.ensureDeferred
async def test_the_page_comes_back_with_its_server(
    flow: AsyncFlowProcess, browser: Browser, new_person: NewPerson
) -> None:
    person = await new_person()
    for title in ("Read meanwhile", "Unread before"):
        await flow.push(person.id, "deal.won", {"title": title})
    async with browser.tab() as tab, browser.tab() as elsewhere:
        await tab.open(link(flow, person.token))
        await tab.unread(2)
        await flow.stop()
        await tab.state("reconnecting")
        assert await tab.evaluate("document.querySelector('#list button').ariaDisabled") == "true"

        # Up again where the page cannot see it: what happens now, it misses.
        ports = flow.port, flow.admin_port
        flow.port, flow.admin_port = free_ports(2)
        try:
            await flow.start()
            await flow.push(person.id, "deal.won", {"title": "Pushed meanwhile"})
            await elsewhere.open(link(flow, person.token))
            await elsewhere.unread(3)
            await elsewhere.click("[data-seq='1'] button")
            await elsewhere.unread(2)
        finally:
            await flow.stop()
            flow.port, flow.admin_port = ports
            await flow.start()

        await tab.state("connected")
        await flow.push(person.id, "deal.won", {"title": "Pushed later"})
        await tab.shows("Pushed later")
        for title in ("Read meanwhile", "Unread before", "Pushed meanwhile"):
            await tab.shows(title)
        await tab.unread(3)
        assert await tab.evaluate("document.querySelector('[data-seq=\"1\"] .done')?.textContent") == "Read"
        assert "last_seq" not in tab.joins[0]
        assert tab.joins[1]["last_seq"] == 2
        # Read elsewhere: the count disagrees, and the page asks for all that is unread, once.
        assert len(tab.joins) == 3
        assert tab.problems_but_lost_connections() == []
        assert elsewhere.problems_but_lost_connections() == []


@pytest_twisted.ensureDeferred
async def test_a_refused_token_is_said_to_be(
    flow: AsyncFlowProcess, browser: Browser, new_person: NewPerson
) -> None:
    person = await new_person()
    secret = (flow.data_dir / "secret").read_bytes().strip()
    expired = mint(secret, "HS512", person.id, ttl=60, now=time.time() - 3600)
    forged = mint(secret[::-1], "HS512", person.id, ttl=60, now=time.time())
    async with browser.tab() as tab:
        for token, text in ((expired, "it expired 59 minutes ago"), (forged, "it may have expired")):
            before = len(tab.requests)
            await tab.open(link(flow, token))
            await tab.until(f"document.querySelector('#notice-text').textContent.includes('{text}')")
            await tab.state("refused")
            assert f"flowtx token {person.id}" in await tab.text("#notice")
            attempts = [url for url in tab.requests[before:] if url.startswith("ws")]
            assert len(attempts) == 3
            assert await tab.evaluate("document.activeElement.id") == "gate-token"
        # Something else than a token is not even tried, and a good one mends it.
        await tab.call("Input.insertText", text="nonsense")
        await tab.click("#gate-form [type=submit]")
        await tab.until("document.querySelector('#gate-error').textContent.startsWith('That is not a token')")
        await tab.evaluate("document.querySelector('#gate-token').select()")
        await tab.call("Input.insertText", text=person.token)
        await tab.click("#gate-form [type=submit]")
        await tab.state("connected")
        assert await tab.text("#user-name") == person.name
        assert await tab.evaluate("document.querySelector('#notice').checkVisibility()") is False
        assert tab.problems_but_lost_connections() == []


@pytest_twisted.ensureDeferred
async def test_without_a_token_it_asks_for_one(flow: AsyncFlowProcess, browser: Browser) -> None:
    async with browser.tab() as tab:
        # A link may not send this tab's token elsewhere: without a token, its socket URL is nothing.
        await tab.open(f"{flow.admin_url}/demo#socket=ws://127.0.0.1:9/socket")
        await tab.until("document.querySelector('#gate')?.checkVisibility()")
        assert (
            await tab.evaluate("document.querySelector('#gate-socket').value") == "ws://127.0.0.1:4000/socket"
        )
        assert await tab.evaluate("document.activeElement.id") == "gate-token"
        # The whole link will do, and the page can be left for another user.
        await tab.call("Input.insertText", text=link(flow, await flow.token("bob")))
        await tab.click("#gate-form [type=submit]")
        await tab.state("connected")
        assert await tab.text("#user-name") == "Bob Brown"
        await tab.click("#other-token")
        await tab.until("document.querySelector('#gate').checkVisibility()")
        await until(lambda: "Session terminating for user bob" in flow.log, PATIENCE)
        assert await tab.evaluate("sessionStorage.length") == 0
        # A new link in an open tab changes the fragment only.
        await tab.open(link(flow, await flow.token("alice")))
        await tab.state("connected")
        assert await tab.text("#user-name") == "Alice Adams"
        assert tab.problems == []


@pytest_twisted.ensureDeferred
async def test_what_others_wrote_is_shown_as_text(
    flow: AsyncFlowProcess, browser: Browser, new_person: NewPerson
) -> None:
    attack = '<img src="/x" onerror="window.attacked = true"><script>window.attacked = true</script>'
    person = await new_person(attack)
    payloads: list[Any] = [
        {"title": attack, attack: attack},
        {"title": attack, "deep": {attack: attack}},
        {attack: [attack]},
        attack,
        [attack],
        None,
        {"title": ""},
        {"title": {"title": 1}, "__proto__": {"title": "x"}, "constructor": 1},
        {"title": "wide " + "W" * 500, "value": "W" * 500, "n": 1e300},
        {"deep": json.loads("[" * 30 + "]" * 30)},
        {"long": ["x" * 60] * 900},
    ]
    async with browser.tab(width=360, height=800) as tab:
        await tab.call(
            "Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=False
        )
        await tab.open(link(flow, person.token))
        await tab.state("connected")
        for payload in payloads:
            await flow.push(person.id, f"<b>{'wide' * 25}</b>", payload)
        await tab.unread(len(payloads))
        assert await tab.text("#user-name") == attack
        assert await tab.text("[data-seq='1'] .title") == attack
        assert await tab.text("[data-seq='1'] .badge") == f"<b>{'wide' * 25}</b>"
        assert attack.replace('"', r"\"") in await tab.text("[data-seq='4'] .json")
        assert await tab.evaluate("document.querySelectorAll('main img, main script, main b').length") == 0
        assert await tab.evaluate("window.attacked") is None
        # A narrow window has room for all of it.
        assert await tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth") is True
        assert tab.problems == []
        # And had it become HTML, the policy would have stopped it, and told: so it would be seen above.
        await tab.evaluate(
            "document.body.append(Object.assign(document.createElement('script'),"
            " {textContent: 'window.attacked = true'}))"
        )
        await until(lambda: any("Content Security Policy" in one for one in tab.problems), PATIENCE)
        assert await tab.evaluate("window.attacked") is None
