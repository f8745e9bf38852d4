"""What a segment's key covers, and what it does not."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from storyreel.film.keys import NO_FACTS, Keys, film_facts, film_key, film_keys, ingredients
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.story.plan import Plan
from tests.conftest import plan_of
from tests.film.test_differences import MADE_OF
from tests.test_rendering import SCENES, story

pytestmark = pytest.mark.usefixtures("fake_model")
# In `MADE_OF` there is no ffmpeg, which is an encoder like any other.
WITH_ENCODER = {**MADE_OF, "versions": {**MADE_OF["versions"], "ffmpeg": "7"}}


def keys_of(plan: Plan | None = None, made_of: dict[str, Any] = WITH_ENCODER, device: str = "cpu") -> Keys:
    plan = plan or plan_of(story())
    return film_keys(plan, film_facts(plan, made_of, device))


def changed(*path: str, value: object) -> Keys:
    """The keys where one of the ingredients is another."""
    made_of = copy.deepcopy(WITH_ENCODER)
    inner = made_of
    for name in path[:-1]:
        inner = inner[name]
    assert inner[path[-1]] != value
    inner[path[-1]] = value
    return keys_of(made_of=made_of)


def test_keys_are_the_same_for_the_same_and_differ_between_segments() -> None:
    assert keys_of() == keys_of()
    assert len({*keys_of().latents, *keys_of().video}) == 12


OF_LATENTS = [("versions", "torch"), ("model", "facts", "overlap"), ("model", "weights", "a.safetensors")]
OF_LATENTS += [("model", "name"), ("recipe", "latents", "sampling.py")]
OF_PICTURES = [("versions", "ffmpeg"), ("recipe", "pictures", "video.py")]


@pytest.mark.parametrize("path", OF_LATENTS, ids=lambda path: path[-1])
def test_what_computes_latents_is_in_every_key(path: tuple[str, ...]) -> None:
    before, after = keys_of(), changed(*path, value="other")
    assert not {*before.latents, *before.video} & {*after.latents, *after.video}


@pytest.mark.parametrize(
    "path", [("versions", "ffmpeg"), ("recipe", "pictures", "video.py")], ids=lambda p: p[-1]
)
def test_what_encodes_pictures_is_in_theirs_alone(path: tuple[str, ...]) -> None:
    before, after = keys_of(), changed(*path, value="other")
    assert before.latents == after.latents
    assert not {*before.video} & {*after.video}


def test_how_a_seam_is_planned_is_in_the_keys_of_what_is_blended_there() -> None:
    """And of what is denoised beside it or after it: here of the last three and the one before the seam."""
    plan = plan_of(story(), method=("window=2",))
    seams = [*plan.seams[:2], replace(plan.seams[2], overlap=1), *plan.seams[3:]]
    before, after = keys_of(plan), keys_of(replace(plan, seams=tuple(seams)))
    assert plan.seams[2].overlap > 1
    assert [a == b for a, b in zip(before.latents, after.latents, strict=True)] == [True] * 2 + [False] * 4


def test_storyreels_version_is_in_none() -> None:
    assert changed("versions", "storyreel", value="9") == keys_of()


def test_the_kind_of_device_is_in_every_key() -> None:
    assert not {*keys_of(device="cpu").latents} & {*keys_of(device="cuda").latents}


def test_how_a_picture_is_shown_is_no_part_of_its_latents(
    fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys_of()
    monkeypatch.setitem(MODELS, "fake", replace(fake_model, upscale=2))
    after = keys_of()
    assert before.latents == after.latents
    assert not {*before.video} & {*after.video}


def test_pictures_depend_on_the_segment_that_shows_through_them() -> None:
    """With a window of one, latents do not: nobody is denoised beside them."""
    scenes = [*SCENES[:3], ("a home", "it yawns"), *SCENES[4:]]
    before, after = (keys_of(plan_of(story(s), method=("window=1",))) for s in (SCENES, scenes))
    same = [a == b for a, b in zip(before.latents, after.latents, strict=True)]
    assert same == [True, True, True, False, False, False]
    assert [a == b for a, b in zip(before.video, after.video, strict=True)] == [True, True, *[False] * 4]


def test_a_film_is_another_with_any_of_its_parts(fake_model: ModelSpec) -> None:
    plan = plan_of(story())
    facts = film_facts(plan, WITH_ENCODER, "cpu")
    pictures = [str(n) for n in range(6)]
    key = film_key(plan, facts, pictures)
    assert film_key(plan, facts, [*pictures[:5], "x"]) != key
    assert film_key(plan_of(story(title="Vixens")), facts, pictures) != key
    assert film_key(plan_of(story([*SCENES[:5], ("a hill", "it hops")])), facts, pictures) != key
    other = facts | {"recipe": {**facts["recipe"], "pictures": {"video.py": "9"}}}
    assert film_key(plan, other, pictures) != key
    newer = facts | {"versions": {**facts["versions"], "storyreel": "9"}}
    assert film_key(plan, newer, pictures) == key


def test_the_facts_that_count_are_known() -> None:
    """One that comes to the table counts until somebody has thought about it: does it shape a picture?"""
    assert set(ingredients(MODELS["mini"])["model"]["facts"]) == {
        *("adapter", "frames_per_latent", "pixels_per_latent", "latent_channels", "max_latents"),
        *("decoded_at_once", "overlap", "text_length", "variant", "dtype", "vae_dtype", "even_steps"),
    }
    assert set(ModelSpec.__dataclass_fields__) >= NO_FACTS


def test_ingredients_are_plain_data(fake_model: ModelSpec) -> None:
    found = ingredients(fake_model)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["versions"]) == {
        "storyreel",
        "torch",
        "diffusers",
        "transformers",
        "tokenizers",
        "ffmpeg",
    }
