"""The cluster that all tests here share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from site_of_tests import MLFLOW, SERVER, SYSTEM, Site, lacks, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that begin with an empty cluster come before those that share one: there need be no room for two."""
    items.sort(key=lambda item: "empty" not in getattr(item, "fixturenames", ()))


def possible_site() -> Site:
    """The site, not up yet; the test is skipped, or fails with NANOCHAT_REQUIRE_CLUSTER, where none can be made."""
    lacking = missing()
    if lacking:
        lacks(f"no cluster can be made here, {', '.join(lacking)} missing")
    return Site(os.environ.get("NANOCHAT_TEST_CLUSTER", "nanochat-test"))


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """The site, up; it is taken down at the end unless NANOCHAT_KEEP_CLUSTER is set."""
    found = possible_site()
    found.up()
    yield found
    if not os.environ.get("NANOCHAT_KEEP_CLUSTER"):
        found.destroy()


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A cluster with nothing in it, of this test alone, and the context of every command that the test runs."""
    found = possible_site()
    found.start_docker()
    if found.exists():
        if os.environ.get("NANOCHAT_KEEP_CLUSTER"):
            pytest.skip("NANOCHAT_KEEP_CLUSTER keeps the cluster that there is, and this test makes an empty one")
        found.destroy()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    found.create()
    yield found
    found.destroy()


@pytest.fixture(scope="module")
def chat(site: Site) -> Iterator[str]:
    """The address of the chat API, installed with MLflow; a model is there when a pipeline has released one."""
    for target in ("server", "mlflow"):
        site.build(target)
        site.load(f"nanochat-{target}:test")
    values = {
        "mlflow.enabled": "true",
        "mlflow.persistence.size": "1Gi",
        "inference.enabled": "true",
        "inference.replicas": "2",
        "inference.pollSeconds": "5",
        "inference.progressDeadlineSeconds": "60",
        "inference.service.type": "NodePort",
        "inference.cache.persistent": "true",
        "inference.cache.accessMode": "ReadWriteOnce",
        "inference.cache.size": "1Gi",
        "inference.resources.requests.cpu": "50m",
        "inference.resources.requests.memory": "512Mi",
    }
    site.install(**values)
    site.kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{MLFLOW}", "--timeout=180s")
    port = site.get("service", SERVER, "-n", SYSTEM)["spec"]["ports"][0]["nodePort"]
    yield f"{site.endpoint.rpartition(':')[0]}:{port}"
    site.install()
