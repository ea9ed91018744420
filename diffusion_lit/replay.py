"""`python -m diffusion_lit.replay run=<folder>`: compute the step at which a run ended with exit code 6 in float32."""

import logging
import math

from omegaconf import DictConfig

from diffusion_lit.cli.launch import launch
from diffusion_lit.config.plain_yaml import parse_plain_yaml
from diffusion_lit.runs.diffusers_format import resolve_run
from diffusion_lit.runs.run_dir import require_run_dir
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import CheckpointError, ConfigError

log = logging.getLogger("diffusion_lit.replay")
CONTEXT = 4  # rows of the table before and after the first bad one
LISTED = 10  # images or parameters that are listed by name
ADVICE = {
    "32-true": "The run computed in float32 too, so precision is not the cause. Check the machine (another "
    "device=, its memory), or your own code in the training step",
    "bf16-mixed": "The cause is precision=bf16-mixed: the 8 significant bits of bfloat16 are too few for this "
    "network. Go on with strategy.precision=32-true accept=[config]",
    "16-mixed": "The cause is precision=16-mixed: float16 ends at 65,504. Go on with strategy.precision=bf16-mixed or "
    "32-true and accept=[config]",
}


def main() -> None:
    """Run the command."""
    launch("replay", replay, lambda overrides, config_dir: resolve_run(overrides, "non_finite_step.ckpt"), check_replay)


def check_replay(config: DictConfig) -> None:
    """Raise UserError (exit 2 or 4) if the folder is not a run that ended with exit code 6."""
    if config.run is None:
        raise ConfigError("run=null: needs a run folder")
    run = require_run_dir(config.run)
    if not (run / "non_finite_step.ckpt").exists():
        raise CheckpointError(f"{run} has no non_finite_step.ckpt. A run writes it when it ends with exit 6")


def replay(config: DictConfig) -> None:
    """Compute the recorded step again in float32, and print where it is not finite."""
    from diffusion_lit.runs import step_record
    from diffusion_lit.runs.build import make_diffusion, make_network
    from diffusion_lit.runs.load import resolve_device

    device = resolve_device(config.device)
    record = step_record.load_step_record(require_run_dir(config.run))
    run_config = parse_plain_yaml(record["config"])
    net = make_network(run_config)
    net.load_state_dict(record["net"])
    net, diffusion = net.to(device), make_diffusion(run_config).to(device)
    log.info("step %d: %d images, float32 on %s", record["step"], len(record["index"]), device)
    for name, weight in net.named_parameters():
        if not weight.isfinite().all():
            log.info("weights    %s is not finite before the step begins", name)
    trace = step_record.trace_forward(net, diffusion, run_config, record)
    if trace.first_bad is None:
        norm = step_record.compute_gradient(net, diffusion, run_config, record)
        print_backward(net, norm, run_config["strategy"]["precision"])
    else:
        print_forward(trace, record)


def print_forward(trace, record: dict) -> None:
    """Print the layers around the first one that is not finite, and the images whose loss is not."""
    first = trace.first_bad
    rows = trace.layers[max(0, first - CONTEXT) : first + CONTEXT + 1]
    width = max(len(row.name) for row in rows)
    log.info("%s", f"{'layer':<{width}}  {'min':>10}  {'max':>10}  not finite")
    for row in rows:
        mark = "  <- first" if row is trace.layers[first] else ""
        low, high = (f"{x:.3g}" if math.isfinite(x) else "-" for x in (row.low, row.high))
        bad = f"{row.non_finite:,} of {row.values:,}" if row.non_finite else "none"
        log.info("%s", f"{row.name:<{width}}  {low:>10}  {high:>10}  {bad}{mark}")
    bad = (~trace.losses.isfinite()).nonzero().flatten().tolist()
    images = join_names([f"{record['index'][k]} at t {trace.t[k]}" for k in bad], LISTED)
    log.info("images     loss not finite: %d of %d: %s", len(bad), len(trace.losses), images)
    layer = trace.layers[first]
    inputs = "not finite, computed between it and the layer before it" if layer.non_finite_inputs else "finite"
    log.info("first      %s is the first layer whose output is not finite. Its inputs are %s", layer.name, inputs)


def print_backward(net, norm: float, precision: str) -> None:
    """Print the parameters whose gradient is not finite, or that there are none."""
    bad = [name for name, p in net.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    log.info("forward    every layer and every loss is finite")
    if bad:
        log.info("gradients  not finite, the last layer first: %s", join_names(bad[::-1], LISTED))
    elif not math.isfinite(norm):
        log.info("gradients  each is finite, but their norm overflows float32. Try a lower optimizer.lr")
    else:
        log.info("gradients  all are finite, their norm is %.4g", norm)
        log.info("In float32 this step is finite. %s", ADVICE[precision])


if __name__ == "__main__":
    main()
