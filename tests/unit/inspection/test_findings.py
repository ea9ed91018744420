"""The image size that an audit proposes."""

from diffusion_lit.inspection.findings import propose_overrides

DATA = {"image_size": 32, "channels": 3, "resample": "bicubic", "alpha": "keep", "tile": None}


def test_pixel_art_of_one_size_that_is_no_square_is_neither_cropped_nor_rescaled():
    cases = [  # widths and heights -> image size, resample
        ({"16x24": 9}, [24, 16], "bicubic"),
        ({"15x23": 9}, [24, 16], "nearest"),
        ({"16x16": 9}, 16, "bicubic"),
        ({"16x24": 9, "24x16": 8}, 24, "nearest"),
    ]
    for sizes, size, resample in cases:
        n = sum(sizes.values())
        findings = {"modes": {"RGBA": n}, "sizes": sizes, "alpha": {"used": 0}, "gray": 0, "tile": None}
        findings |= {"pixel_art": True, "soft_alpha": 0, "hidden_colors": 0, "leaks": [], "repeats_every": 0}
        proposed, reason = propose_overrides(findings, DATA, set(), 4, 64)
        assert (proposed["data.image_size"], proposed.get("data.resample", "bicubic")) == (size, resample), sizes
        assert reason == f"{size} holds the pixel art without shrinking it"
