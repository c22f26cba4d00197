"""How a file of weights becomes a running model: configuration, files, layers, text."""
