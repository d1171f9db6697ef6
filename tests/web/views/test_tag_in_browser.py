"""The tag in a headless Chromium, on pages of two sites that are not the collector's."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

from app.domain.events import AdClick, AdImpression, PageView
from app.journal.redis_journal import RedisJournal
from app.settings import read
from tests.support.servers import Server, url_in
from tests.support.waiting import wait_until
from tests.web.conftest import gunicorn
from tests.web.views.test_dashboard_in_browser import CHROMIUM, LAUNCH
from tests.web.views.test_events import journalled

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(
        CHROMIUM is None, reason="chromium is not installed, so nothing is tested in a browser"
    ),
]

PAGE = """<!doctype html>
<title>A page with ads</title>
<style>
  body {{ margin: 0 }}
  [data-ad-id] {{ display: block; width: 300px; height: 200px; background: silver }}
  #gap {{ height: 3000px }}
</style>
<a data-ad-id="top" href="/next"><b>above the fold</b></a>
<div id="gap"></div>
<div data-ad-id="below">below the fold</div>
<script async src="{collector}/tag.js"></script>
"""
BARE = """<!doctype html>
<title>A page of another kind</title>
<style>body {{ margin: 0 }}</style>
{body}
<script async src="{collector}/tag.js"></script>
"""
IS_THERE = "!!window.eventstream?.consent"
ANY_ORIGIN = {"Access-Control-Allow-Origin": "*"}
QUEUES: dict[str, Any] = {
    "page_view": PageView,
    "ad_impression": AdImpression,
    "ad_click": AdClick,
}
RENDERED = "rendered"
"""What the tests call those of the queue `ad_impression` that are only rendered."""


@dataclass
class Site:
    """A website that serves the same page at every address."""

    name: str
    html: str
    journal: RedisJournal
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{self.name}"

    def received(self, queue: str) -> list[str]:
        """What the collector accepted from this site: pages of views, ads of other events."""
        return [getattr(event, "page", None) or event.ad_id for event in self.events(queue)]

    def events(self, queue: str) -> list[Any]:
        """The site's events, each id once, as they would be counted.

        Those of `ad_impression` are the impressions, and those of `RENDERED` the rendered ads.
        """
        name = "ad_impression" if queue == RENDERED else queue
        events = journalled(self.journal, name, QUEUES[name])
        own = {event.event_id: event for event in events if event.website == self.name}
        return [
            event
            for event in own.values()
            if name != "ad_impression" or (event.viewable is False) == (queue == RENDERED)
        ]

    def expect_events(self, queue: str, *names: str) -> None:
        wait_until(lambda: sorted(self.received(queue)) == sorted(names))


@contextmanager
def serving(host: str, html: str, journal: RedisJournal) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in {
                "Content-Type": "text/html; charset=utf-8",
                **served.headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(served.html.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Site(f"{host}:{server.server_port}", html, journal)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield served
        server.shutdown()


@pytest.fixture(scope="module")
def collector(
    redis: Server, mongodb: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    home = tmp_path_factory.mktemp("collector")
    settings = read({"REDIS_URL": redis.url, "MONGODB_URL": url_in(mongodb, "tag")})
    with gunicorn(settings, home, "wsgi:app") as url:
        yield url


@pytest.fixture
def sites(collector: str, journal: RedisJournal) -> Iterator[list[Site]]:
    html = PAGE.format(collector=collector)
    with ExitStack() as stack:
        hosts = ("127.0.0.1", "localhost")
        yield [stack.enter_context(serving(host, html, journal)) for host in hosts]


@pytest.fixture
def site(sites: list[Site]) -> Site:
    return sites[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=LAUNCH)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport={"width": 800, "height": 600}) as context:
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page; any script error fails the test."""
    errors: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    assert errors == []


@pytest.fixture
def still(page: Page) -> Page:
    """A page whose clock moves only with `page.clock.run_for`."""
    page.clock.install()
    page.clock.pause_at(datetime.now(UTC) + timedelta(minutes=1))
    return page


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The events' types, but RENDERED for ads that are only rendered."""
    return [
        RENDERED if event["Meta"].get("Viewable") is False else event["Type"] for event in events
    ]


def kept(page: Page) -> list[str]:
    """The kinds of the events that the page keeps because the collector has not yet answered."""
    stored = page.evaluate("Object.entries(localStorage)")
    return sorted(kinds([json.loads(text) for name, text in stored if "/events" in name]))


def run_until(still: Page, condition: Callable[[], object]) -> None:
    """Let the page's clock run until the condition holds."""

    def holds() -> object:
        still.clock.run_for(500)
        return condition()

    wait_until(holds)


def deliver(still: Page) -> None:
    """Let the page's clock run until the collector has answered for every event.

    While a post is under way no other begins, and the answer sets a timer for what came meanwhile.
    """
    run_until(still, lambda: kept(still) == [])


def in_view(page: Page, selector: str, inside: bool = True) -> None:
    """Return once the browser has told its observers that half of an element is in view, or not."""
    page.locator(selector).evaluate(
        """(element, inside) => new Promise((resolve) => new IntersectionObserver(
            ([entry]) => entry.intersectionRatio >= 0.5 === inside && resolve(),
            { threshold: 0.5 },
        ).observe(element))""",
        inside,
    )


