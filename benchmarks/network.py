"""`python -m benchmarks.network <words of train>`: a pass forward and backward of its network alone, as it is and with
channels_last, in turns."""

import sys
import time

import torch

from benchmarks.measure import config_of, shown, table
from diffusion_lit.runs.build import make_network

ROUNDS = 4


def passed(network, x: torch.Tensor, t: torch.Tensor) -> float:
    start = time.perf_counter()
    network(x, t, None).pow(2).mean().backward()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    config, _ = config_of(*sys.argv[1:])
    batch, data = config["global_batch_size"], config["data"]
    x, t = torch.randn(batch, data["channels"], *[data["image_size"]] * 2), torch.randint(1000, (batch,))
    formats = {"as it is": torch.contiguous_format, "channels_last": torch.channels_last}
    networks = [make_network(config).to(memory_format=way) for way in formats.values()]
    taken = [[passed(net, x.to(memory_format=way), t) for net, way in zip(networks, formats.values(), strict=True)]
             for _ in range(ROUNDS + 1)][1:]  # fmt: skip
    rows = [[name, shown(times, " ms", 0)] for name, times in zip(formats, zip(*taken, strict=True), strict=True)]
    table(["", f"{torch.get_num_threads()} threads, batch of {batch}"], rows)


if __name__ == "__main__":
    main()
