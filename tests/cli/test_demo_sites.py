"""The demo sites in a headless Chromium, with a whole collector and its dashboard."""

import configparser
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from app.cli.demo_sites import NAMES, SITES
from tests.support.collector import BIN, Stack, start_stack
from tests.support.waiting import running, wait_until
from tests.web.views.test_dashboard_in_browser import (
    CHROMIUM,
    LAUNCH,
    is_live,
    no_violations_in,
    shoot,
)

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.proof


class Demo(NamedTuple):
    collector: Stack
    sites: list[str]


def first_of_two_free_ports() -> int:
    # Below the ports that the system hands out, where the next one is seldom free.
    for port in range(10_000 + os.getpid() % 20_000, 32_000, 2):
        with suppress(OSError), ExitStack() as held:
            for each in (port, port + 1):
                held.enter_context(socket.create_server(("127.0.0.1", each)))
            return port
    raise AssertionError("no two ports are free")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    home = tmp_path_factory.mktemp("demo")
    settings = {"CLICK_SECRET": "a secret", "WRITE_KEYS": "demo-key", "FILTER_ROBOTS": "false"}
    with start_stack(home, **settings) as stack:
        port = first_of_two_free_ports()
        log = home / "demo.log"
        command = (str(BIN / "eventstream"), "demo", "--port", str(port))
        with running(*command, log=log, **stack.environment, PYTHONUNBUFFERED="1"):
            wait_until(lambda: "Ctrl-C" in log.read_text(), 20)
            sites = [line.split()[-1] for line in log.read_text().splitlines()[: len(NAMES)]]
            yield Demo(stack, sites)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed, so nothing is tested in a browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=LAUNCH)
        yield browser
        browser.close()


def website(url: str) -> str:
    return url.removeprefix("http://").rstrip("/")


def dashboard_of(page: Page, demo: Demo, site: str) -> Page:
    """The dashboard of a site, in another tab."""
    tab = page.context.new_page()
    tab.goto(f"{demo.collector.url}/?website={website(site)}")
    is_live(tab)
    return tab


def test_views_impressions_and_clicks_of_the_demo_arrive_on_the_dashboard(
    demo: Demo, browser: Browser
) -> None:
    gazette, garden = demo.sites
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        tab = dashboard_of(page, demo, gazette)
        page.goto(gazette)
        expect(tab.locator("#views")).to_have_text("1", timeout=10_000)
        expect(tab.locator("#impressions")).to_have_text("1", timeout=10_000)
        page.bring_to_front()
        page.locator("[data-ad-id=night-ferry]").scroll_into_view_if_needed()
        expect(tab.locator("#impressions")).to_have_text("2", timeout=10_000)
        page.bring_to_front()
        page.locator("[data-ad-id=night-ferry]").click()
        page.wait_for_url("**/tide.html")
        expect(tab.locator("#views")).to_have_text("2", timeout=10_000)
        ad = tab.locator("#ads tr", has_text="night-ferry")
        expect(ad.locator("[data-column=hits]")).to_have_text("1", timeout=10_000)
        expect(tab.locator("#reach")).to_have_text("1")
        shoot(tab, "demo-dashboard")
        page.goto(gazette)
        shoot(page, "demo-gazette")
        no_violations_in(page)
        page.goto(garden)
        shoot(page, "demo-garden")
        no_violations_in(page)


@pytest.mark.parametrize(
    ("path", "ad"),
    [("tide.html", "dry-boots"), ("ferns.html", "rain-barrel"), ("soil.html", "clay-pots")],
)
def test_ads_in_a_shadow_root_around_a_picture_or_floated_can_be_seen_and_clicked(
    demo: Demo, browser: Browser, path: str, ad: str
) -> None:
    def reports(*parts: str) -> Callable[[Request], bool]:
        return lambda asked: all(part in (asked.post_data or "") for part in parts)

    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.goto(demo.sites[path != "tide.html"] + path)
        drawn = page.get_by_text(re.compile("Dry Boots|Quiet Rain|Clay Pots")).last
        with page.expect_request(reports(f'"AdId":"{ad}","Viewable":true')):
            drawn.scroll_into_view_if_needed()
        with page.expect_request(reports('"Type":"AdClick"', f'"AdId":"{ad}"')):
            drawn.click()


