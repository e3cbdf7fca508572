"""Data: fetching from hubs, text shards, token files, packing, the loaders, mixtures of conversations."""
