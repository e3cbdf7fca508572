"""What the controller may do and what it did, by the API server's audit log. It is the last of these tests."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from site_of_tests import CONTROLLER, SYSTEM, Site

pytestmark = pytest.mark.cluster

LOG = Path(os.environ.get("NANOCHAT_AUDIT_LOG", "/var/lib/kind-local/logs/audit.log"))
USER = f"system:serviceaccount:{SYSTEM}:{CONTROLLER}"
ENOUGH = 300  # pipelines' requests: fewer mean that the tests that make them have not run on this cluster

Right = tuple[str, str, str]  # verb, group, resource


def granted(site: Site) -> set[Right]:
    """All rights of the controller's service account, from the bindings that name it."""
    found: set[Right] = set()
    account = {"kind": "ServiceAccount", "name": CONTROLLER, "namespace": SYSTEM}
    for binding in site.get("rolebindings,clusterrolebindings", "-A")["items"]:
        if account not in (binding.get("subjects") or ()):
            continue
        reference = binding["roleRef"]
        where = ("-n", binding["metadata"]["namespace"]) if reference["kind"] == "Role" else ()
        for rule in site.get(reference["kind"].lower(), reference["name"], *where)["rules"]:
            for group in rule["apiGroups"]:
                found |= {(verb, group, resource) for verb in rule["verbs"] for resource in rule["resources"]}
    return found


def used() -> tuple[set[Right], list[tuple[Right, str]]]:
    """Rights that the controller made use of, and its requests that were refused though nobody had ever granted them.

    What a release no longer serves with, its controller may ask for until it ends itself.
    """
    rights: Counter[Right] = Counter()
    places, refused = set(), []
    with LOG.open() as lines:
        for line in lines:
            if USER not in line:
                continue
            event = json.loads(line)
            if event["user"]["username"] != USER or "objectRef" not in event:
                continue
            target = event["objectRef"]
            resource = target["resource"] + (f"/{target['subresource']}" if target.get("subresource") else "")
            right = (event["verb"], target.get("apiGroup", ""), resource)
            if event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid":
                refused.append((right, target.get("namespace", "")))
            else:
                rights[right] += 1
                places.add((right, target.get("namespace", "")))
    if sum(rights.values()) < ENOUGH:
        pytest.skip("the tests before this one have not run on this cluster")
    return set(rights), [request for request in refused if request not in places]


def test_nothing_is_granted_that_is_never_used(site: Site) -> None:
    if not LOG.exists():
        pytest.skip(f"no audit log: set NANOCHAT_AUDIT_LOG (looked for {LOG})")
    rights, refused = used()
    assert refused == []
    assert granted(site) - rights == set()
