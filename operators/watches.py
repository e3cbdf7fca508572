"""kopf's watches of pipelines and, by their label, of jobs and pods: they feed the index.

    await watch(index, kube, namespaces, stop)

kopf asks only as it starts which kinds of objects there are. Where a definition comes later, as the jobs' may, or
goes, kopf is started anew. Without jobs' definition there are no jobs, which is what the index then says.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import kopf

from operators.index import Index, SomeCache
from operators.kube_client import KubeClient
from operators.kube_error import KubeError

log = logging.getLogger(__name__)

logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it warns that signals are not its own

DISCOVERY_SECONDS = 20.0  # between looks for definitions that came or went


async def watch(index: Index, kube: KubeClient, namespaces: Collection[str], stop: asyncio.Event) -> None:
    """Watch until `stop` is set; no namespaces are all. RuntimeError where a watch ends by itself."""
    stopping = asyncio.create_task(stop.wait())
    while not stop.is_set():
        served, ending = await _served(index, kube), threading.Event()
        changing = asyncio.create_task(_changed(index, kube, served))
        # In an event loop of its own: when kopf ends, it cancels all tasks of its loop that began after it.
        operator = asyncio.create_task(asyncio.to_thread(asyncio.run, _kopf(served, namespaces, ending)))
        try:
            await asyncio.wait({stopping, changing, operator}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changing.cancel()
            ended = operator.done()
            ending.set()
        (fault,) = await asyncio.gather(operator, return_exceptions=True)
        # Where a definition went, its watch fails, and kopf with it.
        if (ended or fault) and served == await _served(index, kube):
            raise fault or RuntimeError("kopf's watches ended by themselves")


async def _served(index: Index, kube: KubeClient) -> list[SomeCache]:
    """The caches of the kinds of objects that the API server has."""
    while True:
        try:
            for cache in index.caches:
                cache.served = await asyncio.to_thread(kube.serves, cache.resource)
            return [cache for cache in index.caches if cache.served]
        except KubeError as error:
            log.warning("%s", error.message)
            await asyncio.sleep(2.0)


async def _changed(index: Index, kube: KubeClient, served: list[SomeCache]) -> None:
    """Wait until the API server has other kinds of objects."""
    for cache in index.caches:
        if cache not in served and not cache.optional:
            log.warning("the cluster has no %s: install what defines them", cache.resource.plural)
    while served == await _served(index, kube):
        await asyncio.sleep(DISCOVERY_SECONDS)


async def _kopf(served: list[SomeCache], namespaces: Collection[str], ending: threading.Event) -> None:
    """Run kopf until `ending` is set."""
    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # it would watch all CRDs and namespaces
    settings.watching.chunk_size = 50  # a thousand pipelines at once would take 100 MiB, most of which never comes back
    settings.watching.server_timeout = 240
    settings.watching.client_timeout = 300

    @kopf.on.login(registry=registry)
    async def login(**known: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**known) or kopf.login_with_kubeconfig(**known)

    for cache in served:
        group, _, version = cache.resource.api_version.rpartition("/")
        kind = (group, version, cache.resource.plural)
        if cache.label:
            settings.watching.label_selectors[kind] = cache.label
        kopf.on.event(*kind, registry=registry, id=cache.resource.plural)(_handler(cache))
    try:
        await kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            clusterwide=not namespaces,
            namespaces=list(namespaces),
            stop_flag=ending,
        )
    finally:
        ending.set()  # where kopf fails, its thread that waits for this would keep the loop from closing


def _handler(cache: SomeCache) -> Callable[..., Awaitable[None]]:
    async def take(event: kopf.RawEvent, **_: object) -> None:
        cache.watched(event["type"], dict(event["object"]))

    return take
