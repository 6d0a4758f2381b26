"""The tools: paint, follow, steer, cancel, fetch. Their parameters are the service's own schema.

A tool's error is the service's sentence with its code, so that an agent can correct its call.
"""

import base64
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

import anyio
from anyio import to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import Field, WithJsonSchema

from impasto import Client, Form, Job, Status, errors
from impasto_mcp.folders import Folders
from impasto_mcp.tasks import Tasks, accepts_tasks, describe_progress

SHOWN_PX = 768  # width of the picture that an agent sees; the file has the full size
MAX_WAIT_SECONDS = 600

INSTRUCTIONS = """Impasto paints a photo in the style of one or more paintings. Start with
list_pictures and list_presets. `paint` submits a job and waits for it. A job takes seconds to
minutes: with wait=false, follow it with wait_for_job. While it runs, steer_job changes its weights,
such as strength, and get_preview shows the picture so far."""

JobId = Annotated[str, Field(description="The id of a job: job_…")]
Picture = Annotated[
    str,
    Field(description="A path from list_pictures, or the sha256:… of a stored picture."),
]
Result = TypeVar("Result")
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
CHANGES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)


def create_server(client: Client, folders: Folders) -> MCPServer:
    """Return a server for the service of this client and the files of these folders."""
    tools = _Tools(client, folders)
    form = _read_form(client)
    server = MCPServer(
        "impasto",
        title="Impasto",
        instructions=INSTRUCTIONS,
        log_level="WARNING",
        extensions=[Tasks(tools.find_job, tools.cancel_found, tools.describe_result)],
    )
    parameters = form.parameters if form else None
    weights = parameters and {
        name: schema for name, schema in parameters.items() if schema.get("updatable")
    }
    presets = Literal[*(one.name for one in form.presets)] if form else str
    # mypy: the values are known only at run time.
    Preset = Annotated[presets, Field(description="See list_presets.")]  # type: ignore[valid-type] # noqa: N806
    Parameters = Annotated[dict[str, Any], WithJsonSchema(_object(parameters))]  # noqa: N806
    Weights = Annotated[dict[str, Any], WithJsonSchema(_object(weights))]  # noqa: N806

    @server.tool(annotations=CHANGES)
    async def paint(  # noqa: PLR0917 - the SDK passes them by name
        ctx: Context,
        content: Picture,
        styles: Annotated[list[Picture], Field(min_length=1, max_length=8)],
        preset: Preset | None = None,
        parameters: Parameters | None = None,
        wait: Annotated[bool, Field(description="false: return the job's id at once.")] = True,
    ) -> CallToolResult:
        """Paint the photo `content` in the style of the paintings `styles`.

        Returns the picture, small, and the path of the file in full size.
        """
        return await tools.paint(
            ctx, content, styles, {**(parameters or {}), "preset": preset}, wait=wait
        )

    @server.tool(annotations=CHANGES)
    async def steer_job(job_id: JobId, parameters: Weights) -> dict[str, Any]:
        """Change weights of a queued or running job. The next preview shows the effect."""
        return _summarize(await _call(client.update, job_id, **parameters))

    for tool, annotations in (
        (tools.wait_for_job, READS),
        (tools.get_job, READS),
        (tools.get_preview, READS),
        (tools.get_result, CHANGES),  # writes a file
        (tools.cancel_job, CHANGES),
        (tools.list_jobs, READS),
        (tools.list_pictures, READS),
        (tools.list_presets, READS),
        (tools.list_parameters, READS),
    ):
        server.add_tool(tool, annotations=annotations)
    return server


def _read_form(client: Client) -> Form | None:
    """Return the service's form, or None while the service does not answer."""
    with suppress(errors.ImpastoError):
        return client.form()
    return None


def _object(properties: dict[str, Any] | None) -> dict[str, Any]:
    if properties is None:
        return {"type": "object", "description": "See list_parameters."}
    return {"type": "object", "properties": properties, "additionalProperties": False}


