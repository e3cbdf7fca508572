"""The commands on a cluster, against a server that answers as an API server does, and as it should not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_server import BASE, PROXY, Server, failure, write_kubeconfig
from kubernetes.client import ApiClient, Configuration
from small_pipeline import PIPELINE, called

from nanochat.cli.cluster_run import ClusterRun
from operators.kube_client import KubeClient

LEASE = "/apis/coordination.k8s.io/v1/namespaces/system/leases/nanochat-controller"


def told(**changes: Any) -> dict[str, Any]:
    stages = [
        {"name": "base", "phase": "Running", "attempts": 2, "step": 40, "total": 100, "loss": 2.5, "rate": "9 tokens/s",
         "eta": 60, "started": "2026-11-24T10:00:00Z"},
        {"name": "mid", "phase": "Waiting", "attempts": 0, "message": "waits for base"},
    ]  # fmt: skip
    access = {"service": "system/controller:8080", "token": "fresh"}
    return {"phase": "Running", "stages": stages, "access": access} | changes


def lease(*, age: float = 0.0) -> dict[str, Any]:
    """The controller's Lease, as it was renewed so many seconds ago."""
    return {"spec": {"renewTime": (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}}


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    found.objects[f"{BASE}/small"] = {
        "metadata": {"name": "small", "uid": "12ab"}, "spec": {"suspend": True}, "status": told(),
    }  # fmt: skip
    found.objects[LEASE] = lease()
    yield found
    found.http.shutdown()
    found.http.server_close()


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Run:
    """The command in a folder with a pipeline's file, and a kubeconfig for the server."""
    (tmp_path / "small.yaml").write_text(PIPELINE)
    kubeconfig = write_kubeconfig(tmp_path, server)

    def command(*arguments: str, **environment: str) -> tuple[int, str]:
        done = called(tmp_path, *arguments, **{"KUBECONFIG": str(kubeconfig), **environment})
        return done.returncode, done.stdout + done.stderr

    return command


def test_submit_applies_what_was_set_and_uploads_the_identity(server: Server, run: Run, tmp_path: Path) -> None:
    line = json.dumps([{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Robin."}])
    (tmp_path / "me.jsonl").write_text(line + "\n")
    extra = "stages.mid.mixture=[{task: world-facts, rows: 200}, {task: identity}]"
    code, said = run("submit", "small.yaml", "--set", "stages.mid.identity=me.jsonl", "--set", extra)
    assert code == 0, said
    assert "nanochat logs small -n team --follow" in said
    (config_path, config_map), (path, applied) = server.changes()
    assert config_path == "/api/v1/namespaces/team/configmaps/small-identity"
    assert config_map["data"]["identity.jsonl"] == line + "\n"
    assert path == f"{BASE}/small"
    assert applied["spec"]["stages"]["mid"]["identity"] == "configmap://small-identity/identity.jsonl"
    assert "retries" not in applied["spec"], "what the file does not say is the API server's default"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("sources.mirror=data", "sources.mirror is data, on this machine"),
        ("stages.release.gates=[cor > 0.2]", "unknown metric 'cor'"),
        ("stages.base.dept=4", "unknown field 'spec.stages.base.dept'"),
        ("stages.mid.identity=absent.jsonl", "cannot read"),
    ],
)
def test_submit_refuses_what_a_cluster_cannot_have(server: Server, run: Run, setting: str, says: str) -> None:
    code, said = run("submit", "small.yaml", "--set", setting)
    assert code == 2 and says in said
    assert server.changes() == []


def test_status_without_a_local_run_is_the_clusters(run: Run) -> None:
    code, said = run("status", "small")
    assert code == 0, said
    assert "team/small: Running" in said and "40/100, loss 2.500, 9 tokens/s" in said and "waits for base" in said


def test_status_says_what_a_stage_does_instead_of_steps(run: Run, server: Server) -> None:
    base = {"name": "base", "phase": "Running", "attempts": 1, "step": 40, "total": 100, "pause": "measuring CORE"}
    server.objects[f"{BASE}/small"]["status"] = told(stages=[base])
    code, said = run("status", "small")
    assert code == 0 and "40/100, measuring CORE\n" in said, said


FORBIDDEN = failure(403, "Forbidden", "leases is forbidden", kind="leases")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ((200, lease(age=200)), "no controller runs, for its Lease system/nanochat-controller was renewed "),
        (failure(404, "NotFound", "not found", kind="leases"), "no controller runs, for there is no Lease system/nan"),
        (FORBIDDEN, "whether a controller runs cannot be seen, for you may not read its Lease system/nanochat-contr"),
    ],
)
def test_a_controller_that_is_away_is_told_by_its_lease(
    server: Server, run: Run, found: tuple[int, Any], says: str
) -> None:
    server.refusals[LEASE] = found
    headline = run("status", "small")[1].splitlines()[0]
    assert headline.startswith("team/small: Running when a controller saw it last; ") and says in headline
    assert headline.endswith("; see: kubectl -n system get deployment controller")
    _, said = run("suspend", "small")
    assert f"warning: {says}" in said and "small saves its checkpoints" in said, "the wish is kept"
    server.objects[f"{BASE}/small"]["status"] = ENDED
    assert run("status", "small")[1].startswith("team/small: Succeeded\n"), "nothing more is to come of it"


