"""The LightningModule of a distillation: a student and its teacher, in stages of fewer and fewer steps."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lit.diffusion.distillation import Distillation, DistillationLevels
from diffusion_lit.diffusion.randomness import RandomNumbers
from diffusion_lit.runs.build import guide_network
from diffusion_lit.runs.student import stage_at
from diffusion_lit.sampling.guidance import GuidanceInterval, add_classifier_free_guidance, select_network
from diffusion_lit.training.ema import Decay
from diffusion_lit.training.module import DiffusionModule
from diffusion_lit.training.noise_levels import ValidationLevels
from diffusion_lit.training.validation_metric import LossByNoiseLevel


@dataclass(frozen=True)
class StageDecay:
    """The decay of an EMA that begins again with each stage, whose first update copies the student.

    A long average would hold the student of the stage before.
    """

    decay: Decay
    max_steps: int
    count: int  # of stages

    @property
    def update_every(self) -> int:
        """Return the number of optimizer steps between two updates."""
        return self.decay.update_every

    def __call__(self, n: int) -> float:
        """Return the decay of the update after n earlier ones."""
        stage = stage_at((n + 1) * self.update_every - 1, self.max_steps, self.count)
        first = -(-stage * self.max_steps // self.count)  # step of the stage
        return self.decay(n - first // self.update_every)


class StudentModule(DiffusionModule):
    """Trains `net`, which starts with the weights of its teacher, to sample in few steps.

    The stage is a function of the step. At the start of a stage the teacher
    becomes the EMA of the stage before, and so does the student. The teacher is
    part of each checkpoint, and a checkpoint at the end of a stage holds the
    teacher of that stage.

    Validation measures the same error as training, on the student's own noise levels.

    Args:
        teacher_steps: DDIM steps of the first teacher.
        stages: steps of the student in each stage.
        max_steps: optimizer steps of the run, divided equally among the stages.
        guidance: of the first teacher, arguments of `guide_network`.
        clip_x0: clip estimates of x0 to [-1, 1], as the sampler does.
        module: arguments of `DiffusionModule`.
    """

    def __init__(
        self,
        *module: Any,
        teacher_steps: int,
        stages: Sequence[int],
        max_steps: int,
        guidance: dict,
        clip_x0: bool,
        **settings: Any,
    ):
        super().__init__(*module, **settings)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False).eval()
        self.counts, self.max_steps = [teacher_steps, *stages], max_steps
        self.guidance, self.clip_x0 = guidance, clip_x0
        self.distillations: dict[int, Distillation] = {}  # by stage
        self.decay = self.decay and StageDecay(self.decay, max_steps, len(stages))

    def train(self, mode: bool = True) -> "StudentModule":
        """Set the mode of `net`; teacher and EMAs stay in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def learned_steps(self) -> int:
        """Return the sampler steps of the stage of the last optimizer step."""
        return self.counts[self._stage(max(0, self.global_step - 1)) + 1]

    def _stage(self, step: int) -> int:
        return stage_at(step, self.max_steps, len(self.counts) - 1)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Begin a stage with its first step: the EMA becomes the teacher, and `net` continues from it."""
        step = self.global_step
        if self.micro_batch == 0 and (step == 0 or self._stage(step) != self._stage(step - 1)):
            for net in (self.teacher, self.net):
                net.load_state_dict(self.ema.state_dict())

    def choose_objective(self, draws: RandomNumbers) -> tuple[Distillation, Tensor]:
        """Return the loss against the teacher of the stage, and levels, (B,)."""
        distillation = self._distill(self._stage(self.global_step))
        return distillation, distillation.levels.draw(draws.u_timestep)

    def on_validation_epoch_start(self) -> None:
        """Validate on the noise levels of the student."""
        self.validated = self._distill(self._stage(max(0, self.global_step - 1)))
        indices = torch.bucketize(self.validated.levels.student_times.cpu(), self.diffusion.process.times)
        self.levels = ValidationLevels(self.diffusion, indices)
        for name in self.val_metrics:
            self.val_metrics[name] = LossByNoiseLevel(self.levels).to(self.device)

    def validation_error(self, net: nn.Module, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        """Return the unweighted error of each image against the teacher of the stage, (B,)."""
        return self.validated.error(net, x0, self.validated.levels.find(t), eps, y)

    def _distill(self, stage: int) -> Distillation:
        if stage not in self.distillations:
            levels = DistillationLevels(self.diffusion.process, self.counts[stage + 1], self.device)
            settings = self._guide_teacher(levels) if stage == 0 else {"teacher": self.teacher}
            self.distillations[stage] = Distillation(self.diffusion, levels, clip_x0=self.clip_x0, **settings)
        return self.distillations[stage]

    def _guide_teacher(self, levels: DistillationLevels) -> dict[str, Any]:
        """Return `teacher` and `guide` of the first stage. Outside a guidance interval the scale of an image is 1."""
        teacher = guide_network(self.teacher, self.condition, **self.guidance)
        if not isinstance(teacher, GuidanceInterval):
            return {"teacher": teacher}
        chosen = [select_network(teacher, self.diffusion.process, t) for t in levels.times.cpu()]
        scales = [self.guidance["guidance_scale"] if net is teacher.guided else 1.0 for net in chosen]
        scale = torch.tensor(scales, device=self.device)[:, None, None, None]
        net, condition, rescale = self.teacher, self.condition, self.guidance.get("guidance_rescale", 0.0)
        return {"teacher": net, "guide": lambda k: add_classifier_free_guidance(net, condition, scale[k], rescale)}
