"""The MCP server over stdio, driven by the SDK's own client, against a real service."""

import base64
import io
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from impasto_mcp.folders import Folders
from impasto_mcp.server import create_server
from mcp import Client, MCPError, StdioServerParameters
from mcp.client import ClientExtension
from mcp.client.extension import ClaimContext, ResultClaim
from mcp_types import CallToolResult, Request, Result
from PIL import Image
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

import impasto
from cli.local_service import free_port
from core.style.spec import PARAMETERS, UPDATABLE

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TASKS = "io.modelcontextprotocol/tasks"
SMALL = {"size": 64, "iterations": 4, "scales": 1}
LONG = {"size": 96, "iterations": 2000, "scales": 1}  # runs until it is canceled

Session = Callable[[Client], Awaitable[Any]]


@pytest.fixture
def talk(
    shared_service: Any, pictures: tuple[Path, Path], tmp_path: Path
) -> Callable[[Session], Any]:
    """A function that runs a session with a server, whose results go to tmp_path."""

    def run(session: Session, **options: Any) -> Any:
        server = StdioServerParameters(
            command=sys.executable,
            args=["-m", "impasto_mcp", f"--folder={pictures[0].parent}", f"--output={tmp_path}"],
            env={
                "PYTHONPATH": str(ROOT / "integrations" / "mcp"),
                "IMPASTO_URL": shared_service.url,
            },
        )

        async def main() -> Any:
            async with Client(server, **options) as client:
                with anyio.fail_after(60):
                    return await session(client)

        return anyio.run(main)

    return run


def _text(result: CallToolResult) -> str:
    return "".join(block.text for block in result.content if block.type == "text")


def test_a_picture_is_painted_with_progress_shown_and_saved(
    talk: Any, shared_service: Any, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def session(client: Client) -> Any:
        async def record(value: float, total: float | None, message: str | None) -> None:
            seen.append((value, total, message))

        listed = await client.call_tool("list_pictures")
        photo, painting = (path.name for path in pictures)
        arguments = {"content": photo, "styles": [painting], "preset": "brushwork"}
        arguments["parameters"] = {**SMALL, "iterations": 60}
        return listed, await client.call_tool("paint", arguments, progress_callback=record)

    listed, painted = talk(session)

    assert listed.structured_content == {"result": sorted(map(str, pictures))}
    assert not painted.is_error, _text(painted)
    job = shared_service.client.job(painted.structured_content["id"])
    assert (job.input.spec["size"], job.input.spec["style_scale"]) == (64, 1.6)
    file = Path(painted.structured_content["file"])
    assert file == tmp_path / f"{job.id}.png"
    assert file.read_bytes() == shared_service.client.result(job.id)
    (image,) = (block for block in painted.content if block.type == "image")
    with Image.open(io.BytesIO(base64.b64decode(image.data))) as shown:
        assert (shown.format, shown.size) == ("JPEG", (64, 48))
    assert seen
    assert all(job.id in (message or "") and total == 1 for _, total, message in seen)
    assert [value for value, *_ in seen] == sorted(value for value, *_ in seen)


def test_a_running_job_is_followed_steered_previewed_and_canceled(
    talk: Any, shared_service: Any, pictures: tuple[Path, Path]
) -> None:
    async def session(client: Client) -> Any:
        arguments = {"content": str(pictures[0]), "styles": [str(pictures[1])], "wait": False}
        started = await client.call_tool("paint", {**arguments, "parameters": LONG})
        job = {"job_id": started.structured_content["id"]}
        waited = await client.call_tool("wait_for_job", {**job, "seconds": 2})
        steered = await client.call_tool("steer_job", {**job, "parameters": {"strength": 0.9}})
        while (await client.call_tool("get_preview", job)).is_error:
            await client.call_tool("wait_for_job", {**job, "seconds": 0.2})
        preview = await client.call_tool("get_preview", job)
        await client.call_tool("cancel_job", job)
        ended = await client.call_tool("wait_for_job", job)
        return waited, steered, preview, ended, await client.call_tool("get_result", job)

    waited, steered, preview, ended, result = talk(session)

    assert waited.structured_content["status"] in ("queued", "running")
    assert steered.structured_content["parameters"]["strength"] == 0.9
    assert base64.b64decode(preview.content[0].data).startswith(b"\xff\xd8")
    job = shared_service.client.job(ended.structured_content["id"])
    assert (ended.structured_content["status"], job.input.spec["strength"]) == ("canceled", 0.9)
    assert "canceled: " in _text(result)
    assert Path(result.structured_content["file"]).exists()


def test_a_call_that_is_canceled_cancels_its_job(
    talk: Any, shared_service: Any, pictures: tuple[Path, Path], until: Any
) -> None:
    started: list[str] = []

    async def session(client: Client) -> None:
        async with anyio.create_task_group() as group:

            async def record(_: float, __: float | None, message: str | None) -> None:
                started.append((message or "").partition(":")[0])
                group.cancel_scope.cancel()

            names = {"content": str(pictures[0]), "styles": [str(pictures[1])]}
            await client.call_tool("paint", {**names, "parameters": LONG}, progress_callback=record)
        # The server is still there: it answers.
        await client.call_tool("list_jobs", {"limit": 1})

    talk(session)

    until(lambda: shared_service.client.job(started[0]).status == "canceled", "canceled")


class Task(Result):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    result_type: Literal["task"] = Field("task", alias="resultType")
    task_id: str
    status: str
    poll_interval_ms: int


class TaskState(Task):
    result_type: Literal["complete"] = Field("complete", alias="resultType")  # type: ignore[assignment]
    result: CallToolResult | None = None


class TaskRequest(Request[Any, str]):
    name_param = "taskId"


class Tasks(ClientExtension):
    """A client's side of the Tasks extension: it polls, and steers a job on its way."""

    identifier = TASKS

    def __init__(self) -> None:
        self.seen: list[TaskState] = []

    async def send(self, session: Any, name: str, task_id: str, **params: Any) -> TaskState | None:
        request = TaskRequest(method=f"tasks/{name}", params={"taskId": task_id, **params})
        kind = TaskState if name == "get" else Result
        answer = await session.send_request(request, kind)
        return answer if isinstance(answer, TaskState) else None

    async def poll(self, task: Task, context: ClaimContext) -> CallToolResult:
        await self.send(context.session, "update", task.task_id, inputResponses={})
        while (state := await self.send(context.session, "get", task.task_id)) is not None:
            self.seen.append(state)
            if state.status != "working":
                break
            await anyio.sleep(0.1)
        assert state is not None
        return state.result or CallToolResult(content=[], is_error=True)

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Task, resolve=self.poll)]


