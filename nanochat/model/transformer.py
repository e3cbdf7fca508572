"""The transformer: rotary positions, QK norm, ReLU squared, untied head, capped logits, no learned norms.

The modern recipe adds value embeddings, short windows, and learned scalars on the stream between the blocks.

    model = Transformer(config)          # under `with torch.device(...)` for another device than the CPU
    model.init_weights(seed)
    model.compute_dtype = torch.bfloat16
    loss = model(ids, targets)           # (B, T) each; -1 in targets is not trained on
    hidden = model.extend(ids, start=start, slots=[0, 3], cache=cache)    # the same numbers, step by step
    logits = model.logits(hidden[:, -1])

Weights are fp32 and cast at each use, so that gradients arrive and add up in fp32; `cast_weights` makes the
cast once for a model that is only read. Shapes: B rows, T positions, D width, H heads, hd head size,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model import fp8
from nanochat.model.attention import Attend, sdpa
from nanochat.model.cache import CHUNK, KVCache, Span, side_by_side
from nanochat.model.cached_attention import CachedAttend, Together, attention_to
from nanochat.model.loss import IGNORED, Tile, cross_entropy_, head_loss, softcap
from nanochat.model.pointwise import PLAIN, Pointwise, norm
from nanochat.model.residual import ResidualStream
from nanochat.model.sizes import MLP_RATIO, ModelConfig
from nanochat.model.value_embedding import ValueEmbedding
from nanochat.spec.errors import UserError

ROTARY_REACH = 10  # positions that can be told apart, in multiples of the trained context

IDLE = -1  # the start of a row of `extend` that is not in use

Reduction = Literal["mean", "sum", "none"]


class Recorded(Protocol):
    """Computes steps of one token in its own way; `nanochat.model.graphs`."""

    def decode(
        self, ids: Sequence[int], start: Sequence[int], slots: Sequence[int], attended: int, cache: KVCache
    ) -> Tensor:
        """As `Transformer.decode_fixed`, of plain numbers."""
        ...


class Compiled(Protocol):
    """Computes tokens in its own way; `nanochat.model.native`."""

    def extend(self, tokens: Sequence[tuple[int, int, int]], cache: KVCache) -> Tensor:
        """The normed last layer (n, D) of tokens (id, slot, position), those of a slot in their order."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (n, D) -> capped logits (n, V), fp32."""
        ...


def extend_compiled(
    native: Compiled, ids: Tensor, start: Sequence[int], ends: Sequence[int], slots: Sequence[int], cache: KVCache
) -> Tensor:
    """`Transformer.extend` token by token; what does not count is zero."""
    said = ids.tolist()
    counts = [0 if begin == IDLE else end - begin for begin, end in zip(start, ends, strict=True)]
    places = [(row, at) for row, count in enumerate(counts) for at in range(count)]
    found = native.extend([(said[row][at], slots[row], start[row] + at) for row, at in places], cache)  # (n, D)
    if len(places) == ids.numel():
        return found.view(*ids.shape, -1)
    hidden = found.new_zeros(*ids.shape, found.size(-1))
    hidden[[row for row, _ in places], [at for _, at in places]] = found
    return hidden


