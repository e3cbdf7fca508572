"""What the parts of a release are told, and what follows from which values."""

from __future__ import annotations

import fnmatch
import re
from base64 import b64decode
from typing import Any

import pytest
import yaml
from rendered_chart import CHART, VALUES, Chart, Rendered

from nanochat.spec.chatpipeline import TRAINING_OPERATOR
from nanochat.training.compiled_code import KEY, SHORTEST
from operators.config import Config
from operators.crd import crd

LOADED: dict[str, Any] = {"images": {"loaded": True}}
S3: dict[str, Any] = LOADED | {
    "profiles": {"default": {"root": "s3://b/nanochat", "region": "r", "secret": "k", "controllerSecret": "own"}}
}
SERVER = "nanochat-inference"


def test_the_definition_is_the_generated_one(chart: Chart) -> None:
    (found,) = chart.render(S3).of("CustomResourceDefinition")
    assert found["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert found["metadata"].pop("labels")["app.kubernetes.io/instance"] == "nanochat"
    assert found == crd()
    (gone,) = chart.render(S3, {"crds": {"keep": False}}).of("CustomResourceDefinition")
    assert "annotations" not in gone["metadata"]
    assert chart.render(S3, {"crds": {"install": False}}).of("CustomResourceDefinition") == []


def test_images(chart: Chart) -> None:
    rendered = chart.render(VALUES / "placed.yaml")
    found = {name.removeprefix("chats-"): pod["spec"]["containers"][0]["image"] for name, pod in rendered.pods()}
    operator = "registry.example.org/team/nanochat-operator@sha256:" + "0123456789abcdef" * 4
    assert found == {
        "controller": operator,
        "test": operator,
        "mlflow": "registry.example.org/team/mlflow:1.2.3",
        "store": "mirror.example.org/versity/versitygw:v1.8.1",
        "inference": "registry.example.org/team/server:1.2.3",
    }
    config = rendered.config("chats-controller")
    assert config["image"] == "other.example.org/trainer:latest"
    pods = {"imagePullPolicy": "Always", "imagePullSecrets": ["registry"]}
    tolerated = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert config["pools"] == {"cpu": {"pods": pods}, "gpu": {"pods": pods | {"tolerations": tolerated}}}
    assert chart.render(S3).config()["image"] == "nanochat-trainer:0.3.0"


@pytest.mark.parametrize(
    ("image", "pulled"),
    [
        ({"registry": "r.example.org"}, "r.example.org/nanochat-server"),
        ({"repository": "team/server"}, "team/server"),
        ({"repository": "server"}, ""),
    ],
)
def test_an_image_comes_from_a_registry(chart: Chart, image: dict[str, str], pulled: str) -> None:
    """Of its own, or of all; without one the two commands are told that make one, for the image that lacks it."""
    own = {name: {"image": {"registry": "registry.example.org"}} for name in ("trainer", "controller", "mlflow")}
    done = chart.template(S3, {"images": {}}, own, {"inference": {"image": image}})
    assert (done.returncode == 0) is bool(pulled)
    if pulled:
        assert f"image: {pulled}:" in done.stdout
    else:
        assert "no registry to pull server:" in done.stderr and "make push REGISTRY=" in done.stderr


def test_a_registry_is_all_that_is_needed(chart: Chart) -> None:
    """Storage inside on a volume that stays, MLflow in SQLite, and the keys where pipelines are run first."""
    rendered = chart.render({"images": {"registry": "registry.example.org/team"}}, namespace="nanochat")
    assert [item["metadata"]["name"] for item in rendered.of("Deployment")] == [
        "nanochat-controller", SERVER, "nanochat-mlflow", "nanochat-store",
    ]  # fmt: skip
    profile = rendered.config()["profiles"]["default"]
    assert (profile["root"], profile["endpoint"]) == ("s3://nanochat", "http://nanochat-store.nanochat.svc:7070")
    assert profile["tracking"] == "http://nanochat-mlflow.nanochat.svc:5000"
    keys = rendered.one("Secret", profile["secret"], "nanochat")["data"]
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} < set(keys)
    claim = rendered.one("PersistentVolumeClaim", "nanochat-store")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert claim["spec"]["resources"]["requests"]["storage"] == "100Gi"
    images = {container["image"] for _, pod in rendered.pods() for container in pod["spec"]["containers"]}
    ours = {*images, rendered.config()["image"]} - {"versity/versitygw:v1.8.0"}
    parts = ("trainer", "server", "operator", "mlflow")
    assert ours == {f"registry.example.org/team/nanochat-{part}:0.3.0" for part in parts}


