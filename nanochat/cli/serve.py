"""Serve a model artifact over HTTP: OpenAI's chat API and the chat page.

    serve(folder=folder, host="127.0.0.1", port=8000, slots=8)

NANOCHAT_API_KEYS, separated by commas, are the keys that clients have to send; without them everyone may ask.
NANOCHAT_KEY_REQUESTS_PER_MINUTE is how often each of them may ask.
NANOCHAT_ALLOWED_HOSTS are further names under which the server may be asked.
NANOCHAT_ALLOWED_ORIGINS are the origins of other web pages whose scripts may ask (https://chat.example.org); * is any.
NANOCHAT_TLS_CERT and NANOCHAT_TLS_KEY are files with a certificate and its key, where options name none.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console

from nanochat.data.questions import read_questions
from nanochat.inference import Engine
from nanochat.serving.app import create_app
from nanochat.serving.holder import Model, ModelHolder, Served
from nanochat.serving.loading import fingerprint, load
from nanochat.serving.server import begin_log, bind, is_local, run
from nanochat.serving.service import EngineService
from nanochat.serving.settings import NO_KEYS, ServerSettings
from nanochat.serving.tls import Certificate


def serve(
    *,
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    slots: int = 8,
    int8: bool = False,
    guesses: int = 0,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer what was begun and return."""
    begin_log()
    console = Console(highlight=False, soft_wrap=True)
    certificate = Certificate.of(tls_cert, tls_key, os.environ)
    with bind(host, port) as socket:  # before the model is loaded: a port in use is said at once
        local = is_local(socket)
        settings = ServerSettings.from_environment(os.environ, local=local)
        if not (local or settings.api_keys):
            print(f"warning: {host} is reached from other machines. {NO_KEYS}", file=sys.stderr)
        model, tokenizer, extra = load(folder, int8=int8)
        hosted = ModelHolder()
        served = Served("nanochat", fingerprint(folder), questions=read_questions(extra))
        service = EngineService(Engine(model, tokenizer, slots=slots, guesses=guesses), metrics=hosted.metrics)
        hosted.open(Model(served, service, tokenizer))
        app = create_app(hosted, settings)
        address = f"{'https' if certificate else 'http'}://{host}:{socket.getsockname()[1]}"
        what = f"the {extra['stage']} model" if "stage" in extra else str(folder)
        console.print(
            f"Serving {what} as {served.name} at {address} (API: {address}/v1). Ctrl-C ends it.", markup=False
        )
        run(app, hosted, socket=socket, certificate=certificate)
        console.print("Ended.", markup=False)
