"""The command line: output, messages and exit codes."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_files
import pytest
from PIL import Image, ImageOps

import api.__main__
import worker.__main__
import worker.webhooks.__main__
from cli.local_service import free_port
from core import errors
from core.images import codec, validation
from core.neural.weights.cache import WeightsCache
from core.storage import files
from core.storage.blobs import digest_of
from core.style.presets import PRESETS
from core.style.spec import PARAMETERS
from core.webhooks.signing import Signer

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pictures(tmp_path: Path, photo: Image.Image, painting: Image.Image) -> tuple[str, str]:
    photo.save(tmp_path / "photo.png")
    painting.save(tmp_path / "painting.webp")
    return str(tmp_path / "photo.png"), str(tmp_path / "painting.webp")


@pytest.fixture
def settings(tmp_path: Path, weights: WeightsCache) -> dict[str, str]:
    return {
        "IMPASTO_CACHE_DIR": str(weights.folder.parent),
        "IMPASTO_DATA_DIR": str(tmp_path / "data"),
    }


@pytest.fixture
def impasto(run_command: Any, settings: dict[str, str]) -> Command:
    """Run the command in this process, in an empty folder."""

    def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_command(*args, **{**settings, **environment})

    return run


def _accept_ctrl_c() -> None:
    """Undo that a shell starts the background jobs of a script with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start_impasto(tmp_path: Path, settings: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Start the command as a process, in an empty folder."""

    def start(*args: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cli", *args],
            env={**os.environ, **settings, **environment},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_accept_ctrl_c,  # noqa: PLW1509 - no threads here
        )

    return start


def test_stylize_runs_without_a_service(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    photo, painting = pictures
    with Image.open(tmp_path / painting) as picture:
        ImageOps.expand(picture.resize((200, 150)), 20, "black").save(tmp_path / "framed.png")
    parameters = ["--size", "64", "--iterations", "4", "--style-layers", "relu1_1"]
    ran = impasto("stylize", photo, "framed.png", "-o", "out.png", *parameters)

    assert (ran.returncode, ran.stdout) == (0, "out.png\n")
    assert "100%" in ran.stderr
    assert "framed.png: without its frame, x 21 to 219 and y 21 to 169 px" in ran.stderr
    record = codec.read_provenance((tmp_path / "out.png").read_bytes())
    assert record is not None
    assert (record["spec"]["iterations"], record["spec"]["style_layers"]) == (4, {"relu1_1": 1.0})
    assert record["style_crops"] == [[21, 21, 219, 169]]


def test_a_disk_that_fills_during_a_run_does_not_lose_the_picture(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    fsync = files.fsync

    def fail(path: Path) -> None:
        if path.parent == full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        fsync(path)

    monkeypatch.setattr(files, "fsync", fail)
    size = ["--size", "64", "--iterations", "2"]
    ran = impasto("stylize", *pictures, "-o", str(full / "out.png"), *size)
    (saved,) = tmp_path.glob("out-*.png")

    assert ran.returncode == 1
    assert f"full/out.png cannot be written (no room?); the picture is in {saved}." in ran.stderr
    assert codec.read_provenance(saved.read_bytes()) is not None
    assert [*full.iterdir()] == []


ENTRY = "from cli.__main__ import main; main()"
# Ctrl-C while the commands are imported.
DURING_IMPORT = f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "cli.commands":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
{ENTRY}
"""
# Ctrl-C in a command, again while it cleans up, and once more when Python ends.
REPEATED = f"""
import atexit, os, signal, sys, time
from cli import commands
def press():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
def work():
    try:
        press()
    except KeyboardInterrupt:
        press()
        print("cleaned up")
    atexit.register(press)
    sys.exit(130)
commands.impasto.main = work
{ENTRY}
"""


@pytest.mark.parametrize(
    ("program", "output", "message"),
    [(DURING_IMPORT, "", "impasto: stopped.\n"), (REPEATED, "cleaned up\n", "")],
    ids=["during the import", "repeated"],
)
def test_ctrl_c_never_prints_a_traceback(program: str, output: str, message: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_accept_ctrl_c,
    )

    assert (ran.returncode, ran.stdout, ran.stderr) == (130, output, message)


def test_stylize_keeps_transparency_reads_heic_and_warns_of_a_doubtful_file(
    impasto: Any, tmp_path: Path
) -> None:
    cutout = hostile_files.colors().convert("RGBA")
    cutout.paste((0, 0, 0, 0), (0, 0, 20, 48))
    cutout.save(tmp_path / "cutout.png")
    (tmp_path / "phone.heic").write_bytes(hostile_files.encodings()["HEIC plain"])
    progressive = hostile_files.saved(hostile_files.noise(3), "JPEG", progressive=True)
    cut = progressive[: progressive.rindex(b"\xff\xc4")] + b"\xff\xd9"  # before the last scan
    (tmp_path / "cut.jpg").write_bytes(cut)
    baseline = hostile_files.saved(hostile_files.noise(3), "JPEG")
    (tmp_path / "longer.jpg").write_bytes(baseline[:-2] + b"\x5a\xc3" * 150 + baseline[-2:])
    parameters = ["--size", "64", "--iterations", "2", "--transparency", "keep"]
    pictures = ["cutout.png", "phone.heic", "cut.jpg", "longer.jpg"]
    ran = impasto("stylize", *pictures, "-o", "out.png", *parameters)

    assert (ran.returncode, ran.stdout) == (0, "out.png\n")
    assert "cut.jpg: The JPEG has no scan for its finest details." in ran.stderr
    assert "longer.jpg: The JPEG holds more data than its picture takes" in ran.stderr
    with Image.open(tmp_path / "out.png") as result:
        alpha = result.getchannel("A")
        assert [alpha.getpixel((x, 30)) for x in (5, 60)] == [0, 255]
    refused = impasto("stylize", *pictures, "-o", "out.jpg", *parameters)
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (
        2,
        "impasto: A JPEG has no transparency; the output must end in .png or .webp.",
    )


def test_parameters_override_those_of_a_preset(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    parameters = ["--preset", "draft", "--size", "64", "--iterations", "2"]

    assert impasto("stylize", *pictures, "-o", "out.png", *parameters).returncode == 0
    record = codec.read_provenance((tmp_path / "out.png").read_bytes())
    assert record is not None
    assert (record["spec"]["size"], record["spec"]["quality"]) == (64, "draft")


def test_info_shows_the_record_of_a_result_and_from_reproduces_the_result(
    impasto: Any, start_impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    """The first run is a process: its result does not depend on the process that made it."""
    parameters = ["--size", "64", "--iterations", "2", "--seed", "7"]
    process = start_impasto("stylize", *pictures, "-o", "one.png", *parameters)
    assert process.communicate()[0] == "one.png\n"
    as_text, as_json = impasto("info", "one.png"), impasto("info", "one.png", "--json")
    record = json.loads(as_json.stdout)

    assert record == codec.read_provenance((tmp_path / "one.png").read_bytes())
    fields = dict(line.split(maxsplit=1) for line in as_text.stdout.splitlines())
    assert tuple(fields[name] for name in ("content", "style", "seed", "optimizer")) == (
        record["content"],
        record["styles"][0],
        "7",
        "lbfgs",
    )
    assert "network sha256" in as_text.stdout

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


def test_info_shows_the_spec_updates_of_a_run(impasto: Any, tmp_path: Path) -> None:
    change = {"iteration": 120, "before": {"strength": 0.5}, "after": {"strength": 0.9}}
    for name, spec_updates in (("one", [change]), ("two", "strange")):
        record = {"content": "c", "styles": ["s"], "spec": {}, "spec_updates": spec_updates}
        (tmp_path / f"{name}.png").write_bytes(
            codec.encode(Image.new("RGB", (40, 40)), "png", record)
        )
    one, two = (impasto("info", f"{name}.png").stdout.splitlines() for name in ("one", "two"))

    assert one[-1] == f"{'spec_updates':<16} {json.dumps(change)}"
    assert not any(line.startswith("spec_updates") for line in two)


def test_info_refuses_a_file_without_a_record_and_escapes_control_characters(
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
    assert all("no valid record" in ran.stderr for ran in plain)
    assert all((ran.stdout.replace("\n", "")).isprintable() for ran in evil)


def test_plan_prints_scales_and_totals_and_writes_no_file(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    ran = impasto("stylize", *pictures, "--size", "300", "--plan")

    assert ran.returncode == 0
    assert "300 x 225 px, 16 iterations, whole" in ran.stdout
    assert "GB plus the network." in ran.stdout.splitlines()[-1]
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_the_run_and_the_plan_respect_the_memory_limit(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path, plan: list[str]
) -> None:
    args = ["--size", "512", "--scales", "1", "--iterations", "1", "--memory-gb", "0.3", *plan]
    ran = impasto("stylize", *pictures, "-o", "out.png", *args)

    assert (ran.returncode, (tmp_path / "out.png").exists()) == (1, False)
    # The message names the option and the least value, and that value is enough.
    found = re.search(r"--memory-gb 0.3: size 512 needs ([0-9.]+) GB of memory", ran.stderr)
    assert found is not None, ran.stderr
    assert impasto("stylize", *pictures, "--plan", *args, "--memory-gb", found[1]).returncode == 0
    less = str(float(found[1]) - 0.02)
    assert impasto("stylize", *pictures, "--plan", *args, "--memory-gb", less).returncode == 1


def test_masks_and_the_init_image_are_used_and_recorded(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    more = ["--mask", pictures[1], "--init", "picture", "--init-image", pictures[0]]
    more += ["--style-mask", pictures[0]]
    ran = impasto("stylize", *pictures, "-o", "out.png", "--size", "64", "--iterations", "1", *more)
    photo, painting = (digest_of(Path(path).read_bytes()) for path in pictures)

    assert ran.returncode == 0
    record = codec.read_provenance((tmp_path / "out.png").read_bytes())
    assert record is not None
    spec, model = record.pop("spec"), record.pop("model")
    assert (spec["size"], model["name"]) == (64, "vgg19")
    assert record == {
        "program": "impasto",
        "content": photo,
        "styles": [painting],
        "masks": [painting],
        "style_masks": [photo],
        "init_image": photo,
    }
    assert impasto("stylize", *pictures, "-o", "out.png", "--init", "picture").returncode == 2


@pytest.mark.parametrize("name", ["out.jpg", "out.webp"])
def test_the_suffix_of_the_output_selects_the_format(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path, name: str
) -> None:
    assert (
        impasto("stylize", *pictures, "-o", name, "--size", "64", "--iterations", "1").returncode
        == 0
    )
    assert validation.detect_format((tmp_path / name).read_bytes()) == (
        "jpeg" if name.endswith("jpg") else "webp"
    )


def test_ctrl_c_keeps_the_picture_so_far(
    start_impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    parameters = ["--size", "64", "--iterations", "5000"]
    process = start_impasto("stylize", *pictures, "-o", "out.png", *parameters)
    assert process.stderr.readline().startswith("running")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert stderr.endswith("impasto: stopped; the picture so far is in out.png.\n")
    data = (tmp_path / "out.png").read_bytes()
    assert codec.decode(data).size == (64, 48)
    assert (codec.read_provenance(data) or {})["spec"]["iterations"] == 5000


def test_an_input_is_overwritten_only_with_force(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    """Whatever its role is, and also by the name of a link to it."""
    photo = Path(pictures[0])
    before = photo.read_bytes()
    (tmp_path / "link.png").symlink_to(photo)
    (tmp_path / "other.png").write_bytes(before)
    small = ["--size", "64", "--iterations", "1"]
    as_mask = ["other.png", pictures[1], "--mask", str(photo)]
    refused = [
        impasto("stylize", *sent, *small, "-o", output)
        for sent, output in (
            (pictures, str(photo)),
            (pictures, "photo.png"),
            (pictures, "link.png"),
            (as_mask, str(photo)),
        )
    ]
    assert [ran.returncode for ran in refused] == [2] * 4
    assert all("is an input; choose another output, or" in ran.stderr for ran in refused)
    assert photo.read_bytes() == before

    assert impasto("stylize", *pictures, *small, "-o", "link.png", "--force").returncode == 0
    assert codec.decode(photo.read_bytes()).size == (64, 48)
    assert (tmp_path / "link.png").is_symlink()


def test_an_output_is_written_whole_or_not_at_all(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.png").write_bytes(b"earlier")
    write = Path.write_bytes

    def fill_the_disk(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "no space", str(path))

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    ran = impasto("stylize", *pictures, "--size", "64", "--iterations", "1", "-o", "out.png")

    assert (ran.returncode, (tmp_path / "out.png").read_bytes()) == (1, b"earlier")
    assert "There is no room for" in ran.stderr
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--preset", "x"], "'x' is not one of 'draft', 'faithful'"),
        (["--size", "nan"], "size must be a whole number from 64 to 8192."),
        (["--no-such-parameter", "1"], "No such option"),
        (["--memory-gb", "-1"], "-1.0 is not in the range"),
        (["--memory-gb", "nan"], "nan is not a finite number."),
        (["-o", "out.gif"], "The output must end in .png, .jpg, .jpeg, .webp."),
        (["-o", "nowhere/out.png"], "There is no folder"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_sentence(
    impasto: Any, pictures: tuple[str, str], args: list[str], message: str
) -> None:
    output = [] if "-o" in args else ["-o", "out.png"]
    ran = impasto("stylize", *pictures, *output, *args)

    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_transparent_mask_exits_with_2_and_the_services_message(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    Image.new("LA", (40, 40), (255, 0)).save(tmp_path / "clear.png")
    ran = impasto("stylize", *pictures, "-o", "out.png", "--size", "64", "--mask", "clear.png")

    assert ran.returncode == 2
    assert "A mask is black all over" in ran.stderr


def test_a_bad_picture_exits_with_2_and_the_services_message(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"hello")
    ran = impasto("stylize", "bad.jpg", pictures[1], "-o", "out.png")

    assert (
        ran.returncode,
        ran.stderr,
    ) == (2, f"impasto: content: {errors.UnsupportedImage().message}\n")


def test_missing_weights_exit_with_1_and_name_the_command_that_fetches_them(
    impasto: Any, pictures: tuple[str, str], tmp_path: Path
) -> None:
    ran = impasto("stylize", *pictures, "-o", "out.png", IMPASTO_CACHE_DIR=str(tmp_path / "empty"))

    assert ran.returncode == 1
    assert "impasto weights fetch vgg19" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_without_a_service_submit_and_watch_name_the_command_that_starts_one(
    impasto: Any, pictures: tuple[str, str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for ran in (
        impasto("submit", *pictures, "--url", url),
        impasto("watch", "job_x", "--url", url),
    ):
        assert ran.returncode == 1
        assert "impasto up" in ran.stderr


MISSPELLED = {"IMPASTO_REDIS_ULR": "redis://x"}


@pytest.mark.parametrize("command", ["up", "stylize", "webhook-secret"])
def test_a_misspelled_setting_is_refused_by_name(
    impasto: Any, pictures: tuple[str, str], command: str
) -> None:
    args = [*pictures, "-o", "out.png"] if command == "stylize" else []
    ran = impasto(command, *args, **MISSPELLED)

    assert ran.returncode == 2
    assert "There is no setting IMPASTO_REDIS_ULR" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("command", ["api", "worker", "webhooks"])
def test_a_process_refuses_a_misspelled_setting_by_name(start_impasto: Any, command: str) -> None:
    """These commands replace their process by the program that reads the settings."""
    process = start_impasto(command, **MISSPELLED)
    _, stderr = process.communicate()

    assert process.returncode == 2
    assert "There is no setting IMPASTO_REDIS_ULR" in stderr
    assert "Traceback" not in stderr


def _keep_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs' logs would go to the standard error of this test in all later ones."""
    for program in (api.__main__, worker.__main__, worker.webhooks.__main__):
        monkeypatch.setattr(program, "configure_logging", lambda _: None)


@pytest.mark.parametrize(
    ("main", "setting", "value"),
    [
        (api.__main__.main, "IMPASTO_API_PORT", "x"),
        (api.__main__.main, "IMPASTO_REDIS_URL", "foo"),
        (api.__main__.main, "IMPASTO_REDIS_URL", "redis://127.0.0.1:99999/0"),
        (worker.__main__.main, "IMPASTO_REDIS_URL", "redis://127.0.0.1:6379/x"),
        (api.__main__.main, "IMPASTO_STORE_UNSAFE", "yes"),
        (worker.__main__.main, "IMPASTO_WORKER_DEVICE", "gpu"),
        (worker.__main__.main, "IMPASTO_WORKER_X", "1"),
    ],
)
def test_a_bad_setting_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Callable[[], None],
    setting: str,
    value: str,
) -> None:
    monkeypatch.setenv(setting, value)
    _keep_logging(monkeypatch)
    with pytest.raises(SystemExit) as exited:
        main()

    assert exited.value.code == 2
    assert setting in capsys.readouterr().err


@pytest.mark.parametrize(
    "main", [api.__main__.main, worker.__main__.main, worker.webhooks.__main__.main]
)
def test_a_cluster_as_the_store_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own_valkey: Any,
    tmp_path: Path,
    main: Callable[[], None],
) -> None:
    own_valkey.kill()
    own_valkey.options = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    own_valkey.start()
    monkeypatch.setenv("IMPASTO_REDIS_URL", own_valkey.url)
    monkeypatch.setenv("IMPASTO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("IMPASTO_WEBHOOK_SECRET", "whsec_" + "A" * 32)
    _keep_logging(monkeypatch)
    with pytest.raises(SystemExit) as exited:
        main()

    assert exited.value.code == 2
    assert "IMPASTO_REDIS_URL: The server is a Redis Cluster" in capsys.readouterr().err


def test_up_refuses_a_bad_setting_of_a_program_that_it_starts(
    start_impasto: Any, tmp_path: Path
) -> None:
    settings = ["IMPASTO_WORKER_X", "IMPASTO_API_X"]
    processes = [
        start_impasto(
            "up",
            "--port",
            str(free_port()),
            **{setting: "1", "IMPASTO_DATA_DIR": str(tmp_path / setting)},
        )
        for setting in settings
    ]
    outputs = [process.communicate()[1] for process in processes]

    assert [process.returncode for process in processes] == [2, 2]
    assert all(setting in output for setting, output in zip(settings, outputs, strict=True))
    assert all("Traceback" not in output for output in outputs)


def test_webhook_secret_prints_the_secret_of_each_owner(impasto: Any) -> None:
    secret = "whsec_" + "A" * 32
    secrets = [
        impasto("webhook-secret", *owner, IMPASTO_WEBHOOK_SECRET=secret).stdout.strip()
        for owner in ((), ("--owner", "local"), ("--owner", "anna"))
    ]
    none = impasto("webhook-secret")

    assert secrets == [Signer(secret).owner_secret(owner) for owner in ("local", "local", "anna")]
    assert none.returncode == 2
    assert "IMPASTO_WEBHOOK_SECRET is not set" in none.stderr


def test_weights_list_marks_the_network_of_auto(impasto: Any) -> None:
    ran = impasto("weights", "list")

    assert ran.returncode == 0
    assert re.search("^vgg19 .*<- auto$", ran.stdout, re.MULTILINE)


def test_importing_a_file_that_is_no_network_exits_with_1(
    impasto: Any, pictures: tuple[str, str]
) -> None:
    ran = impasto("weights", "import", pictures[0], "--name", "vgg19")

    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr


def test_help_lists_every_command_and_every_parameter(impasto: Any) -> None:
    overview = impasto("--help").stdout
    parameters = "".join(impasto("submit", "--help").stdout.split())

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
        assert command in overview
    assert all(f"--{name.replace('_', '-')}" in parameters for name in (*PARAMETERS, "preset"))
    assert all(
        f"{name}:{preset.description}".replace(" ", "") in parameters
        for name, preset in PRESETS.items()
    )
