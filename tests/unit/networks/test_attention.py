import lightning as L
import pytest
import torch
import torch.nn.functional as F

from diffusion_lit import DiffusionModule
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.processes import FlowMatching
from diffusion_lit.diffusion.weighting import Uniform
from diffusion_lit.networks import attention
from diffusion_lit.networks.attention import BatchedAttention, attend_by_products, use_batched_attention
from diffusion_lit.networks.dit import DiT


def make_inputs(tokens=16, keys=16, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, length, 8, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
        for length in (tokens, keys, keys)
    ]


def output_and_gradients(attend, inputs, **settings):
    inputs = [value.detach().requires_grad_() for value in inputs]
    out = attend(*inputs, **settings)
    out.square().sum().backward()
    return [out.detach(), *(value.grad for value in inputs)]


@pytest.mark.parametrize("mask", [None, torch.linspace(-3, 3, 12, dtype=torch.float64).expand(2, 1, 1, 12)])
def test_products_compute_the_attention_of_pytorch(mask):
    inputs = make_inputs(16, 12, torch.float64)
    ours = output_and_gradients(attend_by_products, inputs, attn_mask=mask)
    theirs = output_and_gradients(F.scaled_dot_product_attention, inputs, attn_mask=mask)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mask", [None, torch.tensor([0.0] * 40 + [torch.finfo(torch.float32).min] * 24)])
def test_in_bfloat16_the_rounding_of_products_is_small(mask):
    """Scores and their softmax are rounded to 8 bits here, which the fused kernel keeps in float32."""
    inputs, mask = make_inputs(64, 64), {} if mask is None else {"attn_mask": mask.expand(2, 1, 1, 64)}
    in_double = [value.double() for value in inputs], {name: value.double() for name, value in mask.items()}
    exact = output_and_gradients(F.scaled_dot_product_attention, in_double[0], **in_double[1])
    with BatchedAttention(), torch.autocast("cpu", torch.bfloat16):  # autocast casts a mask in float32 for the kernel
        ours = output_and_gradients(F.scaled_dot_product_attention, inputs, **mask)
    for mine, truth in zip(ours, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - truth).norm() < 0.015 * truth.norm()


def is_fused(inputs, **settings):
    with BatchedAttention():
        return "ScaledDotProduct" in F.scaled_dot_product_attention(*inputs, **settings).grad_fn.name()


def test_what_products_would_change_or_slow_down_keeps_the_kernel_of_pytorch(monkeypatch):
    calls = []
    monkeypatch.setattr(attention, "attend_by_products", lambda *inputs, **_: calls.append(1) or inputs[0] * 1)
    inputs = make_inputs()
    for settings in ({}, {"scale": None, "is_causal": False, "dropout_p": 0.0}):
        assert not is_fused(inputs, **settings)
    with BatchedAttention():
        F.scaled_dot_product_attention(*inputs, None, 0.0, False)
    assert len(calls) == 3
    assert is_fused(make_inputs(dtype=torch.float32))
    assert is_fused(make_inputs(1024, 1024))
    with BatchedAttention(), torch.no_grad():
        F.scaled_dot_product_attention(*inputs)
    with BatchedAttention():
        is_seen = torch.ones(16, 16, dtype=torch.bool)
        for settings in ({"is_causal": True}, {"dropout_p": 0.5}, {"scale": 2.0}, {"attn_mask": is_seen}):
            F.scaled_dot_product_attention(*inputs, **settings)
        F.scaled_dot_product_attention(*inputs, None, 0.0, True)
    assert len(calls) == 3


def test_compiled_networks_attend_as_they_are():
    net = torch.nn.Linear(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(use_batched_attention(net), BatchedAttention)
        net.compile()
        assert not isinstance(use_batched_attention(net), BatchedAttention)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_training_on_a_cpu_attends_by_products_with_bf16(precision, monkeypatch):
    calls = []
    original = attend_by_products
    monkeypatch.setattr(attention, "attend_by_products", lambda *inputs: calls.append(1) or original(*inputs))
    net = DiT(image_size=8, channels=3, num_classes=0, patch_size=4, width=16, depth=2, heads=2, mlp_ratio=2.0)
    module = DiffusionModule(net, Diffusion(FlowMatching(), "v_prediction", Uniform()), (3, 8, 8))
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_steps=2, accelerator="cpu", precision=precision, **silent)
    trainer.fit(module, torch.utils.data.DataLoader(images, batch_size=2))
    assert len(calls) == (4 if precision == "bf16-mixed" else 0)  # 2 blocks, 2 steps
