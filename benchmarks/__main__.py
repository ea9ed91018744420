"""`python -m benchmarks [table ...] [train_unconditional.py of diffusers]`: tables of timings, as Markdown, on a
machine left alone. Those beside others need `pip install accelerate denoising-diffusion-pytorch`, and that file."""

import sys
import traceback
from importlib import import_module

from benchmarks.measure import Absent, machine

TABLES = {
    "harness": "a step of `train` beside a step of a bare loop",
    "data": "pictures a second, and what a large data set costs in memory",
    "start": "from the command to its first step",
    "sampling": "the default sampler beside DDPM and diffusers' loop",
    "digits": "class accuracy over seconds of training",
    "growth": "time and memory over sizes",
    "loops": "beside a loop with accelerate and denoising-diffusion-pytorch's Trainer",
    "peers": "beside the script of diffusers",
    "quality": "FD over seconds of training, here and by the script of diffusers",
}


def main() -> None:
    asked = [word for word in sys.argv[1:] if not word.endswith((".py", ".png"))] or list(TABLES)
    if unknown := [name for name in asked if name not in TABLES]:
        lines = [f"  {name:10}{told}" for name, told in TABLES.items()]
        sys.exit("\n".join([f"no such table: {', '.join(unknown)}; there are", *lines]))
    print(machine(), flush=True)
    failed = []
    for name in asked:
        told = TABLES[name][0].upper() + TABLES[name][1:]
        print(f"\n## {told}: `python -m benchmarks {name}`\n", flush=True)
        try:
            import_module(f"benchmarks.{name}").main()
        except Absent as absent:
            print(f"left out: {absent}", flush=True)
        except (Exception, SystemExit):  # the next table may be made all the same
            traceback.print_exc()
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
