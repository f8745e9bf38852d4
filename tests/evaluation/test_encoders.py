"""The metrics' models: tiny real ones saved to disk, against what transformers itself says of them."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertTokenizerFast,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    BlipImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

from storyreel.errors import DamagedError
from storyreel.evaluation.encoders import STEP, WINDOW, Encoders, normalised
from storyreel.evaluation.frames import SHOT_SIZE, Shots
from storyreel.evaluation.metrics import METRICS
from storyreel.evaluation.picture_measures import AlexNetFeatures
from storyreel.evaluation.weights import ALEXNET, BLIP, CLIP, DINO, DINO1, JUDGE, LITE, OWN, SHOTS, WEIGHTS
from storyreel.models.specs import MINI_WEIGHTS

CPU = torch.device("cpu")
# As the processor of facebook/dinov2-base is stated.
PREPARED = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def encoders(tmp_path: Path) -> Encoders:
    """A folder with tiny models by their names."""
    torch.manual_seed(0)
    (tmp_path / CLIP).symlink_to(MINI_WEIGHTS / "scorer")
    Dinov2Model(Dinov2Config(**SMALL, image_size=224, patch_size=56)).save_pretrained(tmp_path / DINO)
    (tmp_path / DINO / "preprocessor_config.json").write_text(json.dumps(PREPARED))
    vit = ViTModel(ViTConfig(**SMALL, image_size=224, patch_size=56), add_pooling_layer=False)
    vit.save_pretrained(tmp_path / DINO1)
    features = AlexNetFeatures().features.state_dict()
    (tmp_path / ALEXNET).mkdir()
    save_file(
        {f"features.{key}": value for key, value in features.items()},
        tmp_path / ALEXNET / "model.safetensors",
    )
    return Encoders(CPU, tmp_path)


@torch.inference_mode()
def test_clip_scores_are_transformers_own_logits(encoders: Encoders) -> None:
    folder = encoders.folder(CLIP)
    assert folder is not None
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(folder)(["a fox", "a dog runs"], padding=True, return_tensors="pt")
    side = model.config.vision_config.image_size
    square = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours = encoders.get(CLIP)
    found = ours.embed_pictures(square) @ ours.embed_texts(["a fox", "a dog runs"]).T
    theirs = model(**tokens, pixel_values=square).logits_per_image / model.logit_scale.exp()
    assert torch.allclose(found, theirs, atol=1e-5)
    assert found.std() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize(("name", "kind"), [(DINO, Dinov2Model), (DINO1, ViTModel)])
def test_class_tokens_are_transformers_own(encoders: Encoders, name: str, kind: Any) -> None:
    folder = encoders.folder(name)
    options = {"add_pooling_layer": False} if kind is ViTModel else {}
    model = kind.from_pretrained(folder, **options)
    token = model(pixel_values=normalised(pictures())).last_hidden_state[:, 0]
    found = encoders.get(name).embed_pictures(pictures())
    assert torch.allclose(found, token / token.norm(dim=1, keepdim=True), atol=1e-5)
    same = encoders.get(name).embed_pictures(pictures(1).expand(2, -1, -1, -1))
    assert float(same[0] @ same[1]) == pytest.approx(1, abs=1e-5)


@torch.inference_mode()
def test_pictures_of_shots_are_prepared_as_the_benchmark_does(encoders: Encoders) -> None:
    """EntityBench: the processor that lies there, one picture each; the edges of a wide one are cut off."""
    folder = encoders.folder(DINO)
    assert folder is not None
    frames = torch.randint(0, 256, (2, 50, 120, 3), generator=torch.Generator().manual_seed(0))
    frames = frames.to(torch.uint8)
    found = encoders.get(DINO).embed_prepared(frames)
    model, processor = Dinov2Model.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    for vector, frame in zip(found, frames, strict=True):
        inputs = processor(images=Image.fromarray(frame.numpy()), return_tensors="pt")
        token = model(**inputs).last_hidden_state[:, 0]
        assert torch.allclose(vector, (token / token.norm(dim=-1, keepdim=True))[0], atol=1e-5)
    edges = frames.clone()
    edges[:, :, :30] = 0  # squeezing keeps them
    assert torch.allclose(encoders.get(DINO).embed_prepared(edges), found, atol=1e-6)
    whole, without = (
        encoders.get(DINO).embed_pictures(f.permute(0, 3, 1, 2) / 127.5 - 1) for f in (frames, edges)
    )
    assert not torch.allclose(whole, without, atol=1e-3)


def test_a_dino_without_its_processor_is_refused(encoders: Encoders) -> None:
    folder = encoders.folder(DINO)
    assert folder is not None
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(DamagedError, match="dinov2-base cannot be read"):
        encoders.get(DINO)


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """What transformers says by itself."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    library = logging.getLogger("transformers")
    library.addHandler(handler)
    yield said
    library.removeHandler(handler)


@torch.inference_mode()
def test_long_prompts_are_cut_counted_and_no_library_speaks(encoders: Encoders, warned: list[str]) -> None:
    clip = encoders.get(CLIP)
    long, short = "a fox walks " * 100, "a fox walks"
    assert clip.cut([long, short]) == 1
    assert clip.longest == clip.model.config.text_config.max_position_embeddings
    assert torch.allclose(clip.embed_texts([long]), clip.embed_texts(["a fox walks " * 50]), atol=1e-5)
    assert warned == []


