"""Runs the compose files in a real Docker, and kills every container under load.

    python -m tests.containers.harness

Docker and the images come from Debian's packages; see engine.py and the Dockerfile in this folder.
From the first start on, clients post simulated events, each again until it gets 202, while
containers are added, killed, restarted and removed. At the end the reports must equal the
simulation.
"""

import json
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import yaml

from app.cli.simulation import Expectation, simulate
from tests.containers.engine import SUITE, CommandFailed, Engine, missing
from tests.faults.clients import BATCH, CLIENTS, PLAIN_VIEWS, Clients
from tests.support.collector import Collector
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
STAND_INS = "tests/containers/Dockerfile"
FILES = ["docker-compose.yml", "deploy/docker-compose.rabbitmq.yml"]
SECRETS = {
    "ADMIN_TOKEN": "token-of-the-operators-0123456789",
    "FLOWER_BASIC_AUTH": "operator:password",
    "USER_HASH_SECRET": "sixteen-letters-or-more",
    "RABBITMQ_PASSWORD": "letters0and0digits",
}
PORT = 8000
"""Where docker-compose.yml publishes nginx."""
START_SECONDS = 300
NONE_MORE: dict[str, int] = {}
SCALE = {"web": 2, "worker-page-view": 3}


class Steps:
    """Prints each step and how long it took."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @contextmanager
    def step(self, sentence: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        except BaseException:
            print(f"FAILED after {time.monotonic() - start:.1f} s: {sentence}", flush=True)
            raise
        print(f"{time.monotonic() - start:6.1f} s  {sentence}", flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self._start


def images() -> dict[str, str]:
    """The external images that the project names, each with the stage that stands in for it."""
    named = re.findall("^FROM (.*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for file in FILES:
        services = yaml.safe_load((ROOT / file).read_text())["services"].values()
        named += [service["image"] for service in services if "image" in service]
    return {image: image.partition(":")[0] for image in named if image != "eventstream"}


def build(engine: Engine) -> None:
    """Build the stand-ins, and then the project's own image once the Python image exists."""

    def stand_in(image: str, stage: str) -> None:
        which = ["--file", STAND_INS, "--target", stage, "--tag", image]
        engine.run("docker", "build", *which, ".")

    def own() -> None:
        built["python"].result()
        Compose(engine, FILES[:1]).run("build")

    built: dict[str, Future[None]] = {}
    with ThreadPoolExecutor() as pool:
        for image, stage in images().items():
            built[stage] = pool.submit(stand_in, image, stage)
        built["eventstream"] = pool.submit(own)
        for each in built.values():
            each.result()


class Compose:
    """`docker compose` with some of the compose files."""

    def __init__(self, engine: Engine, files: list[str]) -> None:
        self._engine = engine
        self.files = files

    def run(self, *arguments: str) -> str:
        # Ignore an operator's own .env.
        files = [f"--file={file}" for file in self.files]
        command = ["docker", "compose", *files, "--env-file=/dev/null", *arguments]
        return self._engine.run(*command, environment=SECRETS)

    def up(self, scale: Mapping[str, int] = NONE_MORE) -> None:
        """Start the services that are not running, and wait until all are healthy."""
        scaled = [f"--scale={name}={number}" for name, number in scale.items()]
        waiting = ["--wait", "--wait-timeout", str(START_SECONDS)]
        self.run("up", "--detach", "--no-build", "--no-recreate", *waiting, *scaled)

    def containers(self) -> list[dict[str, Any]]:
        """What Docker knows about each container, with the stores last."""
        names = self.run("ps", "--all", "--quiet").split()
        if not names:
            return []
        found: list[dict[str, Any]] = json.loads(self._engine.run("docker", "inspect", *names))
        return sorted(found, key=lambda container: container["Config"]["Image"] != "eventstream")

    def kill(self, container: dict[str, Any]) -> None:
        """Kill the process of a container, and wait until Docker has started it again.

        This does not use `docker kill`, after which Docker would not restart it.
        """

        def is_back() -> bool:
            [now] = json.loads(self._engine.run("docker", "inspect", container["Id"]))
            return bool(now["State"]["Running"] and now["RestartCount"] > container["RestartCount"])

        self._engine.run("sh", "-c", f"kill -KILL {container['State']['Pid']}")
        wait_until(is_back, START_SECONDS, every=0.1)

    def trouble(self) -> str:
        """The last output of unhealthy containers, and of their health checks."""
        sick = [
            each for each in self.containers() if each["State"]["Health"]["Status"] != "healthy"
        ]
        said = []
        for container in sick:
            checks = [check["Output"] for check in container["State"]["Health"]["Log"][-1:]]
            log = ["docker", "logs", "--tail", "20", container["Id"]]
            said += [
                container["Name"],
                *checks,
                self._engine.run("sh", "-c", f"{shlex.join(log)} 2>&1"),
            ]
        return "\n".join(said)

    def left(self) -> list[str]:
        """The containers, volumes and networks that are left, except Docker's own."""
        docker = self._engine.run
        return [
            *docker("docker", "ps", "--all", "--quiet").split(),
            *docker("docker", "volume", "ls", "--quiet").split(),
            *docker("docker", "network", "ls", "--quiet", "--filter", "type=custom").split(),
        ]


