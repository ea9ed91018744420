"""`python -m benchmarks.profile <picture.png> [<an earlier checkout>]`: where a step of the digits spends its time.

By Python's own profiler, which makes many small calls look longer than they are: it shows what to look at, and
`harness` what it costs. Bars are shares of what the network itself takes, forward and backward.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

STEPS = 200
PARTS = {  # name: the functions that do it, by the end of their file
    "optimizer": [("optim/adam.py", "adam")],
    "clipping": [("training/module.py", "configure_gradient_clipping")],
    "average": [("training/ema.py", "update")],
    "seeds and noise": [
        ("diffusion/draws.py", "draw"),
        ("torch/random.py", "manual_seed"),
        ("draws.py", "seed_network"),
    ],
    "batch": [("data/stream.py", "__iter__")],
    "record": [("training/recorder.py", "on_train_batch_end")],
}
NETWORK = [("networks/unet.py", "forward"), ("autograd/graph.py", "_engine_run_backward")]
MEASURED = """
import cProfile, json, pstats, sys, tempfile
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.config.expand import expand_overrides
from diffusion_lit.training.fit import fit
from diffusion_lit.training import trainer as setup
steps, profile, make_trainer = int(sys.argv[1]), cProfile.Profile(), setup.make_trainer
class Profiled(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 20:
            profile.enable()
        if trainer.global_step == 20 + steps:
            profile.disable()
setup.make_trainer = lambda config, run, net, callbacks, *rest: make_trainer(
    config, run, net, [*callbacks, Profiled()], *rest
)
words = [f"max_steps={steps + 30}", "data.judge_images=0", "val_every=0", "sample_every=0", "checkpoint_every=100000"]
config, source = resolve_data(compose_configs("train", expand_overrides(words, None))[0])
with tempfile.TemporaryDirectory() as folder:
    fit(config, source, Path(folder) / "run", [])
print("found", json.dumps([[*key, value[3]] for key, value in pstats.Stats(profile).stats.items()]))
"""


def measured(checkout: Path) -> dict[str, float]:
    """Seconds of every part of `STEPS` steps, by the code of a checkout."""
    env = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    words = [sys.executable, "-c", MEASURED, str(STEPS)]
    done = subprocess.run(words, env=env, cwd=checkout, check=True, capture_output=True, text=True)
    calls = json.loads(done.stdout.rpartition("found ")[2])

    def seconds(functions: list[tuple[str, str]]) -> float:
        return sum(taken for file, _, name, taken in calls if any(file.endswith(f) and name == n for f, n in functions))

    parts = {name: seconds(functions) for name, functions in PARTS.items()}
    network, whole = seconds(NETWORK), seconds([("training_epoch_loop.py", "advance")])
    return {"network": network} | parts | {"all else": whole - network - sum(parts.values())}


def main() -> None:
    from benchmarks.measure import table
    from diffusion_lit.figures.style import BLUE, ORANGE, plots, save

    if len(sys.argv) < 2:
        sys.exit(__doc__)
    found = {"now": measured(Path(__file__).parents[1])}
    if len(sys.argv) > 2:
        found = {"before": measured(Path(sys.argv[2]))} | found
    names = [*PARTS, "all else"]
    shares = {who: [100 * parts[name] / parts["network"] for name in names] for who, parts in found.items()}
    rows = [[who, *[f"{share:.1f} %" for share in values], f"{sum(values):.1f} %"] for who, values in shares.items()]
    table(["of the network's time", *names, "together"], rows)
    figure, ((ax,),) = plots(1, 1, "A training step of the digits beside its network")
    for k, ((who, values), colour) in enumerate(zip(reversed(shares.items()), (BLUE, ORANGE), strict=False)):
        ax.barh([place + 0.4 * k for place in range(len(names))], values, 0.4, color=colour, label=who)
    ax.set_yticks([place + 0.2 * (len(shares) - 1) for place in range(len(names))], names)
    ax.set_xlabel("% of the network's own time, under the profiler")
    ax.invert_yaxis()
    ax.legend()
    save(figure, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
