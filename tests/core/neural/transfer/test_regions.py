"""Automatic regions: alike parts belong together, and every part of a painting gets its room."""

from itertools import pairwise

import pytest
import torch
from PIL import Image, ImageStat
from torch import Tensor

from core.neural.transfer import pixels, regions
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.regions import MAX_REGIONS, RegionMap, find_regions
from core.neural.transfer.stylize import Control, StepEvent, stylize
from core.neural.vgg import Network
from core.style.spec import parse_spec


def _noise(size: tuple[int, int], seed: int) -> Image.Image:
    noise = torch.rand(1, 3, size[1], size[0], generator=torch.Generator().manual_seed(seed))
    return pixels.to_picture(noise)


def _scene(*, rough_share: float, color: str, size: tuple[int, int] = (128, 96)) -> Image.Image:
    """Plain above, and rough below: a part of the height."""
    picture, rows = Image.new("RGB", size, color), round(size[1] * rough_share)
    picture.paste(_noise((size[0], rows), 3), (0, size[1] - rows))
    return picture


def _find(network: Network, *pictures: Image.Image) -> RegionMap:
    photo, *paintings = map(pixels.to_image, pictures)
    return find_regions(network, photo, paintings)


def _weights(found: RegionMap, index: int = 0) -> Tensor:
    return found.paintings[index].square()  # (K, h, w)


def test_a_region_gets_the_part_of_the_painting_that_looks_like_it(tiny_vgg16: Network) -> None:
    """The rough half of the photo gets the rough half of the painting, the plain the plain."""
    found = _find(
        tiny_vgg16,
        _scene(rough_share=0.5, color="white"),
        _scene(rough_share=0.5, color="lightblue", size=(128, 128)),
    )
    weights = _weights(found)
    edge = weights.shape[1] // 2
    from_rough = weights[:, edge:].sum((1, 2)) / weights.sum((1, 2))  # (K,)
    below = torch.einsum("khw,k->hw", found.photo, from_rough)

    assert below[:edge].mean() < 0.3
    assert below[edge:].mean() > 0.7


def test_every_part_of_a_painting_gets_as_much_room_as_it_has_there(tiny_vgg16: Network) -> None:
    paintings = [_scene(rough_share=share, color="navy") for share in (0.9, 0.3)]
    found = _find(tiny_vgg16, _scene(rough_share=0.3, color="white", size=(96, 96)), *paintings)

    assert 1 < len(found.photo) <= MAX_REGIONS
    assert torch.equal(found.photo.sum(0), torch.ones_like(found.photo[0]))
    for index in range(2):
        weights = _weights(found, index)
        assert torch.allclose(weights.sum(0), torch.ones_like(weights[0]), atol=1e-3)
        rooms = weights.flatten(1).mean(1)
        assert torch.allclose(rooms, found.photo.flatten(1).mean(1), atol=0.01)


def test_guides_of_the_photo_sum_to_1_and_have_soft_borders(tiny_vgg16: Network) -> None:
    found = _find(tiny_vgg16, _scene(rough_share=0.5, color="white"), _noise((64, 64), 1))
    guides = torch.stack(found.photo_guides(150, 110))

    assert guides.shape[1:] == (110, 150)
    assert torch.allclose(guides.sum(0), torch.ones(110, 150), atol=1e-5)
    assert float(guides.diff(dim=1).abs().max()) < 0.5
    assert {guide.shape for guide in found.painting_guides(0, 70, 50)} == {(50, 70)}


@pytest.mark.parametrize("size", [(32, 32), (640, 32)])
def test_pictures_of_one_color_and_of_the_smallest_sides_have_regions(
    tiny_vgg16: Network, size: tuple[int, int]
) -> None:
    plain = Image.new("RGB", size, "gray")
    found = _find(tiny_vgg16, plain, plain)

    assert torch.equal(found.photo.sum(0), torch.ones_like(found.photo[0]))
    assert torch.stack(found.photo_guides(*size)).isfinite().all()
    assert torch.stack(found.painting_guides(0, *size)).isfinite().all()


def test_the_same_pictures_have_the_same_regions(tiny_vgg16: Network) -> None:
    scenes = [_scene(rough_share=0.4, color=color) for color in ("white", "navy")]
    first, second = (_find(tiny_vgg16, *scenes) for _ in range(2))

    assert torch.equal(first.photo, second.photo)
    assert torch.equal(first.paintings[0], second.paintings[0])


