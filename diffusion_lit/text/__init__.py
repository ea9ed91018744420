"""Text as a condition: encoders from prompts to tokens, and `PromptCondition` on top of them.

- `words`: the vocabulary of the training captions, and hashed character n-grams for other words
- `pretrained_text`: text encoders of transformers, frozen
- `embedding_cache`: their embeddings, computed once per caption
- `prompt_condition`: null, dropout, blends of prompts
"""
