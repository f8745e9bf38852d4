"""Each part trains, goes on from its checkpoint, and ends in a folder that loads."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import Queue
from random import Random
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
from PIL import Image
from safetensors.torch import load_file

from storyreel.errors import StoryreelError
from storyreel.mini import codec, nets, train
from storyreel.mini.judge import load_judge
from storyreel.mini.lessons import all_texts
from storyreel.mini.training import clips, decoder, judge, transformer
from storyreel.mini.training import codec as codec_training
from storyreel.mini.training.judge import worsened
from storyreel.mini.training.scorer import contrast, scorer_network
from storyreel.mini.world import Place
from storyreel.models.loading import load_adapter
from storyreel.models.mochi import MochiAdapter
from storyreel.models.scorer import Scorer
from storyreel.models.specs import MODELS
from tests.conftest import made_once
from tests.tiny import velocities

PARTS = ("codec", "transformer", "decoder", "scorer", "judge")


def start(out: Path) -> None:
    """Begin a run with a codec of random bases and a tokenizer of few texts: both are soon made."""
    torch.manual_seed(0)
    stages = []
    for rows, count in ((48, 32), (128, 64), (768, codec.CHANNELS)):
        basis = torch.linalg.qr(torch.randn(rows, count))[0]
        stages.append(codec.BasisChange(basis, torch.zeros(rows), torch.linspace(2, 1, count)))
    codec.build(stages).save_pretrained(out / "codec")
    nets.build_tokenizer(all_texts(Random(0), 200)).save_pretrained(out / "tokenizer")


def run(part: str, out: Path, *options: str) -> None:
    """Run one part as the command line does, with as little as it can do with."""
    small = ("--batch", "2", "--pool", "2", "--fresh", "1", "--device", "cpu", "--precision", "fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", part, "--out", str(out), *small, *options])
        patch.setattr(clips, "LENGTHS", ((3, 1.0),))
        patch.setattr(judge, "UNSEEN", 2)
        patch.setattr(codec_training, "UNSEEN", 2)
        patch.setattr(decoder, "UNSEEN", 1)
        patch.setattr(transformer, "sample_films", lambda adapter: [torch.zeros(3, 4, 8, 8)])
        train.main()


def state(out: Path, part: str) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(out / f"{part}.pt", weights_only=True)
    return saved


def tensors(saved: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a checkpoint, in order."""
    if isinstance(saved, torch.Tensor):
        yield saved
    elif isinstance(saved, dict | list):
        for item in saved.values() if isinstance(saved, dict) else saved:
            yield from tensors(item)


