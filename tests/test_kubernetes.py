"""deploy/k8s, as far as it can be tested without a cluster."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from app.errors import SettingsError
from app.ingest.publisher import producer
from app.journal.batches import TAKEN_AT_ONCE, Batch
from app.journal.journal import Journal
from app.local.processes import free_ports
from app.settings import Settings, read
from app.web.application import create_app
from celeryconfig import task_queues, task_time_limit
from tests.support.servers import Server
from tests.test_deployment import OURS, SERVICES, SETTINGS, WORKERS, of_dockerfile

ROOT = Path(__file__).parents[1]
KUBECTL = Path(sys.executable).parent / "kubectl"
SPEAKS = ROOT / "deploy/k8s/base/probes/speaks.py"
COMPONENT = "app.kubernetes.io/component"
OLDEST, NEWEST = "1.30", "1.37"
"""The first Kubernetes with preStop.sleep, and the latest whose schemas are available here."""
OPTIONAL = {"CLICK_SECRET", "WRITE_KEYS", "READ_KEYS", "SHARE_SECRET"}
OPTIONAL |= {"SPIKE_WEBHOOK", "SPIKE_WEBHOOK_SECRET"}
OPTIONAL |= {"STATEMENT_WEBHOOK", "STATEMENT_EMAIL", "SMTP_URL"}

Manifest = dict[str, Any]


def built(folder: Path, to: Path) -> list[Manifest]:
    """The output of kustomize for a folder of deploy/k8s, with the secrets of the example."""
    shutil.copytree(ROOT / "deploy", to, dirs_exist_ok=True)
    for example in to.rglob("secret.env.example"):
        shutil.copy(example, example.with_suffix(""))
    done = subprocess.run(
        [KUBECTL, "kustomize", to / "k8s" / folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return built(Path("overlays/production"), tmp_path_factory.mktemp("k8s"))


def of_kind(manifests: list[Manifest], *kinds: str) -> dict[str, Manifest]:
    found = {m["metadata"]["name"]: m for m in manifests if m["kind"] in kinds}
    assert found
    return found


@pytest.fixture(scope="module")
def pods(production: list[Manifest]) -> dict[str, Manifest]:
    """Each pod template, by the name of the deployment or stateful set that owns it."""
    kept = of_kind(production, "Deployment", "StatefulSet")
    return {name: manifest["spec"]["template"] for name, manifest in kept.items()}


@pytest.fixture(scope="module")
def containers(pods: dict[str, Manifest]) -> dict[str, Manifest]:
    return {name: container(pod) for name, pod in pods.items()}


def container(pod: Manifest) -> Manifest:
    [only] = pod["spec"]["containers"]
    assert "initContainers" not in pod["spec"]
    found: Manifest = only
    return found


def labels_of(pod: Manifest) -> dict[str, str]:
    found: dict[str, str] = pod["metadata"]["labels"]
    return found


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector matches these labels; of the operators it supports only `In`."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def values_of(manifests: list[Manifest], kind: str, name: str) -> dict[str, str]:
    """The contents of a ConfigMap or Secret from kustomize, whatever hash its name ends in."""
    [found] = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    data: dict[str, str] = found.get("data", {})
    return data


def secrets_of(container: Manifest) -> dict[str, Manifest]:
    return {
        variable["name"]: variable["valueFrom"]["secretKeyRef"]
        for variable in container.get("env", [])
        if "secretKeyRef" in variable["valueFrom"]
    }


# Schemas.


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_manifest_follows_its_schema_without_extra_fields(
    production: list[Manifest], version: str
) -> None:
    # This import takes a second, and every test process reads this file.
    from cloudcoil.models.keda.v1alpha1 import ScaledObject  # noqa: PLC0415

    for manifest in production:
        if manifest["kind"] == "ScaledObject":
            ScaledObject.model_validate(manifest, extra="forbid")
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_everything_except_the_namespace_itself_is_in_the_namespace(
    production: list[Manifest],
) -> None:
    assert {m["metadata"].get("namespace") for m in production if m["kind"] != "Namespace"} == {
        "eventstream"
    }
    assert set(of_kind(production, "Namespace")) == {"eventstream"}


# Pods.


def test_the_pods_are_the_services_of_the_compose_file_except_the_database(
    pods: dict[str, Manifest],
) -> None:
    assert set(pods) == set(SERVICES) - {"mongo"}


def test_every_command_is_the_same_as_in_the_compose_file(
    pods: dict[str, Manifest], containers: dict[str, Manifest]
) -> None:
    for name, of in containers.items():
        queue = labels_of(pods[name]).get("queue", "")
        command = [word.replace("$(QUEUE)", queue) for word in of["command"]]
        composed = SERVICES[name]["command"]
        assert command == (shlex.split(composed) if isinstance(composed, str) else composed)


def test_the_image_is_the_same_as_in_the_compose_file(tmp_path: Path) -> None:
    base = of_kind(built(Path("base"), tmp_path), "Deployment", "StatefulSet")
    images = {name: container(m["spec"]["template"])["image"] for name, m in base.items()}
    assert images == {name: SERVICES[name]["image"] for name in images}


def test_production_uses_one_tagged_image_from_a_registry(
    containers: dict[str, Manifest],
) -> None:
    [image] = {containers[name]["image"] for name in OURS}
    assert re.fullmatch(r"[\w.]+/eventstream:\w+", image)


def test_every_queue_has_a_worker_a_scaler_and_a_disruption_budget(
    production: list[Manifest], pods: dict[str, Manifest]
) -> None:
    workers = {labels_of(pod)["queue"]: name for name, pod in pods.items() if name in WORKERS}
    assert set(workers) == {queue.name for queue in task_queues}
    scaled = [m["spec"] for m in of_kind(production, "ScaledObject").values()]
    assert sorted(spec["scaleTargetRef"]["name"] for spec in scaled) == sorted(workers.values())
    budgets = of_kind(production, "PodDisruptionBudget")
    assert set(workers.values()) | {"web", "nginx"} == set(budgets)
    assert {budget["spec"]["maxUnavailable"] for budget in budgets.values()} == {1}


def test_the_scaler_decides_the_number_of_workers(production: list[Manifest]) -> None:
    deployments = of_kind(production, "Deployment")
    assert {name for name, m in deployments.items() if "replicas" not in m["spec"]} == set(WORKERS)
    for scaled in of_kind(production, "ScaledObject").values():
        assert 1 <= scaled["spec"]["minReplicaCount"] < scaled["spec"]["maxReplicaCount"]


def test_there_is_never_deliberately_more_than_one_beat(production: list[Manifest]) -> None:
    spec = of_kind(production, "Deployment")["beat"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_no_pod_runs_as_root_writes_to_its_image_or_can_access_the_cluster_api(
    pods: dict[str, Manifest], containers: dict[str, Manifest]
) -> None:
    [user] = [run for run in of_dockerfile("RUN") if run.startswith("useradd ")]
    for name, pod in pods.items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert containers[name]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        if name in OURS:
            assert f"--uid {spec['securityContext']['runAsUser']} " in user


def test_pods_except_redis_have_only_temporary_writable_volumes(
    pods: dict[str, Manifest], containers: dict[str, Manifest]
) -> None:
    for name, pod in pods.items():
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        mounts = {m["name"]: m["mountPath"] for m in containers[name]["volumeMounts"]}
        if name == "redis":
            assert mounts == {"data": "/data"}
            assert containers[name]["workingDir"] == "/data"
            continue
        assert set(volumes) == set(mounts)
        assert "emptyDir" in volumes["tmp"]
        assert mounts["tmp"] == "/tmp"
        assert set(mounts) <= {"tmp", "probes", "nginx"}


def test_every_pod_has_probes_and_resource_limits(containers: dict[str, Manifest]) -> None:
    for of in containers.values():
        assert {"startupProbe", "livenessProbe"} <= set(of)
        assert set(of["resources"]["limits"]) == set(of["resources"]["requests"])
        assert set(of["resources"]["limits"]) == {"cpu", "memory"}


def test_a_worker_may_finish_a_task_before_it_is_killed(pods: dict[str, Manifest]) -> None:
    for name in WORKERS:
        assert pods[name]["spec"]["terminationGracePeriodSeconds"] > task_time_limit


# Probes.


def test_only_a_web_pod_that_is_starting_depends_on_ready_stores(
    containers: dict[str, Manifest], settings: Settings
) -> None:
    web = containers["web"]
    paths = {name: web[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness")}
    assert paths == {"startup": "/ready", "readiness": "/health"}
    assert web["livenessProbe"]["httpGet"]["path"] == "/health"
    routes = {rule.rule for rule in create_app(settings).url_map.iter_rules()}
    assert set(paths.values()) <= routes
    # A start may wait this long for an unavailable store before the pod is restarted.
    assert web["startupProbe"]["periodSeconds"] * web["startupProbe"]["failureThreshold"] >= 3600


def test_flower_has_the_same_health_check_as_in_the_compose_file(
    containers: dict[str, Manifest],
) -> None:
    probes = {of["httpGet"]["path"] for name, of in containers["flower"].items() if "Probe" in name}
    assert probes == {SERVICES["flower"]["healthcheck"]["test"][-1]}


def test_the_probe_script_of_workers_and_beat_is_mounted(
    production: list[Manifest], pods: dict[str, Manifest], containers: dict[str, Manifest]
) -> None:
    for name in (*WORKERS, "beat"):
        command = SERVICES[name]["healthcheck"]["test"][-1]
        for probe in ("startupProbe", "livenessProbe"):
            assert containers[name][probe]["exec"]["command"] == [
                *("python", "/probes/speaks.py", command)
            ]
        [source] = [
            v["configMap"]["name"] for v in pods[name]["spec"]["volumes"] if "configMap" in v
        ]
        [mount] = [m for m in containers[name]["volumeMounts"] if m["name"] == "probes"]
        assert mount["mountPath"] == "/probes"
        assert values_of(production, "ConfigMap", source)["speaks.py"] == SPEAKS.read_text()


def speaks(url: str, command: str) -> bool:
    """Whether the probe passes in a pod whose broker is at this URL."""
    environment = os.environ | {"REDIS_URL": url, "BROKER_URL": ""}
    probe = subprocess.run(
        [sys.executable, SPEAKS, command], env=environment, timeout=20, check=False
    )
    return probe.returncode == 0


def test_only_a_pod_that_recently_asked_for_a_message_is_alive(
    redis: Server,
) -> None:
    with Redis.from_url(redis.url) as worker:
        # Connections left by other tests would look as if they were asking.
        worker.client_kill_filter(_type="normal", skipme=True)
        assert worker.brpop(["a-queue-with-nothing"], 0.05) is None
        assert speaks(redis.url, "brpop")
        worker.ping()
        assert not speaks(redis.url, "brpop")


def test_no_pod_is_restarted_because_the_broker_is_unavailable() -> None:
    assert speaks(f"redis://127.0.0.1:{free_ports(1)[0]}/0", "brpop")


def test_a_worker_counts_as_alive_for_as_long_as_a_task_may_take() -> None:
    limit = re.search(r"LIMIT_SECONDS = (\d+)", SPEAKS.read_text())
    assert limit
    assert int(limit[1]) > task_time_limit


# Settings and secrets.


def environment_of(production: list[Manifest], container: Manifest) -> dict[str, str]:
    """The variables of a container, with the secrets of the example."""
    example = (ROOT / "deploy/k8s/overlays/production/secret.env.example").read_text()
    secrets = dict(line.split("=", 1) for line in example.splitlines())
    [source] = container["envFrom"]
    found = values_of(production, "ConfigMap", source["configMapRef"]["name"])
    return found | {name: secrets[name] for name in secrets_of(container) if name in secrets}


def test_every_process_gets_only_valid_settings(
    production: list[Manifest], containers: dict[str, Manifest]
) -> None:
    for name in OURS:
        environment = environment_of(production, containers[name])
        assert set(environment) <= SETTINGS
        read(environment)
        assert environment["BROKER_URL"] == ""
        own = {v["name"] for v in containers[name].get("env", [])} - SETTINGS
        assert own == ({"QUEUE"} if name in WORKERS else set())


def test_the_web_trusts_the_ingress_and_nginx(
    production: list[Manifest], containers: dict[str, Manifest]
) -> None:
    environment = environment_of(production, containers["web"])
    assert environment["TRUSTED_PROXIES"] == "2"


def test_nginx_has_the_same_configuration_as_in_compose_except_for_its_upstream(
    production: list[Manifest], pods: dict[str, Manifest], containers: dict[str, Manifest]
) -> None:
    [source] = [
        v["configMap"]["name"] for v in pods["nginx"]["spec"]["volumes"] if "configMap" in v
    ]
    found = values_of(production, "ConfigMap", source)
    assert set(found) == {"nginx.conf", "upstream.conf"}
    assert found["nginx.conf"] == (ROOT / "deploy/nginx/nginx.conf").read_text()
    [port] = of_kind(production, "Service")["web"]["spec"]["ports"]
    assert f"server web:{port['port']};" in found["upstream.conf"]
    assert {"name": "nginx", "mountPath": "/etc/nginx"} in containers["nginx"]["volumeMounts"]


def test_a_service_named_like_a_setting_does_not_change_the_setting(
    pods: dict[str, Manifest],
) -> None:
    with pytest.raises(SettingsError, match="FLOWER_PORT"):
        read({"FLOWER_PORT": "tcp://10.0.0.1:5555"})
    assert {pod["spec"]["enableServiceLinks"] for pod in pods.values()} == {False}


def test_secrets_come_from_one_secret_and_reach_the_same_services_as_in_compose(
    production: list[Manifest], containers: dict[str, Manifest]
) -> None:
    [secret] = of_kind(production, "Secret")
    required = set(of_kind(production, "Secret")[secret]["data"])
    asked = set()
    for name in OURS:
        for variable, reference in secrets_of(containers[name]).items():
            assert (reference["name"], reference["key"]) == (secret, variable)
            assert reference.get("optional", False) == (variable in OPTIONAL)
            assert variable in SERVICES[name]["environment"]
            asked.add(variable)
    assert asked == required | OPTIONAL
    for variable in asked - {"MONGODB_URL"}:
        users = [name for name in OURS if variable in SERVICES[name]["environment"]]
        assert [name for name in OURS if variable in secrets_of(containers[name])] == users


def test_redis_has_the_address_in_the_settings(
    production: list[Manifest], containers: dict[str, Manifest]
) -> None:
    service = of_kind(production, "Service")["redis"]
    url = environment_of(production, containers["web"])["REDIS_URL"]
    assert url == f"redis://redis:{service['spec']['ports'][0]['port']}/0"


# Selectors, services and network policies.


def test_every_selector_matches_exactly_the_right_pods(
    production: list[Manifest], pods: dict[str, Manifest]
) -> None:
    def found(selector: Manifest) -> list[str]:
        return [name for name, pod in pods.items() if matches(selector, labels_of(pod))]

    for name, kept in of_kind(production, "Deployment", "StatefulSet").items():
        assert found(kept["spec"]["selector"]) == [name]
    for name, service in of_kind(production, "Service").items():
        assert found({"matchLabels": service["spec"]["selector"]}) == [name]
    for name, budget in of_kind(production, "PodDisruptionBudget").items():
        assert found(budget["spec"]["selector"]) == [name]
    for policy in of_kind(production, "NetworkPolicy").values():
        assert found(policy["spec"]["podSelector"])


def test_every_service_leads_to_the_port_of_its_process(
    production: list[Manifest], containers: dict[str, Manifest]
) -> None:
    defaults = read({})
    listening = {"web": defaults.port, "flower": defaults.flower_port, "redis": 6379}
    listening["nginx"] = int(SERVICES["nginx"]["ports"][0].rpartition(":")[2])
    services = of_kind(production, "Service")
    assert set(services) == set(listening)
    for name, service in services.items():
        [port], [target] = service["spec"]["ports"], containers[name]["ports"]
        assert (port["targetPort"], port["port"]) == (target["name"], target["containerPort"])
        assert target["containerPort"] == listening[name]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert (
                containers[name][probe].get("httpGet", target | {"port": "http"})["port"] == "http"
            )


def test_the_ingress_leads_to_nginx_alone(production: list[Manifest]) -> None:
    [ingress] = of_kind(production, "Ingress").values()
    [rule] = ingress["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["backend"] == {"service": {"name": "nginx", "port": {"name": "http"}}}
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]


def peers(rules: list[Manifest], direction: str, labels: dict[str, str], port: int) -> bool:
    """Whether a rule of a policy allows pods with these labels in the same namespace."""
    return any(
        port in {each["port"] for each in rule["ports"]}
        and any(
            "podSelector" in peer and matches(peer["podSelector"], labels)
            for peer in rule.get(direction, [])
        )
        for rule in rules
    )


def test_pods_reach_only_redis_and_nginx_reaches_only_the_web(
    production: list[Manifest], pods: dict[str, Manifest]
) -> None:
    policies = [m["spec"] for m in of_kind(production, "NetworkPolicy").values()]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies

    def may(source: str, target: str, port: int) -> bool:
        here, there = labels_of(pods[source]), labels_of(pods[target])
        return any(
            matches(policy["podSelector"], here)
            and peers(policy.get("egress", []), "to", there, port)
            for policy in policies
        ) and any(
            matches(policy["podSelector"], there)
            and peers(policy.get("ingress", []), "from", here, port)
            for policy in policies
        )

    ports = (8000, 8080, 5555, 6379)
    reached = {(a, b, port) for a in pods for b in pods for port in ports if may(a, b, port)}
    assert reached == {(name, "redis", 6379) for name in OURS} | {("nginx", "web", 8000)}


def test_only_the_maintenance_worker_reaches_the_internet_and_no_private_networks(
    production: list[Manifest], pods: dict[str, Manifest]
) -> None:
    policies = of_kind(production, "NetworkPolicy")
    open_to = {
        name: {
            rule["ports"][0]["port"]
            for policy in policies.values()
            if matches(policy["spec"]["podSelector"], labels_of(pod))
            for rule in policy["spec"].get("egress", [])
            if "to" not in rule or any("ipBlock" in peer for peer in rule["to"])
        }
        for name, pod in pods.items()
    }
    database = {name: {27017} for name in ("web", *WORKERS)}
    assert open_to == {key: set() for key in pods} | database | {"worker-maintenance": {27017, 80}}
    blocks = [peer["ipBlock"] for peer in policies["to-webhook"]["spec"]["egress"][0]["to"]]
    assert all(block["except"] for block in blocks)


def test_from_other_namespaces_only_the_ingress_and_readers_of_metrics_reach_pods(
    production: list[Manifest], pods: dict[str, Manifest]
) -> None:
    reached: dict[str, set[str]] = {}
    for policy in of_kind(production, "NetworkPolicy").values():
        for rule in policy["spec"].get("ingress", []):
            for peer in rule["from"]:
                if "namespaceSelector" not in peer:
                    continue
                selector = peer["namespaceSelector"]
                names = set(selector.get("matchLabels", {}).values()).union(
                    *(each["values"] for each in selector.get("matchExpressions", []))
                )
                for name, pod in pods.items():
                    if matches(policy["spec"]["podSelector"], labels_of(pod)):
                        reached.setdefault(name, set()).update(names)
    assert reached == {
        "nginx": {"traefik"},
        "web": {"keda", "monitoring"},
        "redis": {"keda"},
    }


# Scaling. KEDA documents the fields of the triggers under `metrics-api` and `redis`.


@pytest.fixture
def triggers(production: list[Manifest]) -> dict[str, Manifest]:
    """The one trigger of each scaled worker."""
    found = {}
    for name, scaled in of_kind(production, "ScaledObject").items():
        [found[name]] = scaled["spec"]["triggers"]
    return found


def test_a_trigger_reads_the_number_of_batches_waiting_in_its_queue(
    triggers: dict[str, Manifest], settings: Settings, journal: Journal, pods: dict[str, Manifest]
) -> None:
    client = create_app(settings).test_client()
    waiting = {"page_view": 3, "ad_impression": 2, "ad_click": 1}
    for queue, number in waiting.items():
        journal.write([Batch(f"{queue} {n}", queue, b"[]") for n in range(number)])
    by_queue = {}
    for name in WORKERS:
        metadata = triggers[name]["metadata"]
        if triggers[name]["type"] != "metrics-api":
            continue
        assert set(metadata) == {"url", "format", "valueLocation", "targetValue"}
        assert metadata["format"] == "prometheus"
        assert metadata["targetValue"] == str(TAKEN_AT_ONCE)
        service = "http://web.eventstream.svc.cluster.local:8000"
        assert metadata["url"].startswith(f"{service}/")
        scraped = client.get(metadata["url"].removeprefix(service))
        [asked] = text_string_to_metric_families(metadata["valueLocation"] + " 0\n")
        [value] = [
            sample.value
            for family in text_string_to_metric_families(scraped.text)
            for sample in family.samples
            if (sample.name, sample.labels) == (asked.samples[0].name, asked.samples[0].labels)
        ]
        by_queue[labels_of(pods[name])["queue"]] = value
    assert by_queue == waiting


@pytest.fixture
def messages(redis: Server, journal: Journal) -> Iterator[Redis]:
    """A Redis without waiting messages."""
    with Redis.from_url(redis.url) as client:
        yield client


def test_the_maintenance_trigger_reads_the_list_that_its_messages_wait_in(
    triggers: dict[str, Manifest], production: list[Manifest], messages: Redis
) -> None:
    trigger = triggers["worker-maintenance"]
    assert trigger["type"] == "redis"
    assert set(trigger["metadata"]) == {"address", "listName", "listLength"}
    port = of_kind(production, "Service")["redis"]["spec"]["ports"][0]["port"]
    assert trigger["metadata"]["address"] == f"redis.eventstream.svc.cluster.local:{port}"
    producer().send_task("tasks.sweep")
    assert messages.llen(trigger["metadata"]["listName"]) == 1
