"""The steps that a student has learned, by its checkpoint."""

from diffusion_lit.runs.checkpoints import checkpoint_path
from diffusion_lit.runs.student import describe_teacher, find_learned_steps, pin_sampler, stage_at


def test_stages_are_equally_long_and_the_last_one_takes_the_rest():
    assert [stage_at(step, 8, 4) for step in range(9)] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert [stage_at(step, 10, 3) for step in range(11)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_a_checkpoint_at_the_end_of_a_stage_has_learned_its_steps(tmp_path):
    config = {"max_steps": 8, "sampler": {"name": "ddim", "steps": 1}, "distill": {"stages": [8, 4, 2, 1]}}
    paths = {step: checkpoint_path(tmp_path, step) for step in (0, 1, 2, 3, 4, 5, 8)}
    steps = {step: find_learned_steps(config, path) for step, path in paths.items()}
    assert steps == {0: 8, 1: 8, 2: 8, 3: 4, 4: 4, 5: 2, 8: 1}
    published = config | {"distill": {"stages": [4]}}
    assert find_learned_steps(published, tmp_path / "network.safetensors") == 4
    for other in ({}, {"distill": {}}):
        assert pin_sampler({"sampler": {"steps": 7}} | other, tmp_path, "last")["sampler"]["steps"] == 7
        assert describe_teacher(other) == {}


def test_a_manifest_names_the_teacher_without_its_folder():
    settings = {"name": "progressive", "teacher": "/home/me/runs/one"}
    assert describe_teacher({"distill": settings}) == {"distilled": {"method": "progressive", "teacher": "one"}}
