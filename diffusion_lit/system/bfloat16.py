"""Which devices multiply bfloat16 fast. Torch is imported only when needed."""

from collections.abc import Sequence
from typing import NamedTuple

from diffusion_lit.system.platform import cpu_flags

MIN_CAPABILITY = (8, 0)  # CUDA compute capability from which tensor cores multiply bfloat16
AMX, AVX512 = "amx_bf16", "avx512_bf16"  # instruction sets by Linux' names
BF16_FLAGS = {AMX, AVX512, "avx_ne_convert", "bf16"}  # the last on ARM


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
    """Return the facts of the devices of an accelerator on this machine: auto | cpu | mps | cuda."""
    if accelerator != "cpu":
        import torch

        if accelerator != "mps" and torch.cuda.is_available():
            count = torch.cuda.device_count()
            return DeviceFacts("cuda", min(torch.cuda.get_device_capability(k) for k in range(count)))
        if torch.backends.mps.is_available():
            return DeviceFacts("mps")
    return DeviceFacts("cpu", flags=cpu_flags())


def choose_precision(facts: DeviceFacts, fast_flags: Sequence[str]) -> tuple[str, str]:
    """Return the precision for a device and the reason.

    Args:
        facts: of the device.
        fast_flags: instruction sets that make a CPU fast in bfloat16.
    """
    if facts.kind == "cuda":
        name = f"CUDA compute capability {'.'.join(map(str, facts.capability))}"
        if facts.capability >= MIN_CAPABILITY:
            return "bf16-mixed", name
        return "32-true", f"{name}, bf16-mixed is fast from {'.'.join(map(str, MIN_CAPABILITY))} on"
    if facts.kind != "cpu":
        return "32-true", f"the device is {facts.kind}"
    for flag in fast_flags:
        if flag in facts.flags:
            return "bf16-mixed", f"this CPU has {flag}"
    return "32-true", f"this CPU has no {' or '.join(fast_flags)}"


def is_bf16_emulated(facts: DeviceFacts) -> bool:
    """Return whether a device has no instructions for bfloat16, as far as the system says."""
    if facts.kind == "cuda":
        return facts.capability < MIN_CAPABILITY
    return facts.kind == "cpu" and bool(facts.flags) and not facts.flags & BF16_FLAGS
