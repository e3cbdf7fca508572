"""The inference server of a cluster: `python -m nanochat.serving --host 0.0.0.0 --port 8000 --slots 8`.

It listens at once and loads the model that the environment names (`nanochat.serving.loader`) in the background.
NANOCHAT_API_KEYS, separated by commas, are the keys that clients have to send; without them everyone may ask.
NANOCHAT_KEY_REQUESTS_PER_MINUTE is how often each of them may ask.
NANOCHAT_ALLOWED_HOSTS, if set, are the names under which the server may be asked, beside addresses and localhost.
NANOCHAT_ALLOWED_ORIGINS are the origins of other web pages whose scripts may ask (https://chat.example.org); * is any.
NANOCHAT_TLS_CERT and NANOCHAT_TLS_KEY are files with a certificate and its key: with them it speaks HTTPS alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from nanochat.serving.app import create_app
from nanochat.serving.holder import ModelHolder
from nanochat.serving.loader import Loader, Wanted
from nanochat.serving.server import begin_log, bind, is_local, run
from nanochat.serving.settings import NO_KEYS, ServerSettings
from nanochat.serving.tls import Certificate
from nanochat.spec.bounds import NAME, integer, real, text
from nanochat.spec.errors import NanochatError, UserError


def main() -> int:
    """Serve until SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nanochat.serving", description="The chat API and the chat page.")
    parser.add_argument("--host", type=text(NAME), default="0.0.0.0", help="address to listen on")
    parser.add_argument("--port", type=integer(0, 65535), default=8000, help="port to listen on")
    parser.add_argument("--slots", type=integer(1, 1024), default=8, help="requests that are answered at a time")
    parser.add_argument(
        "--linger",
        type=real(0, 3600),
        default=5.0,
        help="seconds after SIGTERM in which new requests are still answered",
    )
    options = parser.parse_args()
    begin_log()
    wanted = Wanted.from_environment(os.environ)
    host = ModelHolder(wanted.reason)
    try:
        with bind(options.host, options.port) as socket:
            local = is_local(socket)
            settings = ServerSettings.from_environment(os.environ, local=local)
            if not (local or settings.api_keys):
                logging.warning("%s", NO_KEYS)
            certificate = Certificate.of(None, None, os.environ)
            loader = Loader(host, wanted, slots=options.slots)
            loader.start()
            logging.info("listening on %s:%d; %s", options.host, socket.getsockname()[1], host.reason)
            app = create_app(host, settings)
            run(app, host, socket=socket, certificate=certificate, linger=options.linger)
            loader.stop()
    except UserError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    except NanochatError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    return 0
