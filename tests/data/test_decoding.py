import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps, features
from PIL.PngImagePlugin import PngInfo

from infer2train.data import decoding
from infer2train.data.decoding import BadImageError, decode

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (4, 6), dtype=np.uint8)

Encode = Callable[..., bytes]


def test_rgb_comes_back_as_it_was(encode: Encode) -> None:
    np.testing.assert_array_equal(decode(encode(COLOURS)), COLOURS)


def test_grey_becomes_three_equal_channels(encode: Encode) -> None:
    np.testing.assert_array_equal(decode(encode(GREY)), np.stack([GREY] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped_and_colours_stay(encode: Encode, mode: str) -> None:
    pixels = COLOURS if mode == "RGBA" else np.stack([GREY] * 3, axis=-1)
    channels = pixels if mode == "RGBA" else pixels[..., :1]
    with_alpha = np.concatenate([channels, np.full((4, 6, 1), 3, np.uint8)], axis=-1)
    np.testing.assert_array_equal(decode(encode(with_alpha)), pixels)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, {"transparency": bytes(range(256))}], ids=["plain", "transparent"])
def test_palettes_are_looked_up(encode: Encode, options: dict[str, bytes]) -> None:
    web_safe = COLOURS // 51 * 51  # which the fixed palette holds exactly
    np.testing.assert_array_equal(decode(encode(web_safe, "P", **options)), web_safe)


def test_cmyk_is_the_colour_that_it_prints(encode: Encode) -> None:
    plain = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    decoded = decode(encode(plain, "CMYK", kind="JPEG", quality=100))
    assert decoded.shape == (16, 16, 3)
    assert np.abs(decoded.astype(int) - plain).max() <= 3


