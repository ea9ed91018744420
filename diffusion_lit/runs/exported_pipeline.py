"""Generate images of this model with torch and diffusers alone.

    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    images = pipeline(num_images=8, seed=0).images

`export` of diffusion_lit writes this file as pipeline.py, with the settings of the model. Noisy images are
x_t = alpha x0 + sigma eps; the network's estimate of the clean image is x0 = c_skip x_t + c_out network(c_in x_t).
"""

import hashlib
import inspect
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel, UNet2DModel
from PIL import Image
from torch import Tensor


class DiffusionLitPipeline(DiffusionPipeline):
    """Generates the images of `python -m diffusion_lit.sample` with the same seed, steps and batch size.

    All names are in the class: diffusers loads the files of several models into one module.
    """

    _optional_components: ClassVar[list[str]] = ["scheduler"]  # processes of continuous time have none

    def __init__(self, unet: UNet2DModel | UNet2DConditionModel, scheduler: object):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.has_condition = bool(self.SETTINGS["class_names"] or self.SETTINGS["text"])
        self.names, count = self.SETTINGS["class_names"], self.SETTINGS["num_train_timesteps"]
        ends = [sigma ** (1 / 7) for sigma in self.SETTINGS["sigma_range"] or (1, 1)]
        self.times = {
            "discrete": torch.arange(count),
            "flow": torch.arange(1, count + 1) / count,
            "edm": (torch.linspace(*ends, count, dtype=torch.float64) ** 7).float(),
        }[self.SETTINGS["process"]]
        if self.SETTINGS["process"] == "discrete":
            self.betas = torch.tensor(self.SETTINGS["betas"], dtype=torch.float64)
            self.alpha_bar = (1 - self.betas).cumprod(0)
        else:
            alpha, sigma = self.alpha_sigma(self.times)
            self.alpha_bar = alpha**2 / (alpha**2 + sigma**2)
            self.betas = 1 - torch.cat([self.alpha_bar[:1], self.alpha_bar[1:] / self.alpha_bar[:-1]])

    @torch.no_grad()
    def __call__(
        self,
        classes: int | str | Sequence[int | str] | None = None,
        num_images: int = 8,
        seed: int = 0,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        prompt: str | list[str] | None = None,
        negative_prompt: str = "",
    ) -> ImagePipelineOutput:
        """Return images, divided among the classes or prompts. Image k depends on `seed` and k alone.

        Args:
            classes: names or numbers; all classes if None.
            num_images: number of images in all.
            seed: of the noise.
            guidance_scale: of classifier-free guidance; None: that of the model.
            num_inference_steps: of the sampler; None: those of the model.
            output_type: "pil"; "np", float32 (N, H, W, C) in [0, 1]; "pt", float32 (N, C, H, W) in [0, 1].
            prompt: one or several, of a text-conditional model; None: those of its grid.
            negative_prompt: what guidance moves away from.
        """
        scale = self.SETTINGS["guidance_scale"] if guidance_scale is None else guidance_scale
        steps = num_inference_steps or self.SETTINGS["steps"] or len(self.times)
        if scale != 1 and self.has_condition and not self.SETTINGS["has_guidance"]:
            raise ValueError(f"guidance_scale={scale}: this model was trained without label dropout, which it needs")
        if self.SETTINGS.get("is_student") and steps != self.SETTINGS["steps"]:
            raise ValueError(f"num_inference_steps={steps}: this model has learned {self.SETTINGS['steps']} alone")
        if num_images < 1:
            raise ValueError(f"num_images={num_images}: must be 1 or more")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type={output_type!r}: must be one of pil, np, pt")
        labels, null = self.find_condition(classes, prompt, negative_prompt)
        share, extra = divmod(num_images, len(labels))
        labels = labels.repeat_interleave(torch.tensor([share + (k < extra) for k in range(len(labels))]), 0)
        size = self.SETTINGS["batch_size"]
        first = int.from_bytes(hashlib.blake2b(f"{seed}/image".encode(), digest_size=4).digest(), "little")
        images = []
        for start in self.progress_bar(range(0, num_images, size)):
            count = min(size, num_images - start)  # a batch is filled up: the last bits depend on its size
            members = [*range(start, start + count)] + [start] * (size - count)
            generators = [torch.Generator().manual_seed((first + k) % 2**32) for k in members]
            y, uncond = labels[members].to(self.device), null.to(self.device)
            x0 = self.denoise(y, uncond.expand(size, *uncond.shape[1:]), generators, steps, scale)
            images.append(self.to_uint8(x0[:count].cpu()))
        tensors = torch.cat(images)
        arrays = tensors.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            return ImagePipelineOutput(images=[Image.fromarray(x[:, :, 0] if x.shape[2] == 1 else x) for x in arrays])
        return ImagePipelineOutput(images=(tensors if output_type == "pt" else arrays.astype("float32")) / 255)

    def find_condition(self, classes: Any, prompt: Any, negative_prompt: str) -> tuple[Tensor, Tensor]:
        """Return labels (N,) or tokens (N, L) of the classes or prompts, and of no label or negative prompt."""
        if not self.SETTINGS["text"]:
            if prompt is not None or negative_prompt:
                raise ValueError("prompt: this model has no prompts")
            return torch.tensor(self.find_labels(classes)), torch.tensor([len(self.names)])
        if classes is not None:
            raise ValueError("classes: the condition of this model is a prompt")
        prompts = [prompt] if isinstance(prompt, str) else prompt or self.SETTINGS["text"]["preview_prompts"]
        return torch.tensor([self.tokenize(text) for text in prompts]), torch.tensor([self.tokenize(negative_prompt)])

    def tokenize(self, text: str) -> list[int]:
        """Return a number for each word of the training captions, and for each n-gram of another word, then zeros."""
        settings, tokens = self.SETTINGS["text"], []
        words, size, length = settings["words"], settings["ngram"], settings["max_tokens"]
        found = re.findall(r"[^\W_]+", text.lower())
        if text.strip() and not {*found} & {*words, *settings["rare_words"]}:
            raise ValueError(f"{text}: no training caption has a word of this prompt")
        for word in found:
            marked = f"<{word}>"
            ngrams = [marked[k : k + size] for k in range(max(1, len(marked) - size + 1))]
            hashes = [hashlib.blake2b(ngram.encode(), digest_size=8).digest() for ngram in ngrams]
            numbers = [len(words) + int.from_bytes(code, "little") % settings["buckets"] for code in hashes]
            tokens += [1 + number for number in ([words.index(word)] if word in words else numbers)]
        return (tokens + [0] * length)[:length]

    def find_labels(self, classes: Any) -> list[int]:
        """Return the label of each class."""
        if classes is not None and not self.names:
            raise ValueError("classes: this model has none")
        every = range(len(self.names))
        chosen = every if classes is None else [classes] if isinstance(classes, str | int) else list(classes)
        if self.names and not chosen:
            raise ValueError("classes=[]: has no class. Name one or more, or leave it out")
        for value in chosen:
            if str(value) not in self.names and value not in every:
                raise ValueError(f"{value}: not a class of this model. Choose from {', '.join(self.names)}")
        return [self.names.index(str(value)) if str(value) in self.names else int(value) for value in chosen] or [0]

    def denoise(self, y: Tensor, null: Tensor, generators: list, steps: int, scale: float) -> Tensor:
        """Return x0 (B, C, H, W).

        Args:
            y: labels (B,), or tokens (B, L).
            null: null labels or negative prompts, of the same shape.
            generators: one for each image, on the CPU.
            steps: of the sampler.
            scale: of the guidance.
        """
        scheduler = self.build_scheduler(steps)
        has_table, count = hasattr(scheduler, "alphas_cumprod"), len(scheduler.timesteps)
        times = self.times[scheduler.timesteps.long()] if has_table else scheduler.sigmas[:count]
        levels = [self.alpha_sigma(t) for t in times]
        low, high = self.SETTINGS["guidance_interval"] or (-1, 1)
        x = torch.stack([torch.randn(self.SETTINGS["shape"], generator=generator) for generator in generators])
        x = x.to(self.device) * math.hypot(*map(float, levels[0]))
        for k, (t, (alpha, sigma)) in enumerate(zip(times, levels, strict=True)):
            scales = self.precondition(self.SETTINGS["prediction_type"], alpha, sigma)
            c_in, c_skip, c_out = (value.float().to(self.device) for value in scales)
            time = self.time_input(t.to(self.device).expand(len(y)))
            is_guided = low < float(sigma) / (float(sigma) + float(alpha)) <= high
            x0 = c_skip * x + c_out * self.predict(c_in * x, time, y, null, scale if is_guided else 1.0)
            x0 = x0.clamp(-1, 1) if self.SETTINGS["clip_x0"] else x0
            x = x0 if k == count - 1 else self.step(scheduler, k, x0, x, levels, generators)
        return x

    def predict(self, x: Tensor, t: Tensor, y: Tensor, null: Tensor, scale: float) -> Tensor:
        """Return the network's output (B, C, H, W), with classifier-free guidance.

        Ho & Salimans 2022, and for `guidance_rescale` Lin et al. 2024.

        Args:
            x: input of the network, (B, C, H, W).
            t: times as the network gets them, (B,).
            y: labels (B,), or tokens (B, L).
            null: null labels or negative prompts, of the same shape.
            scale: 1 is the conditional network, 0 the one without classes or prompts.
        """

        def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            condition = self.embed(y) if y.ndim == 2 else {"class_labels": y if self.names else None}
            return self.unet(x.to(self.unet.dtype), t, **condition, return_dict=False)[0].float()

        if not self.has_condition or scale in (0, 1):
            return network(x, t, null if scale == 0 else y)
        uncond, cond = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, y])).chunk(2)
        out, rescale = uncond + scale * (cond - uncond), self.SETTINGS["guidance_rescale"]
        std_cond, std_out = (values.std(dim=(1, 2, 3), keepdim=True) for values in (cond, out))
        return out * (rescale * std_cond / std_out.clamp(min=1e-12) + 1 - rescale)

    def embed(self, y: Tensor) -> dict[str, Tensor]:
        """Return what the network gets for tokens (B, L), after a token that every prompt has."""
        count, dtype = self.unet.config.encoder_hid_dim, self.unet.dtype
        tokens = torch.nn.functional.pad(y, (1, 0))
        mask = torch.nn.functional.pad((y > 0).float(), (1, 0), value=1.0)
        mean = torch.zeros(len(y), count, device=y.device).scatter_add(1, tokens, mask / mask.sum(1, keepdim=True))
        one_hot = torch.nn.functional.one_hot(tokens, count).to(dtype)
        return {"encoder_hidden_states": one_hot, "encoder_attention_mask": mask, "class_labels": mean.to(dtype)}

    def to_uint8(self, x: Tensor) -> Tensor:
        """Return uint8 images of x in [-1, 1], (B, C, H, W)."""
        images = x.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        if not self.SETTINGS["has_hard_alpha"] or images.shape[1] != 4:
            return images
        images[:, 3] = torch.where(images[:, 3] > 127, 255, 0)
        return images * (images[:, 3:] > 0)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma, float64, at a time t."""
        if self.SETTINGS["process"] == "discrete":
            return self.alpha_bar[t].sqrt(), (1 - self.alpha_bar[t]).sqrt()
        t = t.double()
        return (1 - t, t) if self.SETTINGS["process"] == "flow" else (torch.ones_like(t), t)

    def time_input(self, t: Tensor) -> Tensor:
        """Return what the network gets for times t (B,)."""
        process = self.SETTINGS["process"]
        return t if process == "discrete" else 1000 * t if process == "flow" else 250 * t.log()

    def precondition(self, prediction_type: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return c_in, c_skip and c_out."""
        one, data, variance = torch.ones_like(alpha), self.SETTINGS["sigma_data"], alpha**2 + sigma**2
        if prediction_type == "edm":  # Karras et al. 2022, table 1
            variance = sigma**2 + (alpha * data) ** 2
            return 1 / variance.sqrt(), alpha * data**2 / variance, sigma * data / variance.sqrt()
        return {
            "epsilon": (one, 1 / alpha, -sigma / alpha),
            "sample": (one, 0 * alpha, one),
            "v_prediction": (one, alpha / variance, -sigma / variance),
            "velocity": (one, 1 / (alpha + sigma), -sigma / (alpha + sigma)),
        }[prediction_type]

    def build_scheduler(self, steps: int):
        """Return the scheduler on the noise levels of the model, with one timestep per network evaluation."""
        kind = getattr(diffusers, self.SETTINGS["scheduler"])
        arguments = {"num_train_timesteps": len(self.times), **self.SETTINGS["arguments"]}
        takes_betas = "trained_betas" in inspect.signature(kind).parameters
        if takes_betas:
            betas = self.betas.clone()
            if self.alpha_bar[-1] == 0:  # multistep solvers take log alpha
                betas[-1] = 1 - min(2**-24 / self.alpha_bar[-2].item(), 1e-3)
            arguments["trained_betas"] = betas.numpy()
        scheduler = kind(**arguments)
        scheduler.set_timesteps(steps)
        count = int((scheduler.timesteps >= 0).sum())  # rounding may add a -1
        if count < len(scheduler.timesteps):
            scheduler.timesteps = scheduler.timesteps[:count]
            if hasattr(scheduler, "sigmas"):
                scheduler.sigmas = torch.cat([scheduler.sigmas[:count], scheduler.sigmas[-1:]])
        if takes_betas and scheduler.timesteps.is_floating_point():
            scheduler.timesteps = scheduler.timesteps.round()
            signal = scheduler.alphas_cumprod[scheduler.timesteps.long()]
            scheduler.sigmas = torch.cat([(1 / signal - 1).sqrt(), scheduler.sigmas[-1:]]).double()
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True
        return scheduler

    def step(self, scheduler: Any, k: int, x0: Tensor, x: Tensor, levels: list, generators: list) -> Tensor:
        """Return x at the next time.

        The scheduler gets the output that stands for x0, for a sample of its own scale.

        Args:
            scheduler: what `build_scheduler` returned.
            k: index of the current time.
            x0: estimate of the clean images, (B, C, H, W).
            x: current sample, (B, C, H, W).
            levels: alpha and sigma of each time.
            generators: one for each image.
        """
        if not hasattr(scheduler, "sigmas"):  # DDIM and DDPM: make the next timestep that of the list
            timesteps = [*scheduler.timesteps.tolist(), -1]
            scheduler.num_inference_steps = Fraction(len(self.times), timesteps[k] - timesteps[k + 1])
        std, next_std = (math.hypot(*map(float, level)) for level in levels[k : k + 2])
        (alpha, sigma), kind = levels[k], scheduler.config.get("prediction_type", "velocity")
        _, c_skip, c_out = self.precondition(kind, alpha / std, sigma / std)
        out = (x0 - float(c_skip) / std * x) / float(c_out)
        arguments = dict(self.SETTINGS["step_arguments"])
        if "generator" in inspect.signature(scheduler.step).parameters:
            arguments["generator"] = generators
        x = x * (self.scheduler_scale(scheduler, k) / std)
        x = scheduler.step(out, scheduler.timesteps[k].item(), x, **arguments, return_dict=False)[0]
        return x * (next_std / self.scheduler_scale(scheduler, k + 1))

    def scheduler_scale(self, scheduler: Any, k: int) -> float:
        """Return the standard deviation of the scheduler's own sample at its k-th timestep."""
        init_sigma = getattr(scheduler, "init_noise_sigma", None)
        if init_sigma == 1:
            return 1.0
        sigma = float(scheduler.sigmas[k])
        return math.hypot(1 - sigma if init_sigma is None else 1, sigma)

    SETTINGS: ClassVar[dict[str, Any]] = {}
