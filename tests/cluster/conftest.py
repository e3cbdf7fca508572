"""The cluster that all tests here share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from site_of_tests import MLFLOW, SERVER, SYSTEM, Site, missing


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """The site, up; it is taken down at the end unless NANOCHAT_KEEP_CLUSTER is set."""
    lacking = missing()
    if lacking:
        text = f"no cluster can be made here, {', '.join(lacking)} missing"
        if os.environ.get("NANOCHAT_REQUIRE_CLUSTER"):
            pytest.fail(text)
        pytest.skip(text)
    found = Site(os.environ.get("NANOCHAT_TEST_CLUSTER", "nanochat-test"))
    found.up()
    yield found
    if not os.environ.get("NANOCHAT_KEEP_CLUSTER"):
        found.kind("delete", "cluster")


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
