"""A pipeline that starts from a model of the store: what does not fit is refused before anything is started."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from training_rig import Rig

from nanochat.model.artifact import CONFIG, KIND
from nanochat.model.sizes import ModelConfig
from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.resolve import model_config
from nanochat.spec.load import check_pipeline
from nanochat.storage.artifacts import Artifacts
from operators.pytorchjob import PYTORCHJOBS
from operators.status import condition

KEY = "6a8f5b99f318558e2bd38b4e5cc2c09c"


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, spec={"stages": {"mid": {"initialModel": KEY}}})


def keep(rig: Rig, config: ModelConfig | None) -> Artifacts:
    """The store gets a model of this shape, or one that says nothing of its shape."""
    artifacts = Artifacts(rig.store, rig.folder / "made")
    artifacts.remove(KIND, KEY)
    with artifacts.writer(KIND, KEY, "import-1") as writer:
        (writer.folder / CONFIG).write_text(json.dumps(config.to_dict()) if config else "[]")
        writer.commit(recipe={}, inputs={})
    return artifacts


def refused(rig: Rig) -> str:
    """Why the pipeline is; nothing was started."""
    told = condition(rig.reconcile(), "Accepted")
    assert told is not None and told[0] == "False", told
    assert not rig.cluster[PYTORCHJOBS]
    return told[2]


def test_a_model_that_does_not_fit_is_refused_before_anything_starts(rig: Rig) -> None:
    fits = model_config(check_pipeline(rig.document()).spec)
    assert refused(rig).startswith(f"stages.mid.initialModel: this store has no model {KEY}: import it")
    keep(rig, None)
    assert f"the model {KEY} has no config.json that can be read" in refused(rig)
    keep(rig, replace(fits, depth=3, vocab_size=400, smear=True))
    assert refused(rig).endswith(
        f"another model than {KEY}, which has model.smear=True, model.depth=3, stages.tokenizer.vocabSize=400: set that"
    )
    rig.spec["model"] = {"depth": 2, "smear": True}
    keep(rig, fits)
    assert refused(rig).endswith("which has model.smear=False: set that")
    rig.spec["model"] = {"depth": 2}
    rig.reconcile()
    rig.reconcile()
    assert list(rig.cluster[PYTORCHJOBS]), "it fits"


def test_a_model_that_is_needed_no_more_may_be_gone(rig: Rig) -> None:
    artifacts = keep(rig, model_config(check_pipeline(rig.document()).spec))
    mid = build_graph(check_pipeline(rig.document()).spec).node("mid").outputs[0]
    with artifacts.writer(mid.kind, mid.key, "01-before") as writer:
        (writer.folder / "file").write_bytes(b"made")
        writer.commit(recipe={}, inputs={})
    artifacts.remove(KIND, KEY)
    told = condition(rig.reconcile(), "Accepted")
    assert told is not None and told[0] == "True"
