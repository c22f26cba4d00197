"""One module per weight format. Each names its functions itself, at module level: see portable.py."""
