"""Fields of OpenAI's APIs that are taken as long as they ask for nothing, because this model can't honour more.

class Request(Body):
    tools: NoTools | None = None
    audio: Annotated[Any, absent("is not honoured: this model does not speak; leave it out"), NULL] = None
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from nanochat.serving.bodies import Label

MAX_METADATA = 64

Metadata = Annotated[dict[Label, Any], Field(max_length=MAX_METADATA)]


def _no_tools(tools: list[Any]) -> list[Any]:
    if tools:
        raise ValueError("are not honoured: this model calls no tools of yours; leave them out")
    return tools


def _no_choice(choice: Any) -> Any:
    if choice not in (None, "none", "auto"):
        raise ValueError("asks for a call of a tool, and this model calls no tools of yours; leave it out")
    return choice


NoTools = Annotated[list[Any], AfterValidator(_no_tools), Field(json_schema_extra={"maxItems": 0})]
NoChoice = Annotated[Any, AfterValidator(_no_choice), Field(json_schema_extra={"enum": [None, "none", "auto"]})]


NULL = Field(json_schema_extra={"type": "null"})


def absent(why: str) -> AfterValidator:
    """For a field that has to be null, beside NULL; `why` goes on with the field's name."""

    def check(value: Any) -> Any:
        if value is not None:
            raise ValueError(why)
        return value

    return AfterValidator(check)
