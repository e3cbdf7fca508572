"""Clients in Python, each in its own words: `python python_clients.py URL` prints what each of them got.

They live in an environment of their own, tests/clients/.venv, and import nothing of this project.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

# None of them is to ask anyone but the server.
os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LANGSMITH_TRACING="false", LLM_USER_PATH=tempfile.mkdtemp())
warnings.simplefilter("ignore")

import langchain_openai  # noqa: E402
import litellm  # noqa: E402
import llm  # noqa: E402
import openai  # noqa: E402

QUESTION, NEXT = "What is six times seven?", "How do you know?"
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
NULLS = dict.fromkeys(("n", "stop", "logit_bias", "logprobs", "top_logprobs", "response_format", "metadata", "user"))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def with_openai(url: str) -> dict[str, Callable[[], Any]]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def ask(*messages: Any, **options: Any) -> Any:
        return client.chat.completions.create(model="nanochat", messages=list(messages), **options)

    def said(answer: Any) -> str:
        return answer.choices[0].message.content

    def stream() -> str:
        chunks = ask(user(QUESTION), stream=True, stream_options={"include_usage": True})
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    def again(dump: Callable[[Any], Any]) -> str:
        return said(ask(user(QUESTION), dump(ask(user(QUESTION)).choices[0].message), user(NEXT)))

    def respond(said: Any, **options: Any) -> Any:
        return client.responses.create(model="nanochat", input=said, **options)

    def respond_again() -> str:
        return respond([user(QUESTION), *respond(QUESTION).output, user(NEXT)]).output_text

    def respond_in_stream() -> str:
        with client.responses.stream(model="nanochat", input=QUESTION) as events:
            return events.get_final_response().output_text

    return {
        "plain": lambda: said(ask(user(QUESTION))),
        "stream": stream,
        "responses": lambda: respond(QUESTION, instructions="Be brief.", tools=[]).output_text,
        "responses, in a stream": respond_in_stream,
        "own answer, by responses": respond_again,
        "own answer": lambda: again(lambda message: message.model_dump()),
        "own answer, as it came": lambda: again(lambda message: message),
        "nulls": lambda: said(ask(user(QUESTION), temperature=None, tools=None, seed=None, **NULLS)),
        "empty tools": lambda: said(ask(user(QUESTION), tools=[], tool_choice="none")),
        "image": lambda: ask(user([{"type": "text", "text": QUESTION}, IMAGE])),
    }


def with_litellm(url: str) -> dict[str, Callable[[], Any]]:
    def ask(*messages: Any, **options: Any) -> Any:
        return litellm.completion(
            "openai/nanochat", list(messages), api_base=f"{url}/v1", api_key="none", num_retries=0, **options
        )

    def said(answer: Any) -> str:
        return answer.choices[0].message.content

    def again() -> str:
        message = ask(user(QUESTION)).choices[0].message
        return said(ask(user(QUESTION), message.model_dump(), user(NEXT)))

    return {
        "plain": lambda: said(ask(user(QUESTION))),
        "stream": lambda: "".join(chunk.choices[0].delta.content or "" for chunk in ask(user(QUESTION), stream=True)),
        "own answer": again,
        "nulls": lambda: said(ask(user(QUESTION), temperature=None, extra_body=NULLS)),
        "empty tools": lambda: said(ask(user(QUESTION), tools=[], tool_choice="none")),
        "image": lambda: ask(user([{"type": "text", "text": QUESTION}, IMAGE])),
    }


def with_langchain(url: str) -> dict[str, Callable[[], Any]]:
    def model(**options: Any) -> Any:
        return langchain_openai.ChatOpenAI(
            model="nanochat", base_url=f"{url}/v1", api_key="none", max_retries=0, **options
        )

    def again() -> str:
        return model().invoke([("user", QUESTION), model().invoke(QUESTION), ("user", NEXT)]).content

    return {
        "plain": lambda: model().invoke([("system", "Be brief."), ("user", QUESTION)]).content,
        "stream": lambda: "".join(chunk.content for chunk in model(stream_usage=True).stream(QUESTION)),
        "own answer": again,
        "nulls": lambda: model(temperature=None, extra_body=NULLS).invoke(QUESTION).content,
        "empty tools": lambda: model().bind_tools([]).invoke(QUESTION).content,
        "image": lambda: model().invoke([user([{"type": "text", "text": QUESTION}, IMAGE])]),
    }


def with_llm(url: str) -> dict[str, Callable[[], Any]]:
    settings = {"model_id": "served", "model_name": "nanochat", "api_base": f"{url}/v1", "vision": True}
    path = Path(os.environ["LLM_USER_PATH"]) / "extra-openai-models.yaml"
    path.write_text(json.dumps([{**settings, "supports_tools": True}]))
    model = llm.get_model("served")
    picture = llm.Attachment(type="image/png", url=IMAGE["image_url"]["url"])

    def again() -> str:
        talk = model.conversation()
        talk.prompt(QUESTION, stream=False).text()
        return talk.prompt(NEXT, stream=False).text()

    return {
        "plain": lambda: model.prompt(QUESTION, system="Be brief.", stream=False).text(),
        "stream": lambda: "".join(model.prompt(QUESTION)),
        "own answer": again,
        "nulls": lambda: model.prompt(QUESTION, stream=False, temperature=None, max_tokens=None, stop=None).text(),
        "empty tools": lambda: model.prompt(QUESTION, tools=[], stream=False).text(),
        "image": lambda: model.prompt(QUESTION, attachments=[picture], stream=False).text(),
    }


CLIENTS = {
    "openai": with_openai,
    "litellm": with_litellm,
    "langchain-openai": with_langchain,
    "llm": with_llm,
}


def outcome(case: Callable[[], Any]) -> str:
    try:
        return str(case())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    found = {
        name: {"version": version(name), "cases": {case: outcome(run) for case, run in make(sys.argv[1]).items()}}
        for name, make in CLIENTS.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
