"""What is heard in a film, as pure data: where every sound comes from, how loud it is, and where it begins.

`film/hearing.py` finds it for a story, `film/mix.py` mixes it. No picture depends on it, but for the length
of a scene that takes it from its sound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from storyreel.errors import Fault

Kind = Literal["music", "scene", "speech"]


@dataclass(frozen=True)
class Line:
    """Words that are spoken, and when in their sound: ``start`` and ``end`` in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Voice:
    """Who speaks texts: the package and its version, the speaker in it, and how fast, 1 being usual."""

    package: str
    version: str
    speaker: str
    speed: float


@dataclass(frozen=True)
class Sound:
    """A file that is heard.

    ``scene`` counts from 0; music, which belongs to the film, has None. ``file`` is its name in the story or,
    of a text that is spoken, in the film's folder. It takes ``seconds``, is of a ``loudness`` in LUFS, None
    where it is too short to have one, and of a true ``peak`` in dBTP. ``volume`` in dB is added to its level.
    It begins ``start`` seconds after its scene or film, without its own first ``skip`` seconds. ``fade`` is
    how long it takes to come and to go; None leaves that to `film/sound.py`. ``lines`` are words in it, as
    far as they are known, ``text`` is what the voice is to say. ``path`` is where it is on this machine.
    """

    kind: Kind
    scene: int | None
    file: str
    sha256: str
    seconds: float
    loudness: float | None
    peak: float
    volume: float = 0.0
    start: float = 0.0
    skip: float = 0.0
    fade: float | None = None
    loop: bool = False
    lines: tuple[Line, ...] = ()
    text: str | None = None
    path: Path | None = field(default=None, compare=False, repr=False)

    @property
    def heard(self) -> float:
        """How many seconds of its scene it needs to be heard to its end."""
        return self.start + self.seconds - self.skip


@dataclass(frozen=True)
class Soundtrack:
    """All that is heard in a film; ``voice`` speaks the texts, None where none is to be spoken."""

    sounds: tuple[Sound, ...]
    voice: Voice | None = None

    def of_scene(self, index: int) -> dict[Kind, Sound]:
        """Return a scene's sounds by their kind."""
        return {sound.kind: sound for sound in self.sounds if sound.scene == index}

    @property
    def music(self) -> Sound | None:
        """The film's own sound."""
        return next((sound for sound in self.sounds if sound.scene is None), None)


@dataclass(frozen=True)
class Heard:
    """What was found of a story's sounds, and what is wrong with them."""

    track: Soundtrack | None = None
    faults: tuple[Fault, ...] = ()
