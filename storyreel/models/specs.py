"""The models that storyreel can use, as a table of facts. Reading it loads no torch."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from storyreel import origin, plugins
from storyreel.errors import UsageError
from storyreel.models.lora import Lora
from storyreel.models.memory import Needs

Levels = Literal["even", "linear-quadratic", "shifted", "by tokens"]

PULLED = "storyreel"  # the ref, in a repository of huggingface_hub's cache, of the commit that is used
QUANTIZATIONS = ("none", "fp8")
# The folders of a pipeline that are read, where they are there.
COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "transformer_2", "vae")
MINI_WEIGHTS = Path(__file__).parent.parent / "mini" / "weights"


@dataclass(frozen=True)
class ModelSpec:
    """What must be known of a model before it is loaded.

    ``adapter`` is "module:class"; ``weights`` a folder laid out as diffusers lays out a pipeline, which
    for a model with a ``hub`` (its repository there) is what `storyreel pull` fetched: of its commits the
    ``revision``, of several precisions the ``variant``, of its folders the ``components``. ``dtype`` and
    ``vae_dtype`` are torch's names of what transformer and text encoders, and the VAE, compute in, and
    ``quantize`` says whether the transformer's weights are stored in that or in fewer bits; ``even_steps``
    asks for evenly spaced noise levels instead of the family's own. ``architecture`` and
    ``vae_architecture`` are where the configurations of transformer and VAE differ from diffusers' defaults,
    and ``boundary_ratio`` the noise level at which a second expert takes over: for random weights of the
    true sizes.

    ``first_alike`` says whether the VAE's code of a clip's first picture is like that of later ones, so that
    the end of a clip can stand at the beginning of another.

    ``fps`` is frames per second; ``frames_per_latent`` and ``pixels_per_latent`` the VAE's
    compression; ``size_multiple``, ``min_size`` and ``max_size`` (width, height) in pixels
    bound the pictures, ``max_latents`` the latent frames of one segment. ``decoded_at_once`` is
    in latent frames: what memory allows, since small pieces are slow on a CPU. ``overlap`` is in
    latent frames, ``text_length`` in tokens. ``guidance`` 1 means none; ``guidance_2`` is the second
    expert's, where it has one of its own; ``guidance_rescale``, from 0 to 1, is how far the guided velocity
    is brought back to the spread of that of the text alone. ``negative`` is the prompt that guidance leads
    away from, "" for none. ``shifts`` are how strongly noise levels are shifted towards noise, each with the
    pixels of the pictures that it is meant for; none for a model that has no choice there. ``levels`` says
    how the noise levels lie, as `method.noise_levels` knows them, and ``further`` are packages that shape
    its pictures beside those of all models. ``weighting`` and ``emphasis`` are the defaults of the method's
    settings of these names; ``decides`` are the noise levels (low, high) between which the model decides
    what is being done.
    ``upscale`` enlarges the picture in the film.

    ``seconds_per_forward`` (one model evaluation with guidance at the default size and length, on
    ``measured_on``) and ``memory_mb`` (peak of the process) serve the estimates of a dry run; None
    where nobody has measured them yet. ``memory_gb`` is what a GPU must have free in each memory mode, at
    the default size and length: calculated (`storyreel bench --calculate`), so a little more is needed.
    ``needs`` are straight lines through the same at other sizes and lengths, and what the machine itself
    must have (`storyreel bench --calculate --fit` prints them).

    ``judge`` is "module:function", like ``adapter``: what says whether a film shows what its story
    tells, for a model whose world has a known truth (`mini.verdicts.judge_film`). ``strangeness`` says
    whether anybody can tell what some pictures show (`mini.verdicts.strangeness`): where not, nobody is found
    in them. Both are for measuring alone. ``vocabulary`` is a file of all that such a model can draw, and
    ``gallery`` "module:function": what makes a page with pictures of that (`mini.gallery.gallery_page`).
    """

    name: str
    title: str
    adapter: str
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
    guidance_2: float | None = None
    guidance_rescale: float = 0.0
    negative: str = ""
    shifts: tuple[tuple[int, float], ...] = ()
    levels: Levels = "even"
    further: tuple[str, ...] = ()
    weights: Path = Path()
    hub: str | None = None
    revision: str | None = None
    variant: str | None = None
    components: tuple[str, ...] = COMPONENTS
    dtype: str = "bfloat16"
    vae_dtype: str = "bfloat16"
    quantize: str = "none"
    even_steps: bool = False
    architecture: dict[str, Any] = field(default_factory=dict)
    vae_architecture: dict[str, Any] = field(default_factory=dict)
    boundary_ratio: float | None = None
    weighting: bool = False
    emphasis: float = 1.0
    decides: tuple[float, float] = (0.0, 0.0)
    first_alike: bool = True
    upscale: int = 1
    seconds_per_forward: float | None = None
    memory_mb: int | None = None
    memory_gb: dict[str, float] = field(default_factory=dict)
    needs: Needs | None = None
    measured_on: str | None = None
    judge: str | None = None
    strangeness: str | None = None
    vocabulary: Path | None = None
    gallery: str | None = None
    loras: tuple[Lora, ...] = ()

    @property
    def usual_latents(self) -> int:
        """The latent frames of a segment of the default length, with one of a lead."""
        return min(self.max_latents, round(self.seconds * self.fps / self.frames_per_latent) + 2)

    @property
    def label(self) -> str:
        """Its name, with how its weights are stored where that is not as usual."""
        return self.name if self.quantize == "none" else f"{self.name} in {self.quantize}"

    def quantized(self, how: str) -> ModelSpec:
        """Return the same model with its weights stored as one of `QUANTIZATIONS`. Raises UsageError."""
        if how not in QUANTIZATIONS:
            raise UsageError(f"unknown quantization {how!r}", f"Use {' or '.join(QUANTIZATIONS)}.")
        return replace(self, quantize=how)

    def shift_at(self, width: int, height: int) -> float | None:
        """Return the shift for pictures of a size: that of the size whose area is nearest, by their ratio.

        None if the model has none. Its authors name shifts for some sizes and say nothing of others; a
        value between two of theirs would be nobody's.
        """
        area = width * height
        by_distance = {abs(math.log(area / pixels)): shift for pixels, shift in self.shifts}
        return by_distance[min(by_distance)] if by_distance else None

    @property
    def remedy(self) -> str:
        """What to do when weights are missing or damaged."""
        if self.hub and self.weights == pulled_folder(self.hub):
            return f"Run: storyreel pull {self.name}"
        if self.weights == MINI_WEIGHTS:
            return f"Restore {self.weights}: {origin.again(self.weights)}"
        return f"Restore {self.weights}, or name another folder: --weights DIR"


# What the models of one family share. Facts that their authors give: README.md beside this file has the
# source of each. Times and memory wait for a GPU.

# The authors' own code takes this one for every film of Wan 2.1 and 2.2 that has none of its own
# (wan/configs/shared_config.py). In English: vivid tones, overexposed, static, blurred details, subtitles,
# style, works, paintings, pictures, still, overall grey, worst quality, low quality, JPEG compression
# residue, ugly, incomplete, extra fingers, badly drawn hands, badly drawn faces, deformed, disfigured,
# misshapen limbs, fused fingers, still picture, messy background, three legs, many people in the background,
# walking backwards.
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
# Of the authors' inference.py, and of diffusers' examples for every version.
LTX_NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"
P480, P720 = 832 * 480, 1280 * 720

WAN: dict[str, Any] = {
    "fps": 16,
    "frames_per_latent": 4,
    "pixels_per_latent": 8,
    "latent_channels": 16,
    "size_multiple": 16,
    "min_size": (256, 256),
    "seconds": 4.5,
    "max_latents": 21,  # 81 frames
    "decoded_at_once": 1,
    "overlap": 1,
    "text_length": 512,
    "negative": WAN_NEGATIVE,
    "levels": "shifted",
    "further": ("ftfy",),  # which cleans its prompts
    "vae_dtype": "float32",
}
WAN_2_1: dict[str, Any] = {**WAN, "steps": 50, "guidance": 5.0, "shifts": ((P480, 3.0), (P720, 5.0))}
LTX: dict[str, Any] = {
    "fps": 24,
    "frames_per_latent": 8,
    "pixels_per_latent": 32,
    "latent_channels": 128,
    "size": (704, 480),
    "size_multiple": 32,
    "min_size": (256, 256),
    "max_size": (1280, 1280),
    "seconds": 4.0,
    "max_latents": 33,  # 257 frames
    "decoded_at_once": 1,
    "overlap": 1,
    "text_length": 128,
    "negative": LTX_NEGATIVE,
}

# That of 0.9.5 and later.
LATER_LTX_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 1024, 2048),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "decoder_block_out_channels": (256, 512, 1024),
    "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5,) * 4,
    "spatio_temporal_scaling": (True,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2,) * 3,
    "timestep_conditioning": True,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}

# The revisions are those that others have pinned in public: Wan 2.2's mlcommons/inference
# (text_to_video), that of LTX 0.9.7 pytorch/pytorch (benchmarks/diffusion), Mochi's pixelrhino-ai/vrhino,
# that of Wan 2.1 14B ai-decentralized/Difflet; the other two stand alike in the sources of many projects.
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
            pixels_per_latent=16,
            latent_channels=32,
            size=(192, 128),
            size_multiple=32,
            # It was trained at one size; others would be legal tensors and poor pictures.
            min_size=(192, 128),
            max_size=(192, 128),
            seconds=2.0,
            max_latents=14,
            decoded_at_once=14,
            overlap=2,
            text_length=80,
            steps=16,  # 24 give the same pictures to the eye
            guidance=3.0,
            dtype="float32",
            vae_dtype="float32",
            even_steps=True,
            weighting=False,  # measured: it costs right actions (mini/README.md)
            emphasis=2.0,
            decides=(0.65, 1.0),
            upscale=4,
            seconds_per_forward=0.23,
            memory_mb=600,
            measured_on="two CPU cores",
            judge="storyreel.mini.verdicts:judge_film",
            strangeness="storyreel.mini.verdicts:strangeness",
            vocabulary=MINI_WEIGHTS.parent / "vocabulary.json",
            gallery="storyreel.mini.gallery:gallery_page",
        ),
        ModelSpec(
            name="mochi",
            title="Mochi 1 preview, 10 B",
            adapter="storyreel.models.mochi:MochiAdapter",
            hub="genmo/mochi-1-preview",
            revision="14be5fcea23095ed330cb214647916a451e38b6e",
            variant="bf16",
            memory_gb={"high": 36.7, "balanced": 27.2, "low": 7.1},
            needs=Needs(
                experts=1,
                encoders=9.525,
                vae=0.919,
                matrix=0.263,
                by_storage={"none": (20.055, 1.028), "fp8": (10.134, 0.613)},
                denoising=(0.0014, 0.7524),
                decoding=(0.0016, 15.2434, 0.0005),
            ),
            licence="Apache-2.0",
            fps=30,
            frames_per_latent=6,
            pixels_per_latent=8,
            latent_channels=12,
            size=(848, 480),
            size_multiple=16,
            min_size=(256, 256),
            max_size=(848, 848),
            seconds=2.0,
            max_latents=28,  # 163 frames
            decoded_at_once=1,
            overlap=1,  # costs nothing: every segment has a first latent frame of its own
            text_length=256,
            steps=64,
            guidance=4.5,
            levels="linear-quadratic",
        ),
        ModelSpec(
            name="wan-1.3b",
            title="Wan 2.1, 1.3 B",
            adapter="storyreel.models.wan:WanAdapter",
            first_alike=False,  # of it, other layers make the code (0.6 to 0.95 apart on a still)
            hub="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            revision="0fad780a534b6463e45facd96134c9f345acfa5b",
            memory_gb={"high": 18.7, "balanced": 11.4, "low": 4.5},
            needs=Needs(
                experts=1,
                encoders=11.362,
                vae=0.508,
                matrix=2.1,
                by_storage={"none": (2.844, 0.243), "fp8": (1.454, 0.15)},
                denoising=(0.0117, 0.3805),
                decoding=(0.1398, 8.7768, 0.0405),
            ),
            licence="Apache-2.0",
            size=(832, 480),
            max_size=(832, 832),
            architecture={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
            **WAN_2_1,
        ),
        ModelSpec(
            name="wan-14b",
            title="Wan 2.1, 14 B",
            adapter="storyreel.models.wan:WanAdapter",
            first_alike=False,  # of it, other layers make the code (0.6 to 0.95 apart on a still)
            hub="Wan-AI/Wan2.1-T2V-14B-Diffusers",
            revision="38ec498cb3208fb688890f8cc7e94ede2cbd7f68",
            memory_gb={"high": 47.6, "balanced": 35.7, "low": 9.0},
            needs=Needs(
                experts=1,
                encoders=11.362,
                vae=0.508,
                matrix=2.1,
                by_storage={"none": (28.635, 1.926), "fp8": (14.589, 1.224)},
                denoising=(0.0193, 0.8845),
                decoding=(0.1387, 9.0738, 0.0265),
            ),
            licence="Apache-2.0",
            size=(832, 480),
            max_size=(1280, 1280),
            **WAN_2_1,
        ),
        ModelSpec(
            name="wan-2.2-a14b",
            title="Wan 2.2, two experts of 14 B",
            adapter="storyreel.models.wan:WanAdapter",
            first_alike=False,  # of it, other layers make the code (0.6 to 0.95 apart on a still)
            hub="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
            revision="5be7df9619b54f4e2667b2755bc6a756675b5cd7",
            memory_gb={"high": 76.2, "balanced": 64.4, "low": 9.0},
            needs=Needs(
                experts=2,
                encoders=11.362,
                vae=0.508,
                matrix=2.1,
                by_storage={"none": (28.635, 1.926), "fp8": (14.589, 1.224)},
                denoising=(0.0193, 0.8845),
                decoding=(0.1387, 9.0738, 0.0265),
            ),
            licence="Apache-2.0",
            size=(832, 480),
            max_size=(1280, 1280),
            steps=40,
            guidance=4.0,
            guidance_2=3.0,
            shifts=((P720, 12.0),),  # at both of its sizes
            boundary_ratio=0.875,
            **WAN,
        ),
        ModelSpec(
            name="ltx-2b",
            title="LTX-Video 0.9, 2 B",
            adapter="storyreel.models.ltx:LTXAdapter",
            hub="Lightricks/LTX-Video",
            revision="8984fa25007f376c1a299016d0957a37a2f797bb",
            memory_gb={"high": 14.8, "balanced": 9.5, "low": 1.4},
            needs=Needs(
                experts=1,
                encoders=9.525,
                vae=0.838,
                matrix=0.263,
                by_storage={"none": (3.847, 0.355), "fp8": (1.969, 0.221)},
                denoising=(0.0009, 0.1287),
                decoding=(0.0, 1.6355, 0.0036),
            ),
            licence="LTX-Video Open Weights License",
            steps=50,
            guidance=3.0,
            levels="by tokens",
            **LTX,
        ),
        ModelSpec(
            name="ltx-13b",
            title="LTX-Video 0.9.7, 13 B",
            adapter="storyreel.models.ltx:LaterLTXAdapter",
            hub="Lightricks/LTX-Video-0.9.7-dev",
            revision="2101082f5eb5540770a2df43747feadb6f69b889",
            architecture={"attention_head_dim": 128, "num_layers": 48, "cross_attention_dim": 4096},
            vae_architecture=LATER_LTX_VAE,
            memory_gb={"high": 39.2, "balanced": 29.2, "low": 3.2},
            needs=Needs(
                experts=1,
                encoders=9.525,
                vae=2.494,
                matrix=0.263,
                by_storage={"none": (26.085, 1.38), "fp8": (13.205, 0.844)},
                denoising=(0.0013, 0.2248),
                decoding=(0.0001, 1.8865, 0.0049),
            ),
            licence="LTX-Video Open Weights License",
            steps=30,
            guidance=5.0,
            guidance_rescale=0.7,
            levels="linear-quadratic",
            **{**LTX, "text_length": 256},
        ),
    )
}


def find_model(name: str) -> ModelSpec:
    """Return a model's facts, with the folder where its weights are or will be. Raises UsageError."""
    spec = known_model(name)
    if spec is None:
        known = ", ".join(model_names())
        raise UsageError(f"unknown model {name!r}", f"Known models: {known}. See: storyreel models")
    return replace(spec, weights=pulled_folder(spec.hub)) if spec.hub else spec


