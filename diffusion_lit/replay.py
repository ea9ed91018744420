"""`python -m diffusion_lit.replay run=<folder>`: the step at which a run ended with exit code 6, again in float32."""

import logging
import math

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.cli.launch import launch
from diffusion_lit.runs import run_dir
from diffusion_lit.system.errors import Exit, UserError

log = logging.getLogger("diffusion_lit.replay")
NEAR = 4  # rows of the table before and after the first bad one
MANY = 10  # images or parameters that are named one by one
ADVICE = {
    "32-true": "The run computed in float32 too, so it is not the numbers: look at the machine (another "
    "device=, its memory), or at code of your own in the training step",
    "bf16-mixed": "So it is precision=bf16-mixed: eight bits of a number are too few for this network; go on with "
    "strategy.precision=32-true accept=[config]",
    "16-mixed": "So it is precision=16-mixed: float16 ends at 65,504; go on with strategy.precision=bf16-mixed or "
    "32-true and accept=[config]",
}


def main() -> None:
    launch("replay", replay, prepare=lambda overrides, config_dir: overrides, check=check)


def check(config: DictConfig) -> None:
    """Raise UserError (exit 2 or 4) if the folder is not a run that ended with exit code 6."""
    if config.run is None:
        raise UserError(Exit.CONFIG, "run=null: needs a run folder")
    run = run_dir.require_run(config.run)
    if not (run / "flight.ckpt").exists():
        raise UserError(Exit.CHECKPOINT, f"{run} has no flight.ckpt: a run leaves one when it ends with exit code 6")


def replay(config: DictConfig) -> None:
    """Compute the recorded step again in float32, and print where it is not finite."""
    from diffusion_lit.runs import step_record
    from diffusion_lit.runs.build import make_diffusion, make_network
    from diffusion_lit.runs.load import device_of

    device = device_of(config.device)
    record = step_record.read(run_dir.require_run(config.run))
    of_run = OmegaConf.to_container(OmegaConf.create(record["config"]))
    net = make_network(of_run)
    net.load_state_dict(record["net"])
    net, diffusion = net.to(device), make_diffusion(of_run).to(device)
    log.info("step %d: %d images, float32 on %s", record["step"], len(record["index"]), device)
    for name, weight in list(net.named_parameters()):
        if not weight.isfinite().all():
            log.info("weights    %s is not finite before the step begins", name)
    found = step_record.forward(net, diffusion, of_run, record)
    if found.first_bad is None:
        print_backward(net, step_record.backward(net, diffusion, of_run, record), of_run["strategy"]["precision"])
    else:
        print_forward(found, record)


def print_forward(found, record: dict) -> None:
    """Print the layers around the first one that is not finite, and the images whose loss is not."""
    first = found.first_bad
    rows = found.layers[max(0, first - NEAR) : first + NEAR + 1]
    width = max(len(row.name) for row in rows)
    log.info("%s", f"{'layer':<{width}}  {'min':>10}  {'max':>10}  not finite")
    for row in rows:
        mark = "  <- first" if row is found.layers[first] else ""
        low, high = (f"{x:.3g}" if math.isfinite(x) else "-" for x in (row.low, row.high))
        bad = f"{row.not_finite:,} of {row.values:,}" if row.not_finite else "none"
        log.info("%s", f"{row.name:<{width}}  {low:>10}  {high:>10}  {bad}{mark}")
    bad = (~found.losses.isfinite()).nonzero().flatten().tolist()
    listed = [f"{record['index'][k]} at t {found.t[k]}" for k in bad[:MANY]]
    log.info("images     loss not finite: %d of %d: %s", len(bad), len(found.losses), _listed(listed, len(bad)))
    layer = found.layers[first]
    given = "it is given such numbers already, from between it and the layer before it"
    why = given if layer.fed_not_finite else "it is given finite ones"
    log.info("first      %s is the first layer to give numbers that are not finite; %s", layer.name, why)


def print_backward(net, norm: float, precision: str) -> None:
    """Print the parameters whose gradient is not finite, or that there are none."""
    bad = [name for name, p in net.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    log.info("forward    every layer and every loss is finite")
    if bad:
        log.info("gradients  not finite, the last layer first: %s", _listed(bad[: -MANY - 1 : -1], len(bad)))
    elif not math.isfinite(norm):
        log.info("gradients  each is finite, and their norm is too large for float32: a lower optimizer.lr")
    else:
        log.info("gradients  all are finite, their norm is %.4g", norm)
        log.info("In float32 this step is good. %s", ADVICE[precision])


def _listed(names: list[str], count: int) -> str:
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


if __name__ == "__main__":
    main()
