"""The judge: who is in a clip, how they look, where, in what light, and doing what; or that nobody can tell.

A small convolutional network, trained on true clips of the cartoon world and on clips spoilt on
purpose. It finds everybody in the pictures, which the world's own tags teach it, and reads looks there. It
has no part in rendering, and no weights of the model are chosen by it: what it says of a film is an outside
opinion. `nearest` measures without any network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from random import Random

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from storyreel.errors import DamagedError
from storyreel.origin import again

from .world import (
    ARRANGEMENTS,
    COLOURS,
    DUET_ACTIONS,
    Action,
    Actor,
    Character,
    Clip,
    Light,
    Look,
    Place,
    wear_of,
)

CHARACTERS, PLACES, LIGHTS = tuple(Character), tuple(Place), tuple(Light)
ACTIONS = tuple(a for a in Action if a not in (Action.FLEE, Action.CAUGHT))  # others' replies
WEIGHTS = Path(__file__).with_name("judge.safetensors")  # not among the model's: no part of it
SIZE = (144, 96)  # pixels: what it looks at; a collar is two of them high
CELL = 8  # pixels of a cell of its map
STRIDE = 2  # of the clip's frames at 12 per second, the judge looks at every second one
LONGEST = 16  # frames that it looks at, at most
WIDTHS = (48, 64, 96)
CASTS = tuple(frozenset(cast) for count in (1, 2) for cast in combinations(CHARACTERS, count))
CASTS_MATRIX = torch.tensor([[float(c in cast) for c in CHARACTERS] for cast in CASTS])
UNREADABLE = 0.0  # the score above which nobody can tell: `training.limit` moves the weights to it


@dataclass(frozen=True)
class Verdict:
    """What a clip shows: everybody in it and how they look, the place, its light and set, the action.

    ``action`` is what the first character does.
    """

    characters: frozenset[Character]
    place: Place
    action: Action
    looks: Mapping[Character, Look] = field(default_factory=dict)
    light: Light = Light.DAY
    arrangement: int = 0


@dataclass(frozen=True)
class Scores:
    """Logits for clips: (B, 6) characters, (B, 6, 4) colours and wear of each, and of the whole clip.

    ``where`` (B, T, h, w, 7) says of every cell whether it shows nobody or one of the six.
    ``ruin`` (B,) is above `UNREADABLE` where nobody can tell what the clip shows.
    """

    where: Tensor
    characters: Tensor
    colours: Tensor
    wear: Tensor
    places: Tensor
    actions: Tensor
    lights: Tensor
    arrangements: Tensor
    ruin: Tensor


@dataclass(frozen=True)
class Opinion:
    """Log-probabilities of every cast, place and action; the likeliest of everything as a verdict.

    Of a clip that is not ``readable`` the verdict means nothing: it shows none of them. ``where`` (T, h, w,
    6) is with what probability each cell of every second picture shows each of the `CHARACTERS`.
    """

    casts: Tensor
    places: Tensor
    actions: Tensor
    verdict: Verdict
    readable: bool
    ruin: float
    where: Tensor = field(default_factory=lambda: torch.empty(0, 1, 1, len(CHARACTERS)))


def truth(clip: Clip) -> Verdict:
    """Return the right verdict on a true clip: what it goes over to, not what its former one shows."""
    looks = {actor.character: actor.look for actor in clip.actors}
    backdrop = clip.backdrop
    return Verdict(frozenset(looks), clip.place, clip.action, looks, backdrop.light, backdrop.arrangement)


class _Cells(nn.Module):
    """A convolution over pictures (N, C, H, W), normalised."""

    def __init__(self, before: int, width: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, width, kernel, stride, (kernel - stride + 1) // 2, bias=False)
        self.norm = nn.GroupNorm(8, width)

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.silu(self.norm(self.convolution(pictures)))


class _Motion(nn.Module):
    """Let every cell see itself in the picture before and in the one after: (B, T, h, w, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(3 * width, width)

    def forward(self, cells: Tensor) -> Tensor:
        pad = torch.zeros_like(cells[:, :1])
        before = torch.cat([pad, cells[:, :-1]], 1)
        after = torch.cat([cells[:, 1:], pad], 1)
        return cells + nn.functional.silu(self.mix(torch.cat([before, cells, after], -1)))


class Judge(nn.Module):
    """Convolutions over each picture, cells that see their neighbours in time, and who is in which cell.

    What is asked of a character is read from the cells that show it; place, light, set, action and
    whether anybody can tell, from the mean and the maximum of all cells and from those that show anybody.
    """

    KINDS = (len(PLACES), len(ACTIONS), len(LIGHTS), ARRANGEMENTS, 1)
    EACH = (1, 4, 4)  # there, colours, wear

    def __init__(self) -> None:
        super().__init__()
        first, middle, last = WIDTHS
        self.pictures = nn.Sequential(_Cells(3, first, 6, 4), _Cells(first, middle, 3, 2))
        self.motion = nn.ModuleList([_Motion(middle), _Motion(middle)])
        self.cells = nn.ModuleList([_Cells(middle, middle), _Cells(middle, last)])
        self.where = nn.Linear(last, 1 + len(CHARACTERS))
        self.character = nn.Sequential(nn.Linear(last + 2, 160), nn.SiLU())
        self.each = nn.Linear(160, len(CHARACTERS) * sum(self.EACH))
        self.hidden = nn.Sequential(nn.Linear(4 * last, 192), nn.SiLU())
        self.head = nn.Linear(4 * last + 192, sum(self.KINDS))

    def _read(self, video: Tensor) -> Tensor:
        """Return what every cell shows: (B, T, h, w, C)."""
        batch, count = video.shape[0], video.shape[2]
        pictures = video.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        cells = self.pictures(pictures)
        for motion, step in zip(self.motion, self.cells, strict=True):
            seen = motion(cells.permute(0, 2, 3, 1).unflatten(0, (batch, count)))
            cells = step(seen.flatten(0, 1).permute(0, 3, 1, 2))
        shown: Tensor = cells.permute(0, 2, 3, 1).unflatten(0, (batch, count))
        return shown

    def forward(self, video: Tensor) -> Scores:
        """Return logits for videos (B, 3, T, H, W) in [-1, 1], of `SIZE`."""
        cells = self._read(video)
        where = self.where(cells)
        flat, shares = cells.flatten(1, 3), where.softmax(-1).flatten(1, 3)
        theirs = shares[..., 1:].transpose(1, 2)  # (B, 6, cells)
        mass = theirs.sum(2, keepdim=True) + 1e-4
        shown = theirs @ flat / mass  # (B, 6, C)
        surest = where.flatten(1, 3)[..., 1:].amax(1)[..., None]
        hidden = self.character(torch.cat([shown, mass.log(), surest], -1))
        rows = self.each.weight.unflatten(0, (len(CHARACTERS), -1))
        each = torch.einsum("bch,coh->bco", hidden, rows) + self.each.bias.view(len(CHARACTERS), -1)
        there, colours, wear = each.split(self.EACH, 2)
        acting = flat * theirs.sum(1)[..., None]
        pooled = torch.cat([flat.mean(1), flat.amax(1), acting.sum(1) / mass.sum(1), acting.amax(1)], 1)
        scores = self.head(torch.cat([pooled, self.hidden(pooled)], 1)).split(self.KINDS, 1)
        places, actions, lights, arrangements, ruin = scores
        return Scores(where, there[..., 0], colours, wear, places, actions, lights, arrangements, ruin[:, 0])

    @torch.inference_mode()
    def judge(self, clip: Tensor) -> Opinion:
        """Judge a clip, uint8 (T, H, W, 3) at 12 frames per second."""
        seen = self(as_seen(clip[::STRIDE][:LONGEST])[None])
        # A scene has one or two characters: scores of such casts only.
        casts = (CASTS_MATRIX @ seen.characters[0]).log_softmax(0)
        cast = CASTS[int(casts.argmax())]
        colours, wear = (part[0].argmax(1).tolist() for part in (seen.colours, seen.wear))
        looks = {
            who: Look(COLOURS[who][colours[i]], wear_of(who)[wear[i]])
            for i, who in enumerate(CHARACTERS)
            if who in cast
        }
        places, actions = seen.places[0].log_softmax(0), seen.actions[0].log_softmax(0)
        verdict = Verdict(
            cast,
            PLACES[int(places.argmax())],
            ACTIONS[int(actions.argmax())],
            looks,
            LIGHTS[int(seen.lights[0].argmax())],
            int(seen.arrangements[0].argmax()),
        )
        ruin = float(seen.ruin[0])
        where = seen.where[0].softmax(-1)[..., 1:]
        return Opinion(casts, places, actions, verdict, ruin <= UNREADABLE, ruin, where)


def as_seen(frames: Tensor) -> Tensor:
    """Return pictures uint8 (T, H, W, 3) of any size as the judge looks at them: (3, T, h, w) in [-1, 1]."""
    pictures = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    if pictures.shape[2:] != SIZE[::-1]:
        pictures = nn.functional.interpolate(pictures, SIZE[::-1], mode="area")
    return pictures.transpose(0, 1)


def load_judge(path: Path = WEIGHTS) -> Judge:
    """Load the judge's weights; fp16 in the file, fp32 in use. Raises DamagedError."""
    judge = Judge()
    try:
        judge.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        what = str(error).splitlines()[0]
        remedy = f"Restore {path}: {again(path)}"
        raise DamagedError(f"the judge cannot be read: {path}: {what}", remedy) from None
    return judge.eval()


def loosened(rng: Random, clip: Clip) -> Clip:
    """Return a staged clip with a freer position, size, phase, ground and colours.

    The judge is to know a walking dog also where the model's own lessons never put one.
    """

    def free(actor: Actor) -> Actor:
        return replace(
            actor,
            x=actor.x + rng.uniform(-0.05, 0.05),
            size=actor.size * rng.uniform(0.93, 1.07),
            phase=rng.uniform(0.0, 1.0 if clip.action not in DUET_ACTIONS else 0.3),
            tint=(rng.randint(-9, 9), rng.randint(-9, 9), rng.randint(-9, 9)),
        )

    actors = {actor.character: free(actor) for actor in clip.actors}

    def freed(former: Actor) -> Actor:
        same = actors.get(former.character)
        free_one = free(former)
        return replace(free_one, size=same.size, tint=same.tint) if same else free_one

    ground = clip.backdrop.ground + rng.uniform(-1.0, 0.8)
    backdrop = replace(clip.backdrop, ground=ground)
    former = clip.former and replace(
        clip.former, backdrop=backdrop, actors=tuple(freed(actor) for actor in clip.former.actors)
    )
    return replace(clip, backdrop=backdrop, actors=tuple(actors.values()), former=former)
