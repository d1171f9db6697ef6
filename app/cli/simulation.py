"""`eventstream simulate`: made-up traffic, and the exact reports that it must lead to.

The expectation does not use the collector's own code: the page is chosen first, and its address is
then written in one of the forms that name this page.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple
from uuid import UUID

MAX_DAYS = 34
"""How many whole days fit into the 35 days that the collector accepts."""

HOURS = [2, 1, 1, 1, 1, 2, 4, 6, 8, 9, 9, 9, 10, 9, 9, 9, 9, 10, 11, 12, 12, 10, 7, 4]
"""How busy each hour of the day is."""

WEIGHTS = {"PageView": 70, "AdImpression": 25, "AdClick": 5}
PAGES_PER_SITE = 40
ADS = 60


class SimulatedEvent(NamedTuple):
    """An event as it is sent, and what it means."""

    sent: dict[str, Any]
    kind: str
    website: str
    page: str
    user: str
    ad: str
    time: datetime


def simulate(
    events: int, seed: int, sites: int, users: int, days: int, end: datetime
) -> Iterator[SimulatedEvent]:
    """Events in order over `days` days before `end` (with a zone), the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311
    start = end.astimezone(UTC) - timedelta(days=days)
    times = sorted(
        start
        + timedelta(
            days=rng.randrange(days),
            hours=rng.choices(range(24), HOURS)[0],
            milliseconds=rng.randrange(3_600_000),
        )
        for _ in range(events)
    )
    for time in times:
        yield _event(rng, sites, users, time)


def simulate_now(seed: int | None, sites: int, users: int) -> Iterator[SimulatedEvent]:
    """Endless events, each of which happens at the moment when it is requested."""
    rng = random.Random(seed)  # noqa: S311
    while True:
        yield _event(rng, sites, users, datetime.now(UTC))


def _hour(local: datetime) -> str:
    return f"{local:%Y-%m-%dT%H}{local.isoformat()[-6:]}"


def _event(rng: random.Random, sites: int, users: int, time: datetime) -> SimulatedEvent:
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    website = f"site{_popular(rng, sites)}.example"
    page = f"/section-{rng.randrange(4)}/page-{_popular(rng, PAGES_PER_SITE)}"
    user, ad = f"user-{_popular(rng, users)}", str(_popular(rng, ADS))
    sent = {
        "Type": rng.choice([kind, kind[0].lower() + kind[1:], kind.upper()]),
        "Url": _written(rng, website, page),
        "Meta": {"UserId": user, "AdId": rng.choice([ad, int(ad)])},
        "EventId": str(UUID(int=rng.getrandbits(128), version=4)),
        "Timestamp": rng.choice([time.isoformat(), int(time.timestamp() * 1000)]),
    }
    return SimulatedEvent(sent, kind, website, page, user, ad, time)


def _popular(rng: random.Random, number: int) -> int:
    """One of this many things; the first are the most frequent, as with real pages and people."""
    return min(int(rng.paretovariate(0.7)), number)


def _written(rng: random.Random, website: str, page: str) -> str:
    scheme = rng.choice(["https://", "http://", "", "HTTPS://"])
    host = rng.choice(["", "www.", "WWW."]) + rng.choice([website, website.upper()])
    port = {"https://": ":443", "http://": ":80"}.get(scheme, "")
    path = rng.choice([page, page + "/", page.replace("-", "%2d", 1), "/x/.." + page])
    return scheme + host + rng.choice(["", port]) + path + rng.choice(["", "?utm=1", "#top"])


def ad_figures(
    impressions: int, rendered: int, reach: int, hits: int, clicks: int
) -> dict[str, int | float | None]:
    """The figures of a row of the ad report that these numbers lead to."""
    return {
        "impressions": impressions,
        "reach": reach,
        "frequency": round(impressions / reach, 2) if reach else None,
        "hits": hits,
        "clicks": clicks,
        "ctr": round(clicks / impressions, 4) if impressions else None,
        "hit_rate": round(hits / impressions, 4) if impressions else None,
        "rendered": rendered,
        "viewable_rate": round(impressions / rendered, 4) if rendered else None,
    }


