"""Progress, manifests and logs that a tenant forged: the run beside them ends well, and what is read is bounded."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from two_pipelines import FORGED, GIGABYTE, WELL, TwoPipelines

from nanochat.storage.manifest import LARGEST, Manifest
from nanochat.storage.store import FileRecord
from operators.access import publish
from operators.endpoint import build_app
from operators.kube_client import PODS

MOST_MEMORY = 150 << 20  # bytes that may be in use at once while files are read
ACCESS = publish("system/controller:8080", None, 1e9)


@pytest.fixture
def two(tmp_path: Path) -> TwoPipelines:
    return TwoPipelines(tmp_path)


@contextmanager
def bounded(most: int, *, large: bool) -> Iterator[None]:
    """What is done inside takes at most so many bytes at once; it is measured where a file is `large`."""
    if not large:
        yield
        return
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


STATE = {"stage": "dataset", "launch": "", "step": 1, "total": 2, "time": 1e9}
PROGRESS: dict[str, Any] = {
    "a gigabyte": GIGABYTE,
    "no JSON": b"\x00\xff",
    "deep": b"[" * 60_000,
    "no object": [1, 2],
    "NaN": b'{"stage": "dataset", "launch": "x", "step": NaN}',
    "a step out of bounds": STATE | {"step": 1 << 60},
    "a date out of bounds": STATE | {"time": 1e300},
    "losses that are texts": STATE | {"losses": {"loss": "x" * 1000}},
    "a hundred thousand warnings": STATE | {"warnings": ["x"] * 100_000},
    "another launch": STATE | {"launch": "09-other"},
    "dates to come": STATE | {"time": 9e10, "eta": 9e10},
    "text of terminals": STATE | {"phase": "\x1b[2J", "warnings": ["\x1b[2J"]},
}


@pytest.mark.parametrize("kind", PROGRESS)
def test_forged_progress_harms_no_one_else(two: TwoPipelines, kind: str) -> None:
    two.reconcile(FORGED)
    pod = two.cluster[PODS][f"{FORGED}-12ab-dataset-1-worker-0"]["metadata"]["uid"]
    launch, content = f"01-{pod[:8]}", PROGRESS[kind]
    if isinstance(content, dict) and not content["launch"]:
        content = content | {"launch": launch}
    two.forge(f"{two.paths().progress('dataset')}/{launch}.json", content)
    with bounded(MOST_MEMORY, large=kind in ("a gigabyte", "a hundred thousand warnings")):
        for _ in range(3):
            assert two.reconcile(FORGED)["phase"] in ("Running", "Pending")
    assert two.run_to_its_end(WELL) == "Succeeded"


def sealed(**changes: Any) -> bytes:
    """A manifest with a checksum that is right."""
    known: dict[str, Any] = {"kind": "text", "key": "", "launch": "01-x", "recipe": {}, "inputs": {}, "metadata": {}}
    return Manifest(**(known | {"files": (), "created": 0.0} | changes)).to_bytes()


FILES = (FileRecord("file", 3, "0" * 64),)
MANIFESTS: dict[str, Any] = {
    "a gigabyte": GIGABYTE,
    "no JSON": b"\x00",
    "no object": b"[]",
    "deep": b"[" * 60_000,
    "no checksum": b'{"kind": "text", "files": []}',
    "another's": {"key": "0" * 64},
    "a file that is not there": {"files": FILES},
    "a file outside": {"files": (FileRecord("../../../secret", 3, "0" * 64),)},
    "a size below nothing": {"files": (FileRecord("file", -1, "0" * 64),)},
    "a launch that is a path": {"launch": "../x", "files": FILES},
    "millions of nothing": b'{"recipe": [' + b"[]," * (LARGEST // 3 - 10) + b"[]]}",
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_forged_manifest_harms_no_one_else(two: TwoPipelines, kind: str) -> None:
    two.reconcile(FORGED)
    outputs = two.graph(FORGED).node("dataset").outputs
    for out in outputs:
        forged = MANIFESTS[kind]
        content = sealed(**({"kind": out.kind, "key": out.key} | forged)) if isinstance(forged, dict) else forged
        two.forge(f"artifacts/{out.kind}/{out.key}/manifest.json", content)
    with bounded(2 * MOST_MEMORY, large=kind in ("a gigabyte", "millions of nothing")):
        two.restart()
        two.reconcile(FORGED)
    assert two.run_to_its_end(WELL) == "Succeeded"
    assert two.run_to_its_end(FORGED) == "Succeeded", "what is forged is set aside and made again"


LOGS: dict[str, Any] = {
    "a piece of a gigabyte": ("01-aaaa/rank0/000000.log", GIGABYTE),
    "a launch without a number": ("aaaa/rank0/000000.log", b"x"),
    "a huge number": ("99999999999-aaaa/rank0/000000.log", b"x"),
    "no folder": ("000000.log", b"x"),
    "deep": ("01-aaaa/" + "a/" * 60 + "000000.log", b"x"),
    "a name of strange text": ("01-a\x1b[2J/rank0/000000.log", b"x"),
    "bytes of no text": ("01-aaaa/rank0/000000.log", bytes(range(256)) * 100),
    "many pieces": ("01-aaaa/rank0/{}.log", b"x" * 100_000),
    "markup": ("01-aaaa/<script>/000000.log", b"<script>alert(1)</script>"),
}


@pytest.mark.parametrize("kind", LOGS)
def test_forged_logs_are_read_within_bounds(two: TwoPipelines, kind: str) -> None:
    two.reconcile(FORGED)
    path, content = LOGS[kind]
    for number in range(200 if "{}" in path else 1):
        two.forge(f"{two.paths().logs('dataset')}/{path.format(f'{number:06d}')}", content)
    snapshot = two.runs[FORGED].snapshot
    client = TestClient(
        build_app(lambda *_: snapshot, lambda *_: ACCESS, lambda: "", lambda: True), raise_server_exceptions=False
    )
    token = {"X-Nanochat-Token": ACCESS["token"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("operators.endpoint.time.time", lambda: 1e9)
        base = f"/v1/team-{FORGED}/{FORGED}/logs/dataset"
        answers = [client.get(path, headers=token) for path in (base, f"{base}/01-aaaa/rank0", f"{base}/x/%2e%2e")]
        assert client.get(f"{base}/01-aaaa/rank0?offset=-5", headers=token).status_code == 422
    assert answers[0].status_code == 200 and all(answer.status_code in (200, 404) for answer in answers)
    assert all(len(answer.content) <= 4 << 20 for answer in answers)
    assert answers[1].headers.get("content-type", "").startswith(("text/plain", "application/json"))
    assert two.run_to_its_end(WELL) == "Succeeded"
