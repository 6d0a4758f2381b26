"""Checks of the container files without running them: they agree with each other and the code."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from billiard.spawn import get_command_line

from api.routes import health
from api.settings import ApiSettings
from core.config import Settings, read_settings
from core.jobs.store_monitor import REQUIRED
from core.neural.torch_versions import DEFAULT, LEGACY, TorchSet
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
PASSWORD = "secret"
SECRET = "whsec_" + "A" * 32
# The versions of CUDA that the oldest usable drivers offer.
CUDA_OF_DRIVER = {580: "13.0", 525: "12.0"}
PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+[a-z0-9.-]*")
_INTERPOLATION = re.compile(r"\$\{(\w+)(?::-)?([^}]*)\}")


class Dockerfile:
    """A Dockerfile's instructions, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
        self._lines = [
            (word, rest.strip())
            for word, _, rest in (line.partition(" ") for line in text.splitlines())
        ]

    def all(self, instruction: str) -> list[str]:
        return [rest for word, rest in self._lines if word == instruction]

    def one(self, instruction: str) -> str:
        (rest,) = self.all(instruction)
        return rest

    def after(self, instruction: str, following: str) -> list[str]:
        """The arguments of `following` below the last `instruction`."""
        words = [word for word, _ in self._lines]
        start = len(words) - words[::-1].index(instruction)
        return [rest for word, rest in self._lines[start:] if word == following]

    @property
    def environment(self) -> dict[str, str]:
        pairs = [pair.partition("=") for rest in self.all("ENV") for pair in shlex.split(rest)]
        return {name: value for name, _, value in pairs}

    @property
    def copied(self) -> list[str]:
        return [source for rest in self.all("COPY") for source in rest.split()[:-1]]

    @property
    def health_command(self) -> list[str]:
        command: list[str] = json.loads(self.one("HEALTHCHECK").partition("CMD")[2])
        return command


API, WORKER = Dockerfile(ROOT / "Dockerfile.api"), Dockerfile(ROOT / "Dockerfile.worker")
IMAGES = {"api": API, "worker": WORKER}

each_image = pytest.mark.parametrize("image", [API, WORKER], ids=["api", "worker"])

RESET = object()


class _Loader(yaml.SafeLoader):
    """A loader that knows Compose's tag `!reset`, which removes a value of an earlier file."""


_Loader.add_constructor("!reset", lambda *_: RESET)


def _compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    given = {"IMPASTO_REDIS_PASSWORD": PASSWORD, "IMPASTO_WEBHOOK_SECRET": SECRET}
    text = _INTERPOLATION.sub(
        lambda variable: given.get(variable[1], variable[2]), (ROOT / name).read_text()
    )
    loaded: dict[str, Any] = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    return loaded


def _merged(base: Any, over: Any) -> Any:
    """Merge two files like Compose, as far as ours need it: mappings and reset values."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    both = {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
    return {key: value for key, value in both.items() if value is not RESET}


SERVICES: dict[str, dict[str, Any]] = _compose()["services"]

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))


def _mounts(service: str) -> dict[str, str]:
    """Volumes by mount folder; an option such as `ro` stays in the key, so it matches no folder."""
    return {
        folder: volume
        for volume, _, folder in (text.partition(":") for text in SERVICES[service]["volumes"])
    }


def _environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the container's IMPASTO_* variables in this process."""
    for variable, value in (IMAGES[name].environment | SERVICES[name]["environment"]).items():
        if variable.startswith("IMPASTO_"):
            monkeypatch.setenv(variable, value)


# ---------------------------------------------------------------------- the images


