"""Answers of the completions API, whole or as a stream: the text of each choice, and how likely its tokens were.

talk = CompletionResponder(model, exchange, body, prompts)

Choices are numbered prompt by prompt. The lists of `logprobs` have an entry for each token, those of the prompt first
with `echo`, and the one that ends a text with it; a tool's calls and outputs are text here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from nanochat.inference import Event, TokenLogprob
from nanochat.serving.answers import DONE, finite, head, sse, usage
from nanochat.serving.completion_request import CompletionRequest, Prompt
from nanochat.serving.errors import ApiError
from nanochat.serving.exchange import Exchange
from nanochat.serving.holder import Model
from nanochat.serving.objects import CompletionChoice, FinishReason, Head, TextCompletion, TokenLogprobs
from nanochat.serving.responder import streamed
from nanochat.serving.tokenizing import token_text
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.stream import StreamDecoder


class CompletionResponder:
    """The answer to one request, whole or as a stream."""

    def __init__(self, model: Model, exchange: Exchange, body: CompletionRequest, prompts: Sequence[Prompt]) -> None:
        self._exchange, self._body = exchange, body
        self._prompt = sum(len(prompt.ids) for prompt in prompts)
        each = [prompt for prompt in prompts for _ in range(body.choices)]
        writers = [_Writer(model.tokenizer, body, prompt, index=index) for index, prompt in enumerate(each)]
        self._encoder = _Encoder(head(model.served.full_name, model.served.fingerprint, kind="cmpl"), writers)

    async def collect(self) -> TextCompletion:
        """The whole answer."""
        encoder = self._encoder
        found: list[list[CompletionChoice]] = [[] for _ in encoder.writers]
        async for index, event in self._exchange:
            found[index].append(encoder.written(index, event))
        choices = [_joined(choices) for choices in found]
        return encoder.completion(choices, prompt=self._prompt)

    def chunks(self) -> AsyncIterator[str]:
        """The stream, chunk by chunk."""
        return streamed(self._exchange, self._encoder, prompt=self._prompt if self._body.wants_usage else None)


class _Encoder:
    """All choices of one request, event by event."""

    def __init__(self, head: Head, writers: Sequence[_Writer]) -> None:
        self._head, self.writers, self.tokens = head, writers, 0

    def completion(self, choices: list[CompletionChoice], *, prompt: int | None = None) -> TextCompletion:
        """The object, with the usage where `prompt` tokens are given."""
        made: TextCompletion = {**self._head, "object": "text_completion", "choices": choices}
        if prompt is not None:
            made["usage"] = usage(prompt, self.tokens)
        return made

    def written(self, index: int, event: Event) -> CompletionChoice:
        choice = self.writers[index].add(event)
        self.tokens += not self.writers[index].silent
        return choice

    def begin(self) -> str:
        return ""

    def add(self, index: int, event: Event) -> str:
        choice = self.written(index, event)
        shows = choice["text"] or choice["logprobs"] or choice["finish_reason"]
        return sse(self.completion([choice])) if shows else ""

    def fail(self, error: ApiError) -> str:
        return sse(error.body) + DONE

    def end(self, *, prompt: int | None) -> str:
        return DONE if prompt is None else sse(self.completion([], prompt=prompt)) + DONE


class _Writer:
    """One choice as it grows; what `add` returns continues what it returned before."""

    def __init__(self, tokenizer: Tokenizer, body: CompletionRequest, prompt: Prompt, *, index: int) -> None:
        self.silent = body.longest == 0  # the engine says one token, and it is not shown
        self._tokenizer, self._prompt, self._index = tokenizer, prompt, index
        self._echo, self._logprobs = bool(body.echo), body.logprobs is not None
        self._special = frozenset(tokenizer.special.values())
        self._decoder = StreamDecoder(tokenizer)
        self._begun = False
        self._offset = 0  # characters of the text that are whole

    def add(self, event: Event) -> CompletionChoice:
        text, likely = "", _nothing()
        if self._echo and not self._begun:
            text += self._tokenizer.decode(self._prompt.ids[self._prompt.unsent :])
            if self._logprobs:
                self._list_prompt(event.request.prompt_logprobs, likely)
        self._begun = True
        if not self.silent:
            text += "".join(piece.text for piece in event.pieces)
            if self._logprobs:
                decoder, special = self._decoder, event.token in self._special
                self._list(
                    event.token, event.logprob, likely, decoder.finish() if special else decoder.push(event.token)
                )
        return self._choice(text, likely, event.finish_reason)

    def _choice(self, text: str, likely: TokenLogprobs, reason: FinishReason | None) -> CompletionChoice:
        shown = likely if self._logprobs else None
        return {"index": self._index, "text": text, "logprobs": shown, "finish_reason": reason}

    def _list_prompt(self, logprobs: Sequence[TokenLogprob | None], likely: TokenLogprobs) -> None:
        decoder, unsent = StreamDecoder(self._tokenizer), self._prompt.unsent
        for token, found in zip(self._prompt.ids[unsent:], logprobs[unsent:], strict=True):
            self._list(token, found, likely, decoder.push(token))
        self._offset += len(decoder.finish())

    def _list(self, token: int, found: TokenLogprob | None, likely: TokenLogprobs, text: str) -> None:
        """Note a token with which `text` became whole."""
        likely["tokens"].append(token_text(self._tokenizer, token))
        likely["text_offset"].append(self._offset)
        self._offset += len(text)
        likely["token_logprobs"].append(None if found is None else finite(found.logprob))
        top = None
        if found is not None:
            pairs = [*found.top, (token, found.logprob)]
            top = {token_text(self._tokenizer, each): finite(value) for each, value in pairs}
        likely["top_logprobs"].append(top)


def _nothing() -> TokenLogprobs:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _joined(choices: Sequence[CompletionChoice]) -> CompletionChoice:
    """A choice's stretches as one."""
    last, whole = choices[-1], _nothing()
    for likely in (choice["logprobs"] for choice in choices):
        if likely is not None:
            whole["tokens"] += likely["tokens"]
            whole["token_logprobs"] += likely["token_logprobs"]
            whole["top_logprobs"] += likely["top_logprobs"]
            whole["text_offset"] += likely["text_offset"]
    text = "".join(choice["text"] for choice in choices)
    return {**last, "text": text, "logprobs": None if last["logprobs"] is None else whole}
