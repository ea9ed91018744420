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

    SETTINGS: ClassVar[dict[str, Any]] = {'class_names': ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9'],
         'text': None,
         'shape': (1, 28, 28),
         'has_hard_alpha': False,
         'has_guidance': True,
         'guidance_scale': 1.5,
         'guidance_interval': None,
         'guidance_rescale': 0.0,
         'process': 'discrete',
         'prediction_type': 'v_prediction',
         'sigma_data': 0.5,
         'sigma_range': None,
         'scheduler': 'DPMSolverMultistepScheduler',
         'arguments': {'algorithm_type': 'sde-dpmsolver++',
                       'solver_order': 2,
                       'use_karras_sigmas': False,
                       'timestep_spacing': 'trailing',
                       'prediction_type': 'sample'},
         'step_arguments': {},
         'steps': 10,
         'is_student': False,
         'batch_size': 16,
         'clip_x0': True,
         'num_train_timesteps': 1000,
         'betas': [4.128422482196914e-05, 4.614175273665033e-05, 5.099948119891007e-05, 5.5857433815087454e-05,
                   6.071563419696169e-05, 6.557410596008673e-05, 7.043287272601173e-05, 7.529195812150391e-05,
                   8.015138578010284e-05, 8.501117934167635e-05, 8.987136245297567e-05, 9.47319587690787e-05,
                   9.959299195183569e-05, 0.00010445448567331095, 0.00010931646361278524, 0.00011417894946019747,
                   0.00011904196691492341, 0.0001239055396863309, 0.00012876969149533402, 0.00013363444607339403,
                   0.00013849982716462872, 0.00014336585852436912, 0.0001482325639210469, 0.00015309996713630536,
                   0.00015796809196522155, 0.00016283696221708333, 0.0001677066017157225, 0.0001725770342996258,
                   0.00017744828382360023, 0.00018232037415699676, 0.00018719332918715192, 0.00019206717281683439,
                   0.00019694192896746454, 0.0002018176215774492, 0.00020669427460351386, 0.00021157191202159087,
                   0.0002164505578265974, 0.0002213302360334346, 0.00022621097067609952, 0.0002310927858112377,
                   0.00023597570551459057, 0.0002408597538852142, 0.00024574495504303684, 0.00025063133313107944,
                   0.00025551891231601065, 0.00026040771678637054, 0.00026529777075701144, 0.0002701890984652122,
                   0.00027508172417478605, 0.00027997567217374897, 0.00028487096677720647, 0.0002897676323263543,
                   0.00029466569318892244, 0.00029956517376061864, 0.00030446609846501715, 0.00030936849175400294,
                   0.0003142723781079937, 0.00031917778203760516, 0.000324084728082763, 0.0003289932408144791,
                   0.0003339033448337414, 0.0003388150647734012, 0.00034372842529917236, 0.00034864345110707795,
                   0.000353560166928224, 0.000358478597525691, 0.00036339876769708734, 0.00036832070227477143,
                   0.00037324442612496345, 0.00037816996415096504, 0.0003830973412906058, 0.0003880265825186857,
                   0.0003929577128474193, 0.00039789075732643564, 0.0004028257410425562, 0.0004077626891223485,
                   0.0004127016267309047, 0.0004176425790728411, 0.00042258557139351893, 0.00042753062897782357,
                   0.0004324777771530508, 0.0004374270412876857, 0.00044237844679273497, 0.0004473320191212826,
                   0.0004522877837704886, 0.00045724576628147773, 0.0004622059922390065, 0.0004671684872739057,
                   0.00047213327706097097, 0.0004771003873230706, 0.00048206984382759277, 0.00048704167239066454,
                   0.0004920158988753753, 0.0004969925491929983, 0.0005019716493039894, 0.0005069532252178766,
                   0.0005119373029945917, 0.0005169239087438049, 0.0005219130686268114, 0.000526904808856643,
                   0.0005318991556979569, 0.0005368961354685897, 0.0005418957745400022, 0.0005468980993363903,
                   0.0005519031363377946, 0.0005569109120788784, 0.0005619214531501493, 0.0005669347861972929,
                   0.0005719509379245036, 0.0005769699350919311, 0.0005819918045185668, 0.0005870165730821331,
                   0.0005920442677190829, 0.0005970749154258215, 0.00060210854325915, 0.000607145178337376,
                   0.0006121848478396474, 0.0006172275790079507, 0.0006222733991469998, 0.0006273223356247914,
                   0.0006323744158738265, 0.0006374296673909985, 0.0006424881177387043, 0.000647549794545399,
                   0.0006526147255055958, 0.000657682938382087, 0.000662754461004389, 0.0006678293212717401,
                   0.0006729075471516577, 0.0006779891666812699, 0.0006830742079696472, 0.0006881626991953604,
                   0.0006932546686096996, 0.0006983501445357865, 0.0007034491553705724, 0.0007085517295841726,
                   0.0007136578957215312, 0.0007187676824020883, 0.0007238811183222227, 0.0007289982322534749,
                   0.0007341190530455455, 0.0007392436096256283, 0.0007443719309990771, 0.0007495040462510705,
                   0.0007546399845465013, 0.0007597797751307533, 0.0007649234473304789, 0.0007700710305552638,
                   0.0007752225542958513, 0.0007803780481276945, 0.0007855375417102906, 0.0007907010647876245,
                   0.0007958686471898346, 0.0008010403188326576, 0.0008062161097203147, 0.0008113960499430695,
                   0.0008165801696815578, 0.000821768499204234, 0.0008269610688710349, 0.0008321579091318254,
                   0.0008373590505287298, 0.0008425645236951329, 0.0008477743593592324, 0.0008529885883418187,
                   0.0008582072415590503, 0.0008634303500221208, 0.0008686579448390352, 0.0008738900572151653,
                   0.0008791267184518059, 0.0008843679599518373, 0.0008896138132155063, 0.000894864309843757,
                   0.000900119481539674, 0.0009053793601063731, 0.000910643977452108, 0.0009159133655861629,
                   0.0009211875566241812, 0.0009264665827867224, 0.0009317504763997064, 0.0009370392698966334,
                   0.0009423329958186955, 0.0009476316868155532, 0.0009529353756468906, 0.0009582440951819704,
                   0.0009635578784029653, 0.0009688767584019597, 0.0009742007683859466, 0.0009795299416753833,
                   0.0009848643117051914, 0.0009902039120258666, 0.0009955487763061432, 0.0010008989383307743,
                   0.0010062544320027511, 0.0010116152913463017, 0.0010169815505047808, 0.0010223532437424465,
                   0.0010277304054475689, 0.0010331130701295432, 0.0010385012724235532, 0.0010438950470889052,
                   0.0010492944290120265, 0.0010546994532049103, 0.001060110154809446, 0.0010655265690953097,
                   0.0010709487314631838, 0.0010763766774430916, 0.0010818104426992825, 0.0010872500630282333,
                   0.0010926955743599809, 0.001098147012760342, 0.0011036044144310253, 0.0011090678157114064,
                   0.0011145372530788622, 0.0011200127631498802, 0.0011254943826813912, 0.0011309821485728788,
                   0.0011364760978639366, 0.0011419762677411516, 0.0011474826955329975, 0.0011529954187152747,
                   0.0011585144749101106, 0.001164039901888403, 0.0011695717375691528, 0.001175110020022574,
                   0.0011806547874706474, 0.001186206078287011, 0.001191763930999179, 0.0011973283842913185,
                   0.0012028994770008072, 0.001208477248124673, 0.0012140617368180395, 0.0012196529823946811,
                   0.0012252510243302428, 0.0012308559022624621, 0.0012364676559919463, 0.0012420863254840597,
                   0.001247711950870034, 0.0012533445724488557, 0.0012589842306862664, 0.0012646309662193156,
                   0.0012702848198544725, 0.0012759458325716233, 0.0012816140455235159, 0.0012872895000374251,
                   0.0012929722376170405, 0.0012986622999443531, 0.0013043597288778797, 0.0013100645664585464,
                   0.0013157768549073579, 0.0013214966366292824, 0.0013272239542118092, 0.0013329588504299439,
                   0.0013387013682435445, 0.0013444515508032051, 0.001350209441448147, 0.0013559750837081053,
                   0.0013617485213069935, 0.0013675297981614598, 0.0013733189583852168, 0.0013791160462877095,
                   0.0013849211063777789, 0.0013907341833639952, 0.0013965553221562121, 0.0014023845678678981,
                   0.0014082219658166917, 0.001414067561526955, 0.0014199214007296623, 0.0014257835293665089,
                   0.0014316539935886885, 0.001437532839760558, 0.00144342011445997, 0.001449315864481715,
                   0.0014552201368358553, 0.0014611329787532767, 0.0014670544376838013, 0.0014729845613007386,
                   0.0014789233975006644, 0.0014848709944057514, 0.0014908274003662125, 0.0014967926639599671,
                   0.0015027668339969713, 0.0015087499595186626, 0.001514742089801846, 0.0015207432743579163,
                   0.0015267535629376328, 0.0015327730055301192, 0.0015388016523670833, 0.0015448395539222615,
                   0.0015508867609154153, 0.0015569433243132202, 0.0015630092953305974, 0.0015690847254339335,
                   0.001575169666342191, 0.0015812641700282404, 0.0015873682887223017, 0.001593482074912611,
                   0.0015996055813477517, 0.0016057388610389856, 0.001611881967262363, 0.0016180349535597216,
                   0.00162419787374124, 0.00163037078188899, 0.0016365537323556056, 0.0016427467797703876,
                   0.0016489499790380835, 0.0016551633853434389, 0.0016613870541508646, 0.0016676210412096548,
                   0.0016738654025529875, 0.00168012019450281, 0.001686385473669949, 0.001692661296958442,
                   0.0016989477215645366, 0.0017052448049841296, 0.0017115526050085483, 0.0017178711797326551,
                   0.001724200587554292, 0.0017305408871762795, 0.001736892137610857, 0.0017432543981795723,
                   0.0017496277285184991, 0.0017560121885770164, 0.001762407838624691, 0.0017688147392493914,
                   0.0017752329513639475, 0.0017816625362039318, 0.0017881035553353186, 0.0017945560706525976,
                   0.0018010201443843243, 0.0018074958390943419, 0.0018139832176853332, 0.0018204823433992656,
                   0.0018269932798238298, 0.0018335160908911075, 0.0018400508408831229, 0.0018465975944333968,
                   0.0018531564165300551, 0.0018597273725179386, 0.0018663105281030434, 0.0018729059493528544,
                   0.001879513702702451, 0.001886133854953398, 0.0018927664732811822, 0.001899411625233327,
                   0.0019060693787382732, 0.0019127398021004938, 0.0019194229640121518, 0.0019261189335497697,
                   0.001932827780180113, 0.0019395495737621893, 0.0019462843845516886, 0.0019530322832033153,
                   0.0019597933407733414, 0.0019665676287236034, 0.001973355218925388, 0.001980156183661763,
                   0.001986970595630244, 0.0019937985279480097, 0.0020006400541540126, 0.002007495248212088,
                   0.00201436418451606, 0.0020212469378900755, 0.002028143583597042, 0.0020350541973360725,
                   0.0020419788552514806, 0.0020489176339326676, 0.0020558706104205626, 0.0020628378622080668,
                   0.0020698194672474912, 0.0020768155039504466, 0.002083826051195614, 0.002090851188328413,
                   0.0020978909951682168, 0.002104945552010684, 0.0021120149396313126, 0.002119099239290545,
                   0.0021261985327369892, 0.002133312902211415, 0.0021404424304507508, 0.002147587200694301,
                   0.0021547472966827463, 0.002161922802668803, 0.0021691138034160007, 0.0021763203842062318,
                   0.002183542630843305, 0.0021907806296559418, 0.0021980344675041064, 0.0022053042317821125,
                   0.0022125900104231766, 0.002219891891904413, 0.002227209965252719, 0.0022345443200454396,
                   0.002241895046419362, 0.002249262235071714, 0.002256645977269156, 0.0022640463648477827,
                   0.002271463490221115, 0.0022788974463849865, 0.0022863483269198737, 0.0022938162259993344,
                   0.0023013012383922282, 0.0023088034594689333, 0.002316322985206898, 0.002323859912195525,
                   0.0023314143376398366, 0.0023389863593684668, 0.0023465760758374365, 0.00235418358613515,
                   0.002361808989988945, 0.002369452387769866, 0.002377113880498327, 0.0023847935698502187,
                   0.00239249155816168, 0.0024002079484350958, 0.0024079428443459783, 0.0024156963502470763,
                   0.002423468571175702, 0.00243125961285795, 0.002439069581718023, 0.002446898584878787,
                   0.0024547467301754278, 0.0024626141261536727, 0.002470500882082116, 0.002478407107955438,
                   0.002486332914501621, 0.002494278413189166, 0.002502243716232644, 0.0025102289365986907,
                   0.0025182341880142234, 0.0025262595849736558, 0.0025343052427417856, 0.002542371277366784,
                   0.0025504578056807503, 0.0025585649453120363, 0.00256669281468902, 0.002574841533048211,
                   0.002583011220442799, 0.0025912019977473166, 0.0025994139866675203, 0.002607647309747718,
                   0.0026159020903748775, 0.0026241784527916145, 0.00263247652210008, 0.0026407964242710635,
                   0.0026491382861517643, 0.0026575022354732303, 0.002665888400860017, 0.0026742969118364046,
                   0.002682727898835613, 0.002691181493208239, 0.002699657827230917, 0.00270815703411198,
                   0.0027166792480062263, 0.00272522460401603, 0.002733793238207327, 0.002742385287612281,
                   0.0027510008902422722, 0.002759640185096446, 0.0027683033121689293, 0.0027769904124601563,
                   0.0027857016279857483, 0.0027944371017851743, 0.0028031969779317434, 0.0028119814015442612,
                   0.002820790518792471, 0.0028296244769117074, 0.0028384834242103363, 0.0028473675100795237,
                   0.0028562768850047826, 0.002865211700577075, 0.0028741721095011386, 0.002883158265606256,
                   0.0028921703238592444, 0.0029012084403738925, 0.002910272772420952, 0.002919363478440906,
                   0.0029284807180537387, 0.0029376246520738114, 0.002946795442513861, 0.0029559932526058708,
                   0.00296521824680529, 0.0029744705908084645, 0.0029837504515595192, 0.0029930579972669014,
                   0.003002393397413705, 0.0030117568227696623, 0.003021148445405464, 0.003030568438702641,
                   0.003040016977370219, 0.0030494942374557077, 0.003059000396355316, 0.0030685356328349345,
                   0.003078100127036132, 0.003087694060492363, 0.003097317616146067, 0.00310697097835555,
                   0.0031166543329179675, 0.003126367867075208, 0.003136111769533545, 0.0031458862304780677,
                   0.003155691441585007, 0.0031655275960383866, 0.0031753948885453465, 0.0031852935153503514,
                   0.003195223674253067, 0.003205185564621016, 0.003215179387408451, 0.0032252053451701235,
                   0.003235263642079267, 0.0032453544839426973, 0.0032554780782192427, 0.0032656346340369513,
                   0.003275824362205193, 0.00328604747524075, 0.0032963041873771415, 0.003306594714586941,
                   0.003316919274599539, 0.003327278086916796, 0.003337671372835027, 0.003348099355460099,
                   0.003358562259729636, 0.0033690603124306717, 0.0033795937422174127, 0.0033901627796344425,
                   0.0034007676571338186, 0.003411408609096389, 0.0034220858718512215, 0.00343279968369814,
                   0.0034435502849261557, 0.0034543379178372247, 0.0034651628267647894, 0.0034760252580993134,
                   0.003486925460304935, 0.0034978636839493316, 0.0035088401817172654, 0.0035198552084402257,
                   0.0035309090211179672, 0.003542001878940937, 0.0035531340433132552, 0.003564305777880139,
                   0.00357551734854733, 0.003586769023512737, 0.0035980610732834206, 0.0036093937707056822,
                   0.0036207673909925964, 0.003632182211744217, 0.003643638512978553, 0.003655136577156548,
                   0.0036666766892091696, 0.0036782591365666084, 0.0036898842091827033, 0.003701552199564362,
                   0.003713263402803868, 0.0037250181166011975, 0.003736816641299434, 0.0037486592799096385,
                   0.003760546338144821, 0.003772478124447254, 0.003784454950022109, 0.003796477128866882,
                   0.003808544977803807, 0.0038206588165133892, 0.0038328189675628233, 0.0038450257564457413,
                   0.0038572795116095238, 0.003869580564492714, 0.0038819292495576585, 0.0038943259043284773,
                   0.00390677086942226, 0.003919264488587926, 0.003931807108743635, 0.0039443990800076545,
                   0.003957040755746211, 0.003969732492599687, 0.0039824746505304764, 0.003995267592857177,
                   0.004008111686295446, 0.004021007300998636, 0.004033954810598206, 0.004046954592244023,
                   0.004060007026647994, 0.004073112498125697, 0.004086271394638796, 0.004099484107841889,
                   0.004112751033121476, 0.004126072569645367, 0.004139449120407979, 0.0041528810922744075,
                   0.004166368896029615, 0.004179912946424391, 0.004193513662225201, 0.004207171466262483,
                   0.004220886785479938, 0.00423466005098716, 0.004248491698108814, 0.004262382166436263,
                   0.004276331899883412, 0.004290341346736781, 0.004304410959713012, 0.004318541196011161,
                   0.004332732517371318, 0.004346985390129787, 0.0043613002852761484, 0.004375677678516543,
                   0.004390118050326297, 0.004404621886015314, 0.0044191896757872495, 0.0044338219148027935,
                   0.004448519103242288, 0.004463281746370784, 0.004478110354600107, 0.004493005443559683,
                   0.004507967534160828, 0.004522997152665464, 0.004538094830754069, 0.004553261105601281,
                   0.004568496519937515, 0.004583801622133898, 0.004599176966265661, 0.004614623112190519,
                   0.0046301406256298305, 0.0046457300782343225, 0.004661392047675905, 0.0046771271177175056,
                   0.004692935878296334, 0.004708818925611813, 0.004724776862199853, 0.004740810297025999,
                   0.004756919845566809, 0.004773106129899007, 0.004789369778790409, 0.004805711427786408,
                   0.004822131719306455, 0.00483863130273543, 0.004855210834518786, 0.004871870978256587,
                   0.004888612404808201, 0.004905435792389223, 0.004922341826668175, 0.004939331200875641,
                   0.004956404615909071, 0.004973562780434593, 0.00499080641099936, 0.005008136232144911,
                   0.0050255529765093065, 0.0050430573849507, 0.005060650206658246, 0.005078332199275781,
                   0.005096104129011181, 0.005113966770768141, 0.00513192090826875, 0.005149967334173167,
                   0.005168106850214738, 0.00518634026733078, 0.005204668405788593, 0.005223092095326787,
                   0.005241612175293731, 0.005260229494779778, 0.0052789449127682575, 0.005297759298274807,
                   0.005316673530498028, 0.005335688498965596, 0.005354805103693572, 0.005374024255332177,
                   0.005393346875333993, 0.005412773896106615, 0.005432306261184849, 0.005451944925387586,
                   0.005471690854995104, 0.005491545027921818, 0.005511508433887036, 0.005531582074597585,
                   0.005551766963934557, 0.005572064128128162, 0.005592474605958353, 0.005612999448939671,
                   0.0056336397215251965, 0.005654396501296399, 0.00567527087917552, 0.005696263959631187,
                   0.005717376860885248, 0.005738610715132597, 0.005759966668762551, 0.005781445882573455,
                   0.005803049532009608, 0.005824778807393294, 0.005846634914148829, 0.00586861907306091,
                   0.005890732520509978, 0.00591297650872491, 0.005935352306035702, 0.005957861197138037,
                   0.005980504483359739, 0.006003283482922228, 0.006026199531225185, 0.006049253981127434,
                   0.006072448203225611, 0.006095783586155257, 0.00611926153688358, 0.006142883481019323,
                   0.006166650863113521, 0.0061905651469851275, 0.006214627816040763, 0.0062388403735995634,
                   0.006263204343235573, 0.006287721269118252, 0.006312392716359416, 0.0063372202713731784,
                   0.006362205542239208, 0.006387350159076544, 0.006412655774416742, 0.006438124063597561,
                   0.006463756725156644, 0.00648955548123209, 0.0065155220779770096, 0.006541658285982854,
                   0.006567965900700412, 0.006594446742886562, 0.006621102659051359, 0.006647935521908344,
                   0.006674947230849826, 0.006702139712423172, 0.006729514920811419, 0.00675707483833865,
                   0.00678482147597903, 0.0068127568738688415, 0.006840883101847273, 0.006869202259991769,
                   0.00689771647918247, 0.00692642792165632, 0.006955338781596598, 0.006984451285726556,
                   0.007013767693905382, 0.007043290299757254, 0.007073021431304838, 0.007102963451608324,
                   0.007133118759432011, 0.007163489789933419, 0.0071940790153357526, 0.007224888945651098,
                   0.007255922129404735, 0.0072871811543688825, 0.007318668648330751, 0.00735038727986459,
                   0.00738233975913305, 0.007414528838688539, 0.0074469573143187695, 0.007479628025896412,
                   0.007512543858246623, 0.007545707742043883, 0.0075791226547340385, 0.007612791621458004,
                   0.0076467177160221, 0.007680904061881488, 0.007715353833137373, 0.007750070255577612,
                   0.007785056607731988, 0.007820316221955781, 0.007855852485533, 0.007891668841822241,
                   0.007927768791421874, 0.007964155893351976, 0.008000833766301119, 0.008037806089865707,
                   0.008075076605840947, 0.008112649119544346, 0.008150527501173177, 0.008188715687183157,
                   0.008227217681721521, 0.008266037558093964, 0.008305179460248224, 0.008344647604328848,
                   0.008384446280250146, 0.008424579853321457, 0.008465052765903147, 0.008505869539122246,
                   0.008547034774631479, 0.008588553156394618, 0.008630429452550326, 0.008672668517311521,
                   0.008715275292906832, 0.008758254811594202, 0.008801612197723574, 0.0088453526698421,
                   0.008889481542881827, 0.008934004230387704, 0.008978926246822727, 0.009024253209924171,
                   0.009069990843144193, 0.009116144978132512, 0.009162721557323228, 0.009209726636568605,
                   0.009257166387866, 0.009305047102146191, 0.009353375192161506, 0.00940215719545301,
                   0.009451399777387293, 0.009501109734310287, 0.009551293996780563, 0.009601959632888235,
                   0.009653113851696316, 0.009704764006769229, 0.009756917599815895, 0.009809582284431517,
                   0.009862765869970369, 0.009916476325531165, 0.009970721784052783, 0.010025510546555205,
                   0.010080851086511355, 0.010136752054333065, 0.010193222282028125, 0.01025027078798979,
                   0.010307906781933496, 0.010366139670012764, 0.010424979060064121, 0.010484434767067285,
                   0.010544516818736804, 0.010605235461332962, 0.010666601165647438, 0.010728624633179584,
                   0.01079131680253309, 0.010854688856029027, 0.010918752226510953, 0.010983518604422482,
                   0.011048999945092008, 0.01111520847628844, 0.011182156706013857, 0.011249857430591703,
                   0.011318323743021774, 0.011387569041618195, 0.011457607038974804, 0.01152845177123707,
                   0.011600117607685423, 0.011672619260698736, 0.011745971796043309, 0.011820190643563433,
                   0.01189529160822611, 0.011971290881609975, 0.012048205053793892, 0.01212605112569376,
                   0.012204846521857604, 0.01228460910375706, 0.012365357183548031, 0.012447109538396672,
                   0.012529885425333065, 0.012613704596663888, 0.012698587316017806, 0.012784554374997481,
                   0.012871627110474182, 0.012959827422599157, 0.013049177793514999, 0.013139701306801754,
                   0.0132314216677476, 0.01332436322440722, 0.013418550989551692, 0.013514010663489784,
                   0.01361076865787203, 0.013708852120478232, 0.013808288961022708, 0.013909107878096738,
                   0.014011338387238448, 0.014115010850197285, 0.014220156505487913, 0.014326807500289918,
                   0.014434996923692878, 0.014544758841476102, 0.014656128332414808, 0.014769141526195906,
                   0.014883835643094145, 0.015000249035421076, 0.015118421230909895, 0.015238392978070836,
                   0.015360206293708045, 0.01548390451265147, 0.015609532339830201, 0.015737135904869692,
                   0.01586676281930499, 0.015998462236551658, 0.016132284914850525, 0.01626828328330654,
                   0.016406511511190436, 0.016547025580762265, 0.016689883363750546, 0.01683514470175762,
                   0.016982871490770268, 0.017133127770109002, 0.01728597981601121, 0.017441496240128918,
                   0.017599748093362177, 0.01776080897520027, 0.017924755149021365, 0.018091665663734102,
                   0.018261622482128148, 0.018434710616361816, 0.018611018271128876, 0.018790636994943544,
                   0.01897366184008653, 0.01916019153187143, 0.019350328647773418, 0.019544179807182815,
                   0.01974185587243449, 0.019943472162016085, 0.020149148676730677, 0.02035901033975529,
                   0.020573187251666347, 0.020791814961466537, 0.02101503475478461, 0.021242993960617573,
                   0.02147584627794763, 0.021713752123730945, 0.02195687900402521, 0.02220540190993381,
                   0.022459503740413167, 0.022719375754056803, 0.022985218052228196, 0.023257240096045573,
                   0.02353566126012352, 0.023820711426051577, 0.024112631619054747, 0.02441167469146399,
                   0.024718106057176947, 0.025032204481504006, 0.025354262931335247, 0.02568458949117236,
                   0.026023508350949798, 0.026371360872303407, 0.026728506740754554, 0.0270953252118602,
                   0.02747221646050102, 0.02785960304329904, 0.028257931485524246, 0.028667674004912214,
                   0.02908933038638395, 0.029523430023413844, 0.029970534143467842, 0.03043123823718119,
                   0.03090617471347945, 0.03139601580543716, 0.03190147675491939, 0.032423319307873344,
                   0.03296235555600435, 0.033519452165723274, 0.03409553504051532, 0.03469159446966075,
                   0.03530869082336252, 0.03594796086316554, 0.0366106247467769, 0.03729799381793619,
                   0.03801147928592696, 0.03875260191572616, 0.03952300286855148, 0.04032445585553157,
                   0.041158880793687236, 0.042028359185615094, 0.04293515148195792, 0.043881716731395404,
                   0.04487073487777549, 0.04590513212975733, 0.04698810990841862, 0.04812317797583243,
                   0.04931419246609403, 0.05056539968663831, 0.05188148673733817, 0.053267640218432,
                   0.05472961457590797, 0.05627381198172976, 0.05790737608518881, 0.0596383025285564,
                   0.061475569830552024, 0.0634292951546579, 0.0655109206605714, 0.06773343767848494,
                   0.0701116579724862, 0.0726625440461075, 0.07540561403971202, 0.07836344163037301,
                   0.08156227798276283, 0.08503283196846823, 0.08881125768842657, 0.09294041648397466,
                   0.0974715066926709, 0.10246619242229094, 0.10799941898545862, 0.11416318773951495,
                   0.12107169413774466, 0.12886843909737677, 0.13773625646505994, 0.14791175045549265,
                   0.1597065777286636, 0.1735396700921309, 0.18998754207369384, 0.2098656702096261, 0.234365703672598,
                   0.26529839114980613, 0.30554937209338606, 0.3599953374560213, 0.43749681272073715,
                   0.5555537567416202, 0.7499993929011166, 0.999]}
