"""A field's comment: the declared sentences, then limits and default as they are declared."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from nanochat.spec.fields import Section, Text, setting
from nanochat.spec.pipeline import ModelSettings, PipelineSpec
from nanochat.spec.pods import PodSettings
from nanochat.spec.stages import ReleaseStage
from nanochat.spec.training import RlStage, TrainingStage


class Told(Section):
    """A section that programs write."""

    is_input: ClassVar[bool] = False

    message: Text | None = setting(None, "message is a sentence.")


@pytest.mark.parametrize(
    ("section", "field", "end"),
    [
        (ModelSettings, "depth", " Must be between 1 and 256. Defaults to 20."),
        (ModelSettings, "width", " Defaults to depth x aspectRatio. Must be between 16 and 65536."),
        (TrainingStage, "embeddingLr", " Must be greater than 0 and at most 100. Defaults to 0.2."),
        (
            TrainingStage,
            "checkpointEverySeconds",
            "null saves none by time. Must be greater than 0 and at most 31536000. Defaults to 600.",
        ),
        (RlStage, "temperature", " Must be greater than 0 and at most 10. Defaults to 1."),
        (RlStage, "tasks", " Must have between 1 and 64 items. Defaults to gsm8k."),
        (ReleaseStage, "gates", " Must have at most 16 items of at most 1024 characters. Empty by default."),
        (PipelineSpec, "suspend", " once this is false again. Defaults to false."),
        (
            PipelineSpec,
            "store",
            " Must consist of lower-case letters, digits and inner '-', and have between 1 and 63 characters. "
            "Defaults to default.",
        ),
        (PodSettings, "sharedMemory", " Must be a number or a quantity such as 16Gi, and have at most 32 characters."),
        (PodSettings, "labels", " Must have at most 64 entries. Empty by default."),
        (PodSettings, "network", " By default NCCL chooses."),
        (Told, "message", "message is a sentence. Has at most 1024 characters."),
    ],
)
def test_comments(section: type[Section], field: str, end: str) -> None:
    schema: dict[str, Any] = section.model_json_schema(by_alias=True)
    comment = schema["properties"][field]["description"]
    assert comment.startswith(f"{field} ") and comment.endswith(end), comment
