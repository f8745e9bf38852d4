"""The data set: eight plots, four casts, 404 pairs by the paper's count, each readable by every model."""

from __future__ import annotations

import re
from functools import cache

import pytest

from storyreel.models.specs import MODELS, find_model
from storyreel.story.casting import read_casting, read_casts
from storyreel.story.planning import Overrides, make_plan, uncounted_prompts
from storyreel.story.schema import Story, load_story
from storyreel.story.vocabulary import warnings_of
from tests.dataset import CASTS, COUNTED, PLOTS, PRINTED, STORIES, films, table

OWN = [name for city, names in PLOTS.items() if city not in PRINTED for name in names]
FILMS = {f"{path.stem}-{name}": (path, cast) for city in PLOTS for name, (path, cast) in films(city).items()}
PLACES = re.compile(
    "Angeles|Basin|Beach|Ben|Big|Bridge|Capitol|Central|Chicago|Cloud|D.C|Eiffel|Ferris|Francisco|Gate|Golden"
    "|House|Hyde|Lake|Las|London|Los|Michigan|Monica|Monument|NYC|Paris|Park|Pier|River|San|Santa|Seine|Square"
    "|Strip|Tidal|Times|Tower|U.S|Vegas|Venice|Washington|White"
)
VEHICLES = r"\b(boat|bus|car|cable car|train|taxi|gondola)\b"


@cache
def story(name: str) -> Story:
    path, cast = FILMS[name]
    return load_story(path, cast.casting)


def prompts(name: str) -> list[tuple[str, str]]:
    found = story(name)
    return [(found.filled(scene.scene), found.filled(scene.action)) for scene in found.scenes]


def own(name: str) -> list[tuple[str, str]]:
    return [(scene.scene, scene.action) for scene in load_story(STORIES / name).scenes]


def test_there_are_404_pairs_by_the_papers_count() -> None:
    """New York's list for people has 13 pairs, counted as 12: the stairs are in no other list."""
    assert len(FILMS) == 32
    assert {city: len(films(city)) for city in PLOTS} == dict.fromkeys(COUNTED, 4)
    pairs = {name: len(prompts(name)) for name in FILMS}
    stairs = [name for name in FILMS for scene, _ in prompts(name) if "subway exit stairs" in scene]
    assert [name.partition("-")[0] for name in stairs] == ["nyc_human", "nyc_human"]
    counted = {name: count - stairs.count(name) for name, count in pairs.items()}
    assert sum(counted.values()) == 404
    for city, names in PLOTS.items():
        plots = {path.removesuffix(".yaml") for path in names}
        assert {counted[name] for name in FILMS if name.partition("-")[0] in plots} == {COUNTED[city]}


def test_no_other_story_is_of_the_data_set() -> None:
    """But the printed plots with casts of their own, as they were before there were casts in a folder."""
    others = {path.name for path in STORIES.glob("*.yaml")} - {
        name for names in PLOTS.values() for name in names
    }
    assert others == {"nyc_fox.yaml", "nyc_panda.yaml", "dc_fox.yaml", "dc_panda.yaml"}
    for cast in read_casts(CASTS):
        assert not any(cast.is_for(STORIES / name) for name in others)


def test_two_casts_are_of_animals_and_two_of_people_with_looks() -> None:
    animals = {"corgi_and_cat", "fox_and_panda"}
    for cast in read_casts(CASTS):
        assert [*cast.casting.texts] == ["first", "second"]
        for member in cast.casting.texts.values():
            assert re.match("an? ", member["name"])
            if cast.name in animals:
                assert member["possessive"] == "its"
            else:
                assert re.search(r"\bwoman\b", member["name"]) or member["possessive"] == "his"
                assert re.search(r"\bman\b", member["name"]) or member["possessive"] == "her"
                assert re.search(r"in a \w+ \w+$", member["name"])  # what is worn
    assert (
        {name for city in PLOTS for name in films(city)}
        == {cast.name for cast in read_casts(CASTS)}
        > animals
    )


@pytest.mark.parametrize("name", FILMS)
def test_no_person_is_named(name: str) -> None:
    """Whatever begins with a capital is a place."""
    for texts in prompts(name):
        for word in re.findall(r"[\w.'-]+", " ".join(texts)):
            assert word.islower() or PLACES.fullmatch(word.rstrip(".")), word


