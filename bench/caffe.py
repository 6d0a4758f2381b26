"""Whether a program that is not ours reads the network that we export, and sees the same. bench/README.md.

OpenCV has a reader of Caffe's format of its own: `pip install 'opencv-python-headless<5'`.
"""

import tempfile
from pathlib import Path

import click
import cv2
import numpy as np
import torch

from core.config import Settings
from core.images import codec
from core.neural.transfer.pixels import to_image
from core.neural.vgg import Network
from core.neural.weights import files
from core.neural.weights.cache import WeightsCache
from core.neural.weights.parameters import CAFFE

SAMPLE = Path(__file__).parents[1] / "samples" / "harbor.jpg"
SIDE_PX = 224
MEAN = tuple(255 * channel for channel in reversed(CAFFE.mean))  # B, G, R


@click.command()
@click.option("--model", default="auto", help="A network of the cache.")
def main(model: str) -> None:
    """Export, read with OpenCV, and compare the responses to a picture after each ReLU."""
    cache = WeightsCache(Settings().weights_dir)
    picture = codec.decode(SAMPLE.read_bytes()).resize((SIDE_PX, SIDE_PX))
    parameters, card = cache.parameters(cache.resolve(model))
    parameters = parameters.taking(
        CAFFE
    )  # so that the zeros around a picture are the same color to both
    network = Network(
        parameters.architecture,
        parameters.pairs,
        name=model,
        sha256=parameters.sha256,
        device="cpu",
        dtype=torch.float32,
        takes=CAFFE,
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "network.caffemodel"
        files.write_network(place, parameters, card, "caffe")
        read = cv2.dnn.readNetFromCaffe(str(place.with_suffix(".prototxt")), str(place))
    read.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    layers = [name for name in read.getLayerNames() if name.startswith("relu")]
    blue_first = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
    read.setInput(cv2.dnn.blobFromImage(blue_first, mean=MEAN))
    theirs = dict(zip(layers, read.forward(layers), strict=True))
    with torch.inference_mode():
        ours = network.features(to_image(picture), layers, edges="zeros")
    click.echo("| layer | largest response | largest difference |\n|---|---|---|")
    for layer in layers:
        there, here = theirs[layer], ours[layer].numpy()
        click.echo(f"| {layer} | {here.max():.4g} | {np.abs(there - here).max():.2g} |")


if __name__ == "__main__":
    main()
