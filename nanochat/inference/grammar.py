"""Answers that are held to JSON: the tokens that may come next, by llguidance, which the extra `json` installs.

    grammar = Grammars(tokenizer).json({"type": "object"})      # UserError where it can't be; it takes a moment
    form = grammar.begin()                                      # for one answer
    form.allowed()                                              # (V,) uint8, not 0 for those that may be next
    form.accept(token)

The schema is compiled once; what may come next is found out step by step. Both have bounds, so that no schema holds up
the others for long: an answer whose schema turns out to be too much ends with a UserError.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer

LONGEST_SCHEMA = 65_536  # characters
# No spaces between things: a small model that may write them writes nothing else.
OPTIONS = {"whitespace_flexible": False}
LIMITS = {
    "initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "step_max_items": 20_000, "max_lexer_states": 50_000,
    "max_grammar_size": 100_000, "verbose_errors": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled schema."""

    matcher: Any  # llguidance.LLMatcher, at its beginning

    def begin(self) -> Form:
        """The state of one answer."""
        return Form(self.matcher.deep_copy())


class Form:
    """How far one answer is."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may come."""
        return self._matcher.is_stopped()

    def allowed(self) -> torch.Tensor:
        """The tokens (V,) that may be next, the end of an answer among them."""
        found = bytearray(self._matcher.compute_logit_bias())
        self._check()
        return torch.frombuffer(found, dtype=torch.uint8)

    def accept(self, token: int) -> None:
        """Take the next token."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UserError(f"The answer can't be held to this schema: {_short(self._matcher.get_error())}.")


class Grammars:
    """Compiles schemas for one vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _vocabulary(self) -> Any:
        import llguidance

        tokenizer = self._tokenizer
        return llguidance.LLTokenizer.from_tiktoken(  # pyright: ignore[reportAttributeAccessIssue]
            encoder={token: rank for rank, token in enumerate(tokenizer.ranks)},
            special_tokens={f"<|{name}|>": token for name, token in tokenizer.special.items()},
            pattern=tokenizer.pattern,
            eos_token=tokenizer.special["assistant_end"],
            n_vocab=None,
            slices=None,
        )

    def json(self, schema: dict[str, Any]) -> Grammar:
        """JSON of a schema. Raises UserError, which says what of it can't be honoured."""
        try:
            import llguidance
        except ModuleNotFoundError:
            raise UserError(
                "This server can't hold answers to JSON: where it runs, install the package llguidance "
                "(pip install 'nanochat-kubernetes[json]')."
            ) from None
        text = json.dumps(schema)
        if len(text) > LONGEST_SCHEMA:
            raise UserError(f"The schema has {len(text):,} characters; send at most {LONGEST_SCHEMA:,}.")
        grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=OPTIONS)  # pyright: ignore
        limits = llguidance.LLParserLimits(**LIMITS)
        matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_logit_bias()  # fails where no answer has a first token
        if matcher.is_error():
            raise UserError(f"The schema can't be honoured: {_short(matcher.get_error())}.")
        return Grammar(matcher)


def _short(error: str) -> str:
    if error.startswith("NoExtension"):
        return "nothing satisfies it"
    return " ".join(error.split())[:200].rstrip(".")
