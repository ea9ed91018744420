"""Resolve `strategy.precision=auto`: bf16-mixed where the device multiplies bfloat16 fast, else 32-true.

Training is compute bound: with AMX a step in bfloat16 takes about half the time of one in
float32. Without such instructions it is emulated and can take many times longer. Torch is
imported only when needed.
"""

import logging
from typing import NamedTuple

from diffusion_lit.system.platform import cpu_flags

log = logging.getLogger(__name__)

MIN_CAPABILITY = (8, 0)  # CUDA compute capability from which tensor cores multiply bfloat16
FAST_FLAG = "amx_bf16"
BF16_FLAGS = {FAST_FLAG, "avx512_bf16", "avx_ne_convert", "bf16"}  # Linux' names on x86 and, the last, on ARM
FIXED_HINT = "strategy.precision=32-true turns it off"


class DeviceFacts(NamedTuple):
    """What decides how fast a device multiplies bfloat16.

    Attributes:
        kind: cpu | cuda | mps.
        capability: the lowest CUDA compute capability of the devices.
        flags: instruction sets of the CPU, empty if the system does not list them.
    """

    kind: str
    capability: tuple[int, int] = (0, 0)
    flags: frozenset[str] = frozenset()


def inspect_device(accelerator: str) -> DeviceFacts:
    """Return the facts of the devices that `strategy.accelerator` chooses on this machine."""
    if accelerator != "cpu":
        import torch

        if accelerator != "mps" and torch.cuda.is_available():
            count = torch.cuda.device_count()
            return DeviceFacts("cuda", min(torch.cuda.get_device_capability(k) for k in range(count)))
        if torch.backends.mps.is_available():
            return DeviceFacts("mps")
    return DeviceFacts("cpu", flags=cpu_flags())


def choose_precision(facts: DeviceFacts) -> tuple[str, str]:
    """Return the precision for a device and the reason."""
    if facts.kind == "cuda":
        name = f"CUDA compute capability {'.'.join(map(str, facts.capability))}"
        if facts.capability >= MIN_CAPABILITY:
            return "bf16-mixed", name
        return "32-true", f"{name}, bf16-mixed is fast from {'.'.join(map(str, MIN_CAPABILITY))} on"
    if facts.kind == "cpu" and FAST_FLAG in facts.flags:
        return "bf16-mixed", f"this CPU has {FAST_FLAG}"
    return "32-true", f"this CPU has no {FAST_FLAG}" if facts.kind == "cpu" else f"the device is {facts.kind}"


def is_bf16_emulated(facts: DeviceFacts) -> bool:
    """Return whether a device has no instructions for bfloat16, as far as the system says."""
    if facts.kind == "cuda":
        return facts.capability < MIN_CAPABILITY
    return facts.kind == "cpu" and bool(facts.flags) and not facts.flags & BF16_FLAGS


def resolve_precision(strategy: dict, is_resumed: bool = False) -> dict:
    """Return a `strategy` group with a fixed precision; log which one and why.

    Args:
        strategy: the group. Of a resumed run it has the precision of the run already.
        is_resumed: whether the precision is that of the run to resume.
    """
    precision, facts = strategy["precision"], inspect_device(strategy["accelerator"])
    if precision == "auto":
        precision, reason = choose_precision(facts)
        hint = f"; {FIXED_HINT}" if precision != "32-true" else ""
        log.info("precision  %s: %s (strategy.precision=auto%s)", precision, reason, hint)
    elif precision == "bf16-mixed" and is_bf16_emulated(facts):
        origin, hint = "set by strategy.precision", FIXED_HINT
        if is_resumed:
            origin, hint = "kept from the run", f"{FIXED_HINT}, with accept=[config]"
        log.warning("precision  bf16-mixed, %s: slow here, this device has no bfloat16 instructions. %s", origin, hint)
    elif is_resumed:
        log.info("precision  %s, kept from the run", precision)
    return strategy | {"precision": precision}
