"""Make attention in bfloat16 fast where CPUs train with it."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MAX_SCORES = 576 * 576  # of one head; with more, products need much memory and are not always faster


class BatchedAttention(TorchFunctionMode):
    """Computes `scaled_dot_product_attention` in bfloat16 on a CPU by batched matrix products.

    PyTorch's fused kernel has a slow backward pass there: with 64 tokens the products take a sixth
    of its time (BENCHMARKS.md). Calls without gradients keep the fused kernel.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Return the result of a function of PyTorch."""
        is_attention = func is F.scaled_dot_product_attention and torch.is_grad_enabled()
        attend = attend_by_products if is_attention and _is_short(*args, **(kwargs or {})) else func
        return attend(*args, **(kwargs or {}))


def use_batched_attention(net: nn.Module) -> AbstractContextManager:
    """Return a context in which `net` attends by batched products in `bf16-mixed` on a CPU, unless it is compiled."""
    is_used = torch.is_autocast_enabled("cpu") and net._compiled_call_impl is None
    return BatchedAttention() if is_used else nullcontext()


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_, **__) -> Tensor:
    """Return softmax(query key^T / sqrt(d) + mask) value, (B, heads, L, d), with batched matrix products.

    Args:
        query: (B, heads, L, d).
        key: (B, heads, S, d).
        value: (B, heads, S, d).
        attn_mask: added to the scores, broadcast to (B, heads, L, S); None for no mask.
    """
    with torch.autocast("cpu", enabled=False):  # else the softmax is returned in float32
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
        scores = scores if attn_mask is None else scores + attn_mask  # a mask in float32 makes them float32
        return torch.softmax(scores, -1).to(value) @ value


def _is_short(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *others, **named) -> bool:
    """Return whether products are faster and compute the same: without dropout, scale, causal or boolean mask."""
    is_plain = not any((*others, *named.values())) and (attn_mask is None or attn_mask.is_floating_point())
    is_bfloat16 = query.dtype == key.dtype == value.dtype == torch.bfloat16
    return is_plain and is_bfloat16 and query.shape[-2] * key.shape[-2] <= MAX_SCORES
