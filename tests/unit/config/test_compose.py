"""The yaml files fit the code, and the check sees what Hydra runs."""

import inspect
import itertools
import math
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.__main__ import COMMANDS
from diffusion_lit.config import compose as compose_module
from diffusion_lit.config import overrides
from diffusion_lit.config.compose import compose_configs, compose_hydra_settings, resolve_data
from diffusion_lit.config.constraints import CHECKS
from diffusion_lit.config.expand import expand_overrides
from diffusion_lit.config.groups import CONF, list_option_keys
from diffusion_lit.config.metric_columns import COLUMNS, METRIC_COLUMNS
from diffusion_lit.config.schema import FIGURES, FIXED, read_keys
from diffusion_lit.config.targets import locate
from diffusion_lit.config.value_types import matches, split_alternatives
from diffusion_lit.system.errors import UserError
from tests.cases import each

GROUPS = [
    "data", "model", "diffusion", "weighting", "ema", "sampler", "optimizer", "lr_schedule", "distill", "strategy",
    "text_encoder", "trainer", "callbacks", "logger", "experiment",
]  # fmt: skip
LEAVES = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name != "experiment")
EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))
# keys that our code takes out of a leaf before the class gets the rest
OURS = {
    "data": {"image_size", "channels", "resample", "fit", "background", "alpha", "num_classes", "val_fraction",
             "random_crop", "flip", "transforms", "cache_dir", "classifier_images", "render", "exclude", "value_range",
             "max_pixels", "caption_colors"},
    "distill": {"teacher", "teacher_steps", "stages", "guidance_scale", "guidance_interval", "guidance_rescale"},
    "text_encoder": {"word_dropout"},
    "sampler": {"name", "serves", "starts_anywhere", "steps", "batch_size", "clip_x0"},
}  # fmt: skip


def name_of(path: Path) -> str:
    return f"{path.parent.name}={path.stem}"


@cache
def run_level(name: str) -> list[str]:
    return [key for key in OmegaConf.load(CONF / f"{name}.yaml") if key not in ("defaults", "hydra")]


# ------------------------------------------------------------------------------------------ the yaml files


def test_the_keys_of_a_run():
    assert run_level("train") == [
        "name", "seed", "run_dir", "resume", "init_from", "accept", "max_steps", "max_epochs", "global_batch_size",
        "log_every",
        "val_every", "sample_every", "checkpoint_every", "keep_checkpoints", "best_by", "ema_snapshot_every",
        "max_skipped_steps", "metrics_every", "metrics", "metrics_images", "metrics_steps", "label_dropout",
        "guidance_scale", "preview_prompts", "guidance_interval", "guidance_rescale",
        "metric", "debug", "plan",
    ]  # fmt: skip


def test_the_groups():
    assert sorted(path.name for path in CONF.iterdir() if path.is_dir()) == sorted(GROUPS)


def lines_of_leaves() -> list[list[str]]:
    """Return command lines that choose every leaf, as many in one as go together: composing one takes a while."""
    processes = {path.stem: OmegaConf.load(path).get("process", "discrete") for path in CONF.glob("diffusion/*.yaml")}
    lines, alone = [], []
    for path in LEAVES:
        process = OmegaConf.load(path).get("serves", ["discrete"])[0]
        if process != "discrete":
            alone.append([name_of(path), f"diffusion={process}"])
        elif path.parent.name == "diffusion" and processes[path.stem] != "discrete":
            assert path.stem == processes[path.stem], path  # chosen with its samplers
        elif path.parent.name == "distill" and path.stem != "none":  # a student has one sampler
            alone.append([name_of(path), "sampler=ddim", "sampler.steps=1"])
        else:
            lines.append(path)
    groups = [[name_of(path) for path in lines if path.parent.name == group] for group in GROUPS]
    together = [[name for name in line if name] for line in itertools.zip_longest(*groups)]
    return [[*line, "experiment=none"] for line in together + alone]


@cache
def composed(*choices: str) -> DictConfig:
    """Return the checked configuration of these choices, with a value for every key that needs one."""
    missing = OmegaConf.missing_keys(compose_configs("train", list(choices), complete=False)[0])
    store = "{_target_: diffusion_lit.data.store.ImageStore, images: 0, labels: 0}"
    values = {"data.sources": "[a,b.csv]", "data.dataset": store}
    return compose_configs("train", [*choices, *[f"{key}={values.get(key, 'pictures')}" for key in missing]])[0]


@each("choices", lines_of_leaves() + [[name_of(path)] for path in EXPERIMENTS])
def test_every_choice_composes_and_passes(choices):
    assert [key for key in composed(*choices) if key not in GROUPS] == run_level("train")