@pytest.mark.parametrize(
    ("profiles", "enabled", "inside", "default"),
    [
        ({}, "auto", True, True),
        ({"default": {"root": "s3://b"}}, "auto", False, False),
        ({"team": {"root": "s3://b"}}, "auto", False, False),
        ({"team": {"root": "s3://b"}}, True, True, True),
        ({"default": {"root": "s3://b"}}, True, True, False),
    ],
)
def test_where_the_store_is_inside(
    chart: Chart, profiles: dict[str, Any], enabled: Any, inside: bool, default: bool
) -> None:
    values = {"profiles": profiles, "devStore": {"enabled": enabled}, "inference": {"enabled": False}}
    rendered = chart.render(LOADED, values)
    assert ("nanochat-store" in [item["metadata"]["name"] for item in rendered.of("Deployment")]) is inside
    found = rendered.config()["profiles"]
    assert (found.get("default", {}).get("root") == "s3://nanochat") is default
    assert set(found) == {*profiles, *(["default"] if default else [])}


def test_the_names_that_people_rely_on(chart: Chart) -> None:
    rendered = chart.render(S3)
    deployment = rendered.one("Deployment", "nanochat-controller")
    assert deployment["spec"]["selector"]["matchLabels"] == {
        "app.kubernetes.io/name": "nanochat",
        "app.kubernetes.io/instance": "nanochat",
        "app.kubernetes.io/component": "controller",
    }
    assert rendered.one("Service", "nanochat-controller")["spec"]["ports"][0]["port"] == 8080
    assert rendered.env("nanochat-controller")["NANOCHAT_SERVICE"] == "ns/nanochat-controller:8080"


def test_profiles(chart: Chart) -> None:
    profile = chart.render(S3).config()["profiles"]["default"]
    assert profile["tracking"] == "http://nanochat-mlflow.ns.svc:5000"
    assert profile["credentials"] == "/etc/nanochat/credentials/default"
    found = chart.render(VALUES / "identity.yaml")
    profiles = found.config()["profiles"]
    assert profiles["default"]["tracking"] == "https://mlflow.example.org"
    assert profiles["public"]["tracking"] == "http://mlflow.other:5001"
    assert "credentials" not in profiles["default"]
    assert [item["metadata"]["name"] for item in found.of("Deployment")] == ["nanochat-controller", SERVER]
    inside = chart.render(VALUES / "dev_store.yaml").config()["profiles"]["default"]
    assert (inside["root"], inside["endpoint"]) == ("s3://chats", "http://nanochat-store.ns.svc:7070")
    assert not {"readerSecret", "readerEndpoint"} & set(inside), "they are the server's alone"


def test_the_server_has_keys_that_only_read(chart: Chart) -> None:
    inside = chart.render(LOADED, {"devStore": {"enabled": True}})
    server = dict(inside.pods())[SERVER]["spec"]["containers"][0]
    assert server["envFrom"] == [{"secretRef": {"name": "nanochat-store-reader"}}]
    assert inside.env(SERVER)["NANOCHAT_ENDPOINT"] == "http://nanochat-store.ns.svc:7071"
    store = {c["name"]: c for c in dict(inside.pods())["nanochat-store"]["spec"]["containers"]}
    assert "--readonly" in store["reader"]["command"] and "--readonly" not in store["store"]["command"]
    keys = {name: container["env"][0]["valueFrom"]["secretKeyRef"]["name"] for name, container in store.items()}
    assert keys == {"store": "nanochat-store", "reader": "nanochat-store-reader"}
    own = LOADED | {
        "profiles": {"default": S3["profiles"]["default"] | {"readerSecret": "reads", "readerEndpoint": "http://r"}}
    }
    rendered = chart.render(own)
    server = dict(rendered.pods())[SERVER]["spec"]["containers"][0]
    assert server["envFrom"] == [{"secretRef": {"name": "reads"}}]
    assert rendered.env(SERVER)["NANOCHAT_ENDPOINT"] == "http://r"
    server = dict(chart.render(S3).pods())[SERVER]["spec"]["containers"][0]
    assert server["envFrom"] == [{"secretRef": {"name": "own"}}], "where nothing else is named"