def test_the_ad_report_shows_rendered_ads_beside_those_that_were_seen(
    demo: Demo, browser: Browser
) -> None:
    def figures() -> dict[Any, Any]:
        demo.collector.run("eventstream", "drain")
        rows = demo.collector.items(f"ads?website={website(demo.sites[0])}")
        return {row["ad_id"]: row for row in rows}

    def added() -> dict[str, tuple[int, int]]:
        found = {}
        for ad, row in figures().items():
            rendered, impressions = (
                row[column] - (before[ad][column] if ad in before else 0)
                for column in ("rendered", "impressions")
            )
            if rendered or impressions:
                found[ad] = rendered, impressions
        return found

    before = figures()
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.goto(demo.sites[0])
        wait_until(lambda: added() == {"harbour-coffee": (1, 1), "night-ferry": (1, 0)})
        page.locator("[data-ad-id=night-ferry]").scroll_into_view_if_needed()
        wait_until(lambda: added() == {"harbour-coffee": (1, 1), "night-ferry": (1, 1)})
    ferry = figures()["night-ferry"]
    assert ferry["viewable_rate"] == round(ferry["impressions"] / ferry["rendered"], 4)


def test_a_link_in_the_demo_counts_a_click_and_leads_to_its_target(
    demo: Demo, browser: Browser
) -> None:
    gazette, garden = demo.sites
    with browser.new_context() as context:
        page = context.new_page()
        tab = dashboard_of(page, demo, garden)
        page.goto(garden)
        page.get_by_role("link", name="our sponsor").click()
        page.wait_for_url(gazette)
        expect(tab.locator("#ads")).to_contain_text("sponsor", timeout=10_000)


def test_a_page_reports_its_view_even_without_javascript(demo: Demo, browser: Browser) -> None:
    def views() -> int:
        rows = demo.collector.items(f"page-views?website={website(demo.sites[1])}")
        return sum(int(str(row["views"])) for row in rows if row["page"] == "/soil.html")

    demo.collector.run("eventstream", "drain")
    before = views()
    with browser.new_context(java_script_enabled=False) as context:
        context.new_page().goto(f"{demo.sites[1]}soil.html")
        wait_until(lambda: views() > before)


@pytest.mark.parametrize("file", sorted(SITES.glob("*/*.html")), ids=lambda file: file.name)
def test_every_page_has_the_tag_and_no_broken_links(file: Path) -> None:
    html = file.read_text()
    assert '<script src="$collector/tag.js" async data-key="$key"></script>' in html
    assert "data-ad-id=" in html
    links = [part.split('"')[0] for part in html.split('href="')[1:]]
    assert [to for to in links if to != "$sponsor" and not (file.parent / to).exists()] == []


def test_the_sites_are_installed_and_are_the_same_as_in_the_docs() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["app.cli"].split()
    installed = {file for pattern in patterns for file in SITES.parent.glob(pattern)}
    assert {file for file in SITES.rglob("*") if file.is_file()} == installed
    assert (ROOT / "docs" / "demo").resolve() == SITES


def test_the_demo_stops_at_ctrl_c_and_names_a_port_that_is_taken(demo: Demo) -> None:
    taken = demo.sites[1].rsplit(":", 1)[1].rstrip("/")
    done = demo.collector.run("eventstream", "demo", "--port", taken, check=False)
    assert done.returncode == 1
    assert f"Port {taken} on 127.0.0.1 can't be used" in done.stderr
    port = first_of_two_free_ports()
    with subprocess.Popen(
        [BIN / "eventstream", "demo", "--port", str(port)],
        env=demo.collector.environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        while "Ctrl-C" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
