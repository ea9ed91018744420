"""The handwritten digits of scikit-learn: a data set that needs no download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from diffusion_lit.data.sources.data_source import Split


class Digits:
    """1,797 handwritten digits, 8x8 gray; the last 20 % are the validation split."""

    class_names = [str(digit) for digit in range(10)]

    def splits(self) -> dict[str, Split]:
        """Return the splits "train" and "val"."""
        # reading the file itself saves the second that importing scikit-learn takes
        folder = Path(find_spec("sklearn").origin).parent
        rows = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
        images = np.round(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 17 gray levels, 0 is paper
        labels = rows[:, 64].astype(np.int64)
        n = len(labels) - len(labels) // 5
        return {"train": Split(images[:n], labels[:n]), "val": Split(images[n:], labels[n:])}
