"""The weights that the original authors published: their addresses, and how to download them."""
