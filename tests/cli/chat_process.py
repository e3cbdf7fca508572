"""A chat in the terminal with a model that is easily foretold: `python chat_process.py`.

`say: TEXT` is answered with the text, in which escapes as Python writes them count, `hold` with a word and then nothing
until it is stopped, `history` with how many messages it was given, and any other question with its repr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence

from rich.console import Console

from nanochat.cli.chat import Session
from nanochat.cli.chat_backends import Message, ReplySettings, Said


class Parrot:
    name = "a parrot"
    finish_reason = "stop"
    dropped = 0

    def reply(self, messages: Sequence[Message], settings: ReplySettings) -> Generator[Said]:
        question = messages[-1]["content"]
        order, colon, text = question.partition(": ")
        if order == "say" and colon:
            yield Said("text", text.encode("latin-1", "backslashreplace").decode("unicode_escape"))
        elif question == "hold":
            yield Said("text", "holding on")
            while True:
                time.sleep(0.05)  # signal.pause would miss an interrupt that comes just before it
        elif question == "history":
            yield Said("text", f"{len(messages)} messages, seed {settings.seed}")
        else:
            yield Said("text", f"heard {question!r}")


if __name__ == "__main__":
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    Session(Parrot(), ReplySettings(temperature=0.6, top_k=50, max_tokens=256), console=console).run()
    print("ended", file=sys.stderr)
