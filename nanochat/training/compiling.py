"""Whether torch.compile pays.

    decision = decide("auto", device, config, tokens=steps * step_tokens, fixed_shapes=True, fused=False)
    log.info("%s", decision.reason)

Decided by what is known before training, never by a stopwatch or by what a former launch left: a resumed run must
choose again what it chose before, or its weights would not be equal bit for bit.

On a CPU compiling fuses what lies between the matrix products of the layers (norms, rotary positions, the MLP's
square), and what the loss does with each logit. So a token gains in proportion to depth * width, and to the vocabulary;
of the former little is left to gain where the model has own code for that (`nanochat.model.fused_pointwise`).
Compiling takes as long for many layers as for few, whose kernels are the same. Both are seconds of a core and scale
alike with its speed; docs/performance.md says how they were measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nanochat.model.sizes import ModelConfig
from nanochat.runtime.compiler import cxx_compiler

if TYPE_CHECKING:
    import torch

GAIN, FUSED_GAIN = 30e-9, 5e-9  # seconds of a core that a token gains for each layer and unit of width; beside own code
LOGIT_GAIN = 0.7e-9  # and for each word of the vocabulary
COST = 26.0  # seconds of a core that compiling takes


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to compile, and the sentence that says why; `tuned`: with kernels that are chosen by trying them."""

    compiled: bool
    reason: str
    tuned: bool = False


def saved_seconds(config: ModelConfig, tokens: float, *, fused: bool) -> float:
    """Seconds of a core that compiled code saves on so many tokens; `fused`: beside own code."""
    return ((FUSED_GAIN if fused else GAIN) * config.depth * config.width + LOGIT_GAIN * config.vocab_size) * tokens


def decide(
    setting: Literal["auto", "always", "never", "max-autotune"],
    device: torch.device,
    config: ModelConfig,
    *,
    tokens: float,
    fixed_shapes: bool,
    fused: bool,
    deterministic: bool = False,
) -> Decision:
    """For training of so many tokens on this process; each shape of a batch is compiled anew. `fused`: own code
    does what lies between the products otherwise."""
    if setting == "max-autotune":
        if device.type != "cuda":
            return Decision(True, "compiled, not tuned: only kernels of a CUDA GPU are")
        if deterministic:
            return Decision(True, "compiled, not tuned: a stopwatch would choose, and deterministic is set")
        return Decision(True, "compiled: kernels are chosen by trying them", tuned=True)
    if setting != "auto":
        return Decision(setting == "always", f"compile is {setting}")
    if not fixed_shapes:
        return Decision(False, "not compiled: batches are of many lengths, and each would be compiled anew")
    if device.type == "cuda":
        return Decision(True, "compiled: on a GPU it always pays")
    if device.type != "cpu":
        return Decision(False, f"not compiled: whether that pays is not known for {device.type}")
    if cxx_compiler() is None:
        return Decision(False, "not compiled: there is no C++ compiler; install g++")
    import torch  # not at the top: `nanochat plan` reckons with the figures above

    gain = saved_seconds(config, tokens, fused=fused) / torch.get_num_threads()
    figures = f"it would save an estimated {gain:,.0f} s of training and take {COST:,.0f} s"
    return Decision(gain > COST, f"{'compiled' if gain > COST else 'not compiled'}: {figures}")
