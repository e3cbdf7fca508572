"""Files of chats: what /save writes is what /load and the chat page read; anything else is refused with its place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli import chat_file
from nanochat.cli.chat_file import SavedChat, load, save
from nanochat.spec.errors import UserError

TOOL = [{"type": "text", "text": "It is "}, {"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"}]
CHAT = SavedChat(
    name="Sums",
    messages=[
        {"role": "user", "content": "6 times 7? \U0001f600\u2028"},
        {"role": "assistant", "content": TOOL},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": ""},
    ],
    settings={"temperature": 0.5, "top_k": 7, "top_p": 0.9, "max_tokens": 99, "seed": 2**53 - 1},
    system="Be brief.",
    omitted=2,
)


@pytest.mark.parametrize("chat", [CHAT, SavedChat("", [])], ids=["long", "empty"])
def test_what_is_saved_is_loaded(tmp_path: Path, chat: SavedChat) -> None:
    save(tmp_path / "chat.json", chat)
    assert load(tmp_path / "chat.json") == [chat]
    save(tmp_path / "chat.json", SavedChat("other", []))
    assert [each.name for each in load(tmp_path / "chat.json")] == ["other"]
    assert os.listdir(tmp_path) == ["chat.json"]


def test_too_long_a_chat_is_not_saved(tmp_path: Path) -> None:
    exchange = [{"role": "user", "content": "x" * 600_000}, {"role": "assistant", "content": "x"}]
    with pytest.raises(UserError, match=r"cannot be saved: .*more than 1,000,000 characters; begin a new one"):
        save(tmp_path / "chat.json", SavedChat("", exchange * 2))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/chat.json cannot be written .*; name another file"):
        save(tmp_path / "file" / "chat.json", CHAT)
    assert os.listdir(tmp_path) == ["file"]


def message(**change: Any) -> dict[str, Any]:
    plain = {"parent": -1, "role": "user", "parts": [{"type": "text", "text": "hi"}], "note": "", "figures": {}}
    return plain | change


def reply(**change: Any) -> dict[str, Any]:
    return message(**({"parent": 0, "role": "assistant"} | change))


def chat(*messages: dict[str, Any], **change: Any) -> dict[str, Any]:
    plain = {"name": "n", "changed": 1, "settings": {}, "messages": list(messages), "leaf": len(messages) - 1}
    return plain | change


def written(tmp_path: Path, *chats: Any, **change: Any) -> Path:
    path = tmp_path / "chats.json"
    path.write_text(json.dumps({"format": "nanochat-conversations", "version": 1, "conversations": chats} | change))
    return path


def test_the_branch_that_is_shown_is_read(tmp_path: Path) -> None:
    texts = ["one", "1", "two", "2", "other"]
    messages = [
        (message if at % 2 == 0 else reply)(parent=at - 1, parts=[{"type": "text", "text": text}])
        for at, text in enumerate(texts)
    ]
    messages[4]["parent"] = 1
    older, newer = chat(*messages, leaf=3, changed=1), chat(*messages, leaf=4, changed=2)
    found = load(written(tmp_path, older, newer))
    assert [[each["content"] for each in chat.messages] for chat in found] == [
        ["one", "1", "other"],
        ["one", "1", "two", "2"],
    ]


RICHER = {
    "branches": chat(message(), reply(), reply(), leaf=1),
    "figures": chat(message(), reply(figures={"tokens": 5})),
    "a model": chat(message(), reply(figures={"model": "tiny:3"})),
    "a note": chat(message(), reply(note="stopped")),
    "two questions": chat(*(message(parent=at, parts=[{"type": "text", "text": "x" * 500_000}]) for at in (-1, 0))),
}


@pytest.mark.parametrize("more", RICHER)
def test_what_saving_would_lose_is_known(tmp_path: Path, more: str) -> None:
    (found,) = load(written(tmp_path, RICHER[more]))
    assert not found.whole


def test_half_a_surrogate_pair_loses_no_chat(tmp_path: Path) -> None:
    """Browsers keep texts that were cut within a sign, and write the half as an escape."""
    texts = {
        "\ud83d": "\ufffd",
        "\ude00\ud83d": "\ufffd\ufffd",
        "a\ud83d\ud83d\ude00z": "a\ufffd\U0001f600z",
        "\\ud83d \\\ud83d": "\\ud83d \\\ufffd",
        "\n\u6f22": "\n\u6f22",
    }
    for half, shown in texts.items():
        asked, said = (make(parts=[{"type": "text", "text": half}]) for make in (message, reply))
        path = written(tmp_path, chat(asked, said, name=half, settings={"system": half}))
        (found,) = load(path)
        assert [found.name, found.system, *(each["content"] for each in found.messages)] == [shown] * 4
        save(tmp_path / "again.json", found)
        assert load(tmp_path / "again.json") == [found]


def test_questions_without_an_answer_become_one(tmp_path: Path) -> None:
    (found,) = load(written(tmp_path, chat(message(), message(parent=0), reply(parent=1, figures={"omitted": 1}))))
    assert [each["content"] for each in found.messages] == ["hi\n\nhi", "hi"] and found.omitted == 0


LONG = [{"type": "text", "text": "\U0001f600" * 300_000}]
WRONG: dict[str, tuple[Any, str]] = {
    "null": (None, r"conversations\.0"),
    "no name": (chat(name=None), r"conversations\.0\.name"),
    "a long name": (chat(name="\U0001f600" * 101), "more than 200 characters"),
    "a date beyond all": (chat(changed=10**300), "changed"),
    "a leaf that is none": (chat(message(), leaf=1), "leaf must name a message"),
    "no leaf": (chat(message(), leaf=-1), "leaf must name a message"),
    "too many messages": (chat(*[message()] * 2049), r"messages: .*2048"),
    "another role": (chat(message(role="system")), r"messages\.0\.role"),
    "a loop": (chat(message(parent=0)), r"messages\.0\.parent must name a message before it"),
    "half a parent": (chat(message(), reply(parent=0.5)), r"messages\.1\.parent"),
    "a text for a parent": (chat(message(), reply(parent="0")), r"messages\.1\.parent"),
    "an answer to nothing": (chat(message(role="assistant")), r"messages\.0 must follow a question"),
    "an answer to an answer": (chat(message(), reply(), reply(parent=1)), r"messages\.2 must follow a question"),
    "another kind": (chat(message(parts=[{"type": "html", "text": ""}])), r"parts\.0\.type"),
    "a question with a tool": (chat(message(parts=[{"type": "python", "text": "1"}])), "text alone"),
    "a number for a text": (chat(message(parts=[{"type": "text", "text": 1}])), r"parts\.0\.text"),
    "texts too long together": (chat(message(parts=LONG), reply(parts=LONG)), "more than 1,000,000 characters"),
    "an endless note": (chat(message(note="x" * 1001)), "note"),
    "a temperature beyond bounds": (chat(settings={"temperature": 3}), r"settings\.temperature"),
    "a seed beyond a browser's numbers": (chat(settings={"seed": 2**53}), r"settings\.seed"),
    "a system message that is none": (chat(settings={"system": ["x"]}), r"settings\.system"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_chat_is_refused_with_its_place(tmp_path: Path, wrong: str) -> None:
    given, sentence = WRONG[wrong]
    with pytest.raises(UserError, match=rf"chats\.json was not loaded: .*{sentence}"):
        load(written(tmp_path, given))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "not JSON"), (b"[]", "was not loaded"), (b"[" * 100_000, "200 deep"), (b"\xff", "not JSON"),
        (b'{"format": "other", "version": 1, "conversations": []}', "format"),
        (b'{"format": "nanochat-conversations", "version": 2, "conversations": []}', "version"),
        (b'{"format": "nanochat-conversations", "version": 1, "conversations": {}}', "conversations"),
    ],
    ids=["half", "a list", "deep", "no text", "another format", "another version", "no list"],
)  # fmt: skip
def test_a_file_of_anything_else_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "chats.json").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path / "chats.json")


def test_a_file_that_is_none_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", "."):
        with pytest.raises(UserError, match="There is no file"):
            load(tmp_path / name)
    monkeypatch.setattr(chat_file, "MOST_BYTES", 100)
    with pytest.raises(UserError, match="more than 100 bytes"):
        load(written(tmp_path, chat(message())))
