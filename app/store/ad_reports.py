"""The ad reports: impressions, reach, hits and clicks of any days, ads and websites together.

All figures of a report are exact, and read at the same moment. Reach is the size of the union of
the sets of users.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import islice
from typing import Any, NamedTuple

from app.domain import user_sets
from app.domain.periods import PERIOD_OF, Earlier
from app.errors import InvalidRequest
from app.store import ads, migrations
from app.store.ad_months import PORTION_BITS, WHOLE_MONTH, days_in, set_key, sets_in
from app.store.ad_selection import (
    TOO_MUCH,
    Bucket,
    Documents,
    Labels,
    Selection,
    buckets,
    months_of,
)
from app.store.ads import AdEntry
from app.store.database import Database, Session
from app.store.documents import ClickMonth, ImpressionMonth, Schema, UserSet
from app.store.paging import REPORT_SECONDS, Page, Row, decode_cursor, encode_cursor
from app.store.reach import SETS_DROPPED, Reach, Reached, ReachReader

METRICS = (
    *("impressions", "reach", "frequency", "hits", "clicks"),
    *("ctr", "hit_rate", "rendered", "viewable_rate"),
)
RATES = ("reach", "frequency", "ctr", "hit_rate", "viewable_rate")
"""The metrics that may be null."""
DIMENSIONS = ("ad", "website", "campaign", "advertiser", *PERIOD_OF)
ENTERED = ("name", "campaign", "advertiser")
MAX_GROUPS = 200_000
ROWS_AT_ONCE = 500

MAX_BY = 3
LAST_DAY = 31

NO_DAYS = "Ads were not counted by day before {since}: what came before belongs to no day."
NO_SETS = "Who was reached before {since} is known only for whole months and all ads together."


def names_in(text: str) -> list[str]:
    """What makes a row: one to MAX_BY of DIMENSIONS, separated by commas. At most one is a period.

    Raises ValueError, with a sentence.
    """
    by = text.split(",")
    if not set(by) <= set(DIMENSIONS) or len(set(by)) < len(by) or len(by) > MAX_BY:
        names = ", ".join(DIMENSIONS)
        raise ValueError(f"Must be one to {MAX_BY} of {names}, separated by commas.")
    if sum(name in PERIOD_OF for name in by) > 1:
        raise ValueError(f"Must have at most one of {', '.join(PERIOD_OF)}.")
    return by


class Rules(NamedTuple):
    """The settings that a report depends on: whether users have a different id in each month."""

    hashed_monthly: bool = False


class AdReport(NamedTuple):
    """The rows of a report, the totals of all of them, and why some figures are missing.

    `columns` are those that name a row; `rows` have METRICS too.
    """

    columns: tuple[str, ...]
    rows: list[Row]
    totals: Row
    notes: dict[str, str]


@dataclass
class _Group:
    """What is counted together in one row."""

    counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    """Impressions, rendered ads, hits and clicks."""
    reach: Reach = field(default_factory=Reach)


_Place = tuple[tuple[bool, float, str], list[tuple[bool, str]]]
_GroupKey = tuple[str | None, ...]


def ad_report(
    database: Database,
    selection: Selection,
    by: Sequence[str],
    rules: Rules,
    compared: Earlier | None = None,
) -> AdReport:
    """The METRICS of ads, in a row for each combination of what `by` names.

    Rows without any count are left out. With `compared`, which needs days, rows and totals have the
    figures of the earlier days under `previous`. Raises InvalidRequest if the report would be too
    large, and Unavailable if the database can't be reached.
    """
    with database.snapshot(REPORT_SECONDS) as session:
        return ad_report_in(session, selection, by, rules, compared)


def ad_report_in(
    session: Session,
    selection: Selection,
    by: Sequence[str],
    rules: Rules,
    compared: Earlier | None = None,
) -> AdReport:
    """The same, of the moment of this session. Also raises pymongo's errors."""
    reading = _Reading(session, rules)
    groups = reading.groups(selection, by, _labels(by))
    totals = reading.groups(selection, (), _labels(()))
    rows = reading.rows(groups, by)
    total = reading.total(totals)
    if compared:
        span, later = compared
        before = selection._replace(first=span.first, last=span.last)
        figures = reading.figures(reading.groups(before, by, _labels(by, later)))
        nothing = _metrics(_Group(), 0)
        for row, found in zip(rows, groups, strict=True):
            row["previous"] = figures.get(found, nothing)
        total["previous"] = reading.total(reading.groups(before, (), _labels(())))
    return AdReport(_columns(by), rows, total, reading.notes)


