"""An example of a plugin: a blending formula, noise levels, a scorer and two metrics, in a few lines each."""

import torch
from torch.nn import functional as F

from ramps.curves import quadratic
from storyreel.evaluation.metrics import Measure


def ramp(x, lead, weights, noise, sigma):
    """Put a lead into x_σ that counts the less the farther it is from what is shown."""
    count = lead.shape[2]
    near = torch.linspace(1 / count, 1, count, device=x.device).view(1, 1, -1, 1, 1)
    head = torch.lerp(x[:, :, :count], torch.lerp(lead, noise, sigma), near * weights)
    return torch.cat([head, x[:, :, count:]], 2)


def falling(steps, tokens):
    """Return noise levels that fall slowly at first."""
    return [quadratic(step / steps) for step in range(steps + 1)]


class Brightness:
    """Scores how bright a picture is, for every text alike."""

    def __init__(self, device):
        self.device = device

    def embed_texts(self, prompts):
        return F.normalize(torch.tensor([[1.0, len(prompt) % 7] for prompt in prompts]), dim=1)

    def embed_pictures(self, pictures):
        bright = pictures.float().mean((1, 2, 3))
        return F.normalize(torch.stack([1 + bright, 1 - bright], 1), dim=1)


def redness(pictures, scene, action):
    """Return how much more red than blue a scene's pictures, uint8 (n, H, W, 3), are."""
    return float(pictures[..., 0].float().mean() - pictures[..., 2].float().mean())


def leap(before, behind):
    """Return how much brighter one scene begins than the one before ended."""
    return float(behind[0].float().mean() - before[-1].float().mean())


REDNESS = Measure(redness, title="redness", unit="0 to 255", source="mean of red less that of blue")
LEAP = Measure(leap, "leap of brightness", "0 to 255", "first picture less the last before it", scope="seam")
STORYREEL = {
    "blendings": {"ramp": ramp},
    "schedulers": {"falling": falling},
    "scorers": {"brightness": Brightness},
    "metrics": {"redness": REDNESS, "leap": LEAP},
}
