"""Attacks with request bodies: small ones that grow when unpacked or read, and large ones."""

import gzip
import itertools
import json

import httpx

from tests.attacks.hostile import Event, Target, at_once, attack, packed, post

UNPACKED = 16 * 1024 * 1024
BODY = 2 * 1024 * 1024
MEDIA = ("application/json", "application/x-ndjson")


@attack("16 MiB of 1s, newlines, brackets, braces, quotes; 4 at once")
def gzip_bombs(target: Target) -> None:
    """About 16 kB each as sent."""
    texts = [b"[" + b"1," * (UNPACKED // 2 - 1) + b"1]", b"\n" * UNPACKED, b"[" * UNPACKED]
    texts += [b"[" + b"{}," * (UNPACKED // 3 - 1) + b"{}]", b'{"a":' * (UNPACKED // 5)]
    texts += [b"[" + b'"",' * (UNPACKED // 3 - 1) + b'""]', b"1\n" * (UNPACKED // 2)]
    bombs = itertools.cycle(itertools.product(map(gzip.compress, texts), MEDIA))
    at_once(target, 4, lambda client: post(client, *next(bombs)))


@attack("16 MiB of valid events, 40 at once")
def full_bodies(target: Target) -> None:
    """About 40 kB each as sent."""
    view = b'{"Type":"PageView","Url":"full.test","x":"' + b"1" * 3_200 + b'"}\n'
    body = gzip.compress(view * 4_900)
    at_once(target, 40, lambda client: post(client, body, "application/x-ndjson"))


@attack("2 MiB of punycode, escapes, wrong times; 4 at once")
def dear_bodies(target: Target) -> None:
    """The bodies that cost the most to read for their size."""
    hosts = [".".join(["㍿"] * 100), ".".join(["xn--6oqv20b1zgzxr"] * 12), "a." * 1_000]
    pages = ["%2e%41" * 300, "../" * 600, "😀" * 500, "%zz" * 600]
    urls = [*hosts, *(f"a.test/{page}" for page in pages)]
    bodies = []
    for url in urls:
        view = {"Type": "PageView", "Url": url}
        number = min(5_000, BODY // (len(url.encode()) + 40))
        bodies.append(packed([view] * number))
    for wrong in ({"Timestamp": "2026-99-99T00:00:00Z"}, {"EventId": 1.5}, {"Url": "http://["}):
        bodies.append(packed([{"Type": "PageView", "Url": "a.test"} | wrong] * 5_000))
    turn = itertools.cycle(bodies)
    at_once(target, 4, lambda client: post(client, next(turn)))


@attack("valid bodies of 2 MiB as sent and 11 MiB unpacked, 4 at once")
def large_writes(target: Target) -> None:
    """Each causes one large write to the journal, while small ones wait."""
    rng = target.random

    def views(number: int, length: int) -> list[Event]:
        page = f"{rng.getrandbits(4 * length):0{length}x}"
        return [
            {"Type": "PageView", "Url": f"large.test/{page}{n}", "EventId": f"{page[:99]}-{n}"}
            for n in range(number)
        ]

    plain, unpacked = views(4_500, 250), packed(views(5_000, 2_000))
    plainly = itertools.cycle([True, False])

    def act(client: httpx.Client) -> None:
        if next(plainly):
            client.post("/events", json=plain)
        else:
            post(client, unpacked)

    at_once(target, 4, act)


def rejected() -> bytes:
    """450 kB of rejected events in 14 kB of gzip."""
    events = [{"Type": "View", "Url": "small.test", "UserId": f"{n:044}"} for n in range(4_500)]
    return packed(events)


@attack("450 kB of rejected events in 14 kB of gzip, 40 at once")
def small_gzips_of_one_address(target: Target) -> None:
    """They look small until they are unpacked."""
    body = rejected()
    at_once(target, 40, lambda client: post(client, body), "203.0.113.1")


@attack("the same, 60 at once")
def small_gzips_of_many_addresses(target: Target) -> None:
    """Together they would take up all threads."""
    body = rejected()
    at_once(target, 60, lambda client: post(client, body))


@attack("5,000 empty events in 15 kB, 40 at once")
def empty_events_of_one_address(target: Target) -> None:
    """They are small, but each is read, rejected and kept."""
    body = b"[" + b",".join([b"{}"] * 5_000) + b"]"

    def act(client: httpx.Client) -> None:
        client.post("/events", content=body, headers={"Content-Type": "application/json"})

    at_once(target, 40, act, "203.0.113.1")


@attack("60 kB of hosts in punycode, 60 at once")
def dear_small_bodies_of_many_addresses(target: Target) -> None:
    """Each is small in bytes and events, but takes long to process."""
    views = [
        {"Type": "PageView", "Url": ".".join(["xn--6oqv20b1zgzxr"] * 4) + f"/{n}"}
        for n in range(490)
    ]
    body = json.dumps(views, separators=(",", ":")).encode()

    def act(client: httpx.Client) -> None:
        client.post("/events", content=body, headers={"Content-Type": "application/json"})

    at_once(target, 60, act)
