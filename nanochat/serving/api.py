"""The API's routes: chats, in both of OpenAI's ways, plain completions, the model, and its tokens.

app.include_router(Api(host, settings=ServerSettings()).router())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from nanochat.inference import ContextTooLong, Sampling
from nanochat.serving.admission import Overloaded
from nanochat.serving.bodies import UnknownFields
from nanochat.serving.chat_prompt import ChatPrompt, chat_prompt
from nanochat.serving.completion_answers import CompletionResponder
from nanochat.serving.completion_request import CompletionRequest, rendered
from nanochat.serving.errors import ApiError
from nanochat.serving.exchange import Exchange, Mail
from nanochat.serving.forms import Format
from nanochat.serving.holder import Model, ModelHolder
from nanochat.serving.json_route import JsonRoute
from nanochat.serving.objects import ChatCompletion, ModelList, ModelObject, TextCompletion
from nanochat.serving.openapi import BEARER, answered, documented
from nanochat.serving.protocol import ChatRequest
from nanochat.serving.request_log import note
from nanochat.serving.responder import ChatResponder, EventStream, Responder, ended, unless_disconnected
from nanochat.serving.responses_answers import ResponsesResponder
from nanochat.serving.responses_objects import ResponseObject
from nanochat.serving.responses_request import ResponsesRequest
from nanochat.serving.sampled import ANY_MODEL, MODEL, SampledRequest, sampling
from nanochat.serving.service import EngineFailed, Samples
from nanochat.serving.settings import ServerSettings
from nanochat.serving.tokenizing import (
    Detokenized,
    DetokenizeRequest,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
    check_known,
    tokenized,
    tokenizer_info,
)
from nanochat.serving.visitors import visitor
from nanochat.spec.errors import UserError

T = TypeVar("T")


class Api:
    """The routes; see the module's docstring."""

    def __init__(self, host: ModelHolder, *, settings: ServerSettings) -> None:
        self._host = host
        self._settings = settings
        self._unknown = UnknownFields()
        self._mail: Mail | None = None  # of the event loop, which runs when the first request comes

    def router(self) -> APIRouter:
        keys = [Depends(BEARER)] if self._settings.api_keys else []
        router = APIRouter(route_class=JsonRoute, dependencies=keys, responses=documented(401, 503, "default"))
        router.add_api_route("/v1/models", self._models)
        router.add_api_route("/v1/models/{name:path}", self._model, responses=documented(404))
        router.add_api_route("/tokenizer_info", self._tokenizer_info)
        read = documented(400, 404, 408, 413)
        router.add_api_route("/tokenize", self._tokenize, methods=["POST"], responses=read)
        router.add_api_route("/detokenize", self._detokenize, methods=["POST"], responses=read)
        for path, route, shape in (
            ("/v1/chat/completions", self._chat, ChatCompletion),
            ("/v1/responses", self._respond, ResponseObject),
            ("/v1/completions", self._complete, TextCompletion),
        ):
            responses = answered(shape) | read | documented(429, 500)
            router.add_api_route(path, route, methods=["POST"], response_model=None, responses=responses)
        return router

    # ----------------------------------------------------------------------------------------------------
    # The model and its tokens

    def _loaded(self, name: str | None) -> Model:
        """The model, if there is one and the request means it."""
        model = self._host.model
        if model is None:
            message = f"There is no model to ask: {self._host.reason}."
            raise ApiError(503, message, kind="server_error", code="no_model", retry_after=5)
        if name not in (None, ANY_MODEL, model.served.name, model.served.full_name):
            message = f"The model '{name[:64]}' is not served here; ask for '{model.served.name}'."
            raise ApiError(404, message, param="model", code="model_not_found")
        return model

    def _asked(self, body: SampledRequest | ResponsesRequest | TokenizeRequest | DetokenizeRequest) -> Model:
        """The model that a request is for; what it has beside the known fields is noted."""
        self._unknown.note(body)
        return self._loaded(body.model)

    async def _models(self) -> ModelList:
        """The model that is served."""
        return {"object": "list", "data": [self._description(self._loaded(None))]}

    async def _model(
        self, name: Annotated[str, Path(description=MODEL, json_schema_extra={"enum": [ANY_MODEL]})]
    ) -> ModelObject:
        """The model, by a name that requests may use."""
        return self._description(self._loaded(name))

    def _description(self, model: Model) -> ModelObject:
        return {
            "id": model.served.name,
            "object": "model",
            "created": model.served.created,
            "owned_by": "nanochat",
            "context_length": model.service.length,
            "version": model.served.version,
            "system_fingerprint": model.served.fingerprint,
            "questions": list(model.served.questions),
        }

    async def _tokenizer_info(self) -> TokenizerInfo:
        """The vocabulary's size and special tokens."""
        model = self._loaded(None)
        return tokenizer_info(model.tokenizer, context=model.service.length)

    async def _tokenize(self, body: TokenizeRequest) -> Tokens:
        """The tokens of a text, or of a conversation up to where the answer begins."""
        model = self._asked(body)
        return await _prompted(lambda: tokenized(body, model.tokenizer, context=model.service.length), "messages")

    async def _detokenize(self, body: DetokenizeRequest) -> Detokenized:
        """The text of tokens."""
        tokenizer = self._asked(body).tokenizer
        check_known(body.tokens, tokenizer, param="tokens")
        return {"prompt": await run_in_threadpool(tokenizer.decode, body.tokens)}

    # ----------------------------------------------------------------------------------------------------
    # Answers

    async def _chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation, whole or as a stream of events."""
        model = self._asked(body)
        prompt, _, exchange = await self._ask(model, request, body, body.response_format, param="messages")
        talk = ChatResponder(model, exchange, body, prompt)
        return await self._answer(model, request, exchange, talk, stream=bool(body.stream))

    async def _respond(self, body: ResponsesRequest, request: Request) -> Response:
        """Answer a conversation, as the newer of OpenAI's APIs does, whole or as a stream of events."""
        model = self._asked(body)
        form = body.text.format if body.text else None
        prompt, settings, exchange = await self._ask(model, request, body.chat(), form, param="input")
        talk = ResponsesResponder(model, exchange, body, prompt, settings)
        return await self._answer(model, request, exchange, talk, stream=bool(body.stream))

    async def _ask(
        self, model: Model, request: Request, body: ChatRequest, form: Format | None, *, param: str
    ) -> tuple[ChatPrompt, Sampling, Exchange]:
        """A conversation on its way to the engine, and what its answer is held to; `param` names it in errors."""
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        longest = body.max_completion_tokens or body.max_tokens or model.service.length
        fitting = partial(
            chat_prompt,
            body.messages,
            model.tokenizer,
            context=model.service.length,
            answer=longest,
            continued=bool(body.continue_final_message),
            truncate=body.truncation == "auto",
        )
        prompt = await _prompted(fitting, param)
        settings = self._sampling(model, body, longest=longest, logprobs=logprobs)
        if form and (schema := form.wanted) is not None:
            where = "response_format" if param == "messages" else "text.format"
            settings = replace(settings, grammar=await _prompted(lambda: model.grammars.json(schema), where))
        wanted = [_samples(model, prompt.ids, settings, body.choices)]
        return prompt, settings, await self._submit(model, request, wanted, param=param)

    async def _complete(self, body: CompletionRequest, request: Request) -> Response:
        """Go on with texts or tokens, and say how likely they are, whole or as a stream of events."""
        model = self._asked(body)
        prompts = await _prompted(lambda: rendered(body, model.tokenizer, context=model.service.length), "prompt")
        settings = self._sampling(model, body, longest=max(1, body.longest), logprobs=body.logprobs)
        settings = replace(settings, prompt_logprobs=body.logprobs if body.echo else None)
        wanted = [_samples(model, prompt.ids, settings, body.choices) for prompt in prompts]
        exchange = await self._submit(model, request, wanted, param="prompt")
        talk = CompletionResponder(model, exchange, body, prompts)
        return await self._answer(model, request, exchange, talk, stream=bool(body.stream))

    def _sampling(self, model: Model, body: SampledRequest, *, longest: int, logprobs: int | None) -> Sampling:
        vocabulary = model.tokenizer.vocab_size
        return sampling(body, self._settings, vocabulary=vocabulary, longest=longest, logprobs=logprobs)

    async def _submit(self, model: Model, request: Request, wanted: Sequence[Samples], *, param: str) -> Exchange:
        asker = await visitor(request, by_key=bool(self._settings.api_keys))
        try:
            self._mail = self._mail or Mail()
            return Exchange(model.service, wanted, asker, self._mail, patience=self._settings.queue_seconds)
        except ContextTooLong as error:
            raise _too_long(error, param) from None
        except EngineFailed as error:
            raise ApiError(503, str(error), kind="server_error", code="engine_failed", retry_after=5) from error
        except Overloaded as error:
            if model.service.draining:
                message, after = "The server is about to end; try again.", error.seconds
                raise ApiError(503, message, kind="server_error", code="draining", retry_after=after) from error
            after = error.seconds
            message = f"Too many requests are running and waiting; send this one again in {after} seconds."
            raise ApiError(429, message, kind="rate_limit_error", code="overloaded", retry_after=after) from error

    async def _answer(
        self, model: Model, request: Request, exchange: Exchange, talk: Responder, *, stream: bool
    ) -> Response:
        """The answer to a request, whole or as a stream; it ends when the client goes."""
        note(request, exchange)
        handed_on = False
        try:
            first = exchange.wait(seconds=self._settings.queue_seconds)
            await unless_disconnected(request, first)
            if stream:
                handed_on = True
                return EventStream(exchange, talk.chunks())
            return JSONResponse(await unless_disconnected(request, talk.collect()))
        except TimeoutError:
            after = exchange.again()
            message = f"No slot was free in time; send the request again in {after} seconds."
            raise ApiError(503, message, kind="server_error", code="queue_timeout", retry_after=after) from None
        except (EngineFailed, UserError) as error:
            raise ended(error) from error
        finally:
            if not handed_on:
                exchange.close()


async def _prompted(make: Callable[[], T], param: str) -> T:
    """A field of the request as the model takes it, made beside the event loop: encoding takes a while."""
    try:
        return await run_in_threadpool(make)
    except ContextTooLong as error:
        raise _too_long(error, param) from None
    except UserError as error:
        raise ApiError(400, error.message, param=param) from error


def _too_long(error: ContextTooLong, param: str) -> ApiError:
    return ApiError(400, error.message, param=param, code="context_length_exceeded")


def _samples(model: Model, prompt: Sequence[int], settings: Sampling, choices: int) -> Samples:
    """So many samples of a prompt, none longer than the context has room for."""
    room = max(1, model.service.length - len(prompt))
    return prompt, replace(settings, max_tokens=min(settings.max_tokens, room)).split(choices)
