"""`python -m benchmarks [table ...]`: tables of timings, as Markdown, on a machine left alone."""

import sys
from importlib import import_module

from benchmarks.measure import machine

TABLES = {
    "harness": "a step of `train` beside a step of a bare loop",
    "data": "pictures a second, and what a large data set costs in memory",
    "start": "from the command to its first step",
    "sampling": "the default sampler beside DDPM and diffusers' loop",
    "digits": "class accuracy over seconds of training",
    "growth": "time and memory over sizes",
}


def main() -> None:
    asked = sys.argv[1:] or list(TABLES)
    if unknown := [name for name in asked if name not in TABLES]:
        lines = [f"  {name:10}{told}" for name, told in TABLES.items()]
        sys.exit("\n".join([f"no such table: {', '.join(unknown)}; there are", *lines]))
    print(machine(), flush=True)
    for name in asked:
        print(f"\n## {TABLES[name].capitalize()}: `python -m benchmarks {name}`\n", flush=True)
        import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
