"""Lessons drawn as pictures, and as the latents of the codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from random import Random
from typing import Any, Protocol

import torch
import torch.multiprocessing
from diffusers import AutoencoderKLMochi
from torch import Tensor

from storyreel.errors import StoryreelError
from storyreel.mini import codec
from storyreel.mini.lessons import FPS, HEIGHT, WIDTH, Example, portrait, sample_example
from storyreel.mini.world import Clip, draw_clip

from .layout import Facts, Layout, facts_of, layout_of

LENGTHS = ((5, 0.3), (9, 0.3), (11, 0.25), (14, 0.15))  # latent frames of a lesson, and how often
BACKSTAGE = 1  # seed of the clips that the bases are fitted on
BASIS_CLIPS = 160
CALIBRATION_CLIPS = 96
ENCODED = 8  # clips that are encoded together
WAITING = 4  # groups that wait to be encoded, for each process that draws
POLL = 5.0  # seconds after which it is looked whether these still live


def draw(clip: Clip, latent_frames: int) -> tuple[Tensor, Tensor]:
    """Draw a clip's pictures, uint8 (T, H, W, 3), and tags (T, H, W)."""
    frames = codec.FRAMES_PER_LATENT * (latent_frames - 1) + 1
    images, tags = draw_clip(clip, frames, FPS, WIDTH, HEIGHT)
    return torch.from_numpy(images), torch.from_numpy(tags)


def as_video(images: Tensor) -> Tensor:
    """Turn pictures uint8 (N, T, H, W, 3) into (N, 3, T, H, W) in [-1, 1]."""
    return images.movedim(-1, 1).float() / 127.5 - 1


def drawn_videos(seed: int, count: int, latent_frames: int) -> tuple[Tensor, Tensor]:
    """Draw ``count`` lessons as one batch of `as_video`, and where their actors are (N, T, H, W)."""
    rng = Random(seed)
    drawn = [draw(sample_example(rng).clip, latent_frames) for _ in range(count)]
    images, tags = (torch.stack(part) for part in zip(*drawn, strict=True))
    return as_video(images), tags > 0


def trained_codec(folder: Path) -> AutoencoderKLMochi:
    """Return the codec as far as it has been trained; a new one begins as a PCA, and that is said."""
    path = folder / "codec"
    if path.exists():
        return AutoencoderKLMochi.from_pretrained(path, local_files_only=True)
    print(f"{path} is not there: this is an untrained codec, the inverse of a PCA", flush=True)
    stages = codec.fit_stages(
        *drawn_videos(BACKSTAGE, BASIS_CLIPS, 3), torch.Generator().manual_seed(BACKSTAGE)
    )
    return codec.build(stages)


@dataclass
class Drawn:
    """A drawn example: normalised latents (C, L, H, W) in half precision, and what is true of it.

    ``portrait`` (C, 1, H, W) is one picture of its characters elsewhere, with its own layout.
    """

    example: Example
    latents: Tensor
    layout: Layout
    facts: Facts
    portrait: Tensor
    portrait_layout: Layout


@dataclass
class Group:
    """Examples of one length, drawn and not yet encoded: uint8 (N, T, H, W, 3), and of each its layout."""

    length: int
    examples: list[Example]
    images: Tensor
    layouts: list[Layout]
    portraits: Tensor
    portrait_layouts: list[Layout]


def some_length(rng: Random) -> int:
    """Draw how many latent frames a lesson has."""
    return rng.choices([length for length, _ in LENGTHS], [share for _, share in LENGTHS])[0]


def draw_group(rng: Random, length: int, count: int) -> Group:
    """Draw ``count`` examples of one length."""
    examples = [sample_example(rng) for _ in range(count)]
    clips = [example.clip for example in examples]
    images, layouts = _drawn(clips, length)
    return Group(length, examples, images, layouts, *_drawn([portrait(rng, clip) for clip in clips], 1))


def _drawn(clips: list[Clip], length: int) -> tuple[Tensor, list[Layout]]:
    drawn = [draw(clip, length) for clip in clips]
    layouts = [layout_of(tags, clip) for clip, (_, tags) in zip(clips, drawn, strict=True)]
    return torch.stack([images for images, _ in drawn]), layouts


class Groups(Protocol):
    """What a pool takes of a queue."""

    def get(self, block: bool = ...) -> Group:
        """Return the next group, or raise Empty if there is none and it should not wait."""
        ...


