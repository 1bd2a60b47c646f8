"""From text to windows of tokens: corpora, tokenizer, shards, and an order that is a pure function."""
