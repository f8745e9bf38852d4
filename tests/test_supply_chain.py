"""What comes from elsewhere: nothing but safetensors is loaded, nothing is fetched but by `pull`."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import pytest

from storyreel.cli.app import run
from storyreel.film.reader import _INPUT, CONTAINERS
from storyreel.models.specs import ModelSpec
from tests.conftest import ROOT, FakeEngine, Silent, plan_of

SOURCES = sorted((ROOT / "storyreel").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_that_can_run_code_is_read(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & {"pickle", "dill", "joblib", "shelve", "marshal"}
        assert not (isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "shell"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    checked = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "load_component"]
    for call in calls:
        name, words = ast.unparse(call.func), ast.unparse(call)
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load")
        assert name.rpartition(".")[2] not in ("unsafe_load", "snapshot_download", "hf_hub_download")
        if name.rpartition(".")[2] == "load" and name.split(".")[0] in ("torch", "np", "numpy"):
            # A training goes on from checkpoints of its own; no other file is read so.
            assert path.parent.name == "training", words
            assert "weights_only=True" in words
        hands_on = name == "partial" and ".from_pretrained" in ast.unparse(call.args[0])
        if name.endswith(".from_pretrained") or hands_on:
            assert "local_files_only=True" in words or any(words in outer for outer in checked), words


def test_components_are_loaded_from_local_safetensors() -> None:
    tree = ast.parse((ROOT / "storyreel" / "models" / "loading.py").read_text())
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "load_component"]
    words = ast.unparse(loads[0])
    assert "use_safetensors=True" in words
    assert "local_files_only=True" in words


def test_only_the_hub_module_knows_a_network() -> None:
    names = {"huggingface_hub", "requests", "httpx", "urllib", "http", "socket", "aiohttp", "ftplib"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                used = {name.split(".")[0] for name in found} & names
                assert not used or path.name == "hub.py", (path, used)


def test_every_input_of_ffmpeg_is_held_to_local_files() -> None:
    """Each list of arguments that names an input file names the protocols before it."""
    trees = [ast.parse(path.read_text()) for path in SOURCES if path.parent.name == "film"]
    functions = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    reading = [f for f in functions if re.search(r"'-i', (ffmpeg\.)?local_file", ast.unparse(f))]
    assert {f.name for f in reading} == {"join", "probe", "_decoded", "_metadata"}
    for function in reading:
        held = "'-protocol_whitelist', 'file,pipe'" if function.name == "join" else "*_INPUT"
        words = ast.unparse(function)
        assert words.index(held) < words.index("'-i'")
    assert _INPUT == ["-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS]
    assert not set(CONTAINERS.split(",")) & {"concat", "hls", "dash", "image2", "lavfi", "ffconcat"}


def test_a_render_opens_no_socket(tmp_path: Path) -> None:
    """The embedded model's loading and a film's life, in a process that may not speak to anyone."""
    code = (
        "import socket, sys\n"
        "def no(*a, **k): raise SystemExit('a socket was asked for')\n"
        "sys.addaudithook(lambda event, args: no() if event in ('socket.connect', 'socket.getaddrinfo', "
        "'socket.sendto') else None)\n"
        "from storyreel.cli.app import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    story = tmp_path / "fox.yaml"
    story.write_text("render: {steps: 1, seconds: 0.25}\nscenes:\n  - [a corgi dog, it is sitting]\n")
    command = [sys.executable, "-c", code, "render", str(story), "--out", str(tmp_path / "out")]
    environment = os.environ | {"HF_TOKEN": "hf_secret", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "fox" / "fox.mp4").exists()
    kept = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"hf_secret" not in kept
    assert "hf_secret" not in done.stdout + done.stderr
    guarded, _, _ = code.partition("from storyreel")  # and the guard itself works
    probe = [sys.executable, "-c", guarded + "socket.create_connection(('127.0.0.1', 9))"]
    assert "a socket was asked for" in subprocess.run(probe, capture_output=True, text=True).stderr


HOSTILE = [
    ("file '/etc/passwd'", "ffconcat version 1.0"),
    (";FFMETADATA1", "[CHAPTER]"),
    ("1 --> 2 {{\\an8}}<b>x</b>", "00:00:00,000 --> 00:00:09,000"),
    ("$(reboot) `id` ; rm -rf / | cat > x", "-y -i http://evil.invalid [0:v]scale=1:1[v]; %d"),
    ("a=b;c#d\\e", "' \" & <script>alert(1)</script>"),
]


def test_prompts_are_text_wherever_they_go(tmp_path: Path, fake_model: ModelSpec) -> None:
    """In chapters, tags, subtitles and on the page."""
    from storyreel.film.reader import read_tags
    from storyreel.render import render

    def quoted(text: str) -> str:
        return "'" + text.replace("'", "''") + "'"

    title = 'one\\n[CHAPTER]\\ntitle=two \\"</title><script>alert(0)</script>'
    scenes = "".join(f"  - [{quoted(a)}, {quoted(b)}]\n" for a, b in HOSTILE)
    plan = plan_of(f'title: "{title}"\nrender: {{model: fake}}\nscenes:\n{scenes}')
    film = render(plan, "film", tmp_path, FakeEngine(), Silent()).film
    literal = [(a.replace("{{", "{").replace("}}", "}"), b) for a, b in HOSTILE]
    with av.open(str(film)) as container:
        assert [c["metadata"]["title"] for c in container.chapters()] == [scene for scene, _ in literal]
        words = b"".join(bytes(p) for p in container.demux(container.streams.subtitles[0])).decode()
    assert read_tags(film)["title"] == 'one [CHAPTER] title=two "</title><script>alert(0)</script>'
    for scene, action in literal:
        for text in (scene, action):
            assert text in words  # also what is SubRip's own
    page = (tmp_path / "film" / "index.html").read_text()
    assert page.count("<script>") == page.count("</script>") == 1  # its own
    assert page.count("<title>") == 1 + len(HOSTILE)  # its own, and of each curve
    assert "alert" not in page.split("<script>")[1]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#EXTM3U\n#EXTINF:1,\nfile://SECRET\n",
        b"ffconcat version 1.0\nfile SECRET\n",
        b";FFMETADATA1\ntitle=SECRET\n",
        b'<?xml version="1.0"?><MPD><BaseURL>SECRET</BaseURL></MPD>',
        b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
        b"\xff" * 4096,
    ],
    ids=["empty", "hls", "concat", "metadata", "dash", "only a head", "noise"],
)
def test_inspect_reads_films_and_nothing_else(
    tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, film = tmp_path / "secret.txt", tmp_path / "film.mp4"
    secret.write_text("title=do not tell")
    film.write_bytes(data.replace(b"SECRET", str(secret).encode()))
    assert run(["inspect", str(film)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "not a film" in err
    assert "do not tell" not in err


def test_inspect_neither_waits_for_a_pipe_nor_reads_a_huge_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    for name in ("pipe.mp4", "zero.mp4", "."):
        assert run(["inspect", str(tmp_path / name)]) == 2
    huge = tmp_path / "huge.mp4"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    assert run(["inspect", str(huge)]) == 1
    assert "not a film" in capsys.readouterr().err


def test_a_films_tags_command_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from storyreel.film import writer
    from tests.film.test_writer import write

    segment, film = tmp_path / "0.mp4", tmp_path / "film.mp4"
    write(segment, 40)
    tags = {"title": "a\x1b]0;owned\x07\u202eb"}
    writer.join([segment], film, 12, [writer.Chapter(0, 6, "a", "a")], tags)
    for options in ([], ["--json"]):
        assert run(["inspect", str(film), *options]) == 0
        out = capsys.readouterr().out
        assert "owned" in out
        assert not set(out) & set("\x1b\x07\u202e")
