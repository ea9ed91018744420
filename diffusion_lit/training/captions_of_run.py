"""What a run with prompts takes from its training captions: the vocabulary, and prompts for the previews."""

import socket
from collections.abc import Sequence
from pathlib import Path

from diffusion_lit.data.captions import require_captions
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.diffusion.conditions import Condition
from diffusion_lit.diffusion.seeds import derive_seed
from diffusion_lit.runs.build import make_text_encoder

PREVIEW_PROMPTS = 8


def add_caption_settings(config: dict, data: ImageDataModule) -> dict:
    """Return the configuration with what `text_encoder` learns from the captions, and with `preview_prompts`.

    Settings of a resumed run stay as they are.

    Raises:
        DataError: if there are no captions.
    """
    encoder = make_text_encoder(config)
    if encoder is None:
        return config
    require_captions(captions := data.captions)
    learned = {} if "fitted" in config["text_encoder"] else {"fitted": True, **encoder.fit(captions)}
    prompts = config["preview_prompts"] or choose_captions(captions, PREVIEW_PROMPTS, config["seed"])
    return config | {"text_encoder": config["text_encoder"] | learned, "preview_prompts": prompts}


def cache_embeddings(condition: Condition, data: ImageDataModule, run: Path) -> None:
    """Let a pretrained text encoder embed the training captions once for the processes of a machine."""
    if hasattr(encoder := getattr(condition, "encoder", None), "use_cache"):
        folder = data.config["cache_dir"] or run / "cache" / socket.gethostname()
        encoder.use_cache(Path(folder).expanduser(), data.captions)


def choose_captions(captions: Sequence[str], count: int, seed: int) -> list[str]:
    """Return so many different captions, or all if there are fewer, which do not depend on their order."""
    return sorted(sorted(set(captions), key=lambda caption: derive_seed(seed, "preview", caption))[:count])
