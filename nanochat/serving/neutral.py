"""Fields of OpenAI's APIs that are taken as long as they ask for nothing, because this model can't honour more.

class Request(Body):
    tools: NoTools | None = None
    audio: Annotated[Any, absent("is not honoured: this model does not speak; leave it out"), NULL] = None
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from nanochat.serving.bodies import Label

MAX_PAIRS = 64

Pairs = Annotated[dict[Label, Any], Field(max_length=MAX_PAIRS)]  # metadata, and options without effect


def absent(why: str) -> AfterValidator:
    """For a field that has to be null, beside NULL, or an empty list, beside EMPTY; `why` goes on with its name."""

    def check(value: Any) -> Any:
        if value not in (None, []):
            raise ValueError(why)
        return value

    return AfterValidator(check)


def _no_choice(choice: Any) -> Any:
    if choice not in (None, "none", "auto"):
        raise ValueError("asks for a call of a tool, and this model calls no tools of yours; leave it out")
    return choice


NULL = Field(json_schema_extra={"type": "null"})
EMPTY = Field(json_schema_extra={"maxItems": 0})

NoTools = Annotated[list[Any], absent("are not honoured: this model calls no tools of yours; leave them out"), EMPTY]
NoModeration = Annotated[Any, absent("is not honoured: this server moderates nothing; leave it out"), NULL]
NoChoice = Annotated[Any, AfterValidator(_no_choice), Field(json_schema_extra={"enum": [None, "none", "auto"]})]
