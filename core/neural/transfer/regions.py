"""Automatic regions (`regions=auto`): parts of the photo and of the paintings that look alike.

The responses of the network are clustered, and the clusters of the painting are assigned to those
of the photo by an optimal transport: the sky gets the style of the painted sky, a figure that of a
figure. Every part of the painting covers the same share of the photo. It needs no other network and
no training. Knows no objective.

Similar in kind to Gatys et al. 2017, "Controlling Perceptual Factors in Neural Style Transfer",
section 4, whose regions are drawn by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from core.neural.transfer.losses import at_least_float32
from core.neural.vgg import Network

MAX_REGIONS = 4
SIDE_PX = 256  # long side of the pictures that are clustered: large enough for things, not strokes

# Layers with their shares of the distance: from textures to parts of things. VGG-16 and VGG-19 have
# them.
_LAYERS = {"relu3_1": 0.5, "relu4_1": 1.0, "relu5_1": 1.0}
_CLUSTERED_AT = "relu4_1"  # the others are resized to its resolution
_COLOR_SHARE = 0.35
_HEIGHT_SHARE = 0.5  # skies are above, and ground is below

_ROUNDS = 30  # of k-means

# The weight of the entropy, as a share of the mean distance of two clusters: towards 0 the
# transport is the cheapest one, and above 1 each region gets nearly the same mixture.
_ENTROPY_SHARE = 0.1
_SINKHORN_ROUNDS = 200


@dataclass(frozen=True)
class RegionMap:
    """The regions of a photo, and the part of each painting that belongs to each of them."""

    photo: Tensor  # (K, h, w) in {0, 1}; the sum over K is 1
    # Of each painting, (K, h, w) in [0, 1]; the sum of the squares over K is 1, because a guide's
    # square weighs.
    paintings: list[Tensor]

    def photo_guides(self, width: int, height: int) -> list[Tensor]:
        """The regions as soft guides, (height, width) in [0, 1], whose sum is 1 at each pixel."""
        guides = _soften(self.photo, width, height)
        return list(guides / guides.sum(0))

    def painting_guides(self, index: int, width: int, height: int) -> list[Tensor]:
        """The parts of a painting that belong to each region, (height, width) in [0, 1]."""
        return list(_soften(self.paintings[index], width, height))


@torch.no_grad()
def find_regions(
    network: Network,
    photo: Tensor,
    paintings: Sequence[Tensor],
    style_masks: Sequence[Tensor] = (),
) -> RegionMap:
    """Cluster a photo and paintings, and match the clusters.

    All (1, 3, H, W) in [0, 1], of about `SIDE_PX`, both sides multiples of 16. style_masks: (H, W),
    one for each painting: what is black in it has no part. The same pictures and network give the
    same regions.
    """
    everything = torch.ones(photo.shape[2:])
    points, size, _ = _describe(network, photo, everything)
    labels, centers = _cluster(points)
    parts = []
    masks = style_masks or [torch.ones(painting.shape[2:]) for painting in paintings]
    for painting, mask in zip(paintings, masks, strict=True):
        painted_points, painted_size, is_part = _describe(network, painting, mask)
        painted_labels, painted_centers = _cluster(painted_points)
        shares = _transport(centers, labels, painted_centers, painted_labels)  # (K, k)
        part = torch.zeros(len(centers), len(is_part))  # (K, h w)
        part[:, is_part] = shares.sqrt()[:, painted_labels]
        parts.append(part.view(-1, *painted_size))
    regions = torch.stack([labels == k for k in range(len(centers))])  # (K, h w)
    return RegionMap(regions.view(-1, *size).float(), parts)


def _describe(
    network: Network, image: Tensor, mask: Tensor
) -> tuple[Tensor, tuple[int, int], Tensor]:
    """Descriptors of the positions inside the mask, (M, D) on the CPU; (h, w); which are inside.

    Each filter has mean 0 and deviation 1 over these positions, so that what differs inside a
    picture counts, not how the photo and the painting differ as a whole.
    """
    features = network.features(image.to(network.device), _LAYERS, "l2")
    features = {layer: at_least_float32(found).cpu() for layer, found in features.items()}
    size = features[_CLUSTERED_AT].shape[2:]
    is_inside = functional.interpolate(mask[None, None].cpu(), size, mode="area").flatten() >= 0.5
    if not is_inside.any():  # a mask of thin lines
        is_inside = torch.ones_like(is_inside)
    groups = []
    for layer, share in _LAYERS.items():
        smooth = functional.avg_pool2d(features[layer], 3, 1, 1, count_include_pad=False)
        rows = functional.interpolate(smooth, size, mode="bilinear")[0].flatten(1)  # (C, h w)
        rows = rows[:, is_inside]  # (C, M)
        groups.append(share * _standardize(rows) / len(rows) ** 0.5)
    color = functional.interpolate(image.float().cpu(), size, mode="area")[0].flatten(1)  # (3, h w)
    color = color[:, is_inside]
    color = color - color.mean(1, keepdim=True)
    groups.append(_COLOR_SHARE * color / color.std().clamp_min(1e-3))
    height = torch.linspace(-1, 1, size[0])[:, None].expand(size).reshape(1, -1)
    groups.append(_HEIGHT_SHARE * height[:, is_inside])
    return torch.cat(groups).T.contiguous(), (size[0], size[1]), is_inside


def _standardize(rows: Tensor) -> Tensor:
    deviation = rows.std(1, correction=0, keepdim=True)  # also of a single position
    # A filter that hardly responds would only add noise.
    return (rows - rows.mean(1, keepdim=True)) / (
        deviation + 1e-3 * rows.std(correction=0)
    ).clamp_min(1e-12)


def _cluster(points: Tensor) -> tuple[Tensor, Tensor]:
    """k-means from the seeding of k-means++: the label of each point, (M,), and centers (k, D)."""
    generator = torch.Generator().manual_seed(0)
    centers = points[torch.randint(len(points), (1,), generator=generator)]
    while len(centers) < min(MAX_REGIONS, len(points)):
        distance = torch.cdist(points, centers).amin(1).square()
        chosen = torch.multinomial(distance.clamp_min(1e-12), 1, generator=generator)
        centers = torch.cat([centers, points[chosen]])
    for _ in range(_ROUNDS):
        labels = torch.cdist(points, centers).argmin(1)
        centers = torch.stack(
            [
                points[labels == k].mean(0) if (labels == k).any() else center
                for k, center in enumerate(centers)
            ]
        )
    return torch.cdist(points, centers).argmin(1), centers


def _transport(centers: Tensor, labels: Tensor, painted: Tensor, painted_labels: Tensor) -> Tensor:
    """The part of each cluster of the painting that each region of the photo gets, (K, k).

    Each column sums to 1. This is the transport between the areas of the clusters at the least
    cost, which is their squared distance, smoothed by an entropy (Cuturi 2013, "Sinkhorn
    Distances", algorithm 1).
    """
    areas, painted_areas = (
        (found.bincount(minlength=len(of)) / len(found)).double()
        for found, of in ((labels, centers), (painted_labels, painted))
    )  # (K,), (k,)
    distance = torch.cdist(centers, painted).square().double()
    kernel = (-distance / (_ENTROPY_SHARE * distance.mean().clamp_min(1e-12))).softmax(0)  # (K, k)
    by_part = torch.ones_like(painted_areas)
    for _ in range(_SINKHORN_ROUNDS):
        by_region = areas / (kernel @ by_part).clamp_min(1e-300)
        by_part = painted_areas / (kernel.T @ by_region).clamp_min(1e-300)
    plan = by_region[:, None] * kernel * by_part  # (K, k), the areas that go from part to region
    return (plan / plan.sum(0).clamp_min(1e-300)).float()


def _soften(regions: Tensor, width: int, height: int) -> Tensor:
    """(K, h, w) to (K, height, width) in [0, 1]; a border is about three positions wide."""
    blurred = functional.avg_pool2d(regions[None], 3, 1, 1, count_include_pad=False)
    return functional.interpolate(blurred, (height, width), mode="bilinear")[0]
