"""What captions, text encoder and prompts of previews need of each other."""

import pytest

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.expand import expand_overrides
from diffusion_lit.system.errors import UserError
from tests.cases import each

FOLDER = ["experiment=none", "data=image_folder", "data.root=photos", "model=dit"]
TABLE = ["experiment=none", "data=table", "data.path=photos.csv", "model=dit"]
STREAM = ["experiment=none", "data=huggingface", "data.path=photos", "data.streaming=every_epoch"]


@each(
    ("overrides", "message"),
    [
        ([*FOLDER, "text_encoder=words"], "data.captions=none: text_encoder needs captions. Set data.captions=auto"),
        ([*TABLE, "text_encoder=words"], "data.caption_column=none: text_encoder needs captions"),
        ([*FOLDER, "preview_prompts=[a dragon]"], 'preview_prompts=["a dragon"]: has no effect without prompts'),
        (["preview_prompts=[a dragon]"], "Add text_encoder=words, or leave it out"),
        ([*STREAM, "data.caption_column=auto"], "data.caption_column=auto: a stream has no captions"),
        ([*STREAM, "data.caption_colors=true"], "data.caption_colors=true: needs all images before training"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(overrides, message):
    with pytest.raises(UserError) as error:
        compose_configs("train", overrides)
    assert message in str(error.value)


@each(
    "overrides",
    [
        [*FOLDER, "text_encoder=words", "data.captions=filename", "preview_prompts=[a dragon]"],
        [*FOLDER, "text_encoder=words", "data.caption_colors=true"],
        [*TABLE, "text_encoder=words", "data.caption_column=text"],
        [*FOLDER, "data.captions=filename"],
        [*STREAM[:-1], "data.caption_colors=true", "data.streaming=true"],
    ],
)
def test_what_fits_is_composed(overrides):
    assert compose_configs("train", overrides)


def test_debug_leaves_out_prompts_with_the_encoder():
    (config,) = compose_configs("train", expand_overrides(["experiment=tiles_prompt", "debug=on"], None))
    assert not config.text_encoder
    assert config.preview_prompts is None
