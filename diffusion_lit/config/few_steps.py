"""Checks of a distillation, of the sampler of its student, and of the sampler of consistency models."""

from collections.abc import Iterator
from itertools import pairwise

from diffusion_lit.config.value_types import format_value


def check_stages(v: dict) -> Iterator[str]:
    """Refuse stages of a distillation that do not halve the steps, and more steps than noise levels."""
    counts = [v["distill.teacher_steps"], *v["distill.stages"]]
    levels = v.get("diffusion.num_train_timesteps", 1000)
    if counts[0] > levels:
        yield f"distill.teacher_steps={counts[0]}: must be at most {levels}, the noise levels of the process"
    for more, fewer in pairwise(counts):
        if more != 2 * fewer:
            yield f"distill.stages={format_value(counts[1:])}: {fewer} steps must be half of the {more} before them"


def check_teacher_guidance(v: dict) -> Iterator[str]:
    """Refuse a reversed interval of the teacher's guidance."""
    low, high = v["distill.guidance_interval"] or (0, 1)
    if low > high:
        where = f"distill.guidance_interval=[{low}, {high}]"
        yield f"{where}: the lower noise level comes first. Write [{high}, {low}]"


def check_student_sampler(v: dict) -> Iterator[str]:
    """Refuse any sampler of a student but DDIM with the steps that it has learned."""
    steps = v["learned_steps"] if "learned_steps" in v else v["distill.stages"][-1]
    if v["sampler.name"] != "ddim" or v.get("sampler.eta") or v.get("sampler.timestep_spacing") != "trailing":
        learned = "sampler=ddim sampler.eta=0 sampler.timestep_spacing=trailing"
        yield f"sampler={v['sampler.name']}: a distilled model has learned {learned}. Leave it out"
    if v["sampler.steps"] != steps:
        yield f"sampler.steps={v['sampler.steps']}: a distilled model has learned steps={steps}. Leave it out"


def check_lcm_steps(v: dict) -> Iterator[str]:
    """Refuse more steps than there are levels to choose from, and more levels than timesteps."""
    steps, levels, timesteps = (
        v[key] for key in ("sampler.steps", "sampler.original_inference_steps", "diffusion.num_train_timesteps")
    )
    if steps > levels:
        yield f"sampler.steps={steps}: must be at most sampler.original_inference_steps={levels}"
    if levels > timesteps:
        yield f"sampler.original_inference_steps={levels}: must be at most diffusion.num_train_timesteps={timesteps}"