def test_a_controller_that_is_there_is_not_spoken_of(server: Server, run: Run) -> None:
    for answer in ((200, lease(age=4)), failure(500, "InternalError", "etcd is gone")):
        server.refusals[LEASE] = answer
        assert run("status", "small")[1].startswith("team/small: Running\n")


@pytest.mark.parametrize(
    ("command", "spec"),
    [
        ("suspend", {"suspend": True}),
        ("resume", {"suspend": False}),
        ("cancel", {"cancel": True}),
        ("retry", {"cancel": False}),
    ],
)
def test_what_is_asked_of_a_pipeline(server: Server, run: Run, command: str, spec: dict[str, bool]) -> None:
    code, said = run(command, "small")
    assert code == 0, said
    ((path, body),) = server.changes()
    assert (path, body["spec"]) == (f"{BASE}/small", spec)
    assert ("nanochat.dev/retry" in body.get("metadata", {}).get("annotations", {})) is (command == "retry")


ENDED = told(phase="Succeeded")


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("cancel", ENDED, "'small' is not running: it is Succeeded"),
        ("suspend", ENDED, "'small' is not running: it is Succeeded"),
        ("logs", told(access=None), "the controller has not said yet where the logs of small are"),
        ("logs", told(phase="Failed", message="bad", access=None, stages=[]), "no stage of small has run"),
        ("report", told(phase="Failed", message="bad store", access=None), "no stage of small has run: bad store"),
        ("report", told(), "small: the pipeline has no report yet"),
    ],
)
def test_what_cannot_be_asked_of_it(server: Server, run: Run, command: str, status: dict[str, Any], says: str) -> None:
    server.objects[f"{BASE}/small"]["status"] = status
    code, said = run(command, "small")
    assert code == 2 and says in said and said.count("\n") == 1, said
    assert server.changes() == []


def test_submit_tells_of_a_suspended_pipeline_and_resume_needs_one(server: Server, run: Run) -> None:
    code, said = run("submit", "small.yaml", "--set", "suspend=true")
    assert code == 0 and "It is suspended; go on with it: nanochat resume small -n team" in said
    server.objects[f"{BASE}/small"]["spec"] = {}
    code, said = run("resume", "small")
    assert code == 2 and "'small' is not suspended: it is Running" in said


def test_submit_tells_of_what_only_the_controller_knows(server: Server, run: Run) -> None:
    path, reply, looks = f"{BASE}/small", server.reply, 0

    def controller(verb: str, at: str, body: Any, token: str | None) -> tuple[int, Any]:
        """Its word comes at the second look."""
        nonlocal looks
        looks += (verb, at) == ("GET", path)
        server.objects[path]["metadata"]["generation"] = 2
        refused = {"type": "Accepted", "status": "False", "message": "spec.store names the profile 'x'"}
        seen = {"observedGeneration": 2 if looks > 1 else 1}
        server.objects[path]["status"] = told(phase="Failed", conditions=[refused | seen])
        return reply(verb, at, body, token)

    server.reply = controller  # type: ignore[method-assign]
    code, said = run("submit", "small.yaml")
    words = "error: small is in namespace team, and the controller refuses it: spec.store names the profile 'x'\n"
    assert (code, said) == (2, words)
    assert looks == 2


