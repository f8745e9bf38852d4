"""What becomes of a look at a film: with a planted encoder, whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from storyreel.evaluation.films import Film, Span
from storyreel.evaluation.findings import findings
from storyreel.evaluation.frames import FrameNumbers, Look, Pictures, SceneLook
from storyreel.evaluation.kept import SceneSeen
from storyreel.evaluation.report import worst_places
from storyreel.evaluation.result import Scored
from storyreel.evaluation.scores import film_scores
from storyreel.evaluation.verdicts import FilmVerdict, SceneVerdict, SeamVerdict
from storyreel.evaluation.weights import BLIP, CLIP, DINO, DINO1, OWN

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}
SCENES = ("red", "green", "blue")


class Painter:
    """Knows what colours a text names, and test cards, which are of no colour in particular."""

    longest = 4

    def cut(self, prompts: Sequence[str]) -> int:
        return sum(len(prompt.split()) > self.longest for prompt in prompts)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        found = [
            sum((torch.tensor(COLOURS[w]) for w in p.split() if w in COLOURS), torch.zeros(3))
            for p in prompts
        ]
        return F.normalize(torch.stack(found) + 1e-3, dim=1)


def film(prompts: Sequence[str] = SCENES, length: int = 24) -> Film:
    others = {"a panda": "green"}
    spans = tuple(
        Span(
            prompt,
            f"a thing moves {prompt}",
            length * i,
            length * (i + 1),
            i > 0,
            others if prompt == "red" else {},
        )
        for i, prompt in enumerate(prompts)
    )
    return Film("run", "colours", Path("colours.mp4"), "Colours", 12.0, spans, "mini")


def look(
    frames: Tensor,
    vectors: Sequence[dict[str, Tensor]],
    strangeness: Sequence[float | None] = (None,) * 3,
    shots: Sequence[Tensor | None] = (None,) * 3,
) -> Look:
    numbers = FrameNumbers()
    for chunk in frames.split(7):
        numbers.see(chunk)
    scenes = [
        SceneLook(v, {}, Pictures(b"", b"", b""), strange, shot=shot)
        for v, strange, shot in zip(vectors, strangeness, shots, strict=False)
    ]
    borders = [None] * (len(vectors) - 1)
    return Look(numbers, scenes, borders, None, borders)


def painted(colours: Sequence[str] = SCENES, length: int = 24) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Frames that move a little, and each scene's pictures as vectors."""
    base = torch.tensor([COLOURS[colour] for colour in colours]).repeat_interleave(length, 0) * 200
    flicker = torch.arange(len(base)) % 2 * 4
    frames = (base + flicker[:, None]).to(torch.uint8)[:, None, None].expand(-1, 16, 16, 3)
    vectors = [Painter().embed_texts([colour]).expand(4, -1) for colour in colours]
    return frames, [{OWN: v, CLIP: v, DINO: v, DINO1: v} for v in vectors]


def scored(prompts: Sequence[str] = SCENES, colours: Sequence[str] = SCENES) -> dict[str, Any]:
    return film_scores(film(prompts), look(*painted(colours)), {OWN: Painter(), CLIP: Painter()})


def test_right_prompts_beat_rotated_ones() -> None:
    right, rotated = scored()["film"], scored(("green", "blue", "red"))["film"]
    for metric in ("clip_add", "clip_combined", "clip_told_apart", "scene_fit", "action_fit", "told_apart"):
        assert right[metric] > rotated[metric] + 0.5, metric
    assert right["clip_add"] == pytest.approx(1, abs=0.01)


def test_prompts_that_an_encoder_cuts_are_counted() -> None:
    found = {"cut": 3, "of": 9, "reads": 4}  # scene and action together
    assert scored()["prompts_cut"] == [{"encoder": name, **found} for name in (OWN, CLIP)]
    texts, long = {OWN: Painter()}, film(("red " * 5, "green", "blue"))
    scores = film_scores(long, look(*painted()), texts, {BLIP: Painter()})
    assert scores["prompts_cut"] == [
        {"encoder": OWN, "cut": 5, "of": 9, "reads": 4},
        {"encoder": BLIP, "cut": 3, "of": 3, "reads": 4},  # it is given joined texts alone
    ]
    notes = Scored(long, scores, [], []).notes
    assert notes[0] == (
        "5 of its 9 prompts, alone and joined, are longer than the 4 tokens that the model's own encoder "
        "reads: it was given their beginnings"
    )
    Painter.longest = 64
    try:
        assert scored()["prompts_cut"] == []
    finally:
        Painter.longest = 4


