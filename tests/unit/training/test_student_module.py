"""The guidance of the teacher in the first stage, and the EMA of a student, which begins again with each stage."""

import torch
from torch import nn

from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.processes import FlowMatching
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.weighting import TruncatedSNR
from diffusion_lit.runs.build import guide_network
from diffusion_lit.runs.student import stage_at
from diffusion_lit.sampling.guidance import GuidanceInterval, select_network
from diffusion_lit.training.ema import PowerDecay
from diffusion_lit.training.student_module import StageDecay, StudentModule
from tests.cases import each

GUIDANCE = {"guidance_scale": 3.0, "guidance_interval": [0.3, 0.7], "guidance_rescale": 0.5}


class OddNet(nn.Module):
    """Its outputs depend on image, time and class in no simple way."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x, t, y):
        return (self.gain * x + 0.4 * y[:, None, None, None] + t[:, None, None, None] / 300).sin()


def make_student(process, prediction: str, guidance: dict) -> StudentModule:
    diffusion = Diffusion(process, prediction, TruncatedSNR())
    settings = {"teacher_steps": 8, "stages": [4, 2], "max_steps": 8, "clip_x0": True, "guidance": guidance}
    names = ["a", "b", "c"]
    return StudentModule(OddNet(), diffusion, (1, 4, 4), names, **settings)


@each("scale", [1.0, 3.0])
@each(("process", "prediction"), [(DiscreteProcess(), "v_prediction"), (FlowMatching(), "velocity")])
def test_the_first_stage_learns_ddim_steps_of_the_teacher_with_its_guidance(process, prediction, scale):
    guidance = GUIDANCE | {"guidance_scale": scale}
    module = make_student(process, prediction, guidance)
    distillation = module._distill(0)
    levels, diffusion = distillation.levels, module.diffusion
    k = torch.tensor([8, 6, 4, 2])
    generator = torch.Generator().manual_seed(0)
    x_t, y = torch.randn(4, 1, 4, 4, generator=generator), torch.tensor([0, 1, 2, 1])
    target, guided = distillation.target(x_t, k, y), set()
    teacher = guide_network(module.teacher, module.condition, **guidance)
    for j, start in enumerate(k.tolist()):
        x, end = x_t[j : j + 1], start - 2
        for n in range(start, end, -1):  # each step as the sampler takes it
            t = levels.times[n]
            net = select_network(teacher, process, t)
            if isinstance(teacher, GuidanceInterval):
                guided.add(net is teacher.guided)
            x0 = diffusion.estimate_x0(diffusion.output(net, x, t[None], y[j : j + 1]), x, t[None]).clamp(-1, 1)
            alpha, sigma, to_alpha, to_sigma = (
                float(values[m]) for m in (n, n - 1) for values in (levels.alpha, levels.sigma)
            )
            x = to_alpha * x0 + to_sigma * (x - alpha * x0) / sigma
        arrived = levels.ddim_step(x_t[j : j + 1], target[j : j + 1], k[j : j + 1], k[j : j + 1] * 0 + end)
        torch.testing.assert_close(arrived, x, rtol=0, atol=2e-5)
    assert guided == (set() if scale == 1 else {True, False})


@each(("guidance", "count"), [(GUIDANCE, 4), (GUIDANCE | {"guidance_scale": 1.0}, 2)])
def test_a_target_evaluates_each_image_at_most_twice_per_step_of_the_teacher(guidance, count):
    module, sizes = make_student(FlowMatching(), "velocity", guidance), []
    module.teacher.register_forward_pre_hook(lambda net, inputs: sizes.append(len(inputs[0])))
    module._distill(0).target(torch.zeros(3, 1, 4, 4), torch.tensor([8, 4, 2]), torch.tensor([0, 1, 2]))
    assert sum(sizes) == count * 3


def test_later_stages_learn_the_student_before_without_guidance():
    module = make_student(DiscreteProcess(), "v_prediction", GUIDANCE)
    assert module._distill(1).teacher is module.teacher


def test_the_decay_begins_again_with_the_first_update_of_each_stage():
    for max_steps, count, every in ((12, 3, 1), (10, 3, 1), (12, 2, 3), (8, 8, 1), (250, 2, 10), (600, 4, 100)):
        power = PowerDecay(update_every=every)
        decay, plain = StageDecay(power, max_steps, count), iter(())
        assert decay.update_every == every
        last = None
        for n in range(max_steps // every):
            stage = stage_at((n + 1) * every - 1, max_steps, count)  # of the optimizer step before the update
            plain = iter(map(power, range(max_steps))) if stage != last else plain
            last = stage
            assert decay(n) == next(plain), (max_steps, count, n)


def test_the_first_update_of_a_stage_copies_the_student():
    decay = StageDecay(PowerDecay(), 600, 4)
    assert [decay(n) for n in (0, 150, 300, 450)] == [0, 0, 0, 0]
    assert decay(149) == decay(599) == PowerDecay()(149)
