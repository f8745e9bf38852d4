"""Scoring a film: worked by hand, with the judge and the encoder that its model has, and kept beside it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from storyreel.errors import StoryreelError
from storyreel.evaluation import evaluator as module
from storyreel.evaluation import kept_scores, verdicts
from storyreel.evaluation.encoders import Encoders
from storyreel.evaluation.evaluator import Evaluator
from storyreel.evaluation.films import Film, looked_at, rendered_film
from storyreel.files import file_hash
from storyreel.film import reader
from storyreel.film.reader import Facts
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.story.plan import Plan
from storyreel.story.planning import make_plan
from storyreel.story.schema import load_story
from tests.conftest import ROOT, FakeScorer, plan_of
from tests.mini.test_verdicts import drawn
from tests.tiny import CPU

TEXT = """\
render: {model: fake}
scenes:
  - ["a park", "a fox sits"]
  - ["a street", "it walks"]
  - {scene: "a bus", action: "it looks", transition: cut}
"""
Shows = Callable[[Plan, Tensor], Film]


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a fresh install."""
    monkeypatch.setattr(Encoders, "folder", lambda self, name: None)


@pytest.fixture
def reads() -> list[tuple[int, int]]:
    """The sizes that films were read with."""
    return []


@pytest.fixture
def shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[tuple[int, int]]) -> Shows:
    """Return a film that a plan's render might have left, and make it show given frames in odd chunks."""

    def show(plan: Plan, frames: Tensor) -> Film:
        chunks = [chunk.contiguous().numpy().tobytes() for chunk in frames.split(7)]
        height, width = frames.shape[1:3]

        def read(path: Path, *size: Any) -> Any:
            reads.append(size[:2])
            assert size[:2] == (width, height)
            return iter(chunks)

        monkeypatch.setattr(reader, "read_frames", read)
        monkeypatch.setattr(reader, "probe", lambda path: Facts(width, height, plan.spec.fps, {}, ()))
        film = tmp_path / "shown" / "shown.mp4"
        film.parent.mkdir(exist_ok=True)
        film.write_bytes(b"film")
        manifest = {
            "title": plan.title,
            "story": plan.story,
            "model": {"name": plan.spec.name},
            "settings": {"fps": plan.spec.fps},
            "segments": [
                {"scene": s.scene, "action": s.action, "start": s.start, "frames": s.frames}
                for s in plan.segments
            ],
            "film": {"file": film.name, "sha256": hashlib.sha256(b"film").hexdigest()},
        }
        film.with_name("manifest.json").write_text(json.dumps(manifest))
        return looked_at(rendered_film("run", "shown", "shown", film.parent), plan.spec.fps)

    return show


def scored(film: Film, **options: Any) -> dict[str, Any]:
    return Evaluator(CPU, **options).score(film, lambda frames: None).scores


def greys(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 64, 96, 3)


