"""The controller's endpoint: what may be read, by whom."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from nanochat.pipeline.logs import LogSync
from nanochat.pipeline.planner import Phase
from nanochat.pipeline.runs import RunPaths
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile
from operators.access import DAY, INVALID_TOKEN, accepts, publish
from operators.endpoint import NEXT, build_app
from operators.kube_error import KubeError
from operators.run_state import RunSnapshot
from operators.stores import SharedArtifacts

SERVICE = "system/controller:8080"
PUBLISHED = {name: publish(SERVICE, None, time.time()) for name in ("demo", "other")}
TOKEN = {"X-Nanochat-Token": PUBLISHED["demo"]["token"]}
KEY = "ab" * 16


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """An endpoint over a store with one run: two attempts' logs, and a report."""
    store = open_store(Profile(root=str(tmp_path / "store")))
    paths = RunPaths.of(namespace="team", name="demo", uid="uid-1")
    for launch, lines in (("01-aaaa", "first\n"), ("02-bbbb", "second\nthird\n")):
        work = tmp_path / launch
        work.mkdir()
        log_sync = LogSync(store, paths.logs("base", launch), work)
        for line in lines.splitlines(keepends=True):  # a piece each
            with (work / "rank0.log").open("a") as log:
                log.write(line)
            log_sync.sync()
    artifacts = Artifacts(store, tmp_path / "cache")
    with artifacts.writer("report", KEY, "01-cccc") as writer:
        (writer.folder / "report.md").write_text("# demo: report\n")
        writer.commit(recipe={}, inputs={}, metadata={})
    store.write_json(paths.attempt("base", 1), {"number": 1})
    (tmp_path / "store" / "secret.txt").write_text("nobody's")
    shared = SharedArtifacts(store, tmp_path / "cache", Profile(root=store.root))
    view = RunSnapshot("team", "demo", "uid-1", shared, "", Phase.SUCCEEDED, KEY, True, "")
    views = {("team", "demo"): view}
    return TestClient(
        build_app(
            lambda ns, name: views.get((ns, name)), lambda _ns, name: PUBLISHED.get(name), lambda: "", lambda: True
        )
    )


def test_logs_are_listed_and_read_from_any_byte(client: TestClient) -> None:
    listed = client.get("/v1/team/demo/logs/base", headers=TOKEN).json()
    assert listed == [
        {"launch": "01-aaaa", "files": [{"name": "rank0", "bytes": 6}]},
        {"launch": "02-bbbb", "files": [{"name": "rank0", "bytes": 13}]},
    ]
    whole = client.get("/v1/team/demo/logs/base/02-bbbb/rank0", headers=TOKEN)
    assert (whole.text, whole.headers[NEXT]) == ("second\nthird\n", "13")
    for offset in range(14):
        part = client.get(f"/v1/team/demo/logs/base/02-bbbb/rank0?offset={offset}", headers=TOKEN)
        assert (part.text, part.headers[NEXT]) == ("second\nthird\n"[offset:], "13")


def test_whether_a_model_can_be_used(client: TestClient, tmp_path: Path) -> None:
    def missing(uri: str) -> str:
        return client.get("/v1/team/demo/model", params={"uri": uri}, headers=TOKEN).json()["missing"]

    root = f"{tmp_path}/store"
    assert "there is no model at" in missing(f"{root}/artifacts/model/gone/01-a")
    assert "is not a model's address" in missing(f"{root}/artifacts/text/gone")
    assert "is not in the pipeline's store" in missing("s3://other/artifacts/model/one")


