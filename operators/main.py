"""The controller's process: `python -m operators.main --config FILE --port 8080`.

kopf watches the ChatPipelines and our own watches the jobs and pods; all they do is wake the loop of a pipeline, which
looks for itself. Reconciliations run in a bounded pool of threads.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import kopf
import urllib3
from kubernetes import client
from kubernetes import config as kubeconfig

from nanochat.spec.chatpipeline import GROUP, PLURAL, VERSION
from nanochat.spec.errors import NanochatError
from operators import endpoint, logs, metrics
from operators.access import Access
from operators.claims import Claims
from operators.cluster import Cluster, ClusterError
from operators.config import Config
from operators.events import Events
from operators.lease import Lease
from operators.mlflow_sync import MlflowSync
from operators.reconciler import PipelineReconciler, RunSnapshot, Services
from operators.rollout import RolloutController
from operators.status import no_serving

log = logging.getLogger(__name__)

RECONCILES_AT_ONCE = 16
RESYNC_SECONDS = 60.0  # between listings of all pipelines, in case a watch missed one
COALESCE_SECONDS = 0.3  # changes that come together are one reconciliation
STUCK_SECONDS = 300.0  # a reconciliation that takes longer, or a scheduler that was silent so long, is stuck
BACKOFF = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)  # seconds after so many failed reconciliations in a row


class Controller:
    """All loops, by (namespace, name). Its methods run in the asyncio loop, but `wake`, which any thread may call."""

    def __init__(self, config: Config, cluster: Cluster, access: Access, service: str, cache: Path) -> None:
        self.config, self.cluster, self.access, self.service = config, cluster, access, service
        self.claims = Claims(changed=self.wake_all)
        self.rollout: RolloutController | None = None
        if config.serving is not None:
            profile = config.profiles[config.serving.profile]
            self.rollout = RolloutController(config.serving, profile, cluster, changed=self.wake_all)
        self.services = Services(
            cluster=cluster,
            config=config,
            claims=self.claims,
            events=Events(cluster.core, "nanochat-controller"),
            cache=cache,
            access=self._access,
            serving=self.rollout.about if self.rollout else no_serving,
        )
        self.mlflow_sync = MlflowSync(
            lambda: [loop.view for loop in list(self.loops.values()) if loop.view is not None]
        )
        self.pool = ThreadPoolExecutor(RECONCILES_AT_ONCE, thread_name_prefix="reconcile")
        self.loops: dict[tuple[str, str], PipelineReconciler] = {}
        self.tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self.wakes: dict[tuple[str, str], asyncio.Event] = {}
        self.busy: dict[tuple[str, str], float] = {}  # since when one is reconciled
        self.ticked = time.monotonic()
        self.ready = False
        self._asyncio: asyncio.AbstractEventLoop | None = None

    # ---- waking ---------------------------------------------------------------------------------------------

    def wake(self, namespace: str, name: str) -> None:
        """Something about a pipeline changed."""
        if self._asyncio is not None and not self._asyncio.is_closed():
            self._asyncio.call_soon_threadsafe(self._wake, (namespace, name))

    def wake_all(self) -> None:
        for key in list(self.wakes):
            self.wake(*key)

    def _wake(self, key: tuple[str, str]) -> None:
        if key in self.wakes:
            self.wakes[key].set()

    def notice(self, namespace: str, name: str, uid: str, created: str) -> None:
        """There is a pipeline: give it a loop, or wake the one it has."""
        key = (namespace, name)
        self.claims.expect(uid, name, created)
        if key in self.tasks and not self.tasks[key].done():
            self._wake(key)
            return
        self.loops[key] = PipelineReconciler(namespace, name, self.services)
        self.wakes[key] = asyncio.Event()
        self.tasks[key] = asyncio.create_task(self._drive(key), name=f"{namespace}/{name}")

    # ---- running --------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        self._asyncio = asyncio.get_running_loop()
        for kind in ("jobs", "pods"):
            for namespace in self.config.namespaces or ("",):
                threading.Thread(target=self._watch, args=(kind, namespace), name=f"watch-{kind}", daemon=True).start()
        watching = asyncio.create_task(self._kopf(stop))
        resync = asyncio.create_task(self._resync())
        tick = asyncio.create_task(self._tick())
        rollout = asyncio.create_task(self._roll_out())
        self.mlflow_sync.start()
        await asyncio.wait({watching, asyncio.create_task(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
        ended_early = watching.done() and not stop.is_set()
        stop.set()
        for task in (resync, tick, rollout, *self.tasks.values()):
            task.cancel()
        with suppress(TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(watching, 10)
        if ended_early:
            raise RuntimeError("the watch of ChatPipelines ended by itself")

    async def _kopf(self, stop: asyncio.Event) -> None:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**known: Any) -> kopf.ConnectionInfo | None:
            return kopf.login_with_service_account(**known) or kopf.login_with_kubeconfig(**known)

        @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
        async def changed(meta: kopf.Meta, **_: Any) -> None:
            self.notice(meta["namespace"], meta["name"], meta["uid"], meta["creationTimestamp"])

        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.scanning.disabled = True  # it would watch all CRDs and namespaces
        settings.watching.server_timeout = 240
        settings.watching.client_timeout = 300
        await kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            clusterwide=not self.config.namespaces,
            namespaces=list(self.config.namespaces),
            stop_flag=stop,
        )

    async def _resync(self) -> None:
        """List all pipelines: at the start, so that all claims are known, and now and then."""
        while True:
            try:
                for namespace in self.config.namespaces or ("",):
                    found = await self._in_pool(self.cluster.pipelines, namespace)
                    for item in found:
                        meta = item["metadata"]
                        self.notice(meta["namespace"], meta["name"], meta["uid"], meta["creationTimestamp"])
                self.ready = True
            except ClusterError as error:
                log.warning("%s", error.message)
            self._count()
            await asyncio.sleep(RESYNC_SECONDS if self.ready else 2.0)

    async def _tick(self) -> None:
        while True:
            self.ticked = time.monotonic()
            await asyncio.sleep(1.0)

    async def _drive(self, key: tuple[str, str]) -> None:
        """Reconcile again and again, until the pipeline is gone."""
        failures = 0
        while True:
            wake = self.wakes[key]
            wake.clear()
            self.busy[key] = time.monotonic()
            try:
                delay = await self._in_pool(self._turn, key)
                failures = 0
            except Exception:
                delay = BACKOFF[min(failures, len(BACKOFF) - 1)]
                failures += 1
            finally:
                self.busy.pop(key, None)
            if delay is None:
                if wake.is_set():
                    continue  # it was made again meanwhile
                for table in (self.loops, self.tasks, self.wakes):
                    table.pop(key, None)
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), delay)
            await asyncio.sleep(COALESCE_SECONDS)

    async def _roll_out(self) -> None:
        """Let the inference server follow the registry, if there is one."""
        if self.rollout is None or self.config.serving is None:
            return
        key = (self.config.serving.namespace, f"deployments/{self.config.serving.deployment}")
        while True:
            delay = BACKOFF[-1]
            self.busy[key] = time.monotonic()
            try:
                delay = await self._in_pool(self.rollout.reconcile)
            except Exception:
                metrics.errors.labels(kind="program").inc()
                log.exception("a look at the served version failed")
            finally:
                self.busy.pop(key, None)
            await asyncio.sleep(delay)

    def _turn(self, key: tuple[str, str]) -> float | None:
        with logs.about(namespace=key[0], name=key[1]), metrics.reconcile_seconds.time():
            try:
                delay = self.loops[key].reconcile()
            except Exception as error:
                metrics.reconciles.labels(result="error").inc()
                kind = "cluster" if isinstance(error, ClusterError) else "program"
                metrics.errors.labels(kind=kind).inc()
                if isinstance(error, NanochatError):
                    log.warning("%s", error.message)
                else:
                    log.exception("a reconciliation failed")
                raise
            metrics.reconciles.labels(result="ok").inc()
            return delay

    async def _in_pool(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    def _watch(self, kind: str, namespace: str) -> None:
        """Wake loops on changes of what is theirs; where the watch breaks, it begins anew."""
        while True:
            try:
                for pipeline in self.cluster.changes(kind, namespace):
                    self.wake(*pipeline)
            except Exception as error:
                log.warning("the watch of %s broke: %s", kind, error)
                time.sleep(2.0)

    # ---- what the endpoint asks -----------------------------------------------------------------------------

    def _access(self, uid: str) -> dict[str, str] | None:
        if not self.service:
            return None
        return {"service": self.service, "token": self.access.token(uid, time.time())}

    def view(self, namespace: str, name: str) -> endpoint.StoredRun | None:
        """What the HTTP endpoint may read of a pipeline."""
        loop = self.loops.get((namespace, name))
        view = loop.view if loop else None
        if view is None:
            return None
        graph = view.accepted.graph
        report = graph.node("report").outputs[0].key if "report" in graph.stages else None
        return endpoint.StoredRun(
            uid=view.uid, store=view.artifacts.store, paths=view.paths, artifacts=view.artifacts, report_key=report
        )

    def _snapshots(self) -> list[RunSnapshot]:
        return [loop.view for loop in list(self.loops.values()) if loop.view is not None]

    def health(self) -> str:
        """What is stuck, in a sentence; '' where all is well."""
        now = time.monotonic()
        if now - self.ticked > STUCK_SECONDS:
            return f"the scheduler has not ticked for {now - self.ticked:.0f} s"
        for (namespace, name), since in list(self.busy.items()):
            if now - since > STUCK_SECONDS:
                return f"the reconciliation of {namespace}/{name} has lasted {now - since:.0f} s"
        return ""

    def _count(self) -> None:
        phases: dict[str, int] = {}
        for loop in list(self.loops.values()):
            if loop.view is not None:
                phases[str(loop.view.phase)] = phases.get(str(loop.view.phase), 0) + 1
        metrics.set_pipelines(phases)


def main() -> int:
    """Run the controller; returns the exit code."""
    parser = argparse.ArgumentParser(prog="operators.main", description="The controller of ChatPipelines.")
    parser.add_argument("--config", type=Path, required=True, help="configuration file (YAML)")
    parser.add_argument("--port", type=int, default=8080, help="port of health, metrics and stored logs")
    parser.add_argument("--log-level", default="INFO")
    options = parser.parse_args()
    logs.configure(options.log_level)
    try:
        config = Config.load(options.config)
        api = _connect()
    except NanochatError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    namespace = os.environ.get("POD_NAMESPACE", "default")
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{secrets.token_hex(4)}"
    cache = Path(os.environ.get("NANOCHAT_CACHE", "/tmp/nanochat"))
    access = Access(secrets.token_bytes(32))
    controller = Controller(config, Cluster(api), access, os.environ.get("NANOCHAT_SERVICE", ""), cache)
    app = endpoint.build_app(controller.view, access, controller.health, lambda: controller.ready)
    server = endpoint.Server(app, options.port)
    lease = Lease(client.CoordinationV1Api(api), namespace, "nanochat-controller", identity)
    try:
        return asyncio.run(_lead(controller, lease))
    finally:
        server.stop()


async def _lead(controller: Controller, lease: Lease) -> int:
    """Wait for the lease, then run until SIGTERM or until the lease is lost."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    ticking = asyncio.create_task(controller._tick())
    acquired = loop.run_in_executor(None, lease.acquire)
    await asyncio.wait({acquired, asyncio.create_task(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
    ticking.cancel()
    if stop.is_set():
        os._exit(0)  # the thread that waits for the lease waits on
    log.info("leading")

    def lost() -> None:
        log.error("the lease was lost: another controller may lead by now")
        os._exit(1)

    lease.on_lost = lost
    try:
        await controller.run(stop)
    finally:
        lease.release()
    return 0


def _connect() -> client.ApiClient:
    """A client from the pod's service account, else from the kubeconfig."""
    configuration = client.Configuration()
    try:
        kubeconfig.load_incluster_config(client_configuration=configuration)
    except kubeconfig.ConfigException:
        try:
            kubeconfig.load_kube_config(client_configuration=configuration)
        except kubeconfig.ConfigException as error:
            raise ClusterError(f"there is neither a service account nor a kubeconfig: {error}") from None
    configuration.connection_pool_maxsize = RECONCILES_AT_ONCE + 4
    configuration.retries = urllib3.Retry(0)  # type: ignore[assignment]  # what fails is reconciled again
    return client.ApiClient(configuration)


if __name__ == "__main__":
    sys.exit(main())
