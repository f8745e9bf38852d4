"""The main job with the embedded model itself, short of steps to be quick."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from diffusers import MochiPipeline

from storyreel import __version__
from storyreel.cli.app import run
from storyreel.denoise.loop import sample, segment_noise
from storyreel.models.checksums import CHECKSUMS
from storyreel.models.loading import load_adapter
from storyreel.models.specs import MINI_WEIGHTS, MODELS
from storyreel.story.schema import load_story
from tests.conftest import ROOT, plan_of
from tests.tiny import CPU

NYC = ROOT / "stories" / "nyc.yaml"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The NYC film, 12 scenes of half a second in one step."""
    path = tmp_path_factory.mktemp("out")
    assert run(["render", str(NYC), "--out", str(path), "--steps", "1", "--seconds", "0.5"]) == 0
    return path / "nyc"


def test_the_film_by_an_independent_reader(out: Path) -> None:
    data = (out / "nyc.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    story = load_story(NYC)
    with av.open(str(out / "nyc.mp4")) as film:
        video = film.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert video.codec_context.height >= 480
        assert video.average_rate == 12
        assert film.streams.subtitles[0].codec_context.name == "mov_text"
        chapters = film.chapters()
        assert [c["metadata"]["title"] for c in chapters] == [story.filled(s.scene) for s in story.scenes]
        times = [f.time for f in film.decode(video=0)]
        assert film.metadata["storyreel_model"] == "mini"
        assert film.metadata["storyreel_version"] == __version__
    assert times == pytest.approx([i / 12 for i in range(12 * 6)])


def test_a_second_run_is_the_same_film_and_loads_nothing(out: Path) -> None:
    before = (out / "nyc.mp4").read_bytes()
    command = ["render", str(NYC), "--out", str(out.parent), "--steps", "1", "--seconds", "0.5"]
    assert run(command) == 0
    assert (out / "nyc.mp4").read_bytes() == before
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert events[-1]["rendered"] == 0


def test_the_weights_are_small_and_of_safe_kinds() -> None:
    files = [p for p in MINI_WEIGHTS.rglob("*") if p.is_file() and p.name != CHECKSUMS]
    assert {p.suffix for p in files} == {".safetensors", ".json"}
    assert sum(p.stat().st_size for p in files) <= 25e6


@torch.inference_mode()
def test_the_weights_are_a_pipeline_of_diffusers() -> None:
    """`MochiPipeline` loads the folder and gives our latents of Euler steps: same text, schedule and loop."""
    pipeline = MochiPipeline.from_pretrained(MINI_WEIGHTS, low_cpu_mem_usage=False).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    adapter = load_adapter(replace(MODELS["mini"], renoises=False), CPU)
    pair = '["a corgi dog in Central Park", "a corgi dog is sitting"]'
    without_all = frozenset({"all"})
    plan = plan_of(f"render: {{steps: 4, seconds: 1}}\nscenes:\n  - {pair}\n", without=without_all)
    segment = plan.segments[0]
    ours = sample(adapter, plan, segment, adapter.encode(segment.prompt))

    sigmas = adapter.sigmas(4, ())

    def same_schedule(*args: object, **kwargs: object) -> list[float]:
        return sigmas[:-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.pipelines.mochi.pipeline_mochi.linear_quadratic_schedule", same_schedule)
        theirs = pipeline(
            prompt=segment.prompt,
            negative_prompt="",
            latents=segment_noise(plan, segment),
            height=64,  # of what it has latents for: it knows only codecs with eight pixels a latent
            width=96,
            num_frames=6 * (ours.shape[2] - 1) + 1,
            num_inference_steps=4,
            guidance_scale=plan.settings.guidance,
            max_sequence_length=MODELS["mini"].text_length,
            output_type="latent",
        ).frames
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5
