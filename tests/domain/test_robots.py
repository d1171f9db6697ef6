import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA

from app.domain.robots import HTTP_LIBRARY, MAX_AGENT_LENGTH, is_robot

CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/142.0.0.0 Safari/537.36"
)


@pytest.mark.parametrize(
    "agent",
    [
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
        "facebookexternalhit/1.1",
        "UptimeRobot/2.0",
        CHROME.replace("Chrome/", "HeadlessChrome/"),
    ],
)
def test_known_robots_are_recognized(agent: str) -> None:
    assert is_robot(agent)


@pytest.mark.parametrize(
    "agent",
    [
        "",
        "curl/8.14.1",
        "python-httpx/0.28.1",
        "python-requests/2.32",
        "Go-http-client/2.0",
        "okhttp/4.12.0",
        "axios/1.7",
        "Apache-HttpClient/4.5 (Java/17)",
        "node-fetch",
        CHROME,
        "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_3_2 like Mac OS X) AppleWebKit/605.1.15 "
        "(KHTML, like Gecko) Version/18.3.1 Mobile/15E148 Safari/604.1",
    ],
)
def test_browsers_libraries_and_empty_user_agents_are_not_robots(agent: str) -> None:
    assert not is_robot(agent)


IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_3_2 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Mobile/15E148"
)


@pytest.mark.parametrize(
    "agent",
    [
        f"{IPHONE} Viber/21.1",
        f"{CHROME} Viber/21.0.0.3",
        f"{IPHONE} Tumblr/iPhone/21.7/217010/14.8/tumblr",
        f"{IPHONE} Feedly/95",
        f"{IPHONE} Mastodon/2024.3",
        f"{CHROME} WhatsApp/2.24.1",
        CHROME.replace("Safari", "Slack/4.35 Electron/27.0 Safari") + " Sonic Slack_SSB/4.35",
        f"{CHROME} MetaIAB Facebook",
        CHROME.replace("Win64", "Build/AP3A.240617.008") + " Instagram 406.0.0.58 Android",
    ],
)
def test_people_who_read_a_page_in_an_app_are_not_robots(agent: str) -> None:
    assert not is_robot(agent)


@pytest.mark.parametrize(
    "agent",
    [
        "Viber/21.0",
        "Tumblr/14.0.835.186",
        "Feedly/1.0 (+http://www.feedly.com/fetcher.html)",
        "Mastodon/4.2 (http.rb/5.1; +https://site1.com/)",
        "WhatsApp/2.24.1",
        f"{CHROME} (compatible; RankSonicSiteAuditor/2.1)",
        "WordPress/6.4; https://site1.com",
    ],
)
def test_programs_that_fetch_pages_for_an_app_are_robots(agent: str) -> None:
    assert is_robot(agent)


def test_nearly_all_examples_in_the_list_are_robots() -> None:
    missed = {
        robot["pattern"]
        for robot in CRAWLER_USER_AGENTS_DATA
        if HTTP_LIBRARY not in robot["tags"]
        for agent in robot["instances"]
        if not is_robot(agent)
    }
    # Two of these agents belong to people; see `app.domain.robots`.
    assert len(missed) <= 5


def test_the_list_tells_libraries_from_robots() -> None:
    tagged = [robot for robot in CRAWLER_USER_AGENTS_DATA if HTTP_LIBRARY in robot["tags"]]
    assert 0 < len(tagged) < len(CRAWLER_USER_AGENTS_DATA) / 10


def test_only_the_beginning_of_a_user_agent_matters() -> None:
    assert is_robot("x" * (MAX_AGENT_LENGTH - 10) + "Googlebot/")
    assert not is_robot("x" * MAX_AGENT_LENGTH + "Googlebot/")
