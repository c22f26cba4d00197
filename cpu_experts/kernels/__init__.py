"""One module per weight format; portable.py and vnni.py hold the loops that they share."""
