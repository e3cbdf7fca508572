"""The one inference engine: continuous batching over a slotted key-value cache.

    engine = Engine(model, tokenizer, slots=8)
    completions = engine.generate(prompts, Sampling(max_tokens=256))     # blocks; evaluation and RL rollouts

    request = engine.submit(prompt, Sampling(max_tokens=256))            # chat and serving
    while request.finish_reason is None:
        for event in engine.step(): ...

A step computes up to CHUNK prompt tokens of new requests, chooses one token for every row that is ready, and decodes
all rows at once. Rows come and go between steps. What a row says depends on its own prompt, settings and seed; the
other rows cannot change it, but for the rounding of matrix products. A request has one of two modes:

- `Sampling.repeatable` (evaluation, RL, requests with a seed): the same whatever runs beside it. While one of them
  runs, all slots are decoded in one fixed shape, and its prompt is computed alone.
- others: the fewest rows of the ladder 1, 2, 4, 8, ... that hold those that run, and short prompts together. The same
  tokens as long as the likeliest two differ by more than rounding.

Where compiled code decodes (`nanochat.model.native`), a row's bits depend on nothing beside it: there are no others
than those that run in either mode. Where CUDA graphs do (`nanochat.model.graphs`), the others' ladder is of the first
1, 2, 4, 8, ... slots: each set of slots needs graphs of its own.

With `guesses` a row's next tokens are guessed from what was said before, and computed in a pass of its own: of a
repeatable request always, whoever is beside it, of others where they are alone.

An engine belongs to one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from nanochat.inference.errors import ContextTooLong
from nanochat.inference.guesses import Guesses
from nanochat.inference.reply import Reply, Vocabulary
from nanochat.inference.request import Completion, Event, FinishReason, Request
from nanochat.inference.sampling import Sampler, Sampling, TokenLogprob, token_logprobs, uniform
from nanochat.inference.slots import CHUNK, Slot, choose, decoded, next_pass, worth_waiting
from nanochat.model.cache import KVCache
from nanochat.model.transformer import IDLE, Transformer
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer

SCORED = 64  # tokens of a prompt whose logits are held at once


class Engine:
    """Serves requests over `slots` rows of `length` tokens each (the model's own context unless given), of which up to
    `guesses` are guessed at a time."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, *, slots: int = 8, length: int | None = None, guesses: int = 0
    ) -> None:
        self.length = length or model.config.sequence_length
        # Called with a request and the error that ended it, which is its own; without it `step` raises that error.
        self.on_error: Callable[[Request, Exception], None] | None = None
        self._model = model
        self._guesses = min(guesses, CHUNK - 1)
        self._device = model.device
        self._vocabulary = Vocabulary(tokenizer)
        self._cache = KVCache(
            model.config, slots=slots, length=self.length, device=model.device, dtype=model.compute_dtype
        )
        self._slots = [Slot(index) for index in range(slots)]
        self.reset()

    def reset(self) -> None:
        """Begin anew, as an error in the middle of a step demands: no request is left, and nothing is remembered."""
        vocabulary, device = self._model.config.vocab_size, self._device
        self._slots = [Slot(index) for index in range(len(self._slots))]
        self._waiting: deque[Request] = deque()
        self._unready: dict[Request, Slot] = {}  # those whose prompts are being computed, in the order of arrival
        self._sampler = Sampler(self.slots, vocabulary=vocabulary, terminal=self._vocabulary.terminal, device=device)
        self._clock = 0
        # Logits of each row's next token, and those at the end of each slot's prompt, which samples share.
        self._logits = torch.zeros(self.slots, vocabulary, device=device)  # (slots, V)
        self._prompt_logits = torch.zeros_like(self._logits)  # (slots, V)

    # ----------------------------------------------------------------------------------------------------
    # Requests

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self._device

    @property
    def running(self) -> int:
        """How many requests have a slot."""
        return sum(slot.request is not None for slot in self._slots)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def waits(self, request: Request) -> bool:
        """Whether nothing was computed for the request yet."""
        return request in self._waiting

    @property
    def slots(self) -> int:
        return len(self._slots)

    @property
    def held(self) -> int:
        """How many tokens' keys and values the cache holds, of `slots` times `length`."""
        return sum(slot.held for slot in self._slots)

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Request:
        """Queue a prompt. Raises ContextTooLong where it leaves no room for a reply."""
        if not prompt:
            raise UserError("The prompt has no tokens; give it at least one.")
        if sampling.max_tokens < 1:
            raise UserError(f"max_tokens is {sampling.max_tokens}; it must be at least 1.")
        known = range(self._model.config.vocab_size)
        if not all(token in known for token in (*prompt, *(token for token, _ in sampling.logit_bias))):
            raise UserError(f"A token is not in the vocabulary: ids go from 0 to {len(known) - 1}.")
        if len(prompt) >= self.length:
            raise ContextTooLong(prompt=len(prompt), limit=self.length)
        form = sampling.grammar.begin() if sampling.grammar else None
        request = Request(tuple(prompt), sampling, Reply(self._vocabulary, stop=sampling.stop), form)
        self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a request now, wherever it is; a finished one is left alone."""
        if request.finish_reason is not None:
            return
        request.finish_reason = "cancelled"
        request.reply.close()
        if request in self._waiting:
            self._waiting.remove(request)
        for slot in self._slots:
            if slot.request is request:
                self._release(slot)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]) -> list[Completion]:
        """The completions of all prompts, in their order. For one prompt's samples pass `Sampling.split(n)`.

        Equal prompts that stand together are computed once. The weights may have changed since the last call.
        """
        if self.running or self._waiting:
            raise RuntimeError("generate needs an idle engine")
        self.forget()
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        requests = [self.submit(prompt, each) for prompt, each in zip(prompts, settings, strict=True)]
        while self.running or self._waiting:
            self.step()
        return [request.completion for request in requests]

    def forget(self) -> None:
        """Drop what free slots remember, as when the weights have changed: an idle engine is then as if new."""
        for slot in self._slots:
            if slot.request is None:
                slot.forget()

    # ----------------------------------------------------------------------------------------------------
    # Steps

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute some prompt, choose every ready row's next token, decode. One event for each such token."""
        self._prefill()
        ready = [slot for slot in self._slots if slot.request is not None and slot.ready]
        if not ready:
            return []
        events = self._choose(ready)
        self._decode()
        return events

    def _prefill(self) -> None:
        budget = CHUNK
        while budget > 0:
            while self._admit():
                pass
            if not (batch := next_pass(list(self._unready.values()), budget)):
                return
            budget -= self._compute(batch)

    def _admit(self) -> bool:
        """Give the next waiting request a slot, with what can be taken over from another one; False: not now."""
        request = self._waiting[0] if self._waiting else None
        found = choose(self._slots, request, self._cache.reach) if request else None
        if request is None or found is None:
            return False
        slot, source, length = found
        if worth_waiting(self._slots, request, length):
            return False
        self._waiting.popleft()
        if length:
            self._used(source)
            if slot is not source:
                self._cache.copy_slot(source.index, slot.index, length)
        if length == len(request.prompt):
            self._prompt_logits[slot.index] = self._prompt_logits[source.index]
            self._logits[slot.index] = self._prompt_logits[slot.index]
        slot.exact, slot.written = min(source.exact, length), source.written if length else 0
        slot.request, slot.prompt, slot.filled, slot.reply = request, request.prompt, length, ()
        request.reused = length
        slot.guesses = Guesses(request.prompt, self._guesses) if self._guesses else None
        if not slot.ready:
            self._unready[request] = slot
        with self._blaming(slot):
            self._sampler.put(slot.index, request.sampling)
        return True

    def _compute(self, batch: list[tuple[Slot, int]]) -> int:
        """Compute the next tokens of prompts in one pass; how many tokens that were, padding included."""
        width = max(count for _, count in batch)
        chunks = [slot.prompt[slot.filled : slot.filled + count] for slot, count in batch]
        hidden = self._model.extend(
            self._tensor([(*chunk, *[0] * (width - len(chunk))) for chunk in chunks]),  # (B, T)
            start=self._tensor([slot.filled for slot, _ in batch]),
            slots=[slot.index for slot, _ in batch],
            cache=self._cache,
            lengths=self._tensor([count for _, count in batch]) if len(batch) > 1 else None,
        )  # (B, T, D)
        for row, (slot, count) in enumerate(batch):
            self._score_prompt(slot, hidden[row, :count])
            alone = len(batch) == 1 and slot.filled == slot.exact and slot.exact % CHUNK == 0
            slot.filled += count
            slot.written = max(slot.written, slot.filled)
            if alone and (count == CHUNK or slot.ready):
                slot.exact = slot.filled
        # Only the last position of a prompt has a next token.
        if done := [(row, slot) for row, (slot, _) in enumerate(batch) if slot.ready]:
            rows, slots = [row for row, _ in done], [slot.index for _, slot in done]
            logits = self._model.logits(hidden[rows, [batch[row][1] - 1 for row in rows]])  # (n, V)
            self._logits[slots] = self._prompt_logits[slots] = logits
            for _, slot in done:
                del self._unready[_occupant(slot)]
        return width * len(batch)

    def _score_prompt(self, slot: Slot, hidden: torch.Tensor) -> None:
        """Note how likely the prompt's tokens are, if asked for, that the next positions' hidden (T, D) foretell."""
        request = _occupant(slot)
        top, found = request.sampling.prompt_logprobs, request.prompt_logprobs
        if top is None:
            return
        if not found:
            found.append(None)  # before the first token there is nothing to foretell it
        tokens = list(request.prompt[slot.filled + 1 :][: len(hidden)])
        for start in range(0, len(tokens), SCORED):
            some = tokens[start : start + SCORED]
            logits = self._model.logits(hidden[start : start + len(some)])  # (SCORED, V)
            found += token_logprobs(logits, some, [top] * len(some))

    def _choose(self, ready: list[Slot]) -> list[Event]:
        rows = self._decoded(ready)
        at = {slot: row for row, slot in enumerate(rows)}
        uniforms, no_end = [0.0] * len(rows), [False] * len(rows)
        top: list[int | None] = [None] * len(rows)
        allowed: dict[int, torch.Tensor] = {}
        for slot in ready:
            request, row = _occupant(slot), at[slot.index]
            if request.reply.forced:
                continue
            with self._blaming(slot):
                uniforms[row] = uniform(request.sampling.seed, len(request.prompt) + len(request.ids))
                no_end[row] = len(request.ids) < request.sampling.min_tokens
                top[row] = request.sampling.logprobs
                if request.form is not None:
                    allowed[row] = request.form.allowed()
                    no_end[row] = no_end[row] and not request.form.complete
        ready = [slot for slot in ready if slot.request is not None]
        scores = self._sampler.shifted(self._logits[rows], rows=rows, no_end=no_end, allowed=allowed)  # (B, V)
        chosen = self._sampler.choose(scores, rows=rows, uniforms=uniforms).tolist()
        logprobs = token_logprobs(scores, chosen, top)
        self._count(ready, {slot: chosen[row] for slot, row in at.items()})
        events: list[Event] = []
        for slot in ready:
            with self._blaming(slot):
                events.append(self._accept(slot, chosen[at[slot.index]], logprobs[at[slot.index]]))
        return events

    def _count(self, ready: list[Slot], chosen: Mapping[int, int]) -> None:
        """Tell the sampler the tokens that penalties are about: sampled ones of the text, not of a reply's form."""
        penalised = [slot.index for slot in ready if (r := _occupant(slot)).sampling.penalised and not r.reply.forced]
        special = self._vocabulary.special
        self._sampler.count([(row, chosen[row]) for row in penalised if chosen[row] not in special])

    def _accept(self, slot: Slot, sampled: int, logprob: TokenLogprob | None) -> Event:
        request = _occupant(slot)
        reply, sampling = request.reply, request.sampling
        forced = bool(reply.forced)
        token = reply.forced.popleft() if forced else sampled
        if request.form is not None:
            request.form.accept(token)
        kind = reply.kind_of(token)
        pieces = reply.accept(token, may_end=len(request.ids) >= sampling.min_tokens)
        request.ids.append(token)
        request.mask.append(0 if forced else 1)
        request.logprobs.append(logprob)
        reason: FinishReason | None = None
        if reply.ended:
            reason = "stop"
        elif len(request.ids) >= sampling.max_tokens or len(request.prompt) + len(request.ids) >= self.length:
            reason = "length"
        if reason is not None:
            pieces += reply.close()
            request.finish_reason = reason
            self._release(slot)
        return Event(request, token, kind, forced, pieces, logprob, reason)

    def _decode(self) -> None:
        """The logits of every row's next token: those that were computed ahead, and the others'."""
        ready = [slot for slot in self._slots if slot.request is not None and slot.ready]
        unknown = [slot for slot in ready if not self._known(slot)]
        plain = [slot for slot in unknown if not ((slot.repeatable or len(ready) == 1) and self._decode_guesses(slot))]
        if plain:
            self._decode_together(plain)

    def _known(self, slot: Slot) -> bool:
        """Take the logits after the row's newest token where it was guessed."""
        logits = slot.guesses.after(_occupant(slot).ids[-1]) if slot.guesses else None
        if logits is not None:
            self._logits[slot.index] = logits
        return logits is not None

    def _decode_guesses(self, slot: Slot) -> bool:
        """Compute the row's newest token with those that may follow it; False: nothing to go by."""
        request = _occupant(slot)
        at = len(request.prompt) + len(request.ids) - 1
        room = min(request.sampling.max_tokens - len(request.ids), self.length - at) - 1
        tokens = slot.guesses.next(room) if slot.guesses else []
        if not slot.guesses or not tokens:
            return False
        hidden = self._model.extend(
            self._tensor([[request.ids[-1], *tokens]]), start=self._tensor([at]), slots=[slot.index], cache=self._cache
        )
        slot.written = max(slot.written, at + 1 + len(tokens))
        logits = self._model.logits(hidden)[0]  # (1 + n, V)
        self._logits[slot.index] = logits[0]
        slot.guesses.computed(tokens, logits[1:])
        return True

    def _decode_together(self, decoding: Sequence[Slot]) -> None:
        """One token for each of the rows, in one shape; the shape's other rows are IDLE."""
        slots = self._decoded(decoding)
        at = {slot: row for row, slot in enumerate(slots)}
        ids, start = [0] * len(slots), [IDLE] * len(slots)
        for slot in decoding:
            request, row = _occupant(slot), at[slot.index]
            ids[row] = request.ids[-1]
            start[row] = len(request.prompt) + len(request.ids) - 1
            slot.written = max(slot.written, start[row] + 1)
        whole = any(slot.repeatable for slot in decoding)
        logits = self._model.decode(ids, start=start, slots=slots, cache=self._cache, whole=whole)  # (B, V)
        told = [slot.index for slot in decoding]
        self._logits[told] = logits[[at[slot] for slot in told]]

    def _decoded(self, ready: Sequence[Slot]) -> list[int]:
        """The slots that are decoded for those that are `ready`: no others where rows have the same bits alone."""
        if self._model.native is not None:
            return [slot.index for slot in ready]
        return decoded(ready, self.slots, block=self._model.graphs is not None)

    @contextmanager
    def _blaming(self, slot: Slot) -> Iterator[None]:
        """An error inside is that of the slot's request: it ends this request, if there is someone to be told."""
        request = _occupant(slot)
        try:
            yield
        except Exception as error:
            if self.on_error is None:
                raise
            request.finish_reason = "cancelled"
            if slot.request is request:
                self._release(slot)
            self.on_error(request, error)

    def _release(self, slot: Slot) -> None:
        request = _occupant(slot)
        self._unready.pop(request, None)
        slot.request, slot.guesses = None, None
        slot.reply = tuple(request.ids[:-1])  # the last one was chosen and not computed
        self._used(slot)
        self._sampler.put(slot.index, None)

    def _used(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock

    def _tensor(self, values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _occupant(slot: Slot) -> Request:
    assert slot.request is not None
    return slot.request