def test_a_retry_does_not_promise_what_a_refused_declaration_keeps_from_happening(server: Server, run: Run) -> None:
    refused = [{"type": "Accepted", "status": "False", "message": "spec.store names the profile 'x'"}]
    server.objects[f"{BASE}/small"] |= {"status": told(phase="Failed", conditions=refused), "spec": {}}
    code, said = run("retry", "small")
    assert code == 0 and said.endswith("until it is corrected nothing is started: spec.store names the profile 'x'\n")


def test_a_retry_of_what_succeeded_makes_what_is_gone(server: Server, run: Run) -> None:
    server.objects[f"{BASE}/small"] |= {"status": ENDED, "spec": {}}
    code, said = run("retry", "small")
    assert code == 0 and said.startswith(
        "small has succeeded: what is gone or damaged is made anew; see: nanochat stat"
    )


def test_a_stage_without_a_log_says_why(server: Server, run: Run) -> None:
    stages = [{"name": "base", "phase": "Retrying", "attempts": 1, "message": "again after: it ended with exit code 3",
               "started": "2026-11-24T10:00:00Z"}]  # fmt: skip
    server.objects |= {f"{PROXY}/logs/base": []}
    server.objects[f"{BASE}/small"]["status"] = told(stages=stages)
    code, said = run("logs", "small", "base")
    assert (code, said) == (2, "error: there is no log of base: again after: it ended with exit code 3\n")


def test_status_tells_of_attempts_and_troubles(server: Server, run: Run) -> None:
    failed = {"stage": "base", "number": 1, "reason": "OutOfMemory", "message": "16 rows", "nodes": ["here"]}
    server.objects[f"{BASE}/small"]["status"] = told(
        attempts=[failed, failed | {"number": 2, "reason": "Running"}],
        queue={"name": "team", "state": "Admitted"},
        gpuHours=1.25,
        conditions=[{"type": "StorageReachable", "status": "False", "message": "no route"}],
    )
    _, said = run("status", "small")
    assert said.splitlines()[-4:] == [
        "base, attempt 1: OutOfMemory, 16 rows (on here)",
        "queue team: Admitted",
        "1.2 GPU hours",
        "StorageReachable: no route",
    ]


def test_pipelines_of_a_namespace_are_listed(server: Server, run: Run) -> None:
    other = {"metadata": {"name": "other", "uid": "34cd"}, "spec": {}}
    items = [other, server.objects[f"{BASE}/small"]]
    server.objects[BASE] = {"items": items, "metadata": {"resourceVersion": "7"}}
    code, said = run("runs", "-n", "team")
    rows = [line.split() for line in said.splitlines()]
    assert code == 0 and [row[:3] for row in rows] == [
        ["ID", "PIPELINE", "PHASE"], ["34cd", "other", "new"], ["12ab", "small", "Running"],
    ]  # fmt: skip


def test_watched_without_a_terminal_it_prints_changes_and_ends_with_the_run(server: Server, run: Run) -> None:
    server.objects[f"{BASE}/small"]["status"] = ENDED
    code, said = run("status", "small", "--watch")
    assert code == 0 and said.splitlines()[0].endswith("team/small: Succeeded"), said


