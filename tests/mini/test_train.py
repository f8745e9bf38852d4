"""Each part trains, goes on from its checkpoint, and ends in a folder that loads."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from storyreel.mini import train
from storyreel.mini.judge import ACTIONS, load_judge
from storyreel.mini.training import clips, judge, transformer
from storyreel.mini.training.loop import autocast
from storyreel.mini.world import Place
from storyreel.models.loading import load_adapter
from storyreel.models.scorer import Scorer
from storyreel.models.specs import MINI_WEIGHTS, MODELS
from tests.tiny import velocities


def run(monkeypatch: pytest.MonkeyPatch, part: str, out: Path, *options: str) -> None:
    small = ["--batch", "2", "--pool", "4", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["train", part, "--out", str(out), *small, *options])
    train.main()


@pytest.mark.slow  # eight trainings of a step
def test_training_resumes_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "LENGTHS", ((2, 1.0),))
    monkeypatch.setattr(clips, "BASIS_CLIPS", 12)
    monkeypatch.setattr(judge, "UNSEEN", 4)
    monkeypatch.setattr(transformer, "sample_films", lambda adapter: [torch.zeros(3, 4, 8, 8)])
    out = tmp_path / "run"
    for part in ("codec", "transformer", "scorer", "judge"):
        run(monkeypatch, part, out, "--steps", "1")
        first = torch.load(out / f"{part}.pt", weights_only=True)
        assert first["step"] == 1
        run(monkeypatch, part, out, "--steps", "2")
        second = torch.load(out / f"{part}.pt", weights_only=True)
        assert second["step"] == 2
        moments = second["optimiser" if part == "judge" else "adam"]["state"]
        counts = {float(m["step"]) for m in moments.values()}
        # The optimiser went on too; of the codec, the first step was of a quarter of the layers.
        assert counts == ({1.0, 2.0} if part == "codec" else {2.0})
    for part in ("codec", "transformer"):
        with Image.open(out / f"{part}.png") as sheet:
            assert sheet.width > 0
    target = tmp_path / "weights"
    run(monkeypatch, "export", out, "--to", str(target))
    adapter = load_adapter(replace(MODELS["mini"], weights=target), torch.device("cpu"))
    x = torch.zeros(1, 48, 2, 8, 12)
    (velocity,) = velocities(adapter, x, 0.5, [adapter.encode("a corgi dog is sitting")])
    assert velocity.shape == x.shape
    assert velocity.isfinite().all()
    scorer = Scorer.load(target / "scorer", torch.device("cpu"))
    assert scorer.embed_texts(["a corgi dog is sitting", ""]).shape == (2, 128)
    opinion = load_judge(tmp_path / "judge.safetensors").judge(torch.zeros(25, 64, 96, 3, dtype=torch.uint8))
    assert (len(opinion.places), len(opinion.actions)) == (len(Place), len(ACTIONS))


@pytest.mark.slow  # codec and transformer in full size
def test_training_goes_on_from_exported_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "LENGTHS", ((2, 1.0),))
    monkeypatch.setattr(transformer, "sample_films", lambda adapter: [torch.zeros(3, 4, 8, 8)])
    out, target = tmp_path / "run", tmp_path / "weights"
    run(monkeypatch, "import", out)
    bases = [stage.basis for stage in clips.fitted_stages(out)]
    run(monkeypatch, "export", out, "--to", str(target))
    for name in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        ours, shipped = (load_file(folder / f"{name}.safetensors") for folder in (target, MINI_WEIGHTS))
        assert all(torch.equal(ours[key], shipped[key]) for key in shipped)
    run(monkeypatch, "transformer", out, "--steps", "1", "--rate", "0")
    again = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    before = load_file(MINI_WEIGHTS / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.allclose(again[key], before[key].float(), atol=1e-6) for key in before)
    assert all(torch.equal(a, b.basis) for a, b in zip(bases, clips.fitted_stages(out), strict=True))


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_used_where_the_cpu_has_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with autocast(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if native else torch.float32)
