"""The setting fp8: where it is refused, and that keys know it only where it is set."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.runtime.device import Device, has_fp8
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.training import BaseStage, MidStage, RlStage, SftStage
from nanochat.spec.validation import validate
from nanochat.stages.session import TrainingSession


def session(device: Device, width: int = 128, **settings: Any) -> TrainingSession:
    config = ModelConfig(depth=1, width=width, heads=1, kv_heads=1, sequence_length=16, vocab_size=32)
    given = {"context": SimpleNamespace(stage="base"), "device": device, "model": Transformer(config)}
    rest = dict.fromkeys(field.name for field in fields(TrainingSession))
    return TrainingSession(**rest | given | {"settings": BaseStage(**settings)})  # type: ignore[arg-type]


def test_a_key_knows_it_only_where_it_is_set() -> None:
    for kind in (BaseStage, MidStage):
        assert "fp8" not in kind().recipe()
        assert kind(fp8=True).recipe() == kind().recipe() | {"fp8": True}
    assert not any("fp8" in kind.model_fields for kind in (SftStage, RlStage))


@pytest.mark.parametrize("stage", ["base", "mid"])
@pytest.mark.parametrize(
    ("precision", "length", "refused"), [("fp32", 64, True), ("auto", 40, True), ("bf16", 64, False)]
)
def test_what_does_not_go_with_it_is_refused(stage: str, precision: str, length: int, refused: bool) -> None:
    settings = {"fp8": True, "precision": precision, "totalBatchTokens": 40 * 64}
    data = {"model": {"depth": 4, "sequenceLength": length}, "stages": {stage: settings}}
    other = {"base": "mid", "mid": "base"}[stage]
    data["stages"][other] = {"totalBatchTokens": 40 * 64}
    if not refused:
        assert getattr(validate(data, PipelineSpec, "test").stages, stage).fp8
        return
    with pytest.raises(UserError, match=rf"stages\.{stage}\.fp8 needs bf16 .* they are {precision} and {length}"):
        validate(data, PipelineSpec, "test")


def test_a_device_without_it_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError) as refused:
        session(Device(torch.device("cpu"), torch.bfloat16), fp8=True).use_fp8()
    assert refused.value.message == (
        "stages.base.fp8 is set, and a cpu device such as this one does not multiply in FP8 beside bfloat16: use a GPU "
        "of compute capability 8.9 or newer (L4, H100, B200), or take stages.base.fp8 out."
    )


@pytest.mark.parametrize(
    ("capability", "there"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True), ((10, 0), True)]
)
def test_a_gpus_capability_decides(capability: tuple[int, int], there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = Device(torch.device("cuda"), torch.bfloat16)
    assert has_fp8(device.device) is there
    asked = session(device, fp8=True)
    if there:
        assert asked.use_fp8() and asked.model.blocks[0].mlp.expand.fp8  # type: ignore[union-attr]
        with pytest.raises(UserError, match="no matrix of the blocks is large enough"):
            session(device, width=64, fp8=True).use_fp8()
    else:
        with pytest.raises(UserError, match=r"take stages\.base\.fp8 out"):
            asked.use_fp8()
    assert not session(device).use_fp8()
