"""From files of text to training batches: reading, validation, token shards, and the loader."""
