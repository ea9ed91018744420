"""Frozen text encoders: what transformers itself computes, the same from the cache, and files that are refused."""

import numpy as np
import pytest
import torch

from diffusion_lit.system.errors import DataError, UserError
from diffusion_lit.text.pretrained_text import PretrainedTextEncoder
from tests.cases import each
from tests.text_models import CAPTIONS, save_clip, save_t5

transformers = pytest.importorskip("transformers")


def encoder_of(folder, **settings) -> PretrainedTextEncoder:
    return PretrainedTextEncoder(str(folder), None, 20, **settings)


@each("save", [save_clip, save_t5], ids=["clip", "t5"])
def test_vectors_are_those_of_the_model_alone_in_a_batch_and_from_the_cache(tmp_path, save):
    save(tmp_path / "model")
    encoder = encoder_of(tmp_path / "model", **encoder_of(tmp_path / "model").fit(CAPTIONS))
    assert encoder.width == 16
    y = encoder.encode([*CAPTIONS, ""])
    assert not y[3].any()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    model = transformers.AutoModelForTextEncoding.from_pretrained(tmp_path / "model").eval()
    inputs = tokenizer(CAPTIONS[1], return_tensors="pt")
    with torch.no_grad():
        expected = model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state[0]
    count = len(expected)
    torch.testing.assert_close(y[1, :count, :-1], expected, rtol=1e-3, atol=1e-3)
    assert y[1, :, -1].tolist() == [1] * count + [0] * (20 - count)
    assert torch.equal(encoder.encode(CAPTIONS[1:2]), y[1:2])
    encoder.use_cache(tmp_path / "cache", CAPTIONS)
    encoder.embed = None  # the cache has all
    assert torch.equal(encoder.encode([*CAPTIONS, ""]), y)
    assert isinstance(encoder.cache.vectors, np.memmap)
    assert encoder.cache.vectors.dtype == np.float16


def test_the_cache_is_written_once_and_a_damaged_one_is_named(tmp_path):
    save_clip(tmp_path / "model")
    encoder = encoder_of(tmp_path / "model", **encoder_of(tmp_path / "model").fit(CAPTIONS))
    encoder.use_cache(tmp_path, CAPTIONS)
    other = encoder_of(tmp_path / "model", digest=encoder.digest, width=16)
    other._embed = None  # another process reads the file
    other.use_cache(tmp_path, CAPTIONS)
    assert torch.equal(other.encode(CAPTIONS), encoder.encode(CAPTIONS))
    file = encoder.cache.path
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        other.use_cache(tmp_path, CAPTIONS)


def test_other_files_and_pickles_are_refused(tmp_path):
    save_clip(tmp_path / "model")
    settings = encoder_of(tmp_path / "model").fit(CAPTIONS)
    (tmp_path / "model" / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(UserError, match="not those that the run was trained with"):
        encoder_of(tmp_path / "model", **settings).encode(["a"])
    weights = tmp_path / "model" / "model.safetensors"
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match="no weights in safetensors"):
        encoder_of(tmp_path / "model").fit(CAPTIONS)


def test_a_long_prompt_is_named(tmp_path):
    save_clip(tmp_path / "model")
    encoder = encoder_of(tmp_path / "model")
    assert encoder.find_faults("gem") == []
    assert encoder.find_faults("dragon" * 4) == ["it has 26 tokens, and the first 20 are used"]
    assert len(encoder.embed("dragon" * 4)) == 20
