"""The data set of arXiv 2503.06310 as it is in `stories`, and how much of it a model can draw.

    python -m tests.dataset --model mini

prints a table: a row a city, and for each cast how many of the plot's pairs the model's own list of what it
draws covers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from storyreel.models.specs import find_model
from storyreel.story.casting import CastFile, read_casts
from storyreel.story.schema import Story, load_story, parse_story
from storyreel.story.vocabulary import load_vocabulary, warnings_of
from tests.conftest import ROOT

STORIES = ROOT / "stories"
CASTS = STORIES / "casts"
PRINTED = ("nyc", "dc")  # in the paper's supplement; the other lists are storyreel's own
COUNTED = {  # scene pairs of a plot, by the paper's own count
    "nyc": 12,
    "dc": 13,
    "paris": 13,
    "london": 13,
    "los_angeles": 13,
    "san_francisco": 13,
    "chicago": 12,
    "las_vegas": 12,
}
PLOTS = {city: (f"{city}.yaml", f"{city}_human.yaml") for city in COUNTED}  # of animals, of people


def films(city: str) -> dict[str, tuple[Path, CastFile]]:
    """Return the plot and the cast of every film of a city, by the cast's name."""
    paths = [STORIES / name for name in PLOTS[city]]
    return {cast.name: (path, cast) for path in paths for cast in read_casts(CASTS) if cast.is_for(path)}


def pair_alone(story: Story, index: int) -> Story:
    """Return a story of one scene pair of another, with its cast."""
    scene, cast = story.scenes[index], story.model_dump()["cast"]
    text = json.dumps({"cast": cast, "scenes": [[scene.scene, scene.action]]})  # which is YAML too
    return parse_story("pair", text.encode())


def table(model: str) -> str:
    """Return in Markdown how many pairs a model can draw by its own list. Raises UsageError without one."""
    spec = find_model(model)
    if load_vocabulary(spec) is None:
        raise SystemExit(f"what {model} can draw is not listed anywhere")
    names = [cast.name for cast in read_casts(CASTS)]
    rows = [["plot", *(name.replace("_", " ") for name in names)], ["---"] * (1 + len(names))]
    for city in PLOTS:
        stories = {name: load_story(path, cast.casting) for name, (path, cast) in films(city).items()}
        drawn = {
            name: sum(not warnings_of(pair_alone(story, n), spec) for n in range(len(story.scenes)))
            for name, story in stories.items()
        }
        rows.append([city, *(f"{drawn[name]} of {len(stories[name].scenes)}" for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print the table of a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="mini", help="One whose table entry lists what it draws.")
    print(table(parser.parse_args().model))


if __name__ == "__main__":
    main()
