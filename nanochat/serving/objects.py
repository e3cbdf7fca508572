"""The objects that the API answers with, in OpenAI's shapes: what is built is checked against them, and
/openapi.json publishes them.

Answers that used the tool have, beside OpenAI's fields, `message.parts`; streams have `delta.part`.
"""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic takes Python's own only from 3.12


class Usage(TypedDict):
    """Counts of tokens; forced and special ones are tokens too."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class SpokenPart(TypedDict):
    """A stretch of an answer: text, a call of the tool, or what the tool said."""

    type: Literal["text", "python", "python_output"]
    text: str


class TokenLikelihood(TypedDict):
    token: str  # half a character has no text of its own, but bytes
    logprob: float
    bytes: list[int]


class ChosenToken(TokenLikelihood):
    top_logprobs: list[TokenLikelihood]


class Logprobs(TypedDict):
    content: list[ChosenToken]
    refusal: None


FinishReason = Literal["stop", "length", "cancelled"]


class AnswerMessage(TypedDict):
    """`content` is the text alone; `parts` has the tool's calls too, and goes back in with the message."""

    role: Literal["assistant"]
    content: str
    refusal: None
    parts: NotRequired[list[SpokenPart]]


class Choice(TypedDict):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class Head(TypedDict):
    """The fields of an answer and of all chunks of a stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    dropped_messages: NotRequired[int]  # with `truncation: auto`: so many of the oldest messages were left out


class ChatCompletion(Head):
    """The whole answer."""

    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: Usage


class Delta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str
    part: SpokenPart


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Head):
    """An event of a stream, which ends with `data: [DONE]`; the usage, where it is asked for, is in the last one."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: NotRequired[Usage]


class TokenLogprobs(TypedDict):
    """Lists of one length, an entry for each token; null where nothing was foretold, or the tool forced the token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]  # by the tokens' texts, the token itself among them
    text_offset: list[int]  # characters of the choice's text before the token


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason | None  # null only in a stream, before its end


class TextCompletion(Head):
    """A completion, or an event of its stream, whose texts and logprobs continue those before."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: NotRequired[Usage]


class ModelObject(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["nanochat"]
    context_length: int
    version: str
    system_fingerprint: str
    questions: list[str]  # examples of what it may be asked: few and short


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelObject]


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(TypedDict):
    """An error: in a sentence what is wrong; `param` is the place in the body."""

    error: ErrorDetail
