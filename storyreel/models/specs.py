"""The models that storyreel can use, as a table of facts. Reading it loads no torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from storyreel import origin, plugins
from storyreel.errors import UsageError
from storyreel.method.noise_levels import DISTILLED
from storyreel.models.lora import Experts, Lora
from storyreel.models.memory import GB, Needs

Levels = Literal["even", "linear-quadratic", "shifted", "by tokens", "distilled"]

PULLED = "storyreel"  # the ref, in a repository of huggingface_hub's cache, of the commit that is used
QUANTIZATIONS = ("none", "fp8")
# The folders of a pipeline that are read, where they are there.
COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "transformer_2", "vae")
MINI_WEIGHTS = Path(__file__).parent.parent / "mini" / "weights"
FREE = ("Apache-2.0", "MIT")  # licences that `storyreel pull` asks nobody to accept


@dataclass(frozen=True)
class Addition:
    """A file of low-rank changes that a variant's weights are made with, in a repository of its own.

    ``revision`` is the commit; ``weight`` and ``experts`` are those of `Lora`.
    """

    hub: str
    file: str
    revision: str | None
    weight: float = 1.0
    experts: Experts = "all"

    @property
    def lora(self) -> Lora:
        """The file where `storyreel pull` keeps it, whether it is there or not."""
        return Lora(pulled_folder(self.hub) / self.file, self.weight, self.experts)


@dataclass(frozen=True)
class SoundSpec:
    """The sound that a model makes with its pictures.

    Latents of ``channels`` in ``bands`` are denoised beside those of the pictures, ``latents_per_second`` of
    the clip, and decoded to ``rate`` samples a second in two channels.
    """

    latents_per_second: float = 25.0
    channels: int = 8
    bands: int = 16
    rate: int = 48_000


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
    the end of a clip can stand at the beginning of another. ``pictures`` says whether a clip can begin with a
    picture that is given: the model is told a noise level for each token then.

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
    its pictures beside those of all models. ``weighting``, ``emphasis``, ``portraits`` and
    ``identity_weight`` are the defaults of the method's settings of these names, the last None where
    attention cannot weigh cells; ``decides`` are the noise levels (low, high) between which the model
    decides what is being done. ``upscale`` enlarges the picture in the film.

    ``seconds_per_forward`` (one model evaluation with guidance at the default size and length, on
    ``measured_on``) and ``memory_mb`` (peak of the process) serve the estimates of a dry run; None
    where nobody has measured them yet. ``memory_gb`` is what a GPU must have free in each memory mode, at
    the default size and length: calculated (`storyreel bench --calculate`), so a little more is needed.
    ``needs`` are straight lines through the same at other sizes and lengths, and what the machine itself
    must have (`storyreel bench --calculate --fit` prints them).

    ``sound`` is what a model makes beside its pictures that does make sound.

    ``judge`` is "module:function", like ``adapter``: what says whether a film shows what its story
    tells, for a model whose world has a known truth (`mini.verdicts.judge_film`). ``strangeness`` says
    whether anybody can tell what some pictures show (`mini.verdicts.strangeness`): where not, nobody is found
    in them. Both are for measuring alone. ``vocabulary`` is a file of all that such a model can draw, and
    ``gallery`` "module:function": what makes a page with pictures of that (`mini.gallery.gallery_page`).

    ``loras`` are merged into its transformers always. ``authors_names`` are parts of the names that diffusers
    has given its layers, each with what its authors wrote there, in the order in which they are replaced: in
    files of LoRAs layers may have either name.
    ``territory`` says where the licence gives no rights, "" where it names no such place.

    A variant is named MODEL:VARIANT. ``added`` are files that its weights are made with beside the folder,
    which `find_model` puts into ``loras``. ``sigmas`` are the noise levels at which weights for few steps
    were trained, from 1 down, without the 0 at the end: there are exactly these steps. ``renoises`` says
    whether a model is shown each estimate with fresh noise, instead of what an Euler step makes of it:
    weights that were trained so, and a model whose errors that corrects. ``unread`` are parts of names: such
    weights of its transformer are left out.
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
    portraits: Literal["shots", "scenes"] = "shots"
    identity_weight: float | None = None
    decides: tuple[float, float] = (0.0, 0.0)
    first_alike: bool = True
    pictures: bool = False
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
    sound: SoundSpec | None = None
    authors_names: tuple[tuple[str, str], ...] = ()
    territory: str = ""
    added: tuple[Addition, ...] = ()
    sigmas: tuple[float, ...] = ()
    renoises: bool = False
    unread: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The name of the model that it is a variant of; of a model, its own."""
        return self.name.partition(":")[0]

    @property
    def trained_levels(self) -> tuple[float, ...]:
        """The noise levels that weights for few steps were trained at, from 1 down; none of other weights."""
        return self.sigmas or (DISTILLED[:-1] if self.levels == "distilled" else ())

    @property
    def is_there(self) -> bool:
        """Whether its weights seem to be here."""
        return (self.weights / "transformer").is_dir() and all(one.lora.path.is_file() for one in self.added)

    @property
    def usual_latents(self) -> int:
        """The latent frames of a segment of the default length, with one of a lead."""
        return min(self.max_latents, round(self.seconds * self.fps / self.frames_per_latent) + 2)

    def frames_in(self, latents: int) -> int:
        """Return how many pictures so many latent frames of a clip's beginning are: the first is one."""
        return max(0, 1 + self.frames_per_latent * (latents - 1))

    def sound_latents(self, latents: int) -> int:
        """Return how many latents of sound go with so many latent frames of a clip's beginning."""
        if self.sound is None:
            return 0
        return round(self.frames_in(latents) / self.fps * self.sound.latents_per_second)

    @property
    def gpu_gb(self) -> dict[str, float]:
        """The GB that a GPU must have free in each memory mode at the default size and length, calculated."""
        if self.needs is None or self.quantize == "none":
            return dict(self.memory_gb)
        working = self.needs.working(self.size, self.usual_latents)
        needed = self.needs.weights(self.quantize).on_device(working)
        return {mode: round(size / GB, 1) for mode, size in needed.items()}

    @property
    def seconds_per_scene(self) -> float | None:
        """Rendering time of a scene of the default size and length on ``measured_on``; None if unmeasured."""
        if self.seconds_per_forward is None:
            return None
        return self.seconds_per_forward * self.steps * (1.0 if self.guidance > 1 else 0.5)

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

