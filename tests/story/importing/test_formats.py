"""What becomes of the files of other programs: each kind as its programs write it, in words of our own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from storyreel.errors import FormatError
from storyreel.models.specs import find_model
from storyreel.story.importing import FORMATS, Imported, convert
from storyreel.story.schema import MAX_PROMPT, MAX_SCENES, Story

MINI = find_model("mini")


def made(name: str, content: str | bytes | dict[str, Any] | list[Any], **more: Any) -> Imported:
    """Return what a file becomes; data is written as JSON."""
    if isinstance(content, dict | list):
        content = json.dumps(content, ensure_ascii=False)
    return convert(name, content.encode() if isinstance(content, str) else content, MINI, **more)


def scenes(story: Story) -> list[tuple[str, str, float | str | None, str]]:
    """Return scenes as a viewer of the film would have them: "" for an action that is the scene prompt."""
    return [
        (
            story.filled(scene.scene),
            "" if scene.action == scene.scene else story.filled(scene.action),
            scene.seconds,
            scene.transition,
        )
        for scene in story.scenes
    ]


def refused(name: str, content: str | bytes | dict[str, Any] | list[Any], **more: Any) -> str:
    with pytest.raises(FormatError) as caught:
        made(name, content, **more)
    assert caught.value.remedy
    return str(caught.value)


LINES = """\
A baker opens her shop before sunrise.
She pulls a tray of bread from the oven.

[/duration=4s] A boy runs across the wet square. | He stops at the window and waves.
[/new_shot] The two sit on the steps and eat.
"""


def test_lines_with_the_commands_of_wangp() -> None:
    done = made("lines.txt", LINES)
    assert done.format.name == "text"
    assert scenes(done.story) == [
        ("A baker opens her shop before sunrise.", "", None, "blend"),
        ("She pulls a tray of bread from the oven.", "", None, "blend"),
        ("A boy runs across the wet square.", "", 2, "blend"),
        ("He stops at the window and waves.", "", 2, "continue"),
        ("The two sit on the steps and eat.", "", None, "cut"),
    ]
    assert "# 4 seconds in the source, for 2 prompts together" in done.text
    assert not done.left_out
    assert any("--from paragraphs" in words for words in done.guessed)


def test_other_commands_comments_and_macros_are_said_with_their_line() -> None:
    done = made(
        "a.txt", "# my film\n[/overlap=0,/load_mem=ann] one\n!{x}=y\n[/overlap=9] two\n[/duration=20%] 3x\n"
    )
    assert [scene.transition for scene in done.story.scenes] == ["blend", "blend", "blend"]
    assert done.left_out == [
        "a comment (line 1)",
        "a macro of WanGP (line 3)",
        "the command [/load_mem=ann] (line 2)",
        "the command [/overlap=9] (line 4)",
        "the command [/duration=20%] (line 5)",
    ]
    frames = "[/duration=32] one\n[/new_shot,/duration=16]two\n"
    assert [scene.seconds for scene in made("a.txt", frames, fps=16.0).story.scenes] == [2, 1]
    assert "which counts frames: give --fps (line 1)" in made("a.txt", frames).left_out[0]
    assert made("a.txt", "one\n[/overlap=0] two\n").story.scenes[1].transition == "cut"


PROSE = """\
A baker opens her shop
before sunrise and lights the oven,
humming.

