"""docker-compose.yml and Dockerfile, as far as they can be tested without Docker."""

import configparser
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from flower.options import options as flower_options
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Consumer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pymongo.uri_parser import parse_uri
from redis import Redis

from app.journal.opener import is_rabbit
from app.local.processes import free_ports, redis_server
from app.settings import Settings, read
from celeryconfig import task_queues, task_time_limit
from tests.support.rabbit import RabbitServer, needs_rabbit, rabbit
from tests.support.servers import redis_answers
from tests.support.waiting import running, wait_until

__all__ = ["rabbit"]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"] == "eventstream"]
WORKERS = [name for name in OURS if " worker " in SERVICES[name]["command"]]
SETTINGS = {field.name.upper() for field in fields(Settings)}
# The reason why no service has a variable for a setting.
LEFT_OUT = {
    "DATA_DIR": "a volume is mounted at the default",
    "PORT": "where the machine publishes the web; the container keeps the default",
    "FLOWER_PORT": "where the machine publishes Flower; the container keeps the default",
}
MUST_SET = {
    "ADMIN_TOKEN": "a secret of an operator",
    "FLOWER_BASIC_AUTH": "user:password",
    "USER_HASH_SECRET": "sixteen letters or more",
}
MONGODB_URL = SERVICES["web"]["environment"]["MONGODB_URL"]

WITH_RABBIT = yaml.safe_load((ROOT / "deploy" / "docker-compose.rabbitmq.yml").read_text())

INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
IGNORED = (ROOT / ".dockerignore").read_text().split()
PROJECT = configparser.ConfigParser()
PROJECT.read(ROOT / "setup.cfg")


def of_dockerfile(instruction: str) -> list[str]:
    return [arguments for name, arguments in INSTRUCTIONS if name == instruction]


def environment_of(service: str) -> dict[str, str]:
    """A service's variables if the operator has set only what is required."""

    def filled_in(found: re.Match[str]) -> str:
        name, kind, text = found.groups()
        return text if kind == "-" else MUST_SET[name]

    return {
        name: re.sub(r"\$\{(\w+):([-?])([^}]*)\}", filled_in, value)
        for name, value in SERVICES[service]["environment"].items()
    }


def words_of(service: str) -> list[str]:
    return shlex.split(SERVICES[service]["command"])


# The compose file.


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/docker-compose.rabbitmq.yml"])
def test_the_compose_files_follow_the_compose_specification(file: str) -> None:
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", file]
    check = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_a_health_check_restarts_and_gets_time_to_stop(service: str) -> None:
    assert SERVICES[service]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[service]["restart"] == "unless-stopped"
    assert re.fullmatch(r"\d+s", SERVICES[service]["stop_grace_period"])


@pytest.mark.parametrize("service", [*SERVICES, "rabbitmq"])
def test_no_service_runs_as_root_writes_to_its_image_or_logs_without_limit(service: str) -> None:
    options = (WITH_RABBIT["services"] | SERVICES)[service]
    if service not in OURS:  # their image does this
        assert options["user"] not in ("root", "0")
    assert options["read_only"] is True
    assert options["cap_drop"] == ["ALL"]
    assert "cap_add" not in options
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert [mount for mount in options["tmpfs"] if "size=" not in mount] == []
    assert set(options["logging"]["options"]) == {"max-size", "max-file"}


def test_files_mounted_from_the_checkout_exist_and_are_read_only() -> None:
    mounts = [v.split(":") for s in SERVICES.values() for v in s.get("volumes", []) if v[0] == "."]
    assert mounts
    for source, _, mode in mounts:
        assert (ROOT / source).is_file()
        assert mode == "ro"


