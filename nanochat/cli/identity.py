"""`nanochat identity generate`."""

from __future__ import annotations

import os
from pathlib import Path

from nanochat.data import identity, identity_endpoint
from nanochat.spec.errors import UserError

KEY = "OPENAI_API_KEY"


def generate(
    path: Path, *, name: str, maker: str, facts: list[str], count: int, seed: int, url: str | None, model: str | None
) -> None:
    """Write conversations from templates, or with an OpenAI-compatible endpoint (its key is in OPENAI_API_KEY)."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: name a file in it")
        if url is None:
            written = identity.generate(path, name=name, maker=maker, facts=facts, count=count, seed=seed)
        else:
            if model is None:
                raise UserError("--url needs --model: the name of the endpoint's model")
            endpoint = identity_endpoint.Endpoint(base_url=url, model=model, key=os.environ.get(KEY))
            request = identity_endpoint.Request(name=name, maker=maker, facts=tuple(facts), count=count, seed=seed)
            show = lambda done: print(f"\r{done}/{count}", end="", flush=True)  # noqa: E731
            written = identity_endpoint.generate(path, request, endpoint=endpoint, progress=show)
            print()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    print(f"{written} conversations written to {path}; use them with --set stages.mid.identity={path}")
