"""The lint of a training and of predictions: faults of preprocessing that leave numbers which look right."""
