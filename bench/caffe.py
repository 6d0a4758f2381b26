"""Checks that OpenCV reads an exported Caffe network and computes the same (bench/README.md).

OpenCV has its own reader of Caffe's format: `pip install 'opencv-python-headless<5'`.
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
MEAN_BGR = tuple(255 * channel for channel in reversed(CAFFE.mean))


@click.command()
@click.option("--model", default="auto", help="Name of a network in the cache.")
def main(model: str) -> None:
    """Export a network, read it with OpenCV, and compare the activations after each ReLU."""
    cache = WeightsCache(Settings().weights_dir)
    picture = codec.decode(SAMPLE.read_bytes()).resize((SIDE_PX, SIDE_PX))
    parameters, metadata = cache.load_parameters(cache.resolve(model))
    # With the same input format, zero padding stands for the same color in both networks.
    parameters = parameters.convert_input(CAFFE)
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
        path = Path(folder) / "network.caffemodel"
        files.write_network(path, parameters, metadata, "caffe")
        opencv = cv2.dnn.readNetFromCaffe(str(path.with_suffix(".prototxt")), str(path))
    opencv.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    layers = [name for name in opencv.getLayerNames() if name.startswith("relu")]
    bgr = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])  # (H, W, 3)
    opencv.setInput(cv2.dnn.blobFromImage(bgr, mean=MEAN_BGR))
    theirs = dict(zip(layers, opencv.forward(layers), strict=True))
    with torch.inference_mode():
        ours = network.features(to_image(picture), layers, edges="zeros")
    click.echo("| layer | largest activation | largest difference |\n|---|---|---|")
    for layer in layers:
        expected, actual = theirs[layer], ours[layer].numpy()  # (1, N, h, w)
        difference = np.abs(expected - actual).max()
        click.echo(f"| {layer} | {actual.max():.4g} | {difference:.2g} |")


if __name__ == "__main__":
    main()
