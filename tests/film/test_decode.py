"""Segments become films: how many pictures, which are dissolved, and what is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
import torch
from torch import Tensor

from storyreel.film.decode import FilmStream
from storyreel.film.dissolve import HELD
from storyreel.models.specs import ModelSpec
from storyreel.story.plan import Plan, Segment
from tests.conftest import FakeAdapter, FakeDecoder, plan_of


class FakeWriter:
    """An encoder that keeps every frame as it is."""

    def __init__(
        self, path: Path, width: int, height: int, fps: int, upscale: int, parts: Sequence[int] = ()
    ) -> None:
        self._path, self._frames = path, bytearray()

    def __enter__(self) -> FakeWriter:
        return self

    def write(self, frames: bytes) -> None:
        self._frames += frames

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._path.write_bytes(self._frames)


@pytest.fixture(autouse=True)
def plain_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storyreel.film.writer.SegmentWriter", FakeWriter)


def film_plan(transitions: str = "bb", seconds: float = 2.0, **overrides: object) -> Plan:
    """A plan of one scene more than ``transitions``.

    b is a dissolve, g a shot that goes on, c a cut,
    f a fade, w a dip to white."""
    names = {"b": "dissolve", "g": "continue", "c": "cut", "f": "fade", "w": "dip"}
    lines = [
        f"  - {{scene: a, action: {index}x, transition: {names[t]}}}"
        for index, t in enumerate("b" + transitions)
    ]
    text = f"render: {{model: fake, seconds: {seconds}}}\nscenes:\n" + "\n".join(lines)
    return plan_of(text, **overrides)


def latents(segment: Segment) -> Tensor:
    """Latents that grow from dark to grey in one segment, and from bright to grey in the next.

    The very first is unlike those after it: where it stands still, it shows.
    """
    frames = torch.arange(segment.lead + segment.latents)
    greys = (frames * 0.05 + segment.index * 0.01 - 0.8) * (-1.0 if segment.index % 2 else 1.0)
    greys[0] = 0.3
    return greys.view(1, 1, -1, 1, 1).expand(1, 48, -1, 8, 12)


def films(
    plan: Plan,
    path: Path,
    wanted: Collection[int] | None = None,
    pushed: Collection[int] | None = None,
) -> tuple[dict[int, list[int]], list[int]]:
    """The greys of every segment's film, and the segments that were told to be written."""
    told: list[int] = []
    everything = range(len(plan.segments))
    path.mkdir()
    adapter = FakeAdapter(plan.spec)
    wanted = everything if wanted is None else wanted
    with FilmStream(plan, adapter, wanted, placed(path), lambda s, _: told.append(s.index)) as stream:
        for segment in plan.segments:
            if pushed is None or segment.index in pushed:
                stream.push(segment, latents(segment))
        stream.finish()
    found = {}
    for segment in plan.segments:
        if placed(path)(segment).exists():
            raw = np.frombuffer(placed(path)(segment).read_bytes(), np.uint8)
            pictures = raw.reshape(-1, plan.settings.height, plan.settings.width, 3)
            assert (pictures == pictures[:, :1, :1, :1]).all()
            found[segment.index] = pictures[:, 0, 0, 0].tolist()
    assert not list(path.glob(".*"))
    return found, told


def placed(folder: Path) -> Callable[[Segment], Path]:
    """Say where a segment's film goes."""
    return lambda segment: folder / f"{segment.number}.mp4"


def decoded(plan: Plan, segment: Segment) -> tuple[list[int], list[int]]:
    """A segment's own greys as they are without its neighbours: of its lead, and of itself."""
    greys = FakeDecoder(plan.spec).push(latents(segment))[:, 0, 0, 0].tolist()
    return greys[: -segment.frames], greys[-segment.frames :]