@each_image
def test_hadolint_reports_nothing(image: Dockerfile) -> None:
    """The Dockerfiles follow hadolint's rules."""
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or "hadolint"
    ran = subprocess.run(
        [hadolint, "--no-color", image.path], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@each_image
def test_every_copied_path_exists_and_is_not_ignored(image: Dockerfile) -> None:
    """Each COPY source exists and is listed in .dockerignore, which ignores everything else."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    assert [source for source in image.copied if not (ROOT / source).exists()] == []
    assert [source for source in image.copied if f"!{source}" not in rules] == []


@each_image
def test_the_command_is_a_module_in_the_image(image: Dockerfile) -> None:
    """The container runs `python -m` with a package that exists and was copied."""
    *python, module = json.loads(image.one("CMD"))
    assert python == ["python", "-m"]
    assert find_spec(f"{module}.__main__") is not None
    assert module in image.copied


@each_image
def test_an_image_does_not_run_as_root(image: Dockerfile) -> None:
    """The last USER is a number (Kubernetes requires a number) other than 0."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.all("USER")[-1])


def test_base_images_are_pinned() -> None:
    """Every image has its full version in its name, so a rebuild uses the same one."""
    names = [image.one("FROM") for image in IMAGES.values()]
    names += [service["image"] for service in SERVICES.values() if "image" in service]
    assert [name for name in names if not PINNED.fullmatch(name)] == []


def test_the_workers_image_contains_the_networks() -> None:
    """The image has the networks, fetched as the user that reads them, so it works offline."""
    fetching = " ".join(WORKER.after("USER", "RUN"))
    for name in ("vgg19", "vgg16"):
        assert f"python -m cli weights fetch {name}" in fetching
    folder = WORKER.environment["IMPASTO_CACHE_DIR"]
    install = next(command for command in WORKER.all("RUN") if "install --directory" in command)
    assert folder in install.split()


def test_a_worker_is_stopped_by_sigterm() -> None:
    """SIGTERM lets Celery shut down gently, so that the worker releases its job."""
    assert WORKER.one("STOPSIGNAL") == "SIGTERM"


# ---------------------------------------------------------------------- health


@each_service
def test_every_service_has_a_health_check(service: dict[str, Any]) -> None:
    """Each service has a health check, in the Compose file or in its image."""
    built = service.get("build", {}).get("dockerfile")
    assert "healthcheck" in service or Dockerfile(ROOT / built).all("HEALTHCHECK")


@pytest.fixture
def livez(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that sends the given status for /livez and 404 for all else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("livez", "healthy"), [(200, True), (503, False)], indirect=["livez"])
def test_the_apis_health_check_requests_livez(
    livez: int, healthy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It succeeds if /livez returns 200, bypasses any proxy, and fails otherwise."""
    monkeypatch.setenv("IMPASTO_API_PORT", str(livez))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    ran = subprocess.run([sys.executable, *API.health_command[1:]], check=False, timeout=60)
    assert healthy is (ran.returncode == 0)
    assert "/livez" in {getattr(route, "path", None) for route in health.router.routes}


def test_the_workers_health_check_finds_the_pools_child() -> None:
    """It finds the child process by its command line and does not match itself."""
    pattern = shlex.split(WORKER.health_command[-1])[2]
    assert re.search(pattern, " ".join(get_command_line(pipe_handle=1)))
    assert not re.search(pattern, WORKER.health_command[-1])


# ---------------------------------------------------------------------- the services together


@pytest.mark.parametrize("name", IMAGES)
def test_settings_accept_the_containers_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every IMPASTO_* variable of a container is a valid setting."""
    _environment(name, monkeypatch)
    shared = read_settings(Settings)
    read_settings(ApiSettings)
    read_settings(WorkerSettings)
    assert urlsplit(shared.redis_url).hostname == "redis"
    assert urlsplit(shared.redis_url).password == PASSWORD
    assert "env_file" not in SERVICES[name]  # it would add variables that are no settings


def test_the_api_can_be_reached_on_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API listens on all addresses of its container; the host publishes only to loopback."""
    _environment("api", monkeypatch)
    own = read_settings(ApiSettings)
    assert own.host == "0.0.0.0"  # noqa: S104 - inside the container
    assert str(own.port) == API.one("EXPOSE")
    assert [f"127.0.0.1:8000:{own.port}"] == SERVICES["api"]["ports"]
    assert own.is_key_required


def test_api_and_worker_share_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """API and worker mount the same volume as data folder, as the same user."""
    volumes = set()
    for name in IMAGES:
        _environment(name, monkeypatch)
        volumes.add(_mounts(name)[str(read_settings(Settings).data_dir)])
    assert len(volumes) == 1
    assert volumes <= set(_compose()["volumes"])
    assert WORKER.all("USER") == API.all("USER")


def test_redis_is_durable() -> None:
    """Redis writes each change to a volume before it answers, and evicts nothing."""
    program, *words = SERVICES["redis"]["command"]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert program == "valkey-server"
    defaults = {"no-appendfsync-on-rewrite": "no"}
    assert {**defaults, **{name[2:]: value for name, value in options.items()}}.items() >= (
        REQUIRED.items()
    )
    assert _mounts("redis")["/data"] in _compose()["volumes"]


def test_redis_is_reachable_only_from_the_other_containers() -> None:
    """Redis publishes no port and requires the password."""
    words = SERVICES["redis"]["command"]
    assert "ports" not in SERVICES["redis"]
    assert words[words.index("--requirepass") + 1] == PASSWORD


def test_the_containers_accept_every_webhook_setting() -> None:
    """The values come from .env; the defaults are those of the programs."""
    names = {
        f"IMPASTO_{name.upper()}" for name in Settings.model_fields if name.startswith("webhook_")
    }
    text = (ROOT / "docker-compose.yml").read_text()
    given = {name: default for name, default in _INTERPOLATION.findall(text) if "WEBHOOK" in name}
    defaults = Settings(
        **{name.removeprefix("IMPASTO_").lower(): value for name, value in given.items()}
    )

    assert (
        names
        == given.keys()
        == {name for name in SERVICES["webhooks"]["environment"] if "WEBHOOK" in name}
    )
    assert defaults.webhooks == Settings().webhooks


def test_there_is_no_default_password() -> None:
    """Compose requires IMPASTO_REDIS_PASSWORD and nothing else; .env.example names it.

    Without IMPASTO_WEBHOOK_SECRET, webhooks are off.
    """
    text = (ROOT / "docker-compose.yml").read_text()
    needed = {name for name, _ in _INTERPOLATION.findall(text) if f"${{{name}:-" not in text}
    assert needed == {"IMPASTO_REDIS_PASSWORD"}
    assert "${IMPASTO_WEBHOOK_SECRET:-}" in text
    assert "${IMPASTO_REDIS_PASSWORD:?" in text
    assert "${IMPASTO_REDIS_PASSWORD:-" not in text
    example = ROOT / ".env.example"
    assert not example.exists() or "IMPASTO_REDIS_PASSWORD" in example.read_text()


@each_service
def test_a_container_has_no_privileges(service: dict[str, Any]) -> None:
    """No root, no capabilities, no way to gain any, a read-only image; process 1 reaps zombies."""
    assert "build" in service or not service["user"].startswith(("0", "root"))
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["init"] is True


def test_programs_start_after_redis_is_healthy() -> None:
    """API and worker depend on a healthy Redis."""
    for name in IMAGES:
        assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_the_webhook_dispatcher_runs_from_the_apis_image_with_the_same_settings() -> None:
    """It has the same secret as the API, and its program is in the image."""
    dispatcher = SERVICES["webhooks"]
    *python, module = dispatcher["command"]
    assert (python, dispatcher["build"]) == (["python", "-m"], SERVICES["api"]["build"])
    assert find_spec(module) is not None
    assert module.partition(".")[0] in API.copied
    assert dispatcher["environment"].items() <= SERVICES["api"]["environment"].items()
    assert dispatcher["environment"]["IMPASTO_WEBHOOK_SECRET"] == SECRET
    assert SERVICES["api"]["depends_on"] == dispatcher["depends_on"]


def test_the_webhook_dispatchers_health_check_finds_its_process() -> None:
    """It finds the process by its command line and does not match itself."""
    _, check = SERVICES["webhooks"]["healthcheck"]["test"]
    pattern = shlex.split(check)[2]
    assert re.search(pattern, " ".join(SERVICES["webhooks"]["command"]))
    assert not re.search(pattern, check)


def test_each_worker_reserves_a_card_of_its_own() -> None:
    """By number. With `count: 1`, each would get the first card."""
    numbers = []
    for name in ("worker", "worker-1"):
        (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        numbers += device.pop("device_ids")
        assert device == {"driver": "nvidia", "capabilities": ["gpu"]}
    assert numbers == ["0", "1"]
    assert "profiles" not in SERVICES["worker"]
    first, second = (
        {key: value for key, value in SERVICES[name].items() if key not in ("deploy", "profiles")}
        for name in ("worker", "worker-1")
    )
    assert first == second


def test_the_cpu_file_removes_the_card_and_allows_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else. The image itself requires CUDA: a lost card must not make it slow."""
    expected = _compose()
    worker = expected["services"]["worker"]
    del worker["deploy"]["resources"]["reservations"]["devices"]
    worker["environment"] = {**worker["environment"], "IMPASTO_WORKER_DEVICE": "cpu"}

    assert _merged(_compose(), _compose("docker-compose.cpu.yml")) == expected
    _environment("worker", monkeypatch)
    assert read_settings(WorkerSettings).device == "cuda"


def test_the_legacy_file_builds_the_workers_with_the_older_torch() -> None:
    """Nothing else differs. The default arguments are those of the newer torch."""
    arguments = dict(rest.split("=") for rest in WORKER.all("ARG"))
    assert arguments == {
        "CONSTRAINTS": DEFAULT.constraints,
        "CUDA": f"{CUDA_OF_DRIVER[DEFAULT.driver]}",
    }
    assert '-c "${CONSTRAINTS}"' in next(
        command for command in WORKER.all("RUN") if "pip install" in command
    )
    assert WORKER.environment["NVIDIA_REQUIRE_CUDA"] == "cuda>=${CUDA}"
    assert {DEFAULT.constraints, LEGACY.constraints} <= {
        name for copied in WORKER.all("COPY") for name in copied.split()
    }

    expected = _compose()
    for name in ("worker", "worker-1"):
        build = expected["services"][name]["build"]
        expected["services"][name]["build"] = {
            **build,
            "args": {
                "CONSTRAINTS": LEGACY.constraints,
                "CUDA": CUDA_OF_DRIVER[LEGACY.driver],
            },
        }
    merged = _merged(_compose(), _compose("docker-compose.legacy-gpu.yml"))
    assert merged["services"] == expected["services"]


@pytest.mark.parametrize(
    ("argument", "expected"), [("", DEFAULT), ("GPU=legacy", LEGACY), ("GPU=other", None)]
)
def test_make_installs_the_set_for_the_card(argument: str, expected: TorchSet | None) -> None:
    """`make -n` prints the commands. The constraints file is a prerequisite of the set-up."""
    command = ["make", "--no-print-directory", "-n", "-p", "up", *argument.split()]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    if expected is None:
        assert ran.returncode != 0
        assert "GPU is either legacy" in ran.stderr
        return
    assert f"PIP_CONSTRAINT := {ROOT / expected.constraints}" in ran.stdout
    set_up = next(line for line in ran.stdout.splitlines() if line.startswith(".venv/.local"))
    assert set_up.split()[-1] == expected.constraints
