"""Every network keeps one contract; each is what its paper or its source says, down to the parameter."""

import copy
import functools
import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import diffusion_lit.networks
from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.groups import CONF
from diffusion_lit.config.targets import build
from diffusion_lit.networks.context_unet import ContextUnet
from diffusion_lit.networks.dit import DiT
from diffusion_lit.networks.simple_unet import ATTENTION_NORMS, ATTENTIONS, Attention
from diffusion_lit.networks.unet import UNet
from tests.cases import each
from tests.networks import FILES, SMALL, class_model, every_model, small_overrides
from tests.replicas import replicate

# parameters at 32x32, 3 channels and 10 classes
COUNTS = {
    "unet": 35_751_939,
    "unet_small": 1_625_731,
    "unet_digits": 269_923,
    "unet2d": 274_066_019,
    "context_unet": 2_268_355,
    "simple_unet": 2_347_539,
    "simple_unet_base": 33_998_211,
    "dit": 4_166_028,
    "unet_text": 16_906_307,
}
CLASSES = 5
NETWORKS = Path(diffusion_lit.networks.__file__).parent


@functools.cache
def composed(words: tuple[str, ...]) -> DictConfig:
    """Return the configuration of a network; facts about the data are set afterwards, for composing takes longer."""
    (config,) = compose_configs("train", ["experiment=none", "data.root=pictures", "data.image_size=64", *words])
    return config


def leaf(*words: str, classes: int = CLASSES, size: int = 16, channels: int = 3) -> dict:
    config = composed(words)
    config.data.update({"num_classes": classes, "image_size": size, "channels": channels})
    return OmegaConf.to_container(config.model, resolve=True)


def small(model: str, *words: str, **facts) -> nn.Module:
    """A small network of this choice, every parameter away from the zeros that some begin with, in training mode."""
    torch.manual_seed(0)
    net = build(leaf(*small_overrides(model), *words, **facts))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return net


