"""The net, its weights, fast inference and the model folder."""
