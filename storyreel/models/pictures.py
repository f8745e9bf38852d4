"""Pictures from files, as a model is given them: upright, in sRGB, of the film's size.

A picture is scaled until it covers the film's and cut at its centre, as the authors of Wan 2.2 do. What
cannot be shown as it is meant is refused, never guessed. Importing this loads Pillow.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from storyreel.errors import FormatError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
LARGEST = 256 << 20  # bytes of a file
SEEN = 0.5  # of a picture, the least that stays when it is cut to the film's shape
ENLARGED = 4.0  # how many times it may be at the most
READ_AS_RGB = ("RGB", "L", "1", "P", "RGBA", "LA", "PA")
OTHERS = ((b"GIF8", 0, "GIF"), (b"ftyp", 4, "HEIC or AVIF"), (b"%PDF", 0, "PDF"))  # by what is where
NAMES = {"CMYK": "CMYK", "I;16": "16 bits a pixel", "I": "32 bits a pixel", "F": "numbers with fractions"}


def read_picture(path: Path, size: tuple[int, int]) -> tuple[str, np.ndarray]:
    """Return a file's SHA-256, and its picture, uint8 (H, W, 3), as a film of a size (W, H) takes it.

    Raises FormatError, whose message goes on after the file's name.
    """
    raw = _read(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata costs nothing
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw), formats=FORMATS) as opened:
                _check_depth(opened, raw)
                picture = _fitted(_in_srgb(_upright(opened, size)), size)
    except FormatError:
        raise
    except UnidentifiedImageError:
        known = (name for start, at, name in OTHERS if raw.startswith(start, at))
        words = (
            f"is {name}, which is not taken"
            if (name := next(known, ""))
            else "is no picture that can be read"
        )
        raise FormatError(words, f"save it as one of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise FormatError(f"has more than {most} million pixels", "scale it down") from None
    except Exception as error:  # Pillow's readers raise everything from OSError to struct.error
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise FormatError(f"cannot be read: {reason}", "save it again from another program") from error
    return hashlib.sha256(raw).hexdigest(), np.asarray(picture)


def _read(path: Path) -> bytes:
    """Return what is in a file. Raises FormatError."""
    try:
        if not path.is_file():  # a pipe would never end
            what = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "is not there"
            raise FormatError(what, "a relative name begins at the folder of the file that has it")
        if (count := path.stat().st_size) > LARGEST:
            raise FormatError(f"is larger than {LARGEST >> 20} MB", "scale it down")
        if count == 0:
            raise FormatError("is empty", "save it again")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have that name"
        raise FormatError(f"cannot be read: {reason}", "check its name") from error


def _check_depth(opened: Image.Image, raw: bytes) -> None:
    """Raise FormatError for more than 8 bits a channel, which Pillow cuts off in colour without a word."""
    if opened.format == "PNG":
        bits = raw[24]  # of its header, which is always the first thing in it
    elif isinstance(opened, TiffImageFile):
        bits = max(opened.tag_v2.get(258, (1,)))
    else:
        return
    if bits > 8 and opened.mode in READ_AS_RGB:
        raise FormatError(f"is stored as {bits} bits a channel", "save it as RGB with 8 bits")


def _upright(opened: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a picture as its camera was held, after a look at what it says of itself. Raises FormatError."""
    # MPO is JPEG with a preview behind it, as telephones make it.
    if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
        raise FormatError("holds more than one picture", "save the one that is meant alone")
    if opened.mode not in READ_AS_RGB:
        raise FormatError(f"is stored as {NAMES.get(opened.mode, opened.mode)}", "save it as RGB with 8 bits")
    _check_shape(opened, size)  # before any pixel is decoded
    opened.load()
    return ImageOps.exif_transpose(opened)


def _held(opened: Image.Image) -> tuple[int, int]:
    """Return the width and height of a picture when it is upright."""
    width, height = opened.size
    return (height, width) if opened.getexif().get(0x0112) in (5, 6, 7, 8) else (width, height)


def _check_shape(opened: Image.Image, size: tuple[int, int]) -> None:
    """Raise FormatError for a picture of another shape than the film, or far smaller than it."""
    width, height = _held(opened)
    turned = " as its EXIF data turn it" if (width, height) != opened.size else ""
    asked = f"{size[0]}x{size[1]}"
    enlarged = max(size[0] / width, size[1] / height)
    seen = (size[0] / enlarged) * (size[1] / enlarged) / (width * height)
    if seen < SEEN:
        words = f"is {width}x{height}{turned}, of which a film of {asked} would show {seen:.0%}"
        raise FormatError(words, "cut it to the film's shape, or write a render.size of the picture's shape")
    if enlarged > ENLARGED:
        least = "x".join(str(math.ceil(side / ENLARGED)) for side in size)
        words = f"is {width}x{height}{turned}, too small for a film of {asked}"
        raise FormatError(words, f"give one of at least {least}")


def _in_srgb(picture: Image.Image) -> Image.Image:
    """Return an opaque picture in RGB, by the colour profile that it has. Raises FormatError."""
    if picture.has_transparency_data:
        whole = picture.convert("RGBA")
        if whole.getchannel("A").getextrema()[0] != 255:
            raise FormatError("is transparent in places", "put it on a ground and save it without alpha")
    profile = picture.info.get("icc_profile")
    if profile is None:
        return picture.convert("RGB")
    grey = picture.mode in ("L", "LA", "1")
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = given.profile.xcolor_space.strip()
        plain = picture.convert("L" if grey and space == "GRAY" else "RGB")
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        found = ImageCms.profileToProfile(plain, given, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        raise FormatError("has a colour profile that cannot be used", "save it in sRGB") from error
    assert found is not None
    return found


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a picture scaled to cover a size, and cut at its centre."""
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