@torch.inference_mode()
def test_blip_in_its_three_readings(tmp_path: Path, warned: list[str]) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fox", "runs", "<image>"])
    )
    config = Blip2Config(
        vision_config={**SMALL, "image_size": 28, "patch_size": 14},
        qformer_config={**SMALL, "encoder_hidden_size": 16, "vocab_size": 9, "use_qformer_text_input": True},
        text_config={"model_type": "opt", "vocab_size": 9, "hidden_size": 16, "ffn_dim": 16}
        | {"num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 16},
        image_text_hidden_size=8,
        num_query_tokens=4,
        image_token_index=8,
    )
    torch.manual_seed(0)
    model = Blip2ForImageTextRetrieval(config).eval()
    folder = tmp_path / BLIP
    model.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    tokenizer = BertTokenizerFast(vocab_file=str(vocabulary))
    Blip2Processor(BlipImageProcessor(size=size), tokenizer, num_query_tokens=4).save_pretrained(folder)
    found = Encoders(CPU, tmp_path).get(BLIP).match(pictures(), "a fox runs")
    assert {name: len(values) for name, values in found.items()} == {"itm": 3, "itm_double": 3, "itc": 3}

    processor = Blip2Processor.from_pretrained(folder)
    images = [((p + 1) * 127.5).round().to(torch.uint8) for p in pictures()]
    inputs = processor(images=images, text=["a fox runs"] * 3, return_tensors="pt")
    logits = model(**inputs, use_image_text_matching_head=True).logits_per_image
    contrast = model(**inputs, use_image_text_matching_head=False).logits_per_image
    assert torch.allclose(found["itm"], logits.softmax(1)[:, 1], atol=1e-5)
    assert torch.allclose(found["itm_double"], logits.softmax(1).softmax(1)[:, 1], atol=1e-5)
    assert torch.allclose(found["itc"], contrast[:, 0], atol=1e-5)

    blip, long = Encoders(CPU, tmp_path).get(BLIP), "a fox runs " * 400
    assert blip.longest == 512
    assert blip.cut([long, "a fox runs"]) == 1
    for name, values in blip.match(pictures(), long).items():
        assert torch.allclose(values, blip.match(pictures(), "a fox runs " * 200)[name], atol=1e-5)
    assert warned == []


@torch.inference_mode()
def test_lpips_of_a_checkpoint(encoders: Encoders) -> None:
    distance = encoders.get(ALEXNET)
    a, b = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in (0, 1))
    assert distance.between(a, a).abs().max() == 0
    assert (distance.between(a, b) > 0).all()


@pytest.mark.parametrize("name", [DINO, DINO1, ALEXNET])
def test_a_checkpoint_with_missing_keys_is_refused(encoders: Encoders, name: str) -> None:
    folder = encoders.folder(name)
    assert folder is not None
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(DamagedError):
        encoders.get(name)


def test_weights_are_told_by_name_and_hash(encoders: Encoders) -> None:
    about = encoders.about(DINO)
    assert about["model"] == "facebook/dinov2-base"
    assert about["revision"] is None  # a folder of the user's
    assert len(about["files"]["model.safetensors"]) == 64
    assert encoders.folder(BLIP) is None


def test_every_metric_names_weights_that_are_known() -> None:
    assert {metric.needs for metric in METRICS.values()} - {None, OWN, JUDGE} == set(WEIGHTS)


def global_state() -> tuple[object, ...]:
    numbers = np.random.get_state(legacy=False)
    strict = torch.are_deterministic_algorithms_enabled()
    return strict, random.getstate(), str(numbers), torch.get_rng_state().tolist()


@pytest.mark.extras
@torch.inference_mode()
@pytest.mark.parametrize("length", [51, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 50, 130))])
def test_shot_scores_are_the_packages_own(length: int) -> None:
    before = global_state()
    detector = Encoders(CPU).get(SHOTS)
    assert global_state() == before  # its constructor sets all of it
    film = torch.randint(0, 256, (length, *SHOT_SIZE, 3), generator=torch.Generator().manual_seed(0))
    film = film.to(torch.uint8)
    shots = Shots(detector)
    for chunk in film.split(37):
        shots.see(chunk)
    shots.finish()
    theirs, _ = detector._model.predict_frames(film, quiet=True)
    assert len(shots.scores) == length
    assert torch.allclose(torch.tensor(shots.scores), theirs, atol=1e-5)
    assert (WINDOW, STEP) == (100, 50)


@pytest.mark.extras
@torch.inference_mode()
def test_features_know_a_picture_again() -> None:
    lite = Encoders(CPU).get(LITE)
    ramp = torch.linspace(-1, 1, 96).expand(1, 3, 64, 96)
    noise = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    a, same, other = lite.embed_pictures(torch.cat([ramp, ramp, noise]))
    assert float(a @ same) == pytest.approx(1, abs=1e-5)
    assert float(a @ other) < 0.9