class Linear(nn.Module):
    """A matrix without bias, weight (outputs, inputs), multiplied in the dtype of what comes in."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.float32))
        self.fp8 = False  # whether it is trained in FP8; without gradients it never is

    def forward(self, x: Tensor) -> Tensor:
        if self.fp8 and torch.is_grad_enabled():
            return fp8.fp8_linear(x, self.weight)
        return F.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Causal attention, with grouped queries where there are fewer key-value heads than heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.window = config.window(layer)
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.query = Linear(config.width, config.heads * config.head_dim)
        self.key = Linear(config.width, config.kv_width)
        self.value = Linear(config.width, config.kv_width)
        self.fused: nn.Module | None = None  # in their place once weights were laid out anew: all three in one product
        self.project = Linear(config.heads * config.head_dim, config.width)
        self.value_embedding = ValueEmbedding(config) if config.has_value_embedding(layer) else None

    def forward(self, x: Tensor, ids: Tensor, rotary: Tensor, attend: Attend, pointwise: Pointwise) -> Tensor:
        """The pass over whole rows."""
        return self.project(attend(*self._project(x, ids, rotary, pointwise), self.window).flatten(2))

    def extend(
        self,
        x: Tensor,
        ids: Tensor,
        rotary: Tensor,
        *,
        k: Tensor,
        v: Tensor,
        where: tuple[Tensor, Tensor],
        attend: CachedAttend,
    ) -> Tensor:
        """As forward, against this layer's k and v (slots, stored, H_kv, hd), written at `where` first."""
        q, new_k, new_v = self._project(x, ids, rotary)
        k[where], v[where] = new_k, new_v
        return self.project(attend(q, k, v).flatten(2))

    def _project(
        self, x: Tensor, ids: Tensor, rotary: Tensor, pointwise: Pointwise = PLAIN
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D), ids (B, T) -> q (B, T, H, hd), k and v (B, T, H_kv, hd)."""
        b, t, _ = x.shape
        if self.fused is not None:
            heads = self.fused(x).view(b, t, -1, self.head_dim)
            qk, v = heads.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
            q, k = pointwise.turn(qk, rotary).split((self.heads, self.kv_heads), dim=2)
            return q, k, self._value(v, x, ids)
        q = self.query(x).view(b, t, self.heads, self.head_dim)
        k = self.key(x).view(b, t, self.kv_heads, self.head_dim)
        v = self.value(x).view(b, t, self.kv_heads, self.head_dim)
        v = self._value(v, x, ids)
        return pointwise.turn(q, rotary), pointwise.turn(k, rotary), v

    def _value(self, v: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        return v if self.value_embedding is None else self.value_embedding(v, x, ids)


class MLP(nn.Module):
    """D -> 4D -> relu(x)^2 -> D."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.expand = Linear(config.width, MLP_RATIO * config.width)
        self.contract = Linear(MLP_RATIO * config.width, config.width)

    def forward(self, x: Tensor, pointwise: Pointwise = PLAIN) -> Tensor:
        return self.contract(pointwise.square(self.expand(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, ids: Tensor, rotary: Tensor, attend: Attend, pointwise: Pointwise) -> Tensor:
        x = x + self.attention(pointwise.norm(x), ids, rotary, attend, pointwise)
        return x + self.mlp(pointwise.norm(x), pointwise)


class Transformer(nn.Module):
    """The model. A fresh one has undefined weights: call init_weights, or load them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.attend: Attend = sdpa  # over whole rows
        self.pointwise = PLAIN  # in the layers, over whole rows
        self.native: Compiled | None = None  # what computes `extend` and `logits`, in place of the modules
        self.graphs: Recorded | None = None  # what computes `decode`, in place of `extend` and `logits`
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.width, dtype=torch.float32))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.stream = ResidualStream(config)
        self.head = Linear(config.width, config.vocab_size)
        self.rotary: Tensor
        self.register_buffer("rotary", self.rotary_table(), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def longest(self) -> int:
        """The longest context that it takes, in tokens."""
        return ROTARY_REACH * self.config.sequence_length

    def rotary_table(self) -> Tensor:
        """cos and sin of position * base^(-2i/hd): (2, positions, hd/2), fp32."""
        half = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32) / self.config.head_dim
        angles = torch.outer(torch.arange(self.longest, dtype=torch.float32), 1 / self.config.rope_base**half)
        return torch.stack((angles.cos(), angles.sin()))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Normal by fan-in and fan-out (arXiv 2310.17813); zero where a block or the model ends.

        With zero projections the first forward pass is the embedding alone, and the first loss ln V.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        for name, weight in self.named_parameters():
            if name == "embedding":
                weight.normal_(0.0, 1.0, generator=generator)
            elif name.endswith(("project.weight", "contract.weight", "head.weight")):
                weight.zero_()
            elif name.endswith(".weight"):
                outputs, inputs = weight.shape
                std = min(1.0, math.sqrt(outputs / inputs)) / math.sqrt(inputs)
                weight.normal_(0.0, std, generator=generator)
        self.stream.init_weights(generator)
        for module in self.modules():
            if isinstance(module, ValueEmbedding):
                module.init_weights(self.config.width, generator)

    @torch.no_grad()
    def cast_weights(self) -> None:
        """Turn the weights themselves into compute_dtype, for a model that is only read from now on."""
        for weight in self.parameters():
            weight.requires_grad_(False)
            weight.data = weight.data.to(self.compute_dtype)

    def use_fp8(self) -> int:
        """Train the blocks' matrices in FP8, but for small ones -> how many. Head and embeddings stay as they are."""
        matrices = [m for m in self.blocks.modules() if isinstance(m, Linear) and fp8.fits(m.weight)]
        for matrix in matrices:
            matrix.fp8 = True
        return len(matrices)

    def hidden(
        self, ids: Tensor, blocks: Sequence[Callable[..., Tensor]] | None = None, pointwise: Pointwise | None = None
    ) -> Tensor:
        """ids (B, T) -> the normed last layer (B, T, D), in compute_dtype; `blocks` are called instead of the own, and
        `pointwise` is used in the layers."""
        self._check_length(ids.size(1))
        rotary = self.rotary[:, None, : ids.size(1), None]  # (2, 1, T, 1, hd/2)
        x = self.stream.smear(self._embed(ids))
        called, between = self.blocks if blocks is None else blocks, pointwise or self.pointwise
        return self._through(x, lambda layer, x: called[layer](x, ids, rotary, self.attend, between))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> soft-capped logits (..., V), fp32."""
        native = self.native
        if native is not None:
            return native.logits(hidden.reshape(-1, hidden.size(-1))).view(*hidden.shape[:-1], -1)
        return softcap(self.head(hidden))

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        factors: Tensor | None = None,
        *,
        reduction: Reduction = "mean",
        tile: Tile = cross_entropy_,
    ) -> Tensor:
        """hidden (B, T, D), targets (B, T) -> the cross-entropy, of each token times its factor (B, T) fp32.

        "none" is (B, T), without factors and without a gradient; "mean" is over the targets that are not IGNORED.
        Logits are never held whole.
        """
        flat = None if factors is None else factors.flatten()
        total, losses = head_loss(hidden.flatten(0, 1), self.head.weight, targets.flatten(), flat, tile=tile)
        if reduction == "none":
            return losses.view_as(targets)
        return total if reduction == "sum" else total / (targets != IGNORED).sum()

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        factors: Tensor | None = None,
        *,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """ids (B, T) -> logits (B, T, V); with targets (B, T) the loss."""
        hidden = self.hidden(ids)
        return self.logits(hidden) if targets is None else self.loss(hidden, targets, factors, reduction=reduction)

    @torch.inference_mode()
    def extend(
        self, ids: Tensor, *, start: Tensor, slots: Sequence[int], cache: KVCache, lengths: Tensor | None = None
    ) -> Tensor:
        """Continue sequences that the cache holds: ids (B, T) from position start on -> as `hidden` (B, T, D).

        start (B,) says how much of each sequence is in the cache already, `slots` which slots the rows are, all
        different. Row b sees positions 0..start+t of its own slot (in a short window the newest of them) and nothing of
        its neighbours.
        Of a row with `lengths` (B,) only so many tokens count; what stands behind them, and a row that starts at IDLE
        (with T = 1), writes to its slot's last position alone, which the others must not reach.
        """
        t = ids.size(1)
        ends = (start + (t if lengths is None else lengths)).tolist()
        self._check_length(max(ends))
        cache.check_room(max(ends), t)
        native = self.native
        if native is not None:
            return extend_compiled(native, ids, start.tolist(), ends, slots, cache)

        positions = start[:, None] + torch.arange(t, device=ids.device)  # (B, T)
        if lengths is not None:
            positions = positions.masked_fill(positions >= (start + lengths)[:, None], IDLE)
        rows = torch.tensor(slots, device=ids.device)
        attends = {
            span: attention_to(span, cache, slots=slots, positions=positions, ends=ends) for span in set(cache.spans)
        }
        return self._continue(ids, start, positions, rows, attends, cache)

    @torch.inference_mode()
    def decode(
        self,
        ids: Sequence[int],
        *,
        start: Sequence[int],
        slots: Sequence[int],
        cache: KVCache,
        whole: bool = False,
    ) -> Tensor:
        """The logits (B, V) after one token of each row, `ids` at the positions `start`, as `extend` takes them.

        A GPU attends to as many positions of each row as the longest has; `whole`: to all that there are, so that a
        row's bits depend on nothing beside it.
        """
        if self.device.type == "cpu" and self.graphs is None:
            given, begin = torch.tensor((ids, start))
            return self.logits(self.extend(given[:, None], start=begin, slots=slots, cache=cache))[:, 0]
        end = max(start) + 1
        self._check_length(end)
        cache.check_room(end, 1)
        attended = cache.length if whole else min(cache.length, -(-end // CHUNK) * CHUNK)
        if self.graphs is not None:
            return self.graphs.decode(ids, start, slots, attended, cache)
        given, begin, rows = torch.tensor((ids, start, slots), device=self.device)
        return self.decode_fixed(given, start=begin, rows=rows, slots=slots, attended=attended, cache=cache)

    @torch.inference_mode()
    def decode_fixed(
        self, ids: Tensor, *, start: Tensor, rows: Tensor, slots: Sequence[int], attended: int, cache: KVCache
    ) -> Tensor:
        """`decode` of ids (B,) at start (B,), with nothing that the host would wait for or decide: `rows` (B,) are the
        `slots`, and the cache's first `attended` positions hold all that a row sees."""
        positions = start[:, None]  # (B, 1)
        stretches = side_by_side(slots)
        attends = {span: Together(stretches, span.mask(positions, attended)) for span in set(cache.spans)}
        return self.logits(self._continue(ids[:, None], start, positions, rows, attends, cache))[:, 0]

    def _continue(
        self,
        ids: Tensor,
        start: Tensor,
        positions: Tensor,
        rows: Tensor,
        attends: Mapping[Span, CachedAttend],
        cache: KVCache,
    ) -> Tensor:
        """The hidden (B, T, D) of ids (B, T) at `positions` (B, T) of the slots `rows` (B,)."""
        rotary = self.rotary[:, positions, None]  # (2, B, T, 1, hd/2)
        where = {span: (rows[:, None], span.entries(positions)) for span in attends}

        def run(layer: int, x: Tensor) -> Tensor:
            block, span = self.blocks[layer], cache.spans[layer]
            assert isinstance(block, Block)
            k, v = cache.k[layer], cache.v[layer]
            x = x + block.attention.extend(norm(x), ids, rotary, k=k, v=v, where=where[span], attend=attends[span])
            return x + block.mlp(norm(x))

        before = None
        if self.config.smear:
            before = self._embed(cache.ids[rows, start - 1][:, None]).masked_fill((start < 1)[:, None, None], 0)
            cache.ids[rows[:, None], positions] = ids
        return self._through(self.stream.smear(self._embed(ids), before), run)

    def _through(self, x: Tensor, run: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The stream (B, T, D) through all blocks, each by `run`, up to the norm before the head."""
        first = middle = x
        for layer in range(len(self.blocks)):
            x = run(layer, self.stream.enter(layer, x, first))
            if layer == self.stream.middle:
                middle = x
        return norm(self.stream.leave(x, middle))

    def _embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, D); the rows that are looked up are cast, not the table."""
        return norm(F.embedding(ids, self.embedding).to(self.compute_dtype))

    def _check_length(self, length: int) -> None:
        if length > self.longest:
            raise UserError(
                f"A context of {length:,} tokens is longer than the {self.longest:,} that this model takes "
                f"({ROTARY_REACH} times its sequence length of {self.config.sequence_length:,}); shorten it."
            )
