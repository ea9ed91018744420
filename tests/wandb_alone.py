"""The W&B logger by itself: one row logged, with a mode and the seconds that its end may take."""

import logging
import sys
from pathlib import Path

from diffusion_lit.training.loggers.run_logger import make_logger


def main(mode: str, finish_seconds: str) -> None:
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    settings = {"project": "p", "entity": None, "mode": mode, "connect_seconds": 3, "init_seconds": 10}
    settings |= {"_target_": "diffusion_lit.training.loggers.wandb.WandB", "finish_seconds": float(finish_seconds)}
    logger = make_logger(settings)
    logger.start(Path("run").absolute(), {"seed": 0}, 0)
    logger.log_row(1, {"train/loss": 1.0})
    logger.finish(0)
    print("on", logger.backend.run is not None)


if __name__ == "__main__":
    main(*sys.argv[1:])
