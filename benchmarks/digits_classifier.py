"""Train the classifier of the digits and write the weights that come with the package.

    python -m benchmarks.digits_classifier

One thread, since the last bits depend on their number.
"""

import torch
from safetensors.torch import save_file

from benchmarks.measure import compose_config
from diffusion_lit.data.store import ImageStore, load_splits
from diffusion_lit.evaluation.classifier import Classifier, train_classifier
from diffusion_lit.evaluation.digits_classifier import WEIGHTS, describe_training
from diffusion_lit.evaluation.tensor_cache import digest_tensors

NUM_CLASSES = 10


def load_digits() -> tuple[ImageStore, ImageStore]:
    """Return the training and the validation digits."""
    config, source = compose_config()
    return load_splits(source, config["data"])


def train(digits: ImageStore) -> Classifier:
    """Train the classifier on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train_classifier(digits, NUM_CLASSES, False, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)


def count_errors(net: Classifier, digits: ImageStore) -> int:
    """Return the number of digits that are classified wrongly."""
    predicted = net.head(net(torch.from_numpy(digits.images))).argmax(1).numpy()
    return int((predicted != digits.labels).sum())


def main() -> None:
    """Write the weights, and print their errors on the validation digits."""
    digits, val = load_digits()
    net = train(digits)
    weights = net.state_dict()
    facts = describe_training(digits.fingerprint, NUM_CLASSES, False) | {"digest": digest_tensors(weights)}
    save_file(weights, WEIGHTS, facts)
    print(f"{WEIGHTS}: {count_errors(net, val)} of {len(val)} validation digits are classified wrongly")


if __name__ == "__main__":
    main()
