"""The page of all requests in a headless Chromium. Saves pictures to SCREENSHOTS."""

import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from tests.support.collector import Stack, start_stack
from tests.web.views.test_dashboard_in_browser import (
    CHROMIUM,
    LAUNCH,
    SCREENSHOTS,
    SIZES,
    TOKEN,
)

WRITE_KEY = "a-write-key"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
ZOOMED = (190, 400, "light")
"""A phone of 380 pixels at 200 %."""
BROKEN_WORDS = r"""
  () => {
    const broken = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const text = texts.currentNode;
      if (!text.parentElement.checkVisibility() || text.parentElement.closest("pre, .unseen")) {
        continue;
      }
      for (const { 0: word, index } of text.data.matchAll(/[\p{L}\p{N}]+/gu)) {
        const range = document.createRange();
        range.setStart(text, index);
        range.setEnd(text, index + word.length);
        if (new Set([...range.getClientRects()].map(({ top }) => top)).size > 1) broken.push(word);
      }
    }
    return broken;
  }
"""
OVERFLOWING = """
  () => [...document.querySelectorAll("body *")]
    .filter((one) => one.checkVisibility() && !one.closest("pre, textarea, .unseen, .headers"))
    .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
    .map((one) => one.outerHTML.slice(0, 120))
"""

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(
        CHROMIUM is None, reason="chromium is not installed, so nothing is tested in a browser"
    ),
]


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    secrets = {"ADMIN_TOKEN": TOKEN, "WRITE_KEYS": WRITE_KEY, "FILTER_ROBOTS": "0"}
    with start_stack(tmp_path_factory.mktemp("docs"), **secrets) as stack:
        assert stack.process.poll() is None, stack.output.read_text()
        yield stack


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=LAUNCH)
        yield browser
        browser.close()


@pytest.fixture
def page(collector: Stack, browser: Browser) -> Iterator[Page]:
    """The page; any script error or violation of its policy fails the test."""
    errors: list[str] = []
    with browser.new_context(
        base_url=collector.url, viewport={"width": 1280, "height": 900}, reduced_motion="reduce"
    ) as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda told: errors.append(told.text) if _is_policy(told.text) else None)
        page.goto("/docs")
        yield page
    assert errors == []


def _is_policy(told: str) -> bool:
    return "Content Security Policy" in told


def open_form(page: Page, operation: str) -> Locator:
    box = page.locator(f"[id='{operation}'] .try")
    box.locator("summary").click()
    return box


def send(box: Locator) -> Locator:
    """Send, and where its answer is told."""
    box.get_by_role("button", name="Send").click()
    return box.locator(".said")


