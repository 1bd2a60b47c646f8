"""One file holds a model, its tokenizer and, while it trains, all that training needs to go on."""