# What diffusers calls its layers, and what the authors' own code does: the tables of its converters of
# checkpoints (loaders/single_file_utils.py) the other way round.
WAN_NAMES = (
    ("attn1.to_out.0", "self_attn.o"),
    ("attn2.to_out.0", "cross_attn.o"),
    ("attn1.to_", "self_attn."),
    ("attn2.to_", "cross_attn."),
    ("attn1.", "self_attn."),
    ("attn2.", "cross_attn."),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    (".norm2", ".norm3"),
    (".scale_shift_table", ".modulation"),
    ("scale_shift_table", "head.modulation"),
    ("proj_out", "head.head"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
)
LTX_NAMES = (
    ("proj_in", "patchify_proj"),
    ("time_embed", "adaln_single"),
    ("norm_q", "q_norm"),
    ("norm_k", "k_norm"),
)
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
    "authors_names": WAN_NAMES,
}
WAN_2_1: dict[str, Any] = {**WAN, "steps": 50, "guidance": 5.0, "shifts": ((P480, 3.0), (P720, 5.0))}
# The codec of Wan 2.2's small model, without its mean and spread, which change no time and no memory.
WAN_2_2_VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": (0.0,) * 48,
    "latents_std": (1.0,) * 48,
}
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
    "authors_names": LTX_NAMES,
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

LTX_2_5: dict[str, Any] = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "rope_type": "split",
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
    "ff_bias": False,
    "use_keyframes_abs_pos_embedding": True,
}
LTX_2_5_VAE: dict[str, Any] = {
    "block_out_channels": (256, 512, 1024, 1024),
    "layers_per_block": (4, 6, 4, 2, 2),
    "decoder_block_out_channels": (256, 512, 512, 1024),
    "decoder_layers_per_block": (4, 6, 4, 2, 2),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
    "decoder_causal": False,
    "decoder_spatial_padding_mode": "zeros",
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}

