"""Photographs as the tensors that image classifiers want; lesson 03 writes it out."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from helpers.repository import PHOTOS

__all__ = ["PHOTOS", "labelled_crops", "read_photo"]

# The photographs that show a class of ImageNet, by the names that are right.
LABELS = {
    "chelsea.png": ("TABBY", "TIGER CAT", "EGYPTIAN CAT"),
    "clock.png": ("ANALOG CLOCK", "WALL CLOCK"),
    "coffee.png": ("CUP", "COFFEE MUG", "ESPRESSO"),
    "rocket.jpg": ("MISSILE", "PROJECTILE"),
}


def read_photo(
    photo: str | Path | BinaryIO, size: tuple[int, int] = (224, 224)
) -> np.ndarray:
    """Return a photograph as FP32 [3, height, width], RGB, scaled to [-1, 1].

    Bilinear resize, then x / 127.5 - 1: what Triton's image_client calls INCEPTION.
    Unlike image_client, it first turns a photograph upright where the camera noted that
    it was held sideways. `size` is (width, height). Raises OSError, with one sentence,
    for what is no picture.
    """
    try:
        with Image.open(photo) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError:
        cure = "save it as JPEG or PNG"
        raise OSError(
            f"{name_of(photo)} is no picture that can be read: {cure}."
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{name_of(photo)} cannot be read: {reason}") from None
    pixels = np.asarray(upright.resize(size, Image.BILINEAR), np.float32)
    return (pixels / 127.5 - 1).transpose(2, 0, 1)


def labelled_crops(count: int, seed: int) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Return crops of the photographs in LABELS, and the names that are right for each.

    Of each photograph so many crops at random places, and their mirror images: FP32
    [8 * count, 3, 224, 224], scaled as by `read_photo`.
    """
    corners = np.random.default_rng(seed).integers(0, 65, (count, 2))
    crops, names = [], []
    for photo, right in LABELS.items():
        large = read_photo(PHOTOS / photo, (288, 288))
        for x, y in corners:
            crop = large[:, y : y + 224, x : x + 224]
            crops += [crop, crop[:, :, ::-1]]
            names += [right, right]
    return np.stack(crops), names


def name_of(photo: str | Path | BinaryIO) -> str:
    """Return what a message calls a photograph: its path, or "the file"."""
    return f"'{photo}'" if isinstance(photo, str | Path) else "The file"
