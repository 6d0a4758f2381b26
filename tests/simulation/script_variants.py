"""The store's Lua functions as a simulation loads them: its clock, other versions, controls.

Product files stay as they are. Each change replaces a text that must occur exactly once, so a
change of the functions that a simulation depends on ends it with an error, not with a wrong result.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from core.jobs.store import load_library

Changes = Sequence[tuple[str, str]]  # (text, replacement)

# Each call brings the time as its last argument.
CLOCK: Changes = (
    (
        "local function now_ms()\n  local time = redis.call('TIME')\n"
        "  return time[1] * 1000 + math.floor(time[2] / 1000)\nend",
        "local simulated_ms = 0\n\nlocal function now_ms()\n  return simulated_ms\nend",
    ),
    (
        "      local entry = keys[2] and table.remove(args)",
        "      simulated_ms = tonumber(table.remove(args))\n"
        "      local entry = keys[2] and table.remove(args)",
    ),
)

# The version before lanes: its records have no format, and its workers take any job.
EARLIER: Changes = (
    (
        "submission.fingerprint, 'format', FORMAT,\n"
        "    'lane', lane_name(submission.pool or '', submission.size))",
        "submission.fingerprint)",
    ),
    ("  enter_lane(p, id, place)\n  count_work(p, id)", "  count_work(p, id)"),
    (
        "  leave_lane(p, lane, place)\nend\n\nlocal function dequeue",
        "end\n\nlocal function dequeue",
    ),
    ("  enter_queued(p)\n  local now", "  local now"),
    (
        "place, lane = next_place(p, cjson.decode(pools), tonumber(size))",
        "place, lane = redis.call('ZRANGE', p .. 'queue', 0, 0)[1], '/8192'",
    ),
    ("for _, name in ipairs({ lane, (split_lane(lane)) }) do", "for _, name in ipairs({ '' }) do"),
    ("    if round > begin_of(p, field) then", "    if false then"),
    (
        "local class, lane = CLASS[priority], lane_of(p, id) or lane_name('', 0)\n"
        "  local pool = split_lane(lane)",
        "local class = CLASS[priority]",
    ),
    (
        "  local of_pool = current_round(p, class, list_lanes(p, pool, math.huge), pool)\n"
        "    or latest_round(p, class, pool)\n"
        "  local of_lane = current_round(p, class, { lane }, lane) or of_pool\n"
        "  local own = next_own_round(p, owner, class, function(other)\n"
        "    return other == lane or (of_lane >= of_pool and split_lane(other) == pool)\n"
        "  end)\n"
        "  local round = math.max(own, math.min(of_pool, of_lane))",
        "  local first = redis.call('ZRANGEBYLEX', p .. 'queue', '[' .. class, "
        "'(' .. (class + 1), 'LIMIT', 0, 1)[1]\n"
        "  local own_last = redis.call('ZREVRANGEBYLEX', p .. 'queue:' .. owner, "
        "'(' .. (class + 1),\n"
        "    '[' .. class, 'LIMIT', 0, 1)[1]\n"
        "  local round = math.max(own_last and round_of(own_last) + 1 or 0,\n"
        "    first and round_of(first) or 0, latest_round(p, class, ''))",
    ),
)

# A later version with another format of records. It keeps its lanes apart: see LATER_POOL.
LATER_POOL = "format2."
LATER: Changes = (
    ("local FORMAT = 1 ", "local FORMAT = 2 "),
    (
        "'lane', lane_name(submission.pool or '', submission.size))",
        f"'lane2', lane_name('{LATER_POOL}' .. (submission.pool or ''), submission.size))",
    ),
    (
        "local lane, format, input = get_fields(p, id, 'lane', 'format', 'input')",
        "local lane, format, input = get_fields(p, id, 'lane2', 'format', 'input')\n"
        "  lane = lane or get_fields(p, id, 'lane')",
    ),
    (
        "local owner, place, lane = get_fields(p, id, 'owner', 'place', 'lane')",
        "local owner, place, lane = get_fields(p, id, 'owner', 'place', 'lane2')\n"
        "  lane = lane or get_fields(p, id, 'lane')",
    ),
)


class Library(NamedTuple):
    """The functions of one version: the prefix of their names, and their code."""

    prefix: str
    code: str


def build_library(*changes: Changes) -> Library:
    """Return the functions with these changes and the simulated clock."""
    prefix, code = load_library()
    for old, new in (pair for group in (CLOCK, *changes) for pair in group):
        if code.count(old) != 1:
            raise ValueError(f"the functions contain this text {code.count(old)} times:\n{old}")
        code = code.replace(old, new)
    if "'TIME'" in code:
        raise ValueError("a function reads the server's clock")
    own = f"impasto_{hashlib.sha256(code.encode()).hexdigest()[:12]}"
    return Library(own, code.replace(prefix, own))


# What a control removes, by its name: texts of the functions, ...
RULES: Mapping[str, Changes] = {
    "fencing of results": (("  if owner_token ~= token then\n    return 'stale'\n  end\n", ""),),
    "fencing of runs": (
        ("if status ~= 'running' or owner_token ~= token then", "if status ~= 'running' then"),
    ),
    "repeated results": (
        ("    return 'ok' -- a repeated call", "    return 'stale' -- a repeated call"),
    ),
    "repeated claims": (
        ("  if earlier then\n    return renew(", "  if false then\n    return renew("),
    ),
    "idempotency keys": (("  if earlier then\n    return earlier\n", "  if false then\n"),),
    "an ended job never changes": (
        ("  if status ~= 'running' then\n    return 'stale'\n  end\n  for i", "  for i"),
        ("if not (LEGAL[from] and LEGAL[from][to] and is_movable(p, id)) then", "if not from then"),
    ),
    "expired leases": (
        (
            "  for _, id in ipairs(expired) do\n    local queued",
            "  for _, id in ipairs({}) do\n    local queued",
        ),
    ),
    "dead children": (("if get_fields(p, id, 'worker') == worker then", "if false then"),),
    "renewals": (
        (
            "lease_ms, known_updates)\n"
            "  redis.call('ZADD', p .. 'leases', now_ms() + lease_ms, id)\n",
            "lease_ms, known_updates)\n",
        ),
    ),
    "attempt limit": (("if lost >= tonumber(max_lost_workers) then", "if false then"),),
    "checkpoints are progress": (
        ("checkpoint', checkpoint, 'lost_workers', 0)", "checkpoint', checkpoint)"),
    ),
    "released attempts": (("    add(job_key(p, id), 'attempt', -1)\n", ""),),
    "deadlines of queued jobs": (
        ("if status == 'queued' and move(p, id, 'expired') then", "if status == 'expired' then"),
    ),
    "deadlines of runs": (
        (
            "return deadline_at and tonumber(deadline_at) <= now_ms()",
            "return false",
        ),
    ),
    "canceled runs": (("    return 'cancel'\n", "    return 'ok'\n"),),
    "canceled and lost": (
        (
            "    move(p, id, 'canceled')\n    return 0\n",
            "    move(p, id, 'queued')\n    return 1\n",
        ),
    ),
    "turns of owners": (
        (
            "return string.format(PLACE, class, round, number) .. id",
            "return string.format(PLACE, class, 0, number) .. id",
        ),
    ),
    "turns of pools": (("local since = math.max(number_of(place), began)", "local since = 0"),),
    "priorities": (("{ high = 1, normal = 2, low = 3 }", "{ high = 2, normal = 2, low = 2 }"),),
    "sizes of workers": (("    if px <= size then\n      names", "    if px then\n      names"),),
    "pools": (
        (
            "'lane', lane_name(submission.pool or '', submission.size))",
            "'lane', lane_name('', submission.size))",
        ),
    ),
    "later formats": (("if (tonumber(format) or 0) > FORMAT then", "if false then"),),
    "jobs of an earlier version": (("  enter_queued(p)\n  local now", "  local now"),),
    "limit of an owner": (("own + new > first.max_per_owner", "false"),),
    "limit of the queue": (("queued + new > first.max_queued", "false"),),
}
# ... and what the simulation itself leaves out.
OTHER_RULES = ("notifying idle workers", "contact before reaping", "retries of workers")
