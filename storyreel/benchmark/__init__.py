"""How fast a model is and how much memory it takes: measured, or calculated without weights."""