def an_encoder(folder: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a text-image encoder into a model's weights: it finds what ``content`` says in bright pictures."""
    (folder / "scorer").mkdir(parents=True)
    (folder / "scorer" / "model.safetensors").write_text(content)

    class Loaded:
        @staticmethod
        def load(folder: Path, device: torch.device) -> FakeScorer:
            return FakeScorer((folder / "model.safetensors").read_text())

    monkeypatch.setattr(module, "Scorer", Loaded)
    return folder


def test_scores_worked_by_hand(fake_model: ModelSpec, shows: Shows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 6 frames of grey: rising by 2, a seam of 9, rising by 4, a cut, still.

    All of it is near a border, so all of it counts as inside: the median step is 3.
    """
    first, second = [10, 12, 14, 16, 18, 20], [29, 33, 37, 41, 45, 49]
    film = shows(plan_of(TEXT), greys([*first, *second, *[255] * 6]))
    an_encoder(fake_model.weights, "a bus", monkeypatch)
    scores = scored(film)
    assert [scene["motion"] for scene in scores["scenes"]] == [2, 4, 0]
    assert scores["film"]["motion"] == 2
    seam, cut = scores["seams"]
    assert seam == {"after": 1, "blended": True, "seam_ratio": 3, "largest_step": 3, "double_exposure": 0}
    assert cut["seam_ratio"] == pytest.approx(206 / 3)
    assert scores["film"]["seam_ratio"] == scores["film"]["largest_step_max"] == 3  # of the seam alone
    bus = scores["scenes"][2]  # white pictures: all that its scene prompt wants, nothing of its action
    assert (bus["scene_fit"], bus["action_fit"]) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert scores["scenes"][0]["scene_fit"] > 0.9  # dark ones
    assert bus["shown"] == 0  # which are none of the cartoon world's


def test_a_film_that_ends_early_is_refused(fake_model: ModelSpec, shows: Shows) -> None:
    with pytest.raises(StoryreelError, match="ends after 17 of 18 looks"):
        scored(shows(plan_of(TEXT), greys([0] * 17)))


class TestJudge:
    """Of films as small as they are made."""

    @staticmethod
    def plan() -> Plan:
        story = load_story(ROOT / "stories" / "dc.yaml")
        return make_plan(story.model_copy(update={"scenes": story.scenes[2:5]}), "dc")

    def test_a_known_world_is_judged(self, shows: Shows, reads: list[tuple[int, int]]) -> None:
        film = shows(self.plan(), torch.cat([drawn(2), drawn(3), drawn(6)]))
        scores = scored(film)
        assert [s["characters"] for s in scores["scenes"]] == [100, 100, 0]
        assert [s["place"] for s in scores["scenes"]] == [100] * 3
        assert [s["same_place"] for s in scores["seams"]] == [False, True]
        of_film = scores["film"]
        assert of_film["characters"] == pytest.approx(200 / 3)
        ratio = of_film["seam_ratio_same_place"]
        assert ratio == scores["seams"][1]["seam_ratio"] != of_film["seam_ratio"]
        assert of_film["largest_step_place_change"] == scores["seams"][0]["largest_step"]
        assert len(reads) == 2  # once for the judge

    def test_a_film_that_something_else_made_is_judged_too(self, shows: Shows) -> None:
        film = shows(self.plan(), torch.cat([drawn(2), drawn(3), drawn(6)]))
        foreign = replace(film, folder=None, weights=None, cost={})
        assert scored(foreign)["film"]["place"] == 100

    @pytest.mark.parametrize(("width", "seen"), [(768, 192), (384, 192), (200, 200), (192, 192), (96, 96)])
    def test_pictures_are_seen_as_the_model_made_them(
        self, width: int, seen: int, shows: Shows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Brought back from what the film enlarged, but never to less, whoever made them smaller."""
        film = shows(self.plan(), greys([0]))
        monkeypatch.setattr(reader, "probe", lambda path: Facts(width, width // 2, 12, {}, ()))
        monkeypatch.setattr(reader, "read_frames", lambda path, w, h, *_: iter([bytes(w * h * 3)]))
        sizes = []
        monkeypatch.setattr(
            verdicts, "asked", lambda place: lambda s, a, frames, _: sizes.append(next(frames).shape)
        )
        verdicts.film_verdict(film)
        assert sizes == [(1, seen // 2, seen, 3)]

    @pytest.mark.parametrize("change", ["own", "fps", "story"])
    def test_nobody_is_judged_who_cannot_be(self, change: str, shows: Shows) -> None:
        """Unasked, looked at more rarely than the judge knows it, and in a story without a known truth."""
        film = shows(self.plan(), torch.cat([drawn(2), drawn(3), drawn(6)]))
        if change == "fps":
            film = looked_at(film, 6)
        if change == "story":
            film = replace(film, spans=(*film.spans[:2], replace(film.spans[2], action="cooks")))
        scores = scored(film, own=change != "own")
        assert verdicts.looks_of_judge(film) == (12 if change == "fps" else None)  # which a note says
        assert scores["film"]["characters"] is None
        assert "same_place" not in scores["seams"][0]

    def test_nothing_is_nobody(self, shows: Shows) -> None:
        """Grey noise is right in no scene, though a judge would find somebody in it."""
        noise = torch.randint(90, 160, (72, 128, 192, 3), generator=torch.Generator().manual_seed(0))
        scores = scored(shows(self.plan(), noise.to(torch.uint8)))
        assert [(s["characters"], s["place"], s["action"]) for s in scores["scenes"]] == [(0, 0, 0)] * 3
        assert [s["transition_characters"] for s in scores["seams"]] == [0, 0]


class TestOwnEncoder:
    """The encoder that a film was made with is asked, or none."""

    @pytest.fixture
    def film(self, fake_model: ModelSpec, shows: Shows) -> Film:
        return shows(plan_of(TEXT), greys([255] * 18))

    @staticmethod
    def made_with(film: Film, content: str) -> Film:
        hashed = hashlib.sha256(content.encode()).hexdigest()
        return replace(film, weights={"scorer/model.safetensors": hashed, "vae/model.safetensors": "0"})

    def test_that_of_the_weights_it_was_made_with(
        self, film: Film, fake_model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        an_encoder(fake_model.weights, "a bus", monkeypatch)
        other = an_encoder(tmp_path / "mine", "a park", monkeypatch)
        film = self.made_with(film, "a park")
        scores = scored(film, weights=other)
        assert [round(s["scene_fit"], 3) for s in scores["scenes"]] == [1, 0, 0]  # of white pictures
        film = self.made_with(film, "a bus")
        for given in (None, other):
            scores = scored(film, weights=given)
            assert [round(s["scene_fit"], 3) for s in scores["scenes"]] == [0, 0, 1]

    def test_where_they_are_not_here_it_is_not_asked_and_the_film_says_so(
        self, film: Film, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        an_encoder(fake_model.weights, "a bus", monkeypatch)
        found = Evaluator(CPU).score(self.made_with(film, "a park"), lambda frames: None)
        assert "scene_fit" not in found.scores["scenes"][0]
        (note,) = found.notes
        assert "--weights" in note
        assert (
            Evaluator(CPU, own=False).score(self.made_with(film, "a park"), lambda frames: None).notes == []
        )

    def test_of_a_film_of_which_only_the_model_is_known_the_tables(
        self, film: Film, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        an_encoder(fake_model.weights, "a bus", monkeypatch)
        assert scored(film)["film"]["scene_fit"] is not None
        assert scored(replace(film, weights={"vae/model.safetensors": "0"}))["film"]["scene_fit"] is None


class TestKeptScores:
    @pytest.fixture
    def film(self, fake_model: ModelSpec, shows: Shows) -> Film:
        return shows(plan_of(TEXT), greys([7 * i % 200 for i in range(18)]))

    def test_a_film_is_looked_at_once(self, film: Film, reads: list[tuple[int, int]]) -> None:
        first = Evaluator(CPU).score(film, lambda frames: None)
        assert len(reads) == 1
        assert Evaluator(CPU).score(film, lambda frames: None) == first
        assert len(reads) == 1
        assert first.pictures[0].middle.startswith(b"\xff\xd8")

    @pytest.mark.parametrize("damage", [b"{", b"[]", b'{"key": 1}', b"", b"true", b"other"])
    def test_damaged_ones_do_not_count(self, damage: bytes, film: Film, reads: list[tuple[int, int]]) -> None:
        before = scored(film)
        path = film.path.with_name("scores.json")
        content = path.read_bytes().replace(b'"blended": true', b'"blended": null')
        path.write_bytes(content if damage == b"other" else damage)
        assert scored(film) == before
        assert len(reads) == 2

    @pytest.mark.parametrize("change", ["file", "prompt", "times", "cost", "own", "encoder"])
    def test_what_shapes_a_score_is_covered(
        self, change: str, film: Film, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scored(film)
        other = {
            "file": replace(film, sha256="0"),
            "prompt": replace(film, spans=(replace(film.spans[0], action="it jumps"), *film.spans[1:])),
            "times": replace(film, picks=(0, *film.picks[:-1])),
            "cost": replace(film, cost={"latents": 1}),
        }.get(change, film)
        if change == "encoder":
            an_encoder(MODELS["fake"].weights, "a bus", monkeypatch)
        scored(other, own=change != "own")
        assert len(reads) == 2

    @pytest.mark.parametrize(
        "changed",
        [
            "evaluation/seams.py",
            "evaluation/metrics.toml",
            "film/reader.py",
            "models/scorer.py",
            "mini/judge.safetensors",
            "mini/judge.py",
            "mini/world/places.py",
        ],
    )
    def test_an_edit_of_what_it_is_measured_by_is_covered(
        self, changed: str, film: Film, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        edited = ROOT / "storyreel" / changed
        for name in ("_own_code", "_code_beside"):
            monkeypatch.setattr(kept_scores, name, getattr(kept_scores, name).__wrapped__)
        before = kept_scores.scores_key(film, [])
        monkeypatch.setattr(kept_scores, "file_hash", lambda p: "another" if p == edited else file_hash(p))
        assert kept_scores.scores_key(film, []) != before

    def test_where_nothing_can_be_written_a_film_is_scored_all_the_same(
        self, film: Film, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(kept_scores, "write_atomically", refuse)
        assert scored(film)["film"]["motion"] > 0
        assert not film.path.with_name("scores.json").exists()


def test_the_folder_of_a_copy_has_its_scores_too(
    fake_model: ModelSpec, shows: Shows, reads: list[tuple[int, int]], tmp_path: Path
) -> None:
    film = shows(plan_of(TEXT), greys(range(18)))
    before = scored(film)
    shutil.copytree(film.path.parent, tmp_path / "copy")
    copied = rendered_film("run", "copy", "copy", tmp_path / "copy")
    assert scored(looked_at(copied, 12)) == before
    assert len(reads) == 1