@contextmanager
def posting(collector: Collector, seed: int) -> Iterator[Clients]:
    """Clients that post to a collector in the meantime."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    expectation = Expectation(UTC, 3, "user", now)
    events = simulate(200_000, seed, 4, 300, 20, midnight)
    clients = Clients(collector=collector, expectation=expectation, events=events)
    threads = clients.threads()
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        clients.over.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a client never got its 202"


def more_accepted(clients: Clients) -> None:
    """Wait until posts that started after this call are accepted."""
    until = clients.accepted + (CLIENTS + 1) * BATCH
    wait_until(lambda: clients.accepted >= until, START_SECONDS)


def prove(compose: Compose, collector: Collector, seed: int, steps: Steps) -> None:
    """Check that the services count each event once, whatever happens to their containers."""
    with steps.step(f"start {' and '.join(compose.files)}"):
        compose.up()
    with posting(collector, seed) as clients:
        with steps.step(f"add containers: {SCALE}"):
            more_accepted(clients)
            compose.up(SCALE)
        containers = compose.containers()
        with steps.step(
            f"kill {len(containers)} containers, one after another has let posts in again"
        ):
            for container in containers:
                compose.kill(container)
                more_accepted(clients)
        with steps.step("wait until all are healthy again"):
            compose.up(SCALE)
        if len(compose.files) == 1:  # once is enough, because it takes long
            with steps.step("restart all of them"):
                more_accepted(clients)
                compose.run("restart")
                compose.up(SCALE)
                more_accepted(clients)
        with steps.step("remove all of them, and start with the same volumes"):
            compose.run("down")
            compose.up()
            more_accepted(clients)
    with steps.step("count what is left"):
        compose.run("exec", "--no-TTY", "web", "eventstream", "drain", "--timeout", "120")
        for month in sorted({row["month"] for row in clients.expectation.reports()["impressions"]}):
            compose.run("exec", "--no-TTY", "web", "eventstream", "aggregate", month)
    accepted = clients.accepted + PLAIN_VIEWS * len(clients.plain_accepted)
    with steps.step(f"compare the reports with the {accepted:,} events answered 202"):
        lost, repeated, _ = clients.compare()
        assert (lost, repeated) == (0, 0), f"lost {lost}, repeated {repeated}"
    with steps.step("remove all of them, volumes too"):
        compose.run("down", "--volumes")
        assert not compose.left(), compose.left()


def prove_alerts(engine: Engine) -> None:
    """Check the Prometheus rules, and try each alert."""
    engine.run("promtool", "check", "rules", "deploy/prometheus/alerts.yml")
    engine.run("promtool", "test", "rules", "tests/containers/alerts.yml")


def prove_all(home: Path, seed: int) -> None:
    steps = Steps()
    engine = Engine(home, ROOT)
    with steps.step(f"make Docker and an image of Debian {SUITE} from packages"):
        engine.make()
    with engine.running():
        with steps.step("try each alert with promtool"):
            prove_alerts(engine)
        with steps.step(f"build eventstream, and stand-ins for {', '.join(images())}"):
            build(engine)
        port = engine.publish(PORT)
        collector = Collector(SECRETS | {"PORT": str(port)})
        for number in range(len(FILES)):
            compose = Compose(engine, FILES[: number + 1])
            try:
                prove(compose, collector, seed, steps)
            except (AssertionError, CommandFailed) as error:
                raise CommandFailed(f"{error}\n{compose.trouble()}") from error
    print(f"{steps.seconds():6.1f} s  in all")


@click.command()
@click.option("--seed", type=int, default=1)
@click.option("--required", is_flag=True, help="Fail if this machine can't run it.")
def main(seed: int, required: bool) -> None:
    """Run all steps, and exit with 1 at the first one that fails."""
    if lacks := missing():
        print(f"The containers {'failed' if required else 'are skipped'}: {'; '.join(lacks)}.")
        sys.exit(int(required))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # this cleans up
    with tempfile.TemporaryDirectory(prefix="eventstream-containers-") as folder:
        try:
            prove_all(Path(folder), seed)
        except (AssertionError, CommandFailed) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
