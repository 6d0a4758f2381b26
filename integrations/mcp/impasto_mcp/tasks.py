"""The Tasks extension (io.modelcontextprotocol/tasks, 2026-07-28): a job is a task.

The id of a task is that of its job, so the service keeps the tasks, and a task outlives this
process. A client that does not declare the extension gets the result of the call itself.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp_types import CallToolRequestParams, CallToolResult, RequestParams
from pydantic import Field

from impasto import Job, Status

IDENTIFIER = "io.modelcontextprotocol/tasks"
VERSIONS = frozenset({"2026-07-28"})
POLL_MILLISECONDS = 1000
TOOL = "paint"  # the tool that may answer with a task


class TaskParams(RequestParams):
    """The parameters of tasks/get, tasks/update and tasks/cancel."""

    task_id: str = Field(alias="taskId")


def accepts_tasks(ctx: ServerRequestContext[Any, Any]) -> bool:
    """Whether the client has declared the extension with this request."""
    capabilities = ctx.session.client_capabilities
    return IDENTIFIER in ((capabilities and capabilities.extensions) or {})


class Tasks(Extension):
    """The three methods, and the answer of the tool as a task.

    get_job and cancel_job take a job's id and raise MCPError; get_result returns what the tool
    answers for a job that has ended.
    """

    identifier = IDENTIFIER

    def __init__(
        self,
        get_job: Callable[[str], Awaitable[Job]],
        cancel_job: Callable[[str], Awaitable[Job]],
        get_result: Callable[[Job], Awaitable[CallToolResult]],
    ) -> None:
        self._get_job, self._cancel_job, self._get_result = get_job, cancel_job, get_result

    def methods(self) -> Sequence[MethodBinding]:
        """Return the methods, for the protocol version that the extension is defined for."""
        handlers = {"get": self._get, "update": self._update, "cancel": self._cancel}
        return [
            MethodBinding(f"tasks/{name}", TaskParams, handler, VERSIONS)
            for name, handler in handlers.items()
        ]

    async def intercept_tool_call(
        self,
        params: CallToolRequestParams,
        ctx: ServerRequestContext[Any, Any],
        call_next: CallNext,
    ) -> HandlerResult:
        """Answer with a task where the tool has submitted a job that it does not wait for."""
        result = await call_next(ctx)
        if params.name != TOOL or not accepts_tasks(ctx):
            return result
        assert isinstance(result, CallToolResult)
        wants_task = (params.arguments or {}).get("wait", True)
        if result.is_error or not wants_task or result.structured_content is None:
            return result
        job = await self._get_job(result.structured_content["id"])
        return {"resultType": "task", **_describe(job)}

    async def _get(self, _: ServerRequestContext[Any, Any], params: TaskParams) -> HandlerResult:
        job = await self._get_job(params.task_id)
        task = _describe(job)
        if task["status"] == "completed":
            result = await self._get_result(job)
            task["result"] = result.model_dump(mode="json", by_alias=True, exclude_none=True)
        return task

    async def _update(self, _: ServerRequestContext[Any, Any], params: TaskParams) -> HandlerResult:
        """Acknowledge: a job never asks for input. The tool steer_job changes a running one."""
        await self._get_job(params.task_id)
        return {}

    async def _cancel(self, _: ServerRequestContext[Any, Any], params: TaskParams) -> HandlerResult:
        await self._cancel_job(params.task_id)
        return {}


def describe_progress(job: Job) -> str:
    """Return a sentence about the state of a job."""
    if job.queue is not None:
        return f"queued, {job.queue.position} jobs before it"
    if job.progress is None or job.has_ended:
        return str(job.status)
    left = job.progress.seconds_left
    rest = "" if left is None else f", about {left:.0f} s left"
    return f"{job.status}, {job.progress.value:.0%}{rest}"


def _describe(job: Job) -> dict[str, Any]:
    # A failed job is a completed task with an error: the status `failed` is for the protocol's own.
    ended = "cancelled" if job.status is Status.CANCELED else "completed"
    lifetime = job.expires_at and job.expires_at - job.created_at
    return {
        "taskId": job.id,
        "status": ended if job.has_ended else "working",
        "statusMessage": describe_progress(job),
        "createdAt": _format(job.created_at),
        "lastUpdatedAt": _format(job.completed_at or job.started_at or job.created_at),
        "ttlMs": int(lifetime.total_seconds() * 1000) if lifetime else None,
        "pollIntervalMs": POLL_MILLISECONDS,
    }


def _format(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