@pytest.mark.parametrize("service", OURS)
def test_every_process_waits_until_its_configured_stores_are_healthy(service: str) -> None:
    settings = read(environment_of(service))
    stores = {urlsplit(url).hostname for url in (settings.redis_url, settings.mongodb_url)}
    workers = set(WORKERS) if service == "flower" else set()
    assert stores | workers == set(SERVICES[service]["depends_on"])
    assert stores <= set(SERVICES)
    for needed in SERVICES[service]["depends_on"].values():
        assert needed == {"condition": "service_healthy"}


def test_every_named_volume_is_declared_and_only_the_archive_is_shared() -> None:
    used = [
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if not volume.startswith("./")
    ]
    assert set(used) == set(COMPOSE["volumes"])
    assert {name for name in used if used.count(name) > 1} == {"archive"}


def test_the_archive_is_a_volume_in_the_default_data_directory_and_is_writable() -> None:
    [home] = [path for path in of_dockerfile("WORKDIR") if path.startswith("/home")]
    assert {"archive:" + home + "/var"} == {
        volume for name in OURS for volume in SERVICES[name]["volumes"]
    }
    [user] = of_dockerfile("USER")
    assert f"install --directory --owner={user} {home}/var" in of_dockerfile("RUN")
    assert read({}).data_dir.name == "var"


def test_only_nginx_and_flower_publish_ports_and_these_come_from_the_settings() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "nginx": ["${PORT:-8000}:8080"],
        "flower": ["127.0.0.1:${FLOWER_PORT:-5555}:5555"],
    }
    defaults = read({})
    assert (defaults.port, defaults.flower_port) == (8000, 5555)
    asked = [SERVICES[name]["healthcheck"]["test"][-2] for name in ("web", "flower")]
    assert asked == [str(defaults.port), str(defaults.flower_port)]


def test_one_service_builds_the_shared_image() -> None:
    assert {name: SERVICES[name]["build"] for name in SERVICES if "build" in SERVICES[name]} == {
        "web": "."
    }
    assert {SERVICES[name]["pull_policy"] for name in OURS} == {"never"}


def test_each_queue_has_one_worker_service_and_its_hostname() -> None:
    queues = [words_of(name)[words_of(name).index("--queues") + 1] for name in WORKERS]
    hosts = [words_of(name)[words_of(name).index("--hostname") + 1] for name in WORKERS]
    assert sorted(queues) == sorted(queue.name for queue in task_queues)
    assert hosts == [f"{queue}@%h" for queue in queues]


def test_there_is_one_beat() -> None:
    assert [name for name in OURS if " beat " in SERVICES[name]["command"]] == ["beat"]
    assert not {"deploy", "scale"} & set(SERVICES["beat"])


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_can_be_scaled(service: str) -> None:
    assert not {"container_name", "hostname", "ports"} & set(SERVICES[service])


def test_a_worker_may_finish_a_task_before_it_is_killed_or_counts_as_unhealthy() -> None:
    for name in WORKERS:
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > task_time_limit
        idle = re.search(r'"idle"\]\) < (\d+)', SERVICES[name]["healthcheck"]["test"][3])
        assert idle
        assert int(idle[1]) > task_time_limit


# Variables.


@pytest.mark.parametrize("service", OURS)
def test_a_service_has_only_variables_that_the_settings_read(service: str) -> None:
    assert set(SERVICES[service]["environment"]) <= SETTINGS


@pytest.mark.parametrize("service", OURS)
def test_a_variable_that_an_operator_sets_keeps_its_name(service: str) -> None:
    for name, value in SERVICES[service]["environment"].items():
        if "$" in value:
            assert re.fullmatch(rf"\$\{{{name}:(-\d?|\?[^}}]+)\}}", value)


def test_every_setting_reaches_a_service_or_is_left_out_for_a_reason() -> None:
    passed = {name for service in OURS for name in SERVICES[service]["environment"]}
    assert passed | set(LEFT_OUT) == SETTINGS
    assert not passed & set(LEFT_OUT)


