"""A new model is one file and one table entry: `cogvideox.py` beside this file has both, and works."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from storyreel import rendering
from storyreel.benchmark import stock
from storyreel.benchmark.calculate import META, calculate, memory_needed
from storyreel.benchmark.run import stock_latents
from storyreel.benchmark.stock import stock_of
from storyreel.errors import MissingError, UsageError
from storyreel.mini.nets import build_tokenizer
from storyreel.models.base import Text, side_by_side
from storyreel.models.inventory import check_inventory, needed
from storyreel.models.loading import load_adapter
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.rendering import Engine, render
from storyreel.story.planning import Overrides
from tests.conftest import SAYS, Silent, encode_nothing, plan_of
from tests.denoise.test_loop import film
from tests.models.cogvideox import COGVIDEOX, CogVideoXAdapter, CogVideoXStock
from tests.tiny import CPU, TEXTS, velocities

STORY = """
render: {model: cogvideox-5b}
cast: {fox: {name: a fox}}
scenes:
  - ["{fox} in the park", "{fox} sleeps"]
  - ["{fox} in the park", a dog walks]
"""
SMALL = replace(
    COGVIDEOX,
    size=(32, 32),
    size_multiple=16,
    min_size=(16, 16),
    max_size=(64, 64),
    seconds=1.0,
    steps=4,
    text_length=32,
    latent_channels=4,
    dtype="float32",
    vae_dtype="float32",
    architecture={
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "time_embed_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "sample_width": 8,
        "sample_height": 8,
        "use_rotary_positional_embeddings": True,
    },
    vae_architecture={
        "latent_channels": 4,
        "block_out_channels": (8,) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A small one in a folder, as diffusers saves a pipeline."""
    made = CogVideoXAdapter.random(SMALL, CPU).parts
    for name, part in replace(made, tokenizers=[build_tokenizer(TEXTS)]).by_name().items():
        part.save_pretrained(tmp_path / "weights" / name)
    index = {name: ["a library", "a class"] for name in made.by_name()}
    (tmp_path / "weights" / "model_index.json").write_text(json.dumps(index))
    spec = replace(SMALL, weights=tmp_path / "weights")
    monkeypatch.setitem(MODELS, SMALL.name, spec)
    return spec


@pytest.fixture
def adapter(spec: ModelSpec) -> CogVideoXAdapter:
    adapter = load_adapter(spec, CPU)
    assert isinstance(adapter, CogVideoXAdapter)
    return adapter


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@torch.no_grad()
def test_the_loop_makes_what_its_pipeline_makes(
    adapter: CogVideoXAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """v-prediction by DDIM's steps, from the prompt's words to the last step, with a negative prompt."""
    with pytest.raises(UsageError, match="no pipeline to compare with"):
        stock_of(adapter)
    monkeypatch.setitem(stock.STOCK, CogVideoXAdapter, CogVideoXStock)
    plan = plan_of(STORY, without=frozenset({"all"}), negative="a dog sleeps")
    plan = replace(plan, segments=plan.segments[1:])
    (ours,) = film(adapter, plan)
    (theirs,) = stock_latents(adapter, plan)
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5


@torch.no_grad()
def test_weights_count_as_in_every_family(adapter: CogVideoXAdapter) -> None:
    x = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scene, action, negative = (adapter.encode(t) for t in ("a fox in the park", "a dog sleeps", ""))
    alone = velocities(adapter, x, 0.7, [negative, scene])
    both = velocities(adapter, x, 0.7, [negative, side_by_side((scene, action), (1, 0))])
    assert max(difference(b, a) for a, b in zip(alone, both, strict=True)) <= 1e-5
    twice, _ = scene.grouped((torch.arange(scene.weights.shape[1]) == 2).long())
    twice.weights[:, -1:] = 2
    written = torch.cat([scene.states[0], scene.states[0][:, 2:3]], 1)
    (found,) = velocities(adapter, x, 0.7, [twice])
    (expected,) = velocities(adapter, x, 0.7, [Text((written,), torch.ones(1, written.shape[1]))])
    assert difference(found, expected) <= 1e-5
    assert difference(found, alone[1]) > 1e-5


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_it_decodes_in_pieces_what_its_codec_decodes_at_once(adapter: CogVideoXAdapter, count: int) -> None:
    """Which makes other pictures of an even number of latent frames than of an odd one."""
    z = torch.randn(1, 4, count, 2, 2, generator=torch.Generator().manual_seed(0))
    pieces = list(adapter._decoded(adapter._raw(z)))
    assert max(piece.shape[2] for piece in pieces) <= 9
    odd = z if count % 2 else torch.cat([z, z[:, :, -1:]], 2)
    once = adapter.vae.decode(adapter._raw(odd), return_dict=False)[0][:, :, : 4 * (count - 1) + 1]
    assert difference(torch.cat(pieces, 2), once) <= 1e-5


def test_it_renders(spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_nothing(monkeypatch)
    monkeypatch.setattr(rendering, "keep_still", lambda *_: None)  # of files that are no videos
    plan = plan_of(STORY, method=("weighting=true", "emphasis=4"))
    check_inventory(spec)
    result = render(plan, "film", tmp_path / "out", Engine("cpu"), Silent())
    assert result.rendered == 2
    frames = result.film.read_bytes().partition(SAYS)[0]
    assert len(frames) == plan.frames * 32 * 32 * 3


def test_all_its_components_are_fetched_and_missed(spec: ModelSpec) -> None:
    files = [p.relative_to(spec.weights).as_posix() for p in spec.weights.rglob("*") if p.is_file()]
    assert set(needed(files, None, spec.components)) == set(files)
    (spec.weights / "tokenizer").rename(spec.weights / "elsewhere")
    with pytest.raises(MissingError, match="no tokenizer"):
        check_inventory(spec)
    with pytest.raises(MissingError, match="no tokenizer"):
        load_adapter(spec, CPU)


def test_its_memory_and_work_can_be_calculated(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    true = CogVideoXAdapter.random(replace(SMALL, architecture=COGVIDEOX.architecture), META)
    parameters = sum(p.numel() for p in true.experts[0].parameters())
    assert 5.4e9 < parameters < 5.7e9
    assert len(true.text_encoders[0].encoder.block) == 24
    found = memory_needed(CogVideoXAdapter.random(SMALL, META), plan_of(STORY))
    assert found["high"] > found["balanced"] > 0
    monkeypatch.setitem(stock.STOCK, CogVideoXAdapter, CogVideoXStock)
    pulled = replace(spec, hub="somebody/own", text_length=128)
    monkeypatch.setitem(MODELS, SMALL.name, pulled)
    report = calculate(pulled, Overrides(SMALL.name, steps=2), ["stock", "plain"])
    theirs, ours = report["variants"]
    assert 0 < ours["pflop"] <= theirs["pflop"]
