"""Many stories: one that fails leaves the others alone; as a Slurm array job; and how they are."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MethodType

import pytest

from storyreel import slurm
from storyreel.cli.app import run
from storyreel.cli.options import RenderOptions, SlurmOptions
from storyreel.errors import MissingError, NumericsError, StoppedError
from storyreel.film.folder import FilmFolder
from storyreel.film.status import EARLIER, FilmStatus, film_status
from storyreel.models.lora import Lora
from storyreel.models.specs import ModelSpec
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import parse_story
from storyreel.story.sounds import Sound, Soundtrack
from tests.conftest import FakeEngine

STORY = "render: {model: fake}\nscenes:\n" + '  - ["a park", "a fox sits"]\n' * 3
OTHER = STORY.replace("park", "street")


class Batch:
    """A folder of stories, and the command on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"

    def story(self, name: str, text: str = STORY) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def run(self, *arguments: str) -> int:
        return run(["batch", *arguments, "--out", str(self.out)])


@pytest.fixture
def batch(tmp_path: Path, fake_engine: FakeEngine) -> Batch:
    return Batch(tmp_path)


def raising(error: BaseException, engine: FakeEngine, model: ModelSpec, at: int) -> None:
    """Have the fake model fail in the forward pass ``at``, and in no other."""

    def fail(count: int) -> None:
        if count == at:
            engine.adapter(model).predicted.append((0.0, ""))  # so that it is not the same pass again
            raise error

    engine.adapter(model).on_predict = fail


# One after the other


