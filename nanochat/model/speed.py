"""A model that is only asked from now on, made as fast as its device allows: what is there is used, and logged.

    model.cast_weights()
    speed_up(model)

On a CPU compiled code answers where it can be had (`nanochat.model.native`), on a GPU CUDA graphs compute steps of one
token (`nanochat.model.graphs`); elsewhere PyTorch computes as it does in training.
"""

from __future__ import annotations

import logging
import threading

from nanochat.model.graphs import Graphs
from nanochat.model.native import Native, missing
from nanochat.model.packing import pack
from nanochat.model.transformer import Transformer
from nanochat.runtime.native_code import Uncompiled

log = logging.getLogger(__name__)


def speed_up(model: Transformer, *, beside: bool = False, settled: bool = False) -> str:
    """Use the fastest that there is for this model, and log what it is, and why no faster one -> that sentence. It is
    a warning where PyTorch is left to compute on a CPU.

    Code takes two seconds where this machine has not compiled it before. `beside`: in another thread, and the code
    takes over once it is there, in the middle of an answer too; else it is waited for. `settled`: its weights won't
    change any more, so that they may be laid out anew.
    """
    if model.device.type == "cuda":
        model.graphs = Graphs(model)
        return _told(model, "answers are computed by CUDA graphs")
    why = missing(model)
    native = None if why else Native(model)
    if native and beside and native.takes_time:
        said = "answers are computed by PyTorch until their code is compiled"
        log.info("%s", said)
        threading.Thread(target=lambda: _told(model, _attach(native, model)), name="compiler", daemon=True).start()
        return said
    said = _attach(native, model) if native else f"answers are computed by PyTorch: {why}"
    return _told(model, f"{said}; {pack(model)}" if settled and model.native is None else said)


def _told(model: Transformer, said: str) -> str:
    slow = model.device.type == "cpu" and model.native is None
    log.log(logging.WARNING if slow else logging.INFO, "%s", said)
    return said


def _attach(native: Native, model: Transformer) -> str:
    try:
        native.open()
    except (Uncompiled, OSError) as error:
        return f"answers are computed by PyTorch, which is slower: {error}"
    model.native = native
    return "answers are computed by compiled code" + (f" that was made for {native.level}" if native.level else "")
