"""The console in headless Chromium, with a whole flowtx, and a thousand Sessions in it."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, gatherResults

from flowtx.auth import mint
from flowtx.web.keys import add_key
from tests.integration.async_flow_process import AsyncFlowProcess, until
from tests.integration.rawclient import RawClient, connect, request
from tests.integration.test_page import CHROMIUM, PATIENCE, Browser, Tab, pytestmark

__all__ = ["pytestmark"]

reactor: Any = global_reactor

CROWD = 1_000
AT_ONCE = 50
HOSTILE = "<img src=x onerror=window.attacked=1>"
OPTIONS = ("--users-query=claims", "--ping-interval=0", "--heartbeat-timeout=3600", "--reconnect-window=0.5")
AGENT = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
)

Module = pytest_twisted.async_yield_fixture(scope="module")


class Crowd:
    """Users with their connections.

    Args:
        flow: where they connect.
    """

    def __init__(self, flow: AsyncFlowProcess) -> None:
        self._flow = flow
        self._clients: list[RawClient] = []
        self._secret = (flow.data_dir / "secret").read_bytes().strip()

    async def come(
        self, user_id: str, name: str = "", device: str | None = None, agent: str = AGENT
    ) -> RawClient:
        """Connect a user and join their topic."""
        claims = {"name": name or user_id, "email": f"{user_id}@example.com"}
        token = mint(self._secret, "HS512", user_id, ttl=3600, now=time.time(), claims=claims)
        client = await connect(reactor, f"tcp:127.0.0.1:{self._flow.port}")
        self._clients.append(client)
        client.send(request(f"/socket/websocket?token={token}&vsn=2.0.0", ("User-Agent", agent)))
        assert (await client.response()).status == 101
        payload = {} if device is None else {"device": device}
        client.text(json.dumps(["1", "1", f"user:{user_id}", "phx_join", payload]))
        assert b'"status":"ok"' in (await client.message()).payload
        return client

    async def come_many(self, user_ids: Sequence[str], **options: Any) -> None:
        """Connect many users, some at a time."""
        for first in range(0, len(user_ids), AT_ONCE):
            some = user_ids[first : first + AT_ONCE]
            coming = [Deferred.fromCoroutine(self.come(user_id, **options)) for user_id in some]
            await gatherResults(coming, consumeErrors=True)

    async def leave(self) -> None:
        """Disconnect all."""
        clients, self._clients = self._clients, []
        for client in clients:
            client.reset()
        await until(lambda: all(client.end for client in clients), PATIENCE)


@Module
async def keys_file(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    yield tmp_path_factory.mktemp("keys") / "api-keys"


@Module
async def keys(keys_file: Path) -> AsyncIterator[dict[str, str]]:
    names = {"looker": frozenset({"read"}), "notifier": frozenset({"notify"})}
    yield {name: add_key(keys_file, name, scopes) for name, scopes in names.items()}  # type: ignore[arg-type]


@Module
async def flow(keys_file: Path, keys: dict[str, str]) -> AsyncIterator[AsyncFlowProcess]:
    async with AsyncFlowProcess(*OPTIONS, f"--api-keys={keys_file}") as flow:
        yield flow


@Module
async def browser() -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    browser = Browser(CHROMIUM)
    try:
        yield browser
    finally:
        await browser.close()


@pytest_twisted.async_yield_fixture
async def crowd(flow: AsyncFlowProcess) -> AsyncIterator[Crowd]:
    crowd = Crowd(flow)
    yield crowd
    await crowd.leave()


async def log_in(tab: Tab, flow: AsyncFlowProcess, key: str | None = None, *, fragment: str = "") -> None:
    """Open the console with a key."""
    await tab.open(f"{flow.admin_url}/{fragment}")
    await tab.until("document.activeElement?.id === 'gate-key'")
    await tab.call("Input.insertText", text=flow.api_key if key is None else key)
    await tab.press("Enter", "Enter", 13, "\r")
    await tab.state("connected")


def remove_key(file: Path, name: str) -> None:
    """Take a key out of its file."""
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith(f"{name} ")))


async def ids(tab: Tab) -> list[str]:
    """The users in the list."""
    found: list[str] = await tab.evaluate(
        "[...document.querySelectorAll('#rows tr')].map(row => row.dataset.key)"
    )
    return found


async def picture(tab: Tab, name: str) -> None:
    """Keep a picture of the page, where ``FLOWTX_PICTURES`` names a directory to look at them."""
    directory = os.environ.get("FLOWTX_PICTURES")
    if directory:
        taken = await tab.call("Page.captureScreenshot", format="png")
        (Path(directory) / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


async def resize(tab: Tab, width: int, height: int) -> None:
    await tab.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
    )


async def prefer(tab: Tab, scheme: str) -> None:
    """Have the page shown as who prefers a colour scheme sees it."""
    await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


@pytest_twisted.ensureDeferred
async def test_a_thousand_sessions_are_watched_searched_and_ordered(
    flow: AsyncFlowProcess, browser: Browser, crowd: Crowd
) -> None:
    await crowd.come_many([f"user-{number:04}" for number in range(CROWD - 1)], device="web")
    for _ in range(3):
        await crowd.come("zoe", "Zoë Zimmer", "phone")
    async with browser.tab(width=1440, height=1000) as tab:
        await resize(tab, 1440, 1000)
        await log_in(tab, flow)
        await tab.until(f"document.querySelector('#count').textContent.startsWith('{CROWD:,} on this node')")
        # The newest first, and no more than asked for.
        assert (await ids(tab))[0] == "zoe"
        assert len(await ids(tab)) == 50
        # A search, by the keyboard.
        await tab.press("/", "Slash", 191, "/")
        assert await tab.evaluate("document.activeElement.id") == "search"
        await tab.call("Input.insertText", text="ZIMMER")
        await tab.until("document.querySelector('#rows').children.length === 1")
        assert await ids(tab) == ["zoe"]
        assert await tab.text("#count") == f"1 of {CROWD:,} match"
        await tab.until("document.querySelector('#announcer').textContent.startsWith('1 of')")
        await tab.press("Escape", "Escape", 27)
        await tab.until("document.querySelector('#rows').children.length === 50")
        # The orders.
        for order, first in (("user_id", "user-0000"), ("oldest", "user-0000"), ("devices", "zoe")):
            await tab.evaluate(
                f"(sort => {{ sort.value = '{order}'; sort.dispatchEvent(new Event('change')) }})"
                "(document.querySelector('#sort'))"
            )
            await tab.until(f"document.querySelector('#rows tr').dataset.key === '{first}'")
        assert await tab.text("#rows tr .devices") == "phone, +2"
        # Who comes and goes is seen to.
        await crowd.come("aaron", "Aaron Aster", "tablet")
        await tab.until(
            f"document.querySelector('#count').textContent.startsWith('{CROWD + 1:,} on this node')"
        )
        for _ in range(4):
            await flow.push("zoe", "deal.won", {"title": "Acme signed"})
        figures = (
            "Object.fromEntries([...document.querySelectorAll('.figure')]"
            ".map(one => [one.children[0].textContent, one.children[1].textContent]))"
        )
        await tab.until(f"{figures}['Sessions'] === '{CROWD + 1:,}'")
        await tab.until(f"{figures}['Push latency, p99'].endsWith('s')")
        assert await tab.evaluate("document.querySelectorAll('.drawing .line[d^=M]').length") >= 5
        for scheme in ("light", "dark"):
            await prefer(tab, scheme)
            await picture(tab, f"crowd-{scheme}-1440")
        assert tab.problems == []


@pytest_twisted.ensureDeferred
async def test_one_user_is_shown_with_all_there_is_to_know(
    flow: AsyncFlowProcess, browser: Browser, crowd: Crowd
) -> None:
    phone = await crowd.come("ida", "Ida Ingram", "phone")
    await crowd.come("ida", "Ida Ingram", "laptop")
    async with browser.tab(width=1440, height=1400) as tab:
        await resize(tab, 1440, 1400)
        await log_in(tab, flow)
        await tab.until("document.querySelector('[data-key=ida] .link')?.checkVisibility()")
        # All of it by the keyboard: the row, its user, the form.
        await tab.evaluate("document.querySelector('[data-key=ida] .link').focus()")
        await tab.press("Enter", "Enter", 13, "\r")
        await tab.until("document.querySelectorAll('#connections li').length === 2")
        assert await tab.evaluate("document.activeElement.id") == "user-title"
        assert await tab.text("#user-title") == "ida"
        assert await tab.text("#user-who") == "Ida Ingram · ida@example.com"
        assert await tab.evaluate("location.hash") == "#user=ida"
        facts = (
            "Object.fromEntries([...document.querySelectorAll('#user-facts div')]"
            ".map(one => [one.children[0].textContent, one.children[1].textContent]))"
        )
        await tab.until(f"{facts}.Presence === 'online'")
        assert (await tab.evaluate(facts))["Session"] == "ready"
        assert (await tab.evaluate(facts))["Unread"] == "0"
        devices = "[...document.querySelectorAll('#connections .device')].map(one => one.textContent)"
        assert await tab.evaluate(devices) == ["phone", "laptop"]
        assert "Chrome/140" in await tab.text("#connections .agent")
        assert await tab.text("#connections .topics") == "user:ida"
        # A test notification: it is in the inbox, on its way to both, and with one of them.
        assert await tab.evaluate("document.querySelector('#push-user').value") == "ida"
        await tab.evaluate("document.querySelector('#push-type').focus()")
        await tab.press("Enter", "Enter", 13, "\r")
        await tab.until("document.querySelector('#push-result').textContent.includes('seq 1')")
        await tab.until("document.querySelectorAll('#inbox li').length === 1")
        assert await tab.text("#inbox .payload") == '{"title":"A test from the console"}'
        assert b"A test from the console" in (await phone.message()).payload
        await tab.until("[...document.querySelectorAll('.cursor')].every(one => one.textContent === '1')")
        phone.text('["1","2","user:ida","ack",{"seq":1}]')
        flight = "[...document.querySelectorAll('#connections .flight')].map(one => one.textContent)"
        await tab.until(f"{flight}.join() === '0,1'")
        await tab.until(f"{facts}.Unread === '1' && {facts}['Last seq'] === '1'")
        # What is wrong is said where it was typed.
        await tab.evaluate("document.querySelector('#push-payload').value = '{'")
        await tab.click("#push-form [type=submit]")
        await tab.until(
            "document.querySelector('#push-result').textContent.startsWith('The payload is not JSON')"
        )
        assert await tab.evaluate("document.activeElement.id") == "push-payload"
        await tab.evaluate("document.querySelector('#push-payload').value = '1'")
        await tab.evaluate("document.querySelector('#push-user').value = 'no such id!'")
        await tab.click("#push-form [type=submit]")
        await tab.until("document.querySelector('#push-result').className === 'error'")
        # The recorder tells of the connections.
        await tab.until("document.querySelectorAll('#events li').length > 0")
        for scheme in ("light", "dark"):
            await prefer(tab, scheme)
            await picture(tab, f"user-{scheme}-1440")
        # To close a connection takes a second press, to go on to something else takes it back.
        await tab.click("#connections li:last-child button")
        assert await tab.text("#connections li:last-child button") == "Really close?"
        await tab.evaluate("document.activeElement.blur()")
        assert await tab.text("#connections li:last-child button") == "Close"
        for _ in range(2):
            await tab.click("#connections li:last-child button")
        await tab.until("document.querySelectorAll('#connections li').length === 1")
        assert await tab.evaluate(devices) == ["phone"]
        await tab.until("document.querySelector('#announcer').textContent === 'The connection is closed.'")
        await tab.until("document.querySelectorAll('#ends li').length === 1")
        assert "connection_closed" in await tab.text("#ends")
        for _ in range(2):
            await tab.click("#stop")
        assert await phone.ended() in ("fin", "reset")
        await tab.until(f"{facts}.Session === 'none here'")
        await tab.until(f"{facts}.Presence === 'offline'")
        await tab.until("document.querySelector('#no-connections').checkVisibility()")
        # Back to the list, by the keyboard.
        await tab.evaluate("document.querySelector('#user-title').focus()")
        await tab.press("Escape", "Escape", 27)
        assert await tab.evaluate("document.querySelector('#user').checkVisibility()") is False
        assert await tab.evaluate("document.activeElement.id") == "search"
        assert tab.problems == []


@pytest_twisted.ensureDeferred
async def test_disconnect_and_a_user_who_is_not_here(
    flow: AsyncFlowProcess, browser: Browser, crowd: Crowd
) -> None:
    client = await crowd.come("jon")
    await flow.push("kay", "deal.won", {"title": "Missed"})
    async with browser.tab() as tab:
        await log_in(tab, flow, fragment="#user=jon")
        await tab.until("document.querySelectorAll('#connections li').length === 1")
        for _ in range(2):
            await tab.click("#disconnect")
        frame = await client.message()
        assert (frame.opcode, frame.code) == (8, 1001)
        # A whole id that is typed opens its user, who need not be here.
        await tab.click("#search")
        await tab.call("Input.insertText", text="kay")
        await tab.press("Enter", "Enter", 13, "\r")
        await tab.until("document.querySelector('#inbox .payload')?.textContent.includes('Missed')")
        assert await tab.text("#user-facts dd") == "none here"
        assert await tab.evaluate("document.querySelector('#stop').ariaDisabled") == "true"
        await tab.evaluate("location.hash = '#user=no%20such%20id'")
        await tab.until(
            "document.querySelector('#user-problem').textContent === 'no user can have such an id'"
        )
        assert tab.problems == []


@pytest_twisted.ensureDeferred
async def test_hostile_texts_stay_texts(flow: AsyncFlowProcess, browser: Browser, crowd: Crowd) -> None:
    await crowd.come("mallory", HOSTILE, HOSTILE, HOSTILE)
    await crowd.come("wide", "W" * 120, "W" * 128, "W" * 250)
    for user_id in ("mallory", "wide"):
        await flow.push(user_id, HOSTILE[:40] + "W" * 80, {"a": HOSTILE, "wide": "W" * 900})
    async with browser.tab(width=360, height=800) as tab:
        await resize(tab, 360, 800)
        await log_in(tab, flow, fragment="#user=mallory")
        await tab.until("document.querySelector('#connections .agent')?.textContent.includes('onerror')")
        await tab.until("document.querySelector('#inbox .payload')?.textContent.includes('onerror')")
        await tab.until("document.querySelector('[data-key=mallory] .name')?.textContent.includes('onerror')")
        assert await tab.text("#connections .device") == HOSTILE
        assert HOSTILE in await tab.text("#user-who")
        assert await tab.evaluate("document.querySelectorAll('main img, main script').length") == 0
        assert await tab.evaluate("window.attacked") is None
        narrow = "document.documentElement.scrollWidth <= window.innerWidth"
        for user_id in ("mallory", "wide"):
            await tab.evaluate(f"location.hash = '#user={user_id}'")
            await tab.until("document.querySelector('#inbox .payload')?.checkVisibility()")
            assert await tab.evaluate(narrow) is True
        await tab.evaluate("location.hash = '#user=mallory'")
        await tab.until("document.querySelector('#connections .agent')?.textContent.includes('onerror')")
        await tab.evaluate("scrollTo(0, 0)")
        for scheme in ("light", "dark"):
            await prefer(tab, scheme)
            await picture(tab, f"top-{scheme}-360")
        await tab.evaluate("document.querySelector('#user').scrollIntoView()")
        await picture(tab, "user-dark-360")
        assert tab.problems == []
        # Had it become HTML, the policy would have stopped it, and told.
        await tab.evaluate(
            "document.body.append(Object.assign(document.createElement('script'),"
            " {textContent: 'window.attacked = true'}))"
        )
        await until(lambda: any("Content Security Policy" in one for one in tab.problems), PATIENCE)


@pytest_twisted.ensureDeferred
async def test_a_key_sees_and_does_what_it_is_for(
    flow: AsyncFlowProcess, browser: Browser, crowd: Crowd, keys: dict[str, str]
) -> None:
    await crowd.come("lou")
    async with browser.tab() as tab:
        await log_in(tab, flow, keys["looker"], fragment="#user=lou")
        await tab.until("document.querySelectorAll('#connections li').length === 1")
        for part in ("#push", "#disconnect", "#stop"):
            assert await tab.evaluate(f"document.querySelector('{part}').checkVisibility()") is False
        assert await tab.evaluate("document.querySelectorAll('#connections button').length") == 0
        assert "key looker (read)" in await tab.text("#where")
        assert tab.problems == []
    async with browser.tab() as tab:
        await log_in(tab, flow, keys["notifier"], fragment="#user=lou")
        await tab.until("document.querySelector('#push').checkVisibility()")
        for part in ("#figures", "#rows", "#user"):
            assert await tab.evaluate(f"document.querySelector('{part}').checkVisibility()") is False
        await picture(tab, "notifier")
        await tab.evaluate("document.querySelector('#push-user').focus()")
        await tab.call("Input.insertText", text="lou")
        await tab.press("Enter", "Enter", 13, "\r")
        await tab.until("document.querySelector('#push-result').textContent.includes('seq 1')")
        assert tab.problems == []


@pytest_twisted.ensureDeferred
async def test_a_wrong_key_is_said_to_be(flow: AsyncFlowProcess, browser: Browser) -> None:
    async with browser.tab() as tab:
        await tab.open(flow.admin_url)
        await tab.until("document.activeElement?.id === 'gate-key'")
        await picture(tab, "gate")
        await tab.press("Enter", "Enter", 13, "\r")
        assert await tab.text("#gate-error") == "Give a key."
        # Whatever a key is made of, it gets to the server.
        await tab.call("Input.insertText", text="no?~>ffffff?????")
        await tab.press("Enter", "Enter", 13, "\r")
        await tab.until(
            "document.querySelector('#gate-error').textContent.startsWith('The server did not take this key')"
        )
        assert await tab.evaluate("document.activeElement.id") == "gate-key"
        assert await tab.evaluate("document.querySelector('#gate-key').value") == ""
        assert sum(url.startswith("ws") for url in tab.requests) == 3
        assert tab.problems_but_lost_connections() == []


@pytest_twisted.ensureDeferred
async def test_the_key_is_kept_only_where_that_is_wanted(flow: AsyncFlowProcess, browser: Browser) -> None:
    async with browser.tab() as tab:
        await log_in(tab, flow)
        assert await tab.evaluate("sessionStorage.length + localStorage.length") == 0
        await tab.evaluate("window.old = true")
        await tab.call("Page.reload")
        await tab.until("!window.old && document.activeElement?.id === 'gate-key'")
        # Nowhere in what was asked for.
        assert not any(flow.api_key in url for url in tab.requests)
        await tab.call("Input.insertText", text=flow.api_key)
        await tab.click("#gate-keep")
        await tab.click("#gate-form [type=submit]")
        await tab.state("connected")
        await tab.evaluate("window.old = true")
        await tab.call("Page.reload")
        await tab.until("!window.old")
        await tab.state("connected")
        assert flow.api_key not in await tab.evaluate("document.documentElement.outerHTML")
        await tab.click("#forget")
        await tab.until("document.activeElement?.id === 'gate-key'")
        assert await tab.evaluate("sessionStorage.length") == 0
        assert tab.problems == []


@pytest_twisted.ensureDeferred
async def test_the_console_comes_back_with_its_server(
    flow: AsyncFlowProcess, browser: Browser, crowd: Crowd
) -> None:
    async with browser.tab() as tab:
        await log_in(tab, flow, fragment="#user=nia")
        await tab.until("document.querySelector('#no-rows').checkVisibility()")
        await flow.stop()
        await tab.state("reconnecting")
        await flow.start()
        await tab.state("connected")
        await crowd.come("nia")
        await tab.until("document.querySelector('#rows tr')?.dataset.key === 'nia'")
        await tab.until("document.querySelectorAll('#connections li').length === 1")
        assert tab.problems_but_lost_connections() == []


@pytest_twisted.ensureDeferred
async def test_a_key_that_is_taken_back_is_asked_for_again(
    flow: AsyncFlowProcess, browser: Browser, keys_file: Path
) -> None:
    key = add_key(keys_file, "leaver", frozenset({"read"}))
    os.kill(flow.pid, signal.SIGHUP)
    async with browser.tab() as tab:
        await log_in(tab, flow, key)
        assert "key leaver (read)" in await tab.text("#where")
        remove_key(keys_file, "leaver")
        os.kill(flow.pid, signal.SIGHUP)
        await tab.until("document.querySelector('#gate-error').textContent.includes('any more')")
        await tab.state("refused")
        assert await tab.evaluate("document.activeElement.id") == "gate-key"
        assert tab.problems == []


@pytest_twisted.ensureDeferred
async def test_quantiles_and_gaps(flow: AsyncFlowProcess, browser: Browser) -> None:
    async with browser.tab() as tab:
        await tab.open(flow.admin_url)
        await tab.until("document.activeElement?.id === 'gate-key'")
        before = {"bounds": [0.1, 0.5, 1], "counts": [5, 0, 0, 0]}
        for counts, share, expected in (
            ([15, 0, 0, 0], 0.5, 0.05),
            ([5, 10, 0, 0], 0.99, 0.496),
            ([5, 5, 5, 0], 0.5, 0.5),
            # Past the last bound, no more can be told; without anything new, nothing.
            ([5, 0, 0, 9], 0.99, 1),
            ([5, 0, 0, 0], 0.99, None),
            # A server that was started anew counts anew.
            ([1, 9, 0, 0], 0.99, None),
        ):
            after = {**before, "counts": counts}
            arguments = f"{share}, {json.dumps(before)}, {json.dumps(after)}"
            found = await tab.evaluate(f"import('/static/charts.js').then(it => it.quantile({arguments}))")
            assert found == (expected if expected is None else pytest.approx(expected)), counts
        path = await tab.evaluate(
            "import('/static/charts.js').then(({Chart}) => {"
            " const chart = new Chart('x', String);"
            " const points = [[0, 9], [100, 4], [200, null], [250, 0], [300, 8], [310, 2]];"
            " for(const one of points){ chart.add(...one) }"
            " return [chart.line.getAttribute('d'), chart.value.textContent, chart.most.textContent] })"
        )
        # What is older than five minutes has gone, and where nothing is known there is no line.
        assert path == ["M90.0 30.0M240.0 55.0L290.0 4.0L300.0 43.0", "2", "max 8"]


CONTRAST = """(() => {
  const parse = text => {
    const numbers = text.match(/[\\d.]+/g).map(Number)
    const scale = text.startsWith("color(") ? 255 : 1
    return [...numbers.slice(0, 3).map(number => number * scale), numbers[3] ?? 1]
  }
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, index) => sum + c * [0.2126, 0.7152, 0.0722][index], 0)
  const ground = element => {
    for(let one = element; one; one = one.parentElement){
      const colour = parse(getComputedStyle(one).backgroundColor)
      if(colour[3] === 1){ return colour }
    }
    return [255, 255, 255, 1]
  }
  const weak = []
  for(const element of document.querySelectorAll("body *")){
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
    if(!own || !element.checkVisibility() || element.closest("[aria-disabled=true], .unseen")){ continue }
    const style = getComputedStyle(element)
    const [a, b] = [light(parse(style.color)), light(ground(element))]
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
    const size = parseFloat(style.fontSize)
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700)
    if(ratio < (large ? 3 : 4.5)){ weak.push([element.className || element.tagName, ratio, style.color]) }
  }
  return weak
})()"""


@pytest_twisted.ensureDeferred
async def test_it_can_be_read_and_has_room_in_light_and_dark(
    flow: AsyncFlowProcess, browser: Browser, crowd: Crowd
) -> None:
    await crowd.come("oda", "Oda Olsen", "phone")
    await flow.push("oda", "deal.won", {"title": "Acme signed"})
    async with browser.tab() as tab:
        # What fades from one colour to another is measured at its end.
        await tab.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}]
        )
        await resize(tab, 1440, 1000)
        await log_in(tab, flow, fragment="#user=oda")
        await tab.until("document.querySelector('#inbox .payload')?.checkVisibility()")
        await tab.until("document.querySelector('[data-key=oda]')?.classList.contains('current')")
        for width in (1440, 800, 360):
            await resize(tab, width, 900)
            assert await tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth") is True
            for scheme in ("light", "dark"):
                await tab.call(
                    "Emulation.setEmulatedMedia",
                    features=[
                        {"name": "prefers-reduced-motion", "value": "reduce"},
                        {"name": "prefers-color-scheme", "value": scheme},
                    ],
                )
                assert await tab.evaluate(CONTRAST) == []
                await picture(tab, f"oda-{scheme}-{width}")
        # The focus can be seen wherever Tab leads, and it leads through all of it.
        await tab.evaluate("document.activeElement.blur()")
        reached = []
        for _ in range(25):
            await tab.press("Tab", "Tab", 9)
            reached.append(
                await tab.evaluate(
                    "(one => [one.id || one.className, getComputedStyle(one).outlineStyle,"
                    " one.matches(':focus-visible')])(document.activeElement)"
                )
            )
        names = [name for name, _, _ in reached]
        for name in (
            "forget",
            "search",
            "sort",
            "link",
            "user-close",
            "disconnect",
            "stop",
            "events",
            "push-user",
        ):
            assert name in names, names
        assert all(outline != "none" or name in ("", "BODY") for name, outline, _ in reached), reached
        assert tab.problems == []
