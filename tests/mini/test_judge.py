"""The judge knows true clips, and says so only of what it sees."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

from storyreel.mini.evaluate import FRAMES, SEED, of_clip, true_clips
from storyreel.mini.judge import CASTS, NOTHING, WEIGHTS, Judge, Opinion, load_judge, loosened, truth
from storyreel.mini.lessons import sample_example
from storyreel.mini.world import Action, Character, Place, draw_clip, stage_clip
from tests.mini.test_known import nothings


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


def test_the_judge_is_small() -> None:
    assert WEIGHTS.stat().st_size <= 2e6


@pytest.mark.slow  # of the weights
def test_it_knows_unseen_true_clips(judge: Judge) -> None:
    right = torch.zeros(3)
    count = 150
    for clip, images, _ in true_clips(count, SEED + 1):
        seen, true = judge.judge(images).verdict, truth(clip)
        right += torch.tensor(
            [seen.characters == true.characters, seen.place is true.place, seen.action is true.action]
        )
    characters, place, action = (100 * right / count).tolist()
    # The bars are 99, 99 and 97 % over many clips; at 150 two more errors are chance.
    assert characters >= 97.5
    assert place >= 97.5
    assert action >= 95


def test_its_verdict_follows_the_picture(judge: Judge) -> None:
    """Swap one thing at a time: only that part of the verdict changes."""

    def seen(place: Place, who: Character, action: Action) -> Opinion:
        images, _ = draw_clip(stage_clip(Random(0), place, (who,), action), FRAMES, 12.0, 96, 64)
        return judge.judge(torch.from_numpy(images))

    base = seen(Place.CAPITOL, Character.FOX, Action.SIT).verdict
    assert seen(Place.MONUMENT, Character.FOX, Action.SIT).verdict.place is Place.MONUMENT
    assert seen(Place.CAPITOL, Character.PANDA, Action.SIT).verdict.characters == {Character.PANDA}
    assert seen(Place.CAPITOL, Character.FOX, Action.SPIN).verdict.action is Action.SPIN
    assert (base.place, base.characters, base.action) == (
        Place.CAPITOL,
        frozenset({Character.FOX}),
        Action.SIT,
    )


def test_probabilities_are_of_one_or_two_characters(judge: Judge) -> None:
    opinion = judge.judge(torch.full((FRAMES, 64, 96, 3), 127, dtype=torch.uint8))
    assert len(CASTS) == 6 + 15
    for part in (opinion.casts, opinion.places, opinion.actions):
        assert float(part.exp().sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("nothing", sorted(nothings(1)))
def test_it_finds_nobody_in_what_shows_nothing(judge: Judge, nothing: str) -> None:
    opinion = judge.judge(nothings(1)[nothing])
    assert opinion.verdict == NOTHING
    assert replace(opinion, known=True).verdict.characters  # whom it would have chosen


def test_loosening_keeps_the_truth() -> None:
    rng = Random(1)
    for _ in range(50):
        clip = sample_example(rng).clip
        loose = loosened(rng, clip)
        assert truth(loose) == truth(clip)
        assert loose.actors[0].x != clip.actors[0].x
        assert of_clip(loose).place is clip.place
