"""Turn text into shards: in parallel, resumable, with the same bytes each time."""
