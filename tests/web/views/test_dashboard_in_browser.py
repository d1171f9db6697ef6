"""The dashboard of a whole collector in a headless Chromium. Saves pictures to SCREENSHOTS."""

import json
import os
import re
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, StorageState, expect, sync_playwright
from redis import Redis

from tests.support.collector import BIN, Stack, start_stack
from tests.support.waiting import running, wait_until

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = Path(__file__).parents[3] / "build" / "screenshots"
LAUNCH = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
TOKEN = "a token of operators"
SIZES = {"desktop-light": (1280, 900, "light"), "desktop-dark": (1280, 900, "dark")}
SIZES |= {"phone-light": (380, 800, "light"), "phone-dark": (380, 800, "dark")}

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(
        CHROMIUM is None, reason="chromium is not installed, so nothing is tested in a browser"
    ),
]


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    secrets = {"ADMIN_TOKEN": TOKEN, "SHARE_SECRET": "a secret that signs links"}
    with start_stack(tmp_path_factory.mktemp("browser"), **secrets) as stack:
        assert stack.process.poll() is None, stack.output.read_text()
        yield stack


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=LAUNCH)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def logged_in(collector: Stack, browser: Browser) -> StorageState:
    """What a browser stores after a login."""
    with browser.new_context(base_url=collector.url) as context:
        page = context.new_page()
        page.goto("/")
        page.get_by_label("Admin token").fill(TOKEN)
        page.get_by_role("button").click()
        is_live(page)
        return context.storage_state()


@pytest.fixture
def page(collector: Stack, browser: Browser, logged_in: StorageState) -> Iterator[Page]:
    """The dashboard after a login; any script error fails the test."""
    errors: list[str] = []
    with browser.new_context(
        base_url=collector.url,
        viewport={"width": 1280, "height": 900},
        storage_state=logged_in,
        reduced_motion="reduce",
    ) as context:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto("/")
        is_live(page)
        yield page
    assert errors == []


def is_live(page: Page) -> None:
    expect(page.get_by_role("status").first).to_have_text("Live", timeout=20_000)
    expect(page.locator("main")).to_have_attribute("aria-busy", "false")


def post(collector: Stack, kind: str, website: str, number: int = 1, **more: Any) -> None:
    event = {"Type": kind, "Url": f"{website}/a", "Meta": {"UserId": website, "AdId": "34"}} | more
    answer = httpx.post(f"{collector.url}/events", json=[event] * number)
    assert answer.status_code == 202


def test_figures_and_chart_update_without_a_reload(collector: Stack, page: Page) -> None:
    page.emulate_media(reduced_motion="no-preference")
    site = f"{uuid.uuid4()}.com"
    page.goto(f"/?website={site}")
    is_live(page)
    expect(page.locator("#views")).to_have_text("0")
    expect(page.get_by_text("Nothing was counted in the last hour.")).to_be_visible()
    page.evaluate("window.untouched = true")
    post(collector, "PageView", site, 3)
    expect(page.locator("#views")).to_have_text("3", timeout=3_000)
    expect(page.locator("#pages")).to_contain_text("/a")
    expect(page.locator("#chart")).to_have_attribute("aria-label", re.compile("3 page views"))
    expect(page.locator("#chart canvas")).to_be_visible()
    post(collector, "AdImpression", site, 4)
    expect(page.locator("#impressions")).to_have_text("4", timeout=3_000)
    expect(page.locator("#visitors")).to_have_text("1")
    expect(page.locator("#months")).to_contain_text("open")
    post(collector, "AdClick", site, 7)
    expect(page.locator("#hits")).to_have_text("7", timeout=3_000)
    expect(page.locator("#clicks")).to_have_text("2")
    expect(page.locator("#ads")).to_contain_text("ad 34")
    assert page.evaluate("window.untouched")


def test_the_page_updates_within_a_second_of_a_post_under_traffic(
    collector: Stack, page: Page
) -> None:
    page.emulate_media(reduced_motion="no-preference")
    site = f"{uuid.uuid4()}.com"
    page.goto(f"/?website={site}")
    is_live(page)
    traffic = [str(BIN / "eventstream"), "simulate", "--live", "--rate", "50"]
    log = collector.output.with_name("live.log")
    with running(*traffic, log=log, **collector.environment):
        wait_until(lambda: len(items(collector, "page-views")) > 20)
        took = []
        for number in range(1, 11):
            started = time.monotonic()
            post(collector, "PageView", site)
            # This looks each time the browser draws; `expect` would look only now and then.
            page.wait_for_function("number => views.textContent === number", arg=str(number))
            took.append(time.monotonic() - started)
    # Not all of them: other tests use the same machine.
    assert min(took) < 1, took


