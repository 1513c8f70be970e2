"""Make the pictures of data/signs: signs whose text we know, as a camera sees them.

Run by hand, on Debian 12, whenever a sign changes; other fonts give other pictures:

    apt-get install fonts-noto-cjk
    python tests/make_signs.py

A sign is drawn flat with Pillow, put at an angle before a wall of noise, then lit from
one side, blurred a little and sprinkled with a sensor's noise. The letters are those
of Noto Sans CJK (SIL Open Font License 1.1), whose terms leave pictures of text free;
everything else is drawn here. No font comes into the repository.

It writes data/signs/NAME.jpg for each sign and data/signs/texts.json, which says what
is to be read on each, line by line from the top.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIGNS = Path(__file__).resolve().parent.parent / "data" / "signs"
FONT = "/usr/share/fonts/opentype/noto/NotoSansCJK-Bold.ttc"
SIMPLIFIED_CHINESE = 2  # the place of its face in the collection
SIZE = (640, 480)

Colour = tuple[int, int, int]


class Sign(NamedTuple):
    """What is on a sign, what it looks like, and from where it is seen."""

    lines: list[tuple[str, int]]  # a text and the height of its letters in pixels
    board: Colour
    ink: Colour
    wall: Colour
    bricks: bool
    corners: list[tuple[int, int]]  # in the picture: from top left, clockwise
    blur: float = 0.8


SAMPLES = {
    "exit": Sign(
        [("EXIT", 96), ("安全出口", 84)],
        (0, 122, 76),
        (245, 250, 245),
        (172, 168, 160),
        False,
        [(92, 96), (566, 78), (556, 398), (100, 386)],
    ),
    "gap": Sign(
        [("MIND THE GAP", 64), ("小心站台间隙", 68)],
        (250, 202, 20),
        (24, 24, 28),
        (118, 126, 134),
        False,
        [(48, 120), (598, 132), (590, 366), (58, 346)],
        1.0,
    ),
    "library": Sign(
        [("图书馆", 88), ("City Library", 56), ("Open 9:00-21:00", 44)],
        (122, 30, 36),
        (250, 240, 214),
        (176, 104, 82),
        True,
        [(110, 62), (540, 74), (548, 420), (98, 408)],
    ),
    "menu": Sign(
        [("Coffee 28", 58), ("Green tea 22", 58), ("豆浆6元", 60), ("小笼包18元", 60)],
        (40, 46, 44),
        (236, 236, 226),
        (148, 112, 78),
        False,
        [(118, 34), (528, 46), (540, 446), (106, 440)],
        0.9,
    ),
    "street": Sign(
        [("南京东路", 92), ("NANJING ROAD", 54)],
        (20, 82, 160),
        (244, 247, 252),
        (164, 186, 206),
        False,
        [(60, 128), (588, 104), (580, 344), (70, 352)],
    ),
    "taxi": Sign(
        [("TAXI", 92), ("出租车候车处", 62), ("Airport", 54)],
        (238, 238, 232),
        (176, 26, 40),
        (150, 152, 140),
        True,
        [(88, 72), (548, 56), (562, 402), (80, 398)],
        1.0,
    ),
}


def flat(sign: Sign) -> Image.Image:
    """Draw a sign as one would see it from straight ahead, RGBA."""
    fonts = [
        ImageFont.truetype(FONT, size, index=SIMPLIFIED_CHINESE)
        for _, size in sign.lines
    ]
    pairs = list(zip(sign.lines, fonts, strict=True))
    width = 100 + max(round(font.getlength(text)) for (text, _), font in pairs)
    height = 76 + sum(round(size * 1.42) for _, size in sign.lines)
    board = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(board)
    draw.rounded_rectangle((0, 0, width - 1, height - 1), 26, fill=sign.board)
    inner = (10, 10, width - 11, height - 11)
    draw.rounded_rectangle(inner, 18, outline=sign.ink, width=4)
    top = 38
    for (text, size), font in pairs:
        middle = (width / 2, top + size * 0.71)
        draw.text(middle, text, fill=sign.ink, font=font, anchor="mm")
        top += round(size * 1.42)
    return board


def wall(sign: Sign, random: np.random.Generator) -> Image.Image:
    """Return what is behind a sign: spots of all sizes, and perhaps bricks."""
    spots = np.zeros(SIZE[::-1])
    for cells, strength in ((6, 14), (24, 9), (96, 7)):
        small = random.normal(0, strength, (cells * 3 // 4, cells))
        spots += np.asarray(
            Image.fromarray(small.astype(np.float32)).resize(SIZE, Image.BICUBIC)
        )
    pixels = np.clip(spots[..., None] + sign.wall, 0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if sign.bricks:
        draw = ImageDraw.Draw(picture)
        mortar = tuple(int(0.82 * c + 36) for c in sign.wall)
        for row, y in enumerate(range(0, SIZE[1], 40)):
            draw.line((0, y, SIZE[0], y + 3), mortar, 4)
            for x in range(40 * (row % 2), SIZE[0], 84):
                draw.line((x, y, x, y + 40), mortar, 4)
    return picture


def perspective(size: tuple[int, int], corners: list[tuple[int, int]]) -> list[float]:
    """Return the eight numbers by which Pillow maps `corners` onto a flat sign."""
    width, height = size
    flat_corners = [(0, 0), (width, 0), (width, height), (0, height)]
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, flat_corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y]]
        rows += [[0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(rows, values).tolist()


def photograph(sign: Sign, seed: int) -> Image.Image:
    """Return a sign on its wall as a camera sees it, RGB."""
    random = np.random.default_rng(seed)
    board = flat(sign)
    numbers = perspective(board.size, sign.corners)
    seen = board.transform(SIZE, Image.PERSPECTIVE, numbers, Image.BICUBIC)
    picture = wall(sign, random)
    shadow = seen.getchannel("A").point(lambda a: int(a * 0.55))
    shadow = shadow.filter(ImageFilter.GaussianBlur(9))
    picture.paste((20, 20, 26), (9, 13), shadow)
    picture.paste(seen, (0, 0), seen)
    picture = picture.filter(ImageFilter.GaussianBlur(sign.blur))

    x, y = np.meshgrid(np.linspace(-1, 1, SIZE[0]), np.linspace(-1, 1, SIZE[1]))
    angle = random.uniform(0, 2 * np.pi)
    light = 0.96 + 0.16 * (x * np.cos(angle) + y * np.sin(angle)) - 0.1 * (x**2 + y**2)
    noise = random.normal(0, 3, (*SIZE[::-1], 3))
    pixels = np.asarray(picture, float) * light[..., None] + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def pictures() -> Iterator[tuple[str, Image.Image]]:
    """Yield (name, picture) of all the signs."""
    for seed, (name, sign) in enumerate(SAMPLES.items()):
        yield name, photograph(sign, seed)


def texts() -> dict[str, list[str]]:
    """Return what is to be read on each sign."""
    return {name: [text for text, _ in sign.lines] for name, sign in SAMPLES.items()}


def main() -> None:
    """Write the pictures and their texts."""
    SIGNS.mkdir(exist_ok=True)
    for name, picture in pictures():
        picture.save(SIGNS / f"{name}.jpg", quality=85)
    words = json.dumps(texts(), ensure_ascii=False, indent=2)
    (SIGNS / "texts.json").write_text(f"{words}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
