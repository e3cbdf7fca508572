"""The chart on a cluster: the API server takes all that it makes; releases come, change, go and come again."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from site_of_tests import ROOT, Site, say

from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile, Store

pytestmark = pytest.mark.cluster

CHART = "helm/nanochat"
FILES = sorted((ROOT / "tests" / "chart" / "values").glob("*.yaml"))
# APIs that some values need and this cluster lacks: names and versions, with any content.
FOREIGN = [
    ("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors"),
    ("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors"),
    ("monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules"),
    ("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
    ("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects"),
]
OWN = "own-release"  # namespace of the release that comes and goes


def definition(group: str, version: str, kind: str, plural: str) -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        # Names under k8s.io want an approval.
        "metadata": {"name": f"{plural}.{group}", "annotations": {"api-approved.kubernetes.io": "unapproved, a test"}},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }


def helm(site: Site, *arguments: str) -> str:
    return site.run("helm", *arguments, "--kube-context", f"kind-{site.name}", timeout=300)


@pytest.fixture(scope="module")
def apis(site: Site) -> Iterator[None]:
    """The foreign APIs, and the namespaces that values name."""
    definitions = yaml.safe_dump_all([definition(*api) for api in FOREIGN])
    site.kubectl("apply", "--server-side", "-f", "-", input=definitions)
    names = [f"{plural}.{group}" for group, _, _, plural in FOREIGN]
    site.kubectl("wait", "crd", *names, "--for=condition=Established")
    for namespace in ("ns", "team-b"):
        site.kubectl("create", "namespace", namespace, check=False)
    yield
    site.kubectl("delete", "-f", "-", input=definitions)
    site.kubectl("delete", "namespace", "ns", "team-b", "--wait=false")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_api_server_takes_the_objects(site: Site, apis: None, file: Path) -> None:
    """A dry run on the server, with its defaults, admission and validation."""
    text = helm(site, "template", "dry", CHART, "-n", "ns", "-f", str(file), "--skip-tests", "--set=crds.install=false")
    objects = yaml.safe_dump_all(item for item in yaml.safe_load_all(text) if item)
    done = site.kubectl("apply", "--server-side", "--dry-run=server", "--field-manager=test", "-f", "-", input=objects)
    assert "serverside-applied" in done


def previous_chart(folder: Path) -> Path | None:
    """The chart of the version before this one, from the history; None in a checkout without it."""

    def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)

    def version(revision: str) -> str:
        return yaml.safe_load(git("show", f"{revision}:{CHART}/Chart.yaml").stdout or b"{}").get("version", "")

    now = yaml.safe_load((ROOT / CHART / "Chart.yaml").read_text())["version"]
    revisions = git("log", "--format=%h", "--", CHART).stdout.decode().split()
    found = next((revision for revision in revisions if version(revision) not in ("", now)), None)
    if found is None:
        return None
    with tarfile.open(fileobj=BytesIO(git("archive", found, CHART).stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / CHART


def store_of(url: str, folder: Path) -> Store:
    """The release's own S3 server."""
    for name, value in {"AWS_ACCESS_KEY_ID": "nanochat", "AWS_SECRET_ACCESS_KEY": "of-the-test"}.items():
        (folder / name).write_text(value)
    return open_store(Profile(root="s3://nanochat", endpoint=url, region="us-east-1"), credentials=folder)


