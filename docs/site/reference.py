"""The pages of the reference, generated from the code."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from prometheus_client.core import Metric
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from api import metrics, service_metrics
from api.app import create_app
from api.http.problems import REFUSALS, STATUS
from api.settings import ApiSettings
from cli.commands import impasto
from core import errors
from core.config import Settings
from core.jobs.models import ServiceLoad, WorkerInfo, WorkerUse
from core.jobs.statistics import LiveWorker, ServiceStatistics
from core.style.presets import PRESETS
from core.style.spec import StyleSpec
from worker.settings import WorkerSettings

Json = dict[str, Any]


def render_all() -> dict[str, str]:
    """Return the text of each generated page, by its path in the site."""
    return {
        "reference/routes.md": render_routes(),
        "reference/settings.md": render_settings(),
        "reference/parameters.md": render_parameters(),
        "reference/commands.md": render_commands(),
        "reference/errors.md": render_errors(),
        "reference/metrics.md": render_metrics(),
    }


def _table(head: str, rows: list[str]) -> list[str]:
    columns = head.count("|") - 1
    return ["", head, "|" + "---|" * columns, *rows, ""]


def _cell(text: object) -> str:
    """Return the text as the cell of a table: in one line, with its bars and brackets escaped."""
    escaped = str(text).replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.split())


def render_routes() -> str:
    """Return each operation of the OpenAPI document with its parameters and answers."""
    with tempfile.TemporaryDirectory() as folder:
        shared = Settings(redis_url="redis://127.0.0.1:1/0", data_dir=Path(folder))
        document = create_app(shared, ApiSettings()).openapi()
    lines = [
        "# Routes",
        "",
        "Generated from the OpenAPI document; with examples: [the API](../api.md).",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += ["", f"## {method.upper()} {path}", "", f"**{operation['summary']}.**"]
            lines += ["", operation.get("description", "").replace("<", "&lt;")]
            lines += _describe_inputs(operation, document["components"]["schemas"])
            rows = [
                f"| {status} | {_cell(', '.join(answer.get('content', {})) or '–')} |"
                for status, answer in operation["responses"].items()
                if "$ref" not in answer
            ]
            lines += _table("| status | content |", rows)
    return "\n".join(lines) + "\n"


def _describe_inputs(operation: Json, schemas: Json) -> list[str]:
    rows = [
        f"| `{one['name']}` | {one['in']} | {_cell(one.get('description', ''))} |"
        for one in operation.get("parameters", [])
    ]
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        schema = media["schema"]
        if "$ref" in schema:
            schema = schemas[schema["$ref"].rpartition("/")[2]]
        rows += [
            f"| `{name}` | {kind} | {_cell(field.get('description', ''))} |"
            for name, field in schema.get("properties", {}).items()
        ]
    return _table("| name | in | |", rows) if rows else []


def render_settings() -> str:
    """Return each setting with its default."""
    kinds: list[type[BaseSettings]] = [Settings, ApiSettings, WorkerSettings]
    lines = ["# Settings", "", "Environment variables, read once at start."]
    for kind in kinds:
        prefix = kind.model_config["env_prefix"]
        rows = [
            f"| `{prefix}{name.upper()}` | {_default(field)} | {_cell(field.description)} |"
            for name, field in kind.model_fields.items()
        ]
        lines += ["", f"## {prefix}*", *_table("| variable | default | |", rows)]
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "a folder of the user"
    value = getattr(field.default, "get_secret_value", lambda: field.default)()
    return f"`{_cell(value)}`" if value not in (None, "") else "none"


def render_parameters() -> str:
    """Return each parameter of a job with its range, and each preset."""
    lines = ["# Parameters", "", "The fields of StyleSpec: what a job may set."]
    schema = StyleSpec.model_json_schema()["properties"]
    rows = []
    for name, field in schema.items():
        bounds = [field[limit] for limit in ("minimum", "maximum") if limit in field]
        kind = ", ".join(map(str, field["enum"])) if "enum" in field else field["type"]
        allowed = f"{kind}, {' to '.join(f'{bound:g}' for bound in bounds)}" if bounds else kind
        steered = "yes" if field.get("updatable") else ""
        default = json.dumps(field["default"]).strip('"')
        rows.append(
            f"| `{name}` | `{_cell(default)}` | {_cell(allowed)} | {steered} "
            f"| {_cell(field['description'])} |"
        )
    lines += _table("| name | default | values | in a run | |", rows)
    presets = [
        f"| `{name}` | {_cell(preset.description)} | `{json.dumps(dict(preset.parameters))}` |"
        for name, preset in PRESETS.items()
    ]
    return "\n".join([*lines, "## Presets", *_table("| name | | sets |", presets)])


def render_commands() -> str:
    """Return the help of each command."""
    lines = ["# Commands", "", "What `impasto COMMAND --help` prints."]
    for name, command in _walk_commands("impasto", impasto):
        context = click.Context(command, info_name=name, max_content_width=100)
        lines += ["", f"## {name}", "", "```text", command.get_help(context), "```"]
    return "\n".join(lines) + "\n"


def _walk_commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for child, inner in sorted(command.commands.items()):
            yield from _walk_commands(f"{name} {child}", inner)


def render_errors() -> str:
    """Return each code with its status and sentence."""
    rows = [
        f"| `{kind.code}` | {_status(kind) or '–'} | {_cell(kind.__doc__)} |"
        for kind in sorted(_walk_errors(errors.ImpastoError), key=lambda kind: kind.code)
    ]
    rows += [
        f"| `{code}` | {status} | {_cell(text)} |" for code, (status, text) in REFUSALS.items()
    ]
    intro = "A code is stable. One without a status is that of a failed job, or of a command."
    return "\n".join(["# Errors", "", intro, *_table("| code | status | |", rows)])


def _status(kind: type[errors.ImpastoError]) -> int | None:
    """Return the HTTP status of an error that can be an answer."""
    nearest = next(base for base in kind.__mro__ if base in STATUS)
    is_inherited = nearest is errors.ImpastoError and kind is not nearest
    return None if is_inherited else STATUS[nearest]


def _walk_errors(kind: type[errors.ImpastoError]) -> Iterator[type[errors.ImpastoError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _walk_errors(child)


# The labels of a family are those of its samples, so each family must have one.
_WORKER = LiveWorker(
    host="host",
    info=WorkerInfo(device="card", precision="float32", network="vgg19", networks=[]),
    use=WorkerUse(device="cuda:0"),
)
_FIGURES = service_metrics.Figures(
    load=ServiceLoad(queued=0, running=0, workers=0, average_job_seconds=None, remaining_seconds=0),
    busy_workers=0,
    ended={},
    pending_webhooks=0,
    statistics=ServiceStatistics(
        totals={"error:internal": "1"},
        queue_work_seconds=0,
        queue_head_age_seconds=0,
        workers=[_WORKER],
        memory_bytes=0,
        memory_limit_bytes=0,
        is_intake_paused=False,
    ),
    store_problems=0,
)


def render_metrics() -> str:
    """Return each metric with its type, labels, unit and meaning."""
    metrics.record_request("GET", "/v1/jobs", 200, 0)
    metrics.record_slot_wait("pictures", 0)
    metrics.record_store_call("create", 0, has_succeeded=True)
    of_process = [
        *metrics.REQUESTS.collect(),
        *metrics.collect_process(Path("/"), is_store_up=True),
    ]
    labels = [f"| `{name}` | {_cell(text)} |" for name, text in metrics.LABELS.items()]
    return "\n".join(
        [
            "# Metrics",
            "",
            "What `GET /metrics` answers: [monitoring](../monitoring.md#metrics).",
            "",
            "## Of the process",
            "",
            "Each API process has its own figures. Add them up in a query: `sum(…)`.",
            *_list_families(of_process),
            "## Of the service",
            "",
            "Equal from every API process. Take one of them in a query: `max(…)`.",
            *_list_families(service_metrics.build_families(_FIGURES)),
            "## Labels",
            *_table("| label | |", labels),
        ]
    )


def _list_families(families: Iterable[Metric]) -> list[str]:
    rows = []
    for family in families:
        used = {name: "" for sample in family.samples for name in sample.labels}
        used.pop("le", None)  # the limit of a histogram's bucket
        labels = ", ".join(f"`{name}`" for name in used) or "–"
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(
            f"| `{name}` | {family.type} | {labels} | {_unit(family.name)} "
            f"| {_cell(family.documentation)} |"
        )
    return _table("| name | type | labels | unit | |", rows)


def _unit(name: str) -> str:
    """Return the unit of a metric, with which its name ends, as Prometheus recommends."""
    ends = {"per_second": "1/s", "_seconds": "s", "_bytes": "B", "_utilization": "0 to 1"}
    units = [unit for end, unit in ends.items() if name.endswith(end)]
    return units[0] if units else "–"
