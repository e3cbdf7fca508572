"""The controller: one reconciler for each pipeline, woken by what is new about it.

    controller = Controller(config, kube, service, cache)
    await controller.run(stop)

kopf's watches feed the index (`operators.watches`), and whatever is new there wakes the reconciler of its pipeline. A
pipeline at rest has no task and no timer. Reconciliations run in threads, a bounded number for each store profile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import NanochatError
from operators import logs, metrics, status, watches
from operators.access import publish
from operators.claims import Claims
from operators.cluster import Cluster
from operators.config import Config
from operators.events import Events
from operators.index import Index
from operators.kube_client import KubeClient
from operators.kube_error import KubeError
from operators.mlflow_sync import MlflowSync
from operators.pytorchjob import PyTorchJobs
from operators.reconciler import PipelineReconciler
from operators.reconciliation import ARTIFACT_SECONDS
from operators.rollout import RolloutController
from operators.run_state import RunSnapshot
from operators.services import Services
from operators.status import no_serving
from operators.store_leases import StoreLeases
from operators.stores import Stores

log = logging.getLogger(__name__)

RECONCILES_AT_ONCE = 8  # of the pipelines of one store profile
RESYNC_SECONDS = 600.0  # between listings of everything, in case a watch missed something
LOOKS_A_SECOND = 3.0  # of all pipelines that wait, though nothing is new: what they wait for wakes them
COALESCE_SECONDS = 0.3  # changes that come together are one reconciliation
STUCK_SECONDS = 60.0  # an event loop that was silent for so long is stuck
SLOW_SECONDS = 15.0  # a reconciliation that takes longer is told of, and those that wait for its thread
BACKOFF = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)  # seconds after so many failed reconciliations in a row

Result = TypeVar("Result")


class Controller:
    """All loops, by (namespace, name). Its methods run in the asyncio loop, but `wake`, which any thread may call."""

    def __init__(self, config: Config, kube: KubeClient, service: str, cache: Path) -> None:
        self.config, self.kube, self.service = config, kube, service
        cluster, backend = Cluster(kube), PyTorchJobs(kube)
        self.index = Index(kube, backend, self.wake)
        self.claims = Claims(self.index, changed=self.wake)
        self.leases, self.stores = StoreLeases(), Stores(cache)
        self.rollout: RolloutController | None = None
        if config.serving is not None:
            profile = config.profiles[config.serving.profile]
            self.rollout = RolloutController(
                config.serving, profile, cluster, changed=self._wake_served, leases=self.leases, stores=self.stores
            )
        self.services = Services(
            cluster=cluster,
            index=self.index,
            backend=backend,
            config=config,
            claims=self.claims,
            events=Events(kube, "nanochat-controller"),
            stores=self.stores,
            leases=self.leases,
            access=self._access,
            serving=self.rollout.about if self.rollout else no_serving,
        )
        self.mlflow_sync = MlflowSync(self._snapshots)
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="controller")
        self.pools: dict[str, ThreadPoolExecutor] = {}  # by store profile: one that is slow delays no other
        self.reconcilers: dict[tuple[str, str], PipelineReconciler] = {}
        self.tasks: dict[tuple[str, str], asyncio.Task[None]] = {}  # of those that are not at rest
        self.wakes: dict[tuple[str, str], asyncio.Event] = {}
        self.busy: dict[tuple[str, str], float] = {}  # since when one is reconciled, or waits for a thread
        self.queued: set[tuple[str, str]] = set()  # of those the ones that wait for a thread
        self.ended: dict[ThreadPoolExecutor, float] = {}  # when one of its reconciliations ended last
        self.slow: dict[tuple[str, str], float] = {}  # of those the ones that were told of
        self.ticked = time.monotonic()
        self.synced = asyncio.Event()  # the index is complete
        self._asyncio: asyncio.AbstractEventLoop | None = None

    # ---- waking ---------------------------------------------------------------------------------------------

    def wake(self, namespace: str, name: str) -> None:
        """Something about a pipeline changed, or it is new."""
        if self._asyncio is not None and not self._asyncio.is_closed():
            self._asyncio.call_soon_threadsafe(self._wake, (namespace, name))

    def _wake(self, key: tuple[str, str]) -> None:
        """Wake the reconciler of a pipeline, or give it one."""
        found = self.index.pipeline(*key)
        if key in self.tasks:
            self.wakes[key].set()
            return
        if key not in self.reconcilers:
            if found is None:
                return
            self.reconcilers[key] = PipelineReconciler(*key, self.services)
            self.reconcilers[key].expect(found.body)
        self.wakes[key] = asyncio.Event()
        self.tasks[key] = asyncio.create_task(self._drive(key), name="/".join(key))

    def _wake_served(self) -> None:
        """Wake the pipelines whose condition Serving is another now."""
        assert self.rollout is not None
        for found in self.index.pipelines.all():
            body = found.body
            told = status.condition(body.get("status"), status.SERVING)
            run = RunPaths.of(namespace=found.meta.namespace, name=found.meta.name, uid=found.meta.uid).root
            if self.rollout.about(run, told_before=told is not None) not in (None, told):
                self.wake(found.meta.namespace, found.meta.name)

    # ---- running --------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        self._asyncio = asyncio.get_running_loop()
        watching = asyncio.create_task(watches.watch(self.index, self.kube, self.config.namespaces, stop))
        resync = asyncio.create_task(self._resync())
        tick = asyncio.create_task(self.tick())
        rollout = asyncio.create_task(self._roll_out())
        self.mlflow_sync.start()
        await asyncio.wait({watching, asyncio.create_task(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        for task in (resync, tick, rollout, *self.tasks.values()):
            task.cancel()
        with suppress(TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(watching, 10)

    async def _resync(self) -> None:
        """List everything: at the start, so that all claims and attempts are known, and now and then."""
        while True:
            try:
                for namespace in self.config.namespaces or ("",):
                    await self._in_pool(self.index.resync, namespace)
                await self._in_pool(self.claims.learn)
                self.synced.set()
                for key in [key for key, reconciler in self.reconcilers.items() if reconciler.is_stale()]:
                    self._wake(key)
            except KubeError as error:
                log.warning("%s", error.message)
            self.stores.forget()
            await asyncio.sleep(RESYNC_SECONDS if self.synced.is_set() else 2.0)

    async def tick(self) -> None:
        """Show that the event loop goes, and say which reconciliations take long."""
        while True:
            self.ticked = time.monotonic()
            slow = self._slow()
            for key, since in slow.items():
                if self.slow.get(key) != since:
                    self.pool.submit(self.reconcilers[key].tell_slow, self.ticked - since)
            self.slow = slow
            metrics.slow.set(len(self.slow))
            self._count()
            await asyncio.sleep(1.0)

    def _slow(self) -> dict[tuple[str, str], float]:
        """The reconciliations that take long, and those that wait for a thread while none gets free: since when."""
        latest = self.ticked - SLOW_SECONDS
        slow = {key: since for key, since in list(self.busy.items()) if since < latest}
        for key in self.queued & slow.keys():
            slow[key] = max(slow[key], self.ended.get(self._pool_of(key), 0.0))
        return {key: since for key, since in slow.items() if since < latest}

    async def _drive(self, key: tuple[str, str]) -> None:
        """Reconcile again and again, until nothing is left to do."""
        failures = 0
        await self.synced.wait()
        while True:
            wake = self.wakes[key]
            wake.clear()
            pool = self._pool_of(key)
            self.busy[key] = time.monotonic()
            self.queued.add(key)
            try:
                delay = await asyncio.get_running_loop().run_in_executor(pool, self._reconcile, key)
                failures = 0
            except Exception:
                delay = BACKOFF[min(failures, len(BACKOFF) - 1)]
                failures += 1
            self.ended[pool] = time.monotonic()
            if delay is None and not wake.is_set():
                break
            if delay is not None and delay >= ARTIFACT_SECONDS:  # nothing runs: so many look now and then, not more
                delay = max(delay, len(self.tasks) / LOOKS_A_SECOND)
            with suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), delay)
            await asyncio.sleep(COALESCE_SECONDS)
        del self.tasks[key], self.wakes[key]
        if self.reconcilers[key].run is None:
            del self.reconcilers[key]

    def _pool_of(self, key: tuple[str, str]) -> ThreadPoolExecutor:
        """The threads of a pipeline's store profile."""
        found = self.index.pipeline(*key)
        profile = found.profile if found is not None and found.profile in self.config.profiles else ""
        if profile not in self.pools:
            self.pools[profile] = ThreadPoolExecutor(RECONCILES_AT_ONCE, thread_name_prefix=f"reconcile-{profile}")
        return self.pools[profile]

    async def _roll_out(self) -> None:
        """Let the inference server follow the registry, if there is one."""
        if self.rollout is None or self.config.serving is None:
            return
        while True:
            delay = BACKOFF[-1]
            try:
                delay = await self._in_pool(self.rollout.reconcile)
            except Exception:
                metrics.errors.labels(kind="program").inc()
                log.exception("a look at the served version failed")
            await asyncio.sleep(delay)

    def _reconcile(self, key: tuple[str, str]) -> float | None:
        self.busy[key] = time.monotonic()
        self.queued.discard(key)
        with logs.about(namespace=key[0], name=key[1]), metrics.reconcile_seconds.time():
            try:
                delay = self.reconcilers[key].reconcile()
            except Exception as error:
                metrics.reconciles.labels(result="error").inc()
                kind = "cluster" if isinstance(error, KubeError) else "program"
                metrics.errors.labels(kind=kind).inc()
                if isinstance(error, NanochatError):
                    log.warning("%s", error.message)
                else:
                    log.exception("a reconciliation failed")
                raise
            finally:
                self.busy.pop(key, None)
            metrics.reconciles.labels(result="ok").inc()
            return delay

    async def _in_pool(self, function: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    # ---- what the endpoint asks -----------------------------------------------------------------------------

    def _access(self, before: Mapping[str, str] | None, now: float) -> Mapping[str, str] | None:
        return publish(self.service, before, now) if self.service else None

    def published_access(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """The access to its logs that a pipeline's status says."""
        found = self.index.pipeline(namespace, name)
        return (found.body.get("status") or {}).get("access") if found else None

    def stored_run(self, namespace: str, name: str) -> RunSnapshot | None:
        """The run of a pipeline."""
        reconciler = self.reconcilers.get((namespace, name))
        return reconciler.snapshot if reconciler else None

    def _snapshots(self) -> list[RunSnapshot]:
        return [run for reconciler in list(self.reconcilers.values()) if (run := reconciler.snapshot) is not None]

    def health(self) -> str:
        """Why the controller itself stands, in a sentence; '' where it goes. A slow reconciliation is no reason."""
        silent = time.monotonic() - self.ticked
        return f"the event loop has not ticked for {silent:.0f} s" if silent > STUCK_SECONDS else ""

    def _count(self) -> None:
        phases: dict[str, int] = {}
        for run in self._snapshots():
            phases[str(run.phase)] = phases.get(str(run.phase), 0) + 1
        metrics.set_pipelines(phases)
        metrics.set_suspicion(self.services.suspicion.scores(time.time()))
