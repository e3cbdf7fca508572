"""The fields that chat and plain completions have in common: how an answer is sampled, and how it is sent.

class ChatRequest(SampledRequest): ...

sampling(body, settings, vocabulary=65_536, longest=256, logprobs=None)
"""

from __future__ import annotations

import secrets
from typing import Annotated

from pydantic import Field, Tag

from nanochat.inference import Sampling
from nanochat.serving.bodies import Body, Label, text_or_list
from nanochat.serving.errors import ApiError
from nanochat.serving.settings import ServerSettings

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024

ANY_MODEL = "nanochat"
MODEL = "Any server's model, by this name; the name and the version that it was released under are taken too."

Count = Annotated[int, Field(lt=2**63)]
ModelName = Annotated[Label, Field(description=MODEL, json_schema_extra={"enum": [ANY_MODEL]})]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    Annotated[Stop, Tag("text")] | Annotated[list[Stop], Field(max_length=MAX_STOPS), Tag("list")], text_or_list
]


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # changes nothing


class SampledRequest(Body):
    """A request for text of the model."""

    model: ModelName | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**64), le=2**64)] | None = None
    user: Label | None = None  # without effect

    # How long an answer may be
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    min_tokens: Annotated[Count, Field(ge=0)] | None = None
    stop: Stops | None = Field(default=None, description="Texts that end an answer, and are not part of it.")

    # Which tokens are chosen
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Count, Field(ge=-1, description="So many of the likeliest tokens; 0 and -1: all.")] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[int, Field(ge=0, lt=2**31)], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=MAX_BIASES, json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}}),
        ]
        | None
    ) = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in texts if text)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def sampling(
    body: SampledRequest, settings: ServerSettings, *, vocabulary: int, longest: int, logprobs: int | None
) -> Sampling:
    """The engine's settings for a request whose answer has at most `longest` tokens; `logprobs` is as there."""
    bias = body.logit_bias or {}
    if bias and max(bias) >= vocabulary:
        message = f"'logit_bias' names the token {max(bias)}, and the model's are 0 to {vocabulary - 1}."
        raise ApiError(400, message, param="logit_bias")
    return Sampling(
        max_tokens=longest,
        temperature=settings.temperature if body.temperature is None else body.temperature,
        top_k=settings.top_k if body.top_k is None else max(body.top_k, 0) or None,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=secrets.randbits(62) if body.seed is None else body.seed,
        repeatable=body.seed is not None,
        stop=body.stops,
        min_tokens=body.min_tokens or 0,
        logprobs=logprobs,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=tuple(bias.items()),
    )
