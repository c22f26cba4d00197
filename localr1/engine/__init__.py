"""Token ids in, token ids out: the engine knows nothing of text."""