TURN = """(hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""
"""Hides the page, or shows it again, as another tab in front of it does."""


def move(page: Page, script: str) -> None:
    page.evaluate(f"void {script}")


# Page views.


def test_a_view_is_reported_at_load_and_when_the_history_changes(
    sites: list[Site], page: Page
) -> None:
    for site in sites:
        page.goto(f"{site.url}/a?x=1#top")
        site.expect_events("page_view", "/a")
        move(page, "history.pushState(null, '', '/b')")
        site.expect_events("page_view", "/a", "/b")
        move(page, "history.replaceState(null, '', '/c')")
        site.expect_events("page_view", "/a", "/b", "/c")
        move(page, "history.back()")
        site.expect_events("page_view", "/a", "/a", "/b", "/c")


def test_the_same_address_and_a_fragment_are_not_a_view(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/a")
    page.wait_for_function(IS_THERE)
    move(page, "history.replaceState({}, '', '/a')")
    move(page, "history.pushState({}, '', '/a#part')")
    move(page, "location.assign('#other')")
    move(page, "history.pushState({}, '', '/last')")
    site.expect_events("page_view", "/a", "/last")


def test_a_view_has_a_time_and_an_id_but_no_part_of_the_query(site: Site, page: Page) -> None:
    with page.expect_request("**/events") as asked:
        page.goto(f"{site.url}/a?email=someone@a.com#secret")
    assert asked.value.headers["content-type"] == "text/plain;charset=UTF-8"  # no preflight
    event = json.loads(asked.value.post_data or "")[0]
    assert event["Type"] == "PageView"
    assert event["Url"] == f"{site.url}/a"
    assert len(event["EventId"]) > 16
    age = datetime.now(UTC) - datetime.fromtimestamp(event["Timestamp"] / 1000, UTC)
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_a_tag_that_is_included_twice_reports_once(site: Site, page: Page) -> None:
    (tag,) = (line for line in site.html.splitlines() if "tag.js" in line)
    site.html += tag
    page.goto(f"{site.url}/a")
    page.wait_for_load_state()
    move(page, "history.pushState(null, '', '/b')")
    site.expect_events("page_view", "/a", "/b")


# Impressions.


def test_an_ad_is_seen_once_after_half_of_it_was_in_view_for_a_second(
    site: Site, still: Page
) -> None:
    still.goto(site.url)
    still.wait_for_function(IS_THERE)
    in_view(still, "[data-ad-id=top]")
    still.clock.run_for(999)
    site.expect_events("page_view", "/")
    wait_until(lambda: kept(still) == [])
    still.clock.run_for(1)
    assert kept(still) == ["AdImpression"]
    still.clock.run_for(5_000)
    site.expect_events("ad_impression", "top")
    wait_until(lambda: kept(still) == [])
    still.clock.run_for(5_000)
    assert kept(still) == []


def test_the_second_must_be_continuous(site: Site, still: Page) -> None:
    still.goto(site.url)
    still.wait_for_function(IS_THERE)
    in_view(still, "[data-ad-id=top]")
    still.clock.run_for(900)
    still.evaluate("scrollTo(0, 101)")
    in_view(still, "[data-ad-id=top]", False)
    still.clock.run_for(900)
    still.evaluate("scrollTo(0, 100)")
    in_view(still, "[data-ad-id=top]")
    still.clock.run_for(999)
    assert "AdImpression" not in kept(still)
    still.clock.run_for(1)
    assert "AdImpression" in kept(still)


def test_no_ad_is_seen_in_a_hidden_page(site: Site, still: Page) -> None:
    still.goto(site.url)
    still.wait_for_function(IS_THERE)
    in_view(still, "[data-ad-id=top]")
    still.clock.run_for(900)
    still.evaluate(TURN, True)
    still.clock.run_for(5_000)
    assert "AdImpression" not in kept(still)
    still.evaluate(TURN, False)
    in_view(still, "[data-ad-id=top]")
    still.clock.run_for(999)
    assert "AdImpression" not in kept(still)
    still.clock.run_for(1)
    assert "AdImpression" in kept(still)


def test_an_ad_below_the_fold_is_seen_when_scrolled_to(site: Site, page: Page) -> None:
    page.goto(site.url)
    site.expect_events("ad_impression", "top")
    page.locator("[data-ad-id=below]").scroll_into_view_if_needed()
    site.expect_events("ad_impression", "top", "below")


def test_an_ad_is_seen_again_in_the_next_page_view(site: Site, page: Page) -> None:
    page.goto(site.url)
    site.expect_events("ad_impression", "top")
    move(page, "history.pushState(null, '', '/b')")
    site.expect_events("ad_impression", "top", "top")


def test_an_ad_that_is_added_or_filled_later_or_changes_is_seen(site: Site, page: Page) -> None:
    page.goto(site.url)
    site.expect_events("ad_impression", "top")
    page.evaluate(
        """document.body.insertAdjacentHTML(
            "afterbegin", "<p><b data-ad-id=late></b><b data-ad-id=empty style='width: 0'></b>")"""
    )
    site.expect_events("ad_impression", "top", "late")
    page.locator("[data-ad-id=empty]").evaluate("(ad) => { ad.style.width = '90px' }")
    site.expect_events("ad_impression", "top", "late", "empty")
    page.locator("[data-ad-id=late]").evaluate("(ad) => { ad.dataset.adId = 'other' }")
    site.expect_events("ad_impression", "top", "late", "empty", "other")
    site.expect_events(RENDERED, "below", "top", "late", "empty", "other")


# Rendered ads.


def posts(page: Page) -> list[list[dict[str, Any]]]:
    """The events of each post of the page, from now on."""
    sent: list[list[dict[str, Any]]] = []

    def note(request: Request) -> None:
        if request.method == "POST":
            sent.append(json.loads(request.post_data or ""))

    page.on("request", note)
    return sent


def test_an_ad_is_rendered_once_and_has_an_impression_once_it_is_seen(
    site: Site, page: Page
) -> None:
    page.goto(site.url)
    site.expect_events("ad_impression", "top")
    site.expect_events(RENDERED, "below", "top")
    page.locator("[data-ad-id=below]").scroll_into_view_if_needed()
    site.expect_events("ad_impression", "below", "top")
    site.expect_events(RENDERED, "below", "top")
    impressions, rendered = site.events("ad_impression"), site.events(RENDERED)
    assert {event.viewable for event in impressions} == {True}
    assert len({event.event_id for event in impressions + rendered}) == 4


def test_rendered_ads_go_with_the_view_and_what_is_soon_viewable_with_its_rendering(
    site: Site, still: Page
) -> None:
    sent = posts(still)
    still.goto(site.url)
    still.wait_for_function(IS_THERE)
    in_view(still, "[data-ad-id=top]")
    still.clock.run_for(500)
    wait_until(lambda: kept(still) == [])
    assert [kinds(post) for post in sent] == [["PageView", RENDERED, RENDERED]]
    still.locator("[data-ad-id=top]").evaluate("(ad) => { ad.dataset.adId = 'late' }")
    still.clock.run_for(500)
    in_view(still, "[data-ad-id=late]")
    run_until(still, lambda: kept(still) == [])
    assert [kinds(post) for post in sent[1:]] == [[RENDERED, "AdImpression"]]


def test_each_event_of_an_ad_keeps_its_own_id_when_it_is_sent_again(
    site: Site, still: Page
) -> None:
    sent = posts(still)
    still.route("**/events", lambda route: route.fulfill(status=503, headers=ANY_ORIGIN))
    still.goto(site.url)
    still.wait_for_function(IS_THERE)
    in_view(still, "[data-ad-id=top]")

    def tries() -> list[list[dict[str, Any]]]:
        return [post for post in sent if "AdImpression" in kinds(post)]

    run_until(still, lambda: len(tries()) > 1)
    first, *again = tries()
    assert kinds(first) == ["PageView", RENDERED, RENDERED, "AdImpression"]
    ids = [event["EventId"] for event in first]
    assert len(set(ids)) == 4
    for post in again:
        assert [event["EventId"] for event in post] == ids


def test_without_reports_of_rendered_ads_an_impression_counts_as_both(
    site: Site, page: Page
) -> None:
    sent = posts(page)
    site.html = site.html.replace("async", 'async data-rendered="off"')
    page.goto(site.url)
    site.expect_events("ad_impression", "top")
    page.locator("[data-ad-id=below]").scroll_into_view_if_needed()
    site.expect_events("ad_impression", "below", "top")
    assert {event.viewable for event in site.events("ad_impression")} == {None}
    assert site.events(RENDERED) == []
    assert "Viewable" not in json.dumps(sent)


def test_ads_in_a_hidden_tab_are_only_rendered(site: Site, noted: Page) -> None:
    noted.add_init_script(f"({TURN})(true)")
    noted.goto(site.url)
    noted.wait_for_function(IS_THERE)
    in_view(noted, "[data-ad-id=top]")
    noted.clock.run_for(5_000)
    deliver(noted)
    site.expect_events(RENDERED, "below", "top")
    assert site.events("ad_impression") == []


def test_an_ad_that_is_removed_before_it_was_seen_is_only_rendered(site: Site, still: Page) -> None:
    still.goto(site.url)
    still.wait_for_function(IS_THERE)
    in_view(still, "[data-ad-id=top]")
    still.clock.run_for(900)
    still.locator("[data-ad-id=top]").evaluate("(ad) => ad.remove()")
    still.clock.run_for(5_000)
    deliver(still)
    site.expect_events(RENDERED, "below", "top")
    assert site.events("ad_impression") == []


def test_ads_that_a_router_is_about_to_remove_are_not_rendered_in_the_next_view(
    site: Site, still: Page, collector: str
) -> None:
    stays = AD.replace("'x'", "'stays'")
    show(still, site, collector, AD.replace("drawn", "leaves") + stays)
    still.clock.run_for(500)
    deliver(still)
    site.expect_events(RENDERED, "stays", "x")
    move(still, "history.pushState(null, '', '/b')")
    still.clock.run_for(300)
    move(still, "history.replaceState(null, '', '/c')")
    still.clock.run_for(300)
    still.evaluate("leaves.outerHTML = leaves.outerHTML.replace('\"x\"', '\"y\"')")
    still.clock.run_for(500)
    deliver(still)
    site.expect_events("page_view", "/", "/b", "/c")
    site.expect_events(RENDERED, "stays", "x", "y", "stays")


@pytest.mark.parametrize("ads", [1, 40])
def test_ads_rendered_just_before_the_visitor_leaves_are_reported(
    site: Site, still: Page, collector: str, ads: int
) -> None:
    show(still, site, collector, "")
    # No timer of the tag runs any more.
    still.evaluate("(all) => { document.body.innerHTML = all; location = 'about:blank' }", AD * ads)
    still.wait_for_url("about:blank")
    site.expect_events("page_view", "/")
    site.expect_events(RENDERED, *["x"] * ads)


def test_ads_are_only_rendered_where_what_is_in_view_cannot_be_measured(
    site: Site, noted: Page
) -> None:
    noted.add_init_script("delete window.IntersectionObserver")
    noted.goto(site.url)
    noted.wait_for_function(IS_THERE)
    noted.clock.run_for(5_000)
    deliver(noted)
    site.expect_events(RENDERED, "below", "top")
    noted.locator("[data-ad-id=below]").click()
    site.expect_events("ad_click", "below")
    noted.clock.run_for(5_000)
    deliver(noted)
    assert site.events("ad_impression") == []


def test_an_ad_in_a_frame_of_another_origin_is_seen_once_the_frame_is_in_view(
    sites: list[Site], page: Page, collector: str
) -> None:
    site, around = sites
    site.html = BARE.format(body=AD, collector=collector)
    frame = f"<iframe src='{site.url}' width='400' height='300'></iframe>"
    around.html = f"<!doctype html><title>A page</title><p style='height: 2000px'>{frame}"
    # Not of another site, which may have no storage in a frame.
    page.goto(around.url.replace("localhost", "127.0.0.1"))
    site.expect_events(RENDERED, "x")
    page.wait_for_timeout(1_500)  # long enough for an ad to be seen
    assert site.events("ad_impression") == []
    page.locator("iframe").scroll_into_view_if_needed()
    site.expect_events("ad_impression", "x")
    site.expect_events(RENDERED, "x")


# Clicks.


def test_a_click_is_reported_even_if_it_leads_away(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/a")
    page.wait_for_function(IS_THERE)
    page.locator("b").click()
    page.wait_for_url("**/next")
    site.expect_events("ad_click", "top")
    site.expect_events("page_view", "/a", "/next")
    wait_until(lambda: kept(page) == [])


def test_every_click_is_reported_even_with_the_middle_button(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/a")
    page.wait_for_function(IS_THERE)
    below = page.locator("[data-ad-id=below]")
    below.click()
    below.click()
    below.click(button="middle")
    below.click(button="right")
    page.locator("#gap").click()
    move(page, "history.pushState(null, '', '/last')")
    site.expect_events("page_view", "/a", "/last")
    site.expect_events("ad_click", "below", "below", "below")


# Users.


def test_a_user_has_an_id_on_each_site(sites: list[Site], page: Page) -> None:
    for site in sites:
        page.goto(f"{site.url}/a")
        site.expect_events("ad_impression", "top")
        page.goto(f"{site.url}/b")
        site.expect_events("ad_impression", "top", "top")
    users = [{event.user_id for event in site.events("ad_impression")} for site in sites]
    assert [len(each) for each in users] == [1, 1]
    assert users[0] != users[1]


def test_the_page_may_set_the_user_and_a_key(site: Site, page: Page) -> None:
    site.html = site.html.replace("async", 'async data-user="u 7" data-key="a&amp;b"')
    with page.expect_request("**/events?*") as asked:
        page.goto(site.url)
    assert asked.value.url.endswith("/events?key=a%26b")
    site.expect_events("ad_impression", "top")
    assert [event.user_id for event in site.events("ad_impression")] == ["u 7"]
    assert page.evaluate("localStorage['eventstream user']") is None


@pytest.mark.parametrize("objection", ["globalPrivacyControl: true", "doNotTrack: '1'"])
def test_do_not_track_allows_only_views_without_a_user(
    site: Site, page: Page, objection: str
) -> None:
    page.goto(f"{site.url}/before")
    site.expect_events("ad_impression", "top")
    assert page.evaluate("localStorage['eventstream user']")
    name, value = objection.split(": ")
    page.add_init_script(f"Object.defineProperty(navigator, '{name}', {{ value: {value} }})")
    sent: list[str] = []
    page.on("request", lambda asked: sent.append(asked.post_data or ""))
    site.html = site.html.replace("async", 'async data-user="u7"')
    page.goto(f"{site.url}/a")
    in_view(page, "[data-ad-id=top]")
    page.locator("[data-ad-id=below]").click()
    page.wait_for_timeout(1_100)  # long enough for an ad to be seen
    move(page, "history.pushState(null, '', '/b')")
    site.expect_events("page_view", "/before", "/a", "/b")
    assert "UserId" not in "".join(sent)
    assert site.received("ad_click") == []
    assert site.received("ad_impression") == ["top"]
    assert sorted(site.received(RENDERED)) == ["below", "top"]
    wait_until(lambda: page.evaluate("Object.keys(localStorage)") == [])


# Offline.


def test_events_from_offline_are_reported_once_when_online_again(
    site: Site, context: BrowserContext, page: Page
) -> None:
    page.goto(f"{site.url}/a")
    site.expect_events("page_view", "/a")
    context.set_offline(True)
    move(page, "history.pushState(null, '', '/b')")
    page.locator("[data-ad-id=below]").click()
    assert {"AdClick", "PageView"} <= set(kept(page))
    context.set_offline(False)
    wait_until(lambda: kept(page) == [])
    site.expect_events("page_view", "/a", "/b")
    site.expect_events("ad_click", "below")


def test_events_that_could_not_be_sent_are_sent_from_the_next_page(
    site: Site, context: BrowserContext, page: Page
) -> None:
    context.route("**/events", lambda route: route.abort())
    page.goto(f"{site.url}/a")
    page.wait_for_function(IS_THERE)
    page.close()
    context.unroute("**/events")
    after = context.new_page()
    after.goto(f"{site.url}/b")
    site.expect_events("page_view", "/a", "/b")
    wait_until(lambda: kept(after) == [])


@pytest.mark.parametrize("status", [429, 503])
def test_the_tag_tries_again_later_if_the_collector_is_full(
    site: Site, still: Page, status: int
) -> None:
    asked: list[int] = []

    def answer(route: Route) -> None:
        asked.append(status)
        if len(asked) < 3:
            route.fulfill(status=status, headers=ANY_ORIGIN)
        else:
            route.continue_()

    def is_answered_after(milliseconds: int) -> bool:
        still.clock.run_for(milliseconds)
        return kept(still) == []

    still.route("**/events", answer)
    still.goto(f"{site.url}/a")
    still.wait_for_function(IS_THERE)
    wait_until(lambda: is_answered_after(500))
    assert len(asked) == 3
    site.expect_events("page_view", "/a")


def test_events_that_the_collector_rejects_are_not_sent_again(
    site: Site, still: Page, collector: str
) -> None:
    still.route("**/events", lambda route: route.fulfill(status=400, headers=ANY_ORIGIN))
    show(still, site, collector, "")
    assert kept(still) == ["PageView"]
    still.clock.run_for(500)
    wait_until(lambda: kept(still) == [])


def test_at_most_200_events_are_kept_and_none_longer_than_ids_are_remembered(
    site: Site, still: Page, collector: str
) -> None:
    still.route("**/events", lambda route: route.abort())
    # What a page sends as it unloads sometimes gets past the route: by beacon all, else the first.
    still.add_init_script("navigator.sendBeacon = () => true")
    site.html = BARE.format(body="", collector=collector)
    still.goto(f"{site.url}/a")
    still.wait_for_function(IS_THERE)
    still.evaluate("for (let n = 0; n < 300; n++) history.pushState(null, '', `/${n}`)")
    assert kept(still) == ["PageView"] * 200
    still.evaluate(
        """() => {
            const isLast = (name) => localStorage[name].includes("/299");
            const name = Object.keys(localStorage).find(isLast);
            const old = JSON.parse(localStorage[name]);
            old.Timestamp -= 6 * 86400_000;
            localStorage[name] = JSON.stringify(old);
        }"""
    )
    still.goto(f"{site.url}/b")
    still.wait_for_function(IS_THERE)
    still.unroute("**/events")

    run_until(still, lambda: kept(still) == [])
    assert len(site.received("page_view")) == 199 + 1
    assert "/299" not in site.received("page_view")


# Pages of other kinds.

PICTURE = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
IMAGE = f"<img id='drawn' width='300' height='200' src='{PICTURE}' style='{{}}'>"
IN_SHADOW = f"""<div id="host"></div><script>
    host.attachShadow({{ mode: "open" }}).innerHTML =
        `<a data-ad-id="x" href="#clicked">{IMAGE.format("")}</a>`;