def keep_drawing(put: Callable[[Group], Any], seed: int) -> None:
    """Draw groups for ever."""
    rng = Random(seed)
    while True:
        put(draw_group(rng, some_length(rng), ENCODED))


def _draw_alone(groups: Any, seed: int) -> None:
    torch.set_num_threads(1)
    keep_drawing(groups.put, seed)


class Drawers:
    """A queue that processes fill with groups for as long as this process lives."""

    def __init__(self, count: int, seed: int) -> None:
        spawned = torch.multiprocessing.get_context("spawn")  # a CUDA context survives no fork
        self._queue: Any = spawned.Queue(WAITING * count)
        self._processes = [
            spawned.Process(target=_draw_alone, args=(self._queue, seed + index), daemon=True)
            for index in range(count)
        ]
        for process in self._processes:
            process.start()

    def get(self, block: bool = True) -> Group:
        """Return the next group, or raise Empty if there is none and it should not wait.

        Raises StoryreelError if a process has died: the others may be too few, and none would be waited for
        for ever.
        """
        while True:
            try:
                group: Group = self._queue.get(block, POLL)
                return group
            except Empty:
                for process in self._processes:
                    if process.exitcode is not None:
                        raise StoryreelError(
                            f"a process that draws clips has ended with exit code {process.exitcode}",
                            "What it printed last says why; -9 mostly means that memory was short: take "
                            "fewer --drawers. Start again: the training goes on from its last checkpoint.",
                        ) from None
                if not block:
                    raise


class Pool:
    """A reservoir of drawn lessons, of which a few are drawn anew at every step.

    With a queue, whatever comes out of it takes the place of others instead: one process draws too slowly
    for a GPU.
    """

    def __init__(self, vae: AutoencoderKLMochi, size: int, seed: int, groups: Groups | None = None) -> None:
        self._rng = Random(seed)
        self._vae = vae
        self._groups = groups
        self._lessons: dict[int, list[Drawn]] = {}
        if groups is not None:
            while sum(map(len, self._lessons.values())) < size or len(self._lessons) < len(LENGTHS):
                group = groups.get()
                self._lessons.setdefault(group.length, []).extend(self._encoded(group))
            return
        for length, share in LENGTHS:
            count = max(1, round(size * share))
            parts = [self._draw(length, min(ENCODED, count - i)) for i in range(0, count, ENCODED)]
            self._lessons[length] = [lesson for part in parts for lesson in part]

    def _draw(self, length: int, count: int) -> list[Drawn]:
        """Draw lessons of one length. One clip alone would take torch's slow way through the codec."""
        return self._encoded(draw_group(self._rng, length, count))

    def _encoded(self, group: Group) -> list[Drawn]:
        return [
            Drawn(example, latents, layout, facts_of(example.clip), shown, theirs)
            for example, latents, layout, shown, theirs in zip(
                group.examples,
                self._latents(group.images),
                group.layouts,
                self._latents(group.portraits),
                group.portrait_layouts,
                strict=True,
            )
        ]

    @torch.no_grad()
    def _latents(self, images: Tensor) -> list[Tensor]:
        video = as_video(images.to(next(self._vae.parameters()).device))
        latents = codec.normalised(self._vae, codec.raw_latents(self._vae, video)).cpu().half()
        return [one.clone() for one in latents]

    def batch(self, size: int, fresh: int, going_on: bool = False) -> list[Drawn]:
        """Return ``size`` lessons of one random length after drawing ``fresh`` new ones.

        Either all go on from another scene or none does, if there are such. With a queue, what is in it is
        new instead.
        """
        length = some_length(self._rng)
        for group in self._arrived() if self._groups else ():
            self._put_in(self._encoded(group), group.length)
        if fresh and not self._groups:
            self._put_in(self._draw(length, fresh), length)
        lessons = self._lessons[length]
        fitting = [one for one in lessons if (one.example.clip.former is not None) == going_on]
        return [self._rng.choice(fitting or lessons) for _ in range(size)]

    def _arrived(self) -> Iterator[Group]:
        assert self._groups is not None
        try:
            while True:
                yield self._groups.get(block=False)
        except Empty:
            return

    def _put_in(self, drawn: list[Drawn], length: int) -> None:
        lessons = self._lessons[length]
        for lesson in drawn:
            lessons[self._rng.randrange(len(lessons))] = lesson
