"""Films with LoRAs: which scenes are rendered with which, what is kept, and what is refused before work."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from storyreel.cli.app import run
from storyreel.errors import DamagedError, ScriptError, UsageError
from storyreel.film.keys import film_facts, film_keys
from storyreel.film.manifest import Manifest
from storyreel.film.recorded import recorded_plan
from storyreel.models.lora import Lora
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.rendering import render
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import Story, parse_story
from tests.conftest import FakeAdapter, FakeEngine, Silent
from tests.film.test_keys import WITH_ENCODER, alike

pytestmark = pytest.mark.usefixtures("fake_model")


def lora_file(path: Path, value: float = 0.0) -> Path:
    layer = "transformer.transformer_blocks.0.attn1.to_q"
    save_file(
        {f"{layer}.lora_A.weight": torch.full((2, 4), value), f"{layer}.lora_B.weight": torch.ones(4, 2)},
        path,
    )
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lora_file(tmp_path / "one.safetensors", 1.0)
    lora_file(tmp_path / "two.safetensors", 2.0)
    return tmp_path


def text(of_film: object = None, of_scenes: Sequence[object] = (None,) * 4) -> str:
    """A story of two shots of two scenes; LoRAs of all and of each, as JSON writes them, which is YAML."""
    render: dict[str, object] = {"model": "fake"} | ({"lora": of_film} if of_film is not None else {})
    scenes: list[dict[str, object]] = []
    for index, name in enumerate(("park", "park", "bus", "bus")):
        scenes.append({"scene": f"a {name}", "action": f"it walks {index}"})
        scenes[-1] |= {"transition": ("cut", "continue", "dissolve", "continue")[index]}
        scenes[-1] |= {"lora": of_scenes[index]} if of_scenes[index] is not None else {}
    return json.dumps({"title": "Foxes", "scenes": scenes, "render": render})


def planned(story: str, **options: Any) -> Plan:
    return make_plan(parse_story("story.yaml", story.encode()), "foxes", Overrides(**options))


def loras_of(plan: Plan) -> list[list[str]]:
    return [[str(lora) for lora in segment.loras] for segment in plan.segments]


def test_a_scene_has_its_own_else_the_command_lines_else_the_films(place: Path) -> None:
    two = {"file": "two.safetensors", "weight": -0.5}
    story = text("one.safetensors", (None, two, [], ["one.safetensors", two]))
    own = [["two.safetensors=-0.5"], [], ["one.safetensors=1", "two.safetensors=-0.5"]]
    assert loras_of(planned(story)) == [["one.safetensors=1"], *own]
    given = (Path("two.safetensors=2"), Path("one.safetensors"))
    assert loras_of(planned(story, lora=given)) == [["two.safetensors=2", "one.safetensors=1"], *own]
    assert loras_of(planned(text(), lora=given[1:])) == [["one.safetensors=1"]] * 4
    assert loras_of(planned(text())) == [[]] * 4


def test_files_are_found_from_the_storys_folder_on_and_from_here(place: Path) -> None:
    (place / "there").mkdir()
    lora_file(place / "there" / "far.safetensors")
    story = parse_story("there/s.yaml", text("far.safetensors").encode())
    assert make_plan(story, "s").loras == (Lora(Path("there/far.safetensors")),)
    assert make_plan(story, "s", Overrides(lora=(Path("one.safetensors"),))).loras == (
        Lora(Path("one.safetensors")),
    )


def keys_of(plan: Plan) -> Any:
    return film_keys(plan, film_facts(plan, WITH_ENCODER, "cpu"))


def test_a_scenes_lora_is_in_the_keys_from_its_seam_on_and_a_films_in_all(place: Path) -> None:
    """Scenes 1 and 2 are a shot, and so are 3 and 4; 3 begins with a dissolve."""
    plain = keys_of(planned(text()))
    latents, videos = alike(plain, keys_of(planned(text(None, (None, "one.safetensors", None, None)))))
    assert (latents, videos) == ([True, False, True, True], [True, False, False, True])
    latents, videos = alike(plain, keys_of(planned(text(None, (None, None, "one.safetensors", None)))))
    assert (latents, videos) == ([True, True, False, False], [True, False, False, False])
    assert alike(plain, keys_of(planned(text("one.safetensors"))))[0] == [False] * 4
    of_none = planned(text("one.safetensors", ([],) * 4))
    assert keys_of(of_none) == plain
    assert "loras" not in film_facts(of_none, WITH_ENCODER, "cpu")


def test_content_weight_experts_and_order_are_in_a_key_and_a_name_is_not(place: Path) -> None:
    def first(*files: object) -> str:
        return str(keys_of(planned(text(list(files)))).latents[0])

    one, two = "one.safetensors", "two.safetensors"
    different = [
        first(one),
        first(two),
        first({"file": one, "weight": 0.5}),
        first(one, two),
        first(two, one),
    ]
    assert len({*different}) == len(different)
    (place / one).rename(place / "other.safetensors")
    assert first("other.safetensors") == different[0]
    lora_file(place / "other.safetensors", 3.0)
    assert first("other.safetensors") != different[0]


def test_the_first_of_two_experts_is_another_than_the_second(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "fake", replace(MODELS["fake"], boundary_ratio=0.875))
    lora_file(place / "a_high_noise.safetensors")
    story = text(["a_high_noise.safetensors", {"file": "one.safetensors", "experts": "low"}])
    assert loras_of(planned(story))[0] == [
        "a_high_noise.safetensors=1 at high noise levels",
        "one.safetensors=1 at low noise levels",
    ]
    said = text({"file": "a_high_noise.safetensors", "experts": "all"})
    assert loras_of(planned(said))[0] == ["a_high_noise.safetensors=1"]


def made(
    out: Path, story: str, engine: FakeEngine | None = None, **options: Any
) -> tuple[Any, Silent, FakeAdapter | None]:
    engine, progress = engine or FakeEngine(), Silent()
    result = render(planned(story, **options), "foxes", out, engine, progress)
    assert progress.forwards == progress.promised
    return result, progress, engine.fake


def files(out: Path) -> dict[str, bytes]:
    found = (out / "foxes" / "segments").glob("*.safetensors")
    return {path.name: path.read_bytes() for path in found}


def test_each_scene_is_rendered_with_its_own_and_a_second_render_makes_nothing(place: Path) -> None:
    story = text("one.safetensors", (None, None, "two.safetensors", None))
    result, _, fake = made(place / "out", story)
    assert result.rendered == 4
    assert fake is not None
    assert [[lora.path.name for lora in loras] for loras in fake.merged] == [
        ["one.safetensors"],
        ["two.safetensors"],
        ["one.safetensors"],
    ]
    again, _, nothing = made(place / "out", story)
    assert (again.rendered, nothing) == (0, None)


def test_a_scenes_lora_changes_what_is_made_from_its_seam_on(place: Path) -> None:
    made(place / "out", text())
    plain = files(place / "out")
    result, progress, fake = made(place / "out", text(None, (None, None, "one.safetensors", None)))
    assert result.rendered == 3  # of the second, the video alone: it dissolves into another scene
    assert sorted(path[:2] for path in {*files(place / "out")} - {*plain}) == ["03", "04"]
    assert fake is not None
    assert [len(loras) for loras in fake.merged] == [1, 0]
    assert "scene 3's LoRAs" in " ".join(progress.heard)
    back, _, _ = made(place / "out", text())
    assert back.rendered == 0


def test_the_manifest_says_which_and_is_read_back_as_the_plan(place: Path) -> None:
    half = {"file": "one.safetensors", "weight": 0.5}
    story = text("two.safetensors", (half, None, None, []))
    made(place / "out", story, lora=(place / "two.safetensors",))
    manifest = Manifest.read(place / "out" / "foxes" / "manifest.json")
    assert manifest is not None
    assert [*manifest.facts["loras"]] == ["one.safetensors", "two.safetensors"]
    assert [segment.get("loras") for segment in manifest.segments] == [
        [half | {"experts": "all"}],
        *[[{"file": "two.safetensors", "weight": 1.0, "experts": "all"}]] * 2,
        None,
    ]
    assert str(place) not in json.dumps(manifest.segments)
    (place / "one.safetensors").unlink()  # a film is scored without them
    assert recorded_plan(manifest, "foxes") is not None


def test_a_file_that_changes_while_it_is_used_is_not_filed_under_its_former_hash(place: Path) -> None:
    story, engine = text(None, (None, "one.safetensors", None, None)), FakeEngine()
    adapter = engine.adapter(MODELS["fake"])
    lora_file(place / "one.safetensors", 1.0)

    def change(count: int) -> None:
        if count == 5:  # of the second scene
            lora_file(place / "one.safetensors", 4.0)

    adapter.on_predict = change
    with pytest.raises(DamagedError, match=r"one\.safetensors has changed while it was used"):
        made(place / "out", story, engine)
    assert [name[:2] for name in files(place / "out")] == ["01"]
    again, progress, _ = made(place / "out", story)
    assert again.is_complete
    assert progress.forwards == 3 * 3  # the first scene's latents are kept


class Together(FakeAdapter):
    """Answers three requests at a time, all with the LoRAs that are merged."""

    at_once = 3


def test_only_scenes_with_the_same_loras_are_denoised_together(place: Path) -> None:
    """And they are what one device makes."""
    scenes = ("one.safetensors", None, None, "two.safetensors")
    story = text(None, scenes).replace('"continue"', '"cut"')
    made(place / "alone", story)
    engine = FakeEngine()
    engine.fake = Together(MODELS["fake"])
    made(place / "together", story, engine)
    assert files(place / "alone") == files(place / "together")
    assert len(files(place / "alone")) == 4
    assert [len(loras) for loras in engine.fake.merged] == [1, 0, 1]


FAULTS: dict[str, tuple[object, str]] = {
    "missing": ("none.safetensors", "no LoRA none.safetensors"),
    "text": ("story.yaml", "cannot be read as safetensors"),
    "a folder": (".", "cannot be read"),
    "experts": ({"file": "one.safetensors", "experts": "high"}, "one transformer"),
    "no file": ({"weight": 1}, "the key 'file' is missing"),
    "a number": (3, "a LoRA is the name of a file"),
    "a weight of text": ({"file": "one.safetensors", "weight": "x"}, "weight: use a number from -10 to 10"),
    "too strong": ({"file": "one.safetensors", "weight": 11}, "weight: use a number from -10 to 10, not 11"),
    "a weight in the name": ("no.safetensors=0.5", "write {file: no.safetensors, weight: 0.5}"),
    "an unknown key": ({"file": "one.safetensors", "wieght": 1}, "allowed: file, weight, experts"),
    "an expert of no kind": (
        {"file": "one.safetensors", "experts": "both"},
        "experts: input should be 'all', 'high' or 'low'",
    ),
    "two of one name": (["one.safetensors", "far/one.safetensors"], "two LoRAs of the film are called"),
    "too many": (["one.safetensors"] * 21, "at most 20 LoRAs"),
}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("of_film", [True, False])
def test_a_fault_is_told_at_its_place(case: str, of_film: bool, place: Path) -> None:
    value, words = FAULTS[case]
    (place / "story.yaml").write_text("scenes: []")
    (place / "far").mkdir()
    lora_file(place / "far" / "one.safetensors")
    story = text(value) if of_film else text(None, (None, value, None, None))
    with pytest.raises(ScriptError) as caught:
        planned(story)
    assert len(caught.value.faults) == 1
    assert words in caught.value.faults[0].message
    assert caught.value.faults[0].column > story.index("lora" if of_film else "it walks 1")


def test_a_fault_of_a_key_points_at_its_value(place: Path) -> None:
    value = {"file": "one.safetensors", "weight": 11}
    for story in (text(value), text([value])):
        with pytest.raises(ScriptError) as caught:
            planned(story)
        assert caught.value.faults[0].column == story.index("11") + 1


def test_one_file_may_be_written_in_two_ways(place: Path) -> None:
    (place / "there").mkdir()
    story = parse_story("there/s.yaml", text(None, (None, "../one.safetensors", None, None)).encode())
    plan = make_plan(story, "s", Overrides(lora=(Path("one.safetensors"),)))
    assert len(plan.loras) == 1


def test_what_could_not_be_looked_at_is_noted(place: Path, fake_model: ModelSpec) -> None:
    words = "LoRA one.safetensors: the weights of model fake are not here: whether it fits is not known"
    assert planned(text("one.safetensors")).notes == (words,)
    assert planned(text()).notes == ()
    layer = {"transformer_blocks.0.attn1.to_q.weight": torch.zeros(4, 4)}
    (fake_model.weights / "transformer").mkdir()
    save_file(layer, fake_model.weights / "transformer" / "model.safetensors")
    assert planned(text("one.safetensors")).notes == ()


@pytest.mark.parametrize(
    "given", ["none.safetensors", "one.safetensors,two.safetensors", "one.safetensors=x", "=1"]
)
def test_a_fault_of_the_variable_names_it(
    place: Path, given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "story.yaml").write_text(text())
    monkeypatch.setenv("STORYREEL_LORA", given)
    assert run(["validate", "story.yaml"]) == UsageError.exit_code
    said = capsys.readouterr().err
    assert "error: STORYREEL_LORA: " in said
    assert f"{os.pathsep!r} separates files" in said
    assert "--lora" not in said


@pytest.mark.parametrize("given", ["", "=0.5"])
def test_no_file_on_the_command_line(place: Path, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "story.yaml").write_text(text())
    assert run(["validate", "story.yaml", "--lora", given]) == UsageError.exit_code
    assert "names no file; write FILE=WEIGHT" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["render"], ["render", "--dry-run"], ["validate"], ["sheet"]])
@pytest.mark.parametrize(
    "given", ["none.safetensors", "one.safetensors=x", "story.yaml", "one.safetensors=99"]
)
def test_the_command_line_is_refused_before_any_work(
    place: Path, fake_engine: FakeEngine, command: list[str], given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "story.yaml").write_text(text())
    assert run([*command, "story.yaml", "--lora", given]) == UsageError.exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) <= 2
    assert given.split("=")[0] in said.err
    assert (fake_engine.asked, (place / "out").exists()) == (0, False)


def test_a_dry_run_shows_them(
    place: Path, fake_engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "story.yaml").write_text(text(None, (None, "two.safetensors", [], None)))
    assert run(["render", "story.yaml", "--dry-run", "--lora", "one.safetensors=0.5"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "LoRA" in line]
    assert lines == ["LoRAs:  two.safetensors=1", "LoRAs:  none", "LoRAs: one.safetensors=0.5"]
    assert run(["render", "story.yaml", "--dry-run", "--json"]) == 0
    segments = json.loads(capsys.readouterr().out)["story"]["segments"]
    assert segments[0]["loras"] == []
    assert segments[1]["loras"] == [{"path": "two.safetensors", "weight": 1.0, "experts": "all"}]


def test_a_variable_and_a_file_hold_defaults(
    place: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(story: str) -> str:
        (place / "stories").mkdir(exist_ok=True)
        (place / "stories" / "story.yaml").write_text(story)
        assert run(["render", "stories/story.yaml", "--dry-run"]) == 0
        return next((line for line in capsys.readouterr().out.splitlines() if "LoRAs" in line), "")

    (place / "stories").mkdir()
    lora_file(place / "stories" / "three.safetensors")
    (place / "stories" / "storyreel.toml").write_text('lora = ["three.safetensors=0.3"]')
    assert shown(text()) == "  LoRAs: three.safetensors=0.3"
    monkeypatch.setenv("STORYREEL_LORA", os.pathsep.join(["one.safetensors=0.5", "two.safetensors"]))
    assert shown(text()) == "  LoRAs: one.safetensors=0.5, two.safetensors=1"
    assert shown(text("three.safetensors")) == "  LoRAs: three.safetensors=1"
    assert run(["submit", "stories/story.yaml", "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert os.pathsep.join([f"{place}/one.safetensors=0.5", f"{place}/two.safetensors"]) in script
    assert run(["submit", "stories/story.yaml", "--dry-run", "--lora", "two.safetensors=2"]) == 0
    assert f"--lora={place}/two.safetensors=2" in capsys.readouterr().out


def test_older_stories_are_written_as_they_were() -> None:
    story = Story.model_validate({"scenes": ["a park"]})
    assert "lora" not in json.dumps(story.model_dump(mode="json"))


def test_in_python_they_are_named_as_on_the_command_line(place: Path) -> None:
    import storyreel

    (place / "story.yaml").write_text(text())
    for given in ("one.safetensors=0.5", Path("one.safetensors=0.5"), ["one.safetensors=0.5"]):
        assert storyreel.plan("story.yaml", lora=given).loras == (Lora(Path("one.safetensors"), 0.5),)
    with pytest.raises(UsageError, match="lora"):
        storyreel.plan("story.yaml", lora=3)  # type: ignore[arg-type]
