"""Images become pixels as the families' own processors make them, whatever the file holds, or are named bad."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from levi_deploy.model.image_processor import image_settings
from levi_serving.errors import UsageError
from levi_serving.rows import images
from levi_serving.rows.images import ImageSettings, decode, normalise

PROCESSORS = {
    "vit": ("ViTImageProcessor", {}),
    "dinov2": ("BitImageProcessor", {"size": {"shortest_edge": 256}}),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    "convnext 384": ("ConvNextImageProcessor", {}),
    "mobilenet_v2": ("MobileNetV2ImageProcessor", {}),
    "clip": ("CLIPImageProcessor", {}),
    "siglip": ("SiglipImageProcessor", {"size": {"height": 96, "width": 128}}),
    "no scaling": ("ViTImageProcessor", {"do_normalize": False, "do_rescale": False, "resample": 0}),
}
SIZES = [(1, 1), (7, 300), (300, 7), (64, 64), (225, 223), (640, 480), (31, 32)]
SQUARE = ImageSettings(resize=(16, 16))


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    made = {}
    for name, (kind, options) in PROCESSORS.items():
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        processor = getattr(transformers, kind + "Pil", None) or getattr(transformers, kind)
        processor(**options).save_pretrained(folder)
        made[name] = (processor(**options), str(folder))
    return made


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_processors_own(processors, name):
    processor, folder = processors[name]
    own = image_settings(folder, column="image")
    for height, width in SIZES:
        image = Image.fromarray(noise(height, width))
        expected = np.asarray(processor(image, return_tensors="np", input_data_format="channels_last")["pixel_values"])
        found = normalise(decode(encoded(image), own)[None], own)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_another_size_keeps_the_crop_in_proportion(processors):
    own = image_settings(processors["mobilenet_v2"][1], column="photo", size=112)
    assert (own.column, own.resize, own.crop, own.size) == ("photo", 128, (112, 112), (112, 112))
    assert image_settings(processors["vit"][1], column="photo", size=64).size == (64, 64)
    assert image_settings(processors["convnext"][1], column="photo", size=64).size == (64, 64)


def test_a_processor_that_does_more_is_refused(processors, monkeypatch):
    kind = type(processors["vit"][0])
    rescale = kind.rescale
    monkeypatch.setattr(kind, "rescale", lambda self, image, scale, **k: rescale(self, image, scale, **k) ** 2)
    with pytest.raises(UsageError, match="does more than resize, crop and normalise"):
        image_settings(processors["vit"][1], column="image")


def test_a_family_without_a_processor_file_has_its_default(tmp_path):
    transformers.MobileNetV2Config().save_pretrained(tmp_path)
    assert image_settings(str(tmp_path), column="image").crop == (224, 224)
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="has no image processor"):
        image_settings(str(tmp_path), column="image")


def flat(cell, own=SQUARE):
    """The one colour of an image of one colour."""
    pixels = decode(cell, own)
    assert pixels.shape == (16, 16, 3)
    assert (pixels == pixels[0, 0]).all()
    return pixels[0, 0].tolist()


def plain(mode, colour):
    return Image.new(mode, (20, 10), colour)


def test_modes():
    assert flat(encoded(plain("RGB", (10, 200, 30)))) == [10, 200, 30]
    assert flat(encoded(plain("L", 77))) == [77] * 3
    assert flat(encoded(plain("1", 1))) == [255] * 3
    assert flat(encoded(plain("RGBA", (10, 20, 30, 0)))) == [255] * 3, "clear is white"
    assert flat(encoded(plain("LA", (100, 255)))) == [100] * 3
    palette = plain("P", 3)
    palette.putpalette([0, 0, 0, 9, 9, 9, 8, 8, 8, 7, 60, 5])
    assert flat(encoded(palette)) == [7, 60, 5]
    assert flat(encoded(palette, transparency=3)) == [255] * 3
    assert flat(encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG", quality=100)) == pytest.approx([255, 0, 0], abs=3)
    deep = Image.fromarray(np.full((10, 20), 32_896, dtype=np.uint16))
    assert flat(encoded(deep)) == [128] * 3, "scaled, not clipped"
    assert flat(encoded(deep, "TIFF")) == [128] * 3
    many = encoded(plain("RGB", (1, 2, 3)), "GIF", save_all=True, append_images=[plain("RGB", (200, 2, 3))])
    assert flat(many) == pytest.approx([1, 2, 3], abs=1)
    assert flat(encoded(plain("RGB", (9, 9, 9)), "WEBP", lossless=True)) == [9] * 3


def test_exif_turns_the_image(tmp_path):
    pixels = np.zeros((32, 16, 3), dtype=np.uint8)
    pixels[:16] = (200, 0, 0)
    image = Image.fromarray(pixels)
    turned = image.getexif()
    turned[0x0112] = 6  # the top is on the right: turn a quarter clockwise
    path = tmp_path / "turned.png"
    image.save(path, exif=turned)
    right = decode(path, ImageSettings(resize=(16, 32)))
    assert right[:, 20:, 0].min() == 200
    assert right[:, :12, 0].max() == 0


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (None, "the image is missing"),
        (b"", "the image is empty"),
        (" ", "the image is empty; expected a path"),
        ("/nowhere/a.png", "there is no file /nowhere/a.png"),
        ("/", "is a folder; expected an image"),
        (b"hello", "this is no image, or of a format"),
        (3.5, "found float; expected a path or bytes"),
        (encoded(Image.fromarray(noise(64, 64)))[:900], "the image cannot be read: "),
        (encoded(Image.fromarray(noise(64, 64)), "JPEG")[:700], "the image cannot be read: image file is truncated"),
        (encoded(plain("F", 0.5), "TIFF"), "floating-point numbers"),
        (encoded(Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)), "TIFF"), "more than 16 bits"),
    ],
)
def test_what_cannot_be_used_is_said(cell, says):
    with pytest.raises(ValueError, match=says):
        decode(cell, SQUARE)


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(images, "LARGEST", 100)
    monkeypatch.setattr(images, "_rgb", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="more than 100 pixels"):
        decode(encoded(plain("RGB", 0)), SQUARE)


@pytest.mark.parametrize("side", [10_000, 15_000])
def test_pillows_own_alarm_is_a_row_error(side):
    bomb = encoded(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match="more than 89,478,485 pixels"):
        decode(bomb, SQUARE)


def test_a_thin_image_is_not_blown_up():
    with pytest.raises(ValueError, match="cannot be resized in proportion"):
        decode(encoded(Image.new("L", (1, 5000))), ImageSettings(resize=224, crop=(224, 224)))


def test_the_datasets_library_writes_mappings():
    file = encoded(plain("RGB", (5, 6, 7)))
    assert flat({"bytes": file, "path": None}) == [5, 6, 7]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_size_comes_out_right(height, width, tall, wide, crops):
    own = ImageSettings(resize=20, crop=(tall, wide)) if crops else ImageSettings(resize=(tall, wide))
    pixels = decode(encoded(Image.fromarray(noise(height, width))), own)
    assert pixels.shape == (tall, wide, 3)
    values = normalise(pixels[None], own)
    assert values.shape == (1, 3, tall, wide)
    assert -1 <= values.min() <= values.max() <= 1


def test_pillow_is_imported_when_an_image_is_read():
    code = "import levi_serving, sys; print('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
