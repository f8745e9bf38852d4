"""The command that shows a film before it is made, and writes down what was chosen."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from storyreel.cli.options import Json, SheetOptions, check_weights, exclude, option
from storyreel.cli.reading import check_out, missing_weights, raise_all, read, warn
from storyreel.cli.results import faults_of, print_json
from storyreel.cli.telling import note
from storyreel.errors import ScriptError, UsageError, counted
from storyreel.stopping import KEPT, stopping
from storyreel.story.draft import with_seed
from storyreel.story.edit import edit_story, with_scene_key
from storyreel.story.plan import Plan
from storyreel.story.schema import STDIN, Casting, Story, load_story

MOST_SEEDS = 16


def sheet(
    story: Annotated[
        Path, typer.Argument(help="A YAML story; - is standard input.", metavar="STORY", is_eager=True)
    ],
    options: SheetOptions,
    seeds: Annotated[
        int,
        option(
            "N", "Pictures of each scene: the film's, and with seeds 1, 2 and so on.", min=1, max=MOST_SEEDS
        ),
    ] = 1,
    keep: Annotated[
        list[str] | None,
        option(
            "SCENE=SEED",
            "Draw nothing: write seeds that were chosen into the story, as in 3=2,5=1; none takes one out.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a picture of each scene before the film is rendered, in a part of its time.

    A draft of each scene, few steps and a moment long, with the film's own noise, prompts and characters:
    OUT/NAME/sheet.png. The options are those of the render that it stands for. Nothing of a film that is
    there is touched.

    With --seeds 4 there are four pictures of each scene to choose from. All other scenes are in each as the
    film has them; a scene that goes on in another one's shot changes with that one.
    """
    if keep:
        exclude("--keep", True, {"--seeds": seeds > 1})
        _keep(story, keep, options.casting(), as_json)
        return
    warned: dict[str, ScriptError] = {}

    def planned(text: Story, name: str) -> tuple[Plan, dict[int, Plan]]:
        plan = options.plan(text, name, warned)
        several = range(1, seeds + 1) if seeds > 1 else ()  # one of them may be a scene's own
        return plan, {seed: options.plan(with_seed(text, seed), name) for seed in several}

    options.check_name([story])
    plans, errors = read([story], planned, options.film_name, casting=options.casting())
    raise_all(errors.values())
    ((name, (plan, others)),) = plans.items()
    check_out(options.out)
    warn(warned)
    check_weights(options.weights)
    raise_all(missing_weights([(name, plan)]).values())

    from storyreel.cli.display import RenderDisplay, say
    from storyreel.film.recorded import renew_page
    from storyreel.rendering import Engine
    from storyreel.sheets import draw_sheet

    with stopping(KEPT) as stop, RenderDisplay(name) as display:
        engine = Engine(options.device, options.memory, False, False, stop)
        done = draw_sheet(plan, others, seeds, name, options.out, engine, display)
    renew_page(options.out / name)  # which leads to the sheet
    content = done.sheet.content
    say(f"{name}: {counted(len(content['pictures']), 'picture')} in {done.seconds:.1f} s")
    if as_json:
        print_json(
            {
                "sheet": done.sheet.picture,
                "title": content["title"],
                "pictures": content["pictures"],
                "forwards": done.forwards,
                "seconds": done.seconds,
                "warnings": faults_of(warned.get(name)),
            }
        )
    else:
        print(done.sheet.picture, flush=True)
    if seeds > 1:
        named = "STORY" if story == STDIN else shlex.quote(str(story))  # which has to be saved first
        cast = "".join(f" --cast {shlex.quote(member)}" for member in options.cast or ())
        command = f"storyreel sheet {named} --keep 3=2{cast}"
        note(f"to choose, by the numbers of a scene and a seed: {command}")


def _keep(story: Path, chosen: Sequence[str], casting: Casting, as_json: bool) -> None:
    """Write seeds into a story."""
    seeds = _read_choice(chosen)
    changed = edit_story(story, partial(_with_seeds, seeds, str(story)), casting)
    if as_json:
        print_json({"story": story, "seeds": {str(n): seed for n, seed in seeds.items()}, "changed": changed})
        return
    scenes = load_story(story, casting).scenes
    for number in seeds:
        retake = scenes[number - 1].retake
        if retake is not None and retake.seed is not None:
            note(f"scene {number} shows a take with a seed of its own: what was chosen does not show")
    for number, seed in seeds.items():
        said = "has no seed of its own" if seed is None else f"has seed {seed}"
        print(f"{story}: scene {number} {said}")


def _with_seeds(seeds: Mapping[int, int | None], path: str, text: str) -> str:
    for number, seed in seeds.items():
        text = with_scene_key(text, number, "seed", seed, path)
    return text


def _read_choice(chosen: Sequence[str]) -> dict[int, int | None]:
    """Read SCENE=SEED, several of them with commas between. Raises UsageError."""
    seeds: dict[int, int | None] = {}
    for item in (item.strip() for words in chosen for item in words.split(",")):
        scene, equals, seed = (part.strip() for part in item.partition("="))
        if not (equals and scene.isascii() and scene.isdigit() and len(scene) < 5):
            raise UsageError(f"--keep {item!r:.60} is not SCENE=SEED", "Write it as in 3=2, or 3=none.")
        if seed != "none" and not (seed.isascii() and seed.isdigit() and int(seed[:20]) < 2**63):
            remedy = "A seed is a whole number from 0; none takes it out of the story."
            raise UsageError(f"--keep {item!r:.60}: {seed!r:.30} is not a seed", remedy)
        if int(scene) in seeds:
            raise UsageError(f"--keep names scene {int(scene)} twice", "Choose one seed for it.")
        seeds[int(scene)] = None if seed == "none" else int(seed)
    return seeds
