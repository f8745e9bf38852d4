"""What a segment's key covers, and what it does not."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import pytest

from storyreel.film.keys import NO_FACTS, Keys, film_facts, film_key, film_keys, further_versions, ingredients
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.story.plan import Plan, Seam
from tests.conftest import plan_of
from tests.film.test_differences import MADE_OF
from tests.test_rendering import CAST, SCENES, story

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


def test_a_negative_prompt_is_in_every_key_where_it_is_used() -> None:
    before, dull, night = (keys_of(plan_of(story(), negative=text)) for text in ("", "dull", "night"))
    assert before == keys_of()
    assert not {*before.latents} & {*dull.latents} | {*dull.latents} & {*night.latents}
    unguided = [keys_of(plan_of(story(), negative=text, guidance=1.0)) for text in ("", "dull")]
    assert unguided[0] == unguided[1]


def test_what_a_model_needs_beside_the_others_is_in_its_versions() -> None:
    """Wan's prompts are cleaned by ftfy where it is; a film says whether it was."""
    assert further_versions(MODELS["mini"]) == {}
    version = "none" if find_spec("ftfy") is None else metadata.version("ftfy")
    assert further_versions(MODELS["wan-14b"]) == {"ftfy": version}
    missing = replace(MODELS["wan-14b"], further=("storyreel-has-no-such-package",))
    assert further_versions(missing) == {"storyreel-has-no-such-package": "none"}


def test_facts_of_models_that_came_later_change_no_older_key(fake_model: ModelSpec) -> None:
    """Only where a model has them: `levels` says which steps are computed."""
    known = ingredients(fake_model)["model"]["facts"]
    assert "levels" not in known
    assert ingredients(replace(fake_model, levels="shifted"))["model"]["facts"]["levels"] == "shifted"


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


def alike(before: Keys, after: Keys) -> tuple[list[bool], list[bool]]:
    """Of which segments latents, and videos, have the same keys."""
    pairs = ((before.latents, after.latents), (before.video, after.video))
    latents, video = ([a == b for a, b in zip(*pair, strict=True)] for pair in pairs)
    return latents, video


@pytest.mark.parametrize(("after", "changed"), [(3, [3]), (2, [2, 3]), (5, [5])])
def test_how_a_seam_is_planned_is_in_the_keys_of_the_rest_of_its_shot(after: int, changed: list[int]) -> None:
    """The shots are of one scene, three and two."""
    plan = plan_of(story())
    seam = plan.seams[after - 1]
    assert (seam.transition, seam.overlap) == ("continue", 2)
    seams = [*plan.seams[: after - 1], replace(seam, overlap=1), *plan.seams[after:]]
    latents, _ = alike(keys_of(plan), keys_of(replace(plan, seams=tuple(seams))))
    assert latents == [index not in changed for index in range(6)]


def test_how_the_scene_after_goes_on_is_in_the_key_of_another_take() -> None:
    """It is made to fit; the first take is not."""
    plan = plan_of(story())
    assert plan.seams[1].overlap == 2
    first = plan.segments[1]
    other = replace(first, take=2, seed=5)

    def keys(seam: Seam, phrase: str = "yawns") -> Keys:
        following = replace(plan.segments[2], phrase=phrase)
        segments = (plan.segments[0], other, following, *plan.segments[3:])
        seams = (plan.seams[0], seam, *plan.seams[2:])
        return keys_of(replace(plan, segments=segments, replaced=(first,), seams=seams))

    two, one = plan.seams[1], replace(plan.seams[1], overlap=1)
    assert keys(two).latents[1] != keys(one).latents[1]
    assert keys(two).first_takes[1] == keys(one).first_takes[1]
    assert keys(two).latents[1] != keys(two, "digs").latents[1]  # which decides how many are shared
    assert keys(one).latents[1] == keys(one, "digs").latents[1]


@pytest.mark.parametrize(
    ("index", "of_latents", "of_videos"),
    [
        (0, [0], [0, 1]),  # a dissolve shows the end of one in the beginning of the next
        (1, [1, 2, 3], [0, 1, 2, 3, 4]),
        (2, [2, 3], [2, 3, 4]),
        (3, [3], [3, 4]),
        (4, [4, 5], [3, 4, 5]),
        (5, [5], [5]),
    ],
)
def test_a_changed_scene_is_in_the_keys_of_what_shows_it(
    index: int, of_latents: list[int], of_videos: list[int]
) -> None:
    scenes = [*SCENES[:index], ("a river", "one yawns"), *SCENES[index + 1 :]]
    latents, video = alike(keys_of(plan_of(story())), keys_of(plan_of(story(scenes))))
    assert latents == [i not in of_latents for i in range(6)]
    assert video == [i not in of_videos for i in range(6)]


@pytest.mark.parametrize(
    ("changed", "identity", "of_latents"),
    [
        ('"{fox} sits"', True, [0, 1, 3]),  # the fox's portrait, behind a dissolve and a cut
        ('"{fox} sits"', False, [0, 1]),
        ('"{dog} sleeps"', True, [2, 3]),
        ('"{dog} sleeps"', False, [2]),
        ("it walks", True, [1]),
        ("they look", True, [3]),
        ("it rains", True, [4]),
    ],
)
def test_a_scene_is_in_the_keys_of_those_that_have_a_character_from_it(
    changed: str, identity: bool, of_latents: list[int]
) -> None:
    options: dict[str, Any] = {} if identity else {"without": frozenset({"identity"})}
    other = changed.replace("}", "} sees how it").replace("it ", "it now ") if "{" in changed else "it jumps"
    text = CAST.replace(changed, other)
    assert text != CAST
    latents, _ = alike(keys_of(plan_of(CAST, **options)), keys_of(plan_of(text, **options)))
    assert latents == [i not in of_latents for i in range(5)]


def test_another_place_before_a_scene_is_in_its_key_only_if_it_decides_whether_the_shot_goes_on() -> None:
    def pair(first: str) -> str:
        return f"render: {{model: fake}}\nscenes:\n  - [{first}, a fox sits]\n  - [the park, it walks]\n"

    at_home, at_sea, there = (keys_of(plan_of(pair(place))) for place in ("home", "sea", "the old park"))
    assert at_home.latents[1] == at_sea.latents[1] != there.latents[1]
    assert at_home.video[1] != at_sea.video[1]  # which begins with a dissolve


def test_a_fade_instead_of_a_cut_denoises_nothing_and_encodes_its_two_scenes() -> None:
    cut, fade, dip = (
        keys_of(plan_of(story(cut=3).replace("transition: cut", f"transition: {name}")))
        for name in ("cut", "fade", "dip")
    )
    for before, after in ((cut, fade), (cut, dip), (fade, dip)):
        latents, video = alike(before, after)
        assert all(latents)
        assert video == [index not in (2, 3) for index in range(6)]


def test_a_scene_behind_a_fade_is_in_no_video_of_the_scene_before() -> None:
    text = story(cut=3).replace("transition: cut", "transition: fade")
    _, video = alike(keys_of(plan_of(text)), keys_of(plan_of(text.replace("it sleeps", "it yawns"))))
    assert video == [index not in (3, 4) for index in range(6)]  # 4 begins with a dissolve


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
        *("decides", "first_alike", "renoises"),
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