def train_all(out: Path) -> None:
    start(out)
    for part in PARTS:
        run(part, out, "--steps", "1")
        assert state(out, part)["step"] == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder after one step of every part."""
    return made_once(tmp_path_factory, "trained", train_all)


@pytest.mark.slow  # every part trains, in full size
@pytest.mark.parametrize("part", PARTS)
def test_a_copied_checkpoint_is_taken_up_elsewhere(part: str, trained: Path, tmp_path: Path) -> None:
    """With the tokenizer and, but for its own training, the codec, it is all that a machine needs."""
    shutil.copy(trained / f"{part}.pt", tmp_path)
    for folder in ("tokenizer", "codec"):
        shutil.copytree(trained / folder, tmp_path / folder)
    run(part, tmp_path, "--steps", "1")  # nothing to do
    before, after = (list(tensors(state(folder, part))) for folder in (trained, tmp_path))
    assert len(before) == len(after) > 10
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.slow  # every part trains, in full size
@pytest.mark.parametrize("part", PARTS)
def test_a_second_step_goes_on_from_the_first(part: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    run(part, tmp_path, "--steps", "2")
    first, second = state(trained, part), state(tmp_path, part)
    assert (first["step"], second["step"]) == (1, 2)
    optimiser = "optimiser" if part == "judge" else "adam"
    for saved, count in ((first, {1.0}), (second, {2.0})):
        assert {float(moments["step"]) for moments in saved[optimiser]["state"].values()} == count
    network = {"codec": "vae", "scorer": "model"}.get(part, part)
    moved = [not torch.equal(first[network][name], second[network][name]) for name in first[network]]
    assert sum(moved) > len(moved) / 2
    if part in ("codec", "transformer", "decoder"):
        with Image.open(tmp_path / f"{part}.png") as sheet:
            assert sheet.width > 0


@pytest.mark.slow  # in full size
@pytest.mark.parametrize("lead", list(transformer.LEADS))
def test_lessons_with_leads_teach(
    lead: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(transformer, "LEADS", {lead: 1.0})
    drawn = []

    def noise_left(
        generator: torch.Generator, portrait: torch.Tensor | None, goes_on: bool, shape: torch.Size
    ) -> torch.Tensor:
        drawn.append((portrait is not None, goes_on, shape[2]))
        return transformer_noise_left(generator, portrait, goes_on, shape)

    def batch(pool: clips.Pool, size: int, fresh: int, going_on: bool = False) -> list[clips.Drawn]:
        asked.append(going_on)
        return pool_batch(pool, size, fresh, going_on)

    asked: list[bool] = []
    pool_batch = clips.Pool.batch
    monkeypatch.setattr(clips.Pool, "batch", batch)
    transformer_noise_left = transformer.noise_left
    monkeypatch.setattr(transformer, "noise_left", noise_left)
    run("transformer", tmp_path, "--steps", "2", "--leads", "1")
    shown = {"end": (False, True, 2), "portrait": (True, False, 3), "both": (True, True, 3)}
    assert drawn == [shown[lead]]  # of the one step that is new
    assert asked == [lead != "portrait"]
    before, after = (state(folder, "transformer") for folder in (trained, tmp_path))
    for network in ("transformer", "text_encoder", "told_head"):
        first, second = before[network], after[network]
        assert all(value.isfinite().all() for value in second.values())
        moved = [not torch.equal(first[name], second[name]) for name in first]
        assert sum(moved) > len(moved) / 2


@pytest.mark.slow  # every part trains, in full size
def test_what_is_written_is_the_average(trained: Path) -> None:
    saved = state(trained, "transformer")
    written = MochiTransformer3DModel.from_pretrained(trained / "transformer")
    for index, parameter in enumerate(written.parameters()):
        assert torch.equal(parameter, saved["average"][str(index)])
    names = [name for name, _ in written.named_parameters()]
    assert any(not torch.equal(written.state_dict()[n], saved["transformer"][n]) for n in names)


@pytest.mark.slow  # every part trains, in full size
def test_a_trained_codec_knows_how_its_latents_are_normalised(trained: Path) -> None:
    vae = AutoencoderKLMochi.from_pretrained(trained / "codec")
    assert set(vae.config["latents_std"]) != {1.0}
    assert torch.tensor(vae.config["latents_mean"]).abs().max() > 0


@pytest.mark.slow  # every part trains, in full size
def test_a_run_ends_in_weights_that_load_and_can_be_gone_on_from(trained: Path, tmp_path: Path) -> None:
    target, again, twice = tmp_path / "weights", tmp_path / "again", tmp_path / "twice" / "weights"
    run("export", trained, "--to", str(target))
    adapter = load_adapter(replace(MODELS["mini"], weights=target), torch.device("cpu"))
    x = torch.zeros(1, codec.CHANNELS, 2, 8, 12)
    (velocity,) = velocities(adapter, x, 0.5, [adapter.encode("a corgi dog is sitting")])
    assert velocity.shape == x.shape
    assert velocity.isfinite().all()
    preview = adapter.preview(x)
    assert preview is not None
    assert preview.shape == (2, 3, 128, 192)
    scorer = Scorer.load(target / "scorer", torch.device("cpu"))
    assert scorer.embed_texts(["a corgi dog is sitting", ""]).shape == (2, nets.CLIP_WIDTH)
    black = torch.zeros(5, 128, 192, 3, dtype=torch.uint8)
    assert load_judge(tmp_path / "judge.safetensors").judge(black).verdict.place in Place
    run("import", again, "--to", str(target))
    run("export", again, "--to", str(twice))
    for path in target.rglob("*.safetensors"):
        if path.name != "preview.safetensors":  # fitted on the codec as it was before it was halved
            ours, theirs = load_file(path), load_file(twice / path.relative_to(target))
            assert all(value.dtype == torch.float16 for value in ours.values() if value.is_floating_point())
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@torch.no_grad()
def test_a_scorer_goes_on_from_the_one_in_its_folder(tmp_path: Path) -> None:
    begun = scorer_network(tmp_path, 300)
    begun.half().save_pretrained(tmp_path / "scorer")
    again = scorer_network(tmp_path, 300)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    pairs = zip(begun.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a.float(), b) for a, b in pairs)


def test_nothing_is_imported_where_a_training_would_go_on_from_something_else(tmp_path: Path) -> None:
    (tmp_path / "transformer.pt").touch()
    with pytest.raises(SystemExit, match=r"transformer\.pt\nImport into another --out"):
        run("import", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["transformer.pt"]


def test_a_codec_that_nobody_trained_is_an_analysis_of_the_same_lessons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clips, "BASIS_CLIPS", 2)
    video = torch.rand(1, 3, 4, 32, 32) * 2 - 1
    first, second = (codec.raw_latents(clips.trained_codec(tmp_path), video) for _ in range(2))
    assert capsys.readouterr().out.count("this is an untrained codec") == 2
    assert torch.equal(first, second)
    assert first.std() > 0.1


# The lessons as tensors, and losses


def no_latents(vae: Any, video: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(video), codec.CHANNELS, (video.shape[2] + 2) // 3, 8, 12)


def test_a_pool_draws_lessons_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "LENGTHS", ((2, 1.0),))

    monkeypatch.setattr(codec, "raw_latents", no_latents)
    monkeypatch.setattr(codec, "normalised", lambda vae, raw: raw)
    pool = clips.Pool(torch.nn.Linear(1, 1), 3, 0)
    known = {id(lesson) for on in (False, True) for lesson in pool.batch(50, 0, on)}
    assert len(known) == 3
    lesson = pool.batch(1, 0)[0]
    assert lesson.latents.shape == (codec.CHANNELS, 2, 8, 12)
    assert lesson.latents.dtype == torch.float16
    assert lesson.layout.shape[:2] == (2, 24)
    assert lesson.portrait.shape == (codec.CHANNELS, 1, 8, 12)
    assert lesson.portrait_layout.shape[:2] == (1, 24)
    pool.batch(1, 2)
    later = {id(lesson) for on in (False, True) for lesson in pool.batch(50, 0, on)}
    assert 1 <= len(later - known) <= 2


def test_a_pool_gives_lessons_that_go_on_or_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "LENGTHS", ((2, 1.0),))
    monkeypatch.setattr(codec, "raw_latents", no_latents)
    monkeypatch.setattr(codec, "normalised", lambda vae, raw: raw)
    pool = clips.Pool(torch.nn.Linear(1, 1), 24, 0)
    assert all(one.example.clip.former is not None for one in pool.batch(100, 0, going_on=True))
    assert all(one.example.clip.former is None for one in pool.batch(100, 0))
    alone = pool.batch(1, 0)[0].example
    monkeypatch.setattr(clips, "sample_example", lambda rng: alone)
    assert len(clips.Pool(torch.nn.Linear(1, 1), 3, 0).batch(5, 0, going_on=True)) == 5


class StoppedError(Exception):
    """Ends what would draw for ever."""


def groups_drawn(count: int) -> Queue[clips.Group]:
    groups: Queue[clips.Group] = Queue(count)

    def put(group: clips.Group) -> None:
        if groups.full():
            raise StoppedError
        groups.put(group)

    with pytest.raises(StoppedError):
        clips.keep_drawing(put, 0)
    return groups


def test_a_pool_takes_in_what_others_have_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "LENGTHS", ((2, 0.5), (3, 0.5)))
    monkeypatch.setattr(codec, "raw_latents", no_latents)
    monkeypatch.setattr(codec, "normalised", lambda vae, raw: raw)
    groups = groups_drawn(12)
    assert {group.length for group in groups.queue} == {2, 3}
    new = [id(example) for group in list(groups.queue)[8:] for example in group.examples]
    later, first = Queue[clips.Group](), Queue[clips.Group]()
    for index, group in enumerate(list(groups.queue)):
        (first if index < 8 else later).put(group)
    pool = clips.Pool(torch.nn.Linear(1, 1), 64, 0, first)
    assert first.empty()

    def known() -> set[int]:
        return {id(one.example) for on in (False, True) for _ in range(20) for one in pool.batch(20, 0, on)}

    before = known()
    assert not before & set(new)
    for group in later.queue:
        first.put(group)
    pool.batch(1, 0)
    assert first.empty()
    assert known() & set(new)
    assert pool.batch(1, 0)[0].latents.dtype == torch.float16


@pytest.mark.slow  # begins processes, and trains in full size
def test_processes_draw_for_a_training(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = clips.Drawers(2, 0).get()
    assert group.images.shape[0] == len(group.examples) == clips.ENCODED
    assert group.images.shape[1] == codec.FRAMES_PER_LATENT * (group.length - 1) + 1
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    asked = []

    def drawers(count: int, seed: int) -> Queue[clips.Group]:
        asked.append(count)
        return groups_drawn(2)

    monkeypatch.setattr(transformer, "Drawers", drawers)
    run("transformer", tmp_path, "--steps", "2", "--drawers", "3")
    assert asked == [3]
    assert state(tmp_path, "transformer")["step"] == 2


def fail_to_draw(groups: object, seed: int) -> None:
    """Die at once, as a process does that runs out of memory."""
    os._exit(9)


def test_a_process_that_dies_ends_the_training_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "_draw_alone", fail_to_draw)
    monkeypatch.setattr(clips, "POLL", 0.1)
    drawers = clips.Drawers(1, 0)
    with pytest.raises(StoryreelError, match="exit code 9"):
        drawers.get()
    with pytest.raises(StoryreelError, match="exit code 9"):
        drawers.get(block=False)


@pytest.mark.slow  # in full size
def test_the_decoder_learns_from_a_clip_more_than_once_and_the_encoder_never(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(decoder, "ESTIMATED", 1.0)
    before = load_file(tmp_path / "codec" / "diffusion_pytorch_model.safetensors")
    run("decoder", tmp_path, "--steps", "3", "--fresh", "0")
    after = load_file(tmp_path / "codec" / "diffusion_pytorch_model.safetensors")
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder"}


def numbered(goes_on: bool) -> decoder.Decoded:
    """A clip whose every picture is its own number, with an actor in a corner."""
    count = codec.FRAMES_PER_LATENT * (decoder.LENGTH - 1) + 1
    pictures = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 128, 192, 3)
    inside = torch.zeros(count, 128, 192, dtype=torch.bool)
    inside[:, 100:, 170:] = True
    latents = torch.zeros(codec.CHANNELS, decoder.LENGTH, 8, 12)
    return decoder.Decoded(pictures, inside, latents, latents, goes_on)


def test_every_latent_frame_has_its_pictures() -> None:
    rows, columns = slice(1, 7), slice(3, 9)
    first, inside, counts = decoder.pictures_in(numbered(False), slice(0, 4), rows, columns)
    assert first.shape == (12, 96, 96, 3)
    assert first[:, 0, 0, 0].tolist() == [0, 0, 0, *range(1, 10)]
    assert counts.tolist() == [False, False] + 10 * [True]  # a clip's first picture stands for three
    later, _, counts = decoder.pictures_in(numbered(False), slice(2, 6), rows, columns)
    assert later[:, 0, 0, 0].tolist() == list(range(4, 16))
    assert counts.tolist() == 3 * [False] + 9 * [True]
    assert inside.shape == (12, 96, 96)
    assert not inside.any()


@pytest.mark.parametrize("goes_on", [False, True])
def test_windows_of_latents_lie_inside_the_clip_and_mostly_on_actors(goes_on: bool) -> None:
    clip, rng, hits = numbered(goes_on), Random(0), 0
    for _ in range(60):
        frames, rows, columns = decoder.window(rng, clip, whole=False)
        assert 0 <= frames.start < frames.stop <= decoder.LENGTH
        assert not goes_on or frames.start <= 2  # where it turns
        assert 0 <= rows.start < rows.stop <= 8
        assert 0 <= columns.start < columns.stop <= 12
        pictures, inside, _ = decoder.pictures_in(clip, frames, rows, columns)
        assert pictures.shape[:3] == (12, 96, 96)
        hits += bool(inside.any())
    assert hits > 40
    assert decoder.window(rng, clip, whole=True)[1:] == (slice(0, 8), slice(0, 12))


def test_what_the_decoder_learns_from_fits_its_pictures() -> None:
    """The latents of a clip that turns, and their estimate, are decoded to the window's own pictures."""
    adapter = load_adapter(MODELS["mini"], torch.device("cpu"))
    assert isinstance(adapter, MochiAdapter)
    rng = Random(3)
    while not (clip := decoder.decoded_clip(rng, adapter, torch.Generator().manual_seed(0))).goes_on:
        pass
    frames, rows, columns = slice(1, 5), slice(0, 8), slice(0, 12)
    pictures, _, counts = decoder.pictures_in(clip, frames, rows, columns)
    std, mean = (
        torch.tensor(adapter.vae.config[f"latents_{n}"])[:, None, None, None] for n in ("std", "mean")
    )
    for latents in (clip.latents, clip.estimates):
        with torch.no_grad():
            found = adapter.vae.decoder((mean + std * latents[:, frames].float())[None])[0][0]
        apart = [
            float(
                (found[:, counts].roll(by, 1) - clips.as_video(pictures[None])[0][:, counts]).square().mean()
            )
            for by in (0, 1, -1)
        ]
        assert apart[0] < 0.02
        assert apart[0] < 0.9 * min(apart[1:])


