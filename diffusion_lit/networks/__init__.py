"""Networks: `nn.Module`s with `forward(x_t, t, y)`, one file for each and one in `conf/model`.

x_t are noisy images (B, C, H, W), t is `Process.time_input` (B,), y is what a `Condition` returns.
The output has the shape of x_t. A constructor raises ValueError for arguments that contradict
each other (`checks`).
"""
