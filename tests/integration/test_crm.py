"""The example application: the command, two people at the board in a headless Chromium each, and its end."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_twisted

from tests.integration.async_flow_process import until
from tests.integration.crm_process import ROOT, CrmProcess
from tests.integration.flow_process import run, run_sql
from tests.integration.test_page import CHROMIUM, NAMES, Browser, Tab

WINDOW = 6.0

pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason=f"THE EXAMPLE IS NOT TESTED: there is no {', '.join(NAMES)} on the PATH (apt install chromium)",
)

Module = pytest_twisted.async_yield_fixture(scope="module")


@Module
async def crm() -> AsyncIterator[CrmProcess]:
    async with CrmProcess(RECONNECT_WINDOW=str(WINDOW)) as crm:
        yield crm


@Module
async def browser() -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    browser = Browser(CHROMIUM)
    try:
        yield browser
    finally:
        await browser.close()


@pytest.fixture(autouse=True)
def fresh(crm: CrmProcess) -> None:
    """Have all deals be leads, and nobody have a notification; there is no table before the first join."""
    if run_sql(crm.database_url, "SELECT to_regclass('crm.deals')") != [(None,)]:
        run_sql(crm.database_url, "UPDATE crm.deals SET stage = 'lead', version = version + 1")
    run_sql(crm.database_url, "DELETE FROM flow.notifications")


# --- what one sees ----------------------------------------------------------------------------------


async def at_the_board(tab: Tab, link: str, name: str) -> None:
    """Open a link, and wait until everything is there."""
    await tab.open(link)
    await tab.until("document.querySelector('#state')?.dataset.state === 'connected'")
    await tab.until(f"document.querySelector('#me').textContent === {json.dumps(name)}")
    await tab.until("document.querySelectorAll('.deal').length === 4")


async def sees(tab: Tab, user: str, *, looking: bool) -> None:
    """Wait until a user is shown as online, at the board or elsewhere."""
    state = json.dumps(str(looking).lower())
    await tab.until(f"document.querySelector('#people [data-user={user}]')?.dataset.looking === {state}")


async def shows(tab: Tab, deal: int, stage: str) -> None:
    """Wait until a deal is in the column of a stage, and in no other one."""
    await tab.until(
        f"[...document.querySelectorAll('[data-deal=\"{deal}\"]')].map(one => one.parentNode.id).join()"
        f" === 'stage-{stage}'"
    )


async def unread(tab: Tab, count: int, texts: Sequence[str]) -> None:
    """Wait until the page tells this number of unread notifications, and lists these."""
    await tab.until(f"document.querySelector('#unread').textContent === '{count}'")
    listed = "[...document.querySelectorAll('#notifications li')].map(one => one.textContent)"
    await tab.until(
        f"JSON.stringify({listed}) === {json.dumps(json.dumps(list(texts), separators=(',', ':')))}"
    )


async def move_on(tab: Tab, deal: int) -> None:
    await tab.click(f'[data-deal="{deal}"] [data-action="on"]')


async def watch(tab: Tab, user: str) -> None:
    """Note in the page whenever a user is not shown as online."""
    await tab.evaluate(
        "window.absences = 0; new MutationObserver(() => {"
        f" if(!document.querySelector('#people [data-user={user}]')){{ window.absences++ }}"
        "}).observe(document.querySelector('#people'), {childList: true}); true"
    )


# --- what they do -----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_two_people_at_the_board(crm: CrmProcess, browser: Browser) -> None:
    links = crm.links
    assert list(links) == ["Alice Adams", "Bob Brown"]
    async with browser.tab() as alice:
        await at_the_board(alice, links["Alice Adams"], "Alice Adams")
        await sees(alice, "alice", looking=True)
        async with browser.tab() as bob:
            await at_the_board(bob, links["Bob Brown"], "Bob Brown")
            for tab in (alice, bob):
                await sees(tab, "alice", looking=True)
                await sees(tab, "bob", looking=True)

            # One moves a deal of the other's: that one's board changes, and they are told.
            await move_on(alice, 2)
            await shows(alice, 2, "proposal")
            await shows(bob, 2, "proposal")
            text = "Alice Adams moved Globex: renewal to proposal"
            await unread(bob, 1, [text])
            await unread(alice, 0, [])
            assert run_sql(
                crm.database_url,
                "SELECT user_id, type, payload->>'stage' FROM flow.notifications",
            ) == [("bob", "deal.moved", "proposal")]

            # Of one's own moves one is not told; of a question one is, once.
            await move_on(alice, 1)
            await shows(bob, 1, "proposal")
            for _ in range(2):
                await bob.click('[data-deal="1"] [data-action="ask"]')
                await bob.until(
                    "document.querySelector('#announcer').textContent === 'Alice Adams has been asked'"
                )
                await bob.evaluate("document.querySelector('#announcer').textContent = ''")
            await unread(alice, 1, ["Bob Brown asks about Acme: 40 seats"])
            await unread(bob, 1, [text])
            await bob.click("#read")
            await unread(bob, 0, [text])

            # One reloads: the other sees them all the while, and their board is right at once.
            await watch(alice, "bob")
            await bob.evaluate("window.old = true")
            await bob.call("Page.reload")
            await bob.until("!window.old")
            await bob.until("document.querySelectorAll('.deal').length === 4")
            await shows(bob, 2, "proposal")
            await sees(alice, "bob", looking=True)

            # One is away for a while, within the window: still online, but not at the board.
            await bob.open("about:blank")
            await sees(alice, "bob", looking=False)
            await move_on(alice, 2)
            await shows(alice, 2, "won")
            await at_the_board(bob, links["Bob Brown"], "Bob Brown")
            await shows(bob, 2, "won")
            await unread(bob, 1, ["Alice Adams moved Globex: renewal to won"])
            await sees(alice, "bob", looking=True)
            assert await alice.evaluate("window.absences") == 0

            problems = [*alice.problems, *bob.problems]
            asked = {re.sub(r"[?#].*", "", url) for url in (*alice.requests, *bob.requests)}

        # One closes the window for good.
        await sees(alice, "bob", looking=False)
        await alice.until("!document.querySelector('#people [data-user=bob]')", WINDOW + 20)
        assert problems == []
        # Nothing is asked of anybody else.
        page, clients = f"http://127.0.0.1:{crm.port}", f"ws://127.0.0.1:{_client_port(links)}"
        files = ("", "board.css", "board.js", "phoenix.mjs")
        assert asked - {"about:blank", "data:,"} == {
            *(f"{page}/{file}" for file in files),
            f"{clients}/socket/websocket",
        }
        # The token is out of the address bar.
        assert await alice.evaluate("location.href") == f"{page}/"

    def told_of_bob() -> list[tuple[Any, ...]]:
        return run_sql(
            crm.database_url, "SELECT event FROM flow.presence_events WHERE user_id = 'bob' ORDER BY id"
        )

    # It is written soon after it was shown.
    await until(lambda: ("offline",) in told_of_bob(), 20)
    assert told_of_bob() == [("online",), ("offline",)]


def _client_port(links: Any) -> str:
    found = re.search(r"socket=ws://127\.0\.0\.1:(\d+)/socket", links["Alice Adams"])
    assert found is not None
    return found[1]


@pytest_twisted.ensureDeferred
async def test_by_the_keyboard_alone(crm: CrmProcess, browser: Browser) -> None:
    async with browser.tab() as tab:
        await at_the_board(tab, crm.links["Alice Adams"], "Alice Adams")
        await tab.call("Page.bringToFront")
        action = "document.activeElement.dataset.action"
        card = "document.activeElement.closest('.deal')?.dataset.deal"
        for _ in range(20):
            await tab.press("Tab", "Tab", 9)
            if await tab.evaluate(f"{card} === '3' && {action} === 'on'"):
                break
        await tab.press("Enter", "Enter", 13, "\r")
        await shows(tab, 3, "proposal")
        # The next step is under the same finger.
        assert await tab.evaluate(f"[{card}, {action}]") == ["3", "on"]
        await tab.press("Enter", "Enter", 13, "\r")
        await shows(tab, 3, "won")
        await tab.until("document.querySelector('#announcer').textContent === 'Initech: pilot is in won'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest_twisted.ensureDeferred
async def test_can_be_read_in_both_schemes(crm: CrmProcess, browser: Browser, scheme: str) -> None:
    async with browser.tab() as tab:
        await tab.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        await at_the_board(tab, crm.links["Alice Adams"], "Alice Adams")
        for selector in (
            ".deal h3",
            ".deal p",
            ".deal button",
            "#people li",
            "#nothing",
            "#unread",
            "#state",
        ):
            assert await tab.evaluate(CONTRAST.replace("SELECTOR", json.dumps(selector))) >= 4.5, selector
        ground = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", ground)[:3]))
        assert (brightness > 600) == (scheme == "light")


# As WCAG 2.2 defines it, of the text and the first background behind it.
CONTRAST = """
(found => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number)
  const light = ([red, green, blue]) => {
    const linear = [red, green, blue].map(value => value / 255)
      .map(value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4)
    return .2126 * linear[0] + .7152 * linear[1] + .0722 * linear[2]
  }
  let behind = found
  const ground = () => numbers(getComputedStyle(behind).backgroundColor)
  while(ground()[3] === 0){ behind = behind.parentElement }
  const text = numbers(getComputedStyle(found).color)
  const [dark, bright] = [light(text), light(ground())].sort((a, b) => a - b)
  return (bright + .05) / (dark + .05)
})(document.querySelector(SELECTOR))
"""


def test_a_taken_port_is_told_in_one_line(crm: CrmProcess) -> None:
    other = CrmProcess()
    try:
        outcome = run(other.command(port=crm.port), ROOT, other.settings)
        assert outcome.status == 1
        assert f"flowtx: Couldn't listen on 127.0.0.1:{crm.port}" in outcome.stderr
        assert "Traceback" not in outcome.stderr
    finally:
        other.clear()