def test_with_regions_the_sky_gets_the_style_of_the_painted_sky(tiny_vgg16: Network) -> None:
    """The photo is dark above and bright below; the painting is the other way round."""
    photo = _scene(rough_share=0.5, color="black")
    painting = _scene(rough_share=0.5, color="white")
    painting.paste(Image.eval(_noise((128, 48), 3), lambda value: value // 4), (0, 48))

    def brightness(choice: str) -> float:
        spec = parse_spec({"size": 128, "iterations": 20, "scales": 1, "regions": choice})
        picture = stylize(StyleInputs(photo, [painting]), spec, tiny_vgg16).picture
        above, below = (
            ImageStat.Stat(picture.crop(box).convert("L")).mean[0]
            for box in ((0, 0, 128, 40), (0, 56, 128, 96))
        )
        return above - below

    assert brightness("auto") > brightness("none") + 10


def test_regions_masks_shares_and_updates_work_together(tiny_vgg16: Network) -> None:
    photo = _scene(rough_share=0.5, color="white")
    paintings = [_scene(rough_share=0.6, color=color) for color in ("navy", "orange")]
    masks = [Image.linear_gradient("L"), Image.linear_gradient("L").rotate(180)]
    spec = parse_spec({"size": 64, "iterations": 6, "scales": 2, "regions": "auto"})

    def update(event: StepEvent) -> Control:
        totals.append(event.progress.losses["total"])
        if event.progress.iteration != 3:
            return Control.CONTINUE
        return Control(spec=event.spec.with_updates({"style_weights": [1, 3], "strength": 0.7}))

    for given in ((), masks):
        totals: list[float] = []
        inputs = StyleInputs(photo, paintings, given, style_masks=masks)
        result = stylize(inputs, spec, tiny_vgg16, update)
        assert len(result.spec_updates) == 1
        for part in (totals[:3], totals[3:6], totals[6:]):
            assert all(new <= old for old, new in pairwise(part))


def test_only_the_white_part_of_a_style_mask_counts(tiny_vgg16: Network) -> None:
    """Half of the painting is red: with the other half masked out, it might as well not exist."""
    photo, mask = _noise((64, 48), 1), Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 32, 48))
    painting = _noise((64, 48), 2)
    painting.paste((230, 10, 10), (32, 0, 64, 48))
    spec = parse_spec({"size": 64, "iterations": 40, "scales": 1, "strength": 0.8})

    def redness(*style_masks: Image.Image) -> float:
        inputs = StyleInputs(photo, [painting], style_masks=style_masks)
        r, g, _ = ImageStat.Stat(stylize(inputs, spec, tiny_vgg16).picture).mean
        return r - g

    assert redness(mask) < 10 < redness() < redness(Image.eval(mask, lambda value: 255 - value))


def test_nothing_is_clustered_without_a_style(
    tiny_vgg16: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "_cluster", None)
    spec = parse_spec({"size": 64, "iterations": 1, "regions": "auto", "style_weight": 0})
    stylize(StyleInputs(_noise((64, 64), 1), [_noise((64, 64), 2)]), spec, tiny_vgg16)


def test_what_a_style_mask_hides_has_no_part(tiny_vgg16: Network) -> None:
    """A rough frame around a plain painting: without the mask it takes half of the room."""
    photo = pixels.to_image(_scene(rough_share=0.5, color="white"))
    painting = _noise((128, 128), 3)
    painting.paste("lightblue", (32, 32, 96, 96))
    mask = torch.zeros(128, 128)
    mask[32:96, 32:96] = 1
    found = find_regions(tiny_vgg16, photo, [pixels.to_image(painting)], [mask])
    weights = _weights(found)

    assert torch.equal(weights.sum(0) > 0, mask[::8, ::8] > 0)
    assert torch.allclose(weights.sum(0)[4:12, 4:12], torch.ones(8, 8), atol=1e-3)
    nothing = find_regions(tiny_vgg16, photo, [pixels.to_image(painting)], [torch.zeros(128, 128)])
    assert torch.allclose(_weights(nothing).sum(0), torch.ones(16, 16), atol=1e-3)


def test_a_style_mask_may_leave_a_single_position(tiny_vgg16: Network) -> None:
    photo, painting = (pixels.to_image(_noise((64, 64), seed)) for seed in (1, 2))
    mask = torch.zeros(64, 64)
    mask[16:24, 32:40] = 1
    (part,) = find_regions(tiny_vgg16, photo, [painting], [mask]).paintings

    assert float(part.square().sum()) == pytest.approx(1, abs=1e-3)
