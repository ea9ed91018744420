"""Words as tokens: the vocabulary of captions, n-grams of other words, and faults of prompts."""

import torch

from diffusion_lit.text.words import WordEncoder

CAPTIONS = ["a golden dragon", "a red dragon", "a golden Potion", "gem_7"]


def fitted(**settings) -> WordEncoder:
    arguments = {"max_tokens": 8, "min_count": 2, "buckets": 50, "ngram": 3} | settings
    return WordEncoder(**arguments, **WordEncoder(**arguments).fit(CAPTIONS))


def test_frequent_words_have_tokens_of_their_own_and_rare_ones_are_remembered():
    encoder = fitted()
    assert encoder.words == ["a", "dragon", "golden"]
    assert encoder.rare_words == ["7", "gem", "potion", "red"]
    assert encoder.num_tokens == 1 + 3 + 50
    assert encoder.encode(["A golden_dragon!", ""]).tolist() == [[1, 3, 2, 0, 0, 0, 0, 0], [0] * 8]


def test_other_words_are_their_ngrams_which_alike_words_share():
    encoder = fitted()
    potion, potions = encoder.tokenize("potion"), encoder.tokenize("potions")
    assert len(potion) == len("<potion>") - 2
    assert potion[:5] == potions[:5]
    assert all(4 <= token < encoder.num_tokens for token in potion + potions)
    assert encoder.tokenize("x") == encoder.tokenize("X")
    assert len(encoder.tokenize("x")) == 1


def test_a_text_is_cut_and_padded_to_one_length():
    encoder = fitted(max_tokens=3)
    assert encoder.encode(["dragon golden a dragon", "a"]).tolist() == [[2, 3, 1], [1, 0, 0]]
    assert torch.equal(encoder.encode([]), torch.zeros(0, 3, dtype=torch.int64))


def test_unknown_words_are_named_with_near_spellings():
    encoder = fitted(max_tokens=16)
    assert encoder.find_faults("a golden dragon") == []
    few = "so the network may not know it"
    assert encoder.find_faults("a red dragon") == [f"red is in one training caption, {few}"]
    assert fitted(min_count=3).find_faults("dragon") == [f"dragon is in fewer than 3 training captions, {few}"]
    assert encoder.find_faults("a goldn xylophone") == [
        "goldn is in no training caption, similar: golden",
        "xylophone is in no training caption",
    ]
    assert fitted().find_faults("a " * 9) == ["it has 9 tokens, and the first 8 are used"]
    assert encoder.is_unknown("purple xylophone")
    assert not encoder.is_unknown("purple gem")
    assert not encoder.is_unknown("")
    assert encoder.is_unknown("!?")
