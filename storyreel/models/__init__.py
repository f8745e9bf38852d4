"""Base models: a table of facts, and one adapter per family."""
