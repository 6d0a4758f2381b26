"""The page and the client through nginx, with TLS and under a path: the example of the docs."""

import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from page_actions import (
    OpenPage,
    choose_examples,
    expect,
    expect_end,
    needs_chromium,
    submit_job,
    tile_of,
)

from cli.local_service import free_port
from impasto import Client, Status

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "nginx.md"

pytestmark = [
    pytest.mark.e2e,
    needs_chromium,
    pytest.mark.skipif(NGINX is None, reason="no nginx here; `make browser` installs it"),
]

# The process itself serves, so that it keeps the test's user; it writes into {folder} only.
_CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {servers}
}}
"""


class Proxy:
    """An nginx with one address that strips the path, and one that does not."""

    def __init__(self, folder: Path, service_port: int) -> None:
        self.ca_file = folder / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
            str(folder / "server.pem")
        )
        (example,) = re.findall(r"```nginx\n(.*?)```", DOCS.read_text(), re.DOTALL)
        for name in ("/etc/ssl/example.org.pem", "/etc/ssl/example.org.key"):
            example = example.replace(name, str(folder / "server.pem"))
        example = example.replace("127.0.0.1:8000", f"127.0.0.1:{service_port}")
        self._ports = {"stripped": free_port(), "unstripped": free_port()}
        servers = {
            "stripped": example,
            "unstripped": example.replace(f":{service_port}/;", f":{service_port};"),
        }
        assert servers["stripped"] != servers["unstripped"]
        text = "".join(
            servers[name].replace("listen 443", f"listen 127.0.0.1:{port}")
            for name, port in self._ports.items()
        )
        self._file = folder / "nginx.conf"
        self._file.write_text(_CONFIGURATION.format(folder=folder, servers=text))
        self._log = folder / "error.log"

    def url(self, name: str) -> str:
        return f"https://localhost:{self._ports[name]}"

    def start(self) -> subprocess.Popen[bytes]:
        command = [str(NGINX), "-e", str(self._log), "-c", str(self._file)]
        return subprocess.Popen(command)

    def is_up(self) -> bool:
        try:
            return httpx2.get(f"{self.url('stripped')}/impasto/livez", **self.options).is_success
        except httpx2.TransportError:
            return False

    @property
    def options(self) -> dict[str, Any]:
        """What httpx needs for a request to it."""
        return {"verify": ssl.create_default_context(cafile=self.ca_file), "trust_env": False}


@pytest.fixture(scope="module")
def nginx(
    tmp_path_factory: pytest.TempPathFactory, shared_service: Any, until: Callable[..., None]
) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path_factory.mktemp("nginx"), shared_service.port)
    process = proxy.start()
    until(proxy.is_up, "nginx answers")
    yield proxy
    process.terminate()
    process.wait(20)


@pytest.fixture(params=["stripped", "unstripped"])
def url(request: pytest.FixtureRequest, nginx: Proxy) -> str:
    return nginx.url(request.param)


def test_the_page_paints_and_keeps_its_links_under_a_path(open_page: OpenPage, url: str) -> None:
    page = open_page("about:blank", url=url, ignore_https_errors=True)
    failures: list[str] = []

    def check(response: Any) -> None:
        is_inside = response.url.startswith((f"{url}/impasto/", "blob:", "data:"))
        if not is_inside or response.status >= 400:
            failures.append(f"{response.status} {response.url}")

    page.on("response", check)
    page.goto("/impasto/")
    choose_examples(page)
    address = submit_job(page)
    assert re.fullmatch(rf"{url}/impasto/j/job_\w+", address)
    expect_end(page)
    expect(page.locator("#frames")).to_be_visible()
    page.click(".menu summary")
    page.click("#show-command")
    expect(page.locator("#command")).to_contain_text(f"{url}/impasto/v1/jobs")
    page.click("#close-command")
    page.wait_for_function("() => !history.state?.layers")  # the dialog takes its entry with it

    page.reload()
    expect_end(page)
    page.locator("header .brand").click()
    assert page.url == f"{url}/impasto/"
    job_id = address.rpartition("/")[2]
    expect(tile_of(page, job_id).locator("img")).to_be_visible()
    tile_of(page, job_id).locator("a").click()
    assert page.url == address
    expect_end(page)
    page.click("#reuse")
    page.wait_for_url(f"{url}/impasto/")
    page.go_back()
    page.click(".menu summary")
    page.click("#delete")
    page.wait_for_url(f"{url}/impasto/")
    page.get_by_role("link", name="API").click()
    page.wait_for_url(f"{url}/impasto/docs")
    assert failures == []


def test_the_docs_send_requests_under_the_path(open_page: OpenPage, url: str) -> None:
    page = open_page("/impasto/docs", url=url, ignore_https_errors=True)
    operation = page.locator(".opblock", has_text="/v1/models")
    operation.locator(".opblock-summary").click()
    operation.locator(".try-out__btn").click()
    operation.locator(".execute").click()

    expect(operation.locator(".request-url")).to_contain_text(f"{url}/impasto/v1/models")
    answer = operation.locator(".live-responses-table tbody .response-col_status")
    expect(answer).to_have_text("200")


def test_the_address_without_the_last_slash_leads_to_the_page(
    open_page: OpenPage, url: str
) -> None:
    page = open_page("/impasto", url=url, ignore_https_errors=True)

    assert page.url == f"{url}/impasto/"
    expect(page.locator("#photo .sample img").first).to_be_visible()


def test_headers_of_a_client_do_not_pass_the_proxy(nginx: Proxy, url: str) -> None:
    headers = {"X-Forwarded-Prefix": "/evil"}
    answer = httpx2.get(f"{url}/impasto/openapi.json", headers=headers, **nginx.options)

    assert answer.json()["servers"] == [{"url": "/impasto"}]


def test_client_and_command_line_work_under_the_path(
    nginx: Proxy,
    url: str,
    pictures: tuple[Path, Path],
    run_command: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the client follows a link of the service, to the next page of a list."""
    monkeypatch.setattr("impasto.client.PAGE_JOBS", 1)
    with Client(f"{url}/impasto/", ca_file=nginx.ca_file) as client:
        ids = {client.submit(*pictures, size=64, iterations=2).id for _ in range(3)}
        last = [list(client.follow(job_id))[-1] for job_id in ids]

        assert [job.status for job in last] == [Status.SUCCEEDED] * 3
        assert client.result(last[0].id).startswith(b"\x89PNG")
        assert ids <= {job.id for job in client.jobs()}
        page = f"{url}/impasto/j/{last[0].id}"
        watched = run_command("watch", page, "--ca-file", nginx.ca_file)
        assert watched.returncode == 0, watched.stderr