def test_one_that_fails_does_not_stop_the_others(
    batch: Batch, fake_engine: FakeEngine, fake_model: ModelSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(NumericsError("no picture", "Do something."), fake_engine, fake_model, at=0)
    stories = [batch.story("a.yaml"), batch.story("bad.yaml", "scenes: 1\n"), batch.story("b.yaml", OTHER)]
    assert batch.run(*stories, "--json") == 65  # a bad script goes before the first that failed
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert results["a"] == {"state": "failed", "error": "no picture", "exit_code": 1}
    assert results[stories[1]]["exit_code"] == 65
    assert (results["b"]["state"], results["b"]["rendered"]) == ("done", 3)
    assert Path(results["b"]["film"]).exists()
    assert "1 of 3 films done" in printed.err
    assert "Do something." in printed.err
    assert f"{stories[1]}:1:" in printed.err


def test_the_first_failure_is_the_exit_code_and_the_same_command_mends_it(
    batch: Batch, fake_engine: FakeEngine, fake_model: ModelSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(NumericsError("no picture"), fake_engine, fake_model, at=0)
    stories = [batch.story("a.yaml"), batch.story("b.yaml", OTHER)]
    (batch.out / "b").mkdir(parents=True)
    (batch.out / "b" / "segments").write_text("in the way")
    assert batch.run(*stories) == 1  # of the first, not 73 of the second
    (batch.out / "b" / "segments").unlink()
    assert batch.run(*stories) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(batch.out / name / f"{name}.mp4") for name in ("a", "b")
    ]


@pytest.mark.parametrize(("error", "code"), [(StoppedError("stopped"), 75), (KeyboardInterrupt(), 130)])
def test_a_stop_ends_the_whole_batch(
    batch: Batch, fake_engine: FakeEngine, fake_model: ModelSpec, error: BaseException, code: int
) -> None:
    raising(error, fake_engine, fake_model, at=2)
    stories = [batch.story("a.yaml"), batch.story("b.yaml", OTHER)]
    assert batch.run(*stories) == code
    assert not (batch.out / "b").exists()
    assert batch.run(*stories) == 0


def test_the_model_is_loaded_once(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, fake_engine: FakeEngine
) -> None:
    engines: list[tuple[object, ...]] = []

    def engine(*options: object, **others: object) -> FakeEngine:
        engines.append(options)
        return fake_engine

    monkeypatch.setattr("storyreel.rendering.Engine", engine)
    assert batch.run(*(batch.story(f"{name}.yaml") for name in "abc")) == 0
    assert [options[:4] for options in engines] == [("auto", "auto", False, None)]
    assert fake_engine.asked == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no story is named"),
        (["a.yaml", "--time", "5"], "not --slurm"),
        (["a.yaml", "--slurm", "--status"], "exclude each other"),
        (["a.yaml", "--slurm", "--overwrite"], "start over"),
        (["a.yaml", "--slurm", "--partition", "a\nb"], "control characters"),
        (["a.yaml", "a.yaml", "--slurm"], "Rename one"),
        (["a.yaml", "--memory", "all"], "'all' is not one of 'auto', 'high'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_told_before_anything_happens(
    batch: Batch, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.story("a.yaml")
    arguments = [str(batch.folder / word) if word.endswith(".yaml") else word for word in arguments]
    assert batch.run(*arguments) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
    assert not batch.out.exists()


# The job


ODD = [
    "a b.yaml",
    "it's.yaml",
    '"$(touch hacked)".yaml',
    "`touch hacked`;&|<>*?.yaml",
    "-rf.yaml",
    "猫 $HOME.yaml",
]


def job(stories: list[Path], folder: Path, python: str = "", **environment: str) -> subprocess.Popen[str]:
    """Start a job's script as Slurm does, with ``python`` as what it runs and its commands on the PATH."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(folder / "the python"))
        patch.chdir(folder)
        script = slurm.job_script(stories, ["--seed=1"], ["--array=0-9"])
    tool(folder / "the python", python)
    (folder / "job.sh").write_bytes(os.fsencode(script))
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | environment
    pipe = subprocess.PIPE
    command = [shutil.which("bash") or "bash", str(folder / "job.sh")]
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd="/")


def tool(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def test_odd_names_reach_render_as_they_are(tmp_path: Path) -> None:
    here = tmp_path / "it's a $folder"
    here.mkdir()
    stories = [here / name for name in ODD]
    for element, story in enumerate(stories):
        with job(stories, here, 'printf "%s\\n" "$PWD" "$@"', SLURM_ARRAY_TASK_ID=str(element)) as process:
            out, err = process.communicate()
        assert out.splitlines() == [str(here), "-m", "storyreel", "render", "--seed=1", "--", str(story)]
        assert (process.returncode, err) == (0, "")
    subprocess.run(["bash", "-n", str(here / "job.sh")], check=True)
    assert not list(tmp_path.rglob("hacked"))


def test_names_that_are_no_text_reach_render_too(tmp_path: Path) -> None:
    story = tmp_path / os.fsdecode(b"\xff\xfe.yaml")
    with job([story], tmp_path, 'printf %s "${@: -1}" > said', SLURM_ARRAY_TASK_ID="0") as process:
        process.communicate()
    assert (tmp_path / "said").read_bytes() == os.fsencode(story)


LISTENING = "trap 'echo heard; exit {code}' USR1; echo ready; while :; do sleep 0.02; done"


@pytest.mark.parametrize(
    ("python", "signals", "state", "code", "requeued"),
    [
        (LISTENING.format(code=75), ["USR1"], "RUNNING", 75, True),
        (LISTENING.format(code=75), ["TERM"], "RUNNING", 75, True),  # preemption with some time to leave
        (LISTENING.format(code=75), ["USR1", "TERM"], "RUNNING", 75, True),
        (LISTENING.format(code=75), ["TERM"], "COMPLETING", 75, False),  # cancelled: it must not come back
        (LISTENING.format(code=75), ["TERM"], "", 75, False),
        (LISTENING.format(code=0), ["USR1"], "RUNNING", 0, False),  # there was nothing left to do
        # Whatever ends a render that was told to stop, it is to go on.
        (LISTENING.format(code=130), ["USR1"], "RUNNING", 130, True),
        (LISTENING.format(code=1), ["TERM"], "RUNNING", 1, True),
        ("echo ready; exec sleep 60", ["USR1"], "RUNNING", 138, True),  # as a python that still starts
        ("echo ready; exit 75", [], "RUNNING", 75, False),
        ("echo ready; exit 65", [], "RUNNING", 65, False),
        ("echo ready; kill -KILL $$", [], "RUNNING", 137, False),
    ],
)
def test_a_job_passes_signals_on_and_goes_back_into_the_queue(
    tmp_path: Path, python: str, signals: list[str], state: str, code: int, requeued: bool
) -> None:
    asked = shlex.quote(str(tmp_path / "asked"))
    says = f'[ "$*" = "show job 12_3" ] && echo "JobState={state} Reason=None" || echo "$@" >> {asked}'
    tool(tmp_path / "scontrol", says)
    numbers = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    with job([tmp_path / f"{n}.yaml" for n in range(4)], tmp_path, python, **numbers) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for name in signals:
            process.send_signal(getattr(signal, f"SIG{name}"))
        process.communicate()
    assert process.returncode == code
    found = [path.read_text() for path in tmp_path.glob("asked")]
    assert found == (["requeue 12_3\n"] if requeued else [])


def test_a_node_without_scontrol_says_so(tmp_path: Path) -> None:
    """What is on its PATH are the commands of this folder alone."""
    numbers = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0", "PATH": str(tmp_path)}
    listening = LISTENING.format(code=75).replace("sleep 0.02", "read -t 0.02 <> <(:)")
    with job([tmp_path / "a.yaml"], tmp_path, listening, **numbers) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        words = process.communicate()[1]
    assert process.returncode == 75
    assert "there is no scontrol on this node" in words


def test_the_script_says_what_was_asked_for(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    stories = [batch.story("a.yaml"), batch.story("b.yaml")]
    words = ["--gpus", "1", "--time", "1:00:00", "--partition", "a b", "--mem", "8G", "--cpus", "4"]
    words += ["--max-parallel", "3", "--sbatch-option", "--account=me", "--sbatch-option", "--nice"]
    words += ["--steps", "4", "--method", "beta=0.2", "--method", "overlap=2", "--compile"]
    assert batch.run(*stories, "--slurm", "--dry-run", *words) == 0
    script = capsys.readouterr().out
    asked = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert asked[5:] == [
        "--array=0-1%3",
        *("--gpus=1", "--time=1:00:00", "'--partition=a b'", "--mem=8G", "--cpus-per-task=4"),
        *("--account=me", "--nice"),
    ]
    rendered = "render --steps=4 --method=beta=0.2 --method=overlap=2 --device=auto "
    assert f"{rendered}{shlex.quote(f'--out={batch.out}')} --memory=auto --compile)\n" in script
    assert batch.run(stories[0], "--slurm", "--dry-run", "--no-compile") == 0
    assert " --memory=auto --no-compile)\n" in capsys.readouterr().out
    assert batch.run(stories[0], "--slurm", "--dry-run") == 0
    assert "compile)" not in capsys.readouterr().out  # the node decides
    assert not batch.out.exists()


def test_options_survive_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the job's render is told is what batch was told."""
    given = RenderOptions(
        model="mini",
        seed=0,
        guidance=1.5,
        method=["a=1", "b=2"],
        weights=Path("w"),
        out=Path("o"),
        negative="",
    )
    seen: list[RenderOptions] = []

    def read(
        stories: object, plan: partial[Plan], name_of: object, casting: object, casts: object
    ) -> tuple[dict[str, Plan], dict[str, Exception]]:
        assert isinstance(plan.func, MethodType)
        assert isinstance(plan.func.__self__, RenderOptions)
        seen.append(plan.func.__self__)
        return {}, {}

    monkeypatch.setattr("storyreel.cli.rendering.read", read)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    assert run(["render", "x.yaml", *given.arguments()]) == 0
    assert seen == [replace(given, weights=tmp_path / "w", out=tmp_path / "o", sources={})]
    assert list(SlurmOptions(gpus=0).directives(1)) == ["--array=0-0"]


# Submission


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose commands are found first."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_submission_is_recorded(batch: Batch, tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool(tools / "sbatch", 'cat > given; echo "$@" "$PWD" > arguments; echo "42;cluster"')
    tool(tools / "scontrol", "")
    stories = [batch.story("a.yaml"), batch.story("it's.yaml", OTHER)]
    assert batch.run(*stories, "--slurm") == 0
    printed = capsys.readouterr()
    assert printed.out == "42\n"
    assert "scontrol" not in printed.err
    folder = batch.out / "slurm"
    assert (folder / "42.sh").read_bytes() == (folder / "given").read_bytes()
    assert (folder / "arguments").read_text() == f"--parsable {folder}\n"
    submission = slurm.last_submission(batch.out)
    assert submission is not None
    assert submission.job == "42"
    assert list(submission.films.values()) == stories
    (folder / "43.json").write_text("{}")  # not ours
    assert slurm.last_submission(batch.out) == submission
    (folder / "44.json").mkdir()
    os.mkfifo(folder / "45.json")
    ours = json.loads((folder / "42.json").read_text())
    for change in NOT_OURS:
        text = json.dumps(ours | {"submitted": "9999"} | change)
        (folder / "46.json").write_text(text)
        assert slurm.last_submission(batch.out) == submission, change
        assert batch.run("--status") == 0
    for text in ("[" * 100_000, "9" * 5000, '{"job": NaN}', '"\\ud800"', "", "null"):
        (folder / "46.json").write_text(text)
        assert slurm.last_submission(batch.out) == submission, text[:9]
    (folder / "46.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(ours | {"job": "46"}).encode())
    assert slurm.last_submission(batch.out) == replace(submission, job="46")  # as other programs write it


NOT_OURS: list[dict[str, object]] = [
    {"job": "x"},
    {"job": 7},
    {"job": "-1"},
    {"job": "9" * 5000},
    {"job": "٤٢"},
    {"submitted": 1},
    {"submitted": None},
    {"submitted": [1]},
    {"films": []},
    {"films": None},
    {"films": {"a": 1}},
    {"films": {"../a": "a"}},
    {"films": {"a\0": "a"}},
    {"films": {"\ud800": "a"}},
]


def test_a_place_without_scontrol_is_told_of_what_it_means(
    batch: Batch, tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool(tools / "sbatch", "echo 42")
    monkeypatch.setenv("PATH", str(tools))
    assert batch.run(batch.story("a.yaml"), "--slurm") == 0
    printed = capsys.readouterr()
    assert printed.out == "42\n"
    assert "there is no scontrol here" in printed.err


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (
            "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1",
            1,
            "invalid partition specified: x",
        ),
        ("exit 3", 1, "exit code 3"),
        ("echo what", 1, "rejected the job"),
        (None, 69, "there is no sbatch here"),
        ('rm -r "$PWD"; echo 7', 73, "scancel 7"),
    ],
)
def test_what_sbatch_refuses(
    batch: Batch,
    tools: Path,
    body: str | None,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    story = batch.story("a.yaml")
    if body is None:
        monkeypatch.setenv("PATH", str(tools))
    else:
        tool(tools / "sbatch", body)
    assert batch.run(story, "--slurm") == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
    assert slurm.last_submission(batch.out) is None


def test_logs_need_a_folder_that_slurm_can_name(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    story = batch.story("a.yaml")
    assert run(["batch", story, "--slurm", "--out", str(batch.folder / "100%")]) == 2
    assert "Choose another --out" in capsys.readouterr().err


def test_a_bad_script_is_never_submitted(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.run(batch.story("a.yaml"), batch.story("bad.yaml", "scenes: 1\n"), "--slurm") == 65
    assert not batch.out.exists()


# How they are


def test_how_films_are(
    batch: Batch, fake_engine: FakeEngine, fake_model: ModelSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["done", "failed", "stopped", "waiting"]
    done, failed, stopped, waiting = (batch.story(f"{name}.yaml") for name in names)
    assert batch.run(done) == 0
    passes = fake_engine.adapter(fake_model).predicted
    raising(NumericsError("no picture"), fake_engine, fake_model, at=len(passes) + 4)
    assert batch.run(failed) == 1
    raising(StoppedError("x"), fake_engine, fake_model, at=len(passes) + 4)
    assert batch.run(stopped) == 75
    before = {path: path.stat().st_mtime_ns for path in batch.out.rglob("*")}
    capsys.readouterr()
    assert batch.run("--status", done, failed, stopped, waiting, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {name: row["state"] for name, row in rows.items()} == dict(zip(names, names, strict=True))
    assert {row["total"] for row in rows.values()} == {3}
    assert (rows["done"]["scenes"], rows["waiting"]["scenes"]) == (3, 0)
    assert "no picture" in rows["failed"]["reason"]
    assert batch.run("--status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == names[:3]  # nobody has begun the last
    assert lines[0] == "done: done, 3 of 3 scenes"
    assert {path: path.stat().st_mtime_ns for path in batch.out.rglob("*")} == before


def test_a_film_is_done_only_as_it_is_asked_for(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    story = batch.story("a.yaml")
    assert batch.run(story) == 0
    capsys.readouterr()
    assert batch.run("--status", story, "--seed", "7") == 0
    assert "a: waiting, 0 of 3 scenes: it was rendered from another story" in capsys.readouterr().out
    plan = make_plan(parse_story("a.yaml", STORY.encode()), "a", Overrides())
    assert film_status(batch.out, "a", plan).state == "done"
    sound = Soundtrack((Sound("music", None, "tune.wav", "0" * 64, 2.0, None, -1.0),))
    begun_with = (replace(plan.segments[0], picture="0" * 64), *plan.segments[1:])
    merged = (replace(plan.segments[0], loras=(Lora(Path("ink.safetensors"), 1.0),)), *plan.segments[1:])
    for other in (replace(plan, sound=sound), *(replace(plan, segments=s) for s in (begun_with, merged))):
        assert film_status(batch.out, "a", other).state == "waiting"
    film = batch.out / "a" / "a.mp4"
    film.write_bytes(film.read_bytes()[:-1])
    assert film_status(batch.out, "a") == FilmStatus(
        "stopped", 3, 3, "its film is damaged or has been removed"
    )
    (batch.out / "a" / "manifest.json").write_text('{"format": 3, "segments": [], "film": {}}')
    reason = "its manifest is damaged, or of an earlier version"
    assert film_status(batch.out, "a") == FilmStatus("stopped", 0, None, reason)


def test_a_film_and_a_render_that_is_not_finished_are_told_apart(
    batch: Batch, fake_engine: FakeEngine, fake_model: ModelSpec
) -> None:
    story = batch.story("a.yaml")
    assert batch.run(story) == 0
    passes = fake_engine.adapter(fake_model).predicted
    raising(StoppedError("x"), fake_engine, fake_model, at=len(passes) + 7)
    assert batch.run(story, "--seed", "7") == 75
    parsed = parse_story("a.yaml", STORY.encode())
    one, other, third = (make_plan(parsed, "a", Overrides(seed=seed)) for seed in (0, 7, 9))
    assert film_status(batch.out, "a", one) == FilmStatus("done", 3, 3)
    begun = FilmStatus("stopped", 1, 3, EARLIER)
    assert film_status(batch.out, "a", other) == begun
    assert film_status(batch.out, "a", third).state == "waiting"
    assert film_status(batch.out, "a") == begun
    assert batch.run(story) == 0  # back to what is there
    assert film_status(batch.out, "a") == FilmStatus("done", 3, 3)
    assert film_status(batch.out, "a", other) == begun
    assert batch.run(story, "--seed", "7") == 0
    assert film_status(batch.out, "a", other) == FilmStatus("done", 3, 3)


def test_a_look_at_a_running_render_keeps_nobody_out(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    story, folder = batch.story("a.yaml"), FilmFolder(batch.out / "a", "a")
    with folder:
        assert film_status(batch.out, "a").state == "running"
        assert batch.run(story) == 74
    assert film_status(batch.out, "a").state == "waiting"
    # A render that begins while somebody looks waits for the look to be over.
    code = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'rb'); fcntl.flock(lock, fcntl.LOCK_SH); "
        "print('held', flush=True); time.sleep(0.1)"
    )
    command = [sys.executable, "-c", code, str(batch.out / "a" / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as looking:
        assert looking.stdout is not None
        looking.stdout.readline()
        assert not folder.is_in_use()  # a look is no render
        with folder:
            assert looking.wait() == 0


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        '{"format": 4, "segments": 3, "film": []}',
        '{"format": 4, "model": 1, "segments": [], "film": {}}',
        '{"format": 4, "model": 1, "segments": [{}, {"number": {}, "video_key": []}], "film": {}}',
        '{"format": 4, "seconds": NaN, "segments": [], "film": {}}',
        '{"format": 4, "title": "\\ud800", "segments": [], "film": {}}',
    ],
)
@pytest.mark.parametrize(
    "events",
    ["", "{", "[1]\n", '{"event": ["x"]}\n', '{"event": "stopped"}\n', "[" * 100_000, '{"event": NaN}\n'],
    ids=lambda text: text[:20],
)
def test_damaged_records_are_no_traceback(batch: Batch, manifest: str, events: str) -> None:
    story, folder = batch.story("a.yaml"), batch.out / "a"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest)
    (folder / "unfinished.json").write_text(manifest)
    (folder / "events.jsonl").write_text(events)
    assert batch.run("--status", story) == 0
    assert batch.run("--status") == 0


NONSENSE: list[tuple[tuple[str | int, ...], str]] = [
    (("seconds",), "NaN"),
    (("seconds",), "-Infinity"),
    (("seconds",), "1e999"),
    (("title",), '"\\ud800"'),
    (("settings", "seed"), "9" * 4000),
    (("settings", "seed"), "9" * 5000),
    (("settings",), "[[]]"),
    (("model",), "[1]"),
    (("model", "name"), "{}"),
    (("versions",), "7"),
    (("story",), "null"),
    (("film",), "[[1, 2]]"),
    (("film", "sha256"), "[]"),
    (("window",), '{"key": []}'),
    (("segments",), '{"a": 1}'),
    (("segments", 0), "null"),
    (("segments", 0, "number"), "[]"),
    (("segments", 0, "key"), "NaN"),
    (("segments", 0, "files"), '{"01.mp4": {}}'),
    (("segments", 0, "decided", "prompt_weights"), '[["\\ud800"]]'),
]


def test_a_manifest_of_nonsense_is_no_traceback(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever reads it takes it for none, or for another film's."""
    story = batch.story("a.yaml")
    assert batch.run(story) == 0
    path = batch.out / "a" / "manifest.json"
    whole = path.read_text()
    for place, value in NONSENSE:
        manifest = inner = json.loads(whole)
        for part in place[:-1]:
            inner = inner[part]
        inner[place[-1]] = "PLACE"
        path.write_text(json.dumps(manifest).replace('"PLACE"', value))
        assert batch.run("--status", story) == 0, place
        assert batch.run("--status", "--json") == 0, place
    for value in ("NaN", '"\\ud800"'):
        path.write_text(whole.replace('"seconds": 1.5', f'"seconds": {value}'))
        assert path.read_text() != whole
        assert run(["render", story, "--out", str(batch.out), "--verify"]) == 1
    assert batch.run(story) == 0
    capsys.readouterr()
    assert batch.run("--status", story) == 0
    assert capsys.readouterr().out == "a: done, 3 of 3 scenes\n"


@pytest.mark.parametrize("name", ["manifest.json", "events.jsonl", "a.mp4", ".lock", "segments/01-*.mp4"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_the_status_of_what_is_no_file_comes_at_once(batch: Batch, name: str, kind: str) -> None:
    story = batch.story("a.yaml")
    assert batch.run(story) == 0
    (path,) = (batch.out / "a").glob(name)
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    assert batch.run("--status", story) == 0
    assert batch.run("--status") == 0


def test_a_command_that_may_not_be_run_is_not_there(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tools))
    (tools / "squeue").mkdir()
    with pytest.raises(MissingError, match="no squeue"):
        slurm.element_states("42")
    (tools / "squeue").rmdir()
    monkeypatch.setenv("PATH", usual)
    tool(tools / "squeue", "printf '42_0|\\377\\n42_1|RUNNING\\n'")
    assert slurm.element_states("42") == {1: "RUNNING"}


def test_what_slurm_says_is_told_too(batch: Batch, tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool(tools / "sbatch", "cat > /dev/null; echo 42")
    tool(tools / "squeue", "printf '42_0|PENDING\\n42_1|RUNNING\\n142_2|FAILED\\n'")
    tool(tools / "sacct", "printf '42_2|OUT_OF_MEMORY\\n42_0|PREEMPTED\\n42_3|CANCELLED by 0\\n'")
    assert batch.run(*(batch.story(f"{name}.yaml") for name in "abcde"), "--slurm") == 0
    capsys.readouterr()
    assert batch.run("--status", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    says = {name: (row["state"], row["slurm"]) for name, row in rows.items()}
    assert says == {
        "a": ("waiting", "PENDING"),
        "b": ("running", "RUNNING"),
        "c": ("failed", "OUT_OF_MEMORY"),
        "d": ("failed", "CANCELLED"),
        "e": ("waiting", None),
    }
    assert "42_2.log" in rows["c"]["reason"]
    tool(tools / "squeue", "exit 1")
    tool(tools / "sacct", "exit 1")
    assert batch.run("--status") == 0
    assert "a: waiting, 0 of ? scenes\n" in capsys.readouterr().out
