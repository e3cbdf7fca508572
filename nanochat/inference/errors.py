"""Reasons to refuse a request."""

from __future__ import annotations

from nanochat.spec.errors import UserError


class ContextTooLong(UserError):
    """The prompt leaves no room for a reply in the model's context."""

    def __init__(self, *, prompt: int, limit: int, at_least: bool = False) -> None:
        count = f"at least {prompt:,}" if at_least else f"{prompt:,}"
        super().__init__(
            f"The prompt has {count} tokens and the model's context holds {limit:,}, "
            "of which at least one is for the reply; shorten it."
        )
        self.prompt = prompt
        self.limit = limit