def expected(plan: Plan) -> dict[int, list[int]]:
    """The film, picture by picture: in a dissolve, the earlier one fades while the later one comes."""
    own = {s.index: decoded(plan, s)[1] for s in plan.segments}
    film = {index: list(greys) for index, greys in own.items()}
    for seam in plan.seams:
        if seam.transition != "dissolve":
            continue
        earlier, later = own[seam.after - 1], own[seam.after]
        held = round(HELD * plan.spec.fps)
        before, after = min(held, len(earlier) // 2), min(held, len(later) // 2)
        for time in range(-before, after):  # 0 is the later segment's first own picture
            share = (time + before + 0.5) / (before + after)
            a, b = earlier[min(time, -1)], later[max(time, 0)]
            shown, place = (seam.after - 1, time) if time < 0 else (seam.after, time)
            film[shown][place] = round(a + (b - a) * share)
    return film


@pytest.mark.parametrize(
    ("seconds", "overlap"), [(0.25, 1), (0.5, 1), (0.5, 2), (1.0, 4), (2.0, 1), (2.0, 4), (2.75, 1)]
)
def test_frames_and_the_dissolve_are_where_they_belong(
    fake_model: ModelSpec, tmp_path: Path, seconds: float, overlap: int
) -> None:
    plan = film_plan("bgbc", seconds, method=(f"overlap={overlap}",))
    assert [seam.overlap for seam in plan.seams] == [0, overlap, 0, 0]
    found, told = films(plan, tmp_path / "film")
    assert told == [0, 1, 2, 3, 4]
    assert {index: len(greys) for index, greys in found.items()} == {s.index: s.frames for s in plan.segments}
    for index, greys in expected(plan).items():
        assert np.abs(np.subtract(found[index], greys)).max() <= 1, index  # halves may round either way


def test_a_dissolve_is_as_long_as_it_says_and_the_rest_is_untouched(
    fake_model: ModelSpec, tmp_path: Path
) -> None:
    plan = film_plan("b")
    found, _ = films(plan, tmp_path / "film")
    first, second = decoded(plan, plan.segments[0])[1], decoded(plan, plan.segments[1])[1]
    # A sixth of a second on either side is two pictures.
    assert (found[0][:-2], found[1][2:]) == (first[:-2], second[2:])
    assert found[0][-2] != first[-2]
    assert found[1][1] != second[1]


def test_where_a_shot_goes_on_nothing_is_mixed_and_no_lead_is_shown(
    fake_model: ModelSpec, tmp_path: Path
) -> None:
    plan = film_plan("gg")
    assert [segment.lead for segment in plan.segments] == [1, 2, 2]
    assert films(plan, tmp_path / "film")[0] == {s.index: decoded(plan, s)[1] for s in plan.segments}


def test_a_cut_is_not_dissolved(fake_model: ModelSpec, tmp_path: Path) -> None:
    plan = film_plan("cb")
    found, told = films(plan, tmp_path / "film")
    assert told == [0, 1, 2]
    own = [decoded(plan, segment)[1] for segment in plan.segments]
    assert found[0] == own[0]
    assert found[1][:-2] == own[1][:-2]
    assert found[1] != own[1]
    faded = film_plan("bb", method=("blending=crossfade",))
    assert films(faded, tmp_path / "faded")[0][1][6:-6] == decoded(faded, faded.segments[1])[1][6:-6]
    assert films(faded, tmp_path / "again")[0][1][5] != decoded(faded, faded.segments[1])[1][5]
    apart = film_plan("bb", without=frozenset({"twb"}))
    assert films(apart, tmp_path / "apart")[0] == {s.index: decoded(apart, s)[1] for s in apart.segments}


@pytest.mark.parametrize(("letter", "grey"), [("f", 0), ("w", 255)])
def test_a_fade_passes_through_a_plain_colour(
    fake_model: ModelSpec, tmp_path: Path, letter: str, grey: int
) -> None:
    """Of either scene it needs that scene alone: each is written without the other."""
    plan = film_plan(letter)
    (_, first), (_, second) = (decoded(plan, segment) for segment in plan.segments)
    alone = [films(plan, tmp_path / str(i), {i}, {i})[0][i] for i in (0, 1)]
    out = [round(value + (grey - value) * (i + 1) / 5) for i, value in enumerate(first[-5:])]
    into = [round(grey + (value - grey) * (i + 1) / 6) for i, value in enumerate(second[:5])]
    assert alone[0][:-5] == first[:-5]
    assert alone[1][5:] == second[5:]
    assert np.abs(np.subtract(alone[0][-5:], out)).max() <= 1
    assert np.abs(np.subtract(alone[1][:5], into)).max() <= 1
    assert alone[0][-1] == grey
    assert films(plan, tmp_path / "both")[0] == dict(enumerate(alone))


@pytest.mark.parametrize("wanted", [{0}, {1}, {2}, {0, 2}, set()])
def test_only_what_is_wanted_is_written_and_it_is_the_same(
    fake_model: ModelSpec, tmp_path: Path, wanted: set[int]
) -> None:
    plan = film_plan("bb")
    whole, _ = films(plan, tmp_path / "whole")
    found, told = films(plan, tmp_path / "film", wanted)
    assert told == sorted(wanted)
    assert found == {index: whole[index] for index in wanted}


def test_segments_that_nobody_needs_can_be_left_out(fake_model: ModelSpec, tmp_path: Path) -> None:
    """Wanted are 0 and 5, so 2 and 3 are not even decoded; 4 has nothing to do with 1."""
    plan = film_plan("bbbbb").settled([0.9, 0.9, 0.0, 0.0, 0.0])
    whole, _ = films(plan, tmp_path / "whole")
    found, told = films(plan, tmp_path / "film", {0, 5}, {0, 1, 4, 5})
    assert told == [0, 5]
    assert found == {index: whole[index] for index in (0, 5)}


def test_a_film_of_the_wrong_length_is_a_bug(fake_model: ModelSpec, tmp_path: Path) -> None:
    plan = film_plan("b")
    stream = FilmStream(plan, FakeAdapter(plan.spec), {0}, placed(tmp_path), lambda s, _: None)
    with pytest.raises(RuntimeError, match="scene 01 has 22 pictures, planned were 25"), stream:
        stream.push(plan.segments[0], latents(plan.segments[0])[:, :, :-1])
        stream.finish()


def test_frames_that_lack_a_scene_are_a_bug(fake_model: ModelSpec, tmp_path: Path) -> None:
    """The last frames of the first scene show the second, which is not pushed."""
    plan = film_plan("b")
    stream = FilmStream(plan, FakeAdapter(plan.spec), {0}, placed(tmp_path), lambda s, _: None)
    with pytest.raises(RuntimeError, match="scene 01 show a scene that was not decoded"), stream:
        stream.push(plan.segments[0], latents(plan.segments[0]))
        stream.finish()
    assert list(tmp_path.glob("*.mp4")) == []


def test_an_interrupt_leaves_no_half_film(fake_model: ModelSpec, tmp_path: Path) -> None:
    plan = film_plan("b")
    folder = tmp_path / "film"
    folder.mkdir()
    stream = FilmStream(plan, FakeAdapter(plan.spec), {0, 1}, placed(folder), lambda s, _: None)
    with pytest.raises(KeyboardInterrupt), stream:
        stream.push(plan.segments[0], latents(plan.segments[0]))
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == []


def test_portraits_before_the_end_of_a_shot_are_not_decoded(
    fake_model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = "  - ['{fox} in a park', it sits]\n  - ['{fox} in a park', it walks]\n"
    text = f"cast: {{fox: {{name: a fox}}}}\nrender: {{model: fake}}\nscenes:\n{scenes}"
    adapter, decoded = FakeAdapter(fake_model), list[Tensor]()
    whole = adapter.decode

    def decode(latents: Tensor) -> Tensor:
        decoded.append(latents)
        return whole(latents)

    monkeypatch.setattr(adapter, "decode", decode)
    plan = plan_of(text, method=("portraits=scenes",))
    pushed = [latents(segment) for segment in plan.segments]
    with FilmStream(
        plan, adapter, range(2), lambda s: tmp_path / s.number, lambda s, seconds: None
    ) as stream:
        for segment, x in zip(plan.segments, pushed, strict=True):
            stream.push(segment, x)
        stream.finish()
    assert torch.equal(decoded[0], pushed[0])
    assert plan.segments[1].lead == 1 + plan.seams[0].overlap
    assert torch.equal(decoded[1], pushed[1][:, :, 1:])
