"""The command line as a user meets it: a process, its words, its exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli.local_service import free_port
from core.images import codec
from core.neural.weights import files
from core.neural.weights.cache import WeightsCache, random_parameters
from core.neural.weights.parameters import Parameters
from core.storage.blobs import digest_of
from core.style.presets import PRESETS
from core.style.spec import PARAMETERS
from core.webhooks.signing import Signer


@pytest.fixture
def pictures(tmp_path: Path, photo: Image.Image, painting: Image.Image) -> tuple[str, str]:
    photo.save(tmp_path / "photo.png")
    painting.save(tmp_path / "painting.webp")
    return str(tmp_path / "photo.png"), str(tmp_path / "painting.webp")


@pytest.fixture
def impasto(tmp_path: Path, weights: WeightsCache) -> Any:
    """Run the command in an empty folder."""

    def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "IMPASTO_CACHE_DIR": str(weights.folder.parent),
            "IMPASTO_DATA_DIR": str(tmp_path / "data"),
        }
        return subprocess.run(
            [sys.executable, "-m", "cli", *args],
            env={**os.environ, **settings, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_stylize_paints_without_a_service(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    ran = impasto(
        "stylize",
        *pictures,
        "-o",
        "out.png",
        "--size",
        "64",
        "--iterations",
        "4",
        "--style-layers",
        "relu1_1",
    )

    assert (ran.returncode, ran.stdout) == (0, "out.png\n")
    assert "100%" in ran.stderr
    record = codec.read_provenance((tmp_path / "out.png").read_bytes())
    assert record is not None
    assert (record["spec"]["iterations"], record["spec"]["style_layers"]) == (4, {"relu1_1": 1.0})


def test_a_preset_gives_way_to_the_knobs_beside_it(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    parameters = ["--preset", "draft", "--size", "64", "--iterations", "2"]

    assert impasto("stylize", *pictures, "-o", "out.png", *parameters).returncode == 0
    record = codec.read_provenance((tmp_path / "out.png").read_bytes())
    assert record is not None
    assert (record["spec"]["size"], record["spec"]["quality"]) == (64, "draft")


def test_info_tells_how_a_result_was_made_and_from_makes_it_again(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    impasto(
        "stylize", *pictures, "-o", "one.png", "--size", "64", "--iterations", "2", "--seed", "7"
    )
    told, as_json = impasto("info", "one.png"), impasto("info", "one.png", "--json")
    record = json.loads(as_json.stdout)

    assert record == codec.read_provenance((tmp_path / "one.png").read_bytes())
    lines = dict(line.split(maxsplit=1) for line in told.stdout.splitlines())
    assert tuple(lines[name] for name in ("content", "style", "seed", "optimizer")) == (
        record["content"],
        record["styles"][0],
        "7",
        "lbfgs",
    )
    assert "network sha256" in told.stdout

    assert impasto("stylize", *pictures, "-o", "two.png", "--from", "one.png").returncode == 0
    more = ["--from", "one.png", "--iterations", "1"]
    assert (
        impasto("stylize", pictures[0], *[pictures[1]] * 2, "-o", "three.png", *more).returncode
        == 0
    )
    one, two, three = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two", "three"))
    spec = (codec.read_provenance(three) or {})["spec"]
    assert two == one
    assert spec == {**record["spec"], "iterations": 1, "style_weights": [0.5, 0.5]}


def test_info_tells_how_a_run_was_steered(impasto: Any, tmp_path: Path) -> None:
    change = {"iteration": 120, "before": {"strength": 0.5}, "after": {"strength": 0.9}}
    for name, spec_updates in (("one", [change]), ("two", "strange")):
        record = {"content": "c", "styles": ["s"], "spec": {}, "spec_updates": spec_updates}
        (tmp_path / f"{name}.png").write_bytes(
            codec.encode(Image.new("RGB", (40, 40)), "png", record)
        )
    one, two = (impasto("info", f"{name}.png").stdout.splitlines() for name in ("one", "two"))

    assert one[-1] == f"{'spec_updates':<16} {json.dumps(change)}"
    assert not any(line.startswith("spec_updates") for line in two)


def test_a_file_without_a_record_and_one_that_speaks_to_terminals_do_no_harm(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    record = {"content": "\x1b[2J", "styles": ["s"], "spec": {"\x1b[2J\n": "\x07"}, "job": "\x9b"}
    (tmp_path / "evil.png").write_bytes(codec.encode(Image.new("RGB", (40, 40)), "png", record))
    evil = [impasto("info", "evil.png", *option) for option in ([], ["--json"])]
    plain = [
        impasto("info", pictures[0]),
        impasto("stylize", *pictures, "-o", "o.png", "--from", pictures[0]),
    ]

    assert [ran.returncode for ran in (*evil, *plain)] == [0, 0, 2, 2]
    assert all("carries no record" in ran.stderr for ran in plain)
    assert all((ran.stdout.replace("\n", "")).isprintable() for ran in evil)


def test_a_plan_is_said_and_nothing_is_painted(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    ran = impasto("stylize", *pictures, "-o", "out.png", "--size", "300", "--plan")

    assert ran.returncode == 0
    assert "300 x 225 px, 70 iterations, whole" in ran.stdout
    assert "In all" in ran.stdout.splitlines()[-1]
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_the_run_and_the_plan_keep_to_the_memory_that_is_given(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path, plan: list[str]
) -> None:
    args = ["--size", "512", "--scales", "1", "--iterations", "1", "--memory-gb", "0.3", *plan]
    ran = impasto("stylize", *pictures, "-o", "out.png", *args)

    assert (ran.returncode, (tmp_path / "out.png").exists()) == (1, False)
    assert "size 512 needs more memory" in ran.stderr


def test_masks_and_a_first_picture_are_taken_and_recorded(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    more = ["--mask", pictures[1], "--init", "picture", "--init-image", pictures[0]]
    ran = impasto("stylize", *pictures, "-o", "out.png", "--size", "64", "--iterations", "1", *more)
    photo, painting = (digest_of(Path(path).read_bytes()) for path in pictures)

    assert ran.returncode == 0
    record = codec.read_provenance((tmp_path / "out.png").read_bytes())
    assert record is not None
    assert tuple(record[name] for name in ("content", "styles", "masks", "init_image")) == (
        photo,
        [painting],
        [painting],
        photo,
    )
    assert set(record) == {"program", "spec", "model", "content", "styles", "masks", "init_image"}
    assert impasto("stylize", *pictures, "-o", "out.png", "--init", "picture").returncode == 2


@pytest.mark.parametrize("name", ["out.jpg", "out.webp"])
def test_the_outputs_ending_chooses_the_format(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path, name: str
) -> None:
    assert (
        impasto("stylize", *pictures, "-o", name, "--size", "64", "--iterations", "1").returncode
        == 0
    )
    assert codec.detect_format((tmp_path / name).read_bytes()) == (
        "jpeg" if name.endswith("jpg") else "webp"
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--preset", "x"], "'x' is not one of 'draft', 'faithful'"),
        (["--size", "nan"], "size must be a whole number from 64 to 8192."),
        (["--no-such-parameter", "1"], "No such option"),
        (["--memory-gb", "-1"], "-1.0 is not in the range"),
        (["--memory-gb", "nan"], "nan is not a number."),
        (["-o", "out.gif"], "The output must end in .png, .jpg, .jpeg, .webp."),
        (["-o", "nowhere/out.png"], "There is no folder"),
    ],
)
def test_wrong_use_is_exit_2_and_one_sentence(
    impasto: Any, pictures: tuple[str, str], args: list[str], words: str
) -> None:
    output = [] if "-o" in args else ["-o", "out.png"]
    ran = impasto("stylize", *pictures, *output, *args)

    assert ran.returncode == 2
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_transparent_mask_is_exit_2_in_the_words_of_the_service(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    Image.new("LA", (40, 40), (255, 0)).save(tmp_path / "clear.png")
    ran = impasto("stylize", *pictures, "-o", "out.png", "--size", "64", "--mask", "clear.png")

    assert ran.returncode == 2
    assert "A mask is black all over" in ran.stderr


def test_a_bad_picture_is_exit_2_in_the_words_of_the_service(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"GIF89a")
    ran = impasto("stylize", "bad.jpg", pictures[1], "-o", "out.png")

    assert (
        ran.returncode,
        ran.stderr,
    ) == (2, "impasto: Only JPEG, PNG and WebP pictures are taken, whatever the file is called.\n")


def test_missing_weights_are_exit_1_with_the_command_that_helps(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    ran = impasto("stylize", *pictures, "-o", "out.png", IMPASTO_CACHE_DIR=str(tmp_path / "empty"))

    assert ran.returncode == 1
    assert "impasto weights fetch vgg16" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_without_a_service_submit_and_watch_say_how_to_start_one(
    impasto: Any, pictures: tuple[str, str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for ran in (
        impasto("submit", *pictures, "--url", url),
        impasto("watch", "job_x", "--url", url),
    ):
        assert ran.returncode == 1
        assert "impasto up" in ran.stderr


@pytest.mark.parametrize(
    "command", ["api", "worker", "up", "stylize", "webhooks", "webhook-secret"]
)
def test_a_misspelt_setting_is_refused_by_name(
    impasto: Any, pictures: tuple[str, str], command: str
) -> None:
    args = [*pictures, "-o", "out.png"] if command == "stylize" else []
    ran = impasto(command, *args, IMPASTO_REDIS_ULR="redis://x")

    assert ran.returncode == 2
    assert "There is no setting IMPASTO_REDIS_ULR" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("command", "setting", "value"),
    [
        ("api", "IMPASTO_API_PORT", "x"),
        ("api", "IMPASTO_REDIS_URL", "foo"),
        ("worker", "IMPASTO_WORKER_DEVICE", "gpu"),
        ("worker", "IMPASTO_WORKER_X", "1"),
        ("up", "IMPASTO_WORKER_X", "1"),
        ("up", "IMPASTO_API_X", "1"),
    ],
)
def test_a_bad_setting_is_refused_by_name(
    impasto: Any, command: str, setting: str, value: str
) -> None:
    """Also by `impasto up`, for the programs that it starts."""
    port = ["--port", str(free_port())] if command == "up" else []
    ran = impasto(command, *port, **{setting: value})

    assert ran.returncode == 2
    assert setting in ran.stderr
    assert "Traceback" not in ran.stderr


def test_each_owners_webhook_secret_is_told(impasto: Any) -> None:
    secret = "whsec_" + "A" * 32
    told = [
        impasto("webhook-secret", *owner, IMPASTO_WEBHOOK_SECRET=secret).stdout.strip()
        for owner in ((), ("--owner", "local"), ("--owner", "anna"))
    ]
    none = impasto("webhook-secret")

    assert told == [
        Signer(secret).owner_secret(owner) for owner in ("local", "local", "anna")
    ]
    assert none.returncode == 2
    assert "IMPASTO_WEBHOOK_SECRET is not set" in none.stderr


def test_weights_list_tells_what_auto_is(impasto: Any) -> None:
    ran = impasto("weights", "list")

    assert ran.returncode == 0
    assert "vgg16" in ran.stdout
    assert "<- auto" in ran.stdout


def test_importing_a_file_that_is_no_network_is_exit_1(
    impasto: Any, pictures: tuple[str, str]
) -> None:
    ran = impasto("weights", "import", pictures[0], "--name", "vgg19")

    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr


def test_a_network_of_ones_own_comes_in_is_normalized_goes_out_and_away(
    impasto: Any, tmp_path: Path, photo: Image.Image
) -> None:
    own = {"IMPASTO_CACHE_DIR": str(tmp_path / "cache")}
    files.write_network(
        tmp_path / "My Textures.caffemodel", Parameters.of(random_parameters("vgg11")), {}
    )
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    photo.save(folder / "a.png")
    photo.save(folder / "more" / "b.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    unnamed = impasto("weights", "import", "My Textures.caffemodel", **own)
    badly = impasto("weights", "import", "My Textures.caffemodel", "--name", "a/b", **own)
    taken = impasto("weights", "import", "My Textures.caffemodel", "--name", "my-textures", **own)
    normalized = impasto("weights", "normalize", "my-textures", "photos", **own)
    exported = impasto("weights", "export", "my-textures-normalized", "out.caffemodel", **own)
    nowhere = impasto("weights", "export", "my-textures", "nowhere/out.pth", **own)
    unknown = impasto("weights", "export", "my-textures", "out.txt", **own)
    misnamed = impasto("weights", "normalize", "my-textures", "photos", "--name", "vgg16", **own)
    shown = impasto("weights", "show", "my-textures-normalized", **own)
    removed = impasto("weights", "remove", "my-textures", **own)
    listed = impasto("weights", "list", **own)

    assert (unnamed.returncode, nowhere.returncode, unknown.returncode) == (2, 1, 2)
    # Refused before it looks at any picture.
    assert (misnamed.returncode, misnamed.stderr) == (
        2,
        "impasto: This is a VGG-11; call it anything but vgg16.\n",
    )
    assert "Say --name" in unnamed.stderr
    assert (badly.returncode, badly.stderr[:43]) == (
        2,
        "impasto: A network's name has small letters",
    )
    assert all("Traceback" not in ran.stderr for ran in (unnamed, nowhere, unknown))
    assert [ran.returncode for ran in (taken, normalized, exported, shown, removed, listed)] == [
        0
    ] * 6
    assert taken.stdout.startswith("my-textures  VGG-11  37 MB  sha256 ")
    assert "over 2 pictures" in normalized.stdout
    assert "left out: broken.png: Only JPEG, PNG and WebP" in normalized.stderr
    assert files.read_network(tmp_path / "out.caffemodel")[0].sha256[:16] in listed.stdout
    assert (tmp_path / "out.prototxt").exists()
    assert "from: My Textures.caffemodel" in shown.stdout
    assert "normalized_over: 2 pictures, least 0.1" in shown.stdout
    assert not any(line.startswith("my-textures  ") for line in listed.stdout.splitlines())


def test_help_tells_every_command_and_every_parameter(impasto: Any) -> None:
    words, parameters = (
        impasto("--help").stdout,
        "".join(impasto("submit", "--help").stdout.split()),
    )

    commands = [
        "up",
        "api",
        "worker",
        "webhooks",
        "webhook-secret",
        "stylize",
        "submit",
        "watch",
        "weights",
        "demo",
    ]
    for command in commands:
        assert command in words
    assert all(f"--{name.replace('_', '-')}" in parameters for name in (*PARAMETERS, "preset"))
    assert all(
        f"{name}:{preset.description}".replace(" ", "") in parameters
        for name, preset in PRESETS.items()
    )
