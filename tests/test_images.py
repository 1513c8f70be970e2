"""A photograph becomes the tensor that image_client sends, or one clear sentence."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from helpers.images import PHOTOS, read_photo

LEFT_RED_RIGHT_BLUE = np.uint8([[[255, 0, 0], [0, 0, 255]]])


def saved(picture, kind="PNG", **options):
    """Return a picture as a file in memory."""
    file = BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def test_every_photograph_of_the_course_becomes_a_classifier_s_tensor():
    for path in PHOTOS.glob("*.*g"):
        tensor = read_photo(path)
        assert (tensor.shape, tensor.dtype) == ((3, 224, 224), np.float32)
        assert -1 <= tensor.min() < tensor.max() <= 1


def test_it_is_what_image_client_computes_for_inception():
    with Image.open(PHOTOS / "coffee.png") as photo:
        resized = photo.convert("RGB").resize((224, 224), Image.BILINEAR)
    expected = (np.array(resized).astype(np.float32) / 127.5) - 1
    assert np.array_equal(
        read_photo(PHOTOS / "coffee.png"), expected.transpose(2, 0, 1)
    )


def test_a_path_may_be_text_and_a_file_may_be_open():
    path = PHOTOS / "chelsea.png"
    expected = read_photo(path)
    assert np.array_equal(read_photo(str(path)), expected)
    assert np.array_equal(read_photo(BytesIO(path.read_bytes())), expected)


def test_colours_come_first_and_in_the_order_red_green_blue():
    file = saved(Image.fromarray(LEFT_RED_RIGHT_BLUE))
    red, green, blue = read_photo(file, (2, 1))
    assert red.tolist() == [[1, -1]]
    assert green.tolist() == [[-1, -1]]
    assert blue.tolist() == [[-1, 1]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGBA", "CMYK", "YCbCr"])
def test_every_kind_of_picture_is_read_in_three_colours(mode):
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    grey = Image.linear_gradient("L")
    picture = Image.new(mode, grey.size) if mode == "I;16" else grey.convert(mode)
    assert read_photo(saved(picture, kind)).shape == (3, 224, 224)


def test_a_grey_picture_is_the_same_in_each_colour():
    red, green, blue = read_photo(saved(Image.linear_gradient("L")))
    assert np.array_equal(red, green)
    assert np.array_equal(green, blue)


@pytest.mark.parametrize("size", [(1, 1), (1, 999), (999, 1), (223, 225), (224, 224)])
def test_a_picture_of_any_size_is_resized(size):
    assert read_photo(saved(Image.new("RGB", size))).shape == (3, 224, 224)


def test_the_size_asked_for_is_width_and_height():
    assert read_photo(PHOTOS / "coffee.png", (320, 160)).shape == (3, 160, 320)


def test_a_photograph_that_the_camera_marked_as_turned_is_turned_upright():
    upright = Image.fromarray(LEFT_RED_RIGHT_BLUE.repeat(8, 0).repeat(8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen, turn it clockwise by a quarter
    lying = saved(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert np.array_equal(read_photo(lying), read_photo(saved(upright)))


def test_what_is_no_picture_is_refused_in_one_sentence_that_names_it(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    sentence = (
        r"^'.+notes\.txt' is no picture that can be read: save it as JPEG or PNG\.$"
    )
    with pytest.raises(OSError, match=sentence):
        read_photo(text)
    with pytest.raises(OSError, match=r"^The file is no picture that can be read"):
        read_photo(BytesIO(b""))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match=r"^'.+lost\.png' cannot be read: No such file"):
        read_photo(tmp_path / "lost.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_half_a_picture_is_refused(kind):
    half = saved(Image.effect_noise((300, 300), 90), kind).getvalue()[:2000]
    with pytest.raises(OSError, match=r"^The file cannot be read: .*truncated"):
        read_photo(BytesIO(half))