def test_the_report_and_the_attempts(client: TestClient) -> None:
    assert client.get("/v1/team/demo/report", headers=TOKEN).json() == ["report.md"]
    assert client.get("/v1/team/demo/report/report.md", headers=TOKEN).text == "# demo: report\n"
    assert client.get("/v1/team/demo/report/other.md", headers=TOKEN).status_code == 404
    (record,) = client.get("/v1/team/demo/attempts", headers=TOKEN).json()
    assert (record["stage"], record["number"], record["outcome"]) == ("base", 1, None)
    assert client.get("/v1/team/demo/progress/base", headers=TOKEN).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Nanochat-Token": ""},
        {"X-Nanochat-Token": "é"},
        {"X-Nanochat-Token": PUBLISHED["other"]["token"]},
        {"X-Nanochat-Token": PUBLISHED["demo"]["token"][:-1]},
        {"X-Nanochat-Token": publish(SERVICE, None, time.time())["token"]},
    ],
)
def test_without_the_token_a_pipeline_is_not_there(client: TestClient, headers: dict[str, str]) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    wrong = client.get("/v1/team/demo/logs/base", headers=encoded)
    absent = client.get("/v1/team/nobody/logs/base", headers=TOKEN)
    assert (wrong.status_code, wrong.json()) == (absent.status_code, absent.json())
    assert wrong.status_code == 404
    error = KubeError.of_answer("get logs", 404, wrong.content)
    assert (error.code, "read its status.access again" in error.said) == (INVALID_TOKEN, True)


def test_a_token_is_good_for_two_days_and_replaced_after_one() -> None:
    now = 100.5 * DAY
    first = publish(SERVICE, None, now)
    for later in (0, 0.9 * DAY):
        assert publish(SERVICE, first, now + later) == first
        assert accepts(first, first["token"], now + later)
    second = publish(SERVICE, first, now + 1.1 * DAY)
    assert second["token"] != first["token"]
    assert not accepts(second, first["token"], now + 1.1 * DAY)
    assert accepts(first, first["token"], now + 1.9 * DAY)
    assert not accepts(first, first["token"], now + 2 * DAY)


@pytest.mark.parametrize(
    "changes",
    [
        {"expiresAt": "2999-01-01T00:00:00Z"},
        {"expiresAt": "soon"},
        {"expiresAt": ""},
        {"token": ""},
        {"token": "short"},
    ],
)
def test_what_somebody_wrote_into_the_status_is_no_token(changes: dict[str, str]) -> None:
    now = 100.5 * DAY
    written = publish(SERVICE, None, now) | changes
    assert not accepts(written, written["token"], now)
    assert publish(SERVICE, written, now) != written


def test_a_service_that_moved_has_another_token() -> None:
    assert publish("there/controller:8080", before := publish(SERVICE, None, 1e9), 1e9) != before


def test_no_token_opens_what_has_published_none() -> None:
    assert not accepts(None, "", 1e9)
    assert not accepts({}, "", 1e9)


@pytest.mark.parametrize(
    "path",
    [
        "logs/..%2f..%2f..%2f..%2fsecret.txt",
        "logs/base/02-bbbb/..%2f..%2f..%2f..%2f..%2f..%2fsecret.txt",
        "report/..%2f..%2f..%2f..%2fsecret.txt",
        "progress/..%2f..%2f..%2f..%2fsecret.txt",
    ],
)
def test_nothing_else_of_the_store_is_read(client: TestClient, path: str) -> None:
    answer = client.get(f"/v1/team/demo/{path}", headers=TOKEN)
    assert "nobody's" not in answer.text
    assert answer.status_code == 404


@pytest.mark.parametrize(("stuck", "code"), [("", 200), ("the reconciliation of a/b has lasted 400 s", 503)])
def test_health_says_what_is_stuck(stuck: str, code: int) -> None:
    client = TestClient(build_app(lambda *_: None, lambda *_: None, lambda: stuck, lambda: not stuck))
    for probe in ("/livez", "/healthz"):
        assert (client.get(probe).status_code, client.get(probe).text) == (code, stuck or "ok")
    assert client.get("/readyz").status_code == code
    assert "nanochat_reconcile_seconds" in client.get("/metrics").text
