"""Two pictures at once near a seam: what is one is found as often as there is one, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from storyreel.evaluation.double_exposure import Doubles, small
from tests.crossfade import crossfaded

LENGTH, HEIGHT, WIDTH = 24, 64, 96
SEAM = LENGTH
LOOKED_AT = 22  # frames of a seam of two scenes as long


def place(seed: int, width: int = WIDTH) -> Tensor:
    """A picture with structure at several sizes, uint8 (H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(torch.rand(1, 3, side, side * 2, generator=generator), (HEIGHT, width), mode="bilinear")
        for side in (4, 9, 24)
    ]
    picture = 255 * (0.5 * layers[0] + 0.3 * layers[1] + 0.2 * layers[2])
    return ((picture - picture.mean()) * 1.6 + 127).clamp(0, 255)[0].permute(1, 2, 0).to(torch.uint8)


def still(seed: int, frames: int = LENGTH) -> Tensor:
    return place(seed).expand(frames, -1, -1, -1)


def actor(scene: Tensor, start: float, speed: float, seed: int = 9) -> Tensor:
    """A scene with somebody in it, 16x32, who walks at ``speed`` pixels a frame."""
    found, body = scene.clone(), place(seed)[:32, :16] // 2
    for index, frame in enumerate(found):
        x = round(start + speed * index)
        frame[24:56, x : x + 16] = body
    return found


def share(film: Tensor, seam: int = SEAM) -> float:
    """The share in percent, of a film that is seen in odd chunks."""
    doubles = Doubles([0, seam], len(film), 12.0)
    for chunk in film.split(7):
        doubles.see(chunk)
    (found,) = doubles.shares
    assert found is not None
    return 100 * found


def noisy(film: Tensor, strength: float = 3.0) -> Tensor:
    noise = torch.randn(film.shape, generator=torch.Generator().manual_seed(1)) * strength
    return (film + noise).clamp(0, 255).to(torch.uint8)


def theory(frames: int) -> float:
    """Of a crossfade of two unrelated pictures, percent: the frames whose weights lie between .15 and .85."""
    weights = [(i + 0.5) / frames for i in range(frames)]
    return 100 * sum(0.15 < w < 0.85 for w in weights) / LOOKED_AT


@pytest.mark.parametrize("frames", [4, 8, 12, 20])
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_a_crossfade_is_as_long_as_it_is(frames: int, noise: float) -> None:
    film = crossfaded(torch.cat([still(1), still(2)]), [SEAM], frames)
    assert share(noisy(film, noise)) == pytest.approx(theory(frames), rel=0.12)


