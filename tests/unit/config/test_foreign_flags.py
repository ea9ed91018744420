"""Flags of other scripts are answered with a command line that this project accepts, as docs/coming_from.md says it."""

import re
import shlex
from pathlib import Path

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.foreign_flags import FLAGS, SWITCHES, WITHOUT_COUNTERPART, answer_flags
from diffusion_lit.config.groups import list_keys

SECTIONS = ("diffusers' train_unconditional.py", "denoising-diffusion-pytorch", "EDM")
DOCS = (Path(__file__).parents[3] / "docs" / "coming_from.md").read_text(encoding="utf-8")
KEYS = list_keys("train")
CASES = {  # flags -> overrides
    "--train_data_dir photos --resolution 256 --train_batch_size 16 --epochs 3 --output_dir x --mixed_precision=bf16":
        "data=image_folder data.root=photos data.image_size=256 global_batch_size=16 max_epochs=3 run_dir=x "
        "strategy.precision=bf16-mixed",
    "--outdir=runs --data=photos --cond=1 --arch=ddpmpp --batch=512 --duration=200 --lr=1e-3 --xflip=false --fp16":
        "run_dir=runs data=image_folder data.root=photos model=unet global_batch_size=512 max_steps=390625 "
        "optimizer.lr=1e-3 data.flip=0 strategy.precision=16-mixed",
    "--data_dir a --num_channels 32 --num_res_blocks 1 --noise_schedule linear --class_cond False --save_interval 9":
        "data=image_folder data.root=a model=unet model.block_out_channels=[32,64,64,64] model.layers_per_block=1 "
        "diffusion.beta_schedule=linear data.labels=none checkpoint_every=9",
    "--data-path a --results-dir b --global-seed 3 --ckpt-every 5 --log-every 2 --gpus 1":
        "data=image_folder data.root=a run_dir=b seed=3 checkpoint_every=5 log_every=2 strategy=ddp strategy.devices=1",
    "--cond 0 --data a": "data=image_folder data.labels=none data.root=a",
    "--folder a --dim 32 --dim_mults 1 2 4 --train_num_steps 100 --objective pred_v --ema_decay .995 data.flip=0":
        "data=image_folder data.root=a model=unet model.block_out_channels=[32,64,128] max_steps=100 data.flip=0 "
        "diffusion.prediction_type=v_prediction ema=constant ema.decay=.995",
    "--adam_beta1 .95 --random_flip --use_ema --resume_from_checkpoint latest":
        "optimizer.betas=[.95,0.999] data.flip=0.5 ema=power resume=auto",
    "--train_data_dir 'my photos' --seed=-1": "data=image_folder 'data.root=\"my photos\"' seed=-1",
    "--max_steps 5 --data.image_size 64 --optimizer.lr=3": "max_steps=5 data.image_size=64 optimizer.lr=3",
    "--lr_scheduler cosine_with_restarts --data_dir a": "lr_schedule=cosine_restarts data=image_folder data.root=a",
}  # fmt: skip


def answer(line: str, verb: str = "train") -> str | None:
    arguments = shlex.split(line)
    keys = KEYS if verb == "train" else list_keys(verb)
    return answer_flags(verb, arguments, [text for text in arguments if text.startswith("-")], keys)


def test_command_lines_of_other_scripts_are_answered_with_ours():
    for flags, expected in CASES.items():
        command = answer(flags).splitlines()[1]
        overrides = shlex.split(command)[3:]
        assert sorted(overrides) == sorted(shlex.split(expected)), flags
        assert overrides == sorted(overrides, key=lambda text: "." in text.partition("=")[0]) or "data.flip=0" in flags
        if "resume" not in flags and "seed" not in flags:
            compose_configs("train", overrides)


def test_what_has_no_counterpart_no_value_or_no_meaning_is_named():
    lines = answer("--train_data_dir a --num_workers 4 --num_epochs --foo 3 --image_sise 4").splitlines()
    assert lines[2] == "  without a counterpart or a value: --num_workers, --num_epochs. See docs/coming_from.md"
    assert lines[3] == "  --foo: unknown"
    assert lines[4].startswith("  --image_sise: unknown (did you mean image_size")
    for line in ("--ema=0", "--duration 1e400", "--train_data_dir"):
        first, second = answer(line).splitlines()
        assert first == "keys are written key=value here, without dashes.", line  # a bare command would start digits
        assert second.startswith("  without a counterpart or a value: --"), line
    assert answer("--nonsense 3") is None
    line = "--network a --outdir=b --seeds=5-9 --steps 18 --batch 64 --class=3"
    expected = "run=a out=b seed=5 num_images=5 'classes=[3]' sampler.steps=18 sampler.batch_size=64"
    assert answer(line, "sample").splitlines()[1].endswith(f"diffusion_lit.sample {expected}")
    assert answer("--lr nonsense --dim wide --train_data_dir {x}").count("--dim") == 1
    assert 'data.root="{x}"' in answer("--train_data_dir {x}").replace("\\", "").replace("'\"'\"'", "'")
    assert "diffusion_lit.sample num_images=5" in answer("--num_images 5 --epochs 3", "sample")
    assert "--epochs: unknown" in answer("--num_images 5 --epochs 3", "sample")


def test_flags_are_those_of_the_documentation():
    """Each flag of the tables is known, and gives overrides of its row."""
    sections = {part.partition("\n")[0]: part for part in DOCS.split("\n## ")}
    values = {"adam_betas": "0.9", "dim": "8", "dim_mults": "1"}
    for section in SECTIONS:
        for row in re.findall(r"^\| (`.*) \|$", sections[section], re.MULTILINE):
            first, _, rest = row.partition(" |")
            own = {override.partition("=")[0] for override in re.findall(r"`([^`\s]+=[^`]*)`", rest)}
            for name in re.findall(r"`([a-z][\w-]*)`", first):
                name = name.replace("-", "_")
                if name in (*KEYS, "torchrun"):
                    continue
                assert name in FLAGS | SWITCHES or name in WITHOUT_COUNTERPART, (section, name)
                if name in WITHOUT_COUNTERPART:
                    continue
                texts = FLAGS.get(name) or " ".join(SWITCHES[name])
                texts = texts if isinstance(texts, str) else texts(values.get(name, "1"), {name: values.get(name, "1")})
                keys = {text.partition("=")[0] for text in texts.split()}
                assert keys <= own | {"run_dir", "model", "ema"}, (section, name, keys, own)


def test_several_values_of_one_key_are_no_sweep():
    lines = answer("--data_dir a --ema_rate 0.999,0.9999 --lr 1e-4").splitlines()
    assert shlex.split(lines[1])[3:] == ["data=image_folder", "data.root=a", "optimizer.lr=1e-4"]
    assert "without a counterpart or a value: --ema_rate" in lines[2]
    assert "classes=[1,2]" in answer("--class 1,2 --network a", "sample")