def size(page: Page, width: int, height: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")


# Contents.


def test_the_contents_mark_the_section_that_is_read(page: Page) -> None:
    contents = page.get_by_role("navigation", name="Contents")
    contents.get_by_role("link", name="GET /reports/frequency").click()
    expect(page).to_have_url(re.compile("#frequency$"))
    expect(page.locator("#frequency h3")).to_be_in_viewport()
    current = contents.locator("[aria-current=location]")
    expect(current).to_have_count(1)
    expect(current).to_have_attribute("href", "#frequency")
    page.locator("#delete_ad h3").evaluate("heading => heading.scrollIntoView()")
    expect(current).to_have_attribute("href", "#delete_ad")
    expect(current).to_be_in_viewport()
    contents.get_by_role("link", name="DeadLetter").click()
    expect(current).to_have_attribute("href", "#DeadLetter")


def test_the_contents_are_folded_on_a_phone_and_stay_at_hand(page: Page) -> None:
    size(page, 380, 800, "light")
    page.reload()
    contents = page.get_by_role("navigation", name="Contents")
    link = contents.get_by_role("link", name="GET /live/snapshot")
    expect(link).to_be_hidden()
    page.locator("#show_traffic").evaluate("section => section.scrollIntoView()")
    contents.get_by_text("Contents").click()
    link.click()
    expect(link).to_be_hidden()
    expect(page.locator("#snapshot h3")).to_be_in_viewport()
    contents.get_by_text("Contents").press("Enter")
    expect(link).to_be_visible()
    page.keyboard.press("Escape")
    expect(link).to_be_hidden()


def test_the_page_lists_every_operation_without_javascript(
    collector: Stack, browser: Browser
) -> None:
    with browser.new_context(base_url=collector.url, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto("/docs")
        expect(page.get_by_role("article")).to_have_count(len(operations(collector)) + 5)
        expect(page.get_by_role("link", name="GET /reports/ads").first).to_be_visible()
        expect(page.get_by_text("Try it").filter(visible=True)).to_have_count(0)
        expect(page.get_by_role("search")).to_have_count(0)


def operations(collector: Stack) -> list[tuple[str, str]]:
    described = httpx.get(f"{collector.url}/openapi.json").json()["paths"]
    return [(method, path) for path, methods in described.items() for method in methods]


# Search.


def test_the_search_filters_as_one_types(page: Page) -> None:
    page.keyboard.press("/")
    search = page.get_by_role("searchbox", name="Search operations and parameters")
    expect(search).to_be_focused()
    shown = page.get_by_role("article")
    every = shown.count()
    page.keyboard.type("dead-letters REPLAY")
    expect(shown).to_have_count(2)
    expect(page.get_by_role("status").filter(has_text="2 are found.")).to_be_visible()
    contents = page.get_by_role("navigation", name="Contents")
    expect(contents.get_by_role("link")).to_have_count(3)  # with their heading
    expect(page.get_by_role("heading", level=2)).to_have_text(["Operations"])
    page.keyboard.press("Enter")
    expect(page.locator("[id=replay_dead_letter] h3 a")).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.type("letter_id")
    expect(page.locator(".found").first).to_contain_text("letter_id")
    page.keyboard.press("Escape")
    expect(shown).to_have_count(every)
    expect(page.locator(".found")).to_have_count(0)


def test_the_search_says_when_nothing_is_found(page: Page) -> None:
    search = page.get_by_role("searchbox")
    search.fill("<img src=x onerror=alert(1)>")
    told = page.get_by_role("status").filter(has_text="Nothing is called “<img src=x")
    expect(told).to_be_visible()
    expect(page.get_by_role("article")).to_have_count(0)
    expect(page.get_by_role("heading", level=2)).to_have_count(0)
    search.fill("")
    expect(page.get_by_role("article").first).to_be_visible()


def test_a_slash_in_a_field_is_a_slash(page: Page) -> None:
    field = open_form(page, "page_views").get_by_label("website")
    field.press_sequentially("a/b")
    expect(field).to_have_value("a/b")


def test_a_link_to_what_the_search_hides_shows_it(page: Page) -> None:
    page.get_by_role("searchbox").fill("daily")
    page.get_by_role("link", name="Error").first.click()
    expect(page.locator("#Error")).to_be_in_viewport()


# Trying.


def test_an_event_is_sent_with_the_write_key_that_is_typed(collector: Stack, page: Page) -> None:
    site = f"{uuid.uuid4()}.com"
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    box = open_form(page, "post_events")
    body = box.get_by_label("Body", exact=True)
    body.fill(json.dumps({"Type": "PageView", "Url": f"{site}/"}, indent=1))
    expect(send(box)).to_have_text("401 UNAUTHORIZED.")
    page.get_by_label("Write key").fill(WRITE_KEY)
    expect(send(box)).to_have_text("202 ACCEPTED.")
    expect(box.locator(".body")).to_contain_text('"accepted": 1')
    expect(box.locator(".headers")).to_contain_text("Content-Typeapplication/json")
    box.get_by_label("Content-Type").select_option("application/x-ndjson")
    expect(body).to_have_value(
        json.dumps({"Type": "PageView", "Url": f"{site}/"}, separators=(",", ":"))
    )
    expect(send(box)).to_have_text("202 ACCEPTED.")
    box.get_by_role("button", name="Restore the example").click()
    expect(body).to_have_value(re.compile("site1.com"))
    assert sent.count(f"{collector.url}/events") == 3
    assert not any(WRITE_KEY in url for url in sent)
    assert WRITE_KEY not in page.content()
    assert page.evaluate("[{ ...localStorage }, { ...sessionStorage }, document.cookie]") == [
        {},
        {},
        "",
    ]
    page.goto("/health")
    page.go_back()
    expect(page.get_by_label("Write key")).to_have_value("")


def test_a_form_that_is_opened_before_the_modules_run_works(page: Page) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/docs/try.js", hold)
    with page.expect_request("**/docs/try.js"):
        page.reload(wait_until="commit")
    box = open_form(page, "health")
    held[0].continue_()
    expect(box.locator(".curl")).to_contain_text("/health")


def test_a_report_is_read_with_the_token_that_is_typed(page: Page) -> None:
    box = open_form(page, "page_views")
    box.get_by_label("website").fill("example.com")
    box.get_by_label("from").fill("2026-11-01")
    box.get_by_label("format").select_option("csv")
    expect(send(box)).to_have_text("401 UNAUTHORIZED.")
    expect(box.locator(".headers")).to_contain_text("WWW-AuthenticateBearer")
    page.get_by_label("Token").fill(TOKEN)
    expect(send(box)).to_have_text("200 OK.")
    expect(box.locator(".body")).to_have_text("website,page,views")


def test_a_report_is_read_with_a_session(collector: Stack, page: Page) -> None:
    page.request.post("/", form={"token": TOKEN})
    box = open_form(page, "clicks")
    box.get_by_label("limit").fill("0")
    expect(send(box)).to_have_text("400 BAD REQUEST.")
    expect(box.locator(".body")).to_contain_text('"limit"')
    box.get_by_label("limit").fill("3")
    expect(send(box)).to_have_text("200 OK.")


def test_the_curl_command_does_the_same(collector: Stack, page: Page) -> None:
    ad = uuid.uuid4().hex
    box = open_form(page, "put_ad")
    box.get_by_label("ad_id").fill(f"{ad} '$(x)")
    name = 'it\'s $HOME `x` \\ "quoted"'
    box.get_by_label("Body", exact=True).fill(json.dumps({"name": name}))
    command = box.locator(".curl").inner_text()
    assert TOKEN not in command
    done = subprocess.run(
        ["sh", "-c", command],
        env={"TOKEN": TOKEN, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "200 OK" in done.stdout
    found = httpx.get(f"{collector.url}/ads/{ad} '$(x)", headers=OPERATOR).json()
    assert found["name"] == name
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    box.get_by_role("button", name="Copy").click()
    expect(box.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == command


def test_without_a_clipboard_the_command_is_selected(page: Page) -> None:
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.reload()
    box = open_form(page, "health")
    box.get_by_role("button", name="Copy").click()
    expect(box.get_by_text("Selected: copy it with your keyboard.")).to_be_visible()
    assert page.evaluate("getSelection().toString()").startswith("curl --include")


def test_what_nothing_can_undo_is_asked_first(collector: Stack, page: Page) -> None:
    httpx.put(f"{collector.url}/ads/77", json={"name": "a"}, headers=OPERATOR)
    page.get_by_label("Token").fill(TOKEN)
    box = open_form(page, "delete_ad")
    box.get_by_label("ad_id").fill("77")
    box.get_by_role("button", name="Send").click()
    dialog = page.get_by_role("dialog", name="Send DELETE /ads/77? It can\u2019t be undone.")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    box.get_by_role("button", name="Send").click()
    dialog.get_by_role("button", name="Cancel").click()
    assert httpx.get(f"{collector.url}/ads/77", headers=OPERATOR).status_code == 200
    box.get_by_role("button", name="Send").click()
    dialog.get_by_role("button", name="Send").click()
    expect(box.locator(".said")).to_have_text("204 NO CONTENT. The body is empty.")
    assert httpx.get(f"{collector.url}/ads/77", headers=OPERATOR).status_code == 404


def test_a_value_that_would_lead_elsewhere_is_not_sent(page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    box = open_form(page, "show_ad")
    box.get_by_label("ad_id").fill("..")
    expect(send(box)).to_have_text("A path can't contain such a value.")
    assert not [url for url in sent if "/static/" not in url]


def test_a_stream_shows_its_events_and_can_be_stopped(collector: Stack, page: Page) -> None:
    page.get_by_label("Token").fill(TOKEN)
    box = open_form(page, "stream")
    expect(send(box)).to_have_text("200 OK. Events are shown as they come.")
    post = {"Type": "PageView", "Url": f"{uuid.uuid4()}.com/"}
    key = {"X-Write-Key": WRITE_KEY}
    assert httpx.post(f"{collector.url}/events", json=post, headers=key).status_code == 202
    expect(box.locator(".body")).to_contain_text("event: counts", timeout=20_000)
    box.get_by_role("button", name="Stop").click()
    expect(box.locator(".said")).to_have_text("200 OK. Stopped.")
    expect(box.get_by_role("button", name="Send")).to_be_focused()
    expect(box.get_by_role("button", name="Stop")).to_be_hidden()
    expect(box.locator(".body")).to_contain_text("event: counts")


def test_a_socket_is_opened(page: Page) -> None:
    box = open_form(page, "connect")
    expect(send(box)).to_have_text("101 Switching Protocols. Events are shown as they come.")
    expect(box.locator(".body")).to_contain_text('0{"sid":')
    box.locator("summary").click()  # nobody watches it
    expect(box.locator(".said")).to_have_text("101 Switching Protocols. Stopped.")


def test_a_redirect_and_an_image_are_told_in_words(page: Page) -> None:
    box = open_form(page, "pixel")
    expect(box.get_by_label("key")).to_have_count(0)  # it would be in the address
    page.get_by_label("Write key").fill(WRITE_KEY)
    box.get_by_label("type").fill("PageView")
    expect(send(box)).to_have_text("200 OK. The body is an image of 42 bytes.")

    def redirect(route: Route) -> None:
        route.fulfill(status=302, headers={"Location": "/health"})

    page.route("**/health", redirect)
    expect(send(open_form(page, "health"))).to_have_text(
        "A redirect. The browser does not say where to."
    )


def test_a_long_answer_is_cut_and_is_only_ever_text(page: Page) -> None:
    text = "<b id=injected>é</b>" * 10_000
    page.route("**/metrics", lambda route: route.fulfill(body=text, content_type="text/html"))
    box = open_form(page, "show_metrics")
    expect(send(box)).to_have_text("200 OK. Only the first 64 KiB are shown.")
    shown = box.locator(".body").text_content() or ""
    assert text.startswith(shown.rstrip("\ufffd"))
    assert 65_530 < len(shown.encode()) <= 65_540
    expect(page.locator("#injected")).to_have_count(0)


def test_large_numbers_are_shown_as_they_came(page: Page) -> None:
    text = '{"a":[9007199254740993,1.0,{}],"b":"x: [1, 2]"}'
    page.route("**/ready", lambda route: route.fulfill(body=text, content_type="application/json"))
    box = open_form(page, "ready")
    expect(send(box)).to_have_text("200 OK.")
    shown = box.locator(".body").text_content()
    assert (
        shown == '{\n  "a": [\n    9007199254740993,\n    1.0,\n    {}\n  ],\n  "b": "x: [1, 2]"\n}'
    )


def test_a_failed_request_is_told(page: Page) -> None:
    page.route("**/health", lambda route: route.abort())
    expect(send(open_form(page, "health"))).to_contain_text("The request failed: ")


# Looks.


@pytest.mark.parametrize("name", [*SIZES, "phone-zoomed"])
def test_nothing_overflows_and_no_word_is_broken(page: Page, name: str) -> None:
    size(page, *(SIZES | {"phone-zoomed": ZOOMED})[name])
    page.reload()
    _open_everything(page)
    width = page.viewport_size["width"] if page.viewport_size else 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(BROKEN_WORDS) == []


@pytest.mark.parametrize("name", SIZES)
def test_axe_finds_nothing(page: Page, name: str) -> None:
    size(page, *SIZES[name])
    page.reload()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"docs-{name}.png")
    _open_everything(page)
    found = Axe().run(page).response["violations"]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found] == []
    levels = page.locator("h1, h2, h3, h4, h5").evaluate_all(
        "all => all.map((one) => +one.localName[1])"
    )
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def _open_everything(page: Page) -> None:
    """Unfold everything, send what may be sent, and search for what is almost everywhere."""
    page.evaluate("for (const one of document.querySelectorAll('main details')) one.open = true")
    page.get_by_label("Token").fill(TOKEN)
    box = page.locator("#clicks .try")
    expect(box.locator(".curl")).not_to_be_empty()
    expect(send(box)).to_have_text("200 OK.")
    page.get_by_role("searchbox").fill("e")
    expect(page.get_by_role("status").filter(has_text="are found.")).to_be_visible()
    page.evaluate("document.querySelector('nav details').open = true")


def test_print_shows_the_operations_alone(page: Page) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    for hidden in (
        page.get_by_role("navigation"),
        page.get_by_role("search"),
        page.locator(".keys"),
    ):
        expect(hidden).to_be_hidden()
    expect(page.locator(".try").first).to_be_hidden()
    expect(page.locator("#page_views .fields").first).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_nothing_moves_for_those_who_asked_for_it(page: Page) -> None:
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert page.evaluate(behaviour) == "auto"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(behaviour) == "smooth"
