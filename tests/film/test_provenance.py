"""That films say that they are generated: XMP, as other programs read it and by hand from the bytes."""

from __future__ import annotations

import shutil
import struct
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from storyreel.errors import StoryreelError
from storyreel.film import keys, mp4, writer
from storyreel.film.provenance import GENERATED, add_xmp, holds_c2pa, xmp_packet
from storyreel.film.verify import verify_folder
from tests.film.test_writer import FPS, write
from tests.test_rendering import SCENES, make, story

NAMES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "iptc": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
}
XMP_UUID = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")


def statements(packet: bytes) -> dict[str, str]:
    """Return what XMP says, as a reader of XML finds it."""
    (about,) = ET.fromstring(packet.decode().removeprefix("\ufeff")).iter(f"{{{NAMES['rdf']}}}Description")
    title = about.find("dc:title/rdf:Alt/rdf:li", NAMES)
    assert title is not None
    found = {"title": title.text or ""}
    for name in about.findall("iptc:*", NAMES) + about.findall("xmp:*", NAMES):
        found[name.tag.partition("}")[2]] = name.text or ""
    return found


def xmp_of(film: Path) -> bytes:
    """Return an MP4's XMP by a walk through its boxes that shares no code with storyreel's."""
    data, at, found = film.read_bytes(), 0, list[bytes]()
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        assert size >= 8
        if data[at + 4 : at + 24] == b"uuid" + XMP_UUID:
            found.append(data[at + 24 : at + size])
        at += size
    assert at == len(data)
    (packet,) = found
    return packet


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    segment, path = tmp_path / "0.mp4", tmp_path / "film.mp4"
    write(segment, 40)
    writer.join([segment], path, FPS, [writer.Chapter(0, 6, "a", "a")], {})
    return path


def test_a_packet_says_that_what_and_from_which_words() -> None:
    packet = xmp_packet("Foxes & <friends>", "mini", ["a park / a fox sits", 'a "lake"'], version="7.1")
    assert statements(packet) == {
        "title": "Foxes & <friends>",
        "CreatorTool": "storyreel 7.1",
        "DigitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
        "AISystemUsed": "storyreel, model mini",
        "AISystemVersionUsed": "7.1",
        "AIPromptInformation": 'a park / a fox sits\na "lake"',
    }
    assert packet.startswith(b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>')
    assert packet.endswith(b'<?xpacket end="w"?>\n')


@given(st.text(), st.lists(st.text()))
def test_any_text_comes_back(title: str, prompts: list[str]) -> None:
    """But for what XML cannot hold, which becomes the sign for that."""
    found = statements(xmp_packet(title, "mini", prompts))
    lines = "\n".join(prompts)
    for told, text in ((found["title"], title), (found["AIPromptInformation"], lines)):
        assert len(told) == len(text)
        assert all(a == b or a == "\ufffd" for a, b in zip(told, text, strict=True))
        legal = [c for c in text if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff")]
        assert [c for c in told if c != "\ufffd"] == [c for c in legal if c != "\ufffd"]


def test_nothing_moves_in_the_film(clip: Path) -> None:
    before = clip.read_bytes()
    packet = xmp_packet("A", "mini", ["b"])
    add_xmp(clip, packet)
    assert clip.read_bytes().startswith(before)
    assert xmp_of(clip) == packet
    mp4.check_length(clip, 6, FPS)
    with av.open(str(clip)) as container:
        assert len(list(container.decode(video=0))) == 6


@pytest.mark.parametrize("damage", ["cut", "longer", "no length", "nothing", "no film"])
def test_what_is_no_whole_film_is_refused(clip: Path, damage: str) -> None:
    """Appended to such a file, XMP would be taken for something else."""
    data = clip.read_bytes()
    last = data.rindex(b"mdat") - 4
    changed = {
        "cut": data[:-1],
        "longer": data + b"\0",
        "no length": data[:last] + bytes(4) + data[last + 4 :],
        "nothing": b"",
        "no film": struct.pack(">I4s", 16, b"ftyp") + b"isom\0\0\0\0",
    }[damage]
    clip.write_bytes(changed)
    with pytest.raises(StoryreelError, match="not a whole MP4"):
        add_xmp(clip, b"x")
    assert clip.read_bytes() == changed


def test_a_box_of_64_bit_size_is_passed(clip: Path) -> None:
    data = clip.read_bytes()
    clip.write_bytes(data + struct.pack(">I4sQ", 1, b"free", 21) + b"uuid!")
    add_xmp(clip, b"packet")
    assert clip.read_bytes().endswith(XMP_UUID + b"packet")
    assert not holds_c2pa(clip)


@given(st.binary(max_size=200))
def test_the_walk_through_any_bytes_ends(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.mp4"
    for start in (b"", struct.pack(">I4s", 8, b"ftyp")):
        path.write_bytes(start + data)
        holds_c2pa(path)


def as_png(picture: Image.Image, path: Path, packet: bytes) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet.decode())
    picture.save(path, pnginfo=info)


SAVED: dict[str, Callable[[Image.Image, Path, bytes], None]] = {
    "png": as_png,
    "webp": lambda picture, path, packet: picture.save(path, xmp=packet),
    "avif": lambda picture, path, packet: picture.save(path, xmp=packet),
    "jpeg": lambda picture, path, packet: picture.save(path, xmp=packet),
}


@pytest.mark.parametrize("form", ["mp4", *SAVED])
def test_another_program_reads_it(form: str, clip: Path, tmp_path: Path) -> None:
    exiftool = shutil.which("exiftool")
    if exiftool is None:
        pytest.skip("exiftool is not here")
    packet = xmp_packet("Zoë & 猫", "mini", ["a park", "a lake"], "7")
    path = tmp_path / f"film.{form}"
    if form == "mp4":
        add_xmp(clip, packet)
    else:
        SAVED[form](Image.new("RGB", (16, 16)), path, packet)
    command = [exiftool, "-s", "-S", "-XMP:Title", "-XMP:CreatorTool", "-XMP:DigitalSourceType", str(path)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == ["Zoë & 猫", "storyreel 7", GENERATED]


@pytest.mark.usefixtures("fake_model", "ffmpeg")
def test_a_rendered_film_has_it_and_is_the_same_film_again(tmp_path: Path) -> None:
    films = [make(tmp_path / name, story(SCENES[:2]))[0].film for name in ("a", "b")]
    assert films[0].read_bytes() == films[1].read_bytes()
    found = statements(xmp_of(films[0]))
    assert (found["title"], found["DigitalSourceType"]) == ("Foxes", GENERATED)
    assert found["AISystemUsed"] == "storyreel, model fake"
    assert found["AIPromptInformation"].splitlines() == ["a park / a fox sits", "a street / it walks"]
    with av.open(str(films[0])) as container:
        assert len(list(container.decode(video=0))) == 2 * 6


@pytest.mark.usefixtures("fake_model")
def test_a_film_from_before_is_joined_again_and_nothing_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(keys, "film_xmp", lambda plan, version: b"none")
        before.setattr("storyreel.rendering.film_xmp", lambda plan, version: b"none")
        make(tmp_path)
    path = str(tmp_path / "foxes" / "foxes.mp4")
    assert verify_folder(tmp_path / "foxes")[path] == "is damaged, or of an earlier version"
    result, progress, engine = make(tmp_path)
    assert verify_folder(tmp_path / "foxes")[path] == ""
    assert (result.rendered, engine.asked, progress.heard) == (0, 0, [])
    assert GENERATED.encode() in result.film.read_bytes()
