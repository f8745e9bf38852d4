from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from storyreel.errors import DamagedError, MissingError, PromptError
from storyreel.mini.nets import build_scheduler
from storyreel.mini.world import Action, Character, Place, draw_clip, stage_clip
from storyreel.models.base import Request, side_by_side, stacked
from storyreel.models.devices import pick_device
from storyreel.models.loading import load_adapter
from storyreel.models.mochi import MochiAdapter, token_counts
from storyreel.models.specs import MODELS, ModelSpec
from tests.tiny import CPU, TINY, mochi_transformer, velocities


@pytest.fixture
def saved(tiny: MochiAdapter, tmp_path: Path) -> ModelSpec:
    """The tiny model on disk, as a pipeline's folder."""
    for name, part in {**tiny.parts.by_name(), "scheduler": build_scheduler()}.items():
        part.save_pretrained(tmp_path / name)
    (tmp_path / "model_index.json").write_text("{}")
    return replace(TINY, weights=tmp_path)


def latents(frames: int = 5) -> torch.Tensor:
    return torch.randn(1, 12, frames, 4, 4, generator=torch.Generator().manual_seed(0))


def test_attention_equals_diffusers(tiny: MochiAdapter) -> None:
    """The batched processor gives what diffusers' loop over samples gives, padding and all."""
    stock = mochi_transformer()
    x = latents().expand(2, -1, -1, -1, -1)
    texts = [tiny.encode("a fox sleeps in the park"), tiny.encode("")]
    assert texts[0].weights.sum() != texts[1].weights.sum()
    states, weights = stacked(texts)
    with torch.no_grad():
        theirs = stock(
            hidden_states=x,
            encoder_hidden_states=states,
            encoder_attention_mask=weights.bool(),
            timestep=torch.tensor([300.0, 300.0]),
            return_dict=False,
        )[0]
        ours = velocities(tiny, x[:1], 0.7, texts)
    for a, b in zip(ours, theirs.split(1), strict=True):
        assert torch.allclose(-a, b, atol=2e-6 * float(b.abs().max()))


def test_more_weight_moves_towards_a_prompt(tiny: MochiAdapter) -> None:
    x = latents()
    scene, action = tiny.encode("a fox in the park"), tiny.encode("a dog sleeps")
    (goal,) = velocities(tiny, x, 0.7, [scene])
    distances = []
    for share in (0.05, 0.35, 0.65, 0.95):
        (now,) = velocities(tiny, x, 0.7, [side_by_side((scene, action), (share, 1 - share))])
        distances.append(float((now - goal).detach().norm()))
    assert distances == sorted(distances, reverse=True)


def test_a_token_counts_as_its_cell_that_counts_most() -> None:
    cells = torch.ones(1, 1, 2, 4, 6)
    cells[0, 0, 1, 3, 2] = 5.0
    counts = token_counts(cells, 4, 2)
    assert counts.shape == (4 * 2 * 3,)
    assert (counts != 1).nonzero().tolist() == [[6 + 3 + 1]]  # second frame, second row, second column
    assert counts.max() == 5


def test_cells_that_count_more_are_attended_to_more(tiny: MochiAdapter) -> None:
    x, text = latents(), tiny.encode("a fox in the park")
    counts = torch.ones(1, 1, 2, 4, 4)

    def predicted(counts: torch.Tensor | None) -> torch.Tensor:
        ((answer, other),) = tiny.predict([Request(x, 0.7, [text, tiny.encode("")], counts=counts)])
        assert not torch.equal(answer, other)
        return answer.detach()

    plain, once = predicted(None), predicted(counts)
    assert torch.allclose(plain, once, atol=2e-6 * float(plain.abs().max()))
    counts[0, 0, 0, :2, :2] = 3.0
    assert not torch.allclose(plain, predicted(counts), atol=1e-4 * float(plain.abs().max()))


def test_the_preview_is_a_linear_map_to_the_latents_middle_picture() -> None:
    """Fitted by least squares to the latents of the package's codec."""
    mini = load_adapter(MODELS["mini"], CPU)
    assert isinstance(mini, MochiAdapter)
    clip = stage_clip(Random(0), Place.CENTRAL_PARK, (Character.CORGI,), Action.SIT)
    images, _ = draw_clip(clip, 13, 12.0, 192, 128)
    z = mini.encode_pictures(torch.from_numpy(images))
    pictures = mini.preview(z)
    assert pictures is not None
    assert pictures.shape == (5, 3, 128, 192)
    true = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    error = (pictures[1:] - true[2::3]).square().mean()
    assert 10 * math.log10(4 / float(error)) > 18  # dB; enough to score by
    mixed = mini.preview((z + z.flip(2)) / 2)
    assert mixed is not None
    assert torch.allclose(mixed, (pictures + pictures.flip(0)) / 2, atol=1e-4)


def test_a_prompt_that_is_too_long_is_refused(tiny: MochiAdapter) -> None:
    with pytest.raises(PromptError, match="the model reads 16"):
        tiny.encode("a fox sleeps in the park " * 20)


def test_weights_of_another_shape_are_refused(saved: ModelSpec) -> None:
    path = saved.weights / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_layers": 3}))
    with pytest.raises(DamagedError):
        load_adapter(saved, CPU)


def test_a_damaged_tokenizer_is_refused(saved: ModelSpec) -> None:
    (saved.weights / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(DamagedError, match="tokenizer"):
        load_adapter(saved, CPU)


def test_an_encoded_prompt_drags_no_graph_along(tiny: MochiAdapter) -> None:
    assert not tiny.encode("a fox").states[0].requires_grad


def test_missing_weights_and_devices_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="not here"):
        load_adapter(replace(TINY, weights=tmp_path / "nowhere"), CPU)
    assert pick_device("cpu") == CPU
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="CUDA"):
            pick_device("cuda")
        assert pick_device("auto") == CPU
