import pytest

from app.domain.loopback import is_local


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1", "localhost:8000"),
        ("127.8.9.1", "127.0.0.1"),
        ("::1", "[::1]:8000"),
        ("::ffff:127.0.0.1", "localhost"),
    ],
)
def test_a_request_from_this_machine_to_one_of_its_names_is_local(address: str, host: str) -> None:
    assert is_local(address, host, ["Host", "User-Agent", "Accept-Encoding", "Cookie"])


@pytest.mark.parametrize("address", [None, "", "192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1"])
def test_a_request_from_elsewhere_is_not_local(address: str | None) -> None:
    assert not is_local(address, "localhost", [])


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "", "["]
)
def test_a_request_to_another_name_is_not_local(host: str) -> None:
    assert not is_local("127.0.0.1", host, [])


@pytest.mark.parametrize(
    "header",
    [
        *("Forwarded", "Via", "CDN-Loop", "X-Original-Host", "X-Envoy-External-Address"),
        *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Original-Forwarded-For"),
        *("X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP"),
        *("Fastly-Client-IP", "X-Azure-ClientIP", "x-forwarded-for"),
    ],
)
def test_a_request_forwarded_by_a_proxy_is_not_local(header: str) -> None:
    assert not is_local("127.0.0.1", "localhost", ["Host", header])
