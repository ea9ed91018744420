"""Resolve `strategy.precision=auto`: bf16-mixed where the device multiplies bfloat16 fast, else 32-true.

Training is compute bound: with AMX a step in bfloat16 takes about half the time
of one in float32. Without such instructions it is emulated and can take many
times longer.
"""

import logging

from diffusion_lit.system.bfloat16 import AMX, choose_precision, inspect_device, is_bf16_emulated

log = logging.getLogger(__name__)

FAST_FLAGS = (AMX,)  # with AVX512 alone not every step is faster
FIXED_HINT = "strategy.precision=32-true turns it off"


def resolve_precision(strategy: dict, is_resumed: bool = False) -> dict:
    """Return a `strategy` group with a fixed precision; log which one and why.

    Args:
        strategy: the group. Of a resumed run it has the precision of the run already.
        is_resumed: whether the precision is that of the run to resume.
    """
    precision, facts = strategy["precision"], inspect_device(strategy["accelerator"])
    if precision == "auto":
        precision, reason = choose_precision(facts, FAST_FLAGS)
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
