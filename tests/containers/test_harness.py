"""The parts of `make test-containers` that can be tested without running it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.containers.harness import ROOT, STAND_INS, images


def test_every_image_that_the_project_names_has_a_stand_in() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)", (ROOT / STAND_INS).read_text(), re.MULTILINE)
    assert images()
    assert set(images().values()) == set(stages) - {"debian"}


def test_every_alert_is_tested_to_fire_and_to_stay_silent_when_all_is_well() -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    tried = yaml.safe_load(Path(__file__).with_name("alerts.yml").read_text())["tests"]
    well, *others = [each["alert_rule_test"] for each in tried]
    assert {test["alertname"] for test in well if "exp_alerts" not in test} == alerts
    assert {
        test["alertname"] for tests in others for test in tests if "exp_alerts" in test
    } == alerts


@pytest.mark.parametrize(("option", "code"), [("--seed=1", 0), ("--required", 1)])
def test_the_harness_says_why_it_cannot_run_and_fails_only_if_it_is_required(
    option: str, code: int
) -> None:
    command = [sys.executable, "-m", "tests.containers.harness", option]
    without_tools = {"PATH": "/nonexistent"}
    done = subprocess.run(
        command, cwd=ROOT, env=without_tools, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert "slirp4netns is not installed" in done.stdout
