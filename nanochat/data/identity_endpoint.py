"""Identity conversations written by a larger model behind any OpenAI-compatible endpoint.

    generate(path, request, endpoint=Endpoint("https://host/v1", model="some-model", key=os.environ["OPENAI_API_KEY"]))

Each conversation is a request of its own with its own seeds of variety (topics, length, kind of user). What has come
back is kept in `<path>.partial`, so that a second call asks only for what is missing; `path` itself is whole or absent.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx

from nanochat.data.identity import Conversation, check_request, write_conversations
from nanochat.parse.json_text import read_json
from nanochat.spec.errors import NanochatError, StorageError, UserError
from nanochat.storage.records import RECORD
from tasks.conversation import conversation_problem

_OPENERS = (
    "a short greeting",
    "asks for the name",
    "asks who made it",
    "asks what it can do",
    "asks how it was trained",
    "doubts that it is any good",
    "takes it for another assistant",
    "asks whether it is alive",
    "a child's question",
    "asks where to find its code",
    "greets in another language",
    "asks what it can't do",
    "wants to know its size",
    "makes small talk about the weather",
    "asks for a joke about itself",
    "asks what its name means",
    "asks whether it remembers earlier talks",
    "a sceptical engineer",
    "a teacher who prepares a lesson",
    "asks it to describe itself in three words",
    "someone who is in a hurry",
    "asks about its favourite things",
    "asks what it would change about itself",
    "asks how it differs from larger models",
    "a typo in every sentence",
)
_PEOPLE = ("a curious student", "an engineer", "somebody's grandmother", "a journalist", "a child", "a busy person")
_ATTEMPTS = 6
_MAX_DELAY = 30.0
_MAX_CONTENT = 8000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the larger model is. The key is sent as a bearer token and never logged."""

    base_url: str  # up to and with /v1
    model: str
    key: str | None = None
    parallel: int = 4
    timeout: float = 60.0  # seconds

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, model={self.model!r})"


@dataclass(frozen=True, slots=True)
class Request:
    """Who the model is to be, and how many conversations say so."""

    name: str
    maker: str
    facts: tuple[str, ...] = ()
    count: int = 1000
    seed: int = 42


