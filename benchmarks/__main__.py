"""Print benchmark tables as Markdown: `python -m benchmarks --help`."""

import argparse
import sys
import traceback
from importlib import import_module
from pathlib import Path

from benchmarks.measure import MissingRequirement, describe_machine

TABLES = {
    "harness": "a training step against a step of a bare PyTorch loop",
    "data": "images per second from the cache to the network, decoding, memory of a large data set",
    "start": "seconds from the command line to --help and to the first training step",
    "allocation": "training with freed memory kept by glibc, as it is by default, against glibc as it is and tcmalloc",
    "attention": "attention in bfloat16 on a CPU, by products as in training against PyTorch's fused kernel",
    "sampling": "the default sampler against DDIM and DDPM: FD, class accuracy, images per second",
    "digits": "class accuracy of the digits over seconds of training",
    "growth": "time and memory over data set size, image size, batch size, processes and samples",
    "evaluation": "FD, KID, precision and recall of 50,000 images: seconds and memory after the features",
    "memorization": "hit rate and false alarms of copies, planted among the digits, and among --data",
    "floor": "KID and FD-64 of real images against others of the same set; of the digits, and of --data",
    "ranking": "how validation losses and metrics of few images rank runs; of the digits, and of --data",
    "prompts": "colors and kinds of samples, for pairs that training never had together; needs --data and --out",
    "recipes": "first steps of the recipes that need a GPU, on --data, a folder, or blurred noise",
    "gpu": "training and sampling on a GPU, the fastest way first; with --script also diffusers' script",
    "loops": "training against an accelerate loop and denoising-diffusion-pytorch's Trainer",
    "peers": "training against diffusers' train_unconditional.py; needs --script",
    "agreement": "losses, gradients, samples and EMA against NVlabs' EDM and EDM2; needs --edm and --edm2",
    "quality": "FD over seconds of training against the same script; needs --script",
    "rounds": "candidates for the default recipe after equal time, each tuned; hours; needs --data and --out",
    "bakeoff": "four programs with equal time, each tuned; hours; needs --data, --out, --script and --edm",
}


def parse_arguments() -> argparse.Namespace:
    lines = "\n".join(f"  {name:14}{description}" for name, description in TABLES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Print benchmark tables as Markdown, each row as soon as it is measured.\n"
        "Without a table name: all of them, which takes hours. Run on an otherwise idle machine.",
        epilog=f"tables:\n{lines}\n\n"
        "loops, peers, quality and bakeoff need accelerate; loops and bakeoff also denoising-diffusion-pytorch.\n"
        "Published numbers with an id are measured again by: python -m benchmarks reproduce",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", metavar="table", help="names of tables, see below")
    parser.add_argument(
        "--script", type=Path, help="examples/unconditional_image_generation/train_unconditional.py of diffusers"
    )
    parser.add_argument(
        "--data",
        action="append",
        help="overrides of a data set for memorization, floor, ranking, rounds; a folder for prompts, recipes, bakeoff",
    )
    parser.add_argument("--edm", type=Path, help="checkout of github.com/NVlabs/edm")
    parser.add_argument("--edm2", type=Path, help="checkout of github.com/NVlabs/edm2")
    parser.add_argument("--figure", type=Path, help="PNG file to which quality also draws its curves")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the runs of ranking, rounds and bakeoff, which continue there, and of prompts",
    )
    parser.add_argument("--only", action="append", metavar="RECIPE", help="recipes: measure this one; repeatable")
    parser.add_argument("--run", type=Path, help="run that prompts measures")
    parser.add_argument(
        "--minutes", type=float, help="of training, of rounds (5) and bakeoff (10; fewer are a rehearsal)"
    )
    parser.add_argument("--trials", type=int, default=6, choices=range(1, 7), help="bakeoff: of each program (6)")
    parser.add_argument("--seeds", type=int, default=3, help="bakeoff: of each program (3)")
    parser.add_argument("--images", type=int, default=5_000, help="bakeoff: of each program and seed (5000)")
    parser.add_argument("--debug", action="store_true", help="gpu: a few steps of a tiny network")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.tables if name not in TABLES]:
        parser.error(f"unknown table {', '.join(unknown)}. Choose from {', '.join(TABLES)}")
    return arguments


def main() -> None:
    if sys.argv[1:2] == ["reproduce"]:
        import_module("benchmarks.reproduce").main(sys.argv[2:])
        return
    arguments, failed = parse_arguments(), []
    print(describe_machine(), flush=True)
    for name in arguments.tables or TABLES:
        print(f"\n## {TABLES[name][0].upper()}{TABLES[name][1:]}: `python -m benchmarks {name}`\n", flush=True)
        try:
            import_module(f"benchmarks.{name}").main(arguments)
        except MissingRequirement as missing:
            print(f"skipped: {missing}", flush=True)
        except (Exception, SystemExit):  # the other tables do not depend on this one
            traceback.print_exc()
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
