"""Checks of captions, and of the prompts that need them."""

from collections.abc import Iterator

from diffusion_lit.config.value_types import format_value


def check_captions(v: dict) -> Iterator[str]:
    """Refuse a text encoder without captions to learn from."""
    for key in ("data.captions", "data.caption_column"):
        if v.get(key) == "none" and has_text_encoder(v) and not v.get("data.caption_colors"):
            yield f"{key}=none: text_encoder needs captions. Set {key}=auto, or text_encoder=none"


def check_streamed_captions(v: dict) -> Iterator[str]:
    """Refuse captions of a stream, which keeps the images alone."""
    if v["data.caption_column"] != "none" and v["data.streaming"]:
        yield f"data.caption_column={v['data.caption_column']}: a stream has no captions. Set data.streaming=false"


def check_caption_colors(v: dict) -> Iterator[str]:
    """Refuse the colors of images that are read while the network trains."""
    if v["data.caption_colors"] and v["data.streaming"] == "every_epoch":
        yield "data.caption_colors=true: needs all images before training. Set it to false, or data.streaming=true"


def check_preview_prompts(v: dict) -> Iterator[str]:
    """Refuse prompts for a network without prompts."""
    if v["preview_prompts"] and not has_text_encoder(v):
        prompts = format_value(v["preview_prompts"])
        yield f"preview_prompts={prompts}: has no effect without prompts. Add text_encoder=words, or leave it out"


def has_text_encoder(v: dict) -> bool:
    """Return whether a text encoder is chosen."""
    return any(key.startswith("text_encoder.") for key in v)