@pytest.mark.parametrize(
    ("name", "service"),
    [("ADMIN_TOKEN", "web"), ("FLOWER_BASIC_AUTH", "flower"), ("USER_HASH_SECRET", "web")],
)
def test_a_secret_is_required_and_reaches_only_the_service_that_uses_it(
    name: str, service: str
) -> None:
    assert [other for other in OURS if name in SERVICES[other]["environment"]] == [service]
    assert SERVICES[service]["environment"][name].startswith(f"${{{name}:?")


def test_the_example_of_secrets_lists_the_required_ones_without_values() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    example = dict(line.split("=") for line in lines if line and not line.startswith("#"))
    assert set(example) == MUST_SET.keys() | {"RABBITMQ_PASSWORD"}
    assert set(example.values()) == {""}
    ignored = subprocess.run(["git", "check-ignore", ".env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_the_web_trusts_the_one_proxy_in_front_of_it() -> None:
    assert read(environment_of("web")).trusted_proxies == 1
    assert "ports" not in SERVICES["web"]


def test_the_web_listens_on_every_address_of_its_container() -> None:
    assert read(environment_of("web")).host == "0.0.0.0"


def test_mongo_starts_the_replica_set_that_clients_connect_to() -> None:
    asked = parse_uri(MONGODB_URL)
    [(host, port)] = asked["nodelist"]
    name = asked["options"]["replicaSet"]
    assert words_of("mongo")[words_of("mongo").index("--replSet") + 1] == name
    script = SERVICES["mongo"]["healthcheck"]["test"][-1]
    assert f'{{_id: "{name}", members: [{{_id: 0, host: "{host}:{port}"}}]}}' in script


# Commands and health checks, run unchanged.


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis that runs with the command of the compose file."""
    home = tmp_path_factory.mktemp("broker")
    port = str(free_ports(1)[0])
    arguments = SERVICES["redis"]["command"][1:]
    place = ["--port", port, "--bind", "127.0.0.1", "--dir", str(home)]
    with running(redis_server(), *arguments, *place, log=home / "log"):
        url = f"redis://127.0.0.1:{port}/0"
        wait_until(lambda: redis_answers(url))
        yield url


class Service:
    """A service of the compose file, with ports and addresses on this machine."""

    def __init__(self, name: str, broker: str, home: Path) -> None:
        port = str(free_ports(1)[0])
        self.command = [word.replace("/tmp", str(home)) for word in words_of(name)]
        self.log = home / "log"
        self.check = [
            port if word in ("8000", "5555") else word
            for word in SERVICES[name]["healthcheck"]["test"][1:]
        ]
        self.environment = environment_of(name) | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "REDIS_URL": broker,
            "MONGODB_URL": "mongodb://127.0.0.1:1/eventstream",
            "DATA_DIR": str(home),
            "HOST": "127.0.0.1",
            "PORT": port,
            "FLOWER_PORT": port,
        }

    def is_healthy(self) -> bool:
        check = subprocess.run(
            self.check, env=self.environment, capture_output=True, timeout=10, check=False
        )
        return check.returncode == 0

    def wait_until_healthy(self) -> None:
        # Each check is a process that slows down the service that is starting.
        wait_until(self.is_healthy, every=0.7)


@pytest.mark.proof
@pytest.mark.parametrize("name", OURS)
def test_a_health_check_passes_only_while_its_service_runs(
    name: str, broker: str, tmp_path: Path
) -> None:
    service = Service(name, broker, tmp_path)
    with running(*service.command, log=service.log, **service.environment):
        service.wait_until_healthy()
    wait_until(lambda: not service.is_healthy(), 5)


@pytest.mark.proof
def test_flower_shows_nothing_without_its_password(broker: str, tmp_path: Path) -> None:
    service = Service("flower", broker, tmp_path)
    url = f"http://127.0.0.1:{service.environment['FLOWER_PORT']}"
    user, password = service.environment["FLOWER_BASIC_AUTH"].split(":")
    with running(*service.command, log=service.log, **service.environment):
        service.wait_until_healthy()
        for path in ("/", "/workers", "/broker", "/api/workers"):
            assert httpx.get(f"{url}{path}").status_code == 401
            assert httpx.get(f"{url}{path}", auth=(user, "wrong")).status_code == 401
        assert httpx.get(f"{url}/broker", auth=(user, password)).status_code == 200


@pytest.mark.proof
def test_a_worker_that_stopped_consuming_is_unhealthy_even_if_connected(
    broker: str, tmp_path: Path
) -> None:
    service = Service("worker-ad-click", broker, tmp_path)
    service.check = [word.replace("< 90", "< 2") for word in service.check]
    with running(*service.command, log=service.log, **service.environment) as worker:
        service.wait_until_healthy()
        worker.send_signal(signal.SIGSTOP)
        wait_until(lambda: not service.is_healthy(), 10)
        with Redis.from_url(broker) as client:
            assert "brpop" in {connection["cmd"] for connection in client.client_list()}


@pytest.mark.parametrize("service", [name for name in OURS if name != "flower"])
def test_every_command_belongs_to_a_runtime_dependency(service: str) -> None:
    needed = [Requirement(line) for line in metadata.requires("eventstream") or []]
    runtime = {requirement.name.lower() for requirement in needed if not requirement.marker}
    [script] = metadata.entry_points(group="console_scripts", name=words_of(service)[0])
    assert script.dist
    assert script.dist.name.lower() in runtime


def test_flower_knows_every_option_that_it_gets() -> None:
    # It silently ignores options that it does not know.
    words = words_of("flower")
    given = [
        word.removeprefix("--").split("=")[0] for word in words[words.index("app.web.flower") + 1 :]
    ]
    assert given
    assert [name for name in given if name not in flower_options] == []


def test_redis_keeps_what_it_accepted_and_refuses_what_does_not_fit(broker: str) -> None:
    with Redis.from_url(broker, decode_responses=True) as client:
        config: Any = client.config_get("*")
    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "everysec"
    assert config["save"] == ""
    assert config["maxmemory-policy"] == "noeviction"
    assert int(config["maxmemory"]) > 0


# RabbitMQ.


def test_with_rabbitmq_every_process_uses_it_and_waits_for_it() -> None:
    services = WITH_RABBIT["services"]
    [added] = services.keys() - SERVICES.keys()
    assert added == "rabbitmq"
    assert services.keys() - {added} == set(OURS)
    for name in OURS:
        url = re.sub(r"\$\{.*\}", "secret", services[name]["environment"]["BROKER_URL"])
        assert is_rabbit(read({"BROKER_URL": url}).broker_url)
        assert f"@{added}:5672" in url
        assert services[name]["depends_on"] == {added: {"condition": "service_healthy"}}
    [volume] = services[added]["volumes"]
    assert [volume.split(":")[0]] == [*WITH_RABBIT["volumes"]]
    assert services[added]["restart"] == "unless-stopped"
    assert services[added]["environment"]["RABBITMQ_DEFAULT_USER"] == urlsplit(url).username


@pytest.mark.proof
@needs_rabbit
def test_with_rabbitmq_a_worker_is_healthy_while_its_queue_has_a_consumer(
    rabbit: RabbitServer, broker: str, tmp_path: Path
) -> None:
    service = Service("worker-ad-click", broker, tmp_path)
    service.environment["BROKER_URL"] = rabbit.url
    check = WITH_RABBIT["services"]["worker-ad-click"]["healthcheck"]["test"][1:]
    service.check = [*check[:-1], "watched"]
    with Connection(rabbit.url) as connection, connection.channel() as channel:
        queue = Queue("watched")(channel)
        queue.declare()
        assert not service.is_healthy()
        with Consumer(channel, [queue], on_message=print):
            assert service.is_healthy()
        wait_until(lambda: not service.is_healthy())
        queue.delete()


@pytest.mark.proof
@needs_rabbit
@pytest.mark.parametrize("name", ["worker-ad-click", "beat"])
def test_with_rabbitmq_a_health_check_passes_only_while_its_service_runs(
    name: str, broker: str, rabbit: RabbitServer, tmp_path: Path
) -> None:
    service = Service(name, broker, tmp_path)
    service.environment["BROKER_URL"] = rabbit.url
    service.check = WITH_RABBIT["services"][name]["healthcheck"]["test"][1:]
    assert not service.is_healthy()
    with running(*service.command, log=service.log, **service.environment):
        service.wait_until_healthy()
    wait_until(lambda: not service.is_healthy(), 10)


def test_with_rabbitmq_each_workers_health_check_checks_its_own_queue() -> None:
    for name in WORKERS:
        asked = WITH_RABBIT["services"][name]["healthcheck"]["test"][-1]
        assert asked == words_of(name)[words_of(name).index("--queues") + 1]


# The image.


def test_every_instruction_in_the_dockerfile_is_valid() -> None:
    known = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}
    assert INSTRUCTIONS[0][0] == "FROM"
    assert {name for name, _ in INSTRUCTIONS} <= known


def test_the_image_has_a_supported_python() -> None:
    [base] = of_dockerfile("FROM")
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", base)
    assert version
    assert version[1] in SpecifierSet(PROJECT["options"]["python_requires"])


def test_the_image_copies_files_that_exist_and_are_not_ignored() -> None:
    sources = [path for copy in of_dockerfile("COPY") for path in copy.split()[:-1]]
    assert [path for path in sources if not (ROOT / path).exists()] == []
    assert [path for path in sources if any(fnmatch(path, ignored) for ignored in IGNORED)] == []


def test_the_image_contains_every_installed_module() -> None:
    copied = {path for copy in of_dockerfile("COPY") for path in copy.split()[:-1]}
    modules = PROJECT["options"]["py_modules"].split(", ")
    packages = PROJECT["options.packages.find"]["include"].replace("*", "").split()
    assert {f"{module}.py" for module in modules} | set(packages) <= copied


def locked(file: str) -> dict[str, str]:
    """The contents of a lock file: versions with hashes, by requirement name and marker."""
    entries = re.split(r"\n(?! )", (ROOT / file).read_text().strip())
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    requirements = [Requirement(entry.split("\\")[0]) for entry in entries]
    return {f"{one.name} {one.marker}": str(one.specifier) for one in requirements}


def test_the_lock_files_agree_and_contain_every_requirement() -> None:
    image, run, checkout = (locked(f"requirements/{name}.lock") for name in ("image", "run", "dev"))
    assert image.items() | run.items() <= checkout.items()
    extras = PROJECT["options.extras_require"]
    needed = PROJECT["options"]["install_requires"] + extras["build"]
    for lock, asked in (
        (image, needed + extras["kafka"]),
        (run, needed + extras["embedded"]),
        (checkout, needed + "".join(extras.values())),
    ):
        versions = {key.split()[0]: version.removeprefix("==") for key, version in lock.items()}
        for requirement in map(Requirement, asked.strip().splitlines()):
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            assert requirement.specifier.contains(versions[name], prereleases=True)


def test_the_image_installs_and_builds_with_the_locked_dependencies() -> None:
    installs = [run for run in of_dockerfile("RUN") if run.startswith("pip install")]
    assert [" ".join(install.split()[3:]) for install in installs] == [
        "--require-hashes --requirement requirements/image.lock",
        "--no-deps --no-build-isolation .",
    ]


def test_the_image_runs_as_its_own_user() -> None:
    [user] = of_dockerfile("USER")
    assert user != "root"
    assert any(
        run.startswith("useradd ") and run.endswith(f" {user}") for run in of_dockerfile("RUN")
    )


def test_the_image_runs_the_web_by_itself() -> None:
    [command] = of_dockerfile("CMD")
    assert json.loads(command) == words_of("web")
    assert "HOST=0.0.0.0" in of_dockerfile("ENV")[0].split()
