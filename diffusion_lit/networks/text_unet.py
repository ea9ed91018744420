"""diffusers' UNet2DConditionModel, the network of text-to-image pipelines."""

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffusion_lit.imaging.sizes import ImageSize
from diffusion_lit.networks import checks
from diffusion_lit.networks.prompt_tokens import TokenProjection, read_prompt
from diffusion_lit.networks.unet import check_unet

MASKED = -10_000.0  # what UNet2DConditionModel adds to the attention on a token of mask 0


class TextUNet(nn.Module):
    """A UNet2DConditionModel behind forward(x_t, t, y).

    Its attention levels attend to the tokens of the prompt
    (`encoder_hid_proj`), and the mean of the tokens is added to the time
    embedding (`class_embedding`). Token numbers are one-hot vectors to both, so
    an exported network needs nothing beside its own weights.

    Args:
        image_size: each side a multiple of 2^(len(block_out_channels) - 1).
        channels: of the image.
        num_classes: ignored.
        block_out_channels: channels of each level, fine to coarse; every level but
            the first halves the image.
        attention_levels: indices of the levels with self- and cross-attention. The
            middle block has them, too.
        text_channels: channels of a token.
        layers_per_block: residual blocks of a level.
        heads: attention heads.
        norm_num_groups: groups of the group norms.
        dropout: probability, in [0, 1].
        text_tokens: number of different tokens of a prompt; 0 for vectors, or without
            prompts.
        text_width: channels of the vectors of a prompt; 0 for tokens, or without prompts.
    """

    supports_prompts = True

    def __init__(
        self,
        image_size: ImageSize,
        channels: int,
        num_classes: int,
        block_out_channels: Sequence[int],
        attention_levels: Sequence[int],
        text_channels: int,
        layers_per_block: int = 2,
        heads: int = 4,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        text_tokens: int = 0,
        text_width: int = 0,
    ):
        check_unet(image_size, block_out_channels, norm_num_groups)
        checks.check_levels(len(block_out_channels), attention_levels=attention_levels)
        attended = [block_out_channels[level] for level in attention_levels] + [block_out_channels[-1]]
        checks.check_multiple(heads, "the number of heads", block_out_channels=attended)
        super().__init__()
        self.has_table, levels = text_width == 0, range(len(block_out_channels))
        features = text_width + 1 if text_width else max(1, text_tokens)
        self.unet = UNet2DConditionModel(
            sample_size=image_size if isinstance(image_size, int) else tuple(image_size),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple("CrossAttnDownBlock2D" if i in attention_levels else "DownBlock2D" for i in levels),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if i in attention_levels else "UpBlock2D" for i in reversed(levels)
            ),
            layers_per_block=layers_per_block,
            attention_head_dim=heads,  # diffusers' name of it
            norm_num_groups=norm_num_groups,
            dropout=dropout,
            cross_attention_dim=text_channels,
            encoder_hid_dim=features,
            encoder_hid_dim_type="text_proj",
            class_embed_type="projection",
            projection_class_embeddings_input_dim=features,
        )
        self.unet.encoder_hid_proj = TokenProjection(features, text_channels)  # of the same weights, takes numbers
        nn.init.normal_(self.unet.encoder_hid_proj.weight, std=1.0 if self.has_table else features**-0.5)

    @staticmethod
    def debug_arguments(settings: dict) -> dict:
        """Return the arguments that make the network small, for debug=on."""
        levels = list(settings["attention_levels"])[-1:]
        small = {"attention_levels": levels, "text_channels": 16, "layers_per_block": 1, "heads": 2}
        return {"block_out_channels": [8] * len(settings["block_out_channels"]), "norm_num_groups": 4} | small

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the output (B, C, H, W).

        Args:
            x_t: noisy images, (B, C, H, W).
            t: times, (B,).
            y: prompts, see `prompt_tokens.read_prompt`; ignored without prompts.
        """
        if y.ndim == 1:
            y = torch.zeros(len(y), 0, dtype=torch.int64, device=y.device)
        values, weights = read_prompt(y, self.has_table)
        bias = weights.log().clamp(min=MASKED)
        return self.unet(
            x_t,
            t,
            encoder_hidden_states=values,
            encoder_attention_mask=1 - bias / MASKED,  # the model adds (1 - mask) MASKED
            class_labels=self._mean_features(values, weights).to(x_t.dtype),
            return_dict=False,
        )[0]

    def _mean_features(self, values: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted mean of the tokens, one-hot or vectors, (B, features)."""
        share = weights / weights.sum(1, keepdim=True)
        if values.is_floating_point():
            return (share[..., None] * values).sum(1)
        counts = torch.zeros(len(values), self.unet.encoder_hid_proj.in_features, device=values.device)
        return counts.scatter_add(1, values, share)
