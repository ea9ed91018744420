"""`python -m diffusion_lit.sample run=<folder>`: generate images with a trained run."""

import logging
import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.cli.launch import launch
from diffusion_lit.distributed.shard_device import choose_device
from diffusion_lit.runs import output, run_dir
from diffusion_lit.runs.sample_request import (
    check_sampling,
    insert_stored_sampler,
    parse_requests,
    read_originals,
    warn_of_unknown_words,
)
from diffusion_lit.system.imports import pause_garbage_collection

log = logging.getLogger("diffusion_lit.sample")


def main() -> None:
    """Run the command."""
    launch("sample", sample, prepare=insert_stored_sampler, check=check_sampling)


def sample(config: DictConfig) -> None:
    """Generate images into a new folder, or with `shards` together with other processes."""
    if config.shards:
        sample_in_shards(config)
        return
    with pause_garbage_collection():
        from diffusion_lit.runs.sample_folder import describe_request, generate_batches, write_samples
        from diffusion_lit.sampling.editing import make_edit
        from diffusion_lit.sampling.previews import FrameRecorder

    (model, originals, requests), edit = prepare_images(config), None
    if originals:
        indices = [request.row[0] for request in requests]
        edit = make_edit(originals, indices, config.strength, config.repaint_repeats, model.codec)
    out = output.choose_folder(config.out, Path(config.run).expanduser(), "generated")
    first_step = edit.step_indices(model.evaluations)[0] if edit else 0
    frames = FrameRecorder(range(len(requests)) if config.gif else [], model.evaluations - first_step, model.codec)

    def record(first: int, k: int, x) -> None:
        frames(first, k - first_step, x)

    request = describe_request(model, requests, config, originals, edit) if config.out and not config.gif else None
    with output.fill_folder(out, "manifest.json", request=request) as folder:
        x, count, seconds = generate_batches(model, requests, folder / "batches", record, edit)
        write_samples(folder, model, requests, x, frames.frames, config, originals, edit)
        shutil.rmtree(folder / "batches")
    if count < len(x):
        log.info("%d images were there from a killed process", len(x) - count)
    rates = count / seconds, model.count_steps(count, edit) / seconds
    log.info("%d images in %.1f s, %.1f img/s, %.1f it/s (steps of a batch)", count, seconds, *rates)
    log.info("grid       %s", run_dir.display_path(out / "grid.png"))
    log.info("images     %s", run_dir.display_path(out))


def prepare_images(config: DictConfig):
    """Return the model, the images to edit if there are any, and the images to generate."""
    from diffusion_lit.runs.fast_sampling import speed_up
    from diffusion_lit.runs.load import load_requested_model
    from diffusion_lit.sampling.request import make_requests

    model = load_requested_model(config, log.warning)
    originals, labels = read_originals(config, model.config), parse_requests(config, model.config)
    warn_of_unknown_words(labels, config.negative_prompt, model.config, log.warning)
    requests = make_requests(config, labels, len(model.class_names), len(originals.files) if originals else 1)
    return speed_up(model, config, len(requests)), originals, requests


def sample_in_shards(config: DictConfig) -> None:
    """Generate images together with every process that is started with the same overrides."""
    from diffusion_lit.runs import shards
    from diffusion_lit.runs.load import describe_sampling

    config = OmegaConf.merge(config, {"device": choose_device(config.device)})
    (model, _, requests), out = prepare_images(config), Path(config.out).expanduser()
    labels, seeds = [request.label for request in requests], [request.seed for request in requests]
    settings = describe_sampling(model, config) | {"same_noise": config.same_noise}
    manifest = shards.generate_in_shards(model, shards.ShardRequest(labels, seeds, config.shards, settings), out)
    log.info(
        "%d images in %.1f s of all processes, %d shards", len(labels), manifest["seconds"], len(manifest["shards"])
    )
    log.info("grid       %s", run_dir.display_path(out / "grid.png"))
    log.info("images     %s  %s", run_dir.display_path(out / manifest["file"]), manifest["blake2b"])


if __name__ == "__main__":
    main()