A boy runs across
the wet square.
"""


def test_paragraphs_of_prose_are_scenes_and_either_can_be_asked_for() -> None:
    done = made("prose.txt", PROSE)
    assert [scene.scene for scene in done.story.scenes] == [
        "A baker opens her shop before sunrise and lights the oven, humming.",
        "A boy runs across the wet square.",
    ]
    assert any("--from lines" in words for words in done.guessed)
    assert len(made("prose.txt", PROSE, wanted="lines").story.scenes) == 5
    assert len(made("lines.txt", LINES, wanted="paragraphs").story.scenes) == 3
    assert len(made("notes.md", "one\ntwo\n", wanted="lines").story.scenes) == 2


def test_numbers_before_all_prompts_are_no_part_of_them() -> None:
    done = made("list.txt", "1. a fox sits\n2. a fox runs\n")
    assert [scene.scene for scene in done.story.scenes] == ["a fox sits", "a fox runs"]
    assert made("list.txt", "1. a fox sits\na fox runs\n").story.scenes[0].scene == "1. a fox sits"


LIST = ["a baker opens her shop", "a boy runs across the square", "the two sit on the steps"]
LISTS = {
    "prompts.json": json.dumps({"seed": 42, "prompts": LIST}),
    "bare.json": json.dumps(LIST),
    "items.json": json.dumps([{"prompt": text} for text in LIST]),
    "deep.yaml": "args:\n  seed: 42\n  prompts:\n" + "".join(f'    - "{text}"\n' for text in LIST),
    "one.jsonl": json.dumps({"prompts": LIST}) + "\n",
    "each.jsonl": "\n".join(json.dumps({"text": text}) for text in LIST),
    "queue.json": json.dumps([{"id": 1, "params": {"prompt": "\n".join(LIST)}}]),
    "bars.json": json.dumps({"prompt": " | ".join(LIST)}),
    "run.py": f"import torch\nprompts = [\n    {LIST[0]!r},\n    'a boy runs '\n    'across the square',\n"
    f"    {LIST[2]!r},\n]\nseed = 42\nnegative_prompts = ['blur']\nrun(prompts)\n",
    "typed.py": f"PROMPTS: list[str] = {LIST!r}\n",
    "call.py": f"def main():\n    pipe(prompt={LIST!r}, steps=4)\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_prompts_wherever_they_are(name: str) -> None:
    done = made(name, LISTS[name])
    assert done.format.name == "prompts"
    assert [scene.scene for scene in done.story.scenes] == LIST
    assert done.story.render.seed == (42 if "42" in LISTS[name] else None)
    assert any("one prompt a scene" in words for words in done.guessed)
    assert ("the rest of the program, which was not run" in done.left_out) == name.endswith(".py")


def test_a_python_file_is_read_and_never_run(tmp_path: Any) -> None:
    flag = tmp_path / "ran"
    text = f"open({str(flag)!r}, 'w')\nprompts = ['a', 'b']\n"
    assert len(made("x.py", text).story.scenes) == 2
    assert "no list of prompts" in refused("x.py", f"prompts = [open({str(flag)!r}, 'w').name]\n")
    assert "was never closed" in refused("x.py", "prompts = [")
    assert not flag.exists()


def test_pairs_items_with_two_prompts_lengths_and_settings() -> None:
    done = made(
        "items.json",
        {
            "title": "Bread",
            "steps": 30,
            "scenes": [
                {"scene": "a bakery", "action": "a baker sings", "duration": 2.5, "mood": "calm"},
                {"setting": "a square", "prompt": "a boy runs"},
                {"prompt": "a (wet:1.3) dog <lora:x:0.5>"},
            ],
        },
    )
    assert done.story.title == "Bread"
    assert scenes(done.story) == [
        ("a bakery", "a baker sings", 2.5, "blend"),
        ("a square", "a boy runs", None, "blend"),
        ("a wet dog", "", None, "blend"),
    ]
    assert "the setting mood (scenes[0])" in done.left_out
    assert "the setting steps" in done.left_out
    assert "weights of words, as in (word:1.2) (scenes[2])" in done.left_out
    pairs = made("pairs.py", "prompts = [('a park', 'a fox sits'), ('a street', 'it runs')]")
    assert scenes(pairs.story)[1] == ("a street", "it runs", None, "blend")


def test_of_several_lists_or_stories_none_is_chosen() -> None:
    assert "several lists" in refused("two.py", "prompts = ['a']\nother_prompts = ['b']\n")
    assert "several lists" in refused("two.json", {"a": {"prompts": ["a"]}, "b": {"prompts": ["b"]}})
    assert "2 stories" in refused("two.jsonl", '{"prompts": ["a"]}\n{"prompts": ["b"]}')


STORYMEM = {
    "story_name": "bread",
    "story_overview": "A baker and a boy share a loaf.",
    "scenes": [
        {
            "scene_num": 1,
            "video_prompts": ["A bakery at dawn. A baker opens the door.", "The baker pulls a tray."],
            "cut": [True, False],
            "action_descriptions": ["The baker opens the door.", "The baker pulls out a tray."],
        },
        {
            "scene_num": 2,
            "video_prompts": ["A wet square. A boy runs."],
            "cut": ["True"],
            "first_frame_prompt": ["x"],
        },
    ],
}


def test_storymem_with_actions_cuts_as_words_and_what_it_has_beside() -> None:
    done = made("storymem.json", STORYMEM)
    assert done.format.name == "storymem"
    assert done.story.title == "bread"
    assert scenes(done.story) == [
        ("A bakery at dawn. A baker opens the door.", "The baker opens the door.", None, "blend"),
        ("The baker pulls a tray.", "The baker pulls out a tray.", None, "continue"),
        ("A wet square. A boy runs.", "", None, "cut"),
    ]
    assert "# A baker and a boy share a loaf." in done.text
    assert done.left_out == ["first_frame_prompt (scenes[1])"]
    assert any(words.startswith("where the source has one prompt") for words in done.guessed)


ENTITY = {
    "story_name": "tea",
    "scenes": [
        {
            "scene_num": 1,
            "video_prompts": [
                "Min: Woman in a red coat.\nThe Study: Room with a desk.\n\n"
                "In The Study, Min sits. Min reads."
            ],
            "cut": [True],
            "action_descriptions": ["In The Study, Min sits. Min reads."],
        }
    ],
    "entity_schedule": {"1:1": {"characters": ["Min"], "places": ["The Study"], "objects": ["the cup"]}},
    "entity_descriptions": {
        "Character 1": {"name": "Min", "label": "Character 1", "description": "Woman in a red coat."},
        "Character 2": {"name": "Bo", "label": "Character 2", "description": "Man"},
        "Location 1": {"name": "The Study", "label": "Location 1", "description": "Room with a desk."},
        "Object 1": {"name": "the cup", "label": "Object 1", "description": "Small cup"},
    },
    "_num_shots": 1,
}


def test_entitybench_has_its_cast_its_places_and_actions_without_the_lines_about_them() -> None:
    done = made("entity.json", ENTITY)
    assert scenes(done.story) == [
        (
            "The Study: room with a desk; the cup: small cup",
            "In The Study, Min (a woman in a red coat) sits. Min reads.",
            None,
            "blend",
        )
    ]
    assert done.story.scenes[0].action == "In The Study, {min} sits. {min.noun} reads."
    assert list(done.story.cast) == ["min"]
    assert "no prompt names Bo, who is left out of the cast" in done.guessed
    alone = {key: value for key, value in ENTITY.items() if not key.startswith("entity")}
    header = "Min: Woman in a red coat. The Study: Room with a desk."
    assert scenes(made("alone.json", alone).story)[0][:2] == (header, "In The Study, Min sits. Min reads.")


VISTORY = {
    "Story_type": {"en": "everyday", "ch": "日常"},
    "Characters": {
        "baker": {"name_en": "Baker", "prompt_en": "a woman in a white apron", "tag": "realistic_human"},
        "ann": {"name_en": "Ann", "prompt_en": "Wears a hat."},
    },
    "Shots": [
        {
            "index": 1,
            "Setting Description": {"en": "A small bakery at dawn", "ch": "清晨的小面包店"},
            "Plot Correspondence": {"en": "The baker starts her day", "ch": "面包师开始一天"},
            "Characters Appearing": {"en": ["Baker"], "ch": ["面包师"]},
            "Static Shot Description": {"en": "The baker opens the door; Ann helps the baker", "ch": "开门"},
            "Shot Perspective Design": {"en": "wide", "ch": "远景"},
        }
    ],
}


def test_vistorybench_has_settings_still_pictures_and_a_cast() -> None:
    done = made("story.json", VISTORY)
    assert done.format.name == "vistory"
    assert scenes(done.story) == [
        (
            "A small bakery at dawn",
            "a woman in a white apron opens the door; Ann helps the baker",
            None,
            "blend",
        )
    ]
    assert done.story.scenes[0].action == "{baker} opens the door; {ann} helps the {baker.noun}"
    assert {key: one.name for key, one in done.story.cast.items()} == {
        "baker": "a woman in a white apron",
        "ann": "Ann",
    }
    assert any("Wears a hat" in words for words in done.guessed)
    assert "# plot: The baker starts her day" in done.text
    assert "# perspective: wide" in done.text
    assert "texts in other languages: ch" in done.left_out
    assert "Plot Correspondence (kept as a comment) (Shots[0])" in done.left_out
    unnamed = json.loads(json.dumps(VISTORY))
    unnamed["Shots"].append(unnamed["Shots"][0] | {"Static Shot Description": {"en": "She sings"}})
    done = made("story.json", unnamed)
    assert "Baker, who is there though no prompt says so (Shots[1])" in done.left_out
    chinese = {"Shots": [{"Setting Description": {"ch": "店"}, "Static Shot Description": {"ch": "开门"}}]}
    assert scenes(made("story.json", chinese).story)[0][:2] == ("店", "开门")


def test_vimax_and_holocine_have_two_prompts() -> None:
    shot = {"shot_id": 1, "first_frame": "a bakery at dawn", "video_prompt": "a baker sings"}
    done = made(
        "vimax.json", {"story_overview": "Bread.", "scenes": [{"scene_num": 1, "shots": [shot, shot]}]}
    )
    assert done.format.name == "vimax"
    assert scenes(done.story)[1] == ("a bakery at dawn", "a baker sings", None, "cut")
    done = made("holo.json", {"global_caption": "a bakery", "shot_captions": ["a baker sings", "a boy eats"]})
    assert scenes(done.story)[1] == ("a bakery", "a boy eats", None, "cut")


TRAVEL = {
    "head_prompt": "cartoon, soft light",
    "prompt_map": {
        "32": "(the baker pulls out a tray:1.2)",
        "0": "a baker opens her shop",
        "64": "a boy eats",
    },
    "tail_prompt": "high quality",
    "n_prompt": ["blur"],
}


def test_maps_over_frames_have_lengths_and_what_stands_around_them() -> None:
    done = made("travel.json", TRAVEL, fps=16.0)
    assert scenes(done.story) == [
        ("cartoon, soft light, a baker opens her shop, high quality", "", 2, "blend"),
        ("cartoon, soft light, the baker pulls out a tray, high quality", "", 2, "blend"),
        ("cartoon, soft light, a boy eats, high quality", "", None, "blend"),
    ]
    assert "the setting n_prompt" in done.left_out
    usual = made("travel.json", TRAVEL)
    assert [scene.seconds for scene in usual.story.scenes] == [3, 3, None]
    assert usual.changed == ["scene 1: 3 seconds instead of 4", "scene 2: 3 seconds instead of 4"]
    assert "# 4 seconds in the source; the nearest that mini can: 3" in usual.text
    assert any("8 frames a second" in words for words in usual.guessed)
    own = made("travel.json", TRAVEL | {"output": {"fps": 32}, "length": 128})
    assert [scene.seconds for scene in own.story.scenes] == [1, 1, 2]
    assert not any("frames a second" in words for words in own.guessed)


@pytest.mark.parametrize("name", ["map.txt", "map.json", "map.py"])
def test_maps_over_frames_without_braces_or_in_a_program(name: str) -> None:
    text = '"0": "a fox sits --neg blur",\n"16": "a fox runs",\n'
    text = text if name == "map.txt" else "{" + text.rstrip(",\n") + "}"
    done = made(name, f"travel = {text}" if name == "map.py" else text)
    assert done.format.name == "travel"
    assert scenes(done.story) == [("a fox sits", "", 2, "blend"), ("a fox runs", "", None, "blend")]
    assert "what prompts say is not to be there (--neg) (frame 0)" in done.left_out


def test_keys_that_number_prompts_are_no_frames() -> None:
    done = made("a.json", {"1": "a fox sits", "2": "a fox runs", "3": "a fox sleeps"})
    assert [scene.seconds for scene in done.story.scenes] == [None] * 3
    assert any("no frames" in words for words in done.guessed)


def test_prompts_in_brackets_with_seconds() -> None:
    done = made("pack.txt", "[0s-2s: a fox waves] [2s-4s: it jumps]\n[4s: it spins]")
    assert done.format.name == "framepack"
    assert scenes(done.story) == [
        ("a fox waves", "", 2, "blend"),
        ("it jumps", "", 2, "blend"),
        ("it spins", "", None, "blend"),
    ]
    first = made("pack.txt", "a fox stands [1s: it jumps] [3s-4s: it spins]")
    assert [scene[::2][:2] for scene in scenes(first.story)] == [
        ("a fox stands", 1),
        ("it jumps", 2),
        ("it spins", 1),
    ]
    never = made("pack.txt", "a fox stands [0s: it jumps] [2s: it spins]")
    assert any("outside of the brackets" in words for words in never.left_out)
    inside = made("pack.json", {"prompt": "[0s: it jumps] [2s: it spins]"})
    assert len(inside.story.scenes) == 2


def test_ranges_behind_a_description_of_the_whole_are_pairs() -> None:
    done = made(
        "relay.txt",
        "One station, one film.\n[0%:33%] A woman enters.\n[33%:66%] She walks.\n[66%:] She waits.",
    )
    assert done.format.name == "relay"
    assert scenes(done.story) == [
        ("One station, one film.", "A woman enters.", None, "blend"),
        ("One station, one film.", "She walks.", None, "blend"),
        ("One station, one film.", "She waits.", None, "blend"),
    ]
    uneven = made("relay.txt", "[0%:25%] one [25%:] two")  # of two scenes of 2 seconds
    assert [scene.seconds for scene in uneven.story.scenes] == [1, 3]
    seconds = made("relay.txt", "[0s:1s] one [1s:3s] two")
    assert [scene.seconds for scene in seconds.story.scenes] == [1, 2]
    frames = made("relay.txt", "[1:17] one [17:49] two")
    assert [scene.seconds for scene in frames.story.scenes] == [1, 2]
    assert "several units" in refused("relay.txt", "[0%:50%] one [1s:2s] two")


FOUNTAIN = """\
Title: _Bread_
Author: Somebody

