from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from storyreel import __version__
from storyreel.cli import display as console
from storyreel.cli import stories as cli
from storyreel.cli.app import run
from storyreel.errors import NumericsError
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.story.naming import slug
from tests.conftest import ROOT, FakeEngine

NYC = str(ROOT / "stories" / "nyc.yaml")
STORY = "render: {model: fake}\nscenes:\n" + '  - ["a park", "a fox sits"]\n' * 3


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "foxes.yaml"
    path.write_text(STORY)
    return path


def test_render_prints_the_film_and_nothing_else_on_stdout(
    story: Path, tmp_path: Path, fake_engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["render", str(story), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out / 'foxes' / 'foxes.mp4'}\n"
    assert "3 of 3 scenes rendered" in printed.err
    assert run(["render", str(story), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["foxes"]
    assert result["rendered"] == 0
    assert Path(result["film"]).exists()


def test_quantize_is_an_option_of_whatever_renders(
    story: Path, tmp_path: Path, fake_engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["render"], ["batch"], ["ablate", "--seeds", "1"]):
        assert run([*command, str(story), "--quantize", "int3", "--out", str(tmp_path / "out")]) == 2
        assert "'int3' is not one of 'none', 'fp8'" in capsys.readouterr().err
    options = ["render", str(story), "--quantize", "fp8", "--dry-run"]
    assert run(options) == 0
    assert "model fake in fp8, " in capsys.readouterr().out
    assert run([*options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["foxes"]["quantize"] == "fp8"
    assert fake_engine.asked == 0


def test_every_script_is_checked_before_the_first_is_rendered(
    story: Path, tmp_path: Path, fake_engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("scenes: 1\n")
    assert run(["render", str(story), str(bad), "--out", str(tmp_path / "out")]) == 65
    assert not (tmp_path / "out").exists()
    assert fake_engine.asked == 0
    assert f"{bad}:1:" in capsys.readouterr().err


def test_an_interrupt_is_130_and_says_how_to_go_on(
    story: Path,
    tmp_path: Path,
    fake_engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    fake_model: ModelSpec,
) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    fake_engine.adapter(fake_model).on_predict = interrupt
    assert run(["render", str(story), "--out", str(tmp_path / "out")]) == 130
    assert "Run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["render"], 2, "Missing argument"),
        (["render", NYC, "--bogus"], 2, "No such option"),
        (["nonsense"], 2, "No such command"),
        (["render", "nowhere.yaml"], 2, "storyreel new"),
        (["render", str(ROOT / "stories")], 2, "is a folder"),
        (["validate", "nowhere.yaml"], 2, "cannot be read"),
        (["render", NYC, NYC], 2, "Rename one"),
        (["render", NYC, "--size", "100x100"], 2, "nearest it can is 192x128"),
        (["render", NYC, "--size", "x"], 2, "WIDTHxHEIGHT"),
        (["render", NYC, "--seconds", "99"], 2, "nearest it can: 3"),
        (["render", NYC, "--seconds", "nan"], 2, "finite"),
        (["render", NYC, "--steps", "0"], 2, "steps"),
        (["render", NYC, "--steps", "many"], 2, "steps"),
        (["render", NYC, "--guidance", "0.5"], 2, "guidance"),
        (["render", NYC, "--guidance", "nan"], 2, "guidance"),
        (["render", NYC, "--seed", "-1"], 2, "seed"),
        (["render", NYC, "--device", "tpu"], 2, "unknown device 'tpu'"),
        (["render", NYC, "--model", "sora"], 2, "Known models: mini"),
        (["inspect", "nowhere.mp4"], 2, "not a file"),
    ],
    ids=lambda value: " ".join(Path(v).name for v in value) if isinstance(value, list) else None,
)
def test_mistakes_have_their_code_and_a_remedy(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # No width of a terminal may break the words that are looked for.
    if arguments[0] == "render" and len(arguments) > 1:
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    assert run(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_written_is_73(
    story: Path, tmp_path: Path, fake_engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert run(["render", str(story), "--out", str(blocker / "out")]) == 73
    assert "choose another --out" in capsys.readouterr().err
    assert fake_engine.asked == 0


def test_a_missing_gpu_is_69(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert run(["render", NYC, "--device", "cuda", "--out", str(tmp_path)]) == 69
    assert "--device cpu" in capsys.readouterr().err


def test_dry_run_tells_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["render", NYC, "--dry-run", "--steps", "10", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    for words in (
        "12 scenes",
        "288 frames at 12 per second",
        "24 s of film",
        "123 model evaluations",
        " MB ",
        "10 steps, guidance 1.5\n",
    ):
        assert words in text
    assert not (tmp_path / "out").exists()
    assert run(["render", NYC, "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["nyc"]
    assert (len(facts["segments"]), len(facts["seams"]), facts["frames"]) == (12, 11, 288)


@pytest.mark.parametrize(("steps", "time"), [(1, "under a minute and "), (100, "about 23 s and ")])
def test_an_estimate_of_next_to_nothing_is_no_number(
    steps: int, time: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    story = tmp_path / "fox.yaml"
    story.write_text('scenes:\n  - ["in Central Park", "a fox walks"]\n')
    assert run(["render", str(story), "--dry-run", "--steps", str(steps), "--out", str(tmp_path)]) == 0
    assert time in capsys.readouterr().out


def test_new_writes_a_valid_story_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    assert run(["new", str(path)]) == 0
    assert run(["validate", str(path)]) == 0
    assert run(["new", str(path)]) == 2
    assert run(["new", str(tmp_path / "no" / "mine.yaml")]) == 73


def test_small_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"storyreel {__version__}\n"
    assert run(["--help"]) == 0
    help_text = capsys.readouterr().out
    for command in ("render", "validate", "schema", "new", "models", "inspect"):
        assert command in help_text
    assert run(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mini"]["fps"] == 12
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["required"] == ["scenes"]


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "story_schema", bug)
    with pytest.raises(ZeroDivisionError):
        run(["schema"])


@given(st.text(max_size=300))
def test_slugs_stay_inside_their_folder(stem: str) -> None:
    name = slug(stem)
    assert name
    assert not set(name) & set("/\\:*?\"<>|\0 \n#%'&;$`(){}[]!")
    assert name.isprintable()
    assert not name.startswith((".", "-"))
    assert len(name) <= 80
    assert len(name.encode()) <= 160
    assert slug(name) == name


def test_slugs_tell_stories_apart() -> None:
    stems = ["猫", "犬", "é", "e\u0301", "e", "a b", "a-b", "a--b", "x" * 200, "x" * 201, "..", "story"]
    stems += ["\udcff", "\udcfe", "?", "a\u3164", "a", "\u0301a", "ａ", "x" * 80, "猫" * 84, "猫" * 85]
    names = {slug(stem) for stem in stems}
    assert len({unicodedata.normalize("NFKC", name).casefold() for name in names}) == len(stems) - 1
    assert slug("my_story-2.final") == "my_story-2.final"


@pytest.mark.parametrize("stem", ["猫が走る", "Лиса", "ثعلب", "सियार", "Füchse", "여우", "x_1.2", "①"])
def test_a_films_folder_keeps_the_letters_of_any_script(stem: str) -> None:
    assert slug(stem) == unicodedata.normalize("NFC", stem)
    assert slug(f"{stem} 2").startswith(f"{stem}-2-")


@pytest.mark.parametrize(
    "name",
    [
        *["-.yaml", ".yaml", "...yaml", "..yaml", "con.yaml", "nul. .yaml", "a\nb.yaml", "\x1b[2J.yaml"],
        *["x" * 200 + ".yaml", "\u202egpj.yaml", "trailing..yaml", "$(id).yaml", "%s{first}.yaml", "é.yaml"],
        "..／x.yaml",
    ],
    ids=ascii,
)
def test_a_film_lies_in_a_folder_of_its_own_inside_out(
    name: str, tmp_path: Path, fake_engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    story, out = tmp_path / "in" / name, tmp_path / "out"
    story.parent.mkdir()
    story.write_text(STORY)
    assert run(["render", str(story), "--out", str(out)]) == 0
    (film,) = out.rglob("[!0]*.mp4")
    assert film.parent.parent == out
    assert film.stem == film.parent.name == slug(story.stem)
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "out", "fake-weights"}
    printed = "".join(capsys.readouterr())
    assert "\x1b" not in printed
    assert "\u202e" not in printed


def test_the_first_bad_script_decides_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("scenes: 1\n")
    for arguments in ([str(bad), "nowhere.yaml"], ["nowhere.yaml", str(bad)]):
        assert run(["validate", *arguments]) == 65
        err = capsys.readouterr().err
        assert "nowhere.yaml cannot be read" in err
        assert f"{bad}:1:9: error: expected a list" in err


def test_a_film_is_never_read_as_a_story(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["validate", "/dev/zero"] if Path("/dev/zero").exists() else ["validate", sys.executable]) == 65
    )
    assert "larger than" in capsys.readouterr().err


def test_a_terminal_that_knows_only_ascii() -> None:
    command = [sys.executable, "-m", "storyreel", "validate", NYC]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0


def test_without_docstrings_is_refused_plainly() -> None:
    command = [sys.executable, "-OO", "-m", "storyreel", "schema"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Leave out -OO" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # three real renders
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_in_a_real_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGINT to the real command with the embedded model, then the same command again, in this process."""
    story = tmp_path / "short.yaml"
    pair = '  - ["a corgi dog in Central Park", "a corgi dog is sitting"]\n'
    story.write_text("render: {steps: 2, seconds: 0.5}\nscenes:\n" + pair * 5)
    words = ["render", str(story), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "storyreel", *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as here
    # A test runner in the background may have SIGINT ignored, which children inherit.
    listening = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stderr=pipe, text=True, env=environment, preexec_fn=listening) as process:
        segments = tmp_path / "out" / "short" / "segments"
        deadline = time.monotonic() + 120
        while not list(segments.glob("02-*.mp4.json")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "short" / "short.mp4").exists()
    recorded = list(segments.glob("*.mp4.json"))
    assert 1 <= len(recorded) < 5
    assert run(words) == 0
    assert f"{len(recorded)} of 5 scenes are there already" in capsys.readouterr().err
    assert run([*words[:-1], str(tmp_path / "straight")]) == 0
    films = [tmp_path / name / "short" / "short.mp4" for name in ("out", "straight")]
    assert films[0].read_bytes() == films[1].read_bytes()


def test_verify_says_what_is_wrong_and_renders_nothing(
    story: Path, tmp_path: Path, fake_engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["render", str(story), "--out", str(tmp_path / "out")]
    assert run([*command, "--verify"]) == 1
    assert "not rendered" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert run(command) == 0
    asked = fake_engine.asked
    capsys.readouterr()
    assert run([*command, "--verify"]) == 0
    assert capsys.readouterr().out == "foxes: 10 of 10 files are whole\n"
    (spoilt,) = (tmp_path / "out" / "foxes" / "segments").glob("02-*.mp4")
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    assert run([*command, "--verify"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{spoilt} is damaged")
    assert "foxes: 9 of 10 files are whole" in out
    assert "without --verify" in err
    assert run([*command, "--verify", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)["foxes"]
    assert (result["whole"], result["files"], list(result["wrong"])) == (False, 10, [str(spoilt)])
    assert fake_engine.asked == asked


@pytest.mark.slow  # eight real renders, of which seven end early
@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_of_eight_processes_one_works_and_seven_say_so(tmp_path: Path) -> None:
    story = tmp_path / "short.yaml"
    story.write_text("render: {steps: 2, seconds: 0.5}\nscenes:\n  - [a park, a corgi dog is sitting]\n")
    command = [sys.executable, "-m", "storyreel", "render", str(story), "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(8)
    ]
    results = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert sorted(code for _, code in results) == [0, *[74] * 7]
    assert all("another storyreel" in words for words, code in results if code == 74)
    assert (tmp_path / "out" / "short" / "short.mp4").exists()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc")
def test_large_blocks_go_back_to_the_system() -> None:
    """Also after larger ones, by which glibc would raise its limit: a mapped block says so before itself."""
    code = (
        "import ctypes, sys\n"
        "from storyreel.cli import app as cli\n"
        "cli.app = lambda *arguments, **options: 0\n"
        "cli.main()\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n"
        "libc.free(libc.malloc(ctypes.c_size_t(16 << 20)))\n"
        "block = libc.malloc(ctypes.c_size_t(12 << 20))\n"
        "print(ctypes.c_size_t.from_address(block - 8).value & 2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "/w/x.json"),
            "/w/x.json: No such file or directory",
        ),
        (PermissionError(13, "Permission denied", b"/w/\xff"), "/w/\\udcff: Permission denied"),
        (OSError(18, "Invalid cross-device link", "/a", None, "/b"), "/a: /b: Invalid cross-device link"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (OSError("a library's words\nand more"), "a library's words"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_what_the_system_refuses_is_told_with_its_file_and_no_invented_remedy(
    error: OSError, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise error

    monkeypatch.setattr(cli, "story_schema", refused)
    monkeypatch.delenv("STORYREEL_DEBUG", raising=False)
    assert run(["schema"]) == 1
    told = f"error: {words}\nSTORYREEL_DEBUG=1 shows where that happened.\n"
    assert capsys.readouterr().err == told
    monkeypatch.setenv("STORYREEL_DEBUG", "1")
    assert run(["schema"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "in refused" in err
    assert err.endswith(told)


def test_a_full_gpu_is_no_traceback_in_any_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(cli, "story_schema", full)
    assert run(["schema"]) == 69
    assert "too little memory" in capsys.readouterr().err


@pytest.fixture
def two(story: Path, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two stories, the second for a model of which a part is missing."""
    weights = story.parent / "other-weights"
    (weights / "transformer").mkdir(parents=True)
    (weights / "transformer" / "model.safetensors").write_bytes(b"weights")
    (weights / "model_index.json").write_text(
        '{"transformer": ["diffusers", "X"], "vae": ["diffusers", "Y"]}'
    )
    monkeypatch.setitem(MODELS, "other", replace(fake_model, name="other", weights=weights))
    second = story.with_name("wolves.yaml")
    second.write_text(STORY.replace("fake", "other"))
    return [str(story), str(second)]


def test_all_weights_are_looked_at_before_the_first_story_is_rendered(
    two: list[str], tmp_path: Path, fake_engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    for command in (["render", *two, *out, "--json"], ["ablate", *two, *out]):
        assert run(command) == 69
        printed = capsys.readouterr()
        assert "there is no vae in" in printed.err
        assert printed.out == ""
    assert fake_engine.asked == 0
    assert not (tmp_path / "out").exists()
    assert run(["batch", *two, *out, "--json"]) == 69  # one that fails does not stop the others
    results = json.loads(capsys.readouterr().out)
    assert (results["foxes"]["state"], results["wolves"]["exit_code"]) == ("done", 69)


def test_json_tells_what_was_done_before_a_later_story_failed(
    story: Path,
    tmp_path: Path,
    fake_engine: FakeEngine,
    fake_model: ModelSpec,
    capsys: pytest.CaptureFixture[str],
) -> None:
    second = story.with_name("wolves.yaml")
    second.write_text(STORY.replace("park", "street"))
    failures: list[BaseException] = [NumericsError("no picture"), KeyboardInterrupt()]

    def fail(count: int) -> None:
        if count >= 12:
            raise failures[0]

    fake_engine.adapter(fake_model).on_predict = fail
    for command, codes in (("render", (1, 130)), ("batch", (1,))):
        for code in codes:
            out = tmp_path / f"{command}-{code}"
            assert run([command, str(story), str(second), "--out", str(out), "--json"]) == code
            results = json.loads(capsys.readouterr().out)
            assert Path(results["foxes"]["film"]).exists()
            failures.reverse()
            fake_engine.adapter(fake_model).predicted.clear()


@pytest.mark.parametrize(
    "arguments",
    [
        ["render", NYC, "--dry-run", "--verify", "--overwrite"],
        ["render", NYC, "--dry-run", "--verify"],
        ["render", NYC, "--verify", "--overwrite"],
        ["batch", NYC, "--slurm", "--status"],
        ["batch", NYC, "--status", "--dry-run"],
        ["batch", NYC, "--status", "--overwrite"],
        ["batch", NYC, "--slurm", "--overwrite"],
        ["bench", "--random-weights", "--calculate"],
        ["bench", "--random-weights", "--weights", str(ROOT)],
        ["bench", "--gpu-day", "day", "--calculate"],
        ["bench", "--gpu-day", "day", "--make-folder", "folder"],
        ["bench", "--gpu-day", "day", "--model", "mochi"],
        ["bench", "--make-folder", "folder", "--weights", str(ROOT)],
    ],
    ids=" ".join,
)
def test_modes_that_contradict_each_other_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert "exclude each other" in capsys.readouterr().err


BAD_VALUES = {
    "--model": ["sora", "", "../mini", "MINI"],
    "--seed": ["-1", "x", "1e9", "9223372036854775808", ""],
    "--size": ["big", "0x0", "96x64x2", "-96x64", "97x64", "99999x99999"],
    "--seconds": ["nan", "inf", "-1", "0", "1e308", "-1e308", "1e-308", "2.1", "x"],
    "--steps": ["0", "1001", "1.5", "x"],
    "--guidance": ["nan", "inf", "0.5", "x", "-1"],
    "--shift": ["nan", "inf", "0", "-1", "101", "x", "3"],  # mini takes none at all
    "--negative": ["a {first}", "x" * 2001, "a " * 100],
    "--method": [
        "overlap",
        "=",
        "overlap=0",
        "window=1",
        "temperature=nan",
        "temperature=1e999",
        "x=1",
        "blending=all",
    ],
    "--speed": ["warp", "", "EXACT"],
    "--quantize": ["int3", ""],
    "--device": ["tpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1000", "CPU", ""],
    "--memory": ["tiny", "", "HIGH"],
    "--without": ["clip", "dipw;twb"],
}


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, values in BAD_VALUES.items() for value in values]
)
def test_every_bad_value_of_an_option_is_2(
    option: str, value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for command in (["render", NYC, "--dry-run"], ["batch", NYC, "--dry-run"]):
        assert run([*command, f"{option}={value}", "--out", str(tmp_path / "out")]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(" ".join(err.split())) > 20


@pytest.mark.parametrize(
    "arguments",
    [
        ["pull", "sora"],
        ["bench", "--model", "sora"],
        ["bench", "--variants", "nonsense"],
        ["bench", "--weights", "nowhere"],
        ["bench", "--size", "97x64"],
        ["ablate", NYC, "--variants", "nonsense"],
        ["ablate", NYC, "--weights", "nowhere"],
        ["render", NYC, "--weights", "nowhere"],
        ["render", NYC, "--weights", NYC],
        ["batch", NYC, "--weights", "nowhere"],
        ["eval", "out", "--require", "nonsense"],
        ["eval", "--story", NYC, "--video", NYC, "--fps", "nan"],
        ["eval", "out", "--weights-dir", "nowhere"],
        ["eval", "out", "--device", "tpu"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(NYC, "nyc"),
)
def test_other_bad_values_are_2_too(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert capsys.readouterr().out == ""
    assert not any(tmp_path.iterdir())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(option=st.sampled_from([*BAD_VALUES]), value=st.floats().map(str) | st.text(max_size=9))
def test_no_value_of_an_option_is_a_traceback(option: str, value: str) -> None:
    assert run(["render", NYC, "--dry-run", f"{option}={value}"]) in (0, 2)


@pytest.mark.usefixtures("fake_model")
def test_a_story_may_be_validated_twice(story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = story.with_name("FOXES.yaml")
    one.write_text("scenes:\n  - a fox in the park\n")
    assert run(["validate", str(story), str(story), str(one)]) == 0
    assert capsys.readouterr().out == (f"{story}: 3 scenes, 1.5 s of film\n{one}: 1 scene, 2 s of film\n")
    assert run(["render", str(story), str(one), "--dry-run"]) == 2  # their films would be one file


def test_stories_whose_names_differ_by_case_or_form_alone_are_not_one_film(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for pair in (("é", "É"), ("straße", "STRASSE")):
        paths = [tmp_path / f"{name}.yaml" for name in pair]
        for path in paths:
            path.write_text("scenes:\n  - a fox in the park\n")
        assert run(["render", *map(str, paths), "--dry-run"]) == 2
    assert slug("e\u0301") != slug("é")
    assert slug("e\u0301").startswith("é-")


@pytest.mark.parametrize("command", [["render"], ["batch"], ["ablate"], ["render", "--dry-run"]])
@pytest.mark.parametrize("kind", ["link to nothing", "link to itself", "link into nothing", "long", "file"])
def test_an_out_that_cannot_be_is_named(
    command: list[str],
    kind: str,
    story: Path,
    tmp_path: Path,
    fake_engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / ("x" * 256 if kind == "long" else "out")
    match kind:
        case "file":
            out.write_text("")
        case "link to nothing":
            out.symlink_to(tmp_path / "nothing")
        case "link to itself":
            out.symlink_to(out.name)
        case "link into nothing":
            (tmp_path / "gone").symlink_to(tmp_path / "nothing")
            out = tmp_path / "gone" / "deep" / "out"
    assert run([command[0], str(story), *command[1:], "--out", str(out)]) == 73
    err = capsys.readouterr().err
    assert "File exists" not in err
    words = {"long": "File name too long", "file": "not a folder"}.get(kind, "is a broken link")
    assert words in err
    assert "hoose another --out" in err
    assert fake_engine.asked == 0


def test_eval_says_first_where_its_report_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is scored."""
    film, page = (
        SimpleNamespace(label="f", film=SimpleNamespace(folder=None)),
        tmp_path / "film" / "eval.html",
    )
    evaluation = SimpleNamespace(films=[film], plain=lambda: {"films": []})
    for name, value in (
        ("storyreel.evaluation.films.collect", lambda *_: ([film], [])),
        ("storyreel.evaluation.evaluator.Evaluator", lambda *_: SimpleNamespace(require=lambda names: None)),
        ("storyreel.evaluation.evaluator.evaluate", lambda *_: (evaluation, [])),
        ("storyreel.evaluation.report.report_page", lambda *_: "page"),
    ):
        monkeypatch.setattr(name, value)
    page.mkdir(parents=True)  # no file can be written there
    assert run(["eval", str(page.parent), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{page} is there, and is no report of storyreel's" in err
    assert [path.name for path in page.parent.iterdir()] == ["eval.html"]
    assert run(["eval", str(page.parent), "--report", str(tmp_path / "mine.html"), "--json"]) == 0
    assert (tmp_path / "mine.html").read_text() == "page"


def test_a_path_commands_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets mean something to rich."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(console, "stderr", screen)
    monkeypatch.setattr(console, "has_cursor", lambda _: True)
    with console.FilmBar("take [/red] [bold]2/nyc", 3) as tell:
        tell(3)
    assert "take [/red] [bold]2/nyc" in screen.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("ffmpeg")
def test_any_legal_path_holds_stories_and_films(
    tmp_path: Path, fake_engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "take#2 100%d" / "why?a=b:[c] 'd\" {e}\n-y 猫 é"
    place.mkdir(parents=True)
    story = place / "#1? 猫%.yaml"
    story.write_text(STORY)
    for out in (place / "out", place / "-out"):
        assert run(["render", str(story), f"--out={out}"]) == 0
        assert run(["render", str(story), f"--out={out}", "--verify"]) == 0
        assert "10 of 10 files are whole" in capsys.readouterr().out
        (film,) = out.iterdir()
        assert film.name.startswith("1-猫-")
        assert run(["inspect", str(film / f"{film.name}.mp4")]) == 0
    assert run(["batch", "--status", f"--out={place / 'out'}"]) == 0
    assert "done, 3 of 3 scenes" in capsys.readouterr().out
