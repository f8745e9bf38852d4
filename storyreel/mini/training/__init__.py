"""The training of the embedded model's parts."""
