"""The controller's read-only HTTP endpoint: health, metrics, and stored logs and reports of pipelines.

What is stored is reached through the API server's service proxy, with the token from the pipeline's status in the
header X-Nanochat-Token (`operators.access`). A pipeline that is unknown and a token that is wrong look alike: 404 with
the reason InvalidToken beside the detail.

    GET /v1/NAMESPACE/NAME/attempts                     records of all attempts
    GET /v1/NAMESPACE/NAME/progress/STAGE               where a stage stands
    GET /v1/NAMESPACE/NAME/logs/STAGE                   [{"launch", "files": [{"name", "bytes"}]}]
    GET /v1/NAMESPACE/NAME/logs/STAGE/LAUNCH/FILE?offset=N   what follows, with X-Nanochat-Next
    GET /v1/NAMESPACE/NAME/model?uri=ADDRESS            {"missing": why a model in its store cannot be used, or ""},
                                                        with &fingerprint=F of one that has it
    GET /v1/NAMESPACE/NAME/report                       names of the report's files
    GET /v1/NAMESPACE/NAME/report/FILE                  one of them
"""

import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from nanochat.model.artifact import missing_weights
from nanochat.pipeline.attempts import AttemptLog, read_latest_progress
from nanochat.pipeline.log_reader import list_launches, read_log
from nanochat.spec.errors import StorageError
from nanochat.storage.manifest import Manifest
from nanochat.tracking.mlflow import LARGEST_FILE
from operators import metrics
from operators.access import INVALID_TOKEN, accepts
from operators.attempts import JobAttempt
from operators.kube_error import Object
from operators.run_state import RunSnapshot

AT_ONCE = 8  # requests that are answered at a time
NEXT = "X-Nanochat-Next"


@asynccontextmanager
async def _few_at_once(_app: FastAPI) -> AsyncIterator[None]:
    """Each answer may hold some megabytes of what a pod has written."""
    current_default_thread_limiter().total_tokens = AT_ONCE
    yield


class InvalidToken(Exception):
    """A request for a pipeline that is unknown, or with a token that it does not have."""


def build_app(
    runs: Callable[[str, str], RunSnapshot | None],
    access: Callable[[str, str], Mapping[str, str] | None],
    health: Callable[[], str],
    ready: Callable[[], bool],
) -> FastAPI:
    """The application. `access` is what a pipeline's status says of it; `health` says what is stuck, or ''."""
    app = FastAPI(title="nanochat controller", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_few_at_once)

    def view(namespace: str, name: str, x_nanochat_token: Annotated[str, Header()] = "") -> RunSnapshot:
        found = runs(namespace, name)
        if found is None or not accepts(access(namespace, name), x_nanochat_token, time.time()):
            raise InvalidToken
        return found

    @app.exception_handler(InvalidToken)
    async def unknown(request: Request, error: InvalidToken) -> JSONResponse:
        detail = "no pipeline of this name has this token: read its status.access again"
        return JSONResponse({"reason": INVALID_TOKEN, "detail": detail}, status_code=404)

    @app.exception_handler(StorageError)
    async def unreachable(request: Request, error: StorageError) -> JSONResponse:
        return JSONResponse({"detail": error.message}, status_code=503)

    @app.exception_handler(FileNotFoundError)
    async def missing(request: Request, error: FileNotFoundError) -> JSONResponse:
        return JSONResponse({"detail": "there is no such file"}, status_code=404)

    @app.exception_handler(ValueError)
    async def no_path(request: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"detail": "there is no such file"}, status_code=404)

    @app.get("/livez")
    @app.get("/healthz")  # the probe of charts before 0.2
    def livez() -> Response:
        stuck = health()
        return PlainTextResponse(stuck or "ok", status_code=503 if stuck else 200)

    @app.get("/readyz")
    def readyz() -> Response:
        return PlainTextResponse("ok") if ready() else PlainTextResponse("starting", status_code=503)

    @app.get("/metrics")
    def prometheus() -> Response:
        return Response(generate_latest(metrics.REGISTRY), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/{namespace}/{name}/attempts")
    def attempts(run: Annotated[RunSnapshot, Depends(view)]) -> list[Object]:
        kept = AttemptLog(run.store, run.paths, JobAttempt).load()
        return [record.to_dict() for record in kept.all()]

    @app.get("/v1/{namespace}/{name}/progress/{stage}")
    def progress(run: Annotated[RunSnapshot, Depends(view)], stage: str) -> Object:
        state = read_latest_progress(run.store, run.paths, stage)
        if state is None:
            raise HTTPException(404, f"stage {stage} has reported nothing yet")
        return asdict(state)

    @app.get("/v1/{namespace}/{name}/logs/{stage}")
    def logs(run: Annotated[RunSnapshot, Depends(view)], stage: str) -> list[Object]:
        return [
            {"launch": launch.name, "files": [{"name": n, "bytes": b} for n, b in sorted(launch.files.items())]}
            for launch in list_launches(run.store, run.paths.logs(stage))
        ]

    @app.get("/v1/{namespace}/{name}/logs/{stage}/{launch}/{file}")
    def log(
        run: Annotated[RunSnapshot, Depends(view)],
        stage: str,
        launch: str,
        file: str,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        found = read_log(run.store, f"{run.paths.logs(stage, launch)}/{file}", offset=offset)
        return Response(found, media_type="text/plain; charset=utf-8", headers={NEXT: str(offset + len(found))})

    @app.get("/v1/{namespace}/{name}/model")
    def model(run: Annotated[RunSnapshot, Depends(view)], uri: str, fingerprint: str = "") -> dict[str, str]:
        if not uri.startswith(f"{run.store.root}/"):  # the token gives no right to look into other stores
            return {"missing": f"{uri[:500]} is not in the pipeline's store"}
        return {"missing": missing_weights(uri, lambda root: run.store, wanted=fingerprint)}

    def report_of(run: RunSnapshot) -> Manifest:
        found = run.artifacts.find("report", run.report) if run.report else None
        if found is None:
            raise HTTPException(404, "the pipeline has no report yet")
        return found

    @app.get("/v1/{namespace}/{name}/report")
    def report(run: Annotated[RunSnapshot, Depends(view)]) -> list[str]:
        return [record.path for record in report_of(run).files]

    @app.get("/v1/{namespace}/{name}/report/{file:path}")
    def report_file(run: Annotated[RunSnapshot, Depends(view)], file: str) -> Response:
        manifest = report_of(run)
        if file not in {record.path for record in manifest.files}:
            raise HTTPException(404, f"the report has no file {file}")
        folder = run.artifacts.folder(manifest.kind, manifest.key)
        return Response(
            run.store.read(f"{folder}/{manifest.launch}/{file}", LARGEST_FILE), media_type="application/octet-stream"
        )

    return app


class Server:
    """uvicorn in a thread."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, host="0.0.0.0", port=port, log_config=None, access_log=False))
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, answering what was asked."""
        self._server.should_exit = True
        self._thread.join(timeout=5)
