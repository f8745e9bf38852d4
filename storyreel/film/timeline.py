"""A finished film on an editor's timeline: its scenes, its cards and its seams, by its manifest alone.

All times are whole frames of the film, as they were planned. Neither story, model nor weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storyreel.errors import StoryreelError, UsageError, counted
from storyreel.film.dissolve import reach
from storyreel.film.folder import FilmFolder

RENDER = "Render it, which makes what is missing: storyreel render STORY"
AGAIN = "Render it again: only what is missing, changed or damaged is made anew."


@dataclass(frozen=True)
class Join:
    """The border before a clip: its ``transition``, and how many frames before and behind it that changes.

    ``words`` say what the method did, ``facts`` are the manifest's. Nothing but a dissolve or a fade has any
    ``before`` or ``behind``.
    """

    transition: str
    before: int
    behind: int
    words: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Clip:
    """A part of the film, ``frames`` frames from its frame ``start`` on: a scene, or a card.

    ``number`` is the scene's, from 1; None of a card. ``title`` is the scene prompt, ``caption`` has both
    prompts, on a line each; of a card both are its text. ``join`` is None at the film's beginning.
    """

    name: str
    number: int | None
    start: int
    frames: int
    title: str
    caption: str
    join: Join | None

    @property
    def end(self) -> int:
        """The frame behind its last."""
        return self.start + self.frames


@dataclass(frozen=True)
class Timeline:
    """A finished film: ``path`` is its MP4, of ``width`` x ``height`` pixels, at ``fps`` frames a second.

    ``model`` is the name of what drew it.
    """

    path: Path
    name: str
    title: str
    fps: int
    width: int
    height: int
    clips: tuple[Clip, ...]
    model: str

    @property
    def frames(self) -> int:
        """The film's number of frames."""
        return self.clips[-1].end

    @property
    def scenes(self) -> list[Clip]:
        """The clips that are scenes."""
        return [clip for clip in self.clips if clip.number is not None]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Seam(_Part):
    transition: str
    overlap: int
    strength: float
    similarity: float | None = None
    sides: float | None = None


class _Decided(_Part):
    seam: _Seam | None = None


class _Segment(_Part):
    scene: str
    action: str
    start: int = Field(ge=0)
    frames: int = Field(ge=1)
    decided: _Decided


class _Method(_Part):
    blending: str


class _Settings(_Part):
    fps: int = Field(ge=1)
    upscale: int = Field(ge=1)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    method: _Method


class _Model(_Part):
    name: str


class _Card(_Part):
    before: int = Field(ge=0)
    text: str
    start: int = Field(ge=0)
    frames: int = Field(ge=1)


class _Film(_Part):
    title: str
    cards: list[_Card] = []
    model: _Model
    settings: _Settings
    segments: list[_Segment] = Field(min_length=1)


def timeline_of(path: Path) -> Timeline:
    """Return the film in a folder. Raises StoryreelError if none is finished there, or it was changed."""
    folder = FilmFolder(path, path.resolve().name)
    folder.load()
    folder.take_recorded_name()
    if folder.present is None:
        raise UsageError(f"there is no finished film in {path}", RENDER)
    if not folder.film_path.is_file():
        raise UsageError(f"{folder.film_path} is not there", RENDER)
    if not folder.film_is_complete():
        raise StoryreelError(f"{folder.film_path} is not what was rendered: it has been changed", AGAIN)
    try:
        film = _Film.model_validate({**folder.present.facts, "segments": folder.present.segments})
    except ValidationError:
        raise StoryreelError(f"{folder.manifest_path} is damaged, or of another version", AGAIN) from None
    clips = _clips(film, folder.name)
    if any(clip.start != end for clip, end in zip(clips, [0, *(c.end for c in clips)], strict=False)):
        raise StoryreelError(f"{folder.manifest_path} is damaged: its scenes do not join", AGAIN)
    settings = film.settings
    width, height = settings.width * settings.upscale, settings.height * settings.upscale
    return Timeline(
        folder.film_path,
        folder.name,
        film.title,
        settings.fps,
        width,
        height,
        tuple(clips),
        film.model.name,
    )


def _clips(film: _Film, name: str) -> list[Clip]:
    """Return the scenes and the cards, as they are shown."""
    digits = max(2, len(str(len(film.segments))))
    clips: list[Clip] = []
    for index, segment in enumerate(film.segments):
        title, prompts = segment.scene, dict.fromkeys([segment.scene, segment.action])
        number = f"{name}-{index + 1:0{digits}d}"
        join = _join(film, index)
        clips.append(Clip(number, index + 1, segment.start, segment.frames, title, "\n".join(prompts), join))
    for count, card in enumerate(film.cards, 1):
        title, text = " ".join(card.text.split()), "\n".join(filter(None, card.text.splitlines()))
        join = Join("cut", 0, 0, "cut to a card", {}) if card.start else None
        clips.append(Clip(f"{name}-card-{count:02d}", None, card.start, card.frames, title, text, join))
    return sorted(clips, key=lambda clip: clip.start)


def _join(film: _Film, index: int) -> Join | None:
    """Return the border before a scene. Nothing dissolves where a card is between."""
    seam, settings = film.segments[index].decided.seam, film.settings
    if any(card.before == index for card in film.cards):
        words = "cut from a card" if seam is None else f"{_words(seam, 0)}, with a card between"
        return Join("cut", 0, 0, words, seam.model_dump() if seam else {})
    if seam is None or index == 0:
        return None
    earlier, later = film.segments[index - 1].frames, film.segments[index].frames
    blending = settings.method.blending
    before, behind = reach(seam.transition, seam.strength, blending, settings.fps, earlier, later)
    return Join(seam.transition, before, behind, _words(seam, before + behind), seam.model_dump())


def _words(seam: _Seam, frames: int) -> str:
    """Say what the method did at a seam."""
    length = f" over {counted(frames, 'frame')}" if frames else ""
    if seam.transition == "continue":
        words = "goes on in the shot before"
        words += f", from {counted(seam.overlap, 'latent frame')}" if seam.overlap else ""
        return words + ("" if seam.similarity is None else f", actions {seam.similarity:.0%} alike")
    names = {"fade": "fade through black", "dip": "dip to white"}
    return names.get(seam.transition, seam.transition) + length
