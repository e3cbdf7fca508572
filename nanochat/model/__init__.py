"""The transformer, its sizes, its key-value cache and its export."""