class Expectation:
    """The reports that events lead to, if each event is counted once."""

    def __init__(self, timezone: tzinfo, click_hits: int, click_scope: str, now: datetime) -> None:
        self._timezone = timezone
        self._click_hits = click_hits
        self._click_scope = click_scope
        self._this_month = f"{now.astimezone(timezone):%Y-%m}"
        self._views: Counter[tuple[str, str]] = Counter()
        self._views_by_day: Counter[str] = Counter()
        self._impressions: Counter[tuple[str, str]] = Counter()
        self._visitors: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._hits: defaultdict[Any, list[tuple[datetime, str, str]]] = defaultdict(list)
        self._shown: list[SimulatedEvent] = []
        self._traffic: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])

    def add(self, event: SimulatedEvent) -> None:
        """Count one event."""
        local = event.time.astimezone(self._timezone)
        self._traffic[_hour(local)][list(WEIGHTS).index(event.kind)] += 1
        if event.kind == "PageView":
            self._views[event.website, event.page] += 1
            self._views_by_day[f"{local:%Y-%m-%d}"] += 1
        elif event.kind == "AdImpression":
            self._shown.append(event)
            for website in (event.website, "*"):
                self._impressions[f"{local:%Y-%m}", website] += 1
                self._visitors[f"{local:%Y-%m}", website].add(event.user)
        else:
            owner: Any = event.user
            if self._click_scope == "ad":
                owner = event.user, event.website, event.ad
            self._hits[owner].append((event.time, event.website, event.ad))

    def reports(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each report, by its address under /reports, with all months aggregated."""
        page_views = [
            {"website": website, "page": page, "views": views}
            for (website, page), views in self._views.items()
        ]
        impressions = [
            {
                "month": month,
                "website": website,
                "impressions": number,
                "visitors": len(self._visitors[month, website]),
                "closed": month < self._this_month,
            }
            for (month, website), number in self._impressions.items()
        ]
        return {
            "page-views": sorted(
                page_views, key=lambda row: (-row["views"], row["website"], row["page"])
            ),
            "page-views/daily": self._daily(),
            "impressions": sorted(
                impressions, key=lambda row: (-row["impressions"], row["month"], row["website"])
            ),
            "clicks": self._clicks(),
            "ads?by=ad": self._ads("ad_id"),
            "ads?by=ad,website,day": self._ads("ad_id", "website", "day"),
            "traffic?by=hour": self._hours(),
            **{f"frequency?month={month}": self._frequency(month) for month in self._months()},
        }

    def _months(self) -> list[str]:
        return sorted({f"{event.time.astimezone(self._timezone):%Y-%m}" for event in self._shown})

    def _completed(self) -> Iterator[tuple[datetime, str, str]]:
        """The hits that complete clicks."""
        for hits_of_owner in self._hits.values():
            yield from sorted(hits_of_owner)[self._click_hits - 1 :: self._click_hits]

    def _ads(self, *names: str) -> list[dict[str, Any]]:
        def row(time: datetime, website: str, ad: str) -> list[Any]:
            day = f"{time.astimezone(self._timezone):%Y-%m-%d}"
            known = {"ad_id": ad, "website": website, "day": day}
            return rows[tuple(known[name] for name in names)]

        rows: defaultdict[tuple[str, ...], list[Any]] = defaultdict(lambda: [0, set(), 0, 0])
        for event in self._shown:
            counts = row(event.time, event.website, event.ad)
            counts[0] += 1
            counts[1].add(event.user)
        for hits_of_owner in self._hits.values():
            for hit in hits_of_owner:
                row(*hit)[2] += 1
        for hit in self._completed():
            row(*hit)[3] += 1
        return [
            {
                **dict(zip(names, parts, strict=True)),
                **dict.fromkeys(("name", "campaign", "advertiser")),
                **ad_figures(shown, shown, len(users), hits, clicks),
            }
            for parts, (shown, users, hits, clicks) in sorted(
                rows.items(), key=lambda item: (-item[1][0], item[0])
            )
        ]

    def _hours(self) -> list[dict[str, Any]]:
        if not self._traffic:
            return []
        traffic = {hour: list(counts) for hour, counts in self._traffic.items()}
        for time, _, _ in self._completed():
            traffic[_hour(time.astimezone(self._timezone))][3] += 1
        moment = datetime.fromisoformat(f"{min(traffic)[:10]}T00:00").replace(tzinfo=self._timezone)
        moment = moment.astimezone(UTC)
        names = ("views", "impressions", "hits", "clicks")
        rows = []
        while (hour := _hour(moment.astimezone(self._timezone)))[:10] <= max(traffic)[:10]:
            counts = traffic.get(hour, (0, 0, 0, 0))
            rows.append({"time": hour, **dict(zip(names, counts, strict=True))})
            moment += timedelta(hours=1)
        return rows

    def _frequency(self, month: str) -> list[dict[str, Any]]:
        times = Counter(
            event.user
            for event in self._shown
            if f"{event.time.astimezone(self._timezone):%Y-%m}" == month
        )
        users = Counter(min(number, 8) for number in times.values())
        return [
            {"impressions": number if number < 8 else "8+", "users": users[number]}
            for number in range(1, 9)
        ]

    def _daily(self) -> list[dict[str, Any]]:
        if not self._views_by_day:
            return []
        day = datetime.fromisoformat(min(self._views_by_day))
        rows = []
        while f"{day:%Y-%m-%d}" <= max(self._views_by_day):
            rows.append({"day": f"{day:%Y-%m-%d}", "views": self._views_by_day[f"{day:%Y-%m-%d}"]})
            day += timedelta(days=1)
        return rows

    def _clicks(self) -> list[dict[str, Any]]:
        hits: Counter[tuple[str, str]] = Counter()
        clicks: Counter[tuple[str, str]] = Counter()
        for hits_of_owner in self._hits.values():
            hits.update((website, ad) for _, website, ad in hits_of_owner)
        clicks.update((website, ad) for _, website, ad in self._completed())
        rows = [
            {"website": website, "ad_id": ad, "hits": number, "clicks": clicks[website, ad]}
            for (website, ad), number in hits.items()
        ]
        return sorted(
            rows, key=lambda row: (-row["clicks"], -row["hits"], row["website"], row["ad_id"])
        )