def inputs(count: int = 4, size: int = 16, channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(count, channels, size, size, generator=generator)
    return x_t, torch.arange(count) * 200 + 150, torch.arange(count) % (CLASSES + 1)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


# ------------------------------------------------------------------------------------------ sizes


@every_model
def test_every_model_has_the_parameters_it_says(model):
    with torch.device("meta"):
        net = build(leaf(f"model={model}", classes=10, size=32))
    assert count(net) == COUNTS[model]


DOWN, ATTENTION_DOWN, UP, ATTENTION_UP = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"
SIX = "model.block_out_channels=[128,128,256,256,512,512]"


def blocks(down: str, up: str) -> list[str]:
    """Block types as letters, D and A."""
    down = ",".join({"D": DOWN, "A": ATTENTION_DOWN}[letter] for letter in down)
    up = ",".join({"U": UP, "A": ATTENTION_UP}[letter] for letter in up)
    return [f"model.down_block_types=[{down}]", f"model.up_block_types=[{up}]"]


@each(
    ("words", "facts", "expected"),
    [
        (["model=unet2d", SIX, *blocks("DDDAAA", "AAAUUU")], {"size": 64, "channels": 4, "classes": 0}, 120_252_164),
        (
            ["model=unet2d", "model.block_out_channels=[64,128,256]", *blocks("DAD", "UAU")],
            {"size": 32, "classes": 0},
            14_738_051,
        ),
        (
            ["model=unet2d", SIX, *blocks("DDDDAD", "UAUUUU"), "model.class_embed_type=timestep"],
            {"size": 32, "classes": 10},
            114_001_923,
        ),
        *[
            (["model=context_unet", f"model.features={features}", f"model.norm={norm}"], {"classes": 5}, expected)
            for norm in ("group", "batch")
            for features, expected in ((32, 372_867), (64, 1_480_963), (128, 5_902_851), (256, 23_569_411))
        ],
        (["model=simple_unet"], {"size": 64, "classes": 0}, 2_346_835),
        (["model=simple_unet", "model.widths=[64,128,256,512]"], {"size": 64, "classes": 0}, 34_586_947),
        (["model=simple_unet_base"], {"size": 64, "classes": 0}, 33_995_395),
        (["model=simple_unet_base", "model.widths=[16,32,64,128]"], {"size": 64, "classes": 0}, 2_291_107),
        (["model=simple_unet_base", "model.widths=[128,256,512,1024]"], {"size": 64, "classes": 0}, 134_206_723),
        (
            ["model=simple_unet_base", "model.widths=[128,256,512]", "model.attention_levels=[1]"],
            {"size": 64, "classes": 0},
            34_162_435,
        ),
    ],
)
def test_networks_of_known_size_have_it(words, facts, expected):
    with torch.device("meta"):
        net = build(leaf(*words, **facts))
    assert count(net) == expected


# ------------------------------------------------------------------------------------------ the contract


@every_model
@each(("size", "channels", "classes"), [(16, 1, 0), (32, 3, 5), (64, 4, 2)])
def test_an_image_becomes_an_image(model, size, channels, classes):
    net = small(model, size=size, channels=channels, classes=classes)
    x_t, t, _ = inputs(2, size, channels)
    out = net(x_t, t, torch.tensor([0, classes]))
    assert out.shape == x_t.shape
    assert out.dtype == torch.float32
    assert out.isfinite().all()


@class_model
def test_time_and_label_are_heard_and_the_null_label_is_none_of_the_classes(model):
    net = small(model).eval()
    x_t = inputs(1)[0].expand(CLASSES + 1, -1, -1, -1)
    t, y = torch.full((CLASSES + 1,), 300), torch.arange(CLASSES + 1)
    with torch.no_grad():
        outs, later = net(x_t, t, y), net(x_t, t + 400, y)
    assert ((outs - later).abs().amax((1, 2, 3)) > 1e-4).all()
    for a in range(CLASSES + 1):
        for b in range(a):
            assert (outs[a] - outs[b]).abs().max() > 1e-4, (a, b)


@every_model
def test_without_classes_labels_are_ignored(model):
    net = small(model, classes=0).eval()
    x_t, t, y = inputs()
    with torch.no_grad():
        assert torch.equal(net(x_t, t, y), net(x_t, t, torch.zeros_like(y)))


@class_model
@each("classes", [0, CLASSES])
def test_every_parameter_learns(model, classes):
    """DDP waits for the gradient of each; the table of classes has one for the rows of the batch."""
    net = small(model, classes=classes)
    x_t, t, y = inputs(CLASSES + 1)
    net(x_t, t, y).square().mean().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@every_model
def test_images_of_a_batch_know_nothing_of_each_other(model):
    net = small(model).eval()
    x_t, t, y = inputs()
    with torch.no_grad():
        alone = torch.cat([net(x_t[k : k + 1], t[k : k + 1], y[k : k + 1]) for k in range(len(x_t))])
        together = net(x_t, t, y)
        assert torch.equal(together, net(x_t, t, y))  # nothing random is left in evaluation mode
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@every_model
def test_replicas_without_parameters_do_the_same_work(model):
    net = small(model)
    x_t, t, y = inputs()
    copies = replicate(net, 2)
    outs = [
        copy(*part) for copy, part in zip(copies, zip(x_t.chunk(2), t.chunk(2), y.chunk(2), strict=True), strict=True)
    ]
    torch.cat(outs).square().mean().backward()
    split = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    out = net(x_t, t, y)
    out.square().mean().backward()
    torch.testing.assert_close(torch.cat(outs), out, rtol=1e-4, atol=1e-5)
    for name, p in net.named_parameters():
        torch.testing.assert_close(split[name], p.grad, rtol=1e-3, atol=1e-5)


@every_model
def test_bf16_autocast_stays_close(model):
    net = small(model).eval()
    x_t, t, y = inputs()
    with torch.no_grad():
        plain = net(x_t, t, y)
        with torch.autocast("cpu", torch.bfloat16):
            cast = net(x_t, t, y).float()
    assert not torch.equal(cast, plain)
    assert (cast - plain).norm() < 0.05 * plain.norm()


# ------------------------------------------------------------------------------------------ UNet2DModel


def test_both_ways_to_a_unet_are_one_network():
    torch.manual_seed(0)
    short = UNet(16, 3, 5, [8, 16], [1], middle_attention=False, attention_head_dim=8, norm_num_groups=4, dropout=0.0)
    full = leaf(
        "model=unet2d", "model.block_out_channels=[8,16]", "model.norm_num_groups=4", "model.add_attention=false",
        *blocks("DA", "AU"),
    )  # fmt: skip
    full = build(full)
    full.load_state_dict(short.state_dict())  # strict: the same names and shapes
    x = inputs()
    torch.testing.assert_close(short(*x), full(*x))


def test_a_number_as_timestep_is_diffusers_class_embedding():
    net = small("unet2d", "model.class_embed_type=timestep")
    theirs = UNet2DModel(
        sample_size=16, block_out_channels=(8, 8, 16, 16), norm_num_groups=4, class_embed_type="timestep",
        num_class_embeds=CLASSES,
    )  # fmt: skip
    theirs.load_state_dict(net.unet.state_dict())
    x_t, t, y = inputs(CLASSES + 1)
    torch.testing.assert_close(net(x_t, t, y), theirs(x_t, t, class_labels=y).sample)


@each(
    "words",
    [
        ["time_embedding_type=learned"],
        ["time_embedding_type=learned", "class_embed_type=timestep"],
        ["resnet_time_scale_shift=scale_shift", "downsample_type=resnet", "upsample_type=resnet"],
        ["mid_block_type=null", "attention_head_dim=null", "attn_norm_num_groups=4"],
        ["down_block_types=[ResnetDownsampleBlock2D,AttnDownBlock2D,DownBlock2D,DownBlock2D]", "time_embedding_dim=24"],
        ["up_block_types=[ResnetUpsampleBlock2D,UpBlock2D,AttnUpBlock2D,UpBlock2D]", "act_fn=gelu", "freq_shift=1"],
        ["center_input_sample=true", "flip_sin_to_cos=false", "mid_block_scale_factor=2", "downsample_padding=0"],
    ],
)
def test_arguments_of_unet2dmodel_reach_it(words):
    net = small("unet2d", *[f"model.{word}" for word in words])
    for word in words:
        key, _, value = word.partition("=")
        if key != "class_embed_type":
            assert net.unet.config[key] == OmegaConf.to_container(OmegaConf.from_dotlist([word]))[key]
    x = inputs()
    assert net(*x).shape == x[0].shape


# ------------------------------------------------------------------------------------------ ContextUnet


def context_unet(norm: str = "group", size: int = 16) -> ContextUnet:
    return small("context_unet", f"model.norm={norm}", size=size).eval()


def test_a_label_is_a_one_hot_context_and_the_null_label_the_zero_vector():
    net, (x_t, t, y) = context_unet(), inputs(CLASSES + 1)
    context = torch.cat([torch.eye(CLASSES), torch.zeros(1, CLASSES)])
    assert torch.equal(net.context(y), context)
    with torch.no_grad():
        assert torch.equal(net(x_t, t, y), net(x_t, t, context))


def test_contexts_can_be_blended():
    net, (x_t, t, _) = context_unet(), inputs(3)
    x_t, t = x_t[:1].expand(3, -1, -1, -1), t[:1].expand(3)
    hero, food = torch.eye(CLASSES)[0], torch.eye(CLASSES)[2]
    with torch.no_grad():
        one, half, other = net(x_t, t, torch.stack([hero, (hero + food) / 2, food]))
    assert 0 < (half - one).norm() < (other - one).norm()
    assert 0 < (half - other).norm() < (other - one).norm()


@pytest.mark.parametrize("size", [16, 20, 32, 64])
def test_the_context_net_returns_the_size_it_was_given(size):
    x = inputs(1, size)
    assert context_unet(size=size)(*x).shape == x[0].shape


def test_the_time_is_told_as_a_share_of_all_timesteps():
    """t = 0 ... T - 1 here is 1 ... T in the source: the last is told as 1."""
    net, (x_t, _, y) = context_unet(), inputs(2)
    heard = []
    net.time1.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    net(x_t, torch.tensor([0, 999]), y)
    torch.testing.assert_close(heard[0], torch.tensor([[0.001], [1.0]]))


def test_batch_norm_mixes_images_in_training_and_group_norm_does_not():
    x_t, t, y = inputs()
    for norm, mixes in (("batch", True), ("group", False)):
        net = context_unet(norm).train()
        alone, together = net(x_t[:1], t[:1], y[:1]), net(x_t, t, y)[:1]
        assert (not torch.allclose(alone, together, rtol=1e-3, atol=1e-4)) is mixes
        assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules()) is mixes


