"""Sources of text: corpora, readers of their files, and cleaning."""