def test_losses_and_events_of_a_pipeline_are_those_of_its_log_and_its_object(server: Server, tmp_path: Path) -> None:
    lines = [f"10:00:00 INFO step {step:,} of 2,000: loss {9 - step / 1000:.4f}, learning rate 1" for step in (1, 1200)]
    text = "\n".join(["noise: loss 3", *lines, ""]).encode()
    server.objects[f"{PROXY}/logs/base"] = [{"launch": "01-a", "files": [{"name": "rank0", "bytes": len(text)}]}]
    server.objects[f"{PROXY}/logs/base/01-a/rank0"] = text
    events = [
        {
            "metadata": {},
            "reason": "Stage",
            "message": f"base {day}",
            "lastTimestamp": f"2026-11-0{day}T10:00:00Z",
        }
        for day in (2, 1)
    ]
    server.objects["/api/v1/namespaces/team/events"] = {"items": events, "metadata": {"resourceVersion": "7"}}
    configuration = Configuration(host=f"http://127.0.0.1:{server.http.server_port}")
    found = ClusterRun(KubeClient(ApiClient(configuration)), "team", None, server.objects[f"{BASE}/small"])
    assert found.losses("base") == [(1, 8.999), (1200, 7.8)]
    assert [event.text for event in found.events(5)] == ["Stage: base 1", "Stage: base 2"]
    server.refusals["/api/v1/namespaces/team/events"] = failure(403, "Forbidden", "no", kind="events")
    assert found.events(5) == []


def test_logs_come_whole_through_the_endpoint(server: Server, run: Run) -> None:
    words = {"01-a": "first\nattempt", "02-c": "second: äö\n"}
    server.objects[f"{PROXY}/logs/base"] = [
        {"launch": launch, "files": [{"name": "launch", "bytes": 1}, {"name": "rank0", "bytes": len(text.encode())}]}
        for launch, text in words.items()
    ]
    for launch, text in words.items():
        server.objects[f"{PROXY}/logs/base/{launch}/rank0"] = text.encode()
    assert run("logs", "small", "base") == (0, "second: äö\n")
    assert run("logs", "small", "base", "--attempt", "1") == (0, "first\nattempt\n")
    server.objects[f"{BASE}/small"]["status"] = ENDED
    everything = "==> base, attempt 1 <==\nfirst\nattempt\n==> base, attempt 2 <==\nsecond: äö\n"
    assert run("logs", "small", "base", "--follow") == (0, everything)
    code, said = run("logs", "small", "bsae")
    assert code == 2 and "Did you mean 'base'" in said


def test_a_report_is_printed_and_its_files_are_written(server: Server, run: Run, tmp_path: Path) -> None:
    text = "# small: report\n\n## Results\n\nfine\n\n## Curves\n"
    server.objects |= {
        f"{PROXY}/report": ["report.md", "curves/a.svg"],
        f"{PROXY}/report/report.md": text.encode(),
        f"{PROXY}/report/curves/a.svg": bytes(range(256)),
    }
    code, said = run("report", "small")
    (folder,) = (tmp_path / "state" / "reports").glob("small-*")
    assert (code, said) == (
        0,
        f"# small: report\n\n## Results\n\nfine\n\nThe whole report: {folder / 'report.html'}\n",
    )
    assert (folder / "curves" / "a.svg").read_bytes() == bytes(range(256))
    assert "## Curves" in run("report", "small", "--markdown")[1]

    server.objects |= {f"{PROXY}/report": ["../../outside"], f"{PROXY}/report/../../outside": b"x"}
    code, said = run("report", "small")
    assert code == 2 and "'../../outside'" in said
    assert not (tmp_path / "state" / "outside").exists()


@pytest.mark.parametrize("stale", [1, 9])
def test_a_token_that_has_changed_is_read_again(server: Server, run: Run, stale: int) -> None:
    """Once; where the new one is refused too, that is said."""
    server.objects[f"{PROXY}/logs/base"] = [{"launch": "01-a", "files": [{"name": "rank0", "bytes": 4}]}]
    server.objects[f"{PROXY}/logs/base/01-a/rank0"] = b"hi!\n"
    answers = iter(["stale"] * stale + ["fresh"] * 9)
    reply = server.reply

    def renewed(verb: str, path: str, body: Any, token: str | None) -> tuple[int, Any]:
        if path == f"{BASE}/small":
            access = {"service": "system/controller:8080", "token": next(answers)}
            server.objects[path]["status"] = told(access=access)
        return reply(verb, path, body, token)

    server.reply = renewed  # type: ignore[method-assign]
    code, said = run("logs", "small", "base")
    if stale == 1:
        assert (code, said) == (0, "hi!\n")
    else:
        assert code == 2 and "the controller does not know small yet" in said


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (failure(503, "ServiceUnavailable", "no endpoints"), "does not answer (no endpoints); no controller runs, for"),
        (failure(403, "Forbidden", "you are bob"), "(you are bob); they are kept in the store, below s3://b/p/runs/1"),
        (failure(404, "NotFound", "not found", kind="services"), "which is not there: install its chart again (not f"),
        (failure(401, "Unauthorized", "Unauthorized"), "the cluster does not know you"),
    ],
)
def test_an_endpoint_out_of_reach(server: Server, run: Run, answer: tuple[int, Any], says: str) -> None:
    server.refusals |= {f"{PROXY}/logs/base": answer, LEASE: (200, lease(age=60))}
    server.objects[f"{BASE}/small"]["status"] = told(profile={"root": "s3://b/p"}, run="runs/1")
    done, said = run("logs", "small", "base")
    assert done == 2 and says in said and said.count("\n") == 1, said


