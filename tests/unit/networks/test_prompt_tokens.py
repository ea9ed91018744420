"""Networks with prompts: padding and batch order change nothing, the null prompt is the network without a condition."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lit.networks.dit import DiT
from diffusion_lit.networks.prompt_tokens import TextPath, TokenProjection
from diffusion_lit.networks.text_unet import TextUNet
from diffusion_lit.sampling.guidance import add_classifier_free_guidance
from diffusion_lit.text.prompt_condition import PromptCondition
from tests.cases import each
from tests.prompts import WORDS, Vectors
from tests.replicas import replicate

PROMPTS = ["a golden dragon", "red", "", "a blue gem unheard"]
ENCODERS = {"words": WORDS, "vectors": Vectors()}


def make_net(kind: str, encoder, **changes) -> nn.Module:
    """A small network, every parameter away from the zeros that some begin with."""
    torch.manual_seed(0)
    text = {"text_tokens": encoder.num_tokens, "text_width": encoder.width} | changes
    if kind == "dit":
        net = DiT(8, 3, 5, patch_size=2, width=16, depth=2, heads=2, mlp_ratio=2.0, **text)
    else:
        net = TextUNet(8, 3, 5, [8, 16], [1], text_channels=12, heads=2, norm_num_groups=4, **text)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net.eval()


def inputs(count: int = 4) -> tuple[Tensor, Tensor]:
    x_t = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return x_t, torch.arange(count) * 200 + 150


every_net = each(("kind", "name"), [(kind, name) for kind in ("dit", "unet") for name in ENCODERS])


@every_net
@torch.no_grad()
def test_padding_and_order_of_the_batch_change_nothing(kind, name):
    encoder, (x_t, t) = ENCODERS[name], inputs()
    net, y = make_net(kind, encoder), encoder.encode(PROMPTS)
    out = net(x_t, t, y)
    longer = F.pad(y, (*[0] * 2 * (y.ndim - 2), 0, 9))
    torch.testing.assert_close(net(x_t, t, longer), out, rtol=1e-5, atol=1e-6)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(x_t[order], t[order], y[order]), out[order], rtol=1e-5, atol=1e-6)
    others = [net(x_t[:1].expand(4, -1, -1, -1), t[:1].expand(4), y)]
    for a in range(4):
        for b in range(a):
            assert (others[0][a] - others[0][b]).abs().max() > 1e-4, (a, b)


@every_net
@torch.no_grad()
def test_a_blend_is_its_prompt_at_each_end(kind, name):
    encoder, (x_t, t) = ENCODERS[name], inputs(1)
    net, condition = make_net(kind, encoder), PromptCondition(encoder)
    for first, second in ((1.0, 0.0), (0.0, 1.0)):
        blend = condition.to_tensor([(("a golden dragon", first), ("red gem", second))])
        end = condition.to_tensor(["a golden dragon" if first else "red gem"])
        torch.testing.assert_close(net(x_t, t, blend), net(x_t, t, end), rtol=1e-5, atol=1e-6)
    near = condition.to_tensor([(("a golden dragon", 1 - 1e-4), ("red gem", 1e-4))])
    end = condition.to_tensor(["a golden dragon"])
    torch.testing.assert_close(net(x_t, t, near), net(x_t, t, end), rtol=0, atol=1e-2)  # no jump at the end


@every_net
@torch.no_grad()
def test_the_null_prompt_is_the_unconditional_network(kind, name):
    encoder, (x_t, t) = ENCODERS[name], inputs()
    net, condition, y = make_net(kind, encoder), PromptCondition(encoder), encoder.encode(PROMPTS)
    unconditional = net(x_t, t, encoder.encode([""] * 4))
    assert torch.equal(add_classifier_free_guidance(net, condition, 0.0)(x_t, t, y), unconditional)
    no_column = net(x_t, t, y[:, :0])  # no room for a token at all
    torch.testing.assert_close(no_column, unconditional, rtol=1e-5, atol=1e-6)
    guided = add_classifier_free_guidance(net, condition, 3.0)(x_t, t, y)
    torch.testing.assert_close(guided, unconditional + 3 * (net(x_t, t, y) - unconditional), rtol=1e-4, atol=1e-5)


@every_net
@torch.no_grad()
def test_a_negative_prompt_guides_away_from_it(kind, name):
    encoder, (x_t, t) = ENCODERS[name], inputs()
    net, y = make_net(kind, encoder), encoder.encode(PROMPTS)
    guided = add_classifier_free_guidance(net, PromptCondition(encoder, negative="red"), 2.0)(x_t, t, y)
    negative = net(x_t, t, encoder.encode(["red"] * 4))
    torch.testing.assert_close(guided, negative + 2 * (net(x_t, t, y) - negative), rtol=1e-4, atol=1e-5)


@every_net
def test_every_parameter_learns_and_replicas_do_the_same_work(kind, name):
    encoder, (x_t, t) = ENCODERS[name], inputs()
    net, y = make_net(kind, encoder), encoder.encode(PROMPTS)
    out = net(x_t, t, y)
    out.square().mean().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    parts = zip(x_t.chunk(2), t.chunk(2), y.chunk(2), strict=True)
    split = [copy(*part) for copy, part in zip(replicate(net, 2), parts, strict=True)]
    torch.testing.assert_close(torch.cat(split), out, rtol=1e-4, atol=1e-5)


def test_a_token_number_is_a_one_hot_vector():
    layer, numbers = TokenProjection(6, 4), torch.tensor([[0, 5, 2]])
    torch.testing.assert_close(layer(numbers), layer(F.one_hot(numbers, 6).float()))
    net = make_net("unet", WORDS)
    values = WORDS.encode(["a red gem"])
    means = net._mean_features(values[:, :3], torch.ones(1, 3))
    torch.testing.assert_close(means, F.one_hot(values[:, :3], WORDS.num_tokens).float().mean(1))


def test_cross_attention_is_torchs_multihead_attention():
    block, words = make_net("dit", WORDS).blocks[0], torch.randn(3, 5, 16)
    theirs = nn.MultiheadAttention(16, 2, batch_first=True)
    weights = torch.cat([block.query.weight, block.key_value.weight])
    biases = torch.cat([block.query.bias, block.key_value.bias])
    own = {"out_proj.weight": block.cross_out.weight, "out_proj.bias": block.cross_out.bias}
    theirs.load_state_dict({"in_proj_weight": weights, "in_proj_bias": biases} | own)
    x, is_padding = torch.randn(3, 7, 16), torch.tensor([[False] * 3 + [True] * 2] * 3)
    bias = torch.zeros(3, 1, 1, 5).masked_fill(is_padding[:, None, None], float("-inf"))
    expected = theirs(F.layer_norm(x, (16,), eps=1e-6), words, words, is_padding, need_weights=False)[0]
    torch.testing.assert_close(block.cross_attention(x, words, bias), expected)


def test_the_vector_of_a_prompt_is_the_weighted_mean_of_its_tokens():
    path = TextPath(WORDS.num_tokens, 0, 16)
    nn.init.eye_(path.pool.weight)
    nn.init.zeros_(path.pool.bias)
    tokens, bias, pooled = path(PromptCondition(WORDS).to_tensor([(("red", 0.25), ("gem", 0.75))]))
    torch.testing.assert_close(pooled, (tokens[:, 0] + 0.25 * tokens[:, 1] + 0.75 * tokens[:, 2]) / 2)
    torch.testing.assert_close(bias.exp()[0, 0, 0], torch.tensor([1, 0.25, 0.75, 0, 0, 0, 0, 0, 0]))


@torch.no_grad()
def test_without_prompts_the_transformer_is_that_of_before_and_with_them_fresh_blocks_are_the_identity():
    torch.manual_seed(0)
    plain = DiT(8, 3, 5, patch_size=2, width=16, depth=1, heads=2, mlp_ratio=2.0)
    assert not [name for name, _ in plain.named_parameters() if "text" in name or "cross" in name or "query" in name]
    torch.manual_seed(0)
    fresh = DiT(8, 3, 5, patch_size=2, width=16, depth=1, heads=2, mlp_ratio=2.0, text_tokens=9)
    tokens, condition, words = torch.randn(4, 16, 16), torch.randn(4, 16), torch.randn(4, 3, 16)
    assert torch.equal(fresh.blocks[0](tokens, condition, words, torch.zeros(4, 1, 1, 3)), tokens)
    assert copy.deepcopy(fresh).load_state_dict(fresh.state_dict())


def test_without_a_text_encoder_the_text_unet_is_unconditional():
    net, (x_t, t) = make_net("unet", WORDS, text_tokens=0), inputs()
    assert torch.equal(net(x_t, t, torch.tensor([0, 1, 2, 3])), net(x_t, t, torch.zeros(4, dtype=torch.int64)))


@each("kind", ["dit", "unet"])
@torch.no_grad()
def test_bf16_autocast_stays_close(kind):
    (x_t, t), net, y = inputs(), make_net(kind, WORDS), WORDS.encode(PROMPTS)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x_t, t, y)
    exact = net(x_t, t, y)
    assert (out - exact).norm() < 0.05 * exact.norm()