def test_every_leaf_is_in_one_of_the_lines():
    assert {name_of(path) for path in LEAVES} <= set(itertools.chain(*lines_of_leaves()))


@each("path", LEAVES, ids=name_of)
def test_every_key_of_a_leaf_is_an_argument_of_its_class_or_ours(path):
    leaf, group = OmegaConf.load(path), path.parent.name
    if "_target_" not in leaf:
        assert group in ("diffusion", "strategy", "lr_schedule", "trainer", "callbacks", "distill", "text_encoder")
        return
    taken = set(inspect.signature(locate(leaf["_target_"])).parameters) | OURS.get(group, set()) | {"_target_"}
    if path.stem == "unet2d":  # which hands everything else on, and leaves nothing out
        from diffusers import UNet2DModel

        taken |= set(inspect.signature(UNet2DModel).parameters) - {"sample_size", "in_channels", "out_channels"}
        assert taken - set(leaf) <= {"arguments", "num_class_embeds"}
    if group == "sampler":
        taken |= set(inspect.signature(locate(leaf["_target_"]).step).parameters)
    assert set(leaf) <= taken


def test_every_key_of_the_diffusion_is_an_argument():
    from diffusion_lit.diffusion.loss import Diffusion
    from diffusion_lit.diffusion.processes import PROCESSES

    for path in (CONF / "diffusion").glob("*.yaml"):
        leaf = OmegaConf.load(path)
        process = set(inspect.signature(PROCESSES[leaf.pop("process", "discrete")]).parameters)
        assert set(leaf) - set(inspect.signature(Diffusion).parameters) == process, path


@each("group", [group for group in GROUPS[:-1] if group != "callbacks"])  # whose files have names of callbacks as keys
def test_leaves_of_a_group_that_share_a_class_share_their_keys(group):
    keys = {}
    for path in sorted((CONF / group).glob("*.yaml")):
        leaf = OmegaConf.load(path)
        assert keys.setdefault(leaf.get("_target_", leaf.get("process", leaf.get("name"))), set(leaf)) == set(leaf), (
            path
        )