def test_a_scene_is_told_from_the_one_it_looks_like() -> None:
    scores = scored(colours=("red", "blue", "blue"))
    entry = scores["scenes"][1]
    assert entry["told_apart"] < -0.9
    assert entry["told_apart_from"] == 3
    assert [f.scene for f in findings(film(), scores) if f.metric == "told_apart"] == [2]


def test_prompts_that_say_nearly_the_same_are_no_rivals() -> None:
    scores = scored(("red", "red , again", "blue"), ("red", "red", "blue"))
    assert [entry["told_apart_from"] for entry in scores["scenes"]] == [3, 3, 1]


def test_another_character_is_told_by_name() -> None:
    entry = scored(colours=("green", "green", "blue"))["scenes"][0]
    assert entry["identity"] < -0.9
    assert entry["identity_rival"] == "a panda"
    assert "identity" not in scored()["scenes"][1]  # nobody else is named there


def test_what_cannot_be_recognised_is_no_other_character_either() -> None:
    """It is nobody, however near to somebody: and which scene it looks like is not said."""
    frames, vectors = painted(("green", "green", "blue"))
    texts = {OWN: Painter()}
    known = film_scores(film(), look(frames, vectors, (0.9, 0.9, 0.9)), texts)
    assert [entry["shown"] for entry in known["scenes"]] == [1, 1, 1]
    assert known["scenes"][0]["identity_rival"] == "a panda"
    scores = film_scores(film(), look(frames, vectors, (1.1, 0.9, 0.9)), texts)
    first, second, _ = scores["scenes"]
    assert (first["shown"], second["shown"]) == (0, 1)
    assert {"identity", "told_apart", "told_apart_from"} & set(first) == set()
    assert first["scene_fit"] == known["scenes"][0]["scene_fit"]
    assert scores["film"]["shown"] == pytest.approx(2 / 3)
    (finding,) = (f for f in findings(film(), scores) if f.scene == 1)
    assert finding.words == "Scene 1 cannot be recognised."
    strange = film_scores(film(), look(frames, vectors, (2, 2, 2)), texts)
    assert strange["film"]["identity"] is None
    (finding,) = (f for f in findings(film(), strange) if f.metric == "shown")  # said once
    assert finding.words.startswith("No scene can be recognised")
    assert "shown" not in scored()["scenes"][0]  # nobody knows


def test_a_test_card_shows_none_of_the_story_to_clip() -> None:
    """CLIP has it among its choices, beside the scenes and the characters."""

    class Watcher(Painter):
        def embed_texts(self, prompts: Sequence[str]) -> Tensor:
            found = super().embed_texts(prompts)
            cards = torch.tensor([[float("test card" in prompt)] for prompt in prompts])
            return F.normalize(torch.cat([found * (1 - cards), cards], 1), dim=1)

    card = F.normalize(torch.tensor([[0.3, 0.4, 0.3, 0.5]]), dim=1).expand(4, -1)
    frames, _ = painted()
    right = [Watcher().embed_texts([colour]).expand(4, -1) for colour in SCENES]
    texts = {CLIP: Watcher()}
    scores = film_scores(film(), look(frames, [{CLIP: v} for v in (card, *right[1:])]), texts)
    assert [entry["clip_shown"] for entry in scores["scenes"]] == [0, 1, 1]
    assert {"clip_identity", "clip_told_apart"} & set(scores["scenes"][0]) == set()
    words = [f.words for f in findings(film(), scores) if f.scene == 1]
    assert words == ["Scene 1 shows nothing that the story tells of."]
    right_film = film_scores(film(), look(frames, [{CLIP: v} for v in right]), texts)
    assert right_film["film"]["clip_shown"] == 1
    assert right_film["scenes"][0]["clip_identity"] > 0.5


