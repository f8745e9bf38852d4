"""The embedded model: the cartoon world it was trained on, its training and its weights."""
