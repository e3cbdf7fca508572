"""Some hundred requests, valid and almost valid, are answered as they have to be; `make fuzz` sends 20,000."""

from __future__ import annotations

import asyncio
from typing import Any

from request_fuzzer import Fuzzer, fuzz

from nanochat.tokenizer import Tokenizer


def test_requests_are_answered_as_they_have_to_be(server: Any, tokenizer: Tokenizer) -> None:
    fuzzer = Fuzzer(seed=1, vocabulary=tokenizer.vocab_size)
    tally = asyncio.run(fuzz(server.url, fuzzer, 400))
    assert tally.wrong == []
    assert set(tally.statuses) <= {200, 400, 405, 429, 503}
    assert min(tally.statuses[status] for status in (200, 400)) > 100 and tally.cut > 0
    assert set(tally.extremes) >= set(fuzzer.fields)
    assert server.service.alive
