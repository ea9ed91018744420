"""What a run writes down of its last step before it ends because nothing was finite any more."""

import logging
import shlex
from pathlib import Path

import lightning as L

from diffusion_lit.config.overrides import as_word
from diffusion_lit.diffusion.randomness import draw
from diffusion_lit.distributed import collectives
from diffusion_lit.runs import step_record
from diffusion_lit.runs.run_dir import shown
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)


def record(run: Path, step: int, trainer: L.Trainer, module: DiffusionModule) -> str:
    """flight.ckpt and flight.json of optimizer step `step`, and the words that say what to do with them.

    Rank 0 writes while the others wait, or they would seem to be lost. Nothing that goes wrong here is raised.
    """
    told = ""
    if collectives.rank() == 0:
        try:
            data = trainer.datamodule
            batch = data.global_batch(step - 1)
            of_batch = batch["position"], len(batch["index"]), module.shape, module.device, module.strata
            draws = draw(module.config["seed"], *of_batch)
            taken = step_record.taken(step, module.config_text, module.net, batch, draws, data.micro_batch_size)
            step_record.write(run, taken)
            told = f". To see where it began: python -m diffusion_lit.replay {shlex.quote(as_word('run', shown(run)))}"
            with trainer.precision_plugin.forward_context():
                found = step_record.forward(module.net, module.diffusion, module.config, taken)
            step_record.write_summary(run, taken, found)
        except Exception as error:  # a full disk, no memory for a pass: the run ends with its own words all the same
            log.warning("the flight record of step %d is not whole: %s", step, error)
    collectives.all_reduce_max(0)
    return told
