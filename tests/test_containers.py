"""What can be said of the containers without running them: the files agree with each other and with the code."""

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
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest
import yaml
from billiard.spawn import get_command_line

from api.routes import health
from api.settings import ApiSettings
from core.config import Settings, read_settings
from core.neural.weights.cache import DownloadableModel
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
PASSWORD = "secret"
SECRET = "whsec_" + "A" * 32
PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+[a-z0-9.-]*")
_INTERPOLATION = re.compile(r"\$\{(\w+)(?::-)?([^}]*)\}")


class Dockerfile:
    """Its instructions, in order."""

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
        """What `following` says below the last `instruction`."""
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
    """Knows Compose's own tag, which removes what an earlier file says."""


_Loader.add_constructor("!reset", lambda *_: RESET)


def _compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    given = {"IMPASTO_REDIS_PASSWORD": PASSWORD, "IMPASTO_WEBHOOK_SECRET": SECRET}
    text = _INTERPOLATION.sub(
        lambda variable: given.get(variable[1], variable[2]), (ROOT / name).read_text()
    )
    loaded: dict[str, Any] = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    return loaded


def _merged(base: Any, over: Any) -> Any:
    """As Compose merges two files, as far as ours need it: mappings, and values reset."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    both = {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
    return {key: value for key, value in both.items() if value is not RESET}


SERVICES: dict[str, dict[str, Any]] = _compose()["services"]

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))


def _mounts(service: str) -> dict[str, str]:
    """Volume by the folder it is mounted on; an option such as `ro` stays with the folder, and so matches none."""
    return {
        folder: volume
        for volume, _, folder in (text.partition(":") for text in SERVICES[service]["volumes"])
    }


def _environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process the container's IMPASTO_* variables."""
    for variable, value in (IMAGES[name].environment | SERVICES[name]["environment"]).items():
        if variable.startswith("IMPASTO_"):
            monkeypatch.setenv(variable, value)


# ---------------------------------------------------------------------- the images


