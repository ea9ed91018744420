"""The EMA of a student begins again with each stage."""

from diffusion_lit.runs.student import stage_at
from diffusion_lit.training.ema import PowerDecay
from diffusion_lit.training.student_module import StageDecay


def test_the_decay_begins_again_with_the_first_update_of_each_stage():
    for max_steps, count, every in ((12, 3, 1), (10, 3, 1), (12, 2, 3), (8, 8, 1)):
        power = PowerDecay(update_every=every)
        decay, plain = StageDecay(power, max_steps, count), iter(())
        assert decay.update_every == every
        last = None
        for n in range(max_steps // every):
            stage = stage_at(n * every, max_steps, count)
            plain = iter(map(power, range(max_steps))) if stage != last else plain
            last = stage
            assert decay(n) == next(plain), (max_steps, count, n)


def test_the_first_update_of_a_stage_copies_the_student():
    decay = StageDecay(PowerDecay(), 600, 4)
    assert [decay(n) for n in (0, 150, 300, 450)] == [0, 0, 0, 0]
    assert decay(149) == decay(599) == PowerDecay()(149)