def test_the_figures_end_up_equal_to_the_reports(collector: Stack, page: Page) -> None:
    for _ in range(10):
        post(collector, "PageView", "often.com", 7)
    collector.run("eventstream", "drain")
    total = sum(int(row["views"]) for row in items(collector, "page-views"))  # type: ignore[call-overload]
    expect(page.locator("#views")).to_have_text(f"{total:,}", timeout=10_000)
    page.reload()
    is_live(page)
    expect(page.locator("#views")).to_have_text(f"{total:,}")


def test_an_event_both_streamed_and_in_the_snapshot_is_shown_once(
    collector: Stack, page: Page
) -> None:
    site = f"{uuid.uuid4()}.com"
    page.goto(f"/?website={site}")
    is_live(page)
    readings: list[Route] = []

    def count_meanwhile(route: Route) -> None:
        for kind in ("PageView", "AdImpression", "AdClick"):
            post(collector, kind, site)
            post(collector, kind, "other.com")
        collector.run("eventstream", "drain")
        shows(page, len(readings) + 1)
        time.sleep(1)  # a snapshot is remembered for this long
        route.continue_()
        readings.append(route)

    page.route("**/live/snapshot*", count_meanwhile)
    while len(readings) < 2:
        page.wait_for_event("response")
    page.unroute("**/live/snapshot*")
    with page.expect_response("**/live/snapshot*"):
        pass
    shows(page, 2)


def shows(page: Page, events: int) -> None:
    """Check that each kind of event was counted this often, for one user, page and ad."""
    for figure in ("views", "impressions", "hits"):
        expect(page.locator(f"#{figure}")).to_have_text(str(events))
    expect(page.locator("#visitors")).to_have_text("1")
    expect(page.locator("#pages td.count")).to_have_text(str(events))
    expect(page.locator("#ads td.count").first).to_have_text(str(events))
    expect(page.locator("#months td.count").first).to_have_text(str(events))


def items(collector: Stack, path: str) -> list[dict[str, object]]:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    found: list[dict[str, object]] = httpx.get(
        f"{collector.url}/reports/{path}?limit=1000", headers=bearer
    ).json()["items"]
    return found


def test_filters_are_part_of_the_url(collector: Stack, page: Page) -> None:
    post(collector, "PageView", "one.com", 2)
    post(collector, "PageView", "two.com", 5)
    collector.run("eventstream", "drain")
    page.get_by_label("Website").fill("one.com")
    page.get_by_label("Website").press("Enter")
    expect(page).to_have_url(re.compile(r"\?website=one\.com$"))
    expect(page.locator("#views")).to_have_text("2")
    page.get_by_label("From").fill("2020-01-01")
    page.get_by_label("To", exact=True).fill("2020-01-02")
    page.get_by_label("To", exact=True).blur()
    expect(page.locator("#views")).to_have_text("0")
    expect(page.get_by_text("No page was viewed on these days.")).to_be_visible()
    expect(page.locator("#views-title")).to_have_text("Views from 2020-01-01 to 2020-01-02")
    page.reload()
    is_live(page)
    expect(page.get_by_label("Website")).to_have_value("one.com")
    expect(page.get_by_label("From")).to_have_value("2020-01-01")
    page.goto("/?website=two.com")
    is_live(page)
    expect(page.locator("#views")).to_have_text("5")
    post(collector, "PageView", "one.com", 9)
    post(collector, "PageView", "two.com", 1)
    expect(page.locator("#views")).to_have_text("6", timeout=3_000)
    page.get_by_role("button", name="Reset").click()
    expect(page).to_have_url(f"{collector.url}/")
    page.go_back()
    expect(page.locator("#views")).to_have_text("6")