</script>"""
KINDS = {
    "inline": f"<a data-ad-id='x' href='/'>{IMAGE.format('')}</a>",
    "without a box": f"<p data-ad-id='x' style='display: contents'>{IMAGE.format('')}</p>",
    "floated": f"<div data-ad-id='x'>{IMAGE.format('float: left')}</div>",
    "absolute": f"<div data-ad-id='x'>{IMAGE.format('position: absolute')}</div>",
    "overflowing": f"<div data-ad-id='x' style='height: 9px'>{IMAGE.format('')}</div>",
    "in a tall box": f"<div data-ad-id='x' style='height: 4000px'>{IMAGE.format('')}</div>",
    "clipped": "<div id='drawn' data-ad-id='x' style='width: 300px; height: 200px; overflow: "
    f"hidden'><img width='300' height='900' src='{PICTURE}'></div>",
    "in a shadow root": IN_SHADOW,
    "large": "<div id='drawn' data-ad-id='x' style='width: 700px; height: 400px; background: red'>",
    "in a slot": f"""<div id="host" data-ad-id="x">{IMAGE.format("")}</div><script>
        host.attachShadow({{ mode: "open" }}).innerHTML = "<p style='margin: 0'><slot></slot></p>";
    </script>""",
    "a pseudo-element": "<style>#drawn::before { content: ''; display: block; height: 200px; "
    "background: red }</style><div id='drawn' data-ad-id='x' style='width: 300px'></div>",
    "text of a pseudo-element": "<style>#drawn::after { content: 'Shoes' }</style>"
    "<div id='drawn' data-ad-id='x' style='width: 300px; height: 200px'></div>",
    "an inline box that clips nothing": "<a data-ad-id='x' style='overflow: hidden' href='/'>"
    f"{IMAGE.format('')}</a>",
    "behind a picture of many parts": "<div data-ad-id='x'>"
    f"<svg width='9' height='9' style='position: absolute'>{'<path/>' * 300}</svg>"
    f"{IMAGE.format('display: block')}</div>",
    "a form": "<form id='drawn' data-ad-id='x' style='height: 200px; background: red'>"
    "<input name='children' type='number'><input name='matches'></form>",
    "an input": f"<p data-ad-id='x'>{IMAGE.format('').replace('img', 'input type=image')}</p>",
}


def show(page: Page, site: Site, collector: str, body: str) -> None:
    """Show a page with this body, and have the tag look for ads."""
    site.html = BARE.format(body=body, collector=collector)
    page.goto(site.url)
    page.wait_for_function(IS_THERE)


def is_counted(still: Page, selector: str = "#drawn", inside: bool = True) -> bool:
    """Whether there is an impression after some seconds with half of the ad in view, or less."""
    still.clock.run_for(500)
    in_view(still, selector, inside)
    still.clock.run_for(3_000)
    return '"Viewable":true' in still.evaluate(SENT)


def is_rendered(still: Page) -> bool:
    """Whether an ad was reported at all."""
    return "AdImpression" in still.evaluate(SENT)


SENT = """(window.sent ?? "") + Object.entries(localStorage)"""
KEEPS_BEACONS = """const fetch = window.fetch;
    window.fetch = (url, init) => { window.sent = (window.sent ?? "") + init.body;
        return fetch(url, init); };"""


@pytest.fixture
def noted(still: Page) -> Page:
    """A still page that records what its tag sent."""
    still.add_init_script(KEEPS_BEACONS)
    return still


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_drawn_pixels_of_an_ad_count_as_its_area(
    site: Site, noted: Page, collector: str, kind: str
) -> None:
    height, least = (400, 0.3) if kind == "large" else (200, 0.5)
    for share, counts in ((least - 0.1, False), (least + 0.1, True)):
        above = f"<div style='height: {600 - height * share}px'></div>"
        show(noted, site, collector, above + KINDS[kind])
        assert is_counted(noted, inside=share >= 0.5) is counts


@pytest.mark.parametrize(
    "style",
    [
        "visibility: hidden",
        "opacity: 0",
        "display: none",
        "width: 1px; height: 1px",
        "width: 0; height: 0",
    ],
)
def test_an_ad_that_nobody_can_see_has_no_impression(
    site: Site, noted: Page, collector: str, style: str
) -> None:
    body = f"<p id='drawn'>text</p><div id='ad' data-ad-id='x' style='{style}'>ad</div>"
    size = "<style>#ad { width: 300px; height: 200px; background: red }</style>"
    show(noted, site, collector, size + body)
    assert not is_counted(noted)
    assert not is_rendered(noted)
    noted.locator("#ad").evaluate("(ad) => ad.removeAttribute('style')")
    assert is_counted(noted, "#ad")


@pytest.mark.parametrize(
    "ad",
    [
        "<div style='background: color(srgb 1 0 0 / 0); height: 200px'></div>",
        "<div style='color: transparent; height: 200px'>text</div>",
        "<div style='font-size: 0; height: 200px'>text</div>",
        "<div style='border: 9px solid red; height: 200px'></div>",
        "<iframe width='0' height='0'></iframe>",
        "<img width='300' height='200' src='http://127.0.0.1:9/blocked.gif'>",
        "<img width='300' height='200' src='data:,'>",
        "<video-slot style='display: block; height: 200px'></video-slot>",
    ],
)
def test_an_ad_that_is_not_loaded_or_draws_nothing_has_no_impression(
    site: Site, noted: Page, collector: str, ad: str
) -> None:
    show(noted, site, collector, f"<p id='drawn'>text</p><div data-ad-id='x'>{ad}</div>")
    assert not is_counted(noted)
    assert not is_rendered(noted)


def test_a_covered_ad_has_no_impression_until_it_is_uncovered(
    site: Site, noted: Page, collector: str
) -> None:
    over = "<div id='over' style='position: fixed; inset: 0; background: {}'></div>"
    show(noted, site, collector, KINDS["inline"] + over.format("white"))
    assert not is_counted(noted)
    noted.locator("#over").evaluate("(over) => { over.style.background = 'none' }")
    assert is_counted(noted)


def test_an_empty_ad_slot_has_no_impression_until_it_is_filled(
    site: Site, noted: Page, collector: str
) -> None:
    place = "<div id='drawn' data-ad-id='x' style='width: 300px; height: 200px; overflow: hidden'>"
    show(noted, site, collector, place + "<p style='height: 100px'></p></div>")
    assert not is_counted(noted)
    assert not is_rendered(noted)
    noted.locator("#drawn p").evaluate("(inside) => { inside.style.background = 'red' }")
    assert is_counted(noted)


AD = "<div id='drawn' data-ad-id='x' style='width: 300px; height: 200px; background: red'></div>"
BAR = "<div style='position: fixed; bottom: 0; width: 100%; height: {}px; background: white'></div>"


@pytest.mark.parametrize(
    ("above", "bar", "counts"),
    [(450, 0, True), (400, 50, True), (450, 60, False), (400, 150, False)],
)
def test_covered_and_out_of_view_parts_of_an_ad_add_up(
    site: Site, noted: Page, collector: str, above: int, bar: int, counts: bool
) -> None:
    body = f"<div style='height: {above}px'></div>{AD}{BAR.format(bar)}"
    show(noted, site, collector, body)
    assert is_counted(noted) is counts


@pytest.mark.parametrize(
    "beside",
    [
        "<style>a::after { content: ''; position: absolute; inset: 0 }</style>"
        "<a href='/' style='background: blue'>Read more</a>",
        "<dialog style='margin: 500px 0 0'>cookies</dialog>"
        "<script>document.querySelector('dialog').showModal()</script>",
    ],
)
def test_an_element_stretched_over_an_ad_but_not_drawn_there_does_not_cover_it(
    site: Site, noted: Page, collector: str, beside: str
) -> None:
    show(noted, site, collector, f"<div style='position: relative'>{AD}{beside}</div>")
    assert is_counted(noted)


def test_an_ad_that_becomes_large_needs_only_the_share_of_a_large_one(
    site: Site, noted: Page, collector: str
) -> None:
    noted.set_viewport_size({"width": 1_000, "height": 600})
    show(noted, site, collector, f"<div style='height: 500px'></div>{AD}")
    noted.clock.run_for(500)
    noted.evaluate("Object.assign(drawn.style, { width: '970px', height: '250px' })")
    assert is_counted(noted, inside=False)


def test_two_elements_in_one_slot_count_once(site: Site, noted: Page, collector: str) -> None:
    twin = AD.replace("id='drawn'", "data-ad-slot='side'")
    show(noted, site, collector, f"<p id='drawn'>text</p>{twin}{twin}")
    assert is_counted(noted)
    deliver(noted)
    site.expect_events("ad_impression", "x")
    site.expect_events(RENDERED, "x")


def test_a_layer_that_nobody_can_see_covers_no_ad(site: Site, noted: Page, collector: str) -> None:
    over = "<div style='position: fixed; inset: 0; background: white; opacity: 0'></div>"
    show(noted, site, collector, KINDS["inline"] + over)
    assert is_counted(noted)


def test_an_ad_counts_once_per_view_and_slot_even_if_its_element_is_replaced(
    site: Site, noted: Page, collector: str
) -> None:
    ads = "".join(
        f"<b data-ad-id='x' {slot} style='display: block; background: red'>ad</b>"
        for slot in ("", "", "data-ad-slot='side'")
    )
    show(noted, site, collector, f"<p id='drawn'>text</p>{ads}")
    for _ in range(3):
        assert is_counted(noted)
        noted.evaluate(
            "for (const ad of document.querySelectorAll('b')) ad.replaceWith(ad.cloneNode(true))"
        )
    deliver(noted)
    site.expect_events("ad_impression", "x", "x", "x")
    site.expect_events(RENDERED, "x", "x", "x")


def test_only_a_persons_clicks_count_and_one_gesture_is_one_click(
    site: Site, page: Page, collector: str
) -> None:
    label = "<div data-ad-id='x'><label>a label <input type='checkbox'></label></div>"
    show(page, site, collector, label + IN_SHADOW)
    page.evaluate("for (const ad of document.querySelectorAll('[data-ad-id]')) ad.click()")
    page.locator("label").click(position={"x": 5, "y": 5})
    page.locator("#host a").click()
    move(page, "history.pushState(null, '', '/last')")
    site.expect_events("page_view", "/", "/last")
    site.expect_events("ad_click", "x", "x")


def test_two_clicks_in_quick_succession_are_two(site: Site, page: Page, collector: str) -> None:
    ad = "<div data-ad-id='x' style='width: 300px; height: 200px; background: red'></div>"
    show(page, site, collector, ad)
    # A person's clicks are some time apart; those of a script may have the same time stamp.
    page.locator("[data-ad-id]").dblclick(delay=20)
    site.expect_events("ad_click", "x", "x")


@pytest.mark.parametrize("api", ["with the Navigation API", "without"])
@pytest.mark.parametrize("order", ["before the tag", "after it"])
def test_a_routers_views_are_reported_whenever_the_router_was_loaded(
    site: Site, page: Page, collector: str, api: str, order: str
) -> None:
    if api == "without":
        page.add_init_script("Object.defineProperty(window, 'navigation', { value: undefined })")
    router = "<script>const push = history.pushState.bind(history)</script>"
    show(page, site, collector, router if order == "before the tag" else "")
    if order == "after it":
        page.evaluate("void (window.push = history.pushState.bind(history))")
    for path in ("/b", "/c"):
        move(page, f"push(null, '', '{path}')")
        wait_until(lambda path=path: path in site.received("page_view"))  # type: ignore[misc]
    site.expect_events("page_view", "/", "/b", "/c")


@pytest.mark.parametrize("api", ["with the Navigation API", "without"])
def test_replacing_only_the_query_is_not_a_view(
    site: Site, page: Page, collector: str, api: str
) -> None:
    if api == "without":
        page.add_init_script("Object.defineProperty(window, 'navigation', { value: undefined })")
    site.html = BARE.format(body="", collector=collector)
    page.goto(f"{site.url}/a?utm_source=x")
    page.wait_for_function(IS_THERE)
    for step in ("replaceState(null, '', '/a')", "replaceState(null, '', '/a?tab=2')"):
        move(page, f"history.{step}")
    for step in ("pushState(null, '', '/a?q=1')", "replaceState(null, '', '/b')"):
        move(page, f"history.{step}")
    move(page, "history.pushState(null, '', '/last')")
    site.expect_events("page_view", "/a", "/a", "/b", "/last")


def test_a_navigation_that_the_page_intercepts_is_a_view(
    site: Site, page: Page, collector: str
) -> None:
    show(page, site, collector, "")
    page.evaluate("void (navigation.onnavigate = (moved) => moved.intercept({ handler() {} }))")
    move(page, "navigation.navigate('/b')")
    site.expect_events("page_view", "/", "/b")


def test_a_page_that_changed_builtins_is_reported_correctly(
    site: Site, page: Page, collector: str
) -> None:
    changed = """<script>
        Array.prototype.toJSON = String.prototype.toJSON = function () { return "wrong" };
        Object.prototype.toJSON = function () { return "wrong" };
        JSON.stringify = JSON.parse = () => "wrong";
        Array.from = Array.prototype.find = Array.prototype.map = () => ["wrong"];
    </script>"""
    with page.expect_request("**/events") as asked:
        show(page, site, collector, changed + KINDS["inline"].replace("'x'", "'\"ü\\🙂'"))
    assert asked.value.post_data
    site.expect_events("page_view", "/")
    site.expect_events("ad_impression", '"ü\\🙂')


@pytest.mark.parametrize(
    "variable",
    [
        "var navigation = {}",
        "const navigation = []",
        "var URL = 'https://api.site1.com/'",
        "function Map() { this.size = () => 0 }",
        "class Set { constructor(element) { element.id } }",
        "const crypto = ['BTC']",
    ],
)
def test_a_page_may_have_variables_named_like_browser_apis(
    site: Site, page: Page, collector: str, variable: str
) -> None:
    moves = "onclick = () => history.pushState(null, '', '/b')"
    site.html = BARE.format(body=f"<script>{variable}; {moves}</script>{AD}", collector=collector)
    page.goto(f"{site.url}/a")
    site.expect_events("page_view", "/a")
    site.expect_events("ad_impression", "x")
    page.mouse.click(50, 50)
    site.expect_events("ad_click", "x")
    site.expect_events("page_view", "/a", "/b")


def test_a_module_tag_is_not_confused_with_another_script_of_the_same_name(
    site: Site, context: BrowserContext, page: Page, collector: str
) -> None:
    context.route("https://other.example/**", lambda route: route.fulfill(headers=ANY_ORIGIN))
    other = "<script async src='https://other.example/metrika/tag.js'></script>"
    site.html = BARE.format(body="", collector=collector).replace("async", "type='module'") + other
    page.goto(site.url)
    site.expect_events("page_view", "/")


def test_a_module_tag_works_in_a_page_that_changed_array_methods(
    site: Site, page: Page, collector: str
) -> None:
    site.html = f"""<!doctype html><title>A page</title>
        <script>Array.prototype.find = Array.prototype.filter = () => ["wrong"];</script>
        <script type="module" src="{collector}/tag.js"></script>"""
    page.goto(site.url)
    site.expect_events("page_view", "/")


def test_the_good_events_of_a_refused_batch_are_reported(
    site: Site, still: Page, collector: str
) -> None:
    said: list[str] = []
    still.on("console", lambda message: said.append(message.text))

    def answer(route: Route) -> None:
        if len(json.loads(route.request.post_data or "")) > 1:
            route.fulfill(status=400, headers=ANY_ORIGIN)
        else:
            route.continue_()

    still.route("**/events", answer)
    show(still, site, collector, "")
    for path in ("/b", "/c"):
        move(still, f"history.pushState(null, '', '{path}')")

    deliver(still)
    site.expect_events("page_view", "/", "/b", "/c")
    assert [text for text in said if text.startswith("eventstream")] == ["eventstream: refused 400"]


@pytest.mark.parametrize(
    "attributes",
    ["async", "type='module'", "crossorigin", "crossorigin='use-credentials' type='module'"],
)
def test_the_tag_and_the_pixel_work_in_a_page_that_requires_corp(
    site: Site, page: Page, collector: str, attributes: str
) -> None:
    site.headers = {"Cross-Origin-Embedder-Policy": "require-corp"}
    pixel = f"<img id='pixel' src='{collector}/pixel.gif?type=PageView&url={site.name}/pixel'>"
    site.html = BARE.format(body=pixel, collector=collector).replace("async", attributes)
    page.goto(f"{site.url}/tag")
    site.expect_events("page_view", "/pixel", "/tag")
    assert page.locator("#pixel").evaluate("(image) => image.naturalWidth") == 1


def test_only_views_are_reported_without_consent_which_can_be_withdrawn(
    site: Site, page: Page, collector: str
) -> None:
    sent: list[str] = []
    page.on("request", lambda asked: sent.append(asked.post_data or ""))
    site.html = site.html.replace("async", 'async data-consent="wait"')
    page.goto(f"{site.url}/a")
    page.wait_for_function(IS_THERE)
    page.locator("[data-ad-id=below]").click()
    move(page, "history.pushState(null, '', '/b')")
    site.expect_events("page_view", "/a", "/b")
    assert "UserId" not in "".join(sent)
    assert page.evaluate("localStorage['eventstream user']") is None
    assert site.events(RENDERED) == []

    page.evaluate("scrollTo(0, 0); eventstream.consent(true)")
    site.expect_events("ad_impression", "top")
    site.expect_events(RENDERED, "below", "top")
    page.locator("[data-ad-id=below]").click()
    site.expect_events("ad_click", "below")
    assert page.evaluate("localStorage['eventstream user']")

    page.evaluate("eventstream.consent(false)")
    assert page.evaluate("localStorage['eventstream user']") is None
    sent.clear()
    page.locator("[data-ad-id=below]").click()
    move(page, "history.pushState(null, '', '/c')")
    site.expect_events("page_view", "/a", "/b", "/c")
    assert "UserId" not in "".join(sent)


def test_consent_given_before_the_tag_has_loaded_counts(
    site: Site, page: Page, collector: str
) -> None:
    (snippet,) = re.findall(r"(?s)  const agree = .*?;\n", Path("docs/tag.md").read_text())
    # Until it has run, the script element itself is window.eventstream, by its id.
    attributes = 'async data-consent="wait" id="eventstream"'
    site.html = BARE.format(body=AD, collector=collector).replace("async", attributes)
    site.html += f"<script>{snippet} agree(true)</script>"
    page.goto(site.url)
    site.expect_events("ad_impression", "x")


@pytest.mark.parametrize("asked", ["query", "attribute", "query with id", "query under a policy"])
def test_debug_mode_shows_what_the_tag_does(
    site: Site, page: Page, collector: str, asked: str
) -> None:
    ads = {
        "seen": "display: block; background: red",
        "below": "position: absolute; top: 3000px; background: red",
        "empty": "display: none",
        "under": "position: absolute; top: 200px; background: red",
    }
    body = "".join(f"<b data-ad-id='{ad}' style='{style}'>ad</b>" for ad, style in ads.items())
    over = "<p style='position: absolute; top: 150px; height: 99px; width: 99px; background: red'>"
    site.html = BARE.format(body=body + over, collector=collector)
    if asked == "attribute":
        site.html = site.html.replace("async", "async data-debug")
    elif asked == "query with id":
        site.html = site.html.replace("async", "async id='eventstream'")
    elif asked == "query under a policy":
        policy = "style-src 'unsafe-inline'; require-trusted-types-for 'script'"
        site.headers = {"Content-Security-Policy": policy}
    page.goto(site.url + ("/" if asked == "attribute" else "/?eventstream-debug"))
    shown = page.locator("aside")
    for line in (
        "seen: counted in this page view",
        "below: 0 % of its pixels are in view, it takes 50 %",
        "empty: nothing of it is drawn",
        "under: something covers it",
        "AdImpression seen",
        "AdImpression below rendered",
        "← 202",
    ):
        expect(shown).to_contain_text(line)
    site.expect_events("page_view", "/")
    site.expect_events("ad_impression", "seen")
