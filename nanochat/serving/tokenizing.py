"""Texts as the model's tokens and back, at /tokenize, /detokenize and /tokenizer_info, in the shapes of vLLM's server.

With them lm-evaluation-harness counts tokens as the model does (its tokenizer backend `remote`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator
from typing_extensions import TypedDict

from nanochat.serving.bodies import Body, Items, Text
from nanochat.serving.errors import ApiError
from nanochat.serving.messages import ChatMessage, check_end, check_length, conversation
from nanochat.serving.sampled import ModelName
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_prompt

MAX_IDS = 1 << 18  # of one prompt
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)]


class TokenizeRequest(Body):
    """The body of POST /tokenize: a text, or a conversation that is to be answered."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["prompt"], "properties": {"prompt": {"type": "string"}, "messages": {"type": "null"}}},
                {"required": ["messages"], "properties": {"prompt": {"type": "null"}, "messages": {"type": "array"}}},
            ]
        }
    )

    model: ModelName | None = None
    prompt: Text | None = None
    continue_final_message: bool | None = None  # before the messages, which are judged by it
    messages: Annotated[Items[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: Annotated[bool | None, Field(description="Whether a text begins with bos, as it does.")] = None
    return_token_strs: bool | None = None

    @field_validator("messages")
    @classmethod
    def _bounded(cls, messages: list[ChatMessage] | None, info: ValidationInfo) -> list[ChatMessage] | None:
        if messages is not None:
            check_length(messages)
            check_end(messages, continued=bool(info.data.get("continue_final_message")))
        return messages

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("has to have either 'prompt' or 'messages'")
        return self


class DetokenizeRequest(Body):
    """The body of POST /detokenize."""

    model: ModelName | None = None
    tokens: Ids


class Tokens(TypedDict):
    """A text's tokens; `token_strs` where they are asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    prompt: str


class TokenizerInfo(TypedDict):
    """Special tokens have no text: nothing that is sent as text becomes one."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: None
    bos_token_id: int
    eos_token: None
    eos_token_id: int


def tokenized(body: TokenizeRequest, tokenizer: Tokenizer, *, context: int) -> Tokens:
    """The tokens that a completion of the same prompt, or an answer to the same messages, begins with."""
    if body.prompt is not None:
        ids = tokenizer.encode(body.prompt)
        if body.add_special_tokens is not False:
            ids.insert(0, tokenizer.bos)
    else:
        messages, continued = conversation(body.messages or ()), bool(body.continue_final_message)
        ids = render_prompt(tokenizer, messages, continued=continued)
    texts = [token_text(tokenizer, token) for token in ids] if body.return_token_strs else None
    return {"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": texts}


def tokenizer_info(tokenizer: Tokenizer, *, context: int) -> TokenizerInfo:
    return {
        "tokenizer_class": "nanochat",
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": context,
        "bos_token": None,
        "bos_token_id": tokenizer.bos,
        "eos_token": None,
        "eos_token_id": tokenizer.special["assistant_end"],
    }


def check_known(ids: list[int], tokenizer: Tokenizer, *, param: str) -> None:
    """Refuse ids that are not in the vocabulary."""
    if ids and max(ids) >= tokenizer.vocab_size:
        message = f"'{param}' has the token {max(ids)}, and the model's are 0 to {tokenizer.vocab_size - 1}."
        raise ApiError(400, message, param=param)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""The token's text; bytes that are no text by themselves are written as OpenAI writes them, `bytes:\xe2\x82`."""
    raw = tokenizer.decode_bytes([token])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