FAULTS = [
    {"field": "spec", "message": 'Invalid value: "object": store cannot change'},
    {"field": "spec.seed", "message": "Invalid value: -1"},
]


def test_what_a_cluster_may_answer(server: Server, run: Run) -> None:
    path = f"{BASE}/small"
    cases = [
        (failure(401, "Unauthorized", "Unauthorized"), "the cluster does not know you"),
        (failure(403, "Forbidden", "chatpipelines is forbidden"), "you may not do this: chatpipelines is forbidden"),
        (failure(404, "NotFound", "the server could not find it"), "install nanochat's chart first"),
        ((404, b"404 page not found\n"), "install nanochat's chart first"),
        (failure(404, "NotFound", "gone", kind="chatpipelines"), "there is no pipeline team/small on the cluster"),
        (failure(404, "NotFound", "gone", kind="namespaces", name="team"), "the cluster has no such namespace: gone"),
        (failure(500, "InternalError", "etcd is gone"), "etcd is gone"),
        ((502, b"<html>bad gateway"), "<html>bad gateway"),
        (
            failure(422, "Invalid", 'ChatPipeline "small" is invalid: ...', causes=FAULTS),
            "pipeline team/small: store cannot change; spec.seed: Invalid value: -1",
        ),
    ]
    for refusal, says in cases:
        server.refusals[path] = refusal
        code, said = run("status", "small", "-n", "team")
        assert code == 2 and says in said and said.startswith("error:") and said.count("\n") == 1, said


def test_no_cluster_at_all(run: Run, server: Server, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    code, said = run("status", "small", "-n", "team", KUBECONFIG=absent)
    assert code == 2 and "no cluster is configured" in said and said.count("\n") == 1
    code, said = run("status", "small", KUBECONFIG=absent)
    assert code == 2 and said.startswith("error: nothing has run in this store yet") and "cluster" not in said
    code, said = run("status", "small", "--context", "there")
    assert code == 2 and "the kubeconfig has no context 'there': it has here" in said
    server.http.shutdown()
    server.http.server_close()
    code, said = run("status", "small", "-n", "team")
    assert code == 2 and "the API server cannot be reached" in said


@pytest.mark.parametrize(
    ("metadata", "status", "live"),
    [
        ({"generation": 1}, {"phase": "Running", "observedGeneration": 1}, True),
        ({"generation": 1}, {"phase": "Failed", "observedGeneration": 1}, False),
        ({"generation": 2}, {"phase": "Cancelled", "observedGeneration": 1}, True),
        (
            {"generation": 2},
            {"phase": "Failed", "observedGeneration": 1, "conditions": [{"observedGeneration": 2}]},
            False,  # the change was refused
        ),
        (
            {"generation": 1, "annotations": {"nanochat.dev/retry": "now"}},
            {"phase": "Failed", "observedGeneration": 1, "retriedAt": "before"},
            True,
        ),
    ],
)
def test_a_pipeline_that_was_changed_lives_until_the_controller_has_looked(
    metadata: dict[str, Any], status: dict[str, Any], live: bool
) -> None:
    kube: Any = None
    run = ClusterRun(kube, "team", None, {"metadata": metadata, "status": status})
    assert run.is_live is live
