"""Networks: `nn.Module`s with `forward(x_t, t, y)`, and at least one file in `conf/model` for each.

- `unet`: diffusers' UNet2DModel, with few or with all arguments, or pretrained
- `simple_unet`, `context_unet`, `dit`: one network each
- `text_unet`: diffusers' UNet2DConditionModel
- `class_embedding`, `prompt_tokens`, `checks`: what they share
- `network_memory`: the memory of a network, before it is built

x_t are noisy images (B, C, H, W), t is `Process.time_input` (B,), y is what a
`Condition` returns. The output has the shape of x_t. A constructor raises
ValueError for arguments that do not fit together (`checks`).
"""
