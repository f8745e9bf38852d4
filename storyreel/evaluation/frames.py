"""One pass over a film's frames: everything that its scores are made of.

Frames stream by: what is kept is a few numbers a frame, and of every scene some vectors and small pictures.
So memory does not grow with the frames of a scene, nor with the size of the film.
"""

from __future__ import annotations

import io
import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from storyreel.errors import StoryreelError, UsageError
from storyreel.evaluation.double_exposure import Doubles
from storyreel.evaluation.encoders import (
    STEP,
    WINDOW,
    Encoders,
    PictureEncoder,
    ShotDetector,
    ShotToken,
)
from storyreel.evaluation.films import Film, Span
from storyreel.evaluation.metrics import SAMPLES, Measure
from storyreel.evaluation.picture_measures import grey, ssim
from storyreel.evaluation.seams import frame_steps
from storyreel.evaluation.weights import ALEXNET, BLIP, CLIP, DINO, DINO1, LITE, OWN, SHOTS
from storyreel.film import reader
from storyreel.plugins import FAULTS

LONGEST_SIDE = 384  # pixels that frames are looked at with
BLIP_PICTURES = 4
PATCHES = 4, 6  # rows and columns, whose colours are kept of every frame
THUMBNAIL = 192  # pixels wide
SHOT_SIZE = 27, 48
LPIPS_HEIGHT = 256
PICTURE_ENCODERS = (CLIP, DINO, DINO1, LITE)


@dataclass
class FrameNumbers:
    """Numbers of every frame: brightness, 0 to 255; share of clipped values.

    ``steps`` (mean absolute difference, 0 to 255) and ``similarity`` (SSIM) lead from a frame to the
    next: of N frames there are N - 1. ``patches`` are chunks (T, P, 3) of the frames' coarse pictures, sRGB.
    """

    steps: list[float] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)
    brightness: list[float] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)
    patches: list[Tensor] = field(default_factory=list)
    _last: Tensor | None = None

    def see(self, frames: Tensor) -> None:
        """Take in the next frames, uint8 (T, H, W, 3)."""
        run = frames if self._last is None else torch.cat([self._last, frames])
        self.steps += frame_steps([run])
        greys = grey(run)
        self.similarity += ssim(greys[:-1], greys[1:]).tolist() if len(run) > 1 else []
        self.brightness += greys[-len(frames) :].mean((1, 2)).tolist()
        self.clipped += ((frames <= 1) | (frames >= 254)).float().mean((1, 2, 3)).tolist()
        coarse = F.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2).float(), PATCHES)
        self.patches.append(coarse.flatten(2).transpose(1, 2))
        self._last = frames[-1:].clone()