def test_sixteen_bits_are_rounded_not_clipped(encode: Encode) -> None:
    wide = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    assert decode(encode(wide))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_the_cameras_orientation_is_applied(encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter to see it upright
    np.testing.assert_array_equal(decode(encode(COLOURS, exif=exif)), np.rot90(COLOURS, -1))


@pytest.mark.parametrize("orientation", range(10))
def test_each_orientation_is_applied_as_by_pillow(encode: Encode, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(COLOURS, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decode(content), np.asarray(expected))


def with_tags(*tags: tuple[int, int, int, bytes]) -> bytes:
    """A JPEG of these squares with EXIF tags: number, type, count and the four bytes of each."""
    packed = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in tags)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + packed + b"\0" * 4
    buffer = io.BytesIO()
    Image.fromarray(SQUARES).save(buffer, "JPEG", quality=100, exif=exif)
    return buffer.getvalue()


def test_a_tag_that_nobody_could_write_refuses_no_photograph() -> None:
    turned, negative_width = (0x0112, 3, 1, b"\6\0\0\0"), (0x0100, 8, 1, b"\xff\xff\0\0")
    assert_turned(decode(with_tags(negative_width, turned)), 1)


def test_exif_that_cannot_be_read_tells_no_orientation(encode: Encode) -> None:
    for text in ("\nexif\n   4\nzz", "\nexif\n   4\nffff"):
        info = PngInfo()
        info.add_text("Raw profile type exif", text)
        np.testing.assert_array_equal(decode(encode(COLOURS, pnginfo=info)), COLOURS)
        info.add_itxt("XML:com.adobe.xmp", XMP.format(TOLD[0]))
        np.testing.assert_array_equal(decode(encode(COLOURS, pnginfo=info)), np.rot90(COLOURS, -1))


XMP = "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description {}</rdf:Description></x:xmpmeta>"
TOLD = ['tiff:Orientation="6">', "tiff:Orientation = '6'>", "><tiff:Orientation>6</tiff:Orientation>"]
SQUARES = np.repeat(np.repeat(COLOURS, 16, axis=0), 16, axis=1)
"""Large enough for a lossy format to keep each colour."""


def with_xmp(encode: Encode, kind: str, xmp: str, **options: object) -> bytes:
    """An image of these squares with XMP, in the way that each format has it."""
    if kind == "JPEG":
        content, segment = (
            encode(SQUARES, kind=kind, quality=100, **options),
            b"http://ns.adobe.com/xap/1.0/\0" + xmp.encode(),
        )
        return content[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + content[2:]
    if kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        return encode(SQUARES, kind=kind, pnginfo=info, **options)
    return encode(SQUARES, kind=kind, xmp=xmp.encode(), quality=100, **options)


def assert_turned(decoded: np.ndarray, quarters: int) -> None:
    expected = np.rot90(SQUARES, -quarters)
    assert decoded.shape == expected.shape
    middles = (slice(8, None, 16), slice(8, None, 16))
    assert np.abs(decoded[middles].astype(int) - expected[middles]).max() <= 24


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("told", TOLD)
def test_an_orientation_that_only_xmp_tells_is_applied(encode: Encode, kind: str, told: str) -> None:
    assert_turned(decode(with_xmp(encode, kind, XMP.format(told))), 1)


@pytest.mark.parametrize(
    "told",
    [
        'tiff:Orientation="9">',
        'tiff:Orientation="">',
        'other:Orientation="6">',
        "tiff:Orientation" + " " * 99 + '="6">',
    ],
)
def test_what_tells_no_orientation_turns_nothing(encode: Encode, told: str) -> None:
    assert_turned(decode(with_xmp(encode, "JPEG", XMP.format(told))), 0)


def test_exif_is_believed_before_xmp_and_nothing_is_turned_twice(encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    assert_turned(decode(with_xmp(encode, "JPEG", XMP.format(TOLD[0]), exif=exif)), 2)
    exif = Image.Exif()
    exif[0x010F] = "a camera that says nothing of how it was held"
    assert_turned(decode(with_xmp(encode, "JPEG", XMP.format(TOLD[0]), exif=exif)), 1)


def test_a_tiff_is_turned_once(encode: Encode) -> None:
    tags = {0x0112: 6, 700: XMP.format(TOLD[0]).encode()}
    np.testing.assert_array_equal(decode(encode(COLOURS, kind="TIFF", tiffinfo=tags)), np.rot90(COLOURS, -1))


def test_an_orientation_in_a_png_text_is_applied(encode: Encode) -> None:
    """As ImageMagick writes EXIF into a PNG."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content, info = exif.tobytes(), PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n")
    np.testing.assert_array_equal(decode(encode(COLOURS, pnginfo=info)), np.rot90(COLOURS, -1))


def test_tags_after_the_pixels_count(encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(COLOURS, exif=exif)
    at = content.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(content[at : at + 4], "big")
    tail = content.index(b"IEND") - 4
    moved = content[:at] + content[end:tail] + content[at:end] + content[tail:]
    np.testing.assert_array_equal(decode(moved), np.rot90(COLOURS, -1))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_and_turned(encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(SQUARES, kind="AVIF", quality=100, subsampling="4:4:4", exif=exif)
    assert_turned(decode(content), 1)
    with pytest.raises(BadImageError):
        decode(content[: len(content) // 2])


def test_resizing_keeps_the_centre_and_its_proportions(encode: Encode) -> None:
    pixels = RNG.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    shorter_side_resized = np.asarray(Image.fromarray(pixels).resize((32, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(decode(encode(pixels), image_size=16), shorter_side_resized[:, 8:24])


def test_resizing_down_is_antialiased(encode: Encode) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    inside = decode(encode(stripes), image_size=16)[:, 2:-2].astype(int)
    assert np.abs(inside - 127).max() <= 2


@pytest.mark.parametrize(
    ("h", "w", "expected"), [(32, 64, (16, 32)), (90, 61, (24, 16)), (16, 400, (16, 400)), (9, 5, (9, 5))]
)
def test_a_whole_image_is_shrunk_in_its_proportions_and_never_enlarged(
    encode: Encode, h: int, w: int, expected: tuple[int, int]
) -> None:
    pixels = RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)
    resized = np.asarray(Image.fromarray(pixels).resize(expected[::-1], Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(decode(encode(pixels), 16, square=False), resized)


def test_an_image_that_has_the_size_is_not_resampled(encode: Encode) -> None:
    square = RNG.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(encode(square), image_size=5), square)


def test_a_thin_image_does_not_blow_up(encode: Encode) -> None:
    assert decode(encode(np.zeros((1, 60_000, 3), np.uint8)), image_size=224).shape == (224, 224, 3)


def test_a_bomb_is_refused_before_it_is_decoded(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 23)
    bomb = encode(COLOURS)[:60]  # the header says 6x4; there are no pixels that could be decoded
    with pytest.raises(BadImageError, match="6x4 is more than 23 pixels"):
        decode(bomb)


def test_pillows_own_bomb_limit_is_a_bad_image_too(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BadImageError, match="DecompressionBomb"):
        decode(encode(COLOURS))


@pytest.mark.parametrize("content", [None, b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_refused(content: bytes | None) -> None:
    with pytest.raises(BadImageError):
        decode(content)


@pytest.mark.parametrize("kind", ["PCX", "ICO", "TGA"])
def test_only_listed_formats_are_read(encode: Encode, kind: str) -> None:
    with pytest.raises(BadImageError, match="UnidentifiedImageError"):
        decode(encode(np.zeros((16, 16, 3), np.uint8), kind=kind))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_a_truncated_image_is_refused(encode: Encode, kind: str) -> None:
    whole = encode(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8), kind=kind)
    assert decode(whole).shape == (32, 32, 3)
    with pytest.raises(BadImageError):
        decode(whole[: len(whole) // 2])


def test_floating_point_pixels_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(buffer, "TIFF")
    with pytest.raises(BadImageError, match="range"):
        decode(buffer.getvalue())