@pytest.mark.parametrize("name", OWN)
def test_a_plot_of_ours_keeps_the_supplements_rules(name: str) -> None:
    pairs = own(name)
    together = " ".join(text for pair in pairs for text in pair)
    assert "{first}" in together
    assert "{second}" in together
    assert re.search(VEHICLES, together)
    assert re.search(r"\b\w*ball\b", together)
    assert "button" in together
    for scene, action in pairs:  # who acts, is there
        assert set(re.findall(r"\{(\w+)", action)) <= set(re.findall(r"\{(\w+)", scene))
        assert re.match(r"\{(first|second)\}( and \{second\})? (is|are) \w+ing\b", action)
        assert re.match(r"\{first\}( and \{second\} are| is| encounters \{second\}) \w+", scene)
        for text in (scene, action):
            assert not re.search(r"\b(he|she|it|him|her|his|its)\b", text)
            assert (" are " in text) == ("{first} and {second}" in text)


@pytest.mark.parametrize("name", OWN)
def test_animals_do_what_people_do_by_other_means(name: str) -> None:
    people = name.endswith("_human.yaml")
    other = name.replace("_human.yaml", ".yaml") if people else name.replace(".yaml", "_human.yaml")
    assert [scene for scene, _ in own(name)] == [scene for scene, _ in own(other)]
    actions = " ".join(action for _, action in own(name))
    of_animals = re.search(r"\b(paws?|tail|fur|sniffing|biting|licking)\b", actions)
    of_people = re.search(r"\b(fingers?|thumb|hands?|arms?|hugging|throwing|smiling)\b", actions)
    assert bool(of_animals) is not people
    assert bool(of_people) is people


@pytest.mark.parametrize("name", [name for names in PLOTS.values() for name in names])
def test_a_plot_has_a_cast_of_its_own(name: str) -> None:
    """That of the first folder's file that is for it, in the plots that are ours."""
    assert {*load_story(STORIES / name).cast} >= {"first"}
    if name in OWN:
        cast = "woman_in_yellow_and_man_in_blue" if name.endswith("_human.yaml") else "corgi_and_cat"
        path = STORIES / name
        assert load_story(path).cast == load_story(path, read_casting([str(CASTS / f"{cast}.yaml")])).cast


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_read_every_film(model: str) -> None:
    for name in FILMS:
        plan = make_plan(story(name), name, Overrides(model=model))
        assert len(plan.segments) == len(prompts(name))
        assert [*uncounted_prompts(plan)] == []


def test_names_and_possessives_are_filled_in() -> None:
    for name in FILMS:
        assert not any("{" in text or "}" in text for texts in prompts(name) for text in texts)
    man, woman, red = (
        "a young man in a blue sweater",
        "a long-haired woman in a yellow dress",
        "a grey-haired man",
    )
    actions = dict(prompts("paris_human-woman_in_yellow_and_man_in_blue"))
    (button,) = (action for action in actions.values() if "button" in action)
    assert button == f"{woman} is pressing a large green button with her finger"
    (pressed,) = (
        action
        for _, action in prompts("chicago_human-woman_in_yellow_and_man_in_blue")
        if "top button" in action
    )
    assert pressed == f"{man} is pressing the top button with his finger"
    (pressed,) = (action for _, action in prompts("chicago-fox_and_panda") if "top button" in action)
    assert pressed == "a panda is pressing the top button with its paw"
    scenes = [action for _, action in prompts("nyc_human-man_in_red_and_woman_in_green")]
    assert f"{red} in a red shirt is tilting his head curiously" in scenes


def test_mini_draws_the_printed_plots_whole_and_no_other() -> None:
    spec = find_model("mini")
    whole = {name for name in FILMS if not warnings_of(story(name), spec)}
    assert whole == {name for city in PRINTED for name in FILMS if name.startswith(city)}


@pytest.mark.slow
def test_the_table_is_that_of_the_readme() -> None:
    lines = (STORIES / "README.md").read_text().splitlines()
    for row in table("mini").splitlines():
        assert row in lines
