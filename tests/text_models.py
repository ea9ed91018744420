"""Tiny random text encoders, as transformers saves them."""

import json

import torch

CAPTIONS = ["a golden dragon", "a red potion", "gem"]
LETTERS = [f"{letter}{end}" for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]


def save_clip(folder) -> None:
    """A tiny random text encoder of CLIP, as transformers saves it."""
    import transformers

    torch.manual_seed(0)
    vocabulary = {token: k for k, token in enumerate([*LETTERS, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = transformers.CLIPTextConfig(vocab_size=54, max_position_embeddings=24, **size, **ends)
    transformers.CLIPTextModel(config).save_pretrained(folder)


def save_t5(folder) -> None:
    """A tiny random T5 with words as tokens."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    words = ["<pad>", "</s>", "<unk>", *" ".join(CAPTIONS).split()]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(dict.fromkeys(words))}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = transformers.T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(folder)
