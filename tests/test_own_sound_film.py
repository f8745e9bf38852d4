"""Films of a model that makes sound: what is in the file, how long it is, and when it is heard."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from storyreel.film.mix import edges
from storyreel.film.verify import verify_folder
from storyreel.models.ltx2 import LTX2Adapter
from storyreel.models.specs import MODELS
from storyreel.rendering import Engine, Rendered, render
from storyreel.story.plan import Plan
from tests.conftest import Silent, plan_of
from tests.sounds import planned, tone
from tests.tiny import ltx_2

RATE = 48_000
STORY = """
scenes:
  - {scene: a fox in the park, action: a fox walks, seconds: 1}
  - {scene: a dog there, action: a dog sleeps, seconds: 2, transition: TRANSITION}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as its hub would lay it out."""
    where, adapter = tmp_path_factory.mktemp("ltx-2"), ltx_2()
    index: dict[str, Any] = {}
    for name, part in adapter.parts.by_name().items():
        part.save_pretrained(where / name)
        index[name] = ["diffusers", type(part).__name__]
    (where / "model_index.json").write_text(json.dumps(index))
    return where


@pytest.fixture
def story(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    spec = ltx_2().spec
    components = (*spec.components, "connectors", "audio_vae", "vocoder")
    spec = replace(spec, weights=folder, components=components, size=(32, 32), steps=2)
    monkeypatch.setitem(MODELS, spec.name, spec)

    def made(transition: str = "cut", **more: Any) -> Plan:
        return plan_of(STORY.replace("TRANSITION", transition), model=spec.name, **more)

    return made


def rendered(plan: Plan, out: Path) -> Rendered:
    return render(plan, "heard", out, Engine("cpu"), Silent())


def heard(path: Path) -> NDArray[np.float32]:
    """The samples of a file, fp32 (n, 2), as a player gives them out."""
    with av.open(str(path)) as film:
        to = av.AudioResampler(format="fltp", layout="stereo", rate=RATE)
        parts = [part.to_ndarray() for frame in film.decode(audio=0) for part in to.resample(frame)]
    return np.ascontiguousarray(np.concatenate(parts, 1).T)


def test_a_film_has_the_sound_that_its_model_has_made(story: Callable[..., Plan], tmp_path: Path) -> None:
    plan = story("continue")
    result = rendered(plan, tmp_path)
    assert plan.seams[0].overlap > 0
    with av.open(str(result.film)) as film:
        (pictures,), (sound,) = film.streams.video, film.streams.audio
        assert (sound.codec_context.name, sound.rate, sound.channels) == ("aac", RATE, 2)
        assert pictures.frames == plan.frames
        assert film.duration == round(plan.seconds * 1e6)
        assert sound.duration is not None
        assert sound.time_base is not None
        assert abs(float(sound.duration * sound.time_base) - plan.seconds) < 3 * 1024 / RATE
    found = heard(result.film)
    assert float(np.abs(found).max()) > 0.01
    for segment in plan.segments:
        assert float(found[round(segment.start * RATE / plan.spec.fps) :][:RATE].std()) > 1e-3
    for index, video in result.videos.items():
        frames = plan.segments[index].frames
        with av.open(str(video)) as segment_film:
            assert segment_film.streams.audio[0].codec_context.name == "flac"
        assert len(heard(video)) == round(frames * RATE / plan.spec.fps)
    before = result.film.read_bytes()
    again = rendered(plan, tmp_path)
    assert (again.rendered, result.film.read_bytes()) == (0, before)
    assert set(verify_folder(tmp_path / "heard").values()) == {""}
    assert not [path for path in tmp_path.rglob(".*") if ".part" in path.name]


def test_the_second_scene_is_heard_when_it_is_seen(
    story: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tones: where the higher one begins, to a hundredth of a second; a cut mixes nothing."""
    hertz = iter((1000, 6000))

    def decode(self: LTX2Adapter, latents: Tensor) -> Tensor:
        assert latents.shape[1:2] + latents.shape[3:] == (2, 1, 2)
        count = (4 * latents.shape[2] - 3) * 480
        return (
            torch.sin(torch.arange(count) * (2 * torch.pi * next(hertz) / RATE))[:, None].expand(-1, 2) * 0.3
        )

    monkeypatch.setattr(LTX2Adapter, "decode_sound", decode)
    plan = story("cut")
    found = heard(rendered(plan, tmp_path).film)[:, 0]
    blocks = found[: len(found) // 480 * 480].reshape(-1, 480)
    spectrum = np.abs(np.fft.rfft(blocks * np.hanning(480), axis=1))
    higher = spectrum[:, 60] > spectrum[:, 10]  # 6000 and 1000 Hz, in bands of 100
    seam = plan.segments[1].start / plan.spec.fps
    assert abs(int(higher.argmax()) / 100 - seam) <= 0.011
    assert higher[int(seam * 100) + 2 : -3].all()
    assert not higher[2 : int(seam * 100) - 1].any()


def test_the_shot_goes_on_in_its_sound_too(story: Callable[..., Plan], tmp_path: Path) -> None:
    """The latents in the second scene's lead are those that the first one ends with."""
    plan = story("continue")
    rendered(plan, tmp_path)
    first, second = sorted((tmp_path / "heard" / "segments").glob("0?-*.safetensors"))
    earlier, later = load_file(first), load_file(second)
    lead = json.loads(second.with_name(f"{second.name}.json").read_text())["decided"]["lead"]
    count = plan.spec.sound_latents(lead)
    assert count > 1
    assert torch.allclose(later["sound"][:, :, :count], earlier["sound"][:, :, -count:], atol=1e-5)
    assert torch.allclose(later["latents"][:, :, :lead], earlier["latents"][:, :, -lead:], atol=1e-5)


@pytest.mark.parametrize(
    ("transition", "go", "come"),
    [
        ("cut", (240, 0, False), (240, 0, False)),
        ("continue", (480, 480, True), (480, 480, True)),
        ("dissolve", (8000, 8000, True), (8000, 8000, True)),  # a sixth of a second: two frames of 12
        ("fade", (20_000, 0, False), (20_000, 0, False)),
    ],
)
def test_sound_changes_as_pictures_do(
    transition: str, go: object, come: object, story: Callable[..., Plan]
) -> None:
    plan = story(transition)
    assert edges(plan, plan.segments[1]) == (go, come)
    assert edges(plan, plan.segments[0])[1] == (240, 0, False)
    gone, came = edges(plan, plan.segments[1])
    if gone.meets:  # together they are as loud as one
        assert np.allclose(gone.ramp()[::-1] ** 2 + came.ramp() ** 2, 1, atol=1e-6)


def test_the_users_sounds_are_heard_beside_it(
    story: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speech stays as it is, and what the model made goes down under it."""
    story()
    (tmp_path / "word.wav").write_bytes(tone(0.5, hertz=300))
    text = STORY.replace("TRANSITION", "cut")
    text = text.replace("seconds: 1}", "seconds: 1, say: {file: word.wav, text: Hi}}")

    def decode(self: LTX2Adapter, latents: Tensor) -> Tensor:
        count = (4 * latents.shape[2] - 3) * 480
        return torch.sin(torch.arange(count) * (2 * torch.pi * 6000 / RATE))[:, None].expand(-1, 2) * 0.3

    monkeypatch.setattr(LTX2Adapter, "decode_sound", decode)
    plan = planned(tmp_path, text, tmp_path / "out" / "heard", model="tiny-ltx-2")
    found = heard(rendered(plan, tmp_path / "out").film)[:, 0]

    def loud(second: float, hertz: int) -> float:
        part = found[round(second * RATE) :][:4800]
        return float(np.abs(np.fft.rfft(part * np.hanning(4800)))[hertz // 10])

    assert loud(0.2, 300) > 20 * loud(2.0, 300)
    assert loud(0.2, 6000) < 0.5 * loud(2.0, 6000)
    assert loud(0.2, 6000) > 0.1 * loud(2.0, 6000)
