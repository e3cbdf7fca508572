"""What holds of every object of the chart, whatever the values."""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from rendered_chart import CHART, FILES, VALUES, Chart, Object, Rendered, matches

from operators.config import Config

# Kinds that are not Kubernetes' own, which the validator does not know.
FOREIGN = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute"}
CLUSTER_SCOPED = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
SECRET = "a-secret-of-the-test"  # of values/dev_store.yaml
SPELLINGS = (SECRET, base64.b64encode(SECRET.encode()).decode())


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def test_lint(chart: Chart, values: Path) -> None:
    done = chart.run("lint", "--strict", str(CHART), "-f", str(values))
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint_of_the_defaults(chart: Chart) -> None:
    done = chart.run("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_api_would_accept_it(rendered: Rendered) -> None:
    for item in rendered.objects:
        if item["kind"] not in FOREIGN:
            kubernetes_validate.validate(item, "1.34", strict=True)


def test_metadata(rendered: Rendered) -> None:
    for item in rendered.objects:
        metadata = item["metadata"]
        assert ("namespace" in metadata) is (item["kind"] not in CLUSTER_SCOPED), metadata
        assert len(metadata["name"]) <= 63
        labels = metadata["labels"]
        for name in ("name", "instance", "component", "version", "managed-by", "part-of"):
            assert labels[f"app.kubernetes.io/{name}"], (metadata["name"], name)
        assert labels["helm.sh/chart"].startswith("nanochat-")


def identities(rendered: Rendered) -> list[tuple[str, ...]]:
    return [(i["kind"], i["metadata"].get("namespace", ""), i["metadata"]["name"]) for i in rendered.objects]


def test_names_are_unique(rendered: Rendered) -> None:
    assert [name for name, count in Counter(identities(rendered)).items() if count > 1] == []


@pytest.mark.parametrize("file", ["s3", "own_namespace", "monitoring"])
@pytest.mark.parametrize(("name", "namespace"), [("nanochat", "other"), ("second", "ns"), ("second", "other")])
def test_two_releases_share_nothing(chart: Chart, file: str, name: str, namespace: str) -> None:
    without = {"crds": {"install": False}}
    one = chart.render(VALUES / f"{file}.yaml")
    two = chart.render(VALUES / f"{file}.yaml", without, name=name, namespace=namespace)
    assert set(identities(one)) & set(identities(two)) == set()


def test_restricted(rendered: Rendered) -> None:
    """The restricted Pod Security Standard, and beyond it: a read-only root, no token that is not used."""
    for name, pod in rendered.pods():
        spec = pod["spec"]
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), name
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        kinds = {kind for volume in spec.get("volumes", ()) for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}, name
        assert spec["automountServiceAccountToken"] is name.endswith("-controller"), name
        assert spec["enableServiceLinks"] is False, name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, container["name"]
            assert container["resources"]["requests"], container["name"]
            assert not any("hostPort" in port for port in container.get("ports", ()))


def test_mounts(rendered: Rendered, values: Path) -> None:
    """Mounts are of volumes, volumes are mounted, and what they hold is in the release or named by the values."""
    given = values.read_text()
    for name, pod in rendered.pods():
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        mounted = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", ())}
        assert mounted == set(volumes), name
        for volume in volumes.values():
            for kind, key, target in (
                ("ConfigMap", "configMap", "name"),
                ("Secret", "secret", "secretName"),
                ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
            ):
                if key in volume and volume[key][target] not in given:
                    rendered.one(kind, volume[key][target], "ns" if kind == "Secret" else None)


def test_selectors(rendered: Rendered) -> None:
    pods = [pod["metadata"]["labels"] for _, pod in rendered.pods()]
    services = [item["metadata"]["labels"] for item in rendered.of("Service")]
    for item in rendered.objects:
        spec, kind, name = item.get("spec", {}), item["kind"], item["metadata"]["name"]
        if kind == "Deployment":
            assert matches(spec["selector"], spec["template"]["metadata"]["labels"]), name
        if kind in ("Deployment", "Service", "PodDisruptionBudget", "PodMonitor"):
            assert sum(matches(spec["selector"], labels) for labels in pods) == 1, (kind, name)
        if kind == "ServiceMonitor":
            assert sum(matches(spec["selector"], labels) for labels in services) == 1, name
        if kind == "NetworkPolicy":
            chosen = sum(matches(spec["podSelector"], labels) for labels in pods)
            assert chosen == (len(pods) if name.endswith("-default") else 1), name
        if kind in ("HorizontalPodAutoscaler", "ScaledObject"):
            rendered.one("Deployment", spec["scaleTargetRef"]["name"])


def test_ports(rendered: Rendered) -> None:
    """Services and probes name ports that their pods have."""
    for service in rendered.of("Service"):
        pod = next(p for _, p in rendered.pods() if matches(service["spec"]["selector"], p["metadata"]["labels"]))
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in {p["name"] for c in pod["spec"]["containers"] for p in c["ports"]}
    for _, pod in rendered.pods():
        for container in containers(pod):
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in {p["name"] for p in container["ports"]}


def test_rights(rendered: Rendered) -> None:
    """Bindings are of roles and accounts of the release; no wildcards, no Secrets, no nodes, no RBAC."""
    for kind in ("Role", "ClusterRole"):
        for binding in rendered.of(f"{kind}Binding"):
            rendered.one(binding["roleRef"]["kind"], binding["roleRef"]["name"], binding["metadata"].get("namespace"))
            for subject in binding["subjects"]:
                if subject["kind"] == "ServiceAccount":
                    rendered.one("ServiceAccount", subject["name"], subject["namespace"])
        for role in rendered.of(kind):
            for rule in role["rules"]:
                assert "*" not in rule["resources"] + rule["verbs"] + rule["apiGroups"]
                assert not {"secrets", "nodes", "roles", "clusterroles"} & set(rule["resources"]), role["metadata"][
                    "name"
                ]


def test_credentials_are_in_secrets_alone(chart: Chart) -> None:
    rendered = chart.render(VALUES / "dev_store.yaml")
    holding = {item["kind"] for item in rendered.objects if any(word in yaml.safe_dump(item) for word in SPELLINGS)}
    assert holding == {"Secret"}
    assert {item["metadata"]["namespace"] for item in rendered.of("Secret")} == {"ns", "chat"}


def test_the_controller_takes_its_configuration(rendered: Rendered) -> None:
    (file,) = (item for item in rendered.of("ConfigMap") if "config.yaml" in item["data"])
    config = yaml.safe_load(file["data"]["config.yaml"])
    Config.model_validate(config, by_alias=True, by_name=False)


@pytest.mark.parametrize("file", ["namespaced", "own_namespace"])
def test_a_namespaced_release_has_nothing_of_the_cluster(chart: Chart, file: str) -> None:
    rendered = chart.render(VALUES / f"{file}.yaml")
    assert {item["kind"] for item in rendered.objects} & CLUSTER_SCOPED == set()
    expected = ["ns", "team-b"] if file == "namespaced" else ["ns"]
    assert rendered.config()["namespaces"] == expected
    for kind in ("Role", "RoleBinding"):
        assert [
            i["metadata"]["namespace"] for i in rendered.of(kind) if i["metadata"]["name"] == "nanochat-pipelines"
        ] == expected
    assert {item["metadata"]["namespace"] for item in rendered.objects} == set(expected)


def test_there_are_a_dozen() -> None:
    assert len(FILES) >= 12
