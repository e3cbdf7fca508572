"""Compiled code says what PyTorch says, with bits that depend on nothing beside a token; where it can't, it is said."""

from __future__ import annotations

import logging
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from nanochat.model import cache as kv
from nanochat.model import int8, native
from nanochat.model.cache import KVCache
from nanochat.model.int8 import to_int8
from nanochat.model.native import SOURCE
from nanochat.model.packing import pack
from nanochat.model.sizes import ModelConfig
from nanochat.model.speed import speed_up
from nanochat.model.transformer import IDLE, Transformer
from nanochat.runtime import native_code
from nanochat.runtime.compiler import cxx_compiler
from nanochat.runtime.native_code import LEVELS, Level, compiled
from tests.model.recipe_models import RECIPES

ROOT = Path(__file__).parents[2]
Make = Callable[[ModelConfig], Transformer]
SPED = "answers are computed by compiled code"
needs_compiler = pytest.mark.skipif(cxx_compiler() is None, reason="there is no C++ compiler")
FORMATS = {"fp32": (torch.float32, 1e-4), "bf16": (torch.bfloat16, 0.1)}  # and the largest difference of a logit


def some_model(
    make_model: Make, recipe: str = "classic", *, kv_heads: int = 2, width: int = 48, dtype: torch.dtype = torch.float32
) -> Transformer:
    shape = {"depth": 3, "width": width, "heads": 4, "kv_heads": kv_heads, "sequence_length": 64, "vocab_size": 61}
    model = make_model(ModelConfig(**shape, **RECIPES[recipe]))
    model.compute_dtype = dtype
    model.cast_weights()
    return model


def cache_for(model: Transformer, slots: int, length: int = 200) -> KVCache:
    return KVCache(model.config, slots=slots, length=length, device="cpu", dtype=model.compute_dtype)


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def said(model: Transformer, tokens: torch.Tensor, start: Sequence[int], slots: Sequence[int], cache: KVCache):
    """Logits (B, T, V) of tokens (B, T)."""
    return model.logits(model.extend(tokens, start=torch.tensor(start), slots=slots, cache=cache))


@needs_compiler
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("recipe", "kv_heads"), [("classic", 1), ("classic", 4), *((recipe, 2) for recipe in RECIPES)])
def test_chunks_and_rows_equal_the_plain_forward(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, recipe: str, kv_heads: int, name: str
) -> None:
    monkeypatch.setattr(kv, "CHUNK", 60)  # so that short windows, of 16, keep fewer positions than there are
    dtype, most = FORMATS[name]
    model = some_model(make_model, recipe, kv_heads=kv_heads, dtype=dtype)
    tokens = ids(3, 180)
    with torch.inference_mode():
        expected = model(tokens)
    assert speed_up(model) == SPED
    cache, found = cache_for(model, 4), []
    for row, slot in enumerate((3, 0, 1)):
        pieces, at = [], 0
        for count in (1, 3, 60, 9, 7):
            pieces.append(said(model, tokens[row : row + 1, at : at + count], [at], [slot], cache)[0])
            at += count
        found.append(torch.cat(pieces))
    steps = [said(model, tokens[:, at : at + 1], [at] * 3, [3, 0, 1], cache) for at in range(80, 180)]
    logits = torch.cat([torch.stack(found), *steps], dim=1)
    assert float((logits - expected).abs().max()) < most
    assert float((logits - expected).abs().mean()) < most / 5


@needs_compiler
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("width", [48, 56, 320])  # 14 numbers of a head, and 80: whole vectors and none
def test_a_token_has_the_same_bits_alone_and_in_company(make_model: Make, name: str, width: int) -> None:
    model = some_model(make_model, "modern", width=width, dtype=FORMATS[name][0])
    assert speed_up(model) == SPED
    mine = ids(150, seed=1)
    alone, cache = [], cache_for(model, 1)
    for at, token in enumerate(mine):
        alone.append(said(model, token.view(1, 1), [at], [0], cache)[0, 0])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        both = torch.stack((ids(143, seed=2), mine[:143]))
        chunk = said(model, both, [0, 0], [7, 1], crowded := cache_for(model, 9))[1]
        assert torch.equal(chunk, torch.stack(alone[:143]))
        for at in range(143, 150):
            rows = ids(8, 1, seed=at)
            rows[5] = mine[at]
            start = [at, 3 + at, at, IDLE, at, at, at, IDLE]
            logits = said(model, rows, start, [0, 2, 3, 4, 5, 1, 6, 8], crowded)
            assert torch.equal(logits[5, 0], alone[at])
    finally:
        torch.set_num_threads(threads)


@needs_compiler
def test_padding_and_idle_rows_change_nothing(make_model: Make) -> None:
    model = some_model(make_model, "modern")
    assert speed_up(model) == SPED
    tokens, lengths, cache = ids(3, 10), torch.tensor([10, 4, 1]), cache_for(model, 4)
    before = [k[3].clone() for k in cache.k]
    with torch.inference_mode():
        expected = model(tokens)
        hidden = model.extend(
            tokens, start=torch.zeros(3, dtype=torch.int64), slots=[2, 1, 0], cache=cache, lengths=lengths
        )
        logits = model.logits(hidden)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(logits[row, :length], expected[row, :length], rtol=1e-4, atol=1e-4)
    hidden = model.extend(tokens[:, :1], start=torch.tensor([10, IDLE, IDLE]), slots=[2, 3, 1], cache=cache)
    assert not hidden[1:].any() and hidden[0].any()
    assert all(torch.equal(k[3], kept) for k, kept in zip(cache.k, before, strict=True))


