"""docs/migration.md and docs/coming_from.md name every flag of other projects, and only overrides that exist."""

import re
import shlex
from functools import cache
from pathlib import Path

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.expand import expand_overrides
from diffusion_lit.config.groups import CONF
from tests.cases import each

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text().split("\n## ") for name in ("migration", "coming_from")}
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}
FLAGS = {
    "Minecraft skins": """
        IMSIZE DEVICE DATA_PATH SAMPLE_DIR WEIGHTS_DIR SEED EVALUATION_INTERVAL USE_RAM NUM_WORKERS MIXED_PRECISION
        TRAIN_BATCH_SIZE EVAL_BATCH_SIZE LR NUM_TRAIN_TIMESTEPS EPOCHS""",
    "Pixel-art icons": "Resize RandomHorizontalFlip UNet2DModel DDPMScheduler beta_start beta_end",
    "Classes, and SNR weights on the clean image": """
        dataset_name dataset_config_name model_config_name_or_path train_data_dir output_dir overwrite_output_dir
        cache_dir resolution center_crop random_flip train_batch_size eval_batch_size num_classes dataloader_num_workers
        num_epochs save_images_epochs save_model_epochs gradient_accumulation_steps learning_rate lr_scheduler
        lr_warmup_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon use_ema ema_inv_gamma ema_power
        ema_max_decay push_to_hub hub_token hub_model_id hub_private_repo logger logging_dir local_rank mixed_precision
        prediction_type ddpm_num_steps ddpm_num_inference_steps ddpm_beta_schedule checkpointing_steps
        checkpoints_total_limit
        resume_from_checkpoint""",
    "Sprites with a context": """
        save_dir_weights save_periods inference_outs_dir inference batch_size epochs lr features T beta_start beta_end
        dataset_name""",
    "Flowers": """
        dataset_name dataset_config_name train_data_path output_dir samples_dir loss_logs_dir cache_dir resolution
        train_batch_size eval_batch_size num_epochs save_model_epochs gradient_accumulation_steps learning_rate
        lr_scheduler lr_warmup_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon use_clip_grad use_l1_loss
        logging_dir pretrained_model_path dataset_path save_model_steps use_flash_attn fp16_precision gamma""",
    "diffusers' train_unconditional.py": """
        dataset_name dataset_config_name model_config_name_or_path train_data_dir output_dir overwrite_output_dir
        cache_dir resolution center_crop random_flip preserve_input_precision train_batch_size eval_batch_size
        dataloader_num_workers num_epochs save_images_epochs save_model_epochs gradient_accumulation_steps learning_rate
        lr_scheduler lr_warmup_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon use_ema ema_inv_gamma
        ema_power ema_max_decay push_to_hub hub_token hub_model_id hub_private_repo logger logging_dir local_rank
        mixed_precision prediction_type ddpm_num_steps ddpm_num_inference_steps ddpm_beta_schedule checkpointing_steps
        checkpoints_total_limit resume_from_checkpoint enable_xformers_memory_efficient_attention""",
    "denoising-diffusion-pytorch": """
        dim dim_mults channels full_attn flash_attn attn_dim_head dropout self_condition learned_variance image_size
        timesteps sampling_timesteps ddim_sampling_eta objective beta_schedule min_snr_loss_weight min_snr_gamma
        offset_noise_strength immiscible auto_normalize folder augment_horizontal_flip convert_image_to train_batch_size
        gradient_accumulate_every split_batches train_lr adam_betas train_num_steps ema_decay ema_update_every
        max_grad_norm save_and_sample_every num_samples results_folder amp mixed_precision_type calculate_fid
        num_fid_samples save_best_and_latest_only cond_drop_prob cond_scale rescaled_phi""",
    "EDM": """
        outdir data cond arch precond duration batch batch-gpu cbase cres lr ema dropout augment xflip fp16 ls bench
        cache workers desc nosubdir tick snap dump seed transfer resume dry-run""",
    "lightning-hydra-template": """
        task_name tags ckpt_path seed data.batch_size data.num_workers data.pin_memory paths.data_dir paths.log_dir
        model.optimizer._target_ model.scheduler model.net model.compile trainer.max_epochs trainer.min_epochs
        trainer.precision trainer.accumulate_grad_batches trainer.check_val_every_n_epoch trainer.gradient_clip_val
        trainer.deterministic logger.wandb.project optimized_metric extras.print_config extras.ignore_warnings
        extras.enforce_tags""",
}
SECTIONS = {part.partition("\n")[0]: part for parts in PAGES.values() for part in parts}