def test_a_look_that_the_judge_misses_is_said_in_words() -> None:
    scenes = (
        SceneVerdict(True, True, False, looks=True),
        SceneVerdict(True, True, True, looks=False, looks_missing="a red scarf and night"),
        SceneVerdict(True, True, True),  # states none
    )
    verdict = FilmVerdict(scenes, (SeamVerdict(1, True, True),))
    scores = film_scores(film(), look(*painted()), {}, None, verdict)
    assert [scene.get("looks") for scene in scores["scenes"]] == [100, 0, None]
    assert (scores["film"]["looks"], scores["film"]["characters"]) == (50, 100)
    (finding,) = (f for f in findings(film(), scores) if f.metric == "looks")
    assert (finding.scene, finding.words) == (2, "Scene 2 should show a red scarf and night.")


def test_identical_pictures_are_consistent_and_shuffled_ones_less() -> None:
    ramp = F.normalize(torch.stack([torch.linspace(0.1, 1, 12), torch.linspace(1, 0.1, 12)], 1), dim=1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    frames, same = painted()
    looks = [same, *([{DINO: v, DINO1: v, CLIP: v}] * 3 for v in (ramp, ramp[order]))]
    values = [film_scores(film(), look(frames, vectors), {})["film"] for vectors in looks]
    assert values[0]["dino"] == pytest.approx(1)
    for metric in ("dino", "subject_consistency", "background_consistency"):
        assert values[1][metric] > values[2][metric] + 0.01, metric


def test_frames_tell_where_they_stand_still_jump_and_are_black() -> None:
    frames, vectors = painted()
    spoilt = frames.clone()
    spoilt[6:17] = spoilt[6]  # eleven frames of scene 1
    spoilt[36:] = 5  # the film is black from the middle of scene 2 on
    scores = film_scores(film(), look(spoilt, vectors), {})
    first, second, third = scores["scenes"]
    assert (first["frozen"], first["frozen_at"]) == (11 / 12, 0.5)
    assert second["black"] == 1.0
    assert third["black"] == 2.0
    assert second["jump_at"] == 3.0
    assert second["jump"] > 10
    assert {f.metric for f in findings(film(), scores)} >= {"frozen", "black", "jump"}
    assert film_scores(film(), look(frames, vectors), {})["film"]["frozen"] == 0


def test_a_fade_that_is_meant_is_no_black_scene_and_no_other_tint() -> None:
    """Ten of a scene's 24 frames on their way through black, and back."""
    frames, vectors = painted()
    faded = frames.clone()
    faded[19:29] = 0
    seen = look(faded, vectors)
    spans = film().spans
    leaving = replace(spans[0], fades=(False, True))
    coming = replace(spans[1], fades=(True, False), goes_on=False)
    meant = replace(film(), spans=(leaving, coming, spans[2]))
    black, clear = (film_scores(one, seen, {})["scenes"] for one in (film(), meant))
    assert [scene["black"] for scene in black] == pytest.approx([5 / 12, 5 / 12, 0])
    assert [scene["black"] for scene in clear] == [0, 0, 0]
    assert [scene["colour_drift"] for scene in clear[:2]] == pytest.approx([0, 0], abs=1)
    assert min(scene["colour_drift"] for scene in black[:2]) > 10
    found = findings(meant, film_scores(meant, seen, {}))
    assert "black" not in {finding.metric for finding in found}


def test_smoothness_comes_with_motion() -> None:
    """A still is perfectly smooth: that it does not move is beside it."""
    frames, vectors = painted()
    still = film_scores(film(), look(frames[:1].expand(72, -1, -1, -1), vectors), {})["film"]
    assert still["flicker"] == 1
    assert still["ssim"] == pytest.approx(1, abs=1e-5)
    assert still["motion"] == still["moving"] == 0
    moving = film_scores(film(), look(frames, vectors), {})["film"]
    assert moving["motion"] > 1
    assert moving["flicker"] < 1


def test_cuts_that_are_meant_are_no_bad_seams() -> None:
    """They are measured all the same; in the film's own number only where its story wants nothing smooth."""
    one_cut, cuts = film(), film()
    one_cut = replace(one_cut, spans=(*one_cut.spans[:2], replace(one_cut.spans[2], blended=False)))
    cuts = replace(cuts, spans=tuple(replace(span, blended=False) for span in cuts.spans))
    blended, mixed, hard = (film_scores(f, look(*painted()), {}) for f in (film(), one_cut, cuts))
    ratios = [seam["seam_ratio"] for seam in blended["seams"]]
    assert min(ratios) > 10
    for scores in (mixed, hard):
        assert [seam["seam_ratio"] for seam in scores["seams"]] == ratios
        assert [seam["largest_step"] for seam in scores["seams"]] == ratios
    assert mixed["film"]["seam_ratio"] == ratios[0]
    assert hard["film"]["seam_ratio"] == blended["film"]["seam_ratio"] == sum(ratios) / 2
    found = [
        [f.scene for f in findings(f, s) if f.metric == "seam_ratio"]
        for f, s in ((film(), blended), (one_cut, mixed), (cuts, hard))
    ]
    assert found == [[2, 3], [2], []]
    assert worst_places("seam", hard["seams"]) == []


def test_the_worst_places_are_those_furthest_from_the_usual() -> None:
    jumps = [1.0, 1.1, 0.9, 9.0, 1.0]
    entries = [{"jump": jump, "frozen": 0.0, "motion": 50.0 * i} for i, jump in enumerate(jumps)]
    entries[1]["frozen"] = 0.5
    found = [(index, metric.name) for index, metric in worst_places("scene", entries)]
    assert set(found[:2]) == {(3, "jump"), (1, "frozen")}
    assert "motion" not in [name for _, name in found]


def test_a_verdict_becomes_numbers_of_scenes_seams_and_the_film() -> None:
    """By hand: the look is lost in the last scene, the light in the second; a seam shows somebody twice."""
    open_look = {"fox": {"colour": "", "wear": ""}}
    red, grey = ({"fox": {"colour": colour, "wear": ""}} for colour in ("red", "grey"))
    seen = (
        SceneSeen(open_look, red, "park", light="day", arrangement=0),
        SceneSeen(open_look, red, "park", light="night", arrangement=0),
        SceneSeen(open_look, grey, "street", light="day", arrangement=1),
    )
    scenes = (
        SceneVerdict(True, True, True, True, False),
        SceneVerdict(True, True, False, False, False),
        SceneVerdict(True, True, True),
    )
    seams = (SeamVerdict(1, True, True, 0.5, 1.2, None), SeamVerdict(2, True, False, 0.0, 30.0, 2.0))
    verdict = FilmVerdict(scenes, seams, seen)
    shown = replace(look(*painted()), doubles=[0.1, 0.3])
    scores = film_scores(film(), shown, {}, verdict=verdict)
    first, second, third = scores["scenes"]
    assert (first["action_first"], first["action_last"]) == (100, 0)
    assert "action_first" not in third
    assert "look_kept" not in first
    assert (second["look_kept"], third["look_kept"], third["wear_kept"]) == (100, 0, 100)
    assert (second["light_kept"], second["arrangement_kept"]) == (0, 100)
    of_film = scores["film"]
    wanted = {
        "action_first": 50,
        "action_last": 0,
        "look_kept": 50,
        "colour_kept": 50,
        "wear_kept": 100,
        "light_kept": 0,
        "light_same": 0,
        "arrangement_kept": 100,
        "arrangement_same": 100,
        "twice": 25,
        "double_exposure": 20,
        "double_exposure_same_place": 10,  # means over seams
        "pose_jump": 15.6,
        "pose_jump_same_place": 1.2,
        "pose_turn": 2.0,  # medians
        "look_kept_absent": None,
        "sides": None,
        "sides_same_place": None,
    }
    assert {name: of_film[name] for name in wanted} == pytest.approx(wanted)
    assert [entry["distance"] for entry in scores["looks_by_distance"]] == [1, 2]


def test_sides_are_the_renders_own_words() -> None:
    spans = [replace(span, sides=apart) for span, apart in zip(film().spans, (None, 30.0, 2.0), strict=True)]
    scores = film_scores(replace(film(), spans=tuple(spans)), look(*painted()), {})
    assert [seam["sides"] for seam in scores["seams"]] == [30, 2]
    assert scores["film"]["sides"] == 16


def turned(*degrees: float) -> Tensor:
    """Unit vectors at these angles."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def cosine(degrees: float) -> Any:
    return pytest.approx(math.cos(math.radians(degrees)), abs=1e-5)


def test_a_boundary_is_compared_where_the_shot_goes_on() -> None:
    """First, middle and last picture of three scenes; the second goes on 10 degrees from the first's end."""
    shots = [turned(0, 20, 40), turned(50, 60, 70), turned(70, 80, 90)]
    seen = look(*painted(), shots=shots)
    scores = film_scores(film(), seen, {})
    first, second = scores["seams"]
    assert (first["boundary_similarity"], first["boundary_of_stills"]) == (cosine(10), cosine(50))
    assert (second["boundary_similarity"], second["boundary_of_stills"]) == (cosine(0), cosine(20))
    mean = (math.cos(math.radians(10)) + 1) / 2
    assert scores["film"]["boundary_similarity"] == pytest.approx(mean, abs=1e-5)
    last = film().spans[2]
    for broken in (replace(last, goes_on=False), replace(last, blended=False)):
        cut = film_scores(replace(film(), spans=(*film().spans[:2], broken)), seen, {})
        assert "boundary_similarity" not in cut["seams"][1]
        assert cut["film"]["boundary_similarity"] == cosine(10)
    spans = tuple(replace(span, blended=False) for span in film().spans)
    assert film_scores(replace(film(), spans=spans), seen, {})["film"]["boundary_similarity"] is None


def test_shots_are_compared_with_their_middle_and_by_distance() -> None:
    shots = [turned(9, 0, 9), turned(9, 30, 9), turned(9, 60, 9)]
    scores = film_scores(film(), look(*painted(), shots=shots), {})
    similarity = (1 + 2 * math.cos(math.radians(30))) / 3
    assert scores["film"]["shot_similarity"] == pytest.approx(similarity, abs=1e-5)
    assert scores["similarity_by_distance"] == [
        {"distance": 1, "pairs": 2, "similarity": cosine(30)},
        {"distance": 2, "pairs": 1, "similarity": cosine(60)},
    ]
    unseen = film_scores(film(), look(*painted()), {})
    assert unseen["film"]["shot_similarity"] is None
    assert "similarity_by_distance" not in unseen


def test_a_film_drifts_from_its_first_to_its_last_part() -> None:
    """Of 72 frames, ten at either end: the last ones move by 8, not by 4, and show less of their prompt."""
    frames, vectors = painted()
    assert film_scores(film(), look(frames, vectors), {})["film"]["drift_motion"] == pytest.approx(0)
    wild = frames.clone()
    wild[60:] = (torch.arange(12) % 2 * 8).to(torch.uint8)[:, None, None, None] + 100
    scores = film_scores(film(), look(wild, vectors), {})
    assert scores["film"]["drift_motion"] == pytest.approx(4)

    class Angle(Painter):
        def embed_texts(self, prompts: Sequence[str]) -> Tensor:
            return turned(*(0.0 for _ in prompts))

    fits = [turned(*[0] * 7, *[40] * 9), turned(*[80] * 16), turned(*[20] * 9, *[60] * 7)]
    drifted = film_scores(film(), look(frames, [{CLIP: v} for v in fits]), {CLIP: Angle()})
    assert drifted["film"]["drift_semantic"] == pytest.approx(0.5, abs=1e-5)  # cosines 1 and 1/2


def test_what_a_still_has_too_is_no_merit() -> None:
    frames, vectors = painted()
    frames = frames.clone()
    frames[24:48] = frames[24]
    shots = [turned(0, 0, 40), turned(20, 20, 20), turned(20, 20, 20)]
    scores = film_scores(film(), look(frames, vectors, shots=shots), {})
    assert Scored(film(), scores, [], []).notes == [
        "1 scene with hardly any motion, up to 1 of 255 (2): similarity is no merit there, "
        "a still has as much",
        "a film of its stills would have a boundary similarity of 0.970, and it has 0.970: "
        "that says nothing for how its shots go on",
    ]
    moving = film_scores(film(), look(*painted(), shots=[turned(0, 9, 19), *shots[1:]]), {})
    assert Scored(film(), moving, [], []).notes == []
    unseen = film_scores(film(), look(frames, [{}] * 3), {})
    assert Scored(film(), unseen, [], []).notes == []  # nothing was found alike
