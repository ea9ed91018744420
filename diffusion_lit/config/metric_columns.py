"""The numbers that the metrics of generated images return: names, labels, formats, and which are better if higher.

The functions that compute them are in `diffusion_lit.evaluation.metrics`. This
record is apart because the command line reads it and must not import torch.
"""

from typing import NamedTuple


class MetricColumn(NamedTuple):
    """A number of a metric: a key of result.json and a column of metrics.csv.

    Attributes:
        label: name in a model card.
        heading: first word of its line in the output of `evaluate`.
        higher_is_better: decides the best job of a sweep and, with `best_by`,
            best.ckpt.
        format: format of the number in that line.
        unit: text after the number in that line.
    """

    label: str
    heading: str
    higher_is_better: bool
    format: str = ".4g"
    unit: str = ""


METRIC_COLUMNS = {  # metric -> its columns, in the order in which they are printed
    "kid": {"kid": MetricColumn("kernel distance", "KID", False)},
    "fd": {"fd": MetricColumn("Fréchet distance", "FD", False)},
    "fd64": {"fd64": MetricColumn("Fréchet distance of 64 components", "FD-64", False)},
    "precision_recall": {
        name: MetricColumn(name, name, True) for name in ("precision", "recall", "density", "coverage")
    },
    "class_accuracy": {
        "class_accuracy": MetricColumn("class accuracy", "accuracy", True, ".1%", " classified as requested")
    },
    "memorization": {
        f"copied_{space}": MetricColumn(
            f"copies of training images, by {space}", "copied", False, ".1%", f" by {space}"
        )
        for space in ("pixels", "features")
    },
    "colors": {
        "color_distance": MetricColumn("distance of color histograms", "colors", False, ".1f", " of 255 levels")
    },
}
NEEDS_CLASSES = {"class_accuracy"}  # metrics of labels, left out where the data has no classes
COLUMNS = {name: column for columns in METRIC_COLUMNS.values() for name, column in columns.items()}
