"""The models that storyreel can use, as a table of facts. Reading it loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storyreel.errors import MissingError

MINI_WEIGHTS = Path(__file__).parent.parent / "mini" / "weights"


@dataclass(frozen=True)
class ModelSpec:
    """What must be known of a model before it is loaded.

    ``fps`` is frames per second; ``frames_per_latent`` and ``pixels_per_latent`` the codec's
    compression; ``size_multiple``, ``min_size`` and ``max_size`` (width, height) in pixels
    bound the pictures, ``max_latents`` the latent frames of one segment. ``decoded_at_once`` is
    in latent frames: what memory allows, since small pieces are slow on a CPU. ``overlap`` is in
    latent frames, ``text_length`` in tokens. ``guidance`` 1 means none. ``upscale`` enlarges the
    picture in the film.

    ``seconds_per_forward`` (one forward with guidance at the default size and length, on
    ``measured_on``) and ``memory_mb`` (peak of the process) serve the estimates of a dry run.

    ``judge`` is "module:function", like ``adapter``: what says whether a film shows what its story
    tells, for a model whose world has a known truth (`mini.verdicts.judge_film`). It is for measuring
    alone.
    """

    name: str
    title: str
    adapter: str
    weights: Path
    licence: str
    fps: int
    frames_per_latent: int
    pixels_per_latent: int
    latent_channels: int
    size: tuple[int, int]
    size_multiple: int
    min_size: tuple[int, int]
    max_size: tuple[int, int]
    seconds: float
    max_latents: int
    decoded_at_once: int
    overlap: int
    text_length: int
    steps: int
    guidance: float
    upscale: int
    seconds_per_forward: float
    memory_mb: int
    measured_on: str
    judge: str | None = None


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="mini",
            title="the embedded cartoon model",
            adapter="storyreel.models.mochi:MochiAdapter",
            weights=MINI_WEIGHTS,
            licence="Apache-2.0",
            fps=12,
            frames_per_latent=3,
            pixels_per_latent=8,
            latent_channels=48,
            size=(96, 64),
            size_multiple=16,
            # It was trained at one size; others would be legal tensors and poor pictures.
            min_size=(96, 64),
            max_size=(96, 64),
            seconds=2.0,
            max_latents=13,
            decoded_at_once=13,
            overlap=2,
            text_length=64,
            steps=16,  # 24 give the same pictures to the eye
            guidance=3.0,
            upscale=8,
            seconds_per_forward=0.19,
            memory_mb=850,
            measured_on="two CPU cores",
            judge="storyreel.mini.verdicts:judge_film",
        ),
    )
}


def find_model(name: str) -> ModelSpec:
    """Return a model's facts. Raises MissingError for an unknown name."""
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise MissingError(f"there is no model {name!r}", f"Known models: {known}. See: storyreel models")
    return MODELS[name]
