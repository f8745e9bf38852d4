"""What comes from elsewhere: nothing but safetensors is loaded, nothing is fetched but by `pull`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from storyreel.cli.app import run
from storyreel.errors import StoryreelError
from storyreel.film import reader, writer
from storyreel.models.specs import ModelSpec
from tests.conftest import ROOT, FakeEngine, Silent, plan_of

READERS: dict[str, Callable[[Path], object]] = {
    "frames": lambda film: list(reader.read_frames(film, 32, 32)),
    "probe": reader.probe,
    "survey": reader.survey,
    "count": reader.count_frames,
    "tags": reader.read_tags,
}
PLAYLISTS = {
    "film.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
    "film.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("playlist", PLAYLISTS)
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_of_films_follows_a_playlist(tmp_path: Path, reader: str, playlist: str) -> None:
    secret, film = tmp_path / "secret.mp4", tmp_path / playlist
    with writer.SegmentWriter(secret, 32, 32, 12, 1) as encoder:
        encoder.write(bytes(12 * 32 * 32 * 3))
    READERS[reader](secret)
    film.write_text(PLAYLISTS[playlist])
    with pytest.raises(StoryreelError):
        READERS[reader](film)


@pytest.mark.slow  # a real render in a process of its own
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


@pytest.mark.usefixtures("ffmpeg")
def test_prompts_are_text_wherever_they_go(tmp_path: Path, fake_model: ModelSpec) -> None:
    """In chapters, tags, subtitles and on the page."""
    from storyreel.film.reader import read_tags
    from storyreel.rendering import render

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
    assert page.count("<title>") == 1
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
