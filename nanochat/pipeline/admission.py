"""From a declaration to a pipeline that can run: the checks that come before anything is started or stored.

    admitted = admit_local(pipeline)                 # local files are found and made part of keys
    admitted = admit(pipeline, contents)             # the caller knows the digests of the files that are named

Everything wrong is a UserError in one sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.parse.address import absolute, local_path
from nanochat.pipeline.graph import Graph, build_graph
from nanochat.pipeline.preflight import check_inputs
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import Pipeline, PipelineSpec


@dataclass(frozen=True, slots=True)
class Admitted:
    """A pipeline that passed all checks, with its graph."""

    pipeline: Pipeline
    graph: Graph

    @property
    def spec(self) -> PipelineSpec:
        """The pipeline's settings."""
        return self.pipeline.spec


def admit(pipeline: Pipeline, contents: Mapping[str, str]) -> Admitted:
    """Check a pipeline. `contents` maps the address of a file to its SHA-256, which is part of keys."""
    check_inputs(pipeline.spec)
    return Admitted(pipeline, build_graph(pipeline.spec, contents=contents))


def admit_local(pipeline: Pipeline) -> Admitted:
    """Check a pipeline whose local paths are of this machine."""
    pipeline = localize(pipeline)
    return admit(pipeline, file_digests(pipeline.spec))


def localize(pipeline: Pipeline) -> Pipeline:
    """The pipeline with local paths made absolute, so that it means the same from any folder."""
    spec = pipeline.spec
    identity = spec.stages.mid.identity
    mid = spec.stages.mid.model_copy(update={"identity": absolute(identity) if identity else None})
    stages = spec.stages.model_copy(update={"mid": mid})
    sources = spec.sources.located().mapped(absolute)
    return pipeline.model_copy(update={"spec": spec.model_copy(update={"sources": sources, "stages": stages})})


def file_digests(spec: PipelineSpec) -> dict[str, str]:
    """SHA-256 of the local files that the pipeline names, by their address."""
    uri = spec.stages.mid.identity
    path = local_path(uri) if uri else None
    if uri is None or path is None:
        return {}
    try:
        return {uri: hashlib.sha256(path.read_bytes()).hexdigest()}
    except OSError as error:
        raise UserError(f"stages.mid.identity: cannot read {path}: {error.strerror}") from None
