"""The inputs of a run: several paintings, masks, an initial picture, colors, unusual pictures."""

import io
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageOps, ImageStat
from torch import Tensor

from core import errors
from core.images import codec
from core.images.frame import find_painting
from core.neural.transfer import pixels
from core.neural.transfer.inputs import StyleInputs, style_size
from core.neural.transfer.margin import Margin
from core.neural.transfer.stylize import Control, stylize
from core.neural.vgg import Network
from core.style.spec import StyleSpec, parse_spec


def _stylize(
    photo: Image.Image, painting: Image.Image, network: Network, **parameters: Any
) -> Image.Image:
    spec = parse_spec({"size": 64, "iterations": 8, "scales": 2, **parameters})
    return stylize(StyleInputs(photo, [painting]), spec, network).picture


def test_two_paintings_mix_by_their_shares(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    """A larger share of a red painting gives a redder picture."""
    red = Image.new("RGB", (64, 64), (220, 20, 20))

    def redness(shares: str) -> float:
        spec = parse_spec(
            {
                "size": 64,
                "iterations": 16,
                "scales": 1,
                "style_weights": shares,
                "style_weight": 100,
            }
        )
        r, g, b = ImageStat.Stat(
            stylize(StyleInputs(photo, [painting, red]), spec, tiny_vgg16).picture
        ).mean
        return r - (g + b) / 2

    assert redness("1,0") < redness("1,1") < redness("0,1")


@pytest.mark.parametrize("init", ["content", "style"])
def test_each_seed_gives_another_picture_and_seed_0_begins_with_the_picture_itself(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network, init: str
) -> None:
    inputs, image = StyleInputs(photo, [painting]), pixels.to_image(photo, (64, 48))
    spec = StyleSpec(size=64, init=init, objective="gatys")
    margin = Margin.of_image(48, 64, spec)
    begun = [
        margin.cut(inputs.initial_image(image, spec.model_copy(update={"seed": seed})))
        for seed in range(3)
    ]
    itself = image if init == "content" else pixels.to_image(painting, (64, 48))

    assert torch.equal(begun[0], itself)
    assert not torch.equal(begun[1], begun[2])
    for varied in begun[1:]:  # slightly
        assert 0.01 < float((varied - itself).abs().mean()) < 0.08
    one, two, again = (
        _stylize(photo, painting, tiny_vgg16, init=init, seed=seed) for seed in (1, 2, 1)
    )
    assert one.tobytes() == again.tobytes()
    assert ImageStat.Stat(ImageChops.difference(one, two)).mean[0] > 3


def _first_image(inputs: StyleInputs, width: int, height: int, **parameters: Any) -> Tensor:
    spec = inputs.fit_spec(parse_spec({"size": width, **parameters}))
    photo = inputs.photo_at((width, height), spec)
    return Margin.of_image(height, width, spec).cut(inputs.initial_image(photo, spec))


@pytest.mark.parametrize(
    ("parameters", "has_painted_colors"),
    [
        ({}, True),
        ({"strength": "0.3"}, True),
        ({"strength": "0"}, False),
        ({"objective": "gatys"}, False),
        ({"optimizer": "adam"}, False),
        ({"style_layers": "relu4_1"}, False),
        ({"preserve_color": "match"}, False),
    ],
    ids=str,
)
def test_the_first_image_has_the_paintings_colors_where_the_style_asks_for_them(
    photo: Image.Image, parameters: dict[str, str], has_painted_colors: bool
) -> None:
    noise = Image.effect_noise((64, 64), 40)
    red = Image.merge("RGB", [noise, *[noise.point(lambda level: level // 8)] * 2])
    inputs = StyleInputs(photo, [red])
    image = _first_image(inputs, 64, 48, **parameters)
    color = (image if has_painted_colors else pixels.to_image(photo, (64, 48))).mean((0, 2, 3))

    wanted = pixels.to_image(red).mean((0, 2, 3))
    assert torch.allclose(image.mean((0, 2, 3)), color, atol=0.03)
    assert (float((color - wanted).abs().max()) < 0.1) == has_painted_colors


def test_the_first_image_has_each_paintings_colors_in_its_mask(photo: Image.Image) -> None:
    paintings = [Image.new("RGB", (64, 64), color) for color in ("#c01010", "#1010c0")]
    left = Image.new("L", (64, 48))
    left.paste(255, (0, 0, 20, 48))
    right = Image.new("L", (64, 48))
    right.paste(255, (44, 0, 64, 48))
    image = _first_image(StyleInputs(photo, paintings, [left, right]), 64, 48)

    first, middle, last = (image[0, :, :, one : one + 16].mean((1, 2)) for one in (0, 24, 48))
    assert first[0] > 3 * first[2]
    assert last[2] > 3 * last[0]
    itself = pixels.to_image(photo, (64, 48))[0, :, :, 24:40].mean((1, 2))
    assert torch.allclose(middle, itself, atol=0.01)


@pytest.mark.parametrize(
    ("parameters", "share"),
    [
        ({}, 1.0),
        ({"style_weight": 0.5}, 0.5),
        ({"style_weight": 0}, 0.0),
        ({"objective": "gatys"}, 0.0),
        ({"init": "noise"}, 0.0),
        ({"style_layers": "relu4_1"}, 0.0),
    ],
    ids=str,
)
def test_a_finer_scale_begins_with_grain_where_the_run_begins_with_the_paintings_colors(
    photo: Image.Image, parameters: dict[str, Any], share: float
) -> None:
    plain = torch.full((1, 3, 64, 64), 0.5)
    inputs = StyleInputs(
        photo, [photo, photo], [_half((64, 64), left=is_left) for is_left in (1, 0)]
    )
    spec = inputs.fit_spec(parse_spec({"size": 64, **parameters}))
    image = inputs.add_grain(plain, [0.01, 0], spec)

    assert float(image[..., :32].std()) == pytest.approx(0.1 * share, rel=0.1)
    assert float((image[..., 33:] - 0.5).abs().max()) == 0


def test_a_run_begins_its_finer_scale_with_grain(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it neither shows nor returns it before it is painted."""
    seen: list[float] = []

    def add_grain(image: Tensor, texture: Tensor, seed: int) -> Tensor:
        seen.append(float(texture.mean()))
        return image.zero_()

    monkeypatch.setattr(pixels, "add_grain", add_grain)
    spec = parse_spec({"size": 96, "iterations": 2, "scales": 2})
    inputs = StyleInputs(photo, [painting])
    picture = stylize(inputs, spec, tiny_vgg16, lambda event: Control(stop=True)).picture
    assert (seen, ImageStat.Stat(picture).mean[0] > 60) == ([], True)
    stylize(inputs, spec, tiny_vgg16)

    wanted = pixels.fine_texture(pixels.to_image(painting, style_size(*painting.size, spec, 96)))
    assert seen == [pytest.approx(wanted)]


def test_a_large_first_image_changes_its_colors_and_keeps_its_finest_detail(
    photo: Image.Image,
) -> None:
    """It is made at 256 px: at 8192 px, pyramids of the whole would not fit."""
    large = photo.resize((1024, 768), Image.Resampling.BICUBIC)
    large.putpixel((500, 300), (255, 255, 255))
    large.putpixel((501, 300), (0, 0, 0))
    painting = Image.new("RGB", (64, 64), "#206080")
    image = _first_image(StyleInputs(large, [painting]), 1024, 768, scales="1")

    assert torch.allclose(
        image.mean((0, 2, 3)), pixels.to_image(painting).mean((0, 2, 3)), atol=0.1
    )
    assert float((image[..., 300, 500] - image[..., 300, 501]).min()) > 0.3


def test_a_seed_leaves_a_picture_that_is_continued_as_it_is(
    photo: Image.Image, painting: Image.Image
) -> None:
    inputs = StyleInputs(photo, [painting], init=painting)
    spec = StyleSpec(size=64, init="picture", seed=5)
    image = inputs.initial_image(pixels.to_image(photo, (64, 48)), spec)

    begun = Margin.of_image(48, 64, spec).cut(image)
    assert torch.equal(begun, pixels.to_image(painting, (64, 48)))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("init", ["content", "noise", "style"])
def test_an_image_whose_color_is_not_optimized_begins_gray(
    photo: Image.Image, painting: Image.Image, init: str, seed: int
) -> None:
    """Its gradient is gray, so color that it began with would stay in the way."""
    spec = parse_spec({"size": 64, "init": init, "preserve_color": "luminance", "seed": seed})
    inputs = StyleInputs(photo, [painting])
    image = inputs.initial_image(pixels.luminance(pixels.to_image(photo, (64, 48))), spec)

    assert torch.equal(image[:, 0], image[:, 1])
    assert torch.equal(image[:, 1], image[:, 2])


@pytest.mark.parametrize("init", ["content", "noise"])
def test_a_gray_photo_and_a_gray_painting_give_a_gray_picture(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network, init: str
) -> None:
    def chroma(*pictures: Image.Image, **more: str) -> float:
        bands = _stylize(*pictures, tiny_vgg16, iterations=16, init=init, **more).split()
        differences = (ImageChops.difference(*pair) for pair in pairwise(bands))
        return max(ImageStat.Stat(difference).mean[0] for difference in differences)

    gray_photo, gray_painting = photo.convert("L").convert("RGB"), painting.convert("L")
    compressed = io.BytesIO()  # JPEG leaves traces of color
    gray_painting.convert("RGB").save(compressed, "jpeg", quality=60)

    assert chroma(gray_photo, Image.open(compressed).convert("RGB")) == 0
    assert chroma(photo, gray_painting.convert("RGB")) > 1
    assert chroma(gray_photo, painting) > 1
    for preserve_color in ("match", "histogram"):
        assert chroma(gray_photo, painting, preserve_color=preserve_color) == 0


def test_a_small_colored_thing_in_a_gray_photo_keeps_its_color(
    photo: Image.Image, painting: Image.Image
) -> None:
    gray = [picture.convert("L").convert("RGB").resize((400, 300)) for picture in (photo, painting)]
    spot = gray[0].copy()
    spot.paste((255, 0, 0), (200, 150, 220, 166))  # 0.3 % of the picture

    assert StyleInputs(gray[0], [gray[1]]).is_gray(StyleSpec())
    assert not StyleInputs(spot, [gray[1]]).is_gray(StyleSpec())
    assert not StyleInputs(gray[0], [gray[1]], init=spot).is_gray(StyleSpec())


def test_a_frame_around_the_painting_is_no_part_of_the_style_unless_asked(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    large = painting.resize((320, 250))
    framed = ImageOps.expand(ImageOps.expand(large, 40, "white"), 20, "black")
    box = find_painting(framed)
    assert box is not None
    cropped, kept, inside = (
        _stylize(photo, picture, tiny_vgg16, style_frame=frame).tobytes()
        for picture, frame in ((framed, "crop"), (framed, "keep"), (framed.crop(box), "keep"))
    )

    assert cropped == inside != kept


def test_a_frame_stays_if_a_style_mask_belongs_to_it(
    photo: Image.Image, painting: Image.Image
) -> None:
    """The mask has been drawn on the whole picture."""
    framed = ImageOps.expand(painting.resize((320, 250)), 40, "white")
    inputs = StyleInputs(photo, [framed], style_masks=[Image.new("L", framed.size, 255)])

    assert inputs.without_frames(StyleSpec()).styles == [framed]
    cropped = StyleInputs(photo, [framed, painting]).without_frames(StyleSpec())
    assert cropped.styles != [framed, painting]
    box = find_painting(framed)
    assert cropped.style_crops == [box, None]
    framed.info[codec.REDUCTION] = 4  # the picture in the file is four times as large
    of_file = StyleInputs(photo, [framed]).without_frames(StyleSpec()).style_crops
    assert box is not None
    assert of_file == [tuple(4 * side for side in box)]


@pytest.mark.parametrize(
    "parameters", [{}, {"init": "style"}, {"preserve_color": "match"}], ids=str
)
def test_what_a_style_mask_hides_changes_no_bit(
    photo: Image.Image, tiny_vgg16: Network, parameters: dict[str, Any]
) -> None:
    """Deep layers see beyond the mask, so what lies there is replaced before."""
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (12, 8, 52, 40))
    noise, pictures = Image.effect_noise((64, 48), 60).convert("RGB"), []
    for color in ("red", "black"):
        painting = Image.composite(noise, Image.new("RGB", (64, 48), color), mask)
        spec = parse_spec({"size": 64, "iterations": 8, "scales": 1, **parameters})
        inputs = StyleInputs(photo, [painting], style_masks=[mask])
        pictures.append(stylize(inputs, spec, tiny_vgg16).picture.tobytes())

    assert pictures[0] == pictures[1]


def test_style_scale_changes_the_size_of_a_small_painting_too() -> None:
    def size(style_scale: float, painting: tuple[int, int] = (48, 36)) -> tuple[int, int]:
        return style_size(*painting, StyleSpec(style_scale=style_scale), 256)

    assert [size(1), size(2), size(4)] == [(48, 36), (96, 72), (192, 144)]
    assert [size(1, (120, 90)), size(0.5, (120, 90))] == [(120, 90), (60, 45)]
    assert size(0.25, (400, 300)) == (64, 48)
    assert size(2, (400, 300)) == (512, 384)


def test_preserve_color_luminance_keeps_the_photos_color(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    """The colors stay the photo's; the luminance does not."""

    def color_distance(picture: Image.Image) -> float:
        small = photo.resize(picture.size)
        difference = ImageStat.Stat(
            ImageChops.difference(picture.convert("YCbCr"), small.convert("YCbCr"))
        ).mean
        return difference[1] + difference[2]

    kept = _stylize(photo, painting, tiny_vgg16, preserve_color="luminance", iterations=16)
    free = _stylize(photo, painting, tiny_vgg16, iterations=16)

    assert color_distance(kept) < 0.25 * color_distance(free)
    assert ImageStat.Stat(ImageChops.difference(kept, photo.resize(kept.size))).mean[0] > 5


def _half(size: tuple[int, int], *, left: bool) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]) if left else (size[0] // 2, 0, *size))
    return mask


def test_each_painting_applies_where_its_mask_is_white(
    photo: Image.Image, tiny_vgg16: Network
) -> None:
    """Red on the left, blue on the right."""
    red, blue = (_speckled(color) for color in ((220, 30, 30), (30, 30, 220)))
    inputs = StyleInputs(
        photo, [red, blue], [_half(photo.size, left=True), _half(photo.size, left=False)]
    )
    spec = parse_spec({"size": 128, "iterations": 30, "scales": 1, "strength": 0.9})
    result = stylize(inputs, spec, tiny_vgg16).picture
    left, right = (
        ImageStat.Stat(result.crop(box)).mean for box in ((0, 0, 48, 96), (80, 0, 128, 96))
    )

    assert left[0] - left[2] > right[0] - right[2] + 50


def _speckled(color: tuple[int, int, int]) -> Image.Image:
    noise = Image.effect_noise((96, 96), 60).convert("RGB")
    return Image.blend(Image.new("RGB", (96, 96), color), noise, 0.15)


def test_a_wrong_number_of_masks_and_a_black_mask_are_refused(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    black, white = Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 255)
    with pytest.raises(errors.BadSpec, match="mask: send one for the one painting, or none"):
        stylize(StyleInputs(photo, [painting], [white, white]), StyleSpec(size=64), tiny_vgg16)
    with pytest.raises(errors.BadImage, match="black all over"):
        stylize(StyleInputs(photo, [painting], [black]), StyleSpec(size=64), tiny_vgg16)


def test_a_black_mask_of_a_painting_without_a_share_is_accepted(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    black, left = Image.new("L", (8, 8), 0), _half((8, 8), left=True)
    parameters = {"size": 64, "iterations": 3, "scales": 1}
    alone = stylize(StyleInputs(photo, [painting], [left]), parse_spec(parameters), tiny_vgg16)
    both = parse_spec({**parameters, "style_weights": "1,0"})
    beside = stylize(StyleInputs(photo, [painting, photo], [left, black]), both, tiny_vgg16)

    assert 0 < alone.losses["style"] < beside.losses["style"] < float("inf")
    with pytest.raises(errors.BadImage, match="black all over"):
        stylize(StyleInputs(photo, [painting, photo], [black, left]), both, tiny_vgg16)


def test_a_run_starts_from_the_initial_picture(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    green = Image.new("RGB", (50, 50), (0, 200, 0))
    spec = parse_spec({"size": 64, "iterations": 1, "scales": 1, "init": "picture"})
    red, own, blue = ImageStat.Stat(
        stylize(StyleInputs(photo, [painting], init=green), spec, tiny_vgg16).picture
    ).mean

    assert own > red + 150
    assert own > blue + 150
    with pytest.raises(errors.BadSpec, match="init_image"):
        stylize(StyleInputs(photo, [painting]), spec, tiny_vgg16)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"objective": "gatys"},
        {"preserve_color": "match"},
        {"preserve_color": "histogram"},
        {"preserve_color": "luminance"},
        {"init": "noise"},
        {"pooling": "l2"},
        {"optimizer": "adam"},
    ],
    ids=str,
)
@pytest.mark.parametrize("flat", ["photo", "painting", "both"])
def test_pictures_of_one_color_give_a_picture(
    photo: Image.Image,
    painting: Image.Image,
    tiny_vgg16: Network,
    parameters: dict[str, Any],
    flat: str,
) -> None:
    """Their variance of 0 causes no NaN."""
    gray, black = Image.new("RGB", (80, 60), (128, 128, 128)), Image.new("RGB", (60, 80), 0)
    inputs = StyleInputs(
        gray if flat != "painting" else photo, [black if flat != "photo" else painting]
    )
    result = stylize(inputs, parse_spec({"size": 64, "iterations": 5, **parameters}), tiny_vgg16)

    assert result.picture.size == (64, 48)
    assert not any(math.isnan(value) for value in result.losses.values())


def test_a_painting_of_one_color_gives_its_color_also_from_noise(tiny_vgg16: Network) -> None:
    red = Image.new("RGB", (64, 64), (200, 30, 30))
    spec = parse_spec({"size": 64, "init": "noise"})
    mean = ImageStat.Stat(stylize(StyleInputs(red, [red]), spec, tiny_vgg16).picture).mean

    assert mean[0] > 150
    assert max(mean[1:]) < 120


def test_a_very_wide_photo_and_a_tiny_painting_give_a_picture(
    tiny_vgg16: Network, photo: Image.Image
) -> None:
    wide, tiny = photo.resize((1000, 50)), photo.resize((32, 32))

    assert stylize(
        StyleInputs(wide, [tiny]), parse_spec({"size": 640, "iterations": 2}), tiny_vgg16
    ).picture.size == (640, 32)