INT. BAKERY - DAWN #1#

A BAKER in a white apron opens the door. She pulls a tray of bread
from the oven.

BAKER (CONT'D)
(to herself)
Just in time.

The baker *sings*. [[louder?]]

CUT TO:

EXT. SQUARE - MORNING

/* A dog.
Another dog. */
ANN runs across the wet stones.

ANN
Hello!

# Act two

> THE END <

~la la la

FADE OUT.

.AT HOME
"""


def test_a_screenplay_has_a_scene_for_every_paragraph_a_cast_and_cuts() -> None:
    done = made("scene.fountain", FOUNTAIN)
    assert done.story.title == "Bread"
    assert {key: one.name for key, one in done.story.cast.items()} == {"baker": "a baker", "ann": "Ann"}
    assert scenes(done.story) == [
        (
            "Bakery, interior, dawn",
            "a baker in a white apron opens the door. She pulls a tray of bread from the oven.",
            None,
            "blend",
        ),
        ("Bakery, interior, dawn", "a baker sings.", None, "blend"),
        ("Square, exterior, morning", "Ann runs across the wet stones.", None, "cut"),
        ("At home", "", None, "blend"),
    ]
    assert "# BAKER: (to herself) Just in time." in done.text
    assert done.left_out == [
        "what is struck out (/* */) (line 19)",
        "a note ([[ ]]) (line 13)",
        "Author of the title page (line 2)",
        "what is spoken (kept as comments) (line 9, line 23)",
        "a section (line 26)",
        "centred text (line 28)",
        "a lyric (line 30)",
        "the transition FADE OUT. (line 32)",
    ]
    assert made("scene.txt", FOUNTAIN).format.name == "fountain"


def test_what_is_of_no_format_is_refused_with_what_was_tried() -> None:
    words = refused("page.txt", "<!DOCTYPE html><p>a fox")
    assert all(f"{name}" in words for name, one in FORMATS.items() if one.recognised)
    assert "it is DOCTYPE, not plain text" in words
    assert "Fountain" in refused("film.fdx", "<?xml version='1.0'?><FinalDraft/>", wanted="lines")
    assert "is a story already" in refused("park.yaml", "scenes: [a fox]\n")
    assert "no scene heading" in refused("a.txt", "a fox\n", wanted="fountain")
    assert "line 1, column 10" in refused("a.json", '{"a": 1, }')


def test_prompts_that_no_story_can_have_are_refused_with_their_place() -> None:
    assert "line 2: a prompt of 2001 characters" in refused("a.txt", "a fox\n" + "x" * (MAX_PROMPT + 1))
    assert len(made("a.txt", "x" * MAX_PROMPT).story.scenes) == 1
    assert "5000 prompts" in refused("a.txt", "a fox\n" * 5000)
    assert len(made("a.txt", "a fox\n" * MAX_SCENES).story.scenes) == MAX_SCENES
    assert "makes no valid story" in refused("a.txt", f"{'x' * 1999}\n" * 200)
    assert "has no prompt" in refused("a.json", ["", " "])


def test_the_lengths_and_the_room_of_another_model() -> None:
    wan = find_model("wan-1.3b")
    text = json.dumps(TRAVEL).encode()
    done = convert("travel.json", text, wan)
    assert [scene.seconds for scene in done.story.scenes] == [4, 4, None]
    assert done.story.render.model == wan.name
    long = convert("a.txt", b"quixotic " * 90, MINI)
    assert "tokens" in long.problems[0].message
    assert not convert("a.txt", b"quixotic " * 90, wan).problems