def test_each_namespace_has_a_key_of_its_own_for_compiled_code(chart: Chart) -> None:
    rendered = chart.render(LOADED, {"devStore": {"enabled": True, "namespaces": ["chat"]}})
    stores = [item for item in rendered.of("Secret") if item["metadata"]["name"] == "nanochat-store"]
    assert {item["metadata"]["namespace"] for item in stores} == {"ns", "chat"}
    keys = {b64decode(item["data"][KEY]) for item in stores}
    assert len(keys) == 2 and min(map(len, keys)) >= SHORTEST
    reader = rendered.one("Secret", "nanochat-store-reader")
    assert KEY not in reader["data"], "the server compiles nothing"


def test_stores_at_other_clouds(chart: Chart) -> None:
    found = chart.render(VALUES / "clouds.yaml")
    config = found.config()
    assert Config.model_validate(config, by_alias=True).profiles["google"].root == "gs://our-bucket/nanochat"
    assert config["profiles"]["google"]["credentials"] == "/etc/nanochat/credentials/google"
    assert config["pools"]["gpu"]["pods"]["labels"] == {"azure.workload.identity/use": "true"}
    controller = found.one("Deployment", "nanochat-controller")["spec"]["template"]
    assert controller["metadata"]["labels"]["azure.workload.identity/use"] == "true"
    (volume,) = (item for item in controller["spec"]["volumes"] if "secret" in item)
    assert volume["secret"]["secretName"] == "nanochat-gcs"
    account = found.one("ServiceAccount", "nanochat-controller")["metadata"]["annotations"]
    assert account == {"azure.workload.identity/client-id": "00000000-0000-0000-0000-000000000000"}
    assert found.env(SERVER)["NANOCHAT_ENDPOINT"] == "https://ouraccount.blob.core.windows.net"
    assert ports(policy(found, "inference")["egress"]) == {53, 443, 80, 988}


# ---- MLflow -----------------------------------------------------------------------------------------------------


def argument(rendered: Rendered, name: str) -> str:
    """An argument of the MLflow server."""
    given = [item for item in rendered.container("nanochat-mlflow")["args"] if item.startswith(f"--{name}=")]
    return given[0].partition("=")[2]


def allowed(hosts: list[str], host: str) -> bool:
    """MLflow's rule (mlflow/server/security_utils.py, whose import takes seconds)."""
    return any(fnmatch.fnmatch(host, name) if "*" in name else host == name for name in hosts)


def test_mlflow_answers_to_its_names(chart: Chart) -> None:
    hosts = argument(chart.render(VALUES / "postgres.yaml"), "allowed-hosts").split(",")
    names = ["nanochat-mlflow" + suffix for suffix in ("", ".ns", ".ns.svc", ".ns.svc.cluster.local")]
    for name in (*names, "localhost", "127.0.0.1", "10.244.1.7", "172.20.0.3", "192.168.1.2", "mlflow.example.org"):
        assert allowed(hosts, name) and allowed(hosts, f"{name}:5000"), name
    for name in ("example.org", "nanochat-mlflow.ns.svc.evil.org", "172.32.0.1", "nanochat-mlflow.other:5000"):
        assert not allowed(hosts, name), name


