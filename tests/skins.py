"""A Minecraft skin painted by hand: every face in a color of its own."""

import numpy as np
import torch
from PIL import Image

# (left, top, right, bottom) of the faces in the skin, as the game's texture has them, and the colour painted there
FRONT = {
    "head": (8, 8, 16, 16, "red"),
    "body": (20, 20, 28, 32, "lime"),
    "right arm": (44, 20, 48, 32, "blue"),
    "left arm": (36, 52, 40, 64, "cyan"),
    "right leg": (4, 20, 8, 32, "magenta"),
    "left leg": (20, 52, 24, 64, "yellow"),
}

BACK = {
    "head": (24, 8, 32, 16, "maroon"),
    "body": (32, 20, 40, 32, "green"),
    "right arm": (52, 20, 56, 32, "navy"),
    "left arm": (44, 52, 48, 64, "teal"),
    "right leg": (12, 20, 16, 32, "purple"),
    "left leg": (28, 52, 32, 64, "olive"),
}


def paint_skin(*faces: dict, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    for boxes in faces:
        for left, top, right, bottom, colour in boxes.values():
            picture.paste(colour, (left, top, right, bottom))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def to_pixels(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()