def test_a_client_with_the_tasks_extension_gets_a_task_whose_id_is_the_job(
    talk: Any, shared_service: Any, pictures: tuple[Path, Path]
) -> None:
    tasks = Tasks()

    async def session(client: Client) -> Any:
        names = {"content": str(pictures[0]), "styles": [str(pictures[1])]}
        painted = await client.call_tool("paint", {**names, "parameters": SMALL})
        direct = await client.call_tool("paint", {**names, "parameters": LONG, "wait": False})
        task_id = direct.structured_content["id"]
        await tasks.send(client.session, "cancel", task_id)
        while (state := await tasks.send(client.session, "get", task_id)).status == "working":
            await anyio.sleep(0.1)
        with pytest.raises(MCPError, match="job_not_found"):
            await tasks.send(client.session, "get", "job_" + "a" * 26)
        return painted, state, client.server_capabilities

    painted, canceled, capabilities = talk(session, extensions=[tasks])

    assert TASKS in capabilities.extensions
    assert (canceled.status, canceled.result) == ("cancelled", None)
    job = shared_service.client.job(tasks.seen[-1].task_id)
    assert (job.status, tasks.seen[-1].status) == ("succeeded", "completed")
    assert {state.status for state in tasks.seen[:-1]} <= {"working"}
    assert Path(painted.structured_content["file"]).name == f"{job.id}.png"
    assert [block.type for block in painted.content] == ["text", "image"]


def test_the_schemas_of_the_tools_are_those_of_the_service(
    shared_service: Any, tmp_path: Path
) -> None:
    tools, listed = _ask(shared_service.client, tmp_path, "list_parameters")

    def of(tool: str) -> set[str]:
        schema = tools[tool].input_schema["properties"]["parameters"]
        if "anyOf" in schema:
            schema = schema["anyOf"][0]
        return set(schema["properties"])

    assert of("paint") == set(PARAMETERS) == set(listed.structured_content)
    assert of("steer_job") == set(UPDATABLE)
    assert all(tool.description for tool in tools.values())


def test_a_server_whose_service_is_away_starts_and_says_so(tmp_path: Path) -> None:
    with impasto.Client(f"http://127.0.0.1:{free_port()}") as away:
        tools, result = _ask(away, tmp_path, "list_presets")

    assert result.is_error
    assert "service_unreachable" in _text(result)
    assert "paint" in tools


def _ask(service: impasto.Client, folder: Path, tool: str) -> tuple[dict[str, Any], CallToolResult]:
    """Return the tools of a server in this process, and the answer of one of them."""

    async def main() -> Any:
        async with Client(create_server(service, Folders([folder], folder))) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            return tools, await client.call_tool(tool)

    return anyio.run(main)


# A refused call by what it sends: what the refusal says.
REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "value": ({"parameters": {"size": 7}}, "bad_spec"),
    "other file": ({"content": "/etc/passwd"}, "list_pictures"),
    "picture elsewhere": ({}, "list_pictures"),
    "parent folder": ({"content": "../secret.png"}, "list_pictures"),
    "URL": ({"content": "https://example.org/photo.jpg"}, "list_pictures"),
    "link out of the folder": ({"content": "link.png"}, "list_pictures"),
    "not a picture": ({"content": "notes.txt"}, "list_pictures"),
    "digest": ({"styles": ["sha256:" + "0" * 64]}, "image_not_found"),
}


def test_a_refusal_says_what_to_do_and_no_file_outside_the_folders_is_sent(
    talk: Any, shared_service: Any, pictures: tuple[Path, Path]
) -> None:
    folder = pictures[0].parent
    secret, link, notes = folder.parent / "secret.png", folder / "link.png", folder / "notes.txt"
    secret.write_bytes(pictures[1].read_bytes())
    link.symlink_to(secret)
    notes.write_text("private")

    async def session(client: Client) -> Any:
        names = {"content": pictures[0].name, "styles": [pictures[1].name], "wait": False}
        refused = {}
        for name, (arguments, _) in REFUSALS.items():
            sent = {"content": str(secret)} if name == "picture elsewhere" else arguments
            refused[name] = await client.call_tool("paint", names | sent)
        return refused, await client.call_tool("list_pictures")

    before = [job.id for job in shared_service.client.jobs()]
    try:
        refused, listed = talk(session)
    finally:
        for path in (secret, link, notes):
            path.unlink()

    assert all(result.is_error for result in refused.values())
    assert {name: REFUSALS[name][1] in _text(result) for name, result in refused.items()} == (
        dict.fromkeys(REFUSALS, True)
    )
    assert listed.structured_content == {"result": sorted(map(str, pictures))}
    assert [job.id for job in shared_service.client.jobs()] == before
