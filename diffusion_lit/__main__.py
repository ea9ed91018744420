"""`diffusion-lit <verb> ...` and `python -m diffusion_lit <verb> ...`: the same as `python -m diffusion_lit.<verb> ...`."""

import sys
from importlib import import_module

from diffusion_lit.errors import Exit

VERBS = {
    "train": "train a model, or go on with a run (resume=...)",
    "sample": "make images with a trained run (run=...)",
}


def main() -> None:
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in VERBS:
        sys.argv = [f"diffusion-lit {verb}", *sys.argv[2:]]
        import_module(f"diffusion_lit.{verb}").main()
        return
    text = "\n".join(f"  diffusion-lit {name} ...   {what}" for name, what in VERBS.items())
    text = f"usage:\n{text}\nadd --help to a verb to see what it takes"
    if verb in ("-h", "--help"):
        print(text)
        return
    print(f"error: {verb}: no such verb\n{text}", file=sys.stderr)
    sys.exit(int(Exit.CONFIG))


if __name__ == "__main__":
    main()
