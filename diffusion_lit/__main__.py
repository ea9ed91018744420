"""`diffusion-lit <verb> ...`, `python -m diffusion_lit <verb> ...`: short for `python -m diffusion_lit.<verb> ...`."""

import sys
from importlib import import_module

from diffusion_lit.system.errors import Exit

VERBS = {
    "train": "train a model, or go on with a run (resume=...)",
    "sample": "make images with a trained run (run=...)",
    "evaluate": "measure a trained run (run=...), or choose its sampler and guidance with --multirun",
    "app": "try a trained run (run=...) in the browser",
    "export": "write a trained run (run=...) as a folder that diffusers and others can load",
    "report": "write one HTML page of a run (run=...) or of a sweep (sweep=...)",
    "audit": "look at the pictures of data=... before training on them",
    "visualize": "draw figures of a run (run=...) or of a recipe",
    "replay": "find out why a run (run=...) ended with exit code 6",
}
USAGE = "\n".join(
    [
        "usage:",
        *[f"  diffusion-lit {verb + ' ...':<14} {what}" for verb, what in VERBS.items()],
        "add --help to a verb to see what it takes",
    ]
)


def main() -> None:
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in VERBS:
        sys.argv = [f"diffusion-lit {verb}", *sys.argv[2:]]
        import_module(f"diffusion_lit.{verb}").main()
    elif verb in ("-h", "--help"):
        print(USAGE)
    else:
        from diffusion_lit.config.overrides import did_you_mean

        print(f"error: {verb}: no such verb{did_you_mean(verb, list(VERBS))}\n{USAGE}", file=sys.stderr)
        sys.exit(int(Exit.CONFIG))


if __name__ == "__main__":
    main()
