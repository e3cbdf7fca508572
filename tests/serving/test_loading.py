"""A model that is served holds its weights once, whoever computes with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nanochat.model import int8
from nanochat.model.cache import KVCache
from nanochat.model.export import save_model
from nanochat.model.int8 import Int8Linear
from nanochat.model.native import Native
from nanochat.model.packing import PackedLinear, missing
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Linear, Transformer
from nanochat.runtime import native_code
from nanochat.runtime.compiler import cxx_compiler
from nanochat.serving.loading import load
from nanochat.tokenizer import Tokenizer

needs_compiler = pytest.mark.skipif(cxx_compiler() is None, reason="there is no C++ compiler")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = Transformer(ModelConfig(depth=2, width=64, heads=2, kv_heads=2, sequence_length=64, vocab_size=256))
    model.init_weights(0)
    save_model(tmp_path, model, {"stage": "sft"})
    Tokenizer([bytes([value]) for value in range(256)]).save(tmp_path)
    return tmp_path


@torch.inference_mode()
def answer(model: Transformer) -> None:
    cache = KVCache(model.config, slots=1, length=64, device="cpu", dtype=model.compute_dtype)
    for ids in (torch.zeros(1, 50, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)):
        model.logits(model.extend(ids, start=torch.tensor([50 if ids.numel() == 1 else 0]), slots=[0], cache=cache))


def addresses(tensors: list[Tensor]) -> set[int]:
    return {tensor.data_ptr() for tensor in tensors}


@needs_compiler
def test_compiled_code_reads_the_models_own_weights_and_there_are_no_others(folder: Path) -> None:
    model, _, extra = load(folder)
    assert extra == {"stage": "sft"} and isinstance(model.native, Native)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    assert addresses(model.native._kept) == addresses([*model.parameters(), model.rotary])


@needs_compiler
@pytest.mark.skipif(bool(int8.missing()), reason="weights of 8 bits can't be multiplied here")
def test_weights_of_8_bits_are_laid_out_for_pytorch_only_where_it_multiplies(folder: Path) -> None:
    model, _, _ = load(folder, int8=True)
    answer(model)
    matrices = [module for module in model.modules() if isinstance(module, Int8Linear)]
    assert len(matrices) == 4 * 2 + 1 and not any("packed" in vars(matrix) for matrix in matrices)
    model.native = None
    answer(model)
    assert all("packed" in vars(matrix) for matrix in matrices)


@pytest.mark.skipif(bool(missing(torch.float32)), reason="weights can't be laid out here")
def test_without_a_compiler_weights_are_laid_out_for_pytorch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_code, "cxx_compiler", lambda: None)
    for beside in (False, True):
        model, _, _ = load(folder, beside=beside)
        answer(model)
        assert model.native is None and not any(isinstance(module, Linear) for module in model.modules())