def cells(text: str) -> list[list[str]]:
    """The rows of all tables, without their heads."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rules = [k for k, row in enumerate(rows) if set("".join(row)) == {"-"}]
    return [row for k, row in enumerate(rows) if k not in rules and k + 1 not in rules]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def overrides_text(section: str) -> str:
    """Return a section without its code blocks and without the flags of the other project, the first cells."""
    text = re.sub(r"```.*?```", "", SECTIONS[section], flags=re.DOTALL)
    return re.sub(r"^\|[^|]*", "", text, flags=re.MULTILINE)


@each("section", FLAGS)
def test_every_flag_has_a_place_here_or_a_reason_why_not(section):
    rows = cells(SECTIONS[section])
    named = [word for row in rows for word in quoted(row[0])]
    assert [flag for flag in FLAGS[section].split() if flag not in named] == []
    assert [row for row in rows if not row[1] and not row[2]] == []


@cache
def command_lines(section: str) -> list[tuple[str, list[str]]]:
    """What the page says to write: (command, words). The words of a cell belong together, others stand for themselves.

    Each is said of the faithful experiment of the section. Composing takes a while, so words share command lines: those
    of a cell go on the first that says nothing of the same keys and groups.
    """
    text = SECTIONS[section]
    faithful = re.search(r"experiment=\w+_faithful", text)
    base = [faithful[0]] if faithful else []
    rows = [quoted(row[1]) for row in cells(text) if len(row) == 3]
    inside = {token for row in rows for token in row}
    loose = [[token] for token in quoted(overrides_text(section)) if token not in inside]
    lines, shared = [], []
    for tokens in dict.fromkeys(map(tuple, rows + loose)):
        others = [shlex.split(token) for token in tokens if token.split()[0] in COMMANDS]
        lines += [(command, words) for command, *words in others if words]
        words = [token for token in tokens if re.match(WORD, token)]
        free = next((line for line in shared if not clash(line, words)), None)
        if words and words[0].startswith("experiment="):
            lines.append(("train", words))
        elif free:
            free += words
        elif words:
            shared.append([*base, *words])
    return lines + [("train", words) for words in shared]


WORD = r"\+?[\w.]+=[^< ]+$"
COMMANDS = ("sample", "visualize", "evaluate", "export")


def clash(some: list[str], others: list[str]) -> bool:
    """Whether two of the words say something of the same key, or one of a group and the other of a key in it."""
    pairs = [(f"{one.partition('=')[0]}.", f"{other.partition('=')[0]}.") for one in some for other in others]
    return any(one.startswith(other) or other.startswith(one) for one, other in pairs)


@each("section", SECTIONS)
def test_every_key_and_value_that_the_page_names_is_accepted(section):
    for command, words in command_lines(section):
        compose_configs(command, expand_overrides(words, None) if command == "train" else words, complete=False)


@each("section", FLAGS)
def test_every_word_that_looks_like_one_is_looked_at(section):
    looked_at = {word for _, words in command_lines(section) for word in words}
    named = [token for token in quoted(overrides_text(section)) if re.match(WORD, token)]
    assert len(named) > 10
    assert set(named) <= looked_at
    keys = {word.partition("=")[0] for word in looked_at}
    text = overrides_text(section)
    bare = [token for token in quoted(text) if re.fullmatch(rf"({'|'.join(GROUPS)})\.\w+", token)]
    config = compose_configs("train", re.findall(r"experiment=\w+_faithful", text)[:1], complete=False)[0]
    for key in set(bare) - keys:
        group, _, name = key.partition(".")
        assert name in config[group], key


def test_the_six_notebooks_are_one_command_line():
    text = (CONF / "experiment" / "sprites_context_faithful.yaml").read_text()
    comments = "".join(line.lstrip("# ") for line in text.splitlines(keepends=True) if line[0] == "#")
    (words,) = re.findall(r"--multirun ((?:.*\\\n)*.*)\n", comments)
    jobs = compose_configs("train", shlex.split(words.replace("\\\n", " ")))
    found = {(c.max_epochs, c.optimizer.lr, c.model.features, c.diffusion.num_train_timesteps) for c in jobs}
    table = [row for row in cells(SECTIONS["Sprites with a context"]) if len(row) > 3]
    assert len(jobs) == len(table) == 6
    assert found == {(int(row[1]), float(row[2]), int(row[3]), int(row[4])) for row in table}
    assert all(c.lr_schedule.cycles == c.max_epochs and c.data.split_modulo == 1788 for c in jobs)
    for row in table:
        (config,) = compose_configs("train", [*quoted(row[5]), "data.images=sprites.npy"])
        assert (config.max_epochs, config.optimizer.lr) == (int(row[1]), float(row[2]))
