"""From YAML to a checked plan. Nothing here imports torch."""