def test_mlflow_by_default(chart: Chart) -> None:
    rendered = chart.render(S3)
    assert rendered.env("nanochat-mlflow")["MLFLOW_BACKEND_STORE_URI"] == "sqlite:////data/mlflow.db"
    assert argument(rendered, "artifacts-destination") == "/data/artifacts"
    assert rendered.one("Deployment", "nanochat-mlflow")["spec"]["strategy"] == {"type": "Recreate"}
    claim = rendered.one("PersistentVolumeClaim", "nanochat-mlflow")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "storageClassName" not in claim["spec"]


def test_mlflow_with_a_database_and_s3(chart: Chart) -> None:
    rendered = chart.render(VALUES / "postgres.yaml")
    env = rendered.env("nanochat-mlflow")
    assert env["MLFLOW_BACKEND_STORE_URI"] == {"secretKeyRef": {"name": "mlflow-database", "key": "address"}}
    assert env["MLFLOW_S3_ENDPOINT_URL"] == "http://minio.minio:9000"
    assert rendered.container("nanochat-mlflow")["envFrom"] == [{"secretRef": {"name": "minio"}}]
    assert rendered.of("PersistentVolumeClaim") == []
    migration = rendered.one("Deployment", "nanochat-mlflow")["spec"]["template"]["spec"]["initContainers"][0]
    assert migration["env"] == rendered.container("nanochat-mlflow")["env"]


# ---- the chat API -----------------------------------------------------------------------------------------------