def test_a_release_comes_and_goes_and_its_data_stays(site: Site, tmp_path: Path) -> None:
    """Beside the one of the other tests: install, upgrade, rollback, uninstall, install again."""
    from mlflow.tracking import MlflowClient

    for target in ("mlflow",):
        site.build(target)
        site.load(f"nanochat-{target}:test")
    site.kubectl("create", "namespace", OWN, check=False)
    site.kubectl("label", "ns", OWN, "--overwrite", "pod-security.kubernetes.io/enforce=restricted")
    values = {
        "scope": "namespaced",
        "images": {"tag": "test", "loaded": True},
        "crds": {"install": False},
        "devStore": {"enabled": True, "secretKey": "of-the-test", "persistence": {"size": "1Gi"}},
        "mlflow": {"persistence": {"size": "1Gi"}},
        "inference": {"enabled": False},
    }
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))

    def install(*options: str) -> None:
        helm(site, "upgrade", "--install", "own", CHART, "-n", OWN, "-f", str(file), "--wait", "--timeout=4m", *options)

    def read() -> tuple[bytes, list[str]]:
        with site.forward(OWN, "service/own-store", 7070) as url:
            kept = store_of(url, tmp_path).read("kept", 1 << 20)
        with site.forward(OWN, "service/own-mlflow", 5000) as url:
            return kept, [item.name for item in MlflowClient(url).search_experiments()]

    try:
        install()
        with site.forward(OWN, "service/own-store", 7070) as url:
            store_of(url, tmp_path).write("kept", b"data")
        with site.forward(OWN, "service/own-mlflow", 5000) as url:
            MlflowClient(url).create_experiment("kept")
        assert read()[0] == b"data" and "kept" in read()[1]

        install("--set=controller.logLevel=DEBUG")
        arguments = site.get("deployment", "own-controller", "-n", OWN)["spec"]["template"]["spec"]["containers"][0]
        assert "--log-level=DEBUG" in arguments["args"]
        helm(site, "rollback", "own", "1", "-n", OWN, "--wait", "--timeout=4m")
        arguments = site.get("deployment", "own-controller", "-n", OWN)["spec"]["template"]["spec"]["containers"][0]
        assert "--log-level=INFO" in arguments["args"]
        assert read()[0] == b"data" and "kept" in read()[1]
        say(helm(site, "test", "own", "-n", OWN))

        helm(site, "uninstall", "own", "-n", OWN, "--wait")
        assert not site.get("deployments", "-n", OWN)["items"]
        assert "chatpipelines.nanochat.dev" in site.kubectl("get", "crd", "-o", "name")
        install()
        assert read()[0] == b"data" and "kept" in read()[1]
        # Nothing of the cluster belongs to it, for it is namespaced, and the other release has not noticed.
        roles = site.get("clusterroles", "-l", "app.kubernetes.io/instance=own")["items"]
        assert roles == []
    finally:
        site.kubectl("delete", "namespace", OWN, "--wait=false")


def test_the_release_before_is_upgraded(site: Site, tmp_path: Path) -> None:
    """From the chart of the version before, with its values as they were: data and claims stay as they are."""
    before = previous_chart(tmp_path)
    if before is None:
        pytest.skip("this checkout has no history with a version before")
    namespace = "upgraded"
    site.kubectl("create", "namespace", namespace, check=False)
    values = {
        "namespaces": ["storage"],  # where no pipelines are
        "images": {"tag": "test"},  # which the nodes have, as the running release shows
        "devStore": {"enabled": True, "secretKey": "of-the-test"},
        "mlflow": {"enabled": False},
        "inference": {"enabled": False},
        "crds": {"install": False},
    }
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    place = ("-n", namespace)

    def holds() -> None:
        assert site.get("deployment", "nanochat-controller", *place)["status"]["readyReplicas"] == 1
        claim = site.get("pvc", "nanochat-store", *place)["spec"]["resources"]["requests"]
        assert claim == {"storage": "20Gi"}, "the former default"
        with site.forward(namespace, "service/nanochat-store", 7070) as url:
            assert store_of(url, tmp_path).read("kept", 1 << 20) == b"data"

    try:
        helm(site, "install", "nanochat", str(before), *place, "-f", str(file), "--wait", "--timeout=4m")
        with site.forward(namespace, "service/nanochat-store", 7070) as url:
            store_of(url, tmp_path).write("kept", b"data")
        helm(site, "upgrade", "nanochat", CHART, *place, "-f", str(file), "--wait", "--timeout=4m")
        holds()
        helm(site, "rollback", "nanochat", "1", *place, "--wait", "--timeout=4m")
        holds()
        helm(site, "uninstall", "nanochat", *place, "--wait")
        helm(
            site,
            "install",
            "nanochat",
            CHART,
            *place,
            "-f",
            str(file),
            "--set=images.loaded=true",
            "--wait",
            "--timeout=4m",
        )
        holds()
        helm(site, "uninstall", "nanochat", *place, "--wait")
    finally:
        site.kubectl("delete", "namespace", namespace, "--wait=false")
