"""kopf's watches against an API server that speaks discovery, listings and watches."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from kopf._cogs.clients import errors as kopf_errors
from test_index import pod

from operators import watches
from operators.index import Index
from operators.kube_client import PIPELINES, PODS, KubeClient, Resource
from operators.pytorchjob import PYTORCHJOBS, PyTorchJobs

JOB_SPEC = {"runPolicy": {}, "pytorchReplicaSpecs": {}}


class ApiServer:
    """Kinds of objects, their objects, and the events of those that watch."""

    def __init__(self) -> None:
        self.kinds: list[Resource] = [PIPELINES, PODS]
        self.items: dict[str, list[Any]] = {"pods": [pod(5)], "pytorchjobs": [], "chatpipelines": []}
        self.events: dict[str, list[Any]] = {"pods": [], "pytorchjobs": [], "chatpipelines": []}
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        own = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
                own.asked.append((path, query))
                if "watch" in query and own.serves(path):
                    self.stream(path)
                    return
                found = own.answer(path)
                data = json.dumps(found or {"kind": "Status", "code": 404, "reason": "NotFound"}).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self, path: str) -> None:
                self.send_response(200)
                self.send_header("Connection", "close")
                self.end_headers()
                sent = 0
                while not own.closed and own.serves(path):
                    for event in own.events[path.rpartition("/")[2]][sent:]:
                        self.wfile.write(json.dumps(event).encode() + b"\n")
                        self.wfile.flush()
                        sent += 1
                    time.sleep(0.02)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                return

        self.closed = False
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def serves(self, path: str) -> bool:
        """Whether a path is that of objects of a kind that there is."""
        return any(path.startswith(f"{kind.root}/") and path.endswith(f"/{kind.plural}") for kind in self.kinds)

    def answer(self, path: str) -> Any:
        if path == "/api":
            return {"versions": ["v1"]}
        if path == "/apis":
            groups = {kind.api_version.split("/")[0] for kind in self.kinds if "/" in kind.api_version}
            return {"groups": [self.group(name) for name in sorted(groups)]}
        for kind in self.kinds:
            if path == kind.root:
                names = [(kind.kind, kind.plural), ("Namespace", "namespaces")]  # kopf starts with the latter
                common = {"namespaced": True, "verbs": ["list", "watch"], "shortNames": [], "categories": []}
                return {
                    "resources": [
                        {**common, "name": plural, "kind": name, "singularName": name.lower()} for name, plural in names
                    ]
                }
            if path in (kind.path(), kind.path("team")):
                return {"metadata": {"resourceVersion": "10"}, "items": self.items[kind.plural]}
        return None

    def group(self, name: str) -> Any:
        version = next(kind.api_version.split("/")[1] for kind in self.kinds if kind.api_version.startswith(f"{name}/"))
        stated = {"groupVersion": f"{name}/{version}", "version": version}
        return {"name": name, "preferredVersion": stated, "versions": [stated]}

    def watched(self, plural: str) -> list[tuple[str, dict[str, list[str]]]]:
        return [(path, query) for path, query in self.asked if "watch" in query and path.endswith(plural)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    server = ApiServer()
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.http.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "mine"}}],
    }
    path = tmp_path / "config"
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.setattr(watches, "DISCOVERY_SECONDS", 0.2)
    yield server
    server.closed = True
    server.http.shutdown()
    server.http.server_close()


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.02)


def run(server: ApiServer, namespaces: tuple[str, ...], story: Callable[[Index, set[str]], Any]) -> None:
    """Watch while a story goes on; it is told of the index and of the pipelines that it woke."""

    async def main() -> None:
        woken: set[str] = set()
        kube, stop = KubeClient.connect(), asyncio.Event()
        index = Index(kube, PyTorchJobs(kube), lambda _, name: woken.add(name))
        watching = asyncio.create_task(watches.watch(index, kube, namespaces, stop))
        await story(index, woken)
        stop.set()
        async with asyncio.timeout(10):
            await watching

    asyncio.run(main())


def test_watches_feed_the_index(server: ApiServer) -> None:
    async def story(index: Index, woken: set[str]) -> None:
        await until(lambda: len(index.owned("team", "o").pods) == 1 and woken == {"demo"})
        server.events["pods"].append({"type": "ADDED", "object": pod(11, "new", name="q")})
        await until(lambda: len(index.owned("team", "o").pods) == 2)
        server.events["pods"].append({"type": "DELETED", "object": pod(12)})
        await until(lambda: [found.meta.uid for found in index.owned("team", "o").pods] == ["new"])
        meta = {"name": "demo", "namespace": "team", "uid": "o", "resourceVersion": "13", "generation": 1}
        meta |= {"creationTimestamp": "2027-01-15T08:00:00Z"}
        server.events["chatpipelines"].append({"type": "ADDED", "object": {"metadata": meta, "spec": {}}})
        await until(lambda: index.pipeline("team", "demo") is not None)

    run(server, (), story)
    ((path, query),) = server.watched("pods")
    assert (path, query["labelSelector"]) == ("/api/v1/pods", ["nanochat.dev/pipeline-uid"])
    ((path, query),) = server.watched("chatpipelines")
    assert path == "/apis/nanochat.dev/v1alpha1/chatpipelines" and "labelSelector" not in query


def test_jobs_are_watched_when_their_definition_comes(server: ApiServer) -> None:
    job = {**pod(20, "j"), "spec": JOB_SPEC, "status": {}}
    owner = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "name": "demo", "uid": "o"}
    job["metadata"] |= {"ownerReferences": [owner]}

    async def story(index: Index, _: set[str]) -> None:
        await until(lambda: len(server.watched("pods")) == 1)
        await asyncio.sleep(0.5)
        assert server.watched("pytorchjobs") == [] and len(server.watched("pods")) == 1, "nothing has changed"
        bystander = asyncio.create_task(asyncio.sleep(60))
        server.kinds.append(PYTORCHJOBS)
        await until(lambda: len(server.watched("pytorchjobs")) == 1)
        server.events["pytorchjobs"].append({"type": "ADDED", "object": job})
        await until(lambda: list(index.owned("team", "o").jobs) == ["p"])
        assert not bystander.done(), "kopf that ends takes no task of the controller's with it"
        bystander.cancel()

    run(server, ("team",), story)
    ((path, query),) = server.watched("pytorchjobs")
    assert path == "/apis/kubeflow.org/v1/namespaces/team/pytorchjobs"
    assert query["labelSelector"] == ["nanochat.dev/pipeline-uid"]


def test_a_definition_that_goes_takes_no_other_watch_with_it(server: ApiServer) -> None:
    server.kinds.append(PYTORCHJOBS)

    async def story(index: Index, _: set[str]) -> None:
        await until(lambda: len(server.watched("pytorchjobs")) == 1 and len(index.owned("team", "o").pods) == 1)
        server.kinds.remove(PYTORCHJOBS)
        await until(lambda: not index.jobs.served and len(server.watched("pods")) > 1)
        server.events["pods"].append({"type": "ADDED", "object": pod(31, "new", name="q")})
        await until(lambda: len(index.owned("team", "o").pods) == 2)

    run(server, ("team",), story)


def test_watches_that_are_refused_end_the_controller(server: ApiServer) -> None:
    """The API server has pipelines and refuses them: that is not passed over."""
    server.answer = lambda path: None if path.endswith("chatpipelines") else ApiServer.answer(server, path)  # type: ignore[method-assign]

    kube = KubeClient.connect()
    index = Index(kube, PyTorchJobs(kube), lambda *_: None)
    with pytest.raises(kopf_errors.APINotFoundError):
        asyncio.run(asyncio.wait_for(watches.watch(index, kube, (), asyncio.Event()), 20))
