"""The controller's process: `python -m operators.main --config FILE --port 8080`.

It serves the HTTP endpoint at once, and reconciles once it has the Lease.
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
from pathlib import Path

from nanochat.spec.bounds import integer, path
from nanochat.spec.errors import NanochatError
from operators import endpoint, logs, metrics
from operators.config import Config
from operators.controller import Controller
from operators.kube_client import KubeClient
from operators.lease import NAME, Lease

log = logging.getLogger(__name__)

CONNECTIONS = 32  # to the API server
TIMEOUT = (5, 30)  # seconds to connect to the API server, and between bytes


def main() -> int:
    """Run the controller; returns the exit code."""
    parser = argparse.ArgumentParser(prog="operators.main", description="The controller of ChatPipelines.")
    parser.add_argument("--config", type=path, required=True, help="configuration file (YAML)")
    parser.add_argument("--port", type=integer(0, 65535), default=8080, help="port of health, metrics and stored logs")
    parser.add_argument("--log-level", type=str.upper, default="INFO", choices=logs.LEVELS)
    options = parser.parse_args()
    logs.configure(options.log_level)
    try:
        config = Config.load(options.config)
        kube = KubeClient.in_cluster(
            connections=CONNECTIONS,
            on_request=lambda verb, seconds: metrics.api_seconds.labels(verb=verb).observe(seconds),
        ).within(TIMEOUT)
    except NanochatError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    namespace = os.environ.get("POD_NAMESPACE", "default")
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{secrets.token_hex(4)}"
    cache = Path(os.environ.get("NANOCHAT_CACHE", "/tmp/nanochat"))
    controller = Controller(config, kube, os.environ.get("NANOCHAT_SERVICE", ""), cache)
    app = endpoint.build_app(
        controller.stored_run, controller.published_access, controller.health, controller.synced.is_set
    )
    server = endpoint.Server(app, options.port)
    lease = Lease(kube, namespace, NAME, identity)
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
    ticking = asyncio.create_task(controller.tick())
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


if __name__ == "__main__":
    sys.exit(main())