@each("path", [*CONF.glob("*.yaml"), *LEAVES, *EXPERIMENTS], ids=name_of)
def test_every_file_says_what_it_is(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    if path in EXPERIMENTS:
        header = "\n".join(line for line in lines if line.startswith("#"))
        assert lines[0] == "# @package _global_"
        assert re.search(r"^# Command: python -m diffusion_lit\.train\b", header, re.M), "the command"
        assert re.search(r"^# Cost and result: \S", header, re.M), "what it costs and what came out"


def test_a_follow_up_command_carries_the_config_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(overrides, "CONFIG_DIR", kept := [])
    monkeypatch.setattr(compose_module, "CONFIG_DIR", kept)
    assert overrides.format_command("sample", "run=a b") == "python -m diffusion_lit.sample 'run=a b'"
    compose_configs("train", ["data=digits"], str(tmp_path))
    assert (
        overrides.format_command("sample", "run=a") == f"python -m diffusion_lit.sample --config-dir {tmp_path} run=a"
    )


# ------------------------------------------------------------------------------------------ types of keys


def types_of_all_keys() -> dict[str, set[str]]:
    """Return the types of every key: of a group "group.key", of a command "key"."""
    types = {}
    for command in COMMANDS:
        for name, key in read_keys(CONF / f"{command}.yaml").items():
            types.setdefault(name, set()).add(key.type)
    for path in LEAVES:
        for name, key in list_option_keys(path.parent.name, path.stem).items():
            types.setdefault(f"{path.parent.name}.{name}", set()).add(key.type)
    return types


def test_choices_are_those_of_the_code():
    from diffusion_lit.data.decoding import FITS, MODES, RESAMPLE
    from diffusion_lit.diffusion.loss import LOSS_FUNCTIONS
    from diffusion_lit.diffusion.parameterization import PREDICTION_TYPES
    from diffusion_lit.diffusion.schedules import BETA_SCHEDULES
    from diffusion_lit.diffusion.timesteps import TIMESTEP_DISTRIBUTIONS
    from diffusion_lit.evaluation.features import FEATURE_EXTRACTORS
    from diffusion_lit.evaluation.metrics import METRICS

    tables = {
        "diffusion.beta_schedule": BETA_SCHEDULES,
        "diffusion.prediction_type": PREDICTION_TYPES,
        "diffusion.timestep_distribution": TIMESTEP_DISTRIBUTIONS,
        "diffusion.loss": LOSS_FUNCTIONS,
        "data.resample": RESAMPLE,
        "data.fit": FITS,
        "data.channels": map(str, MODES),
        "features": ["null", *FEATURE_EXTRACTORS],
        "best_by": ["val/loss", "val/error", "val/bits_per_dim", *COLUMNS],
    }
    assert METRICS.keys() == METRIC_COLUMNS.keys()
    types = types_of_all_keys()
    for key, table in tables.items():
        (type_,) = types[key]
        assert sorted(split_alternatives(type_)) == sorted(table), key
    for key, names in {"metrics": METRICS, "what": FIGURES}.items():
        assert all(f"list[{' | '.join(names)}] x 1+" in type_ for type_ in types[key]), key


def test_every_key_has_a_type_and_a_meaning_and_its_default_passes():
    options = {(path.parent.name, path.stem): list_option_keys(path.parent.name, path.stem) for path in LEAVES}
    options |= {(command,): read_keys(CONF / f"{command}.yaml") for command in COMMANDS}
    for place, keys in options.items():
        values = OmegaConf.to_container(OmegaConf.load(CONF / f"{'/'.join(place)}.yaml"))
        assert set(keys) == set(values) - {"defaults", "hydra"}, place
        for name, key in keys.items():
            if f"{place[0]}.{name}".endswith(FIXED):
                continue
            assert key.type, (place, name)
            assert key.meaning, (place, name)
            is_value = values[name] != "???" and not str(values[name]).startswith("${")
            assert not is_value or matches(key.type, values[name]), (place, name)


def test_every_check_of_values_together_finds_its_keys():
    """A check that asks for a key that is not there is left out, so a misspelt one would never be missed."""
    left = set(CHECKS)
    for choices in lines_of_leaves():
        config = composed(*choices)
        values = {"data.streaming": False, "data.caption_column": "auto"}  # of data=huggingface
        values |= {"logger.project": "digits"}  # of logger=wandb
        values |= {f"{group}.{key}": value for group in GROUPS[:-1] for key, value in config[group].items()}
        values |= {key: config[key] for key in run_level("train")} | {"classes": None, "context": None}
        values |= {"init": None, "strength": None, "mask": None, "repaint_repeats": 1, "shards": None}  # of `sample`
        values |= {"format": "png", "npy": False}
        for check in CHECKS:
            with suppress(KeyError):
                assert list(check(values)) == []
                left.discard(check)
    assert not left


# ------------------------------------------------------------------------------------------ composing


@each(
    "words",
    [
        ["lr_schedule.warmup_fraction=0.1", "data.num_classes=10", "resume=some/run"],
        ["sample_every=${checkpoint_every}", "name=x_${seed}", "lr_schedule.warmup_steps=${val_every}"],
        ["data.background=[0,0,0]", "model.attention_levels=[]", "optimizer.betas=[0,0.5]", "accept=[config,data]"],
        ['name="it\'s, [odd]"', "data.cache_dir=/a b/c", "optimizer.lr=1", "sampler=ddpm", "sampler.steps=1000"],
        ["seed=1", "seed=2", "trainer.gradient_clip_val=null", "ema=none", "weighting=p2", "weighting.k=2"],
        ["hydra.job.name=other", "run_dir=elsewhere"],
        ["experiment=cifar10_cond", "data.root=/data", "max_steps=5", "strategy.accumulate=2"],
    ],
)
def test_the_check_sees_what_hydra_runs(words):
    (config,) = compose_configs("train", words)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert OmegaConf.to_container(config) == OmegaConf.to_container(compose("train", words))


def test_every_combination_of_a_sweep_is_composed():
    words = ["weighting=glob(*snr)", "seed=range(0,3)", "optimizer.lr=choice(0.1,0.2)", "name='a,b','c'"]
    found = [
        (c.weighting._target_.rpartition(".")[2], c.seed, c.optimizer.lr, c.name)
        for c in compose_configs("train", words)
    ]
    weightings = ["MinSNR", "SNR", "SoftMinSNR", "TruncatedSNR"]
    assert sorted(found) == list(itertools.product(weightings, range(3), (0.1, 0.2), ("a,b", "c")))


def test_yaml_files_of_ones_own(tmp_path):
    own = tmp_path / "own"
    for group in ("experiment", "weighting"):
        (own / group).mkdir(parents=True)
    (own / "weighting" / "strong.yaml").write_text("_target_: diffusion_lit.diffusion.weighting.MinSNR\ngamma: 1.0\n")
    (own / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: digits\n  - override /weighting: strong\n"
        "name: mine\nmodel:\n  norm_num_groups: 4\n"
    )
    (config,) = compose_configs("train", ["experiment=mine", "weighting.gamma=2"], config_dir=str(own))
    assert (config.name, config.weighting.gamma, config.model.norm_num_groups) == ("mine", 2, 4)


def test_the_number_of_classes_reaches_the_network():
    config, source = resolve_data(compose_configs("train", [])[0])
    assert config["model"]["num_classes"] == config["data"]["num_classes"] == 10
    assert config["data"]["class_names"] == source.class_names == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("experiment", ["minecraft_skins", "cifar10_cond", "digits"])
def test_another_network_than_the_recipes_is_as_its_own_file_says(experiment):
    words = [f"experiment={experiment}", "data.root=x"][: 1 if experiment == "digits" else 2]
    own = OmegaConf.load(CONF / "model" / "unet_small.yaml")
    (config,) = compose_configs("train", [*words, "model=unet_small", "model.dropout=0.3"])
    assert dict(config.model) == dict(OmegaConf.merge(config, {"model": own}).model) | {"dropout": 0.3}
    (plain,) = compose_configs("train", words)
    (named,) = compose_configs(
        "train", [*words, f"model={compose_hydra_settings('train', words).runtime.choices['model']}"]
    )
    assert named.model == plain.model  # the recipe's own by name changes nothing


def test_a_key_that_is_nearly_a_group_is_taken_for_it():
    with pytest.raises(UserError, match="optimiser: no such key .did you mean optimizer or "):
        compose_configs("train", ["optimiser=adam"])


def test_a_process_on_the_command_line_brings_its_published_weighting_and_sampler():
    def compose(*overrides: str) -> tuple[str, str]:
        (config,) = compose_configs("train", expand_overrides(list(overrides), None), complete=False)
        return config["weighting"]["_target_"].rpartition(".")[2], config["sampler"]["name"]

    default = compose()
    assert compose("diffusion=flow") == ("Uniform", "flow_euler")
    assert compose("diffusion=edm") == ("Uniform", "heun")
    assert compose("diffusion=cosine") == default
    assert compose("diffusion=flow", "weighting=snr", "sampler=flow_heun") == ("SNR", "flow_heun")
    assert compose("data=image_folder", "data.root=.", "diffusion=edm", "weighting=min_snr") == ("MinSNR", "heun")


def test_stages_halve_the_steps_and_a_student_has_one_sampler():
    student = ["distill.teacher=run", "sampler=ddim", "sampler.steps=1"]
    for words, fault in (
        (["distill=progressive", "distill.stages=[4,1]"], "distill.stages=[4, 1]: 4 steps must be half of the 16"),
        (["distill=progressive", "distill.stages=[8,8,4]"], "8 steps must be half of the 8 before them"),
        (["distill=progressive", "sampler.steps=4"], "sampler.steps=4: a distilled model has learned steps=1"),
        (["distill=progressive", "sampler.eta=1"], "sampler=ddim: a distilled model has learned sampler=ddim sampler"),
        (["distill=progressive", "sampler=dpmpp_2m"], "sampler=dpmpp_2m: a distilled model has learned sampler=ddim"),
    ):
        with pytest.raises(UserError, match=re.escape(fault)):
            compose_configs("train", [*student, *words])
    compose_configs("train", [*student, "distill=progressive", "distill.teacher_steps=4", "distill.stages=[2,1]"])


@each(
    "value", ["café", "a\nb", " ", 'it\'s a "b"', "b\\", "${x}", ["café", 'a"b', "a\nb"], ["b\\", 1, None, True, "1"]]
)
def test_a_written_override_is_read_as_the_same_value(value):
    assert overrides.read_override("classes", [overrides.format_override("classes", value)]) == value


@each("value", [
    {}, {"hero": 0.5, "side": 1}, {"_target_": "x.Y", "root": "/a b", "sizes": [1, {"b": None}]}, {3: 0.5, "ten": "10"},
    [{"a b": "${x}"}, {"c": "\\${x}"}], {"a, b": 1, "c: d": 2, "[e] = {f} (g)": 3, "h\\": 4, " i ": 5},
    math.inf, [-math.inf, 1e-5], {"rate": math.inf, "is_on": True},
])  # fmt: skip
def test_a_written_override_of_mappings_and_numbers_without_end_is_read_as_the_same_value(value):
    parsed = OverridesParser.create().parse_override(overrides.format_override("key", value)).value()
    assert OmegaConf.to_container(OmegaConf.create({"key": parsed}), resolve=True) == {"key": value}
