"""Tokens through the model on a CPU by compiled code (`native.cpp`), a few at the speed of memory.

    native = Native(model)      # after `cast_weights`, of a model that is only asked from now on
    native.open()
    model.native = native       # all that by `nanochat.model.speed`, where nothing is `missing`

`Transformer.extend` and `Transformer.logits` go by it from then on. PyTorch takes some 25 calls a layer for that, and
reads weights for one token at half of what memory gives; here it is one call. A token's bits depend on nothing beside
it. The code reads the model's own weights, as they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nanochat.model.cache import KVCache
from nanochat.model.int8 import Int8Linear
from nanochat.model.loss import SOFTCAP
from nanochat.model.pointwise import EPSILON
from nanochat.model.sizes import GATE_CHANNELS, MLP_RATIO, SMEAR_CHANNELS, matrix_parameters
from nanochat.model.transformer import Attention, Block, Linear, Transformer
from nanochat.model.value_embedding import LARGEST_GATE
from nanochat.runtime.memory import use_large_pages
from nanochat.runtime.native_code import build, compiled, level_of, takes_time

SOURCE = Path(__file__).with_suffix(".cpp")
FORMATS = {torch.float32: "float", torch.bfloat16: "BF16"}
ALONE = 1 << 20  # products up to which one thread takes no longer than several that wait for one another


class _Matrix(Structure):
    _fields_ = [("weight", c_void_p), ("scale", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("query", "key", "value", "project", "expand", "contract")),
        *((name, c_void_p) for name in ("table", "gate")),
        ("window", c_int64),
    ]


class _Model(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("depth", "width", "heads", "kv_heads", "head_dim", "hidden", "vocabulary")),
        *((name, c_int64) for name in ("positions", "gate_channels", "smear_channels", "middle")),
        *((name, c_float) for name in ("epsilon", "largest_gate", "cap")),
        ("layers", POINTER(_Layer)),
        ("head", _Matrix),
        *((name, c_void_p) for name in ("embedding", "smear_gate", "smear_scale", "stream_scale")),
        *((name, c_void_p) for name in ("input_scale", "backout_scale", "rotary")),
    ]


class _Entries(Structure):
    _fields_ = [("k", c_void_p), ("v", c_void_p), ("size", c_int64), ("stored", c_int64)]


class _Cache(Structure):
    _fields_ = [("layers", POINTER(_Entries)), ("ids", c_void_p), ("length", c_int64)]


class Native:
    """The compiled code with one model's weights; `open` comes before all else."""

    def __init__(self, model: Transformer) -> None:
        self._kept: list[Tensor] = []  # whose memory the code reads
        self._caches: WeakKeyDictionary[KVCache, Any] = WeakKeyDictionary()
        self._dtype = model.compute_dtype
        self.defined = [f"FORMAT={FORMATS[model.compute_dtype]}"]
        self.defined.append("WEIGHT=FORMAT" if isinstance(model.head, Linear) else "WEIGHT=int8_t")
        self._width, self._vocabulary = model.config.width, model.config.vocab_size
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        self._layers = (_Layer * len(blocks))(*map(self._layer, blocks))
        self._model = self._describe(model)
        self._each = matrix_parameters(model.config)  # products of a token

    @property
    def takes_time(self) -> bool:
        """Whether `open` has to compile first."""
        return takes_time(SOURCE, *self.defined)

    def open(self) -> None:
        """Compile the code, if that was not done before; `Uncompiled` or OSError where it can't be had."""
        path = compiled(SOURCE, *self.defined)
        self.level = level_of(path)
        self._library = library = ctypes.CDLL(str(path))
        library.extend.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int]
        library.logits.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int]
        for weight in self._kept:
            use_large_pages(weight.data_ptr(), weight.nbytes)

    def extend(self, tokens: Sequence[tuple[int, int, int]], cache: KVCache) -> Tensor:
        """The normed last layer (n, D) of `tokens`, (id, slot, position) each, those of a slot in their order."""
        n = len(tokens)
        if not all(0 <= id < self._vocabulary and 0 <= slot < cache.slots for id, slot, _ in tokens):
            raise IndexError("a token is not in the vocabulary, or its slot not in the cache")
        hidden = torch.empty(n, self._width, dtype=self._dtype)
        flat = (c_int64 * (3 * n))(*(value for token in tokens for value in token))
        threads = self._threads(self._each * n)
        self._library.extend(byref(self._model), byref(self._cache(cache)), flat, n, hidden.data_ptr(), threads)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (n, D) -> capped logits (n, V), fp32."""
        hidden = hidden.to(self._dtype).contiguous()
        out = torch.empty(len(hidden), self._vocabulary)
        threads = self._threads(self._width * self._vocabulary * len(hidden))
        self._library.logits(byref(self._model), hidden.data_ptr(), len(hidden), out.data_ptr(), threads)
        return out

    def _threads(self, products: int) -> int:
        return 1 if products < ALONE else torch.get_num_threads()

    def _describe(self, model: Transformer) -> _Model:
        config, stream = model.config, model.stream
        return _Model(
            depth=config.depth,
            width=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            hidden=MLP_RATIO * config.width,
            vocabulary=config.vocab_size,
            positions=model.rotary.size(1),
            gate_channels=min(GATE_CHANNELS, config.width),
            smear_channels=min(SMEAR_CHANNELS, config.width),
            middle=stream.middle,
            epsilon=EPSILON,
            largest_gate=LARGEST_GATE,
            cap=SOFTCAP,
            layers=self._layers,
            embedding=self._weight(model.embedding),
            head=self._matrix(model.head),
            smear_gate=self._weight(stream.smear_gate if stream.has_smear else None),
            smear_scale=self._weight(stream.smear_scale if stream.has_smear else None),
            stream_scale=self._weight(stream.stream_scale if stream.has_scalars else None),
            input_scale=self._weight(stream.input_scale if stream.has_scalars else None),
            backout_scale=self._weight(stream.backout_scale if stream.has_backout else None),
            rotary=self._weight(model.rotary, torch.float32),
        )

    def _layer(self, block: Block) -> _Layer:
        attention, mlp = block.attention, block.mlp
        embedding = attention.value_embedding
        return _Layer(
            *self._inputs(attention),
            *(self._matrix(part) for part in (attention.project, mlp.expand, mlp.contract)),
            self._weight(embedding.table if embedding else None),
            self._weight(embedding.gate if embedding else None),
            attention.window or 1 << 62,
        )

    def _inputs(self, attention: Attention) -> list[_Matrix]:
        """Query, key and value."""
        if attention.fused is None:
            return [self._matrix(part) for part in (attention.query, attention.key, attention.value)]
        assert isinstance(attention.fused, Int8Linear)
        sizes = [size * attention.head_dim for size in (attention.heads, attention.kv_heads, attention.kv_heads)]
        parts = zip(attention.fused.whole.split(sizes), attention.fused.scale.split(sizes), strict=True)
        return [_Matrix(self._weight(whole, torch.int8), self._weight(scale, torch.float32)) for whole, scale in parts]

    def _matrix(self, linear: nn.Module) -> _Matrix:
        if isinstance(linear, Int8Linear):
            return _Matrix(self._weight(linear.whole, torch.int8), self._weight(linear.scale, torch.float32))
        assert isinstance(linear, Linear)
        return _Matrix(self._weight(linear.weight), None)

    def _weight(self, weight: Tensor | None, dtype: torch.dtype | None = None) -> int | None:
        """Where a weight's numbers begin; None where there is none."""
        if weight is None:
            return None
        kept = weight.detach().to(dtype or self._dtype).contiguous()
        self._kept.append(kept)
        return kept.data_ptr()

    def _cache(self, cache: KVCache) -> _Cache:
        if cache not in self._caches:
            if cache.k[0].dtype != self._dtype:
                raise ValueError(f"the cache holds {cache.k[0].dtype}, and the model computes in {self._dtype}")
            layers = (_Entries * len(cache.spans))(
                *(
                    _Entries(k.data_ptr(), v.data_ptr(), span.size, span.stored)
                    for k, v, span in zip(cache.k, cache.v, cache.spans, strict=True)
                )
            )
            self._caches[cache] = _Cache(layers, cache.ids.data_ptr(), cache.ids.size(1))
        return self._caches[cache]


def prebuild(folder: Path) -> list[Path]:
    """Make the code for all formats and CPUs of this machine's kind, for images that have no compiler."""
    weights = ("FORMAT", "int8_t")
    defined = [(f"FORMAT={name}", f"WEIGHT={weight}") for name in FORMATS.values() for weight in weights]
    return [library for each in defined for library in build(SOURCE, *each, folder=folder)]


def missing(model: Transformer) -> str:
    """Why such code does not serve this model; '' where it may."""
    if model.device.type != "cpu":
        return "compiled code is for CPUs"
    if model.compute_dtype not in FORMATS:
        return f"compiled code knows no {model.compute_dtype}"
    if any(weight.dtype != model.compute_dtype for weight in model.parameters()):
        return "its weights are still trained"
    if not isinstance(model.head, Linear | Int8Linear):
        return "its weights have a layout of their own"
    return ""