def model_names() -> tuple[str, ...]:
    """Return the names of all models, plugins' last. Raises UsageError if two have one name."""
    return (*MODELS, *plugins.offered("models", MODELS))


def known_model(name: str) -> ModelSpec | None:
    """Return the table's facts of a model, or a plugin's; None if there is none of that name.

    Raises UsageError or MissingError for a plugin that is no model.
    """
    plugged = plugins.offered("models", MODELS)
    if name not in plugged:
        return MODELS.get(name)
    spec = plugged[name].load()
    if not isinstance(spec, ModelSpec) or spec.name != name:
        words = f"{plugged[name].words} ({plugged[name].place}) is not a ModelSpec of that name"
        raise UsageError(words, "storyreel/models/README.md says what a model of your own is.")
    return spec


def hub_cache() -> Path:
    """Return the folder in which huggingface_hub keeps what it fetches, by its own variables."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{caches}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def pulled_folder(hub: str) -> Path:
    """Return the snapshot of a repository that `storyreel pull` holds to, whether it is there or not."""
    repository = hub_cache() / f"models--{hub.replace('/', '--')}"
    try:
        revision = (repository / "refs" / PULLED).read_text(errors="replace").strip()
    except OSError:
        revision = ""
    is_commit = re.fullmatch("[0-9a-f]{40}", revision)  # anything else is not ours
    return repository / "snapshots" / (revision if is_commit else "not pulled")
