"""The results: the goals they are compared with, and the tables that show them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from bench.ads import Ads
from bench.measure import ARRAY, CONNECTIONS, USUAL, Accepted, Checkpoint, Cost, Counted, PostTimes

REPORT_MILLISECONDS = 50
AD_REPORT_MILLISECONDS = 100
FOLD_KEYS_SECONDS = 1
GROWTH = 1.1
"""How much a process may grow from half of the events to all; allocators are never exact."""
MIX_RUNS = (f"mix, arrays of {ARRAY}", f"mix, arrays of {ARRAY}, ids", "mix, single")


@dataclass(frozen=True)
class Goal:
    """A figure, and the bound that it must not fall below or must not exceed."""

    text: str
    figure: float
    least: float | None = None
    most: float | None = None

    @property
    def reached(self) -> bool:
        """Whether it is within its bound."""
        return (self.least is None or self.figure >= self.least) and (
            self.most is None or self.figure <= self.most
        )


@dataclass
class Results:
    """All measurements; a section that was skipped is empty."""

    machine: dict[str, str | float]
    accepted: Accepted = field(default_factory=dict)
    ceiling: Accepted = field(default_factory=dict)
    posts: PostTimes | None = None
    counted: dict[str, Counted] = field(default_factory=dict)
    naive: dict[str, float] = field(default_factory=dict)
    stored: dict[int, Checkpoint] = field(default_factory=dict)
    ads: Ads | None = None
    features: dict[str, Cost] = field(default_factory=dict)
    workers: dict[int, float] = field(default_factory=dict)

    def goals(self) -> Iterator[Goal]:
        """The goals of the sections that were measured."""
        if self.accepted:
            for name in (f"single, {n}" for n in CONNECTIONS):
                ratio = self.accepted[name].per_second / self.ceiling[name].per_second
                yield Goal(f"accepted requests/s / ceiling's: {name}", ratio, least=0.7)
            name = f"single, {USUAL}"
            ratio = self.accepted[name].p99 / self.ceiling[name].p99
            yield Goal(f"accepted p99 / ceiling's: {name}", ratio, most=3)
        if self.posts:
            for n, time in self.posts.collector.items():
                ratio = time / self.posts.stock[n]
                yield Goal(f"processor time of a post / the stock view's: {n}", ratio, most=1.1)
        if self.counted:
            naive = max(self.naive.values())
            for name, least in zip(MIX_RUNS, (30, 15, 10), strict=True):
                ratio = self.counted[name].per_second / naive
                yield Goal(f"counted events/s / naive's: {name}", ratio, least=least)
        if self.stored:
            yield from self._goals_of_stored()
        if self.ads:
            for query, (_, p95) in self.ads.reports.items():
                yield Goal(f"p95 of /reports/ads?{query}, ms", p95, most=AD_REPORT_MILLISECONDS)
            seconds = self.ads.fold_keys_seconds
            yield Goal("folding 5,000 ads, seconds", seconds, most=FOLD_KEYS_SECONDS)
        if self.workers:
            few, many = min(self.workers), max(self.workers)
            text = f"counted events/s with {many} workers a queue / with {few}"
            yield Goal(text, self.workers[many] / self.workers[few], least=0.9)

    def _goals_of_stored(self) -> Iterator[Goal]:
        number = max(self.stored)
        half, last = self.stored[number // 2], self.stored[number]
        for path, latency in last.reports.items():
            text = f"p95 of {path} at {last.stored:,} events, ms"
            yield Goal(text, latency.p95, most=REPORT_MILLISECONDS)
        growth, name = max(
            (memory.rss / half.memory[name].rss, name)
            for name, memory in last.memory.items()
            if name in half.memory
        )
        text = f"memory at {last.stored:,} events / at {half.stored:,}, the worst: {name}"
        yield Goal(text, growth, most=GROWTH)


def show(results: Results) -> None:
    """Print the tables."""
    console = Console(width=120)
    console.print(", ".join(f"{name} {value}" for name, value in results.machine.items()))
    if results.accepted:
        console.print(_accepted(results))
    if results.posts:
        console.print(_posts(results.posts))
    if results.counted:
        console.print(_counted(results))
        console.print(_cpu({name: results.counted[name] for name in MIX_RUNS}))
    if results.stored:
        console.print(_rates(results.stored))
        console.print(_reports(results.stored))
        console.print(_memory(results.stored))
    if results.ads:
        console.print(_ads(results.ads))
    if results.features:
        console.print(_features(results.features))
    if results.workers:
        console.print(_workers(results.workers))
    console.print(_goals(results))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _accepted(results: Results) -> Table:
    columns = ("connections", "", "requests/s", "events/s", "p50 ms", "p95 ms", "p99 ms", "wrk's")
    table = _table("Accepted (wrk's: the load generator's share of all cores)", *columns)
    for name in results.accepted:
        for of, loads in (("collector", results.accepted), ("ceiling", results.ceiling)):
            load = loads[name]
            size = ARRAY if name.startswith("arrays") else 1
            table.add_row(
                name,
                of,
                f"{load.per_second:,.0f}",
                f"{load.per_second * size:,.0f}",
                *(f"{time:.1f}" for time in (load.p50, load.p95, load.p99)),
                f"{load.generator_share:.0%}",
            )
    return table


def _posts(posts: PostTimes) -> Table:
    columns = ("connections", "collector", "stock view", "ratio")
    table = _table("The web's processor time for a single post, µs", *columns)
    for connections, time in posts.collector.items():
        stock = posts.stock[connections]
        table.add_row(str(connections), f"{time:.0f}", f"{stock:.0f}", f"{time / stock:.2f}")
    return table


def _counted(results: Results) -> Table:
    table = _table("Counted", "", "events", "seconds", "events/s", "wrk's")
    for name, run in results.counted.items():
        table.add_row(
            name,
            f"{run.events:,}",
            f"{run.seconds:.1f}",
            f"{run.per_second:,.0f}",
            f"{run.generator_share:.0%}",
        )
    for name, rate in results.naive.items():
        table.add_row(f"naive: {name}", "", "", f"{rate:,.0f}", "")
    return table


def _cpu(runs: dict[str, Counted]) -> Table:
    table = _table("CPU seconds of each process, while counting", "", *runs)
    table.add_row("(elapsed)", *(f"{run.seconds:.1f}" for run in runs.values()), end_section=True)
    for name in sorted({name for run in runs.values() for name in run.cpu_seconds}):
        table.add_row(name, *(f"{run.cpu_seconds.get(name, 0):.1f}" for run in runs.values()))
    return table


def _rates(stored: dict[int, Checkpoint]) -> Table:
    points = stored.values()
    table = _table("Counted events/s by events stored", "", *(f"{p.stored:,}" for p in points))
    for name in next(iter(points)).counted:
        table.add_row(name, *(f"{point.counted[name].per_second:,.0f}" for point in points))
    return table


def _reports(stored: dict[int, Checkpoint]) -> Table:
    points = stored.values()
    table = _table("Reports by events stored: p50 / p95 ms", "", *(f"{p.stored:,}" for p in points))
    for path in next(iter(points)).reports:
        times = [point.reports[path] for point in points]
        table.add_row(path, *(f"{time.p50:.1f} / {time.p95:.1f}" for time in times))
    return table


def _ads(ads: Ads) -> Table:
    table = _table(f"Ad reports over 90 days of {ads.impressions:,} impressions", "", "p50", "p95")
    for query, (p50, p95) in ads.reports.items():
        table.add_row(f"/reports/ads?{query}", f"{p50:.0f} ms", f"{p95:.0f} ms")
    table.add_row("counted and folded, with hits", f"{ads.counted_per_second:,.0f} /s", "")
    table.add_row("folding 5,000 ads", f"{ads.fold_keys_seconds:.2f} s", "")
    return table


def _memory(stored: dict[int, Checkpoint]) -> Table:
    points = stored.values()
    table = _table("Resident memory by events stored, MiB", "", *(f"{p.stored:,}" for p in points))
    for name in sorted({name for point in points for name in point.memory}):
        sizes = [point.memory.get(name) for point in points]
        table.add_row(name, *(f"{size.rss:.1f}" if size else "" for size in sizes))
    return table


def _features(features: dict[str, Cost]) -> Table:
    of = next(iter(features.values())).per_second
    columns = ("p50 ms", "without", *(f"/s at {connections}" for connections in of))
    table = _table("Single posts with a feature on (in brackets the ratio)", "", *columns)
    for name, cost in features.items():
        table.add_row(
            name,
            *(f"{time:.2f}" for time in (cost.p50, cost.plain_p50)),
            *(
                f"{rate:,.0f} ({rate / cost.plain_per_second[connections]:.2f})"
                for connections, rate in cost.per_second.items()
            ),
        )
    return table


def _workers(workers: dict[int, float]) -> Table:
    table = _table("Counted by workers of each queue", "", "events/s")
    for processes, rate in workers.items():
        table.add_row(str(processes), f"{rate:,.0f}")
    return table


def _goals(results: Results) -> Table:
    table = _table("Goals", "", "figure", "goal", "")
    for goal in results.goals():
        bound = f"≥ {goal.least}" if goal.most is None else f"≤ {goal.most}"
        verdict = "reached" if goal.reached else "not reached"
        table.add_row(goal.text, f"{goal.figure:.2f}", bound, verdict)
    return table