@each_image
def test_hadolint_has_nothing_to_say(image: Dockerfile) -> None:
    """The Dockerfiles keep hadolint's rules."""
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or "hadolint"
    ran = subprocess.run(
        [hadolint, "--no-color", image.path], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@each_image
def test_what_is_copied_is_there_and_not_ignored(image: Dockerfile) -> None:
    """Every source of a COPY exists and passes .dockerignore, which ignores all that it does not name."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    assert [source for source in image.copied if not (ROOT / source).exists()] == []
    assert [source for source in image.copied if f"!{source}" not in rules] == []


@each_image
def test_the_command_is_a_module_in_the_image(image: Dockerfile) -> None:
    """The container runs `python -m` with a package that exists, can be run, and was copied."""
    *python, module = json.loads(image.one("CMD"))
    assert python == ["python", "-m"]
    assert find_spec(f"{module}.__main__") is not None
    assert module in image.copied


@each_image
def test_an_image_runs_as_nobody_in_particular(image: Dockerfile) -> None:
    """The container's process is not root: the last USER is a number, as Kubernetes wants it, other than 0."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.all("USER")[-1])


def test_base_images_are_pinned() -> None:
    """Every image that we build on or run is named with its full version, so a rebuild gets the same one."""
    names = [image.one("FROM") for image in IMAGES.values()]
    names += [service["image"] for service in SERVICES.values() if "image" in service]
    assert [name for name in names if not PINNED.fullmatch(name)] == []


def test_the_worker_brings_its_networks() -> None:
    """The worker's image holds every network, fetched as the user that reads them, so it works offline."""
    fetching = " ".join(WORKER.after("USER", "RUN"))
    for name in get_args(DownloadableModel):
        assert f"python -m cli weights fetch {name}" in fetching
    folder = WORKER.environment["IMPASTO_CACHE_DIR"]
    made = next(command for command in WORKER.all("RUN") if "install --directory" in command)
    assert folder in made.split()


def test_a_worker_is_asked_to_go_by_sigterm() -> None:
    """Docker stops a worker with the signal on which Celery lets it hand back its job."""
    assert WORKER.one("STOPSIGNAL") == "SIGTERM"


# ---------------------------------------------------------------------- health


@each_service
def test_every_service_has_a_health_check(service: dict[str, Any]) -> None:
    """Docker can tell of every service whether it is well, from the Compose file or from the image."""
    built = service.get("build", {}).get("dockerfile")
    assert "healthcheck" in service or Dockerfile(ROOT / built).all("HEALTHCHECK")


@pytest.fixture
def livez(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that answers /livez with the status given, and all else with 404."""

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
def test_the_apis_health_check_asks_livez(
    livez: int, healthy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API's health check succeeds when /livez answers 200, past any proxy, and fails otherwise."""
    monkeypatch.setenv("IMPASTO_API_PORT", str(livez))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    ran = subprocess.run([sys.executable, *API.health_command[1:]], check=False, timeout=60)
    assert healthy is (ran.returncode == 0)
    assert "/livez" in {getattr(route, "path", None) for route in health.router.routes}


def test_the_workers_health_check_knows_the_process_that_paints() -> None:
    """The worker's health check finds the pool's child by its command line, and does not find itself."""
    pattern = shlex.split(WORKER.health_command[-1])[2]
    assert re.search(pattern, " ".join(get_command_line(pipe_handle=1)))
    assert not re.search(pattern, WORKER.health_command[-1])


# ---------------------------------------------------------------------- the services together


@pytest.mark.parametrize("name", IMAGES)
def test_settings_accept_the_containers_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every IMPASTO_* variable of a container is a setting with a value that the program takes."""
    _environment(name, monkeypatch)
    shared = read_settings(Settings)
    read_settings(ApiSettings)
    read_settings(WorkerSettings)
    assert urlsplit(shared.redis_url).hostname == "redis"
    assert urlsplit(shared.redis_url).password == PASSWORD
    assert "env_file" not in SERVICES[name]  # would bring in variables that are no settings


def test_the_api_can_be_reached_on_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API listens on all addresses of its container, on the port exposed, which is published to loopback only."""
    _environment("api", monkeypatch)
    own = read_settings(ApiSettings)
    assert own.host == "0.0.0.0"  # noqa: S104 - inside the container
    assert str(own.port) == API.one("EXPOSE")
    assert [f"127.0.0.1:8000:{own.port}"] == SERVICES["api"]["ports"]
    assert own.keys_required


def test_api_and_worker_share_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """API and worker mount one volume on the folder of the blobs, and write there as one user."""
    volumes = set()
    for name in IMAGES:
        _environment(name, monkeypatch)
        volumes.add(_mounts(name)[str(read_settings(Settings).data_dir)])
    assert len(volumes) == 1
    assert volumes <= set(_compose()["volumes"])
    assert WORKER.all("USER") == API.all("USER")


def test_redis_forgets_nothing() -> None:
    """Redis writes every change to a volume before it answers, and evicts nothing."""
    program, *words = SERVICES["redis"]["command"]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert program == "valkey-server"
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"
    assert _mounts("redis")["/data"] in _compose()["volumes"]


def test_redis_is_for_the_other_containers_only() -> None:
    """Redis publishes no port and asks for the password."""
    words = SERVICES["redis"]["command"]
    assert "ports" not in SERVICES["redis"]
    assert words[words.index("--requirepass") + 1] == PASSWORD


def test_the_containers_take_every_setting_of_webhooks() -> None:
    """From .env; and where it says nothing, what the programs would take by themselves."""
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
    """Compose refuses to start without IMPASTO_REDIS_PASSWORD, the one thing to set, and .env.example names it.

    Without IMPASTO_WEBHOOK_SECRET it sends no webhooks.
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
def test_a_container_can_do_little_harm(service: dict[str, Any]) -> None:
    """No container is root, has capabilities, can gain any, or can write to its image; process 1 reaps."""
    assert "build" in service or not service["user"].startswith(("0", "root"))
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["init"] is True


def test_programs_start_once_redis_answers() -> None:
    """API and worker wait for a healthy Redis."""
    for name in IMAGES:
        assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_the_courier_runs_from_the_apis_image_with_the_same_settings() -> None:
    """Webhooks are signed with the secret under which the API takes them, by a program that is in the image."""
    courier = SERVICES["webhooks"]
    *python, module = courier["command"]
    assert (["python", "-m"], SERVICES["api"]["build"]) == (python, courier["build"])
    assert find_spec(module) is not None
    assert module.partition(".")[0] in API.copied
    assert courier["environment"].items() <= SERVICES["api"]["environment"].items()
    assert courier["environment"]["IMPASTO_WEBHOOK_SECRET"] == SECRET
    assert SERVICES["api"]["depends_on"] == courier["depends_on"]


def test_the_worker_reserves_a_gpu_unless_told_otherwise() -> None:
    """The worker gets one NVIDIA GPU; docker-compose.cpu.yml takes that back, and changes nothing else."""
    reservations = SERVICES["worker"]["deploy"]["resources"]["reservations"]
    assert reservations == {"devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}
    without = _compose()
    del without["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert without == _merged(_compose(), _compose("docker-compose.cpu.yml"))
