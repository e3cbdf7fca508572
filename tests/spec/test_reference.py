"""The reference page is generated and current, and every setting is described."""

from __future__ import annotations

from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.reference import PAGE, page, sections


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run make generate"


def test_every_setting_is_described_with_its_unit() -> None:
    for path, section in sections(PipelineSpec, ""):
        for name, info in section.model_fields.items():
            assert info.description and info.description.endswith("."), f"{path}.{name}"
            unit = info.json_schema_extra.get("x-unit", "") if isinstance(info.json_schema_extra, dict) else ""
            assert str(unit) in info.description, f"{path}.{name}"