def frequency(
    database: Database,
    month: str,
    websites: Collection[str] | None = None,
    ad_ids: Collection[str] | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """How many users had 1, 2, … impressions in a month (YYYY-MM), and notes.

    The last row is for LEVELS or more. If there are no rows, the notes say why. Raises Unavailable.
    """
    with database.snapshot(REPORT_SECONDS) as session:
        reading = _Reading(session, Rules())
        rows = reading.documents.cells(
            ImpressionMonth, month, websites, ad_ids, per_ad=ad_ids is not None
        )
        levels: user_sets.Levels = []
        portions: defaultdict[int, user_sets.Levels] = defaultdict(list)
        for row in rows:
            if row.get("expired"):
                return [], {"users": SETS_DROPPED}
            if WHOLE_MONTH in days_in(row):
                return [], {"users": NO_SETS.format(since=reading.since)}
            packed = sets_in(row).get(WHOLE_MONTH, [])
            if packed is not None:
                user_sets.add_levels(levels, user_sets.unpack(packed))
                continue
            for portion in session[UserSet].find({"of": set_key(row, WHOLE_MONTH)}):
                number = int(portion["_id"].rpartition(" ")[2])
                user_sets.add_levels(portions[number], user_sets.unpack(portion["levels"]))
        for number, more in user_sets.by_portion(levels, PORTION_BITS):
            user_sets.add_levels(portions[number], more)
    users = [0] * user_sets.LEVELS
    for of_portion in portions.values():
        for place, count in enumerate(user_sets.users_by_times(of_portion)):
            users[place] += count
    times = [*range(1, user_sets.LEVELS), f"{user_sets.LEVELS}+"]
    return [
        {"impressions": number, "users": count} for number, count in zip(times, users, strict=True)
    ], {}


def with_entries(database: Database, rows: Sequence[Row]) -> list[Row]:
    """These rows, with what is now entered for their ads. Raises Unavailable."""
    with database.snapshot(REPORT_SECONDS) as session:
        found = ads.of(session, {row["ad_id"] for row in rows})
    unknown = AdEntry("")
    return [
        row | {name: getattr(found.get(row["ad_id"], unknown), name) for name in ENTERED}
        for row in rows
    ]


def page_of(report: AdReport, page: Page, sort: str) -> tuple[list[Row], str | None]:
    """The rows of a page, and the cursor of the next page, None at the end.

    Rows with the highest figure in `sort` come first, or the earliest days if it is a period. Rows
    without a value come last. Raises InvalidRequest for a cursor of another report.
    """

    def place(row: Row) -> _Place:
        figure = row[sort]
        if sort in PERIOD_OF:
            order: tuple[bool, float, str] = (figure is None, 0, figure or "")
        else:
            order = (figure is None, -(figure or 0), "")
        return order, [(row[name] is None, row[name] or "") for name in report.columns]

    rows = sorted(report.rows, key=place)
    if page.cursor is not None:
        of, after = decode_cursor(page.cursor, tuple[list[str], _Place])
        if of != [sort, *report.columns]:
            raise InvalidRequest({"cursor": ["Not a cursor of this report."]})
        rows = [row for row in rows if place(row) > after]
    if len(rows) <= page.limit:
        return rows, None
    of = [sort, *report.columns]
    return rows[: page.limit], encode_cursor((of, place(rows[page.limit - 1])))


def _labels(
    by: Sequence[str], later: Callable[[date], Iterable[date]] = lambda day: (day,)
) -> Labels:
    """The periods that a day counts for: those of the later days that it is compared with."""
    for name in by:
        if period_of := PERIOD_OF.get(name):
            return lambda day: dict.fromkeys(map(period_of, later(day)))
    return lambda _: (None,)


def _columns(by: Sequence[str]) -> tuple[str, ...]:
    """The columns that name a row."""
    names = ["ad_id" if name == "ad" else name for name in by]
    return (*names, *(name for name in ENTERED if "ad" in by and name not in by))


class _Reading:
    """Reads what reports need, all at the same moment."""

    def __init__(self, session: Session, rules: Rules) -> None:
        self._session = session
        self._rules = rules
        self._entries: dict[str, AdEntry] = {}
        self.documents = Documents(session)
        self._reaches = ReachReader(self.documents)
        self.notes: dict[str, str] = {}
        found = session[Schema].find_one(migrations.DAYS)
        self.since: str = found["since"] if found else ""

    def _learn(self, ad_ids: Iterable[str]) -> None:
        """Look up what is entered for these ads, unless it was looked up before."""
        new = set(ad_ids) - self._entries.keys()
        found = ads.of(self._session, new)
        self._entries |= {ad_id: found.get(ad_id, AdEntry(ad_id)) for ad_id in new}

    def groups(
        self, selection: Selection, by: Sequence[str], labels: Labels
    ) -> dict[_GroupKey, _Group]:
        """What was counted for a selection, by the names in `by`."""
        ad_ids = self._ads_of(selection)
        is_entered = not {"campaign", "advertiser"}.isdisjoint(by)
        per_ad = ad_ids is not None or is_entered or "ad" in by
        websites = selection.websites
        groups: defaultdict[_GroupKey, _Group] = defaultdict(_Group)
        for month in months_of(selection, self._session):
            days = buckets(month, selection, labels)
            for place, document in ((0, ImpressionMonth), (2, ClickMonth)):
                rows = self.documents.cells(
                    document, month, websites, ad_ids, per_ad=per_ad, per_website="website" in by
                )
                while some := list(islice(rows, ROWS_AT_ONCE)):
                    if is_entered:
                        self._learn(row["ad_id"] for row in some)
                    for row in some:
                        self._add(row, place, days, by, groups)
                    if len(groups) > MAX_GROUPS:
                        raise InvalidRequest({"by": [TOO_MUCH]})
        return {name: group for name, group in groups.items() if any(group.counts)}

    def rows(self, groups: Mapping[_GroupKey, _Group], by: Sequence[str]) -> list[Row]:
        """A row for each group, in their order."""
        rows = []
        for names, figures in self.figures(groups).items():
            row: Row = dict.fromkeys(_columns(by))
            for name, value in zip(by, names, strict=True):
                row["ad_id" if name == "ad" else name] = value
            rows.append(row | figures)
        return rows

    def total(self, groups: Mapping[_GroupKey, _Group]) -> Row:
        """The figures of the one group of a whole selection."""
        return next(iter(self.figures(groups).values()), _metrics(_Group(), 0))

    def figures(self, groups: Mapping[_GroupKey, _Group]) -> dict[_GroupKey, Row]:
        """The metrics of each group."""
        for group in groups.values():
            group.reach.settle(hashed_monthly=self._rules.hashed_monthly)
            if group.reach.why_not:
                self.notes.setdefault("reach", group.reach.why_not)
        self._reaches.read(group.reach for group in groups.values())
        return {
            name: _metrics(group, self._reaches.number(group.reach))
            for name, group in groups.items()
        }

    def _ads_of(self, selection: Selection) -> Collection[str] | None:
        """The ads of a selection, or None for all, even those for which nothing was entered."""
        campaign, advertiser = selection.campaign, selection.advertiser
        if campaign is None and advertiser is None:
            return selection.ads
        found = ads.read(self._session, campaign, advertiser)
        return [ad_id for ad_id in found if selection.ads is None or ad_id in selection.ads]

    def _add(
        self,
        row: Any,
        place: int,
        buckets: Sequence[Bucket],
        by: Sequence[str],
        groups: defaultdict[_GroupKey, _Group],
    ) -> None:
        """Add the counts of a document, and whom it reached, to the groups of these buckets."""
        days = days_in(row)
        sets = sets_in(row) if place == 0 else {}
        for bucket in buckets:
            wanted = (WHOLE_MONTH, *bucket.days) if bucket.is_whole else bucket.days
            counts = [days[day] for day in wanted if day in days]
            if not counts:
                if WHOLE_MONTH in days and not bucket.days:
                    self.notes["day"] = NO_DAYS.format(since=self.since)
                continue
            if WHOLE_MONTH in wanted and WHOLE_MONTH in days and not bucket.is_whole:
                self.notes["day"] = NO_DAYS.format(since=self.since)
            group = groups[self._names(row, by, bucket.label)]
            group.counts[place] += sum(first for first, _ in counts)
            group.counts[place + 1] += sum(second for _, second in counts)
            if place == 0:
                self._add_reached(row, sets, days, bucket, group.reach)

    def _add_reached(self, row: Any, sets: Any, days: Any, bucket: Bucket, reach: Reach) -> None:
        month = row["month"]
        is_undated = WHOLE_MONTH in days
        is_of_all_ads = "ad_id" not in row
        # One set of a month is read in less time than many of days.
        has_all_days = not is_undated and days.keys() <= set(bucket.days)
        if has_all_days or (bucket.is_whole and is_of_all_ads):
            if row["visitors"]:
                packed = (sets.get(WHOLE_MONTH) or [None])[0]
                of = "" if row.get("expired") else set_key(row, WHOLE_MONTH)
                reach.users.append(Reached(month, packed, of, row["visitors"]))
            return
        earliest = min(bucket.days, default=0)
        dropped = LAST_DAY if row.get("expired") else row.get("expired_days", 0)
        if is_undated and f"{month}-{earliest:02}" < self.since:
            reach.why_not = NO_SETS.format(since=self.since)
        elif any(days[day][0] for day in bucket.days if day <= dropped and day in days):
            reach.why_not = SETS_DROPPED
        for day in bucket.days:
            if day in sets:
                packed = (sets[day] or [None])[0]
                reach.users.append(Reached(month, packed, set_key(row, day)))

    def _names(self, row: Any, by: Sequence[str], label: str | None) -> _GroupKey:
        names: list[str | None] = []
        for name in by:
            if name in PERIOD_OF:
                names.append(label)
            elif name == "website":
                names.append(row["website"])
            elif name == "ad":
                names.append(row["ad_id"])
            else:
                names.append(getattr(self._entries[row["ad_id"]], name))
        return tuple(names)


def _metrics(group: _Group, reach: int | None) -> Row:
    impressions, rendered, hits, clicks = group.counts
    return {
        "impressions": impressions,
        "reach": reach,
        "frequency": _ratio(impressions, reach, 2),
        "hits": hits,
        "clicks": clicks,
        "ctr": _ratio(clicks, impressions),
        "hit_rate": _ratio(hits, impressions),
        "rendered": rendered,
        "viewable_rate": _ratio(impressions, rendered),
    }


def _ratio(part: int, whole: int | None, decimals: int = 4) -> float | None:
    return round(part / whole, decimals) if whole else None