@needs_compiler
def test_what_is_not_there_is_refused(make_model: Make) -> None:
    model = some_model(make_model)
    assert speed_up(model) == SPED
    cache = cache_for(model, 2)
    for token, slot in ((61, 0), (-1, 0), (3, 2)):
        with pytest.raises(IndexError, match="not in the vocabulary, or its slot not in the cache"):
            said(model, torch.tensor([[token]]), [0], [slot], cache)
    with pytest.raises(ValueError, match="position 200 is beyond the cache's 200"):
        said(model, ids(1, 1), [200], [0], cache)
    other = KVCache(model.config, slots=1, length=20, device="cpu", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="the cache holds torch"):
        said(model, ids(1, 1), [0], [0], other)


@needs_compiler
@pytest.mark.parametrize("name", FORMATS)
def test_code_for_other_cpus_says_the_same(make_model: Make, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What the compiler makes of it for a CPU without instructions for bf16."""
    dtype, most = FORMATS[name]
    model = some_model(make_model, "modern", width=96, dtype=dtype)
    tokens, cache = ids(2, 20), cache_for(model, 2)
    with torch.inference_mode():
        expected = model(tokens)
    plain = [option for option in native_code.OPTIONS if option != "-march=native"]
    monkeypatch.setattr(native_code, "OPTIONS", (*plain, "-Wno-psabi"))
    assert speed_up(model) == SPED
    found = torch.cat([said(model, tokens[:, at : at + 1], [at, at], [0, 1], cache) for at in range(20)], dim=1)
    assert float((found - expected).abs().max()) < most


@needs_compiler
@pytest.mark.parametrize(
    "level", [level for level in LEVELS if level.machine == platform.machine()], ids=lambda x: x.name
)
@pytest.mark.parametrize("name", FORMATS)
def test_code_that_was_made_beforehand_says_the_same(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, level: Level
) -> None:
    if not level.needed <= set(native_code.instructions().split()):
        pytest.skip("this CPU lacks the instructions")
    dtype, most = FORMATS[name]
    model = some_model(make_model, "modern", width=96, dtype=dtype)
    assert speed_up(model) == SPED
    tokens = ids(2, 70)
    expected = said(model, tokens, [0, 0], [0, 1], cache_for(model, 2))
    monkeypatch.setattr(native_code, "LEVELS", (level,))
    monkeypatch.setattr(native_code, "BUILT", tmp_path)
    native_code.build(SOURCE, f"FORMAT={native.FORMATS[dtype]}", "WEIGHT=FORMAT", folder=tmp_path)
    monkeypatch.setattr(native_code, "cxx_compiler", lambda: None)
    assert speed_up(model, beside=True) == f"{SPED} that was made for {level.name}"
    found = said(model, tokens, [0, 0], [0, 1], cache := cache_for(model, 2))
    assert float((found - expected).abs().max()) < most
    steps = [said(model, tokens[:, at : at + 1], [at, at], [0, 1], cache)[:, 0] for at in range(70)]
    assert torch.equal(torch.stack(steps, dim=1), found)


def test_the_image_that_makes_it_beforehand_has_all_that_this_imports() -> None:
    """And no more: a change of other code does not make the libraries anew."""
    listed = "import sys, nanochat.model.native; print(*{n.split('.')[1] for n in sys.modules if n[:9] == 'nanochat.'})"
    imported = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout.split()
    stage = (ROOT / "images" / "Dockerfile").read_text().partition(" AS native\n")[2].partition("\nFROM ")[0]
    assert sorted(re.findall(r"^COPY nanochat/(\w+) ", stage, re.MULTILINE)) == sorted(imported)


HASWELL = "flags\t\t: fpu avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
SKYLAKE = f"{HASWELL} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("machine", "flags", "level"),
    [
        ("x86_64", f"{SKYLAKE} avx512_bf16 amx_bf16", "avx512-bf16"),
        ("x86_64", SKYLAKE, "x86-64-v4"),
        ("x86_64", f"{HASWELL} avx512f", "x86-64-v3"),
        ("aarch64", "Features\t: fp asimd", "armv8-a"),
    ],
)
def test_without_a_compiler_the_best_library_for_the_cpu_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, flags: str, level: str
) -> None:
    monkeypatch.setattr(native_code, "cxx_compiler", lambda: None)
    monkeypatch.setattr(native_code, "BUILT", tmp_path)
    monkeypatch.setattr(native_code.platform, "machine", lambda: machine)
    monkeypatch.setattr(native_code, "instructions", lambda: flags)
    macros = ("FORMAT=float", "WEIGHT=FORMAT")
    with pytest.raises(native_code.Uncompiled, match="nothing for this code and this CPU; install g"):
        compiled(SOURCE, *macros)
    for each in LEVELS:
        (tmp_path / native_code._name(SOURCE, macros, each)).touch()
    assert native_code.level_of(compiled(SOURCE, *macros)) == level
    monkeypatch.setattr(native_code, "instructions", lambda: "flags\t\t: fpu sse2")
    if machine == "x86_64":
        with pytest.raises(native_code.Uncompiled, match="nothing for this code and this CPU"):
            compiled(SOURCE, *macros)


@needs_compiler
def test_a_compiler_that_is_there_wins_over_what_was_made_beforehand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native_code, "BUILT", tmp_path)
    for each in LEVELS:
        (tmp_path / native_code._name(SOURCE, ("FORMAT=float", "WEIGHT=FORMAT"), each)).touch()
    assert native_code.level_of(compiled(SOURCE, "FORMAT=float", "WEIGHT=FORMAT")) == ""


@pytest.mark.parametrize(
    ("compiler", "words"),
    [
        (None, "there is no C++ compiler; install g++"),
        ("/nowhere/g++", "/nowhere/g++ can't be run (FileNotFoundError)"),
        ("false", "false can't compile it"),
    ],
)
def test_without_a_compiler_pytorch_answers_and_it_is_said(
    make_model: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    compiler: str | None,
    words: str,
) -> None:
    monkeypatch.setattr(native_code, "cxx_compiler", lambda: compiler)
    model = some_model(make_model)
    told = speed_up(model)
    assert told.startswith("answers are computed by PyTorch, which is slower: ") and words in told
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", told)]
    assert model.native is None
    cache, tokens = cache_for(model, 1), ids(1, 5)
    with torch.inference_mode():
        torch.testing.assert_close(said(model, tokens, [0], [0], cache), model(tokens), rtol=1e-5, atol=1e-5)


def test_other_models_are_left_to_pytorch(make_model: Make) -> None:
    trained = some_model(make_model)
    trained.compute_dtype = torch.bfloat16
    assert speed_up(trained) == "answers are computed by PyTorch: its weights are still trained"
    half = some_model(make_model, dtype=torch.float16)
    assert "knows no torch.float16" in speed_up(half)
    assert "is for CPUs" in speed_up(some_model(make_model).to("meta"))
    laid_out = some_model(make_model)
    pack(laid_out)
    assert "a layout of their own" in speed_up(laid_out)
    assert [model.native for model in (trained, half, laid_out)] == [None] * 3


@needs_compiler
@pytest.mark.skipif(bool(int8.missing()), reason="weights of 8 bits can't be multiplied here")
@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_8_bits_say_the_same(make_model: Make, name: str) -> None:
    dtype, most = FORMATS[name]
    model = some_model(make_model, "modern", width=96, dtype=dtype)
    to_int8(model)
    tokens, cache = ids(2, 40), cache_for(model, 2)
    with torch.inference_mode():
        expected = model(tokens)
    assert speed_up(model) == SPED
    chunks = [said(model, tokens[row : row + 1, :32], [0], [row], cache)[0] for row in (0, 1)]
    steps = [said(model, tokens[:, at : at + 1], [at, at], [0, 1], cache) for at in range(32, 40)]
    found = torch.cat([torch.stack(chunks), *steps], dim=1)
    assert float((found - expected).abs().max()) < max(most, 2e-3)


@needs_compiler
def test_code_that_is_not_there_may_come_beside_the_answers(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native_code, "_folder", lambda: tmp_path)
    model, go = some_model(make_model), threading.Event()

    def late(*asked: object) -> Path:
        assert go.wait(60)
        return compiled(*asked)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(native, "compiled", late)
    with caplog.at_level(logging.INFO):
        assert speed_up(model, beside=True) == "answers are computed by PyTorch until their code is compiled"
        assert model.native is None
        (compiler,) = [thread for thread in threading.enumerate() if thread.name == "compiler"]
        go.set()
        compiler.join(120)
    assert isinstance(model.native, native.Native)
    assert SPED in caplog.text and {record.levelname for record in caplog.records} == {"INFO"}
    assert speed_up(some_model(make_model), beside=True) == SPED


@needs_compiler
def test_code_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native_code, "_folder", lambda: tmp_path)
    library = compiled(SOURCE, "FORMAT=float", "WEIGHT=FORMAT")
    written = library.stat().st_mtime_ns
    assert compiled(SOURCE, "FORMAT=float", "WEIGHT=FORMAT") == library and library.stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [library.name]
    monkeypatch.setattr(native_code, "instructions", lambda: "another CPU's")
    assert native_code.takes_time(SOURCE, "FORMAT=float", "WEIGHT=FORMAT")


def test_code_is_kept_by_the_user_alone_or_for_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = native_code._folder.__wrapped__()
    assert found == tmp_path / "nanochat" / "native" and found.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(native_code.tempfile, "tempdir", str(tmp_path))
    elsewhere = native_code._folder.__wrapped__()
    assert elsewhere.parent == tmp_path and elsewhere.stat().st_mode & 0o777 == 0o700