# The revisions are those that others have pinned in public: Wan 2.2's mlcommons/inference
# (text_to_video), that of LTX 0.9.7 pytorch/pytorch (benchmarks/diffusion), Mochi's pixelrhino-ai/vrhino,
# that of Wan 2.1 14B ai-decentralized/Difflet; the others stand alike in the sources of many projects.
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
            overlap=1,  # 2 cost readable scenes: method/README.md
            text_length=80,
            steps=16,  # 24 give the same pictures to the eye
            guidance=1.5,  # with fresh noise: mini/README.md
            renoises=True,
            dtype="float32",
            vae_dtype="float32",
            even_steps=True,
            weighting=False,  # measured: it costs right actions (mini/README.md)
            emphasis=2.0,
            portraits="scenes",  # behind which it was taught the end of a shot
            identity_weight=1.0,  # more keeps coats, and places that it should not: method/README.md
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
            identity_weight=1.0,
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
        ModelSpec(
            name="wan-2.2-5b",
            title="Wan 2.2, 5 B",
            adapter="storyreel.models.wan:WanAdapter",
            first_alike=False,
            pictures=True,
            hub="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            revision="b8fff7315c768468a5333511427288870b2e9635",
            architecture={
                "num_attention_heads": 24,
                "in_channels": 48,
                "out_channels": 48,
                "ffn_dim": 14336,
                "num_layers": 30,
            },
            vae_architecture=WAN_2_2_VAE,
            memory_gb={"high": 31.7, "balanced": 20.4, "low": 10.4},
            needs=Needs(
                experts=1,
                encoders=11.362,
                vae=2.819,
                matrix=2.1,
                by_storage={"none": (10.022, 0.855), "fp8": (5.117, 0.528)},
                denoising=(0.0147, 0.2754),
                decoding=(0.1388, 8.2581, -0.0051),
            ),
            licence="Apache-2.0",
            **{
                **WAN_2_1,
                "fps": 24,
                "pixels_per_latent": 16,
                "latent_channels": 48,
                "size": (1280, 704),
                "size_multiple": 32,
                "max_size": (1280, 1280),
                "seconds": 4.5,
                "max_latents": 31,  # 121 frames
            },
        ),
        ModelSpec(
            name="ltx-2.5",
            title="LTX-2.5, 22 B, distilled, with sound",
            adapter="storyreel.models.ltx2:LTX2Adapter",
            hub="Lightricks/LTX-2.5-Diffusers",
            revision="426936f8b22dc28e4def61e515478b0b7e4a53cc",
            components=(*COMPONENTS, "connectors", "audio_vae", "vocoder"),
            architecture=LTX_2_5,
            vae_architecture=LTX_2_5_VAE,
            memory_gb={"high": 72.4, "balanced": 41.1, "low": 4.6},
            needs=Needs(
                experts=1,
                encoders=30.159,
                vae=2.073,
                matrix=2.013,
                by_storage={"none": (37.976, 2.402), "fp8": (19.435, 1.629)},
                denoising=(0.0608, 0.289),
                decoding=(0.0, 2.0845, -0.0003),
            ),
            licence="LTX-2.x Community License",
            steps=8,
            guidance=1.0,
            levels="distilled",
            sound=SoundSpec(),
            **{
                **LTX,
                "size": (960, 544),
                "max_latents": 31,  # 241 frames
                "overlap": 2,  # 9 pictures: from one alone, a sound cannot go on
                "text_length": 1024,
                "negative": "",
            },
        ),
        ModelSpec(
            name="hunyuan-1.5",
            title="HunyuanVideo 1.5, 8.3 B, for 480p",
            adapter="storyreel.models.hunyuan:HunyuanAdapter",
            first_alike=False,  # of it, other sums make the code (0.43 to 0.75 apart on a still)
            hub="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
            revision="286be7ce72277246578a3e3cc2487e95ddae5bcf",
            components=(*COMPONENTS, "text_encoder_2", "tokenizer_2"),
            memory_gb={"high": 37.9, "balanced": 23.3, "low": 6.7},
            needs=Needs(
                experts=1,
                encoders=14.58,
                vae=2.521,
                matrix=1.09,
                by_storage={"none": (16.653, 0.943), "fp8": (8.506, 0.642)},
                denoising=(0.0034, 0.3885),
                decoding=(0.0006, 9.8276, 0.0163),
            ),
            licence="Tencent Hunyuan Community License",
            territory="the EU, the UK and South Korea",
            fps=24,
            frames_per_latent=4,
            pixels_per_latent=16,
            latent_channels=32,
            size=(848, 480),
            size_multiple=16,
            min_size=(256, 256),
            max_size=(848, 848),
            seconds=4.0,
            max_latents=31,  # 121 frames
            decoded_at_once=1,
            overlap=1,
            text_length=1000,
            steps=50,
            guidance=6.0,
            shifts=((848 * 480, 5.0),),
            vae_dtype="float16",
            architecture={"task_type": "t2v"},
        ),
    )
}


# Weights for few steps, of the models above. Nothing is guided, so that a step is one evaluation of one text.
# README.md has the source of each level and of each way to go from one to the next. The commits are pinned in
# public: both FastWan's in hao-ai-lab/FastVideo itself, the others in projects that name them in their lists
# of downloads. LightX2V's levels are 5u / (1 + 4u) for u = 1, 3/4, 1/2 and 1/4. A variant of a model that is
# not in the table waits for it.
LIGHTX2V = (1.0, 0.9375, 0.8333333, 0.625)
FASTWAN: dict[str, Any] = {"sigmas": (1.0, 0.757, 0.522), "renoises": True, "licence": "Apache-2.0"}
WAN_2_2_DISTILLED = "lightx2v/Wan2.2-Distill-Loras", "570044187a5219776ef30a5c60c6f76428a3a10a"