def test_a_dead_letter_is_replayed_from_the_page(collector: Stack, page: Page) -> None:
    addresses = json.loads((Path(collector.environment["DATA_DIR"]) / "addresses.json").read_text())
    event = json.dumps({"Type": "PageView", "Url": "late.com/letter"})
    with Redis.from_url(addresses["REDIS_URL"]) as redis:
        redis.xadd("dead_letters:events", {"reason": '{"Url":["Was refused."]}', "event": event})
    page.goto("/?website=late.com")
    is_live(page)
    letter = page.locator("#letters li").filter(has_text="late.com/letter")
    expect(letter).to_contain_text("Was refused.")
    letter.get_by_role("button").click()
    expect(page.get_by_text("Replayed: 1 accepted.")).to_be_visible()
    expect(letter).to_have_count(0)
    expect(page.locator("#views")).to_have_text("1", timeout=10_000)


def test_the_page_says_if_a_letter_is_still_not_accepted(collector: Stack, page: Page) -> None:
    httpx.post(f"{collector.url}/events", json={"Type": "AdClick", "Url": "bad.com"})
    page.reload()
    is_live(page)
    letter = page.locator("#letters li").filter(has_text="bad.com").first
    letter.get_by_role("button").click()
    expect(page.get_by_text("Still not accepted.")).to_be_visible()
    expect(letter).to_be_visible()


def test_events_posted_by_robots_are_shown_separately(collector: Stack, page: Page) -> None:
    site = f"{uuid.uuid4()}.com"
    event = {"Type": "PageView", "Url": site}
    httpx.post(f"{collector.url}/events", json=event, headers={"User-Agent": "Googlebot/2.1"})
    collector.run("eventstream", "drain")
    page.goto(f"/?website={site}")
    is_live(page)
    expect(page.locator("#filtered tbody")).to_have_text("PageViewrobot1")
    expect(page.locator("#views")).to_have_text("0")


def test_a_spike_is_shown_when_it_happens(collector: Stack, page: Page) -> None:
    site = f"{uuid.uuid4()}.com"
    post(collector, "PageView", site, 40)
    item = page.locator("#spikes li").filter(has_text=f"{site}/a")
    expect(item).to_contain_text("40 views in the minute", timeout=15_000)


def test_the_page_says_that_it_is_reconnecting_and_then_shows_what_it_missed(
    collector: Stack, page: Page
) -> None:
    site = f"{uuid.uuid4()}.com"
    page.goto(f"/?website={site}")
    is_live(page)
    post(collector, "PageView", site)
    expect(page.locator("#views")).to_have_text("1", timeout=5_000)
    web = min(pid for name, pid in collector.descendants().items() if "gunicorn" in name)
    os.killpg(web, signal.SIGKILL)
    expect(page.get_by_role("status").first).to_have_text("Reconnecting…")
    shoot(page, "reconnecting")
    wait_until(lambda: is_up(collector))
    post(collector, "PageView", site)
    is_live(page)
    expect(page.locator("#views")).to_have_text("2", timeout=5_000)
    expect(page.locator("#problem")).to_be_hidden()


def is_up(collector: Stack) -> bool:
    try:
        return httpx.get(f"{collector.url}/health").is_success
    except httpx.HTTPError:
        return False


def test_a_failed_report_is_announced_and_requested_again(page: Page) -> None:
    failing = {"now": True}

    def answer(route: Route) -> None:
        if failing["now"]:
            body = json.dumps({"error": "The database is unavailable. Try again."})
            route.fulfill(status=503, content_type="application/json", body=body)
        else:
            route.continue_()

    page.route("**/live/snapshot*", answer)
    page.goto("/?website=")
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("The database is unavailable.")
    shoot(page, "error")
    failing["now"] = False
    expect(problem).to_be_hidden(timeout=10_000)


def test_the_page_says_that_the_session_has_ended(page: Page) -> None:
    page.context.clear_cookies()
    page.get_by_label("Website").fill("x.com")
    page.get_by_label("Website").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Your session has ended.")


def test_text_of_events_never_becomes_markup(collector: Stack, page: Page) -> None:
    markup = "<img src=x onerror=\"document.title='broken in'\"><script>alert(1)</script>"
    site = f"{uuid.uuid4()}.com"
    for kind in ("PageView", "AdClick"):
        post(
            collector,
            kind,
            site,
            40,
            Url=f"{site}/{markup}",
            Meta={"UserId": markup, "AdId": markup},
        )
    httpx.post(f"{collector.url}/events", json={"Type": markup, "Url": markup, "Meta": markup})
    page.goto(f"/?website={site}")
    is_live(page)
    expect(page.locator("#pages")).to_contain_text("%3Cscript%3E", timeout=10_000)
    expect(page.locator("#ads")).to_contain_text("<script>alert(1)</script>")
    expect(page.locator("#letters")).to_contain_text("<script>alert(1)</script>")
    expect(page.locator("#spikes")).to_contain_text("<script>alert(1)</script>", timeout=15_000)
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "eventstream"
    page.goto(f"/?website={markup}")
    is_live(page)
    expect(page.get_by_label("Website")).to_have_value(markup)
    assert page.title() == "eventstream"