def test_windows_lie_inside_the_picture_and_mostly_on_actors() -> None:
    video = torch.zeros(24, 3, 13, 128, 192)
    inside = torch.zeros(24, 13, 128, 192, dtype=torch.bool)
    inside[..., 100:, 170:] = True  # at the edge
    windows, masks = codec_training.cropped(Random(0), video, inside)
    assert windows.shape[:2] == (24, 3)
    assert windows.shape[2] in (4, 7)
    assert windows.shape[3:] == (codec_training.CROP,) * 2
    assert masks.shape == (24, *windows.shape[2:])
    assert 0.6 < masks.flatten(1).any(1).float().mean() <= 1


def test_errors_in_actors_cost_more() -> None:
    video, inside = torch.zeros(1, 3, 4, 8, 8), torch.zeros(1, 4, 8, 8, dtype=torch.bool)
    inside[..., :4] = True
    left, right = video.clone(), video.clone()
    left[..., :3], right[..., 5:] = 0.5, 0.5
    assert float(codec_training.picture_loss(video, video, inside)) == 0
    costs = [float(codec_training.picture_loss(output, video, inside)) for output in (left, right)]
    assert costs[0] > 2 * costs[1] > 0
    still, flickering = video + 0.1, video.clone()
    flickering[:, :, ::2], flickering[:, :, 1::2] = 0.1, -0.1
    assert codec_training.picture_loss(flickering, video, inside) > codec_training.picture_loss(
        still, video, inside
    )


def test_worsened_pictures_keep_their_shape() -> None:
    video = torch.rand(2, 3, 3, 64, 96) * 2 - 1
    for seed in range(4):
        found = worsened(video, Random(seed), torch.Generator().manual_seed(seed))
        assert found.shape == video.shape
        assert 0 < float((found - video).abs().mean()) < 0.6


def test_several_texts_may_fit() -> None:
    fits = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    right, wrong = 20 * fits.float(), 20 * (~fits).float()
    assert float(contrast(right, fits)) < float(contrast(wrong, fits)) / 10
    assert float(contrast(right, torch.eye(3, dtype=torch.bool))) > 0.4
