import pytest

from app.domain.addresses import client_network


@pytest.mark.parametrize(
    "address",
    [
        "192.0.2.7",
        "192.0.2.7:51234",
        " 192.0.2.7 ",
        "::ffff:192.0.2.7",
        "::ffff:c000:207",
        "[::ffff:192.0.2.7]:443",
    ],
)
def test_an_ipv4_address_is_one_client_however_it_is_written(address: str) -> None:
    assert client_network(address) == "192.0.2.7"


@pytest.mark.parametrize(
    "address",
    [
        "2001:db8::1",
        "2001:DB8:0:0:ffff:ffff:ffff:ffff",
        "[2001:db8::2]",
        "[2001:db8::2]:443",
        "2001:db8::2%eth0",
        "[2001:db8::2%25eth0]:443",
    ],
)
def test_an_ipv6_network_of_64_bits_is_one_client(address: str) -> None:
    assert client_network(address) == "2001:db8::/64"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.7", "192.0.2.8"),
        ("2001:db8:0:1::1", "2001:db8:0:2::1"),
        ("::1", "::ffff:127.0.0.1"),
    ],
)
def test_neighbouring_addresses_or_networks_are_different_clients(one: str, other: str) -> None:
    assert client_network(one) != client_network(other)


@pytest.mark.parametrize("text", ["", "unknown", "_hidden", "1.2.3", "1.2.3.4:5:6", "[", "é" * 64])
def test_text_that_is_not_an_address_stays_unchanged(text: str) -> None:
    assert client_network(text) == text


def test_overlong_text_that_is_not_an_address_is_truncated() -> None:
    assert client_network("x" * 100_000) == "x" * 64
