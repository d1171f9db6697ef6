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
def test_a_known_robot_is_one(agent: str) -> None:
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
def test_browsers_libraries_and_who_does_not_say_are_none(agent: str) -> None:
    assert not is_robot(agent)


def test_the_list_tells_libraries_from_robots() -> None:
    tagged = [robot for robot in CRAWLER_USER_AGENTS_DATA if HTTP_LIBRARY in robot["tags"]]
    assert 0 < len(tagged) < len(CRAWLER_USER_AGENTS_DATA) / 10


def test_only_the_first_letters_matter() -> None:
    assert is_robot("x" * (MAX_AGENT_LENGTH - 10) + "Googlebot/")
    assert not is_robot("x" * MAX_AGENT_LENGTH + "Googlebot/")
