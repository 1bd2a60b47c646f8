"""Models as Hugging Face folders: `config.json`, safetensors, a tokenizer and, where it takes one, a modelling file."""
