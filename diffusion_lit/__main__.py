"""`diffusion-lit <command> ...`: short for `python -m diffusion_lit.<command> ...`."""

import sys
from importlib import import_module

from diffusion_lit.system.errors import Exit

COMMANDS = {
    "train": "train a model, or resume a run (resume=...)",
    "sample": "generate images with a trained run (run=...)",
    "evaluate": "measure a trained run (run=...), or choose its sampler and guidance with --multirun",
    "app": "try a trained run (run=...) in the browser",
    "export": "publish a trained run (run=...) as a folder for diffusers and others",
    "report": "write an HTML page about a run (run=...) or a sweep (sweep=...)",
    "audit": "inspect the images of data=... before training on them",
    "visualize": "draw figures of a run (run=...) or of a training configuration",
    "replay": "find out why a run (run=...) ended with exit code 6",
}
LINES = [f"  diffusion-lit {command + ' ...':<14} {text}" for command, text in COMMANDS.items()]
USAGE = "\n".join(["usage:", *LINES, "add --help to a command to see its options"])


def main() -> None:
    """Run the command that the first argument names."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in COMMANDS:
        sys.argv = [f"diffusion-lit {command}", *sys.argv[2:]]
        import_module(f"diffusion_lit.{command}").main()
    elif command in ("-h", "--help"):
        print(USAGE)
    else:
        from diffusion_lit.config.overrides import did_you_mean

        hint = did_you_mean(command, list(COMMANDS))
        print(f"error: {command}: no such command{hint}\n{USAGE}", file=sys.stderr)
        sys.exit(int(Exit.CONFIG))


if __name__ == "__main__":
    main()
