"""Prompts as a condition: null, dropout by draw, blends, and the negative prompt."""

import torch

from diffusion_lit.diffusion.randomness import draw_random_numbers
from diffusion_lit.text.prompt_condition import PromptCondition, hash_uniform
from tests.prompts import WORDS, Vectors

PROMPTS = ["a golden dragon", "red", ""]


def test_captions_become_tokens_and_the_null_is_none_of_them():
    condition = PromptCondition(WORDS)
    y = condition.read_batch({"image": torch.zeros(3, 1, 2, 2), "caption": PROMPTS})
    assert torch.equal(y, condition.to_tensor(PROMPTS))
    assert torch.equal(y[2], condition.null(y)[2])
    assert not condition.null(y).any()
    assert torch.equal(condition.read_batch({"image": torch.zeros(2, 1, 2, 2)}), condition.null(y)[:2])


def test_prompts_are_dropped_as_labels_are_and_words_by_the_same_draw():
    condition, y = PromptCondition(WORDS), WORDS.encode(PROMPTS)
    dropped = condition.drop(y, torch.tensor([0.05, 0.5, 0.5]), 0.1)
    assert not dropped[0].any()
    assert torch.equal(dropped[1:], y[1:])
    condition = PromptCondition(WORDS, word_dropout=0.25)
    y = torch.ones(4000, 8, dtype=torch.int64)
    draw = draw_random_numbers(0, 0, 4000, (1, 1, 1), torch.device("cpu")).u_drop
    kept = condition.drop(y, draw, 0.0).float()
    assert abs(kept.mean() - 0.75) < 0.01
    assert ((kept.mean(0) - 0.75).abs() < 0.03).all()  # every place alike
    correlations = torch.corrcoef(kept.T) - torch.eye(8)
    assert correlations.abs().max() < 0.06  # and independent of the others
    parts = torch.cat([condition.drop(y[:7], draw[:7], 0.0), condition.drop(y[7:], draw[7:], 0.0)])
    assert torch.equal(parts.float(), kept)  # a function of the draw alone


def test_the_numbers_of_words_are_uniform():
    numbers = hash_uniform(torch.rand(2000, generator=torch.Generator().manual_seed(0)), 16)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers.flatten().float(), 20, 0, 1)
    expected = numbers.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 44  # chi-squared of 19, once in a thousand


def test_a_blend_has_the_tokens_of_its_texts_with_their_weights():
    condition = PromptCondition(WORDS)
    blend = condition.to_tensor([(("red", 0.25), ("golden dragon", 0.75)), "red", (("red", 1.0), ("a", 0.0))])
    red, golden, dragon = WORDS.tokenize("red golden dragon")
    assert blend[0, :4].tolist() == [[red, 0.25], [golden, 0.75], [dragon, 0.75], [0, 0]]
    assert torch.equal(blend[1], blend[2])  # the ends of an interpolation are its prompts
    assert blend[1, :2].tolist() == [[red, 1], [0, 0]]
    assert condition.to_tensor([((" ".join(["a"] * 8), 0.5), (" ".join(["red"] * 8), 0.5))]).shape == (1, 16, 2)


def test_vectors_are_dropped_and_blended_as_tokens_are():
    encoder = Vectors()
    condition, y = PromptCondition(encoder), encoder.encode(PROMPTS)
    assert y.shape == (3, 8, 5)
    assert not condition.drop(y, torch.tensor([0.05, 0.5, 0.5]), 0.1)[0].any()
    blend = condition.to_tensor([(("red", 0.25), ("golden dragon", 0.75))])
    assert blend[0, :, -1].tolist() == [0.25, 0.75, 0.75, 0, 0, 0, 0, 0]
    assert torch.equal(blend[0, 1:3, :-1], encoder.encode(["golden dragon"])[0, :2, :-1])


def test_a_negative_prompt_takes_the_place_of_the_null():
    for encoder in (WORDS, Vectors()):
        condition, y = PromptCondition(encoder, negative="red"), encoder.encode(PROMPTS)
        assert torch.equal(condition.null(y), encoder.encode(["red"] * 3))
        blend = condition.to_tensor([(("red", 0.5), ("a", 0.5)), "red"])
        assert torch.equal(condition.null(blend)[0], blend[1])