# ------------------------------------------------------------------------------------------ attention


def explicit(kind: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one head, (pixels, channels), written out in float64."""
    if kind == "linear":
        weights = q.softmax(1) @ k.softmax(0).T / q.shape[1] ** 0.5
    elif kind == "softmax":
        weights = (q @ k.T / q.shape[1] ** 0.5).softmax(1)
    else:
        weights = (10 * (q / q.norm(dim=1, keepdim=True)) @ (k / k.norm(dim=1, keepdim=True)).T).softmax(1)
    return weights @ v


@each("norm", ATTENTION_NORMS)
@each("kind", ATTENTIONS)
def test_attention_is_between_pixels_and_as_written_out(kind, norm):
    """A known mistake is to attend between channels."""
    torch.manual_seed(0)
    layer = Attention(24, ATTENTIONS[kind], ATTENTION_NORMS[norm]).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    x = torch.randn(2, 24, 4, 5, dtype=torch.float64)

    def normed(pixels: Tensor, gain: Tensor) -> Tensor:
        centred = pixels - pixels.mean(1, keepdim=True) * {"layer": 1, "rms": 0}[norm]
        return gain * centred / (centred.square().mean(1, keepdim=True) + {"layer": 1e-5, "rms": 2.2e-16}[norm]).sqrt()

    for image, out in zip(x, layer(x), strict=True):
        pixels = image.flatten(1).T  # (20, 24)
        qkv = (normed(pixels, layer.norm.weight) @ layer.qkv.weight[:, :, 0, 0].T).view(20, 3, 4, 32)
        heads = [explicit(kind, *qkv[:, :, head].unbind(1)) for head in range(4)]
        added = torch.cat(heads, 1) @ layer.out.weight[:, :, 0, 0].T + layer.out.bias
        if kind == "linear":
            added = normed(added, layer.norm_out.weight)
        torch.testing.assert_close(out, (pixels + added).T.view(24, 4, 5))


def test_the_base_generation_has_no_attention_at_full_resolution():
    net = build(leaf("model=simple_unet_base"))
    levels = zip(net.down, reversed(net.up), strict=True)
    have = [[isinstance(module, Attention) for module in (down[2], up[2])] for down, up in levels]
    assert have == [[False, False], [True, True], [True, True]]
    seen = []
    net.middle[1].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    net(*inputs(1, 64))
    assert seen == [(1, 512, 16, 16)]


# ------------------------------------------------------------------------------------------ DiT


def dit(**changes) -> DiT:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "channels": 3, "num_classes": 5, "patch_size": 2, "width": 16, "depth": 2, "heads": 2}
    return DiT(**sizes | changes, mlp_ratio=4.0)


def test_a_fresh_transformer_adds_nothing_in_its_blocks_and_says_zero():
    net, (x_t, t, y) = dit(), inputs(4, 8)
    assert not net(x_t, t, y).any()
    tokens, condition = torch.randn(4, 16, 16), torch.randn(4, 16)
    for block in net.blocks:
        assert torch.equal(block(tokens, condition), tokens)


def find_reached(net: DiT, size: int, row: int, column: int) -> Tensor:
    """Return which pixels of the output a pixel of the image reaches, bool (size, size)."""
    x_t, t, y = inputs(1, size)
    other = x_t.clone()
    other[0, 1, row, column] += 1.0
    return (net(x_t, t, y) != net(other, t, y)).any(1)[0]


@pytest.mark.parametrize("patch_size", [2, 4])
def test_a_patch_goes_back_to_where_it_came_from(patch_size):
    """While the blocks are the identity, a pixel reaches the pixels of its own patch and no others."""
    net = dit(patch_size=patch_size)
    nn.init.normal_(net.out.weight)
    row, column = 5 // patch_size * patch_size, 2 // patch_size * patch_size
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[row : row + patch_size, column : column + patch_size] = True
    assert torch.equal(find_reached(net, 8, 5, 2), expected)


@each("patch_size", [2, 4])
def test_convolutions_reach_two_pixels_beyond_a_patch(patch_size):
    net = dit(patch_size=patch_size, image_size=16, conv_channels=8)
    for layer in (net.out, net.last_conv):
        nn.init.normal_(layer.weight)
    row, column = 9 // patch_size * patch_size, 6 // patch_size * patch_size
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[row - 2 : row + patch_size + 2, column - 2 : column + patch_size + 2] = True
    assert torch.equal(find_reached(net, 16, 9, 6), expected)


def test_fresh_convolutions_change_nothing():
    plain, net = dit(), dit(conv_channels=8)
    nn.init.normal_(plain.out.weight)
    net.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(net(*inputs(4, 8)), plain(*inputs(4, 8)))


def test_each_patch_knows_its_place():
    net = dit()
    positions = net.positions.reshape(4, 4, 16)
    assert len(torch.unique(net.positions, dim=0)) == 16
    torch.testing.assert_close(positions[0, :, :8], positions[3, :, :8])  # half of the channels tell the column...
    torch.testing.assert_close(positions[:, 0, 8:], positions[:, 3, 8:])  # ...and half the row


def test_attention_of_the_transformer_is_torchs_multihead_attention():
    block = dit().blocks[0]
    theirs = nn.MultiheadAttention(16, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight, "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out.weight, "out_proj.bias": block.out.bias,
        }
    )  # fmt: skip
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(block.attention(x), theirs(x, x, x, need_weights=False)[0])


def test_a_block_is_modulated_and_gated_as_in_the_paper():
    block = copy.deepcopy(dit().blocks[0])
    nn.init.normal_(block.modulation.weight, std=0.5)
    x, condition = torch.randn(3, 7, 16), torch.randn(3, 16)
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        part[:, None] for part in (condition @ block.modulation.weight.T).split(16, 1)
    )
    norm = nn.LayerNorm(16, eps=1e-6, elementwise_affine=False)
    expected = x + gate1 * block.attention(norm(x) * (1 + scale1) + shift1)
    hidden = F.gelu(
        F.linear(norm(expected) * (1 + scale2) + shift2, block.mlp[0].weight, block.mlp[0].bias), approximate="tanh"
    )  # noqa: E501
    expected = expected + gate2 * F.linear(hidden, block.mlp[2].weight, block.mlp[2].bias)
    torch.testing.assert_close(block(x, condition), expected)


def test_networks_are_what_the_yaml_files_name():
    names = {name: OmegaConf.load(CONF / "model" / f"{name}.yaml")._target_.rpartition(".")[2] for name in FILES}
    assert names.pop("pretrained") == "PretrainedUNet"
    assert names.keys() == COUNTS.keys(), "a new network needs its number of parameters in COUNTS"
    assert names.keys() == SMALL.keys(), "a new network needs its small overrides in SMALL of tests/networks.py"
    modules = [importlib.import_module(f"diffusion_lit.networks.{file.stem}") for file in NETWORKS.glob("[!_]*.py")]
    classes = {name for module in modules for name, cls in vars(module).items() if hasattr(cls, "debug_arguments")}
    assert classes - {"PretrainedUNet"} <= set(names.values())
