"""Models as Hugging Face folders: `config.json`, safetensors, a tokenizer and, if needed, a modelling file."""
