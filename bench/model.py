"""`make model`: predicts what a load comes to on this machine, and tries two loads to compare."""

import signal
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from bench.calibrate import calibrate
from bench.load import CORES
from bench.observe import OTHERS, observe
from bench.run import end
from bench.scenario import Costs, Figures, Scenario
from bench.servers import run_stack
from bench.simulation import capacities, simulate

COSTS = Path(__file__).parent / "costs.json"
STEADY = 0.3
"""The usual load, of what the first hop that fills up can take."""
BURST_TIMES = 6
BURST_SECONDS = 5.0
FIGURES = {
    "accepted": "events accepted",
    "refused": "events refused",
    "per_second": "events/s counted",
    "lag_median": "lag, median, s",
    "lag_max": "lag, most, s",
    "peak": "events waiting, most",
    "drained": "drained after, s",
}

console = Console(width=100)


@click.command()
@click.option("--calibrate", "again", is_flag=True, help="Measure the costs though they are known.")
@click.option("--compare", is_flag=True, help="Try two loads, and print the differences.")
@click.option("--rate", type=float, help="Events a second.  [a third of what fits]")
@click.option("--size", default=100, help="Events in a request.", show_default=True)
@click.option("--seconds", default=60.0, help="Of load.", show_default=True)
@click.option("--web", default=2, help="Web processes.", show_default=True)
@click.option("--workers", default=1, help="Workers of each queue.", show_default=True)
@click.option("--cores", default=float(CORES), help="That all share.", show_default=True)
@click.option("--burst", default=1.0, help="So many times the rate, for 5 s.", show_default=True)
@click.option("--outage", default=0.0, help="Minutes without database.", show_default=True)
@click.option("--queue-limit", default=100_000, help="QUEUE_LIMIT.", show_default=True)
def main(again: bool, compare: bool, **load: Any) -> None:
    """Predict what a load comes to. The costs are measured once, and kept in bench/costs.json."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, end)
    costs = _costs(again)
    if compare:
        _compare(costs)
        return
    scenario = _scenario(**load)
    _, first = _show_capacities(costs, scenario)
    scenario = replace(scenario, requests=(load["rate"] or first * STEADY) / scenario.size)
    _show("calculated", {"": simulate(costs, scenario)})


def _scenario(
    *, rate: float | None, seconds: float, burst: float, outage: float, **others: Any
) -> Scenario:
    trouble_at = seconds / 3
    return Scenario(
        seconds + outage * 60,
        requests=1 if rate is None else rate,
        burst_at=trouble_at,
        burst=0 if burst == 1 else BURST_SECONDS,
        times=burst,
        outage_at=trouble_at,
        outage=outage * 60,
        **others,
    )


def _costs(again: bool) -> Costs:
    if again or not COSTS.exists():
        with tempfile.TemporaryDirectory(prefix="eventstream-model-") as folder:
            costs = calibrate(Path(folder).resolve())
        COSTS.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(costs))) + b"\n")
    return msgspec.json.decode(COSTS.read_bytes(), type=Costs)


def _compare(costs: Costs) -> None:
    """Two runs that the costs were not measured in, each beside what was predicted before it."""
    burst = Scenario(20, requests=1, web=1, burst_at=8, burst=BURST_SECONDS, times=BURST_TIMES)
    outage = Scenario(80, requests=1, outage_at=10, outage=60)
    for name, load in {"a burst, 1 web": burst, "an outage of a minute": outage}.items():
        _, first = _show_capacities(costs, load)
        scenario = replace(load, requests=first * STEADY / load.size)
        predicted = simulate(costs, scenario)
        with tempfile.TemporaryDirectory(prefix="eventstream-model-") as folder:
            arguments = f"--workers {scenario.web}"
            home = Path(folder).resolve() / "run"
            with run_stack(home, GUNICORN_CMD_ARGS=arguments) as stack:
                measured = observe(stack, scenario)
        title = f"{name}: {scenario.requests:.1f} requests/s of {scenario.size} events"
        _show(title, {"calculated": predicted, "measured": measured})
        had = scenario.cores * measured.counted / measured.per_second
        console.print(f"Other processes took {measured.busy[OTHERS] / had:.0%} of the cores.\n")


def _show_capacities(costs: Costs, scenario: Scenario) -> tuple[str, float]:
    """Print how much each hop can take, and return the first that fills up."""
    found = sorted(capacities(costs, scenario).items(), key=lambda item: item[1])
    table = Table("hop", "full at, events/s", title="calculated")
    for name, most in found:
        table.add_row(name, f"{most:,.0f}")
    console.print(table)
    return found[0]


def _show(title: str, of: dict[str, Figures]) -> None:
    table = Table("", *of, *(["difference"] if len(of) > 1 else []), title=title)
    rows = {text: [getattr(each, name) for each in of.values()] for name, text in FIGURES.items()}
    hops = [*of.values()][-1].busy
    rows |= {
        f"core seconds, {hop}": [each.busy.get(hop, 0) for each in of.values()] for hop in hops
    }
    for text, values in rows.items():
        shown = [f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" for value in values]
        if len(values) > 1:
            predicted, measured = values
            shown.append(f"{predicted / measured - 1:+.0%}" if measured else "")
        table.add_row(text, *shown)
    console.print(table)


if __name__ == "__main__":
    main()
