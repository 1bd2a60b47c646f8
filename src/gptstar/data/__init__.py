"""Turn text into windows of tokens: corpora, tokenizer, shards, and a data order that is a pure function."""
