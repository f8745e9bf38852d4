"""Signals stop a command wherever it is; the same command goes on to the same film."""

from __future__ import annotations

import json
import os
import pkgutil
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from storyreel import stopping as stops
from storyreel.cli.app import run
from storyreel.errors import DamagedError, OutputError, StoppedError
from storyreel.film import ffmpeg, writer
from storyreel.film.folder import FilmFolder
from storyreel.models.specs import ModelSpec
from storyreel.stopping import SIGNALS, Stop, Stopped, deferred, stopping
from tests.conftest import ROOT, FakeEngine, encode_nothing
from tests.film.test_decode import FakeWriter
from tests.signals import EXEMPT, RIGHT, code_of, start, strike

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

SCENES = ["a fox sits", "it walks", "it looks", "it sleeps", "it swims", "it runs"]
STORY = "render: {model: fake}\nscenes:\n" + "".join(f"  - [a park, {action}]\n" for action in SCENES)


@pytest.fixture
def render(tmp_path: Path, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command itself, with a fake model; ``on_predict`` is told of every forward."""
    story = tmp_path / "foxes.yaml"
    story.write_text(STORY)

    def command(
        name: str,
        on_predict: Callable[[int], None] = lambda count: None,
        words: tuple[str, ...] = ("render",),
    ) -> int:
        engine = FakeEngine()
        engine.adapter(fake_model).on_predict = on_predict

        def made(*options: object, stop: Stop | None = None, **others: object) -> FakeEngine:
            engine.stop = stop or options[-1]  # type: ignore[assignment]
            return engine

        monkeypatch.setattr("storyreel.rendering.Engine", made)
        return run([*words, str(story), "--out", str(tmp_path / name)])

    return command


@pytest.fixture(scope="module")
def undisturbed() -> dict[bool, bytes]:
    """The film that no signal comes to, as ffmpeg encodes it and as its frames alone, once it is made."""
    return {}


@pytest.fixture
def whole(tmp_path: Path, render: Callable[..., int], undisturbed: dict[bool, bytes]) -> Callable[[], bytes]:
    """Make that film, or have it from another test."""

    def made() -> bytes:
        encoded = not issubclass(writer.SegmentWriter, FakeWriter)
        if encoded not in undisturbed:
            assert render("whole") == 0
            (undisturbed[encoded],) = films(tmp_path, "whole")
        return undisturbed[encoded]

    return made


def words_of(number: signal.Signals) -> str:
    return "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"


def keeps_state(out: Path) -> bool:
    return any((out / "foxes" / "segments").glob("*.state.safetensors"))


def films(tmp_path: Path, *names: str) -> list[bytes]:
    return [(tmp_path / name / "foxes" / "foxes.mp4").read_bytes() for name in names]


def last_event(out: Path) -> dict[str, str]:
    event: dict[str, str] = json.loads((out / "foxes" / "events.jsonl").read_text().splitlines()[-1])
    return event


@pytest.mark.parametrize("number", SIGNALS, ids=attrgetter("name"))
@pytest.mark.parametrize("at", [0, 4, 8, 17])
def test_a_signal_while_denoising_keeps_the_state_after_that_forward(
    tmp_path: Path,
    render: Callable[..., int],
    whole: Callable[[], bytes],
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    at: int,
) -> None:
    seen = []

    def send(count: int) -> None:
        seen.append(count)
        if count == at:
            os.kill(os.getpid(), number)

    assert render("torn", send) == code_of(number)
    assert seen[-1] == at
    assert keeps_state(tmp_path / "torn")
    assert last_event(tmp_path / "torn") | {"time": ""} == {
        "time": "",
        "event": "stopped",
        "reason": "StoppedError",
    }
    words = capsys.readouterr().err
    assert words_of(number) in words
    assert "What is finished is kept. Run the same command again to go on." in words
    assert ("Ctrl-C again" in words) == (number == signal.SIGINT)
    assert render("torn") == 0
    assert films(tmp_path, "torn") == [whole()]


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=attrgetter("name"))
def test_ctrl_c_again_stops_at_once(
    tmp_path: Path,
    render: Callable[..., int],
    whole: Callable[[], bytes],
    monkeypatch: pytest.MonkeyPatch,
    first: signal.Signals,
) -> None:
    monkeypatch.setattr(stops, "SAME", 0)

    def send(count: int) -> None:
        if count == 4:
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            seen.append(count)

    seen: list[int] = []
    assert render("torn", send) == 130
    assert not seen
    assert not keeps_state(tmp_path / "torn")
    assert last_event(tmp_path / "torn")["reason"] == "StoppedError"
    assert render("torn") == 0
    assert films(tmp_path, "torn") == [whole()]


def test_a_film_that_fails_after_the_signal_ends_the_batch_too(
    tmp_path: Path, render: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "another.yaml").write_text(STORY)

    def fail(count: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise OutputError("no room for the state")

    assert render("out", fail, ("batch", str(tmp_path / "another.yaml"))) == 75
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["another"]
    assert "another: error: no room for the state" in capsys.readouterr().err


def test_an_interrupt_sent_twice_is_one(
    tmp_path: Path, render: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As timeout(1) sends it: to the process, and to its group."""
    monkeypatch.setattr(stops, "SAME", 60)

    def send(count: int) -> None:
        if count == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    assert render("torn", send) == 130
    assert keeps_state(tmp_path / "torn")


def test_what_is_ignored_stays_ignored(tmp_path: Path, render: Callable[..., int]) -> None:
    """SIGHUP under nohup, SIGINT in the background of a script."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

    def send(count: int) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)

    assert render("whole", send) == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


WHERE = ["FakeEngine.scorer", "FakeAdapter.decode", "film.writer.SegmentWriter.write"]
WHERE += ["film.ffmpeg.finish", "film.writer.join", "film.inventory.film_keys"]
WHERE += ["film.folder.write_atomically", "denoise.state.write_atomically"]


@pytest.mark.usefixtures("ffmpeg")
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=attrgetter("name"))
def test_a_signal_anywhere_and_others_behind_it(
    tmp_path: Path,
    render: Callable[..., int],
    whole: Callable[[], bytes],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    first: signal.Signals,
) -> None:
    """While something is at work for the second time; for the first where there is but one.

    The others come while the render leaves.
    """
    if not where.startswith(("film.writer.", "film.ffmpeg.")):
        encode_nothing(monkeypatch)
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
            for number in set(SIGNALS) - {signal.SIGINT}:
                os.kill(os.getpid(), number)
        log(folder, event, **details)

    with monkeypatch.context() as patch:
        patch.setattr(FilmFolder, "log", interrupted_log)
        patch.setattr(owner, name, signalled)
        assert render("torn") == code_of(first)
    assert calls == nth
    if where != "film.inventory.film_keys":  # before there is anything to tell
        assert last_event(tmp_path / "torn")["reason"] == "StoppedError"
    assert render("torn") == 0
    assert films(tmp_path, "torn") == [whole()]


def test_an_interrupt_by_no_signal_is_130_and_handlers_are_as_before(
    tmp_path: Path, render: Callable[..., int]
) -> None:
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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ImportError("half a module"), StoppedError),  # what a signal within an import may leave
        (RuntimeError("wrapped"), StoppedError),
        (DamagedError("a library of weights broke off"), StoppedError),
        (SystemExit(1), StoppedError),
        (OutputError("no room for the state"), OutputError),
    ],
)
def test_what_is_raised_after_a_signal_is_a_stop(error: BaseException, expected: type[Exception]) -> None:
    with pytest.raises(type(error)), stopping():
        raise error
    with pytest.raises(expected), stopping():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Stopped:
            raise error from None


def test_a_signal_is_not_forgotten_when_what_defers_it_fails() -> None:
    with pytest.raises(StoppedError), stopping(), deferred():
        os.kill(os.getpid(), signal.SIGHUP)
        raise OutputError("no room")


def test_a_command_runs_in_any_thread(tmp_path: Path, render: Callable[..., int]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(render("whole")))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_submitted_job_is_told_of_whatever_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake_model: ModelSpec
) -> None:
    (tmp_path / "foxes.yaml").write_text(STORY)
    (tmp_path / "sbatch").write_text("#!/bin/bash\nkill -TERM $PPID; cat > script; echo 42\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert run(["batch", str(tmp_path / "foxes.yaml"), "--slurm", "--out", str(tmp_path / "out")]) == 75
    printed = capsys.readouterr()
    assert printed.out == "42\n"
    assert "What has a number is submitted" in printed.err
    assert (tmp_path / "out" / "slurm" / "42.json").exists()


@pytest.mark.usefixtures("ffmpeg")
def test_a_signal_while_ffmpeg_starts_leaves_none_behind(
    tmp_path: Path,
    render: Callable[..., int],
    whole: Callable[[], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes when an ffmpeg runs that nobody knows yet."""
    started: list[subprocess.Popen[bytes]] = []
    start = ffmpeg._start

    def signalled(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return started[-1]

    monkeypatch.setattr(ffmpeg, "_start", signalled)
    assert render("torn") == 75
    assert len(started) == 2
    assert started[1].returncode is not None
    assert render("torn") == 0
    assert films(tmp_path, "torn") == [whole()]


# The real command


# What stops itself when it is imported, inside the exec of a string, of which dataclasses are made.
STOPPING = """
import os, signal
exec("os.kill(os.getpid(), signal.{name}); list(range(100))")
"""
# A command that does so when it runs; it is no render, which would listen for itself.
COMMAND = """
import sys
from storyreel.cli import stories as cli
from storyreel.__main__ import main
cli.story_schema = lambda: __import__("signalling")
sys.argv[1:] = ["schema"]
main()
"""
# One that ends as any program does.
ORDINARY = """
import sys
from storyreel.errors import StoppedError
from storyreel.stopping import stopping
try:
    with stopping():
        import signalling
except StoppedError as error:
    sys.exit(error.exit_code)
"""


def told(folder: Path, *command: str) -> tuple[int, str]:
    """Run Python on a command, with a folder's modules before all others; return its exit code and stderr."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


FIRST = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize(
    "number",
    [pytest.param(number, marks=() if number in FIRST else pytest.mark.slow) for number in SIGNALS],
    ids=attrgetter("name"),
)
def test_a_signal_inside_exec_has_its_exit_code_under_python_m(
    tmp_path: Path, number: signal.Signals
) -> None:
    """CPython remembers a KeyboardInterrupt that comes out of exec, and dies of SIGINT in the end."""
    expected = (code_of(number), f"{words_of(number)}\nRun the same command again.\n")
    (tmp_path / "signalling.py").write_text(STOPPING.format(name=number.name))
    (tmp_path / "command.py").write_text(COMMAND)
    assert told(tmp_path, "-m", "command") == expected
    (tmp_path / "command.py").write_text(ORDINARY)
    assert told(tmp_path, "-m", "command") == (code_of(number), "")
    (tmp_path / "signalling.py").rename(tmp_path / "yaml.py")  # which the command line imports
    assert told(tmp_path, "-m", "storyreel", "schema") == expected


def test_what_this_guards_against(tmp_path: Path) -> None:
    """If it fails one day, what is raised for a signal may be KeyboardInterrupt itself."""
    for name, expected in (("KeyboardInterrupt", -signal.SIGINT), ("Own", 75)):
        (tmp_path / "guard.py").write_text(
            "import sys\nclass Own(KeyboardInterrupt): pass\n"
            f"try: exec('raise {name}')\nexcept KeyboardInterrupt: sys.exit(75)\n"
        )
        assert told(tmp_path, "-m", "guard") == (expected, "")


def test_a_decided_exit_code_is_not_taken_away(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(
        "import atexit, os, sys\n"
        "from storyreel.__main__ import main\n"
        "from storyreel.stopping import SIGNALS\n"
        "atexit.register(lambda: [os.kill(os.getpid(), number) for number in SIGNALS])\n"
        "sys.argv[1:] = ['validate', 'nowhere.yaml']\n"
        "main()\n"
    )
    code, words = told(tmp_path, "-m", "command")
    assert code == 2
    assert "Traceback" not in words


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("number", SIGNALS, ids=attrgetter("name"))
def test_a_signal_at_any_moment_of_a_small_command(number: signal.Signals) -> None:
    """The short form of ``python -m tests.signals``, without torch."""
    moments = random.Random(number)
    for _ in range(3):
        process = start("validate", str(ROOT / "stories" / "nyc.yaml"))
        at = time.monotonic() + moments.random() * 0.3
        came, words = strike(process, number, partial(has_come, at))
        assert came in {RIGHT, *EXEMPT}, words


def test_a_signal_within_a_callback_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """As in that of the lock of an import: what is raised there goes nowhere, and Python says so."""

    class Gone:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    hook = sys.unraisablehook
    with pytest.raises(StoppedError), stopping() as stop:
        gone = Gone()
        del gone
        stop.check()
    assert capsys.readouterr().err == ""
    assert sys.unraisablehook is hook


def has_come(moment: float) -> bool:
    return time.monotonic() >= moment


@pytest.mark.slow  # a real model
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_signal_while_the_model_loads(tmp_path: Path) -> None:
    story, out = tmp_path / "foxes.yaml", tmp_path / "out"
    story.write_text(STORY.replace("fake", "mini"))
    process = start("render", str(story), "--out", str(out))
    came, words = strike(process, signal.SIGUSR1, (out / "foxes" / "events.jsonl").exists)
    assert came == RIGHT, words
    assert last_event(out)["reason"] == "StoppedError"
