"""Pictures from files: upright, in sRGB, of the film's size, or refused with what to do."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw
from PIL.ImageFile import ImageFile

from storyreel.errors import FormatError
from storyreel.models.pictures import read_picture

SIZE = (64, 32)


def corners(width: int = 64, height: int = 32) -> Image.Image:
    """A picture whose upper left quarter is red, upper right green, lower left blue, lower right white."""
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, width // 2 - 1, height // 2 - 1), "red")
    draw.rectangle((width // 2, 0, width, height // 2 - 1), "lime")
    draw.rectangle((0, height // 2, width // 2 - 1, height), "blue")
    return picture


def saved(folder: Path, picture: Image.Image, name: str = "a.png", **options: Any) -> Path:
    path = folder / name
    picture.save(path, **options)
    return path


def read(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    return read_picture(path, size)[1]


def refused(path: Path, size: tuple[int, int] = SIZE) -> str:
    with pytest.raises(FormatError) as caught:
        read_picture(path, size)
    assert caught.value.remedy
    return caught.value.message


def test_a_picture_of_the_films_size_comes_as_it_is_with_its_files_hash(tmp_path: Path) -> None:
    path = saved(tmp_path, corners())
    found, pixels = read_picture(path, SIZE)
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(corners()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 100, "subsampling": 0}),
        ("a.webp", {"lossless": True}),
        ("a.tiff", {}),
        ("a.bmp", {}),
        ("png.with-another-name", {"format": "PNG"}),
    ],
)
def test_usual_formats_are_read_whatever_they_are_called(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    pixels = read(saved(tmp_path, corners(), name, **options))
    assert np.abs(pixels.astype(int) - np.asarray(corners())).max() <= 4


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_its_camera_was_held(tmp_path: Path, orientation: int, name: str) -> None:
    """As EXIF has it: what is stored turned or mirrored is the same picture."""
    upright = corners()
    turn = Image.Transpose
    back = {
        1: [],
        2: [turn.FLIP_LEFT_RIGHT],
        3: [turn.ROTATE_180],
        4: [turn.FLIP_TOP_BOTTOM],
        5: [turn.TRANSPOSE],
        6: [turn.ROTATE_90],
        7: [turn.TRANSVERSE],
        8: [turn.ROTATE_270],
    }
    stored = upright
    for operation in back[orientation]:
        stored = stored.transpose(operation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"exif": exif, "quality": 100}
    options |= {"subsampling": 0} if name.endswith("jpg") else {"lossless": True}
    pixels = read(saved(tmp_path, stored, name, **options)).astype(int)
    inside = np.abs(pixels - np.asarray(upright)).max(2)
    assert inside[4:12, 4:28].max() <= 8  # red stays in the upper left
    assert inside.mean() <= 4


def profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()  # type: ignore[arg-type]


def test_colours_are_converted_by_the_profile(tmp_path: Path) -> None:
    """One in sRGB stays as it is; the same numbers with a gamma of 1 are brighter."""
    grey = Image.new("RGB", SIZE, (100, 100, 100))
    assert np.array_equal(read(saved(tmp_path, grey, icc_profile=profile("sRGB"))), np.asarray(grey))
    linear = linear_profile()
    pixels = read(saved(tmp_path, grey, "b.png", icc_profile=linear))
    expected = round(255 * (1.055 * (100 / 255) ** (1 / 2.4) - 0.055))
    assert np.abs(pixels.astype(int) - expected).max() <= 2


def linear_profile() -> bytes:
    """sRGB's own profile with its curves made straight: a gamma of 1."""
    raw = bytearray(profile("sRGB"))
    count = int.from_bytes(raw[128:132], "big")
    for at in range(132, 132 + 12 * count, 12):
        name, begin = bytes(raw[at : at + 4]), int.from_bytes(raw[at + 4 : at + 8], "big")
        if name in (b"rTRC", b"gTRC", b"bTRC"):  # a parametric curve becomes a curve without points
            raw[begin : begin + 12] = b"curv" + bytes(8)
    return bytes(raw)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA"])
def test_what_is_opaque_and_of_eight_bits_becomes_rgb(tmp_path: Path, mode: str) -> None:
    picture = corners().convert(mode)
    assert np.array_equal(read(saved(tmp_path, picture)), np.asarray(picture.convert("RGB")))


def test_a_grey_picture_with_a_profile_of_colours_is_read(tmp_path: Path) -> None:
    grey = Image.new("L", SIZE, 90)
    pixels = read(saved(tmp_path, grey, icc_profile=profile("sRGB")))
    assert np.abs(pixels.astype(int) - 90).max() <= 1


def test_another_shape_is_covered_and_cut_at_the_centre(tmp_path: Path) -> None:
    """A square for a film twice as wide as high: what is above and below is cut."""
    picture = Image.new("RGB", (256, 256), "red")
    ImageDraw.Draw(picture).rectangle((0, 64, 255, 191), "lime")
    pixels = read(saved(tmp_path, picture))
    assert pixels.shape == (32, 64, 3)
    assert (pixels[4:-4] == (0, 255, 0)).all()
    assert pixels[0, :, 0].mean() < 64  # but for what is beside the edge, nothing is red