class Shots:
    """A shot detector's score for every frame; the film's ends are continued for what it sees beyond them."""

    def __init__(self, detector: ShotDetector) -> None:
        self._detector = detector
        self._held = torch.empty(0, *SHOT_SIZE, 3, dtype=torch.uint8)
        self._unasked = 0
        self.scores: list[float] = []

    def see(self, frames: Tensor) -> None:
        """Take in the next frames, uint8 (T, H, W, 3)."""
        small = F.interpolate(frames.permute(0, 3, 1, 2).float(), SHOT_SIZE, mode="area")
        small = small.round().to(torch.uint8).permute(0, 2, 3, 1)
        if not len(self._held):
            small = torch.cat([small[:1].expand((WINDOW - STEP) // 2, -1, -1, -1), small])
        self._held = torch.cat([self._held, small])
        self._unasked += len(frames)
        while len(self._held) >= WINDOW:
            self._ask()

    def finish(self) -> None:
        """Score what is left behind the last whole window."""
        while self._unasked > 0:
            missing = WINDOW - len(self._held)
            if missing > 0:
                self._held = torch.cat([self._held, self._held[-1:].expand(missing, -1, -1, -1)])
            self._ask()

    def _ask(self) -> None:
        found = self._detector.scores(self._held[:WINDOW])[: self._unasked]
        self.scores += found
        self._unasked -= len(found)
        self._held = self._held[STEP:].clone()


class Pictures(NamedTuple):
    """Small JPEGs of a scene: of its middle and its ends."""

    middle: bytes
    first: bytes
    last: bytes


@dataclass(frozen=True)
class SceneLook:
    """What encoders saw of a scene: unit vectors (n, D) by encoder, and BLIP-2's numbers by name.

    ``strangeness`` says how little its pictures can be read, above 1 by nobody; None where the film's model
    has no judge. ``plugged`` are plugins' numbers by name, ``shot`` DINOv2's unit vectors (3, D) of its
    first, middle and last picture, as its own processor prepares them.
    """

    vectors: Mapping[str, Tensor]
    blip: Mapping[str, float]
    pictures: Pictures
    strangeness: float | None = None
    plugged: Mapping[str, float | None] = field(default_factory=dict)
    shot: Tensor | None = None


class Scenes:
    """Picks some pictures of every scene and shows them to the encoders when the scene is over."""

    def __init__(
        self,
        spans: Sequence[Span],
        pickers: Mapping[str, PictureEncoder],
        encoders: Encoders,
        names: set[str],
        strangeness: Callable[[Tensor], float] | None = None,
        measures: Mapping[str, Measure] | None = None,
    ) -> None:
        self._spans, self._pickers, self._device = spans, pickers, encoders.device
        self._strangeness = strangeness
        self._matcher = encoders.get(BLIP) if BLIP in names else None
        self._distance = encoders.get(ALEXNET) if ALEXNET in names else None
        self._shot: ShotToken | None = encoders.get(DINO) if DINO in names else None
        self._position = 0
        self._found: list[Tensor] = []
        self._before: Tensor | None = None
        self._measures = measures or {}
        self._frames_before: Tensor | None = None  # uint8, for plugins
        self.plugged_seams: list[dict[str, float | None]] = []
        self.looks: list[SceneLook] = []
        self.distances: list[tuple[float, float] | None] = []  # of a seam: between neighbours, and across

    def see(self, frames: Tensor) -> None:
        """Take in the next frames, uint8 (T, H, W, 3)."""
        for index, frame in enumerate(frames, self._position):
            if len(self.looks) == len(self._spans):
                return
            span = self._spans[len(self.looks)]
            self._found += [frame.clone()] * wanted_frames(span).count(index)
            if index == span.stop - 1:
                self._look(span, torch.stack(self._found))
                self._found = []
        self._position += len(frames)

    def _look(self, span: Span, frames: Tensor) -> None:
        """Look at a scene's first, sampled and last frames (n + 2, H, W, 3)."""
        pictures = frames.to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        inner = pictures[1:-1]
        vectors = {name: encoder.embed_pictures(inner).cpu() for name, encoder in self._pickers.items()}
        blip: dict[str, float] = {}
        if self._matcher is not None:
            few = inner[:: max(1, len(inner) // BLIP_PICTURES)][:BLIP_PICTURES]
            found = self._matcher.match(few, span.prompt)
            blip = {name: 100 * float(values.mean()) for name, values in found.items()}
        if self._distance is not None:
            height, width = pictures.shape[2:]
            size = LPIPS_HEIGHT, max(1, round(LPIPS_HEIGHT * width / height))
            scaled = F.interpolate(pictures, size, mode="bilinear", align_corners=False, antialias=True)
            if self._before is not None:
                # A scene that is shorter than its samples has fewer pictures.
                count = min(len(self._before), len(scaled)) - 2
                earlier, later = (evenly(found[1:-1], count) for found in (self._before, scaled))
                aligned = self._distance.between(earlier, later).mean()
                across = self._distance.between(self._before[-1:], scaled[:1])
                self.distances.append((float(aligned), float(across)))
            self._before = scaled
        elif self.looks:
            self.distances.append(None)
        strange = self._strangeness(frames[1:-1]) if self._strangeness is not None else None
        plugged = self._plugged("scene", frames[1:-1], span.scene, span.action)
        if self.looks:
            self.plugged_seams.append(self._plugged("seam", self._frames_before, frames))
        self._frames_before = frames if self._measures else None
        three = frames[[0, len(frames) // 2, -1]]
        shot = self._shot.embed_prepared(three).cpu() if self._shot is not None else None
        first, middle, last = map(jpeg, three)
        shown = Pictures(middle, first, last)
        self.looks.append(SceneLook(vectors, blip, shown, strange, plugged, shot))

    def _plugged(self, scope: str, *given: Any) -> dict[str, float | None]:
        """Return the numbers of plugins' metrics of a scope. Raises UsageError for what is no number."""
        found: dict[str, float | None] = {}
        for name, measure in self._measures.items():
            if measure.scope != scope:
                continue
            try:
                with redirect_stdout(sys.stderr):  # stdout is for results
                    value = measure.function(*given)
                found[name] = None if value is None else float(value)
            except FAULTS as error:
                words = f"the plugin's metric {name!r} fails: {type(error).__name__}: {error}"
                raise UsageError(words, "Correct it; STORYREEL_DEBUG=1 shows where that is.") from error
            if not math.isfinite(found[name] or 0.0):
                words = f"the plugin's metric {name!r} gives {value}, which is no number"
                raise UsageError(words, "Have it return a number, or None where there is none.")
        return found


@dataclass(frozen=True)
class Look:
    """All of a film: ``distances`` are LPIPS of every border, ``shots`` a score a frame; None without.

    ``doubles`` are the shares of every border's surroundings that are two pictures at once, ``plugged_seams``
    plugins' numbers of every border, by name.
    """

    frames: FrameNumbers
    scenes: Sequence[SceneLook]
    distances: Sequence[tuple[float, float] | None]
    shots: Sequence[float] | None
    doubles: Sequence[float | None]
    plugged_seams: Sequence[Mapping[str, float | None]] = ()


@torch.inference_mode()
def look_at(
    film: Film,
    encoders: Encoders,
    names: set[str],
    own: PictureEncoder | None,
    strangeness: Callable[[Tensor], float] | None,
    tell: Callable[[int], None],
    measures: Mapping[str, Measure] | None = None,
) -> Look:
    """Look at a whole film with the models in ``names``; ``tell`` hears how many frames went by.

    ``own`` is the text-image encoder of the film's model, ``strangeness`` tells how little some
    pictures uint8 (N, H, W, 3) of it can be read, ``measures`` are plugins' metrics. Raises
    StoryreelError if the film is damaged, or not as
    long as it was.
    """
    pickers: dict[str, PictureEncoder] = {n: encoders.get(n) for n in PICTURE_ENCODERS if n in names}
    if own is not None:
        pickers[OWN] = own
    clear = [span.clear(film.fps) for span in film.spans]
    numbers, scenes = FrameNumbers(), Scenes(clear, pickers, encoders, names, strangeness, measures)
    shots = Shots(encoders.get(SHOTS)) if SHOTS in names else None
    doubles = Doubles([span.start for span in film.spans], film.frames, film.fps)
    seen = 0
    for frames in film_frames(film):
        numbers.see(frames)
        scenes.see(frames)
        doubles.see(frames)
        if shots is not None:
            shots.see(frames)
        seen += len(frames)
        tell(len(frames))
    if seen != film.frames:
        raise StoryreelError(
            f"{film.path} ends after {seen} of {film.frames} looks: it was changed meanwhile",
            "Score it again.",
        )
    if shots is not None:
        shots.finish()
    scores = shots.scores if shots is not None else None
    return Look(numbers, scenes.looks, scenes.distances, scores, doubles.shares, scenes.plugged_seams)


def film_frames(film: Film, upscale: int | None = None) -> Iterator[Tensor]:
    """Yield what is seen of a film, uint8 (T, H, W, 3), some looks at a time.

    The frames are brought back to what they were before they were enlarged ``upscale`` times; without that,
    they are made smaller where they are large.
    """
    facts = reader.probe(film.path)
    scale = 1 / upscale if upscale else min(1.0, LONGEST_SIDE / max(facts.width, facts.height))
    width, height = (max(1, round(side * scale)) for side in (facts.width, facts.height))
    frames = (
        torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, height, width, 3)
        for data in reader.read_frames(film.path, width, height, "auto", film.hdr)
    )
    yield from picked(frames, film.picks)


def picked(frames: Iterable[Tensor], picks: Sequence[int]) -> Iterator[Tensor]:
    """Yield the frames that ``picks`` names, in its rising order; one may be named again or not at all.

    ``frames`` are chunks (T, H, W, 3); no more than a chunk's are yielded at once, however long a picture
    stands. What is behind the last of them is not read.
    """
    first = done = 0
    for chunk in frames:
        here = bisect_left(picks, first + len(chunk))
        for start in range(done, here, len(chunk)):
            yield chunk[torch.tensor(picks[start : min(here, start + len(chunk))]) - first]
        first, done = first + len(chunk), here
        if done == len(picks):
            return


def evenly(pictures: Tensor, count: int) -> Tensor:
    """Return ``count`` of some pictures (n, ...), evenly spread; all of them, if there are no more."""
    return pictures[[int((i + 0.5) * len(pictures) / count) for i in range(count)]]


def wanted_frames(span: Span) -> list[int]:
    """Return the frames of a scene that encoders see: its first, some spread over it, its last."""
    length = span.stop - span.start
    inner = [span.start + int((i + 0.5) * length / SAMPLES) for i in range(SAMPLES)]
    return [span.start, *(inner if length >= SAMPLES else range(span.start, span.stop)), span.stop - 1]


def jpeg(frame: Tensor) -> bytes:
    """Return a small JPEG of a frame, uint8 (H, W, 3)."""
    picture = Image.fromarray(frame.numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
