"""The dashboard of a whole collector in a headless Chromium. Saves pictures to SCREENSHOTS."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
NONE = "\u2013"
SIZES = {"desktop-light": (1280, 900, "light"), "desktop-dark": (1280, 900, "dark")}
SIZES |= {
    "zoomed": (640, 450, "light"),
    "phone-light": (380, 800, "light"),
    "phone-dark": (380, 800, "dark"),
}

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
    expect(page.locator("#condition")).to_have_text("OK", timeout=20_000)
    is_read(page)


def is_read(page: Page) -> None:
    """Return once everything that the address asks for is shown: the figures come first."""
    expect(page.locator("main")).to_have_attribute("aria-busy", "false")


def post(collector: Stack, kind: str, website: str, number: int = 1, **more: Any) -> None:
    event = {"Type": kind, "Url": f"{website}/a", "Meta": {"UserId": website, "AdId": "34"}} | more
    answer = httpx.post(f"{collector.url}/events", json=[event] * number)
    assert answer.status_code == 202


def is_welcome_gone(page: Page) -> bool:
    page.reload()
    is_live(page)
    return page.locator("#welcome").is_hidden()


def height_of(page: Page, selector: str) -> float:
    box = page.locator(selector).bounding_box()
    assert box
    return box["height"]


def site_name() -> str:
    return f"{uuid.uuid4()}.com"


def show(page: Page, address: str) -> None:
    page.goto(address)
    is_live(page)


def test_an_empty_collector_shows_how_to_begin_and_says_when_the_first_event_is_counted(
    collector: Stack, page: Page
) -> None:
    expect(page.get_by_text("Nothing was counted yet")).to_be_visible()
    expect(page.locator("#welcome-tag")).to_have_text(
        f'<script async src="{collector.url}/tag.js"></script>'
    )
    light = page.locator("#welcome-light")
    expect(light).to_have_attribute("data-state", "connecting")
    shoot(page, "empty")
    command = page.locator("#welcome-curl").text_content()
    subprocess.run(shlex.split(command or ""), check=True, capture_output=True)
    expect(light).to_have_text("The first event was counted", timeout=5_000)
    expect(light).to_have_attribute("data-state", "ok")
    expect(page.locator("#views")).to_have_text("1")
    wait_until(lambda: is_welcome_gone(page))


def test_figures_chart_and_tables_update_without_a_reload(collector: Stack, page: Page) -> None:
    page.emulate_media(reduced_motion="no-preference")
    site = site_name()
    post(collector, "PageView", site)
    show(page, f"/?website={site}")
    expect(page.locator("#views")).to_have_text("1", timeout=5_000)
    page.evaluate("window.untouched = true")
    post(collector, "PageView", site, 3)
    expect(page.locator("#views")).to_have_text("4", timeout=5_000)
    expect(page.locator("#chart-legend .now")).to_have_text("4")
    expect(page.locator("#pages")).to_contain_text("/a")
    post(collector, "AdImpression", site, 4)
    expect(page.locator("#impressions")).to_have_text("4", timeout=5_000)
    expect(page.locator("#reach")).to_have_text("1")
    expect(page.locator("#ads tbody td.sorted")).to_have_text("4", timeout=10_000)
    expect(page.locator("#months")).to_contain_text("open", timeout=10_000)
    post(collector, "AdClick", site, 7)
    expect(page.locator("#clicks")).to_have_text("2", timeout=5_000)
    expect(page.locator("#ctr")).to_have_text("50.00 %")
    expect(page.locator("#minutes-text")).to_contain_text(f"on {site}")
    assert page.evaluate("window.untouched")


def test_the_page_updates_within_a_second_of_a_post_under_traffic(
    collector: Stack, page: Page
) -> None:
    site = site_name()
    post(collector, "PageView", site)
    show(page, f"/?website={site}")
    expect(page.locator("#views")).to_have_text("1", timeout=5_000)
    traffic = [str(BIN / "eventstream"), "simulate", "--live", "--rate", "200"]
    log = collector.output.with_name("live.log")
    with running(*traffic, log=log, **collector.environment):
        wait_until(lambda: len(items(collector, "page-views")) > 20)
        took = []
        for number in range(2, 12):
            started = time.monotonic()
            post(collector, "PageView", site)
            # This looks each time the browser draws; `expect` would look only now and then.
            page.wait_for_function("number => views.textContent === number", arg=str(number))
            took.append(time.monotonic() - started)
    # Not all of them: other tests use the same machine.
    assert min(took) < 1, took


def test_no_figure_is_ever_above_what_was_counted(collector: Stack, page: Page) -> None:
    site = site_name()
    show(page, f"/?website={site}&period=today")
    page.evaluate(
        """() => {
            window.seen = [];
            const shown = [views, impressions, clicks];
            const look = () => seen.push(shown.map((one) => one.textContent));
            const all = { childList: true, characterData: true, subtree: true };
            for (const one of shown) new MutationObserver(look).observe(one, all);
        }"""
    )
    for kind in ("PageView", "AdImpression", "AdClick") * 6:
        post(collector, kind, site)
        page.wait_for_timeout(100)
    expect(page.locator("#views")).to_have_text("6", timeout=10_000)
    expect(page.locator("#impressions")).to_have_text("6", timeout=10_000)
    expect(page.locator("#clicks")).to_have_text("2", timeout=10_000)
    seen = [[int(text) for text in texts] for texts in page.evaluate("seen")]
    for figures in zip(*seen, strict=True):
        assert list(figures) == sorted(figures)
    assert all(
        views <= 6 and impressions <= 6 and clicks <= 2 for views, impressions, clicks in seen
    )


def test_the_figures_end_up_equal_to_the_reports(collector: Stack, page: Page) -> None:
    for _ in range(10):
        post(collector, "PageView", "often.com", 7)
    collector.run("eventstream", "drain")
    total = sum(int(row["views"]) for row in items(collector, "page-views"))  # type: ignore[call-overload]
    expect(page.locator("#views")).to_have_text(f"{total:,}", timeout=10_000)
    page.reload()
    is_live(page)
    expect(page.locator("#views")).to_have_text(f"{total:,}")


def days_ago(number: int) -> str:
    return str(datetime.now(UTC).date() - timedelta(days=number))


def post_on(
    collector: Stack, kind: str, website: str, ago: int, number: int = 1, **more: Any
) -> None:
    post(collector, kind, website, number, Timestamp=f"{days_ago(ago)}T12:00:00Z", **more)


def test_one_period_is_chosen_by_click_key_or_days_and_kept_in_the_address(
    collector: Stack, page: Page
) -> None:
    site = site_name()
    for ago, number in ((0, 1), (1, 2), (5, 4), (20, 8)):
        post(collector, "PageView", site, number, **({"Timestamp": f"{days_ago(ago)}T00:00:00Z"}))
    collector.run("eventstream", "drain")
    show(page, f"/?website={site}")
    views = page.locator("#views")
    expect(views).to_have_text("7")
    page.get_by_role("link", name="Yesterday").click()
    expect(views).to_have_text("2")
    expect(page).to_have_url(re.compile("period=yesterday"))
    page.keyboard.press("t")
    expect(views).to_have_text("1")
    page.keyboard.press("w")
    expect(views).to_have_text("7")
    assert "period" not in page.url
    page.get_by_role("link", name="30 days").click()
    expect(views).to_have_text("15")
    for key in ("m", "l", "y"):
        page.keyboard.press(key)
        chosen = page.locator("#presets [aria-current]")
        expect(chosen).to_have_attribute("aria-keyshortcuts", key.upper())
    page.keyboard.press("c")
    page.get_by_label("From", exact=True).fill(days_ago(21))
    page.get_by_label("To", exact=True).fill(days_ago(19))
    expect(views).to_have_text("8")
    page.reload()
    is_live(page)
    expect(views).to_have_text("8")
    expect(page.get_by_label("From", exact=True)).to_have_value(days_ago(21))
    page.go_back()
    page.go_back()
    expect(views).to_have_text("2")


def test_a_period_that_is_none_is_said_and_one_without_a_past_too(
    collector: Stack, page: Page
) -> None:
    show(page, "/?from=2026-02-20&to=2026-02-10")
    expect(page.get_by_text("The address names no valid period")).to_be_visible()
    site = site_name()
    post_on(collector, "PageView", site, 1, 2)
    post_on(collector, "PageView", site, 7, 1)
    collector.run("eventstream", "drain")
    show(page, f"/?website={site}")
    expect(page.get_by_text("The address names no valid period")).to_be_hidden()
    note = page.locator("#period-note")
    expect(note).to_contain_text("nothing was counted until")
    show(page, f"/?website={site}&page=/a")
    expect(note).to_contain_text("Only views are counted by page.")


def test_tiles_show_the_change_and_choose_the_chart_and_keep_their_height(
    collector: Stack, page: Page
) -> None:
    site = site_name()
    post_on(collector, "PageView", site, 1, 6)
    post_on(collector, "PageView", site, 8, 4)
    post_on(collector, "AdImpression", site, 2, 4)
    post_on(collector, "AdImpression", site, 9, 8)
    collector.run("eventstream", "drain")
    page.goto(f"/?website={site}")
    before = height_of(page, "#tile-views")
    is_live(page)
    expect(page.locator("#tile-views .change")).to_have_text("+50 %")
    expect(page.locator("#tile-impressions .change")).to_have_text("\u221250 %")
    expect(page.locator("#tile-reach .change")).to_have_text("±0 %")
    assert page.locator("#tile-views polyline").count() == 1
    assert height_of(page, "#tile-views") == before
    expect(page.locator("#chart-title")).to_have_text("Views by day")
    page.get_by_role("button", name="Impressions").click()
    expect(page.locator("#chart-title")).to_have_text("Impressions by day")
    expect(page).to_have_url(re.compile("metric=impressions"))
    expect(page.locator("#tile-impressions")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#period-note")).to_contain_text("Times are in UTC.")
    is_read(page)
    rows = [row.split("\t") for row in page.locator("#chart-table").inner_text().splitlines()[2:]]
    assert [row[1:] for row in rows] == [
        *[["0", "0"]] * 4,
        ["4", "8"],
        ["0", "0"],
        ["0", "0"],
    ]


def test_the_chart_of_a_day_is_by_the_hour_and_its_keys_go_from_hour_to_hour(
    collector: Stack, page: Page
) -> None:
    site = site_name()
    post_on(collector, "PageView", site, 1, 3)
    collector.run("eventstream", "drain")
    show(page, f"/?website={site}&period=yesterday")
    expect(page.locator("#chart-title")).to_have_text("Views by hour")
    assert page.locator("#chart-table tbody tr").count() == 24
    legend = page.locator("#chart-legend")
    expect(legend).not_to_contain_text("so far")
    page.locator("#chart").focus()
    for _ in range(11):
        page.keyboard.press("ArrowLeft")
    expect(legend.locator("strong")).to_contain_text(", 12:00")
    expect(legend.locator(".now")).to_have_text("3")
    height = height_of(page, ".chart")
    page.get_by_role("button", name="Reach").click()
    expect(page.get_by_text("Reach is counted by the day.")).to_be_visible()
    assert height_of(page, ".chart") == height
    page.keyboard.press("t")
    page.get_by_role("button", name="Views").click()
    expect(legend).to_contain_text("so far")


@pytest.fixture(scope="module")
def shop(collector: Stack) -> str:
    """A website with ads of a campaign, and some without."""
    site = site_name()
    for number in range(1, 13):
        ad = f"{site[:8]}-{number}"
        meta = {"UserId": "u", "AdId": ad}
        post(collector, "AdImpression", site, number, Meta=meta)
        for _ in range(13 - number):
            post(collector, "AdClick", site, 3, Meta=meta)
    for number in (1, 2):
        entered = httpx.put(
            f"{collector.url}/ads/{site[:8]}-{number}",
            json={"name": f"Shoes {number}", "campaign": f"autumn {site[:4]}"},
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        assert entered.status_code == 200
    for page_number in range(1, 11):
        post(collector, "PageView", site, page_number, Url=f"{site}/{page_number}")
    collector.run("eventstream", "drain")
    return site


def first_cells(page: Page, table: str) -> list[str]:
    is_read(page)
    return page.locator(f"#{table} tbody td.name").all_inner_texts()


def test_a_table_is_sorted_by_the_heading_that_is_clicked(page: Page, shop: str) -> None:
    show(page, f"/?website={shop}")
    assert first_cells(page, "ads")[0] == f"ad {shop[:8]}-12"
    heading = page.locator("#ads th", has_text="Clicks")
    heading.get_by_role("link").click()
    expect(heading).to_have_attribute("aria-sort", "descending")
    expect(page.locator("#ads tbody td.name").first).to_have_text("Shoes 1")
    shares = page.locator("#ads td.bar").evaluate_all(
        "cells => cells.map((cell) => parseFloat(cell.style.getPropertyValue('--share')))"
    )
    assert shares[0] == 100
    assert shares == sorted(shares, reverse=True)


def test_a_row_filters_the_page_and_its_chip_takes_the_filter_off(page: Page, shop: str) -> None:
    show(page, f"/?website={shop}")
    expect(page.locator("#impressions")).to_have_text("78")
    page.locator("#campaigns").get_by_role("link", name="autumn").click()
    expect(page.locator("#impressions")).to_have_text("3")
    expect(page.locator("#views")).to_have_text(NONE)
    assert sorted(first_cells(page, "ads")) == ["Shoes 1", "Shoes 2"]
    page.locator("#ads").get_by_role("link", name="Shoes 2").click()
    expect(page.locator("#impressions")).to_have_text("2")
    expect(page.locator("#chips")).to_contain_text("Ad: Shoes 2")
    page.get_by_role("link", name=re.compile("^Campaign: .*Remove")).click()
    expect(page).not_to_have_url(re.compile("campaign"))
    page.get_by_role("link", name=re.compile("^Ad: .*Remove")).click()
    expect(page.locator("#impressions")).to_have_text("78")
    page.locator("#pages").get_by_role("link", name="/10").click()
    expect(page.locator("#views")).to_have_text("10")
    expect(page.locator("#impressions")).to_have_text(NONE)
    expect(page.locator("#card-ads")).to_be_hidden()
    page.get_by_role("link", name=re.compile("^Website: .*Remove")).click()
    expect(page).to_have_url(re.compile("/$"))
    page.locator("#months").get_by_role("link").first.click()
    month = days_ago(0)[:7]
    expect(page).to_have_url(re.compile(f"from={month}-01&to={month}-"))


def test_the_whole_list_is_paged(collector: Stack, page: Page) -> None:
    site = site_name()
    events = [
        {"Type": "AdImpression", "Url": site, "Meta": {"UserId": "u", "AdId": f"{n:03}"}}
        for n in range(60)
    ]
    httpx.post(f"{collector.url}/events", json=events).raise_for_status()
    collector.run("eventstream", "drain")
    show(page, f"/?website={site}")
    assert len(first_cells(page, "ads")) == 8
    page.get_by_role("link", name="Show all ads").click()
    expect(page.locator("#ads tbody tr")).to_have_count(50)
    for hidden in ("#card-pages", "#figures", ".chart"):
        expect(page.locator(hidden)).to_be_hidden()
    expect(page.get_by_role("link", name="Back to everything")).to_be_in_viewport()
    first = first_cells(page, "ads")
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#ads tbody tr")).to_have_count(10)
    assert len({*first, *first_cells(page, "ads")}) == 60
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="Previous").click()
    expect(page.locator("#ads tbody tr")).to_have_count(50)
    page.get_by_role("link", name="Back to everything").click()
    expect(page.locator("#ads tbody tr")).to_have_count(8)


@pytest.mark.parametrize("table", ["ads", "pages", "websites", "campaigns", "months"])
def test_an_export_has_what_is_shown(page: Page, shop: str, table: str) -> None:
    show(page, f"/?website={shop}")
    shown = page.locator(f"#{table} tbody td.sorted, #{table} tbody td.count:nth-child(2)")
    figures = {text.replace(",", "") for text in shown.all_inner_texts()}
    with page.expect_download() as download:
        page.locator(f"#card-{table} .export").click()
    assert download.value.suggested_filename.startswith(f"{table}-{days_ago(6)}")
    lines = Path(download.value.path()).read_text().splitlines()
    cells = {cell for line in lines[1:] for cell in line.split(",")}
    assert figures
    assert figures <= cells
    assert len(lines) > 1


def test_a_website_is_found_by_its_beginning_and_an_unknown_one_is_said(
    page: Page, shop: str
) -> None:
    website = page.get_by_role("combobox", name="Website")
    website.fill(shop[:6].upper())
    expect(page.locator("#websites option")).to_have_attribute("value", shop)
    website.fill(f"WWW.{shop}/any")
    website.press("Enter")
    expect(page.locator("#impressions")).to_have_text("78")
    website.fill("never-seen.example")
    website.press("Enter")
    expect(page.get_by_text("Nothing was ever counted for never-seen.example.")).to_be_visible()
    website.fill("http://[")
    website.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("website:")


@pytest.mark.parametrize(
    ("behind", "text", "state"),
    [
        ({"page_view": 12.4, "ad_click": 0}, "12 s behind", "behind"),
        ({"page_view": 300, "ad_click": 70}, "page views, ad clicks stuck", "stuck"),
        ({"page_view": 0.4, "ad_click": 0}, "OK", "ok"),
    ],
)
def test_the_chip_says_how_far_behind_the_collector_is_on_both_tabs(
    page: Page, behind: dict[str, float], text: str, state: str
) -> None:
    def answer(route: Route) -> None:
        found = route.fetch().json()
        route.fulfill(json=found | {"behind": behind})

    page.route("**/live/snapshot*", answer)
    for tab in ("Operations", "Traffic"):
        page.get_by_role("link", name=tab).click()
        expect(page.locator("#condition")).to_have_text(text)
        expect(page.locator("#condition")).to_have_attribute("data-state", state)
    shoot(page, f"chip-{state}")


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
    expect(page.locator("#condition")).to_have_text("database away")
    shoot(page, "broken")
    failing["now"] = False
    expect(problem).to_be_hidden(timeout=10_000)
    expect(page.locator("#condition")).to_have_text("OK")


def test_the_page_says_that_it_is_reconnecting_and_then_shows_what_it_missed(
    collector: Stack, page: Page
) -> None:
    site = site_name()
    post(collector, "PageView", site)
    show(page, f"/?website={site}")
    expect(page.locator("#views")).to_have_text("1", timeout=5_000)
    web = min(pid for name, pid in collector.descendants().items() if "gunicorn" in name)
    os.killpg(web, signal.SIGKILL)
    expect(page.locator("#condition")).to_have_text("Reconnecting…")
    wait_until(lambda: is_up(collector))
    post(collector, "PageView", site)
    is_live(page)
    expect(page.locator("#views")).to_have_text("2", timeout=10_000)
    expect(page.locator("#problem")).to_be_hidden()


def test_the_page_says_that_the_session_has_ended(page: Page) -> None:
    page.context.clear_cookies()
    page.get_by_role("combobox", name="Website").fill("x.com")
    page.get_by_role("combobox", name="Website").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Your session has ended.")


def test_operators_see_queues_workers_disk_and_what_was_filtered(
    collector: Stack, page: Page
) -> None:
    site = site_name()
    event = {"Type": "PageView", "Url": site}
    httpx.post(f"{collector.url}/events", json=event, headers={"User-Agent": "Googlebot/2.1"})
    collector.run("eventstream", "drain")
    show(page, f"/?website={site}&tab=operations")
    expect(page.locator("#filtered tbody tr")).to_have_text("PageViewrobot1")
    queues = page.locator("#queues tbody tr")
    expect(queues).to_have_count(3)
    expect(queues.first).to_contain_text("page view")
    for fact in ("Brokerok", "Databaseok", "Workers4"):
        expect(page.locator("#facts")).to_contain_text(fact)
    expect(page.locator("#facts")).to_contain_text(re.compile("Disk free[0-9.]+ [GT]B of"))
    page.get_by_role("link", name="Traffic").click()
    expect(page.locator("#views")).to_have_text("0")


def test_a_stuck_queue_stands_out(page: Page) -> None:
    queue = {"queue": "page_view", "waiting": 4, "taken": 0, "oldest_seconds": 400}

    def answer(route: Route) -> None:
        route.fulfill(json=route.fetch().json() | {"queues": [queue]})

    page.route("**/status", answer)
    show(page, "/?tab=operations")
    expect(page.locator("#queues tr.stuck")).to_have_text("page view40stuck for 7 min")
    shoot(page, "stuck")


def letters_in(collector: Stack) -> Redis:
    addresses = json.loads((Path(collector.environment["DATA_DIR"]) / "addresses.json").read_text())
    return Redis.from_url(addresses["REDIS_URL"])


def test_a_dead_letter_is_sent_again_from_the_page(collector: Stack, page: Page) -> None:
    event = json.dumps({"Type": "PageView", "Url": "late.com/letter"})
    with letters_in(collector) as redis:
        redis.xadd("dead_letters:events", {"reason": '{"Url":["Was refused."]}', "event": event})
    show(page, "/?website=late.com&tab=operations")
    letter = page.locator("#letters li").filter(has_text="late.com/letter")
    expect(letter).to_contain_text("Was refused.")
    letter.get_by_role("button", name="Send again").click()
    expect(page.get_by_text("Sent again: 1 accepted.")).to_be_visible()
    expect(letter).to_have_count(0)
    page.get_by_role("link", name="Traffic").click()
    expect(page.locator("#views")).to_have_text("1", timeout=10_000)


def test_dead_letters_are_found_by_reason_and_text_edited_and_dismissed(
    collector: Stack, page: Page
) -> None:
    site = site_name()
    for event in (
        {"type": "PageView", "Url": f"{site}/hinted"},
        {"Type": "AdClick", "Url": f"{site}/click"},
        {"Type": "AdClick", "Url": f"{site}/other"},
    ):
        httpx.post(f"{collector.url}/events", json=event)
    show(page, "/?tab=operations")
    found = page.locator("#letters li")
    page.get_by_label("Search").fill(site.upper())
    expect(found).to_have_count(3)
    hinted = found.filter(has_text="/hinted")
    expect(hinted).to_contain_text("Did you mean Type instead of type?")
    shoot(page, "letters")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert len([line for line in lines if site in line]) == len(lines) == 3
    hinted.get_by_role("button", name="Edit").click()
    area = page.get_by_label("The event, as JSON")
    area.fill((area.input_value()).replace('"type"', '"Type"'))
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.get_by_text("Sent again: 1 accepted.")).to_be_visible()
    expect(found).to_have_count(2)
    found.first.get_by_role("button", name="Send again").click()
    expect(page.get_by_text("Still not accepted.")).to_be_visible()
    expect(found).to_have_count(2)
    found.filter(has_text="/other").get_by_role("button", name="Dismiss").click()
    expect(found).to_have_count(1)
    reason = page.get_by_label("Reason")
    option = reason.locator("option").nth(1)
    reason.select_option(option.get_attribute("value"))
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Dismiss these").click()
    expect(page.get_by_text("1 dismissed.")).to_be_visible()
    expect(page.get_by_text("No dead letter fits.")).to_be_visible()


def test_a_spike_is_shown_when_it_is_announced(collector: Stack, page: Page) -> None:
    spike = {"queue": "page_view", "website": "busy.com", "name": "/a", "count": 40, "mean": 2.5}
    announced = json.dumps(spike | {"time": int(time.time()) // 60 * 60})
    show(page, "/?tab=operations")
    with letters_in(collector) as redis:
        redis.lpush("spikes:latest", announced)
        redis.publish("live:spike", announced)
    item = page.locator("#spikes li").filter(has_text="busy.com/a")
    expect(item).to_contain_text("40 views in the minute at", timeout=5_000)
    expect(item).to_contain_text("usually 2.5")


def test_text_of_events_never_becomes_markup(collector: Stack, page: Page) -> None:
    markup = "<img src=x onerror=\"document.title='broken in'\"><script>alert(1)</script>"
    site = site_name()
    for kind in ("PageView", "AdImpression", "AdClick"):
        post(
            collector,
            kind,
            site,
            3,
            Url=f"{site}/{markup}",
            Meta={"UserId": markup, "AdId": markup},
        )
    httpx.post(f"{collector.url}/events", json={"Type": markup, "Url": markup, "Meta": markup})
    with letters_in(collector) as redis:
        spike = {"queue": "ad_click", "website": markup, "name": markup, "count": 9, "mean": 1}
        redis.lpush("spikes:latest", json.dumps(spike | {"time": int(time.time())}))
    httpx.put(
        f"{collector.url}/ads/{quote(markup, safe='')}",
        json={"name": markup, "campaign": markup},
        headers={"Authorization": f"Bearer {TOKEN}"},
    ).raise_for_status()
    collector.run("eventstream", "drain")
    show(page, f"/?website={site}")
    expect(page.locator("#pages")).to_contain_text("%3Cscript%3E")
    expect(page.locator("#ads")).to_contain_text("<script>alert(1)</script>")
    expect(page.locator("#campaigns")).to_contain_text("<script>alert(1)</script>")
    show(page, f"/?campaign={quote(markup)}&ad_id={quote(markup)}")
    expect(page.locator("#chips")).to_contain_text("<script>alert(1)</script>")
    show(page, "/?tab=operations")
    expect(page.locator("#letters")).to_contain_text("<script>alert(1)</script>")
    expect(page.locator("#spikes")).to_contain_text("<script>alert(1)</script>")
    assert page.locator("main img, main script").count() == 0
    page.goto(f"/?website={quote(markup)}")
    expect(page.get_by_role("alert")).to_contain_text("website:")
    expect(page.get_by_role("combobox", name="Website")).to_have_value(markup)
    assert page.title() == "eventstream"


def test_the_page_can_be_used_by_keyboard_alone(page: Page, shop: str) -> None:
    show(page, f"/?website={shop}")
    page.get_by_role("combobox", name="Website").focus()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if page.evaluate("document.activeElement.textContent") == "Shoes 1":
            break
    assert {"tile-views", "tile-ctr", "chart", "sort"} <= reached
    page.locator("#ads a", has_text=f"ad {shop[:8]}-12").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#impressions")).to_have_text("12")


@pytest.mark.parametrize("tab", ["traffic", "operations"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_and_is_accessible_in_every_size_and_colour_scheme(
    page: Page, shop: str, size: str, tab: str
) -> None:
    width, height, scheme = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    show(page, f"/?website={shop}&tab={tab}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shoot(page, f"{tab}-{size}")
    no_violations_in(page)


def no_violations_in(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found] == []


def test_on_a_telephone_filters_are_folded_and_the_page_is_short(page: Page, shop: str) -> None:
    page.set_viewport_size({"width": 380, "height": 800})
    show(page, "/")
    expect(page.locator("#presets")).to_be_hidden()
    first = page.locator("#views").bounding_box()
    assert first
    assert first["y"] + first["height"] < 800
    assert page.evaluate("document.documentElement.scrollHeight") < 2_000
    page.locator("#folding summary").click()
    page.get_by_role("link", name="Yesterday").click()
    expect(page.locator("#folded")).to_contain_text(str(int(days_ago(1)[-2:])))


@pytest.mark.parametrize("narrowed", [[], ["--campaign", "shared"]])
def test_a_shared_link_shows_its_part_of_the_dashboard_and_prints_on_one_page(
    collector: Stack, browser: Browser, narrowed: list[str]
) -> None:
    site, other = site_name(), site_name()
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
        title = f"shared · {site}" if narrowed else site
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        expect(page.get_by_text("Read-only, until")).to_be_visible()
        expect(page.get_by_role("link", name="Operations")).to_have_count(0)
        for website in (other, site):
            post(collector, "PageView", website, 2)
            post(collector, "AdImpression", website, 3)
            post(collector, "AdClick", website, 4)
        expect(page.locator("#clicks")).to_have_text("1", timeout=15_000)
        expect(page.locator("#impressions")).to_have_text("3", timeout=15_000)
        expect(page.locator("#views")).to_have_text(NONE if narrowed else "2", timeout=15_000)
        expect(page.locator("#ads")).to_contain_text("34", timeout=10_000)
        assert other not in page.content()
        shoot(page, f"shared{len(narrowed)}")
        pdf = page.pdf(prefer_css_page_size=True)
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
        page.emulate_media(media="print")
        for hidden in ("#folding", "#condition", ".live", ".foot"):
            expect(page.locator(hidden).first).to_be_hidden()
        expect(page.locator("#period-note")).to_be_visible()
        page.emulate_media(media="screen")
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Admin token")).to_be_visible()
    # After the link is left, the log-in form is answered with 401.
    assert [problem for problem in problems if "401" not in problem] == []


def test_an_inline_script_is_refused(page: Page) -> None:
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'),"
        " {textContent: 'document.title = 1'}))"
    )
    assert page.title() == "eventstream"


def test_the_login_is_accessible(collector: Stack, browser: Browser) -> None:
    with browser.new_context(base_url=collector.url) as context:
        page = context.new_page()
        page.goto("/")
        page.get_by_label("Admin token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("That is not the admin token.")
        shoot(page, "login")
        no_violations_in(page)


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


def is_up(collector: Stack) -> bool:
    try:
        return httpx.get(f"{collector.url}/health").is_success
    except httpx.HTTPError:
        return False


def items(collector: Stack, path: str) -> list[dict[str, object]]:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    found: list[dict[str, object]] = httpx.get(
        f"{collector.url}/reports/{path}?limit=1000", headers=bearer
    ).json()["items"]
    return found


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
