import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from app.settings import Settings
from tests.support.collector import Stack, start_stack
from tests.support.kafka import Kafka
from tests.support.waiting import running, wait_until

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMANDS = [
    line
    for file in [*FILES, *PAGES]
    for block in re.findall(r"```sh\n(.*?)```", file.read_text(), re.DOTALL)
    for line in block.splitlines()
]


def commands(program: str) -> list[str]:
    """The command lines in the docs that run this program."""
    found = [line for line in COMMANDS if program in shlex.split(line)]
    assert found
    return found


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with start_stack(tmp_path_factory.mktemp("readme"), ARCHIVE="true") as stack:
        yield stack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run one after another; some use files that earlier ones wrote."""
    return tmp_path_factory.mktemp("folder")


def test_every_command_in_the_docs_is_tested_here() -> None:
    known = {"make", "curl", "eventstream", "docker", "kubectl", "cp"}
    assert [line for line in COMMANDS if not known & set(shlex.split(line))] == []


def run(line: str, collector: Stack, folder: Path) -> str:
    """The output of a command line from the docs, run against the collector."""
    if line.startswith("curl") and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    return subprocess.run(
        ["bash", "-ec", line.replace("localhost:8000", collector.url)],
        cwd=folder,
        env=collector.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_the_answers_shown_are_the_real_ones(collector: Stack, folder: Path) -> None:
    shown = re.findall(r"```sh\n(curl .*)\n```\n\n```json\n(.*)\n```", README)
    assert len(shown) == 2
    for line, answer in shown:
        assert run(line, collector, folder) == answer
        run("eventstream drain", collector, folder)


ENDLESS = commands("consume")


@pytest.mark.parametrize(
    "line", [line for line in commands("curl") + commands("eventstream") if line not in ENDLESS]
)
def test_a_command_in_the_docs_runs(collector: Stack, folder: Path, line: str) -> None:
    assert '"error"' not in run(line, collector, folder)


def test_the_consumer_in_the_docs_counts_until_it_is_stopped(
    collector: Stack, folder: Path, kafka: Kafka
) -> None:
    [line] = ENDLESS
    kafka.send("ad-events", b'{"Type":"PageView","Url":"kafka.example/a"}')
    with running(
        *shlex.split(line.replace("localhost:9092", kafka.brokers)),
        log=folder / "consumer.log",
        **collector.environment
        | {"REDIS_URL": ""},  # use the collector's Redis, not that of other tests
    ) as process:
        counted = {"website": "kafka.example", "page": "/a", "views": 1}
        wait_until(lambda: collector.items("page-views?website=kafka.example") == [counted])
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize("line", commands("make"))
def test_a_make_target_in_the_docs_exists(line: str) -> None:
    planned = subprocess.run(
        ["make", "--dry-run", "--always-make", *shlex.split(line)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = {"run": "eventstream up", "test": "pytest"}[line.split()[1]]
    assert expected in planned


@pytest.mark.parametrize("line", [line for line in commands("docker") if "compose" in line])
def test_a_compose_command_in_the_docs_names_existing_services(line: str) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    scaled = re.findall(r"--scale (\S+)=\d+", line)
    assert scaled
    assert set(scaled) <= set(services)


def test_kubernetes_runs_the_image_that_the_docs_push(tmp_path: Path) -> None:
    built, pushed = (line for line in commands("docker") if "compose" not in line)
    image = built.split()[-2]
    assert built == f"docker build --tag {image} ."
    assert pushed == f"docker push {image}"
    assert (ROOT / "Dockerfile").exists()
    assert f"image: {image}\n" in kustomized(tmp_path)


def kustomized(tmp_path: Path) -> str:
    """The manifests that the command in the docs applies, after the docs' `cp` has run."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    shutil.copy(ROOT / ".env.example", tmp_path)
    for line in commands("cp"):
        subprocess.run(["bash", "-ec", line], cwd=tmp_path, check=True)
    [line] = [line for line in commands("kubectl") if " apply " in line]
    *_, option, folder = shlex.split(line)
    assert option == "--kustomize"
    kubectl = Path(sys.executable).parent / "kubectl"
    return subprocess.run(
        [kubectl, "kustomize", folder], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout


def test_flower_can_be_reached_on_kubernetes_as_the_docs_say(tmp_path: Path) -> None:
    [line] = [line for line in commands("kubectl") if " apply " not in line]
    shown = re.fullmatch(r"kubectl --namespace=(\S+) port-forward service/(\S+) (\d+)", line)
    assert shown
    services = [m for m in yaml.safe_load_all(kustomized(tmp_path)) if m["kind"] == "Service"]
    [service] = [m for m in services if m["metadata"]["name"] == shown[2]]
    assert service["metadata"]["namespace"] == shown[1]
    assert [port["port"] for port in service["spec"]["ports"]] == [int(shown[3])]


def test_every_setting_is_listed() -> None:
    listed = set(re.findall(r"`([A-Z_]+)`", (ROOT / "docs" / "settings.md").read_text()))
    assert {field.name.upper() for field in fields(Settings)} <= listed


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_link_in_a_file_outside_the_docs_is_broken(file: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", file.read_text())
    assert links
    for path, anchor in links:
        target = ROOT / path
        assert target.exists()
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings]


def test_the_docs_build_without_warnings(tmp_path: Path) -> None:
    options = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "--doctree-dir", tmp_path, "docs", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "Glossary" in (tmp_path / "architecture.html").read_text()
