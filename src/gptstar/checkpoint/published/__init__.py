"""The weights that the original authors published: where they were, and how to get them whole."""