def test_an_inline_script_is_refused(page: Page) -> None:
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'),"
        " {textContent: 'document.title = 1'}))"
    )
    assert page.title() == "eventstream"


def test_the_page_can_be_used_by_keyboard_alone(page: Page) -> None:
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.type"))
    assert [name for name in ("website", "from", "to", "reset") if name not in reached] == []
    page.get_by_label("Website").focus()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_and_is_accessible_in_every_size_and_colour_scheme(
    collector: Stack, page: Page, size: str
) -> None:
    width, height, scheme = SIZES[size]
    post(collector, "PageView", "readable.com", 20)
    post(collector, "AdClick", "readable.com", 20)
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.reload()
    is_live(page)
    expect(page.locator("#ads")).to_contain_text("readable.com", timeout=10_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shoot(page, size)
    serious_in(page)


def test_the_login_is_accessible(collector: Stack, browser: Browser) -> None:
    with browser.new_context(base_url=collector.url) as context:
        page = context.new_page()
        page.goto("/")
        page.get_by_label("Admin token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("That is not the admin token.")
        shoot(page, "login")
        serious_in(page)


def test_logging_out_ends_the_session_even_for_a_copy_of_its_cookie(
    collector: Stack, browser: Browser
) -> None:
    with browser.new_context(base_url=collector.url) as context:
        page = context.new_page()
        page.goto("/")
        page.get_by_label("Admin token").fill(TOKEN)
        page.get_by_role("button").click()
        is_live(page)
        session = {"eventstream_session": context.cookies()[0]["value"]}
        assert httpx.get(f"{collector.url}/reports/clicks", cookies=session).status_code == 200
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Admin token")).to_be_visible()
        assert httpx.get(f"{collector.url}/reports/clicks", cookies=session).status_code == 401


@pytest.mark.parametrize("narrowed", [[], ["--campaign", "shared"]])
def test_a_shared_link_shows_its_part_of_the_dashboard_as_it_is_counted(
    collector: Stack, browser: Browser, narrowed: list[str]
) -> None:
    site, other = f"{uuid.uuid4()}.com", f"{uuid.uuid4()}.com"
    entered = httpx.put(
        f"{collector.url}/ads/34",
        json={"campaign": "shared"},
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    assert entered.status_code == 200
    url = collector.run("eventstream", "share", "--website", site, *narrowed).stdout.strip()
    problems: list[str] = []
    with browser.new_context(base_url=collector.url) as context:
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console", lambda said: problems.append(said.text) if said.type == "error" else None
        )
        page.goto(url)
        is_live(page)
        assert page.url == f"{collector.url}/"
        expect(page.get_by_text("Queues")).to_have_count(0)
        expect(page.get_by_text("Dead letters")).to_have_count(0)
        for website in (other, site):
            post(collector, "PageView", website, 2)
            post(collector, "AdImpression", website, 3)
            post(collector, "AdClick", website, 4)
        expect(page.locator("#hits")).to_have_text("4", timeout=15_000)
        expect(page.locator("#impressions")).to_have_text("3", timeout=15_000)
        expect(page.locator("#views")).to_have_text("\u2013" if narrowed else "2", timeout=15_000)
        expect(page.locator("#ads")).to_contain_text("34")
        expect(page.locator("#chart canvas")).to_be_visible()
        assert other not in page.content()
        shoot(page, f"shared{len(narrowed)}")
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Admin token")).to_be_visible()
    # After the link is left, the log-in form is answered with 401.
    assert [problem for problem in problems if "401" not in problem] == []


def serious_in(page: Page) -> None:
    """Fail on whatever axe finds serious or critical."""
    found = Axe().run(page).response["violations"]
    serious = [rule for rule in found if rule["impact"] in ("serious", "critical")]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in serious] == []


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