def _wan_2_2_distilled(expert: Literal["high", "low"]) -> Addition:
    hub, revision = WAN_2_2_DISTILLED
    file = f"wan2.2_t2v_A14b_{expert}_noise_lora_rank64_lightx2v_4step_1217.safetensors"
    return Addition(hub, file, revision, experts=expert)


FEW_STEPS: dict[str, dict[str, Any]] = {
    "wan-1.3b:3-step": {
        "title": "FastWan 2.1, 1.3 B, for 3 steps",
        "hub": "FastVideo/FastWan2.1-T2V-1.3B-Diffusers",
        "revision": "25e7ed7f41fd8ce2fdd108688c65e8caf0ce3aef",
        "unread": (".to_gate_compress.",),  # of an attention that leaves out most keys; here all are there
        **FASTWAN,
    },
    "wan-14b:4-step": {
        "title": "Wan 2.1, 14 B, with LightX2V's LoRA for 4 steps",
        "added": (
            Addition(
                "lightx2v/Wan2.1-Distill-Loras",
                "wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors",
                "27ae38da91014b947dd39cc3fa78b97cd7b386dd",
            ),
        ),
        "sigmas": LIGHTX2V,
    },
    "wan-2.2-a14b:4-step": {
        "title": "Wan 2.2, two experts of 14 B, with LightX2V's LoRAs for 4 steps",
        "added": (_wan_2_2_distilled("high"), _wan_2_2_distilled("low")),
        "sigmas": LIGHTX2V,
    },
    "wan-2.2-5b:3-step": {
        "title": "FastWan 2.2, 5 B, for 3 steps",
        "hub": "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers",
        "revision": "3e187042a324f6f5fb68fd22110a78725253de8f",
        **FASTWAN,
    },
    "ltx-13b:distilled": {
        "title": "LTX-Video 0.9.7 distilled, 13 B, for 8 steps",
        "hub": "Lightricks/LTX-Video-0.9.7-distilled",
        "revision": "057509edea1493cae5e62e9d8f780ebda3fb4333",
        "sigmas": (1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219),
    },
}


def _variants(spec: ModelSpec) -> Iterator[ModelSpec]:
    """Yield a model's variants."""
    for name, facts in FEW_STEPS.items():
        if name.partition(":")[0] == spec.name:
            steps = len(facts["sigmas"])
            unguided: dict[str, Any] = {"guidance": 1.0, "guidance_2": None, "guidance_rescale": 0.0}
            yield replace(spec, name=name, steps=steps, shifts=(), **unguided, **facts)


MODELS = {one.name: one for spec in MODELS.values() for one in (spec, *_variants(spec))}


def find_model(name: str) -> ModelSpec:
    """Return a model's facts, with the files where its weights are or will be. Raises UsageError."""
    spec = known_model(name)
    if spec is None:
        known = ", ".join(model_names())
        raise UsageError(f"unknown model {name!r}", f"Known models: {known}. See: storyreel models")
    spec = replace(spec, loras=tuple(one.lora for one in spec.added)) if spec.added else spec
    return replace(spec, weights=pulled_folder(spec.hub)) if spec.hub else spec


def model_names() -> tuple[str, ...]:
    """Return the names of all models, plugins' last. Raises UsageError if two have one name."""
    return (*MODELS, *plugins.offered("models", MODELS))


def known_model(name: str) -> ModelSpec | None:
    """Return the table's facts of a model, or a plugin's; None if there is none of that name.

    Raises UsageError or MissingError for a plugin that is no model.
    """
    plugged = plugins.offered("models", MODELS)
    return plugged_model(plugged[name]) if name in plugged else MODELS.get(name)


def plugged_model(plugin: plugins.Plugin) -> ModelSpec:
    """Return a plugin's model. Raises UsageError for what is none, MissingError for what does not load."""
    spec = plugin.load()
    if not isinstance(spec, ModelSpec) or spec.name != plugin.name:
        words = f"{plugin.words} ({plugin.place}) is not a ModelSpec of that name"
        raise UsageError(words, "storyreel/models/README.md says what a model of your own is.")
    return spec


def hub_cache() -> Path:
    """Return the folder in which huggingface_hub keeps what it fetches, by its own variables.

    Like that library, it takes ~ as it is where nobody has a home.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{caches}/huggingface"
    return Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or f"{home}/hub"))


def pulled_folder(hub: str) -> Path:
    """Return the snapshot of a repository that `storyreel pull` holds to, whether it is there or not."""
    repository = hub_cache() / f"models--{hub.replace('/', '--')}"
    try:
        revision = (repository / "refs" / PULLED).read_text(errors="replace").strip()
    except OSError:
        revision = ""
    is_commit = re.fullmatch("[0-9a-f]{40}", revision)  # anything else is not ours
    return repository / "snapshots" / (revision if is_commit else "not pulled")
