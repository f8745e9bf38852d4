"""README says what is true: its links, its commands, its codes, and no figure is left open."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from storyreel import errors
from storyreel.cli.app import app, run
from storyreel.film import video
from storyreel.method.settings import Method
from storyreel.story.schema import parse_story
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
CARD = (ROOT / "storyreel" / "mini" / "README.md").read_text()


@pytest.mark.parametrize(("text", "base"), [(README, ROOT), (CARD, ROOT / "storyreel" / "mini")])
def test_links_lead_somewhere(text: str, base: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links
    for link in links:
        assert (base / link).exists(), link


def test_nothing_is_left_open() -> None:
    for text in (README, CARD):
        assert not re.search(r"\b(FIGURES|SCORES|TODO|TBD|XXX|[A-Z]+_TRAINING)\b", text)
        assert not re.search(r"\| (TRANSFORMER|TEXT|CODEC) \|", text)


def test_ci_runs_the_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    patterns = re.findall(r"from_readme '([^']+)'", script)
    assert len(patterns) == 2
    for pattern in patterns:
        assert len(re.findall(f"^python3 .*{pattern}", README, re.M)) == 1


def test_every_command_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    for command in app.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback else "")
        assert f"`storyreel {name}" in README
    for row in re.findall(r"^\| `storyreel .*$", README.split("## Commands")[1].split("## ")[0], re.M):
        name = row.split()[2].strip("`")
        assert run([name, "--help"]) == 0
        help_text = capsys.readouterr().out
        for option in re.findall(r"`[^`]*?(--[a-z-]+)[^`]*`", row):
            assert option in help_text, (name, option)


def test_every_exit_code_is_in_the_table() -> None:
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.StoryreelError)
    ]
    for code in {c.exit_code for c in classes} | {0, 130}:
        assert f"| {code} |" in README


def test_the_example_is_a_story() -> None:
    block = README.split("```yaml\n")[1].split("```")[0]
    story = parse_story("README", block.encode())
    assert yaml.safe_load(block)["render"]["seed"] == story.render.seed == 7


def test_every_setting_of_the_method_is_in_the_table_with_its_default() -> None:
    for name, field in Method.model_fields.items():
        default = "the model's" if field.default is None else json.dumps(field.default).strip('"')
        assert f"| `{name}` | {default} |" in README


@pytest.mark.skipif(shutil.which("bash") is None, reason="a shell's command")
def test_the_picture_is_made_by_the_command_that_is_said_to(tmp_path: Path) -> None:
    """In an environment that is active and has no ffmpeg but the package's."""
    (block,) = (block for block in re.findall(r"```sh\n(.*?)```", README, re.S) if "imageio_ffmpeg" in block)
    for folder in ("out/nyc", "stories", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    with video.SegmentWriter(tmp_path / "out" / "nyc" / "nyc.mp4", 96, 64, 12, 2) as writer:
        writer.write(bytes(48 * 96 * 64 * 3))
    environment = {"PATH": f"{tmp_path / 'bin'}", "PYTHONPATH": os.pathsep.join(sys.path)}
    bash = shutil.which("bash") or "bash"
    done = subprocess.run([bash, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stories" / "nyc.png").read_bytes().startswith(b"\x89PNG")