def generate(
    path: Path,
    request: Request,
    *,
    endpoint: Endpoint,
    sleep: Callable[[float], None] = time.sleep,
    transport: httpx.BaseTransport | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write `request.count` conversations; returns how many were asked for now (the others were there).

    UserError where the endpoint refuses the request or the key, StorageError where it stays unreachable: what has come
    back until then is kept. `progress` is called with the number of conversations that are there.
    """
    check_request(name=request.name, maker=request.maker, count=request.count)
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _read_partial(partial, request)
    missing = [index for index in range(request.count) if index not in done]
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    lock, stop = threading.Lock(), threading.Event()
    with httpx.Client(
        base_url=endpoint.base_url.rstrip("/") + "/", headers=headers, timeout=endpoint.timeout, transport=transport
    ) as client:

        def make(index: int) -> None:
            if stop.is_set():
                return
            try:
                messages = _ask(client, endpoint, request, index, sleep)
            except NanochatError:
                stop.set()  # the others would meet the same
                raise
            with lock:
                done[index] = messages
                with partial.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"index": index, "messages": messages}, ensure_ascii=False) + "\n")
                if progress is not None:
                    progress(len(done))

        with ThreadPoolExecutor(endpoint.parallel) as pool:
            futures = [pool.submit(make, index) for index in missing]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
    write_conversations(path, [done[index] for index in range(request.count)])
    partial.unlink(missing_ok=True)
    return len(missing)


def check_conversation(messages: Any) -> Conversation:
    """The messages of an answer, texts of moderate length from the user on; ValueError with what is wrong."""
    problem = conversation_problem(messages, last="assistant", parts=False)
    if problem:
        raise ValueError(problem)
    out = [{"role": message["role"], "content": message["content"].strip()} for message in messages]
    if out[0]["role"] == "system":
        raise ValueError("message 1 is from 'system' and must be from 'user'")
    for number, message in enumerate(out, start=1):
        if not 0 < len(message["content"]) <= _MAX_CONTENT:
            raise ValueError(f"message {number} has no text or too much of it")
    return out


def _ask(
    client: httpx.Client, endpoint: Endpoint, request: Request, index: int, sleep: Callable[[float], None]
) -> Conversation:
    rng = Random(f"{request.seed}:{index}")
    problem = ""
    for attempt in range(_ATTEMPTS):
        delay = min(_MAX_DELAY, 2.0**attempt) * rng.uniform(0.5, 1.0)
        body = {
            "model": endpoint.model,
            "messages": [{"role": "user", "content": _prompt(request, index, attempt)}],
            "response_format": {"type": "json_object"},
            "temperature": 1.0,
            "seed": request.seed + index + attempt,
        }
        try:
            response = client.post("chat/completions", json=body)
        except httpx.TransportError as error:
            problem = f"it cannot be reached ({error or type(error).__name__})"
        else:
            if response.status_code == 200:
                try:
                    return check_conversation(_answer(response))
                except (ValueError, KeyError, IndexError, TypeError) as error:
                    problem, delay = f"its answers are no conversations ({error})", 0.0
            elif response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
                problem = f"it answers {response.status_code}"
                delay = _retry_after(response) or delay
            else:
                raise UserError(_refusal(endpoint, response))
        if attempt + 1 < _ATTEMPTS:
            sleep(delay)
    raise StorageError(f"the endpoint {endpoint.base_url} gave no conversation in {_ATTEMPTS} attempts: {problem}")


def _prompt(request: Request, index: int, attempt: int) -> str:
    rng = Random(f"{request.seed}:{index}:{attempt}")
    openers = "\n".join(f"- {opener}" for opener in rng.sample(_OPENERS, 5))
    facts = "\n".join(f"- {fact}" for fact in request.facts) or "- (none beyond name and maker)"
    return (
        f"Write one conversation between {rng.choice(_PEOPLE)} and an assistant, a small language model. "
        f"The assistant's name is {request.name}. It was made by {request.maker}. It knows of itself only this, and "
        f"invents nothing beyond it:\n{facts}\n\n"
        f"The conversation has {rng.choice((1, 2, 2, 3))} question(s) of the user with an answer each, and lets the "
        "assistant's identity come up naturally. Answers are one to three plain sentences in ASCII, without lists. "
        f"Let the user's first message be in the manner of one of these:\n{openers}\n\n"
        'Answer with JSON alone: {"messages": [{"role": "user", "content": "..."}, '
        '{"role": "assistant", "content": "..."}, ...]}'
    )


def _answer(response: httpx.Response) -> Any:
    content = response.json()["choices"][0]["message"]["content"]
    start, end = content.find("{"), content.rfind("}")  # some models put a fence around it
    data = read_json(content[start : end + 1], limit=RECORD)
    return data["messages"]


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return min(_MAX_DELAY, max(0.0, float(response.headers["Retry-After"])))
    except (KeyError, ValueError):
        return None


def _refusal(endpoint: Endpoint, response: httpx.Response) -> str:
    hint = {
        401: "check the key in the environment",
        403: "check the key in the environment",
        404: f"check the address and the model '{endpoint.model}'",
    }.get(response.status_code, "check the model and the address")
    text = " ".join(response.text.split())[:200]
    return f"the endpoint {endpoint.base_url} refused with {response.status_code}: {hint} ({text})"


def _read_partial(path: Path, request: Request) -> dict[int, Conversation]:
    """Conversations of an earlier call, by index; a line that is cut off or does not fit is asked for again."""
    done: dict[int, Conversation] = {}
    if not path.exists():
        return done
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for line in lines:
        try:
            record = read_json(line, limit=RECORD)
            if 0 <= record["index"] < request.count:
                done[record["index"]] = check_conversation(record["messages"])
        except (ValueError, KeyError, TypeError):
            continue
    # The next line must not be appended to half a line.
    kept = (json.dumps({"index": index, "messages": messages}, ensure_ascii=False) for index, messages in done.items())
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return done