REFUSED: dict[str, tuple[Image.Image, dict[str, Any], str]] = {
    "one pixel": (Image.new("RGB", (1, 1)), {}, "is 1x1, too small"),
    "a line": (Image.new("RGB", (30_000, 2)), {}, "is 30000x2, of which a film of 64x32 would show 0%"),
    "upright for a wide film": (corners(32, 64), {}, "is 32x64, of which a film of 64x32 would show 25%"),
    "too small": (Image.new("RGB", (12, 6)), {}, "is 12x6, too small for a film of 64x32"),
    "CMYK": (Image.new("CMYK", SIZE), {"format": "TIFF"}, "is stored as CMYK"),
    "CMYK in JPEG": (Image.new("CMYK", SIZE), {"format": "JPEG"}, "is stored as CMYK"),
    "16 bits": (Image.new("I;16", SIZE), {}, "is stored as 16 bits a pixel"),
    "fractions": (Image.new("F", SIZE), {"format": "TIFF"}, "is stored as numbers with fractions"),
    "Lab": (Image.new("LAB", SIZE), {"format": "TIFF"}, "is stored as LAB"),
    "transparent": (Image.new("RGBA", SIZE, (1, 2, 3, 254)), {}, "is transparent in places"),
    "a transparent colour": (Image.new("P", SIZE), {"transparency": 0}, "is transparent in places"),
    "another format": (corners(), {"format": "GIF"}, "is GIF, which is not taken"),
    "two pictures": (
        corners(),
        {"save_all": True, "append_images": [Image.new("RGB", SIZE)]},
        "holds more than one picture",
    ),
    "a profile that is none": (corners(), {"icc_profile": b"no profile"}, "has a colour profile"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_as_it_is_meant_is_refused(tmp_path: Path, name: str) -> None:
    picture, options, words = REFUSED[name]
    assert refused(saved(tmp_path, picture, **options)).startswith(words)


def test_an_upright_picture_stored_lying_is_judged_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    said = refused(saved(tmp_path, corners(), "a.jpg", exif=exif))
    assert said.startswith("is 32x64 as its EXIF data turn it, of which")


def deep_png(width: int, height: int) -> bytes:
    """A PNG in RGB with 16 bits a channel, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(height * (1 + width * 6))))
    return b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")


def deep_tiff(width: int, height: int) -> bytes:
    """A TIFF of the same."""
    shorts = ((256, width), (257, height), (259, 1), (262, 2), (277, 3), (278, height))
    tags = {tag: (3, 1, value) for tag, value in shorts}
    end = 8 + 2 + 12 * 9 + 4
    tags |= {258: (3, 3, end), 273: (4, 1, end + 6), 279: (4, 1, width * height * 6)}
    entries = [struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags)]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)
    return head + struct.pack("<3H", 16, 16, 16) + bytes(width * height * 6)


@pytest.mark.parametrize("make", [deep_png, deep_tiff])
def test_sixteen_bits_of_colour_are_refused(make: Callable[[int, int], bytes], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(make(*SIZE))
    with Image.open(tmp_path / "a") as opened:
        assert opened.mode == "RGB"  # so that Pillow alone does not tell
    assert refused(tmp_path / "a") == "is stored as 16 bits a channel"


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    def never(self: ImageFile) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile, "load", never)
    for factor in (1, 2):  # Pillow warns of the first and raises for the second
        path = saved(tmp_path, Image.new("1", (64 * factor, 32 * factor)), f"{factor}.png")
        assert refused(path).startswith("has more than 0 million pixels")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("a picture of a fox")
    (tmp_path / "telephone").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path) == "is a folder"
    assert refused(tmp_path / "missing") == "is not there"
    assert refused(tmp_path / "empty") == "is empty"
    assert refused(tmp_path / "telephone") == "is HEIC or AVIF, which is not taken"
    assert refused(tmp_path / "text") == "is no picture that can be read"
    assert refused(tmp_path / "pipe") == "is not a file"
    assert refused(tmp_path / ("a" * 400)).startswith("cannot be read")


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.tiff"):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8))
        path = saved(tmp_path, noise, name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert refused(path).startswith(("cannot be read", "is no picture")), name


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(data=st.data())
def test_damage_anywhere_gives_a_picture_or_a_reason(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["a.png", "a.jpg", "a.webp", "a.tiff", "a.bmp"]))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, corners(48, 48), name, exif=exif, icc_profile=profile("sRGB"))
    raw = bytearray(path.read_bytes())
    for place, byte in data.draw(st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6)):
        raw[int(place * len(raw))] = byte
    path.write_bytes(raw)
    try:
        assert read(path).shape == (32, 64, 3)
    except FormatError as error:
        assert error.message
        assert error.remedy
