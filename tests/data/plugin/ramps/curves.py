"""What the noise levels of the example are made of."""


def quadratic(share):
    """Return the level after a share of the steps, both from 0 to 1."""
    return 1 - share**2
