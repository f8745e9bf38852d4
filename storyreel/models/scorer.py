"""How well pictures show what a prompt says: CLIP, from a local folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from storyreel.models.loading import load_component, read_component


class Scorer:
    """A text-image encoder; scores are cosines between -1 and 1.

    Pictures are squeezed to the encoder's square instead of cropped, so that what stands at
    an edge counts too (a deviation from CLIP's own preprocessing).
    """

    def __init__(
        self, model: CLIPModel, tokenizer: AutoTokenizer, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.model = model.eval()
        self._tokenizer = tokenizer
        device = model.device
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Scorer:
        """Load from a folder as transformers saves it. Raises MissingError or DamagedError."""
        model = load_component(partial(CLIPModel.from_pretrained, dtype=torch.float32), folder, CLIPModel)
        tokenizer = read_component(partial(AutoTokenizer.from_pretrained, local_files_only=True), folder)
        config = read_component(_preprocessing, folder)
        scorer = read_component(
            lambda _: cls(model.to(device), tokenizer, config["image_mean"], config["image_std"]), folder
        )
        with torch.inference_mode():  # what can be read and is of no use is said now
            read_component(lambda _: scorer.embed_texts(["", "a longer text"]), folder)
        return scorer

    @property
    def longest(self) -> int:
        """How many tokens of a text it reads."""
        return int(self.model.config.text_config.max_position_embeddings)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors (P, D); what exceeds the encoder's length is cut, as with CLIP."""
        tokens = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.model.device)
        pooled = self.model.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=-1)

    def cut(self, prompts: Sequence[str]) -> int:
        """Return how many prompts exceed the encoder's length."""
        # Not verbose, or the tokenizer warns that the model would fail.
        tokens = self._tokenizer(list(prompts), verbose=False).input_ids
        return sum(len(ids) > self.longest for ids in tokens)

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return unit vectors (N, D) of pictures (N, 3, H, W) in [-1, 1]."""
        side = self.model.config.vision_config.image_size
        resized = F.interpolate(
            pictures.float(), (side, side), mode="bicubic", align_corners=False, antialias=True
        )
        pixels = ((resized.clamp(-1, 1) + 1) / 2 - self._mean) / self._std
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1)


def _preprocessing(folder: Path) -> dict[str, list[float]]:
    config: dict[str, list[float]] = json.loads((folder / "preprocessor_config.json").read_text())
    return {key: config[key] for key in ("image_mean", "image_std")}
