"""The request of OpenAI's older completions API: prompts that the model goes on with.

    rendered(body, tokenizer, context=2048)     # [Prompt(ids, unsent=1)]

A prompt is a text or token ids; up to 64 answers may be asked for at once. Every document that the model has read
begins with bos: it is put before a prompt that does not begin with it, unless `add_special_tokens` (vLLM's) is false.
What the client did not send is not in `echo` and `logprobs` either. Text never becomes a special token; ids may be any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from nanochat.inference import ContextTooLong
from nanochat.serving.bodies import MAX_TEXT, Text
from nanochat.serving.errors import ApiError
from nanochat.serving.sampled import MAX_TOP_LOGPROBS, Count, SampledRequest
from nanochat.serving.tokenizing import Ids, check_known
from nanochat.tokenizer import Tokenizer

MAX_ANSWERS = 64  # prompts times choices: as many as may wait beside those that run
DEFAULT_TOKENS = 16  # OpenAI's


def _kind(value: Any) -> str:
    """Which kind of prompt it is meant to be."""
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else ""
    return "lists" if isinstance(first, list) else "texts" if isinstance(first, str) else "ids"


def _several(prompt: Any) -> list[Any]:
    """The prompts, each a text or token ids."""
    return prompt if _kind(prompt) in ("texts", "lists") else ["" if prompt is None else prompt]


_Many = Field(min_length=1, max_length=MAX_ANSWERS, fail_fast=True)
_Ids = Annotated[Ids, Field(min_length=1)]
Prompts = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], _Many, Tag("texts")]
    | Annotated[_Ids, Tag("ids")]
    | Annotated[list[_Ids], _Many, Tag("lists")],
    Discriminator(_kind),
]


def _all_sent(best_of: int) -> int:
    if best_of != 1:
        raise ValueError("is not honoured: all that is written is sent; leave it out, and ask for several with 'n'")
    return best_of


def _no_end(suffix: str) -> str:
    if suffix:
        raise ValueError("is not honoured: this model can't write towards an end; leave it out")
    return suffix


_BestOf = Annotated[int, AfterValidator(_all_sent), Field(json_schema_extra={"enum": [1]})]
_Suffix = Annotated[Text, AfterValidator(_no_end), Field(json_schema_extra={"enum": [""]})]


class CompletionRequest(SampledRequest):
    """The body of POST /v1/completions."""

    prompt: Prompts | None = Field(default=None, description="Texts or token ids; null: the beginning of a document.")
    max_tokens: Annotated[Count, Field(ge=0)] | None = Field(default=None, description="By default 16; 0 only scores.")
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    add_special_tokens: Annotated[bool | None, Field(description="Whether prompts begin with bos, as they do.")] = None
    best_of: _BestOf | None = None
    suffix: _Suffix | None = None

    @field_validator("prompt")
    @classmethod
    def _bounded(cls, prompt: Any, info: ValidationInfo) -> Any:
        several = _several(prompt)
        if sum(len(text) for text in several if isinstance(text, str)) > MAX_TEXT:
            raise ValueError(f"has more than {MAX_TEXT:,} characters; send less at a time")
        answers = len(several) * (info.data.get("n") or 1)
        if answers > MAX_ANSWERS:
            raise ValueError(f"and 'n' ask for {answers} answers; ask for at most {MAX_ANSWERS} at a time")
        return prompt

    @property
    def longest(self) -> int:
        """How many tokens an answer may have; 0 is none."""
        return DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the engine takes it; its first `unsent` tokens the client did not send."""

    ids: list[int]
    unsent: int


def rendered(body: CompletionRequest, tokenizer: Tokenizer, *, context: int) -> list[Prompt]:
    """The prompts, bos included. Raises ContextTooLong for a text that surely is, and ApiError."""
    found = []
    for ids in (_ids(each, tokenizer, context) for each in _several(body.prompt)):
        bare = body.add_special_tokens is False or ids[:1] == [tokenizer.bos]
        if bare and not ids:
            raise ApiError(400, "'prompt' has no tokens; send some, or leave add_special_tokens out.", param="prompt")
        found.append(Prompt(ids, 0) if bare else Prompt([tokenizer.bos, *ids], 1))
    return found


def _ids(prompt: str | list[int], tokenizer: Tokenizer, context: int) -> list[int]:
    if isinstance(prompt, str):
        if (least := tokenizer.least_tokens(prompt)) >= context:
            raise ContextTooLong(prompt=least, limit=context, at_least=True)
        return tokenizer.encode(prompt)
    check_known(prompt, tokenizer, param="prompt")
    return prompt
