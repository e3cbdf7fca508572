"""The form of an answer: text, or JSON, of a schema or not. `nanochat.inference.grammar` holds it to that.

body.response_format.wanted     # the schema: {"type": "object"} of any JSON object, None of text
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from nanochat.serving.bodies import Body, Label, Text

KINDS = ("text", "json_object", "json_schema")


class Named(Body):
    """A schema under a name, as OpenAI's chat API has it."""

    schema_: dict[str, Any] = Field(alias="schema")
    name: Label | None = None
    description: Text | None = None  # without effect
    strict: bool | None = None  # without effect: an answer is always held to the schema


class Format(Body):
    """A kind of answer."""

    type: Annotated[Text, Field(json_schema_extra={"enum": list(KINDS)})] = "text"

    @field_validator("type")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"is {kind[:64]!r}; this model can be held to text, json_object and json_schema")
        return kind

    @model_validator(mode="after")
    def _has_its_schema(self) -> Format:
        if self.type == "json_schema" and self.schema_of_answers is None:
            raise ValueError("is a json_schema and has none; send the schema too")
        return self

    @property
    def schema_of_answers(self) -> dict[str, Any] | None:
        raise NotImplementedError

    @property
    def wanted(self) -> dict[str, Any] | None:
        """The schema that an answer is held to; None: to none."""
        match self.type:
            case "json_object":
                return {"type": "object"}
            case "json_schema":
                return self.schema_of_answers
        return None


class ResponseFormat(Format):
    """`response_format` of a chat."""

    json_schema: Named | None = None

    @property
    def schema_of_answers(self) -> dict[str, Any] | None:
        return self.json_schema.schema_ if self.json_schema else None


class TextFormat(Format):
    """`text.format` of a response."""

    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    name: Label | None = None
    description: Text | None = None
    strict: bool | None = None

    @property
    def told(self) -> dict[str, Any]:
        """As an answer repeats it."""
        return self.model_dump(by_alias=True, exclude_none=True, include=set(type(self).model_fields))

    @property
    def schema_of_answers(self) -> dict[str, Any] | None:
        return self.schema_
