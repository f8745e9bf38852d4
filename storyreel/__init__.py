"""One coherent film from a story of scene pairs, with a pretrained text-to-video model."""

__version__ = "0.1.0"
