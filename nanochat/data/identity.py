"""Conversations that teach a model who it is: its name, its maker, what it can do, and facts that the user gives.

    generate(Path("identity.jsonl"), name="Robin", maker="the Example team", facts=["Robin has 4 layers."], count=1000)

writes a JSON list of messages a line, from `identity_templates.py`: deterministic for a seed, no two lines equal.
With an OpenAI-compatible endpoint (`identity_endpoint.py`) a larger model writes them instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

from nanochat.data import identity_templates as templates
from nanochat.spec.errors import UserError

Message = dict[str, str]
Conversation = list[Message]


def generate(path: Path, *, name: str, maker: str, facts: Sequence[str] = (), count: int = 1000, seed: int = 42) -> int:
    """Write `count` different conversations from templates; returns how many. The file is whole or absent."""
    check_request(name=name, maker=maker, count=count)
    write_conversations(path, _conversations(name=name, maker=maker, facts=facts, count=count, seed=seed))
    return count


def check_request(*, name: str, maker: str, count: int) -> None:
    """UserError where nothing can be made of a request."""
    for what, value in (("name", name), ("maker", maker)):
        if not value.strip():
            raise UserError(f"identity generate needs a {what}: --{what} is empty")
    if count < 1:
        raise UserError(f"identity generate makes at least one conversation; --count is {count}")


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write JSON lines; the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for messages in conversations:
            file.write(json.dumps(messages, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def _conversations(*, name: str, maker: str, facts: Sequence[str], count: int, seed: int) -> list[Conversation]:
    rng = Random(f"identity:{seed}")
    seen: set[str] = set()
    out: list[Conversation] = []
    failures = 0
    while len(out) < count:
        messages = [
            {"role": role, "content": text if role == "assistant" else _typed(rng, text)}
            for role, text in ((role, _filled(text, name, maker)) for role, text in _turns(rng, facts))
        ]
        line = json.dumps(messages)
        if line not in seen:
            seen.add(line)
            out.append(messages)
            failures = 0
        elif (failures := failures + 1) > 1000:
            raise UserError(f"the templates make no more than about {len(out)} conversations: lower --count")
    return out


def _turns(rng: Random, facts: Sequence[str]) -> list[tuple[str, str]]:
    """One conversation as (role, template): perhaps a greeting, one to three topics, perhaps a farewell."""
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.3:
        turns += [("user", rng.choice(templates.GREETINGS)), ("assistant", rng.choice(templates.GREETING_REPLIES))]
    pairs: list[tuple[str, str]] = []
    topics = rng.sample(templates.TOPICS, rng.choice((1, 1, 2, 2, 3)))
    if rng.random() < 0.25:
        topics[rng.randrange(len(topics))] = rng.choice(templates.SMALL_TALK)
    for topic in topics:
        answer = rng.choice(topic.answers)
        if topic.more and rng.random() < 0.6:
            answer = f"{answer} {rng.choice(topic.more)}"
        pairs.append((rng.choice(topic.questions), answer))
    if facts and rng.random() < 0.5:
        about = (rng.choice(templates.FACT_QUESTIONS), rng.choice(templates.FACT_LEADS) + rng.choice(list(facts)))
        pairs.insert(rng.randrange(len(pairs) + 1), about)
    for number, (question, answer) in enumerate(pairs):
        lead = rng.choice(templates.FOLLOW_UPS) if number or turns else ""
        if lead != "And ":
            question = lead + question
        elif question.endswith("?"):
            question = lead + question[0].lower() + question[1:]
        turns += [("user", question), ("assistant", answer)]
    if rng.random() < 0.15:
        turns += [("user", rng.choice(templates.THANKS)), ("assistant", rng.choice(templates.FAREWELLS))]
    return turns


def _typed(rng: Random, text: str) -> str:
    """A question as people type it: often without capitals, at times without its mark."""
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    return text


def _filled(text: str, name: str, maker: str) -> str:
    """A template with its names; a maker such as 'the Example team' may begin a sentence."""
    capital = maker[:1].upper() + maker[1:]
    text = text.replace(". {maker}", f". {capital}").replace("? {maker}", f"? {capital}")
    text = capital + text.removeprefix("{maker}") if text.startswith("{maker}") else text
    return text.replace("{name}", name).replace("{maker}", maker)
