"""Signals stop a render wherever it is; the same command goes on to the same film."""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storyreel import video
from storyreel.checkpoint import FilmFolder
from storyreel.cli import run
from storyreel.errors import StoppedError
from storyreel.models.specs import ModelSpec
from storyreel.stopping import SIGNALS, Stop, stopping
from tests.conftest import FakeEngine

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

SCENES = ["a fox sits", "it walks", "it looks", "it sleeps", "it swims", "it runs"]
STORY = "render: {model: fake}\nscenes:\n" + "".join(f"  - [a park, {action}]\n" for action in SCENES)


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """A stopped command no longer minds signals: its process is on its way out. Ours is not."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def render(tmp_path: Path, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command itself, with a fake model; ``on_predict`` is told of every forward."""
    story = tmp_path / "foxes.yaml"
    story.write_text(STORY)

    def command(name: str, on_predict: Callable[[int], None] = lambda count: None) -> int:
        engine = FakeEngine()
        engine.adapter(fake_model).on_predict = on_predict

        def made(*options: object, stop: Stop | None = None) -> FakeEngine:
            engine.stop = stop or options[-1]  # type: ignore[assignment]
            return engine

        monkeypatch.setattr("storyreel.render.Engine", made)
        return run(["render", str(story), "--out", str(tmp_path / name)])

    return command


def films(tmp_path: Path, *names: str) -> list[bytes]:
    return [(tmp_path / name / "foxes" / "foxes.mp4").read_bytes() for name in names]


def last_event(out: Path) -> dict[str, str]:
    event: dict[str, str] = json.loads((out / "foxes" / "events.jsonl").read_text().splitlines()[-1])
    return event


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("at", [0, 4, 8, 17])
def test_a_signal_while_denoising_is_75_after_that_forward(
    tmp_path: Path, render: Callable[..., int], capsys: pytest.CaptureFixture[str], number: int, at: int
) -> None:
    seen = []

    def send(count: int) -> None:
        seen.append(count)
        if count == at:
            os.kill(os.getpid(), number)

    assert render("torn", send) == 75
    assert seen[-1] == at
    assert last_event(tmp_path / "torn") | {"time": ""} == {
        "time": "",
        "event": "stopped",
        "reason": "StoppedError",
    }
    assert "Run the same command again" in capsys.readouterr().err
    assert render("torn") == render("whole") == 0
    torn, whole = films(tmp_path, "torn", "whole")
    assert torn == whole


WHERE = ["FakeEngine.scorer", "FakeAdapter.decode", "video.SegmentWriter.write", "video._finish"]
WHERE += ["video.join", "render.film_keys", "checkpoint.write_atomically", "stored.write_atomically"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("first", SIGNALS, ids=lambda number: number.name)
def test_a_signal_anywhere_and_another_behind_it_is_75(
    tmp_path: Path, render: Callable[..., int], monkeypatch: pytest.MonkeyPatch, where: str, first: int
) -> None:
    """While something is at work for the second time; for the first where there is but one.

    The others come while the render leaves.
    """
    prefix = "tests.conftest." if where.startswith("Fake") else "storyreel."
    path, name = (prefix + where).rsplit(".", 1)
    owner = pkgutil.resolve_name(path)
    original, calls = getattr(owner, name), 0
    nth = 1 if name in ("scorer", "join", "film_keys") else 2

    def signalled(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            os.kill(os.getpid(), first)
        return original(*arguments, **named)

    log = FilmFolder.log

    def interrupted_log(folder: FilmFolder, event: str, **details: object) -> None:
        if event == "stopped":
            for number in SIGNALS:
                os.kill(os.getpid(), number)
        log(folder, event, **details)

    with monkeypatch.context() as patch:
        patch.setattr(FilmFolder, "log", interrupted_log)
        patch.setattr(owner, name, signalled)
        assert render("torn") == 75
    assert calls == nth
    if where != "render.film_keys":  # before there is anything to tell
        assert last_event(tmp_path / "torn")["reason"] == "StoppedError"
    assert render("torn") == render("whole") == 0
    torn, whole = films(tmp_path, "torn", "whole")
    assert torn == whole


def test_ctrl_c_stays_130_and_handlers_are_as_before(tmp_path: Path, render: Callable[..., int]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    def interrupt(count: int) -> None:
        assert [signal.getsignal(number) for number in SIGNALS] != before
        raise KeyboardInterrupt

    assert render("torn", interrupt) == 130
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_is_held_is_finished_first() -> None:
    done = []
    with pytest.raises(StoppedError), stopping() as stop:
        with stop.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("this")
        done.append("not this")
    assert done == ["this"]


def test_a_signal_while_ffmpeg_starts_leaves_none_behind(
    tmp_path: Path, render: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when an ffmpeg runs that nobody knows yet."""
    started: list[subprocess.Popen[bytes]] = []
    start = video._start

    def signalled(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return started[-1]

    monkeypatch.setattr(video, "_start", signalled)
    assert render("torn") == 75
    assert len(started) == 2
    assert started[1].returncode is not None
    assert render("torn") == render("whole") == 0
    torn, whole = films(tmp_path, "torn", "whole")
    assert torn == whole


def test_a_signal_while_the_model_loads(tmp_path: Path) -> None:
    """The real command, at once; signals that come while it leaves do not take its exit code away."""
    story = tmp_path / "foxes.yaml"
    story.write_text(STORY.replace("fake", "mini"))
    command = [sys.executable, "-m", "storyreel", "render", str(story), "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        begun = tmp_path / "out" / "foxes" / "unfinished.json"  # written just before
        deadline = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)
        process.send_signal(signal.SIGUSR1)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        assert process.stderr is not None
        words = process.stderr.read()
    assert process.returncode == 75, words
    assert "Traceback" not in words
    assert last_event(tmp_path / "out")["reason"] == "StoppedError"
