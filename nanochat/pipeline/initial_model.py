"""The model of the store that training starts from, where a pipeline names one.

check_initial_model(spec, graph, artifacts)      # before anything is started
find_initial_model(spec, artifacts)              # its manifest
"""

from __future__ import annotations

from pydantic.alias_generators import to_camel

from nanochat.model.artifact import CONFIG, KIND
from nanochat.model.sizes import FEATURES, ModelConfig
from nanochat.pipeline.graph import TOKENIZER, Graph
from nanochat.pipeline.resolve import model_config, shape_settings
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import PipelineSpec
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.failures import Damaged
from nanochat.storage.manifest import Manifest

LARGEST = 1 << 16  # bytes of a configuration


def check_initial_model(spec: PipelineSpec, graph: Graph, artifacts: Artifacts) -> None:
    """UserError as of `find_initial_model`, unless all that is made of the model is there."""
    if spec.stages.initial_model is None:
        return
    readers = (TOKENIZER, f"{KIND}/{spec.stages.trained()[0]}")
    made = {(out.kind, out.key) for node in graph.nodes for out in node.outputs if out.ref in readers}
    if artifacts.find_all(made).keys() != made:
        find_initial_model(spec, artifacts)


def find_initial_model(spec: PipelineSpec, artifacts: Artifacts) -> Manifest | None:
    """The model's manifest, None where the pipeline names none; UserError where the store has no such model, or the
    pipeline describes one of another shape."""
    key = spec.stages.initial_model
    if key is None:
        return None
    setting = f"stages.{spec.stages.trained()[0]}.initialModel"
    model = artifacts.find(KIND, key)
    if model is None:
        raise UserError(f"{setting}: this store has no model {key}: import it into this store, or name another")
    try:
        path = f"{artifacts.folder(KIND, key)}/{model.launch}/{CONFIG}"
        found = shape_settings(ModelConfig.from_dict(artifacts.store.read_json(path, LARGEST)))
    except (Damaged, FileNotFoundError, ValueError, TypeError):
        raise UserError(f"{setting}: the model {key} has no {CONFIG} that can be read: name another") from None
    unused = {f"model.{to_camel(feature.name)}": feature.default for feature in FEATURES}
    declared = unused | shape_settings(model_config(spec))
    if wrong := [f"{name}={value}" for name, value in (unused | found).items() if declared[name] != value]:
        raise UserError(
            f"{setting}: the pipeline describes another model than {key}, which has {', '.join(wrong)}: set that"
        )
    return model