class _Tools:
    """What the tools do. Each raises ToolError with the sentence of the service."""

    def __init__(self, client: Client, folders: Folders) -> None:
        self._client, self._folders = client, folders

    async def paint(
        self,
        ctx: Context,
        content: str,
        styles: list[str],
        parameters: dict[str, Any],
        *,
        wait: bool,
    ) -> CallToolResult:
        """Submit a job; wait for it unless the caller gets a task or its id."""
        pictures = [self._find_picture(name) for name in (content, *styles)]
        job = await _call(self._client.submit, pictures[0], pictures[1:], **parameters)
        if not wait or accepts_tasks(ctx.request_context):
            return _answer(job, [])
        try:
            job = await self._follow(ctx, job.id)
        except anyio.get_cancelled_exc_class():
            # Nobody waits for it any more, and the caller does not know its id.
            with anyio.CancelScope(shield=True):
                await _call(self._client.cancel, job.id)
            raise
        return await self.describe_result(job)

    def _find_picture(self, name: str) -> str:
        if name.startswith("sha256:"):
            return name
        try:
            return str(self._folders.find(name))
        except OSError as error:
            raise ToolError(str(error)) from error

    async def wait_for_job(
        self,
        ctx: Context,
        job_id: JobId,
        seconds: Annotated[float, Field(gt=0, le=MAX_WAIT_SECONDS)] = 60,
    ) -> dict[str, Any]:
        """Wait until the job has ended, at most this long. It goes on if the wait ends first."""
        try:
            return _summarize(await self._follow(ctx, job_id, seconds))
        except TimeoutError:
            return _summarize(await _call(self._client.job, job_id))

    async def _follow(self, ctx: Context, job_id: str, seconds: float | None = None) -> Job:
        """Return the ended job; reports progress from 0 to 1. Raises TimeoutError."""
        states = self._client.follow(job_id, seconds)
        while (job := await _call(_next, states)) and not job.has_ended:
            value = job.progress.value if job.progress else 0.0
            await ctx.report_progress(value, 1.0, f"{job.id}: {describe_progress(job)}")
        assert job is not None, "the last state is that of an ended job"
        return job

    async def get_job(self, job_id: JobId) -> dict[str, Any]:
        """Return the job's status and progress."""
        return _summarize(await _call(self._client.job, job_id))

    async def get_preview(self, job_id: JobId) -> list[ImageContent]:
        """Return a small picture of the job's current state."""
        return [_image(await _call(self._client.preview, job_id))]

    async def get_result(self, job_id: JobId) -> CallToolResult:
        """Save the picture of an ended job as a file, and return it, small."""
        return await self.describe_result(await _call(self._client.job, job_id))

    async def describe_result(self, job: Job) -> CallToolResult:
        """Return the picture and its file, or an error that says why there is none."""
        if not job.outputs:
            reason = job.error.message if job.error else "It has no picture."
            return _answer(job, [TextContent(text=f"{job.status}: {reason}")], is_error=True)
        data = await _call(self._client.result, job.id)
        shown = await _call(self._client.result, job.id, "jpeg", SHOWN_PX)
        path = await to_thread.run_sync(self._folders.save, f"{job.id}.png", data)
        output = job.outputs[0]
        text = f"{job.status}: {path} ({output.width} × {output.height} px)"
        return _answer(job, [TextContent(text=text), _image(shown)], file=str(path))

    async def cancel_job(self, job_id: JobId) -> dict[str, Any]:
        """Cancel the job. If it runs, its current picture becomes the result."""
        return _summarize(await _call(self._client.cancel, job_id))

    async def list_jobs(
        self, limit: Annotated[int, Field(ge=1, le=100)] = 10
    ) -> list[dict[str, Any]]:
        """List your jobs, newest first."""
        jobs = await _call(lambda: list(islice(self._client.jobs(), limit)))
        return [_summarize(job) for job in jobs]

    async def list_pictures(self) -> list[str]:
        """List the pictures that `paint` may read."""
        return await to_thread.run_sync(self._folders.pictures)

    async def list_presets(self) -> list[dict[str, Any]]:
        """List the named sets of parameters."""
        return [asdict(preset) for preset in await _call(self._client.presets)]

    async def list_parameters(self) -> dict[str, Any]:
        """Return the JSON schema of each parameter of `paint`."""
        return (await _call(self._client.form)).parameters

    async def find_job(self, job_id: str) -> Job:
        """Return the job. Raises MCPError, as the methods of tasks do."""
        return await _as_protocol_error(self._client.job, job_id)

    async def cancel_found(self, job_id: str) -> Job:
        """Cancel the job. Raises MCPError."""
        return await _as_protocol_error(self._client.cancel, job_id)


async def _call(function: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """Call the client in a thread. Raises ToolError for its errors."""
    try:
        return await to_thread.run_sync(partial(function, *args, **options), abandon_on_cancel=True)
    except errors.ImpastoError as error:
        raise ToolError(f"{error.code}: {error.message}") from error
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise ToolError(str(error)) from error


async def _as_protocol_error(function: Callable[[str], Job], job_id: str) -> Job:
    try:
        return await _call(function, job_id)
    except ToolError as error:
        raise MCPError(INVALID_PARAMS, str(error)) from error


def _next(states: Iterator[Job]) -> Job | None:
    return next(states, None)


def _answer(
    job: Job, content: list[TextContent | ImageContent], *, is_error: bool = False, **more: str
) -> CallToolResult:
    summary = {**_summarize(job), **more}
    content = content or [TextContent(text=f"{job.id}: {describe_progress(job)}")]
    return CallToolResult(content=content, structured_content=summary, is_error=is_error)


def _image(data: bytes) -> ImageContent:
    return ImageContent(data=base64.b64encode(data).decode(), mime_type="image/jpeg")


def _summarize(job: Job) -> dict[str, Any]:
    """Return what an agent needs of a job."""
    summary: dict[str, Any] = {
        "id": job.id,
        "status": str(job.status),
        "state": describe_progress(job),
        "created_at": job.created_at.isoformat(),
        "parameters": job.input.spec,
        "warnings": job.warnings,
    }
    if job.error is not None:
        summary["error"] = asdict(job.error)
    if job.status is Status.SUCCEEDED:
        summary["output"] = asdict(job.outputs[0])
    return summary
