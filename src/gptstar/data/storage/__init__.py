"""Token shards on the local disk and at remote addresses."""