def test_a_crossfade_of_moving_pictures_is_found_too() -> None:
    """Both places pan, somebody walks in both; what has moved too far is not found."""
    wide = [place(seed, WIDTH + 48) for seed in (1, 2)]
    scenes = [torch.stack([w[:, i // 2 : i // 2 + WIDTH] for i in range(LENGTH)]) for w in wide]
    scenes = [actor(scenes[0], 10, 1.5), actor(scenes[1], 60, -1.5)]
    found = share(crossfaded(torch.cat(scenes), [SEAM], 12))
    assert 0.3 * theory(12) < found <= theory(12)


def test_where_the_place_stays_only_who_is_there_twice_counts() -> None:
    """Two actors of 16x32 at two places: a sixth of the picture."""
    film = torch.cat([actor(still(1), 8, 0), actor(still(1), 64, 0)])
    found = share(crossfaded(film, [SEAM], 12))
    assert found == pytest.approx(theory(12) * 2 * 16 * 32 / (WIDTH * HEIGHT), rel=0.1)


def fade(start: Tensor, end: Tensor, colour: int, frames: int = 12) -> Tensor:
    """Out of one scene into a colour and out of that into the next."""
    film = torch.cat([start, end]).float()
    half = frames // 2
    for index in range(SEAM - half, SEAM + half):
        weight = min(1.0, (abs(index + 0.5 - SEAM)) / half)
        film[index] = colour + (film[index] - colour) * weight
    return film.round().to(torch.uint8)


def flash(film: Tensor) -> Tensor:
    bright = film.float()
    for index, strength in ((SEAM - 1, 0.4), (SEAM, 0.8), (SEAM + 1, 0.4)):
        bright[index] += (255 - bright[index]) * strength
    return bright.round().to(torch.uint8)


def panned(speed: int) -> Tensor:
    wide = place(1, WIDTH + speed * 2 * LENGTH)
    return torch.stack([wide[:, speed * i : speed * i + WIDTH] for i in range(2 * LENGTH)])


def blinking() -> Tensor:
    """A wall of lights that fade up and down, as billboards do."""
    film = still(1, 2 * LENGTH).float()
    # Dark in the clean pictures before the seam, bright in those behind it, and to and fro in between.
    glow = ((torch.arange(2 * LENGTH) - 35.5) * torch.pi / 8).cos().view(-1, 1, 1, 1) * 0.3 + 0.7
    film[:, 8:32, 16:80] = film[:, 8:32, 16:80] * glow
    return film.round().to(torch.uint8)


def shuffled() -> Tensor:
    """All frames of two scenes in any order."""
    order = torch.randperm(2 * LENGTH, generator=torch.Generator().manual_seed(0))
    return torch.cat([actor(still(1), 10, 1.5), actor(still(2), 60, -1.5)])[order]


ONE_PICTURE = {
    "a still": still(1, 2 * LENGTH),
    "a hard cut": torch.cat([still(1), still(2)]),
    "a hard cut between moving scenes": torch.cat([actor(still(1), 10, 1.5), actor(still(2), 60, -1.5)]),
    "a pan": panned(1),
    "a fast pan": panned(3),
    "an actor who walks on": actor(still(1, 2 * LENGTH), 4, 1.5),
    "an actor who runs on": actor(still(1, 2 * LENGTH), 0, 1.7),
    "an actor who is elsewhere at once": torch.cat([actor(still(1), 10, 0), actor(still(1), 60, 0)]),
    "a flash": flash(torch.cat([still(1), still(1)])),
    "a flash over a cut": flash(torch.cat([still(1), still(2)])),
    "a fade to black": fade(still(1), still(2), 0),
    "a fade to white": fade(actor(still(1), 10, 1), actor(still(2), 40, 1), 255),
    "frames in any order": shuffled(),
}


@pytest.mark.parametrize("name", ONE_PICTURE)
def test_one_picture_at_a_time_is_none(name: str) -> None:
    assert share(noisy(ONE_PICTURE[name], 2.0)) < 1.0


def test_lights_that_blink_are_hardly_any() -> None:
    """A quarter of the picture. For half a second they may go one way alone, as a dissolve does."""
    assert share(noisy(blinking(), 2.0)) < 3.0  # 14 if their to and fro were not minded


def test_a_light_that_goes_down_over_the_seam_is_none() -> None:
    """The picture in between is the mean of both, and still there is nothing twice."""
    light = torch.linspace(1, 0.4, 2 * LENGTH).view(-1, 1, 1, 1)
    assert share((actor(still(1, 2 * LENGTH), 4, 1.0) * light).to(torch.uint8)) < 1.0


def test_every_seam_has_its_own_share_whatever_the_chunks_and_the_rate() -> None:
    film = torch.cat([still(1), still(2), still(2), still(3), still(3, 5)])
    film = crossfaded(film, [72], 12)
    starts = [0, 24, 48, 72, 96]
    found = []
    for repeat, sizes in ((1, 5), (2, 11)):
        doubles = Doubles([start * repeat for start in starts], len(film) * repeat, 12.0 * repeat)
        for chunk in film.repeat_interleave(repeat, 0).split(sizes):
            doubles.see(chunk)
            assert len(doubles._kept) <= 40  # looks of a seam, and a chunk
        found.append(doubles.shares)
    assert found[0] == pytest.approx(found[1])
    first, second, third, last = found[0]
    assert (first, second) == (0, 0)
    assert third == pytest.approx(theory(12) / 100, rel=0.12)
    assert last is None  # its scene is too short for clean pictures


@pytest.mark.parametrize(("height", "width"), [(64, 96), (256, 384), (384, 216), (9, 17)])
def test_pictures_of_any_shape_are_whole_blocks(height: int, width: int) -> None:
    frames = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    assert all(side % 8 == 0 and 8 <= side <= 96 for side in small(frames).shape[2:])