def test_the_model_is_the_controllers(chart: Chart) -> None:
    """What the controller writes is not in the manifest, so that no upgrade takes it away."""
    rendered = chart.render(VALUES / "gpu.yaml")
    deployment = rendered.one("Deployment", SERVER)
    assert "replicas" not in deployment["spec"]
    assert "nanochat.dev/" not in yaml.safe_dump(deployment)
    env = rendered.env(SERVER)
    assert not {"NANOCHAT_MODEL_URI", "NANOCHAT_MODEL_VERSION", "NANOCHAT_MODEL_FINGERPRINT"} & set(env)
    assert (env["NANOCHAT_MODEL_NAME"], env["NANOCHAT_CACHE"]) == ("champion", "/cache")
    assert rendered.config()["serving"] == {
        "deployment": SERVER,
        "namespace": "ns",
        "model": "champion",
        "tracking": "http://nanochat-mlflow.ns.svc:5000",
        "profile": "default",
        "pollSeconds": 60,
    }
    rules = rendered.one("Role", "nanochat-controller")["rules"]
    wanted = {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": [SERVER], "verbs": ["get", "patch"]}
    assert wanted in rules


def test_a_model_that_is_fixed(chart: Chart) -> None:
    rendered = chart.render(VALUES / "fixed_model.yaml")
    env = rendered.env(SERVER)
    assert env["NANOCHAT_MODEL_URI"] == "s3://our-bucket/nanochat/artifacts/sft/0123abcd"
    assert "AWS_REGION" not in env and chart.render(S3).env(SERVER)["AWS_REGION"] == "r"
    assert env["NANOCHAT_ENDPOINT"] == "https://s3.example.org"
    assert env["NANOCHAT_API_KEYS"] == {"secretKeyRef": {"name": "chat-keys", "key": "keys"}}
    assert env["NANOCHAT_ALLOWED_HOSTS"] == "chat.example.org,nanochat-inference"
    assert rendered.container(SERVER)["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert "serving" not in rendered.config()
    assert not any("deployments" in rule["resources"] for role in rendered.of("Role") for rule in role["rules"])
    (ingress,) = rendered.of("Ingress")
    assert ingress["spec"]["tls"] == [{"hosts": ["chat.example.org"], "secretName": "chat-tls"}]
    assert rendered.of("PodDisruptionBudget")[0]["spec"]["maxUnavailable"] == "50%"


def test_https(chart: Chart) -> None:
    """The server has its Secret, and all that asks it asks by HTTPS; without one, by HTTP."""
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    for values, scheme in ((VALUES / "tls.yaml", "https"), (VALUES / "monitoring.yaml", "http")):
        rendered = chart.render(values)
        container = rendered.container(SERVER)
        assert {container[name]["httpGet"]["scheme"] for name in probes} == {scheme.upper()}
        assert rendered.one("Service", SERVER)["spec"]["ports"][0].get("appProtocol", "http") == scheme
        (endpoint,) = rendered.one("PodMonitor", SERVER)["spec"]["podMetricsEndpoints"]
        assert endpoint.get("scheme", "http") == scheme and ("tlsConfig" in endpoint) == (scheme == "https")
        test = rendered.one("Pod", "nanochat-test")["spec"]["containers"][0]
        assert f"{scheme}://{SERVER}:80/livez" in test["args"][1]
    rendered = chart.render(VALUES / "tls.yaml")
    env, pod = rendered.env(SERVER), rendered.one("Deployment", SERVER)["spec"]["template"]["spec"]
    assert (env["NANOCHAT_TLS_CERT"], env["NANOCHAT_TLS_KEY"]) == ("/tls/tls.crt", "/tls/tls.key")
    assert {"name": "tls", "mountPath": "/tls", "readOnly": True} in rendered.container(SERVER)["volumeMounts"]
    assert {"name": "tls", "secret": {"secretName": "chat-tls", "defaultMode": 0o440}} in pod["volumes"]


def test_no_unavailability(chart: Chart) -> None:
    rendered = chart.render(S3)
    spec = rendered.one("Deployment", SERVER)["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    probes = {name: rendered.container(SERVER)[name]["httpGet"]["path"] for name in ("livenessProbe", "readinessProbe")}
    assert probes == {"livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert chart.render(S3, {"inference": {"replicas": 1}}).of("PodDisruptionBudget") == []


def test_gpus(chart: Chart) -> None:
    rendered = chart.render(VALUES / "gpu.yaml")
    assert rendered.container(SERVER)["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 1}
    pod = rendered.one("Deployment", SERVER)["spec"]["template"]["spec"]
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    pool = rendered.config()["pools"]["gpu"]
    assert pool["memoryLimit"] == "1800Gi"
    assert (pool["pods"]["network"], pool["pods"]["imagePullPolicy"]) == ("rdma", "IfNotPresent")


def test_autoscalers(chart: Chart) -> None:
    rendered = chart.render(VALUES / "gpu.yaml")
    (scaler,) = rendered.of("HorizontalPodAutoscaler")
    cpu, waiting = scaler["spec"]["metrics"]
    assert cpu["resource"]["target"]["averageUtilization"] == 70
    assert waiting["pods"]["metric"]["name"] == "nanochat_requests_waiting"
    assert rendered.of("ScaledObject") == []
    rendered = chart.render(VALUES / "keda.yaml")
    (scaler,) = rendered.of("ScaledObject")
    assert [trigger["type"] for trigger in scaler["spec"]["triggers"]] == ["cpu", "prometheus"]
    assert rendered.of("HorizontalPodAutoscaler") == []


def test_the_cache(chart: Chart) -> None:
    def cache(*values: Any) -> Any:
        volumes = chart.render(*values).one("Deployment", SERVER)["spec"]["template"]["spec"]["volumes"]
        return next(volume for volume in volumes if volume["name"] == "cache")

    assert cache(S3)["emptyDir"] == {"sizeLimit": "20Gi"}
    assert cache(VALUES / "gpu.yaml")["persistentVolumeClaim"] == {"claimName": "nanochat-cache"}
    assert cache(VALUES / "gateway.yaml")["persistentVolumeClaim"] == {"claimName": "models"}


# ---- around them ------------------------------------------------------------------------------------------------


def policy(rendered: Rendered, part: str) -> dict[str, Any]:
    return rendered.one("NetworkPolicy", f"nanochat-{part}")["spec"]


def ports(rules: list[dict[str, Any]]) -> set[int]:
    return {port["port"] for rule in rules for port in rule.get("ports", ())}


def test_network_policies(chart: Chart) -> None:
    rendered = chart.render(VALUES / "s3.yaml")
    assert ports(policy(rendered, "controller")["egress"]) == {53, 443, 6443, 5000, 8000, 9000}
    assert ports(policy(rendered, "inference")["egress"]) == {53, 9000}
    assert ports(policy(rendered, "mlflow")["egress"]) == {53}
    mlflow = policy(rendered, "mlflow")["ingress"][0]["from"]
    assert {"namespaceSelector": {}, "podSelector": {"matchExpressions": [PIPELINE]}} in mlflow
    assert "ingress" not in policy(rendered, "default") and "egress" not in policy(rendered, "default")

    narrow = chart.render(VALUES / "network.yaml")
    assert ports(policy(narrow, "controller")["egress"]) == {53, 8443, 5000, 8000, 9000, 4317}
    store = next(rule for rule in policy(narrow, "inference")["egress"] if ports([rule]) == {9000})
    assert store["to"] == [{"ipBlock": {"cidr": "10.1.2.3/32"}}]
    api = {"ipBlock": {"cidr": "10.0.0.0/28"}}
    assert policy(narrow, "controller")["ingress"][0]["from"][0] == api
    assert api in policy(narrow, "mlflow")["ingress"][0]["from"]

    assert ports(policy(chart.render(VALUES / "postgres.yaml"), "mlflow")["egress"]) == {53, 6432, 9000}
    # Cloud identities: their token services, in the cluster's network and outside it.
    identity = policy(chart.render(VALUES / "identity.yaml"), "inference")["egress"]
    assert ports(identity) == {53, 443, 80, 988}
    scoped = policy(chart.render(VALUES / "namespaced.yaml"), "store")["ingress"][0]["from"][1]
    assert scoped["namespaceSelector"]["matchExpressions"][0]["values"] == ["ns", "team-b"]


PIPELINE = {"key": "nanochat.dev/pipeline", "operator": "Exists"}


def test_rights_of_people(chart: Chart) -> None:
    roles = {r["metadata"]["name"]: r["metadata"]["labels"] for r in chart.render(S3).of("ClusterRole")}
    assert roles["nanochat-ns-view"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert roles["nanochat-ns-edit"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert len(chart.render(S3, {"rbac": {"aggregate": False}}).of("ClusterRole")) == 1


def test_the_health_test(chart: Chart) -> None:
    rendered = chart.render(VALUES.parent / CHART / "values-kind.yaml")
    pod = rendered.one("Pod", "nanochat-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    program, urls, follows = pod["spec"]["containers"][0]["args"]
    compile(program, "health", "exec")
    assert sorted(yaml.safe_load(urls)) == ["controller", "inference", "mlflow", "store"]
    assert follows == "follows"
    for url in yaml.safe_load(urls).values():
        host, port = re.findall(r"http://([^:]+):(\d+)/", url)[0]
        assert int(port) in {p["port"] for p in rendered.one("Service", host)["spec"]["ports"]}


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            "gpu",
            ["all namespaces", "apply -n ns -f k8s/pipelines/speedrun.yaml", "svc/nanochat-mlflow 5000", "8000:80",
             "`champion`", f"on when it is there:\n  {TRAINING_OPERATOR}\n"],
        ),
        (
            "namespaced",
            ["pipelines of ns, team-b", "apply -n ns -f k8s/pipelines/cpu.yaml", "not part of this release",
             "one volume (the claim nanochat-store, 100Gi)", "set profiles.default to a bucket", "docs/operations.md",
             "namespaces: ns, team-b."],
        ),
        ("gateway", ["the claim old-store)"]),
        ("fixed_model", ["get chatpipelines", "8000:8080", "Secret keys in the pipeline's namespace"]),
        ("dev_store", ["nanochat report cpu"]),
    ],
)  # fmt: skip
def test_notes(chart: Chart, file: str, said: list[str]) -> None:
    path = VALUES / f"{file}.yaml"
    done = chart.run("install", "nanochat", str(CHART), "-n", "ns", "-f", str(path), "--dry-run=client")
    notes = done.stdout.partition("NOTES:")[2]
    inside = file in ("namespaced", "gateway", "dev_store")
    assert ("The store is this release's own S3 server" in notes) is inside
    assert [words for words in said if words not in notes] == [], notes
    assert [line[:4] for line in notes.splitlines() if re.match(r"  \d\.", line)] == ["  1.", "  2.", "  3."]
