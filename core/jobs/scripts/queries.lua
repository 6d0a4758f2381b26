-- Returns {queued, running, live workers, average seconds of a run or '', seconds until all running
-- jobs are done}. The last two are text, because Redis cuts numbers to integers.
function readers.get_load(p)
  local remaining, average = 0, redis.call('GET', p .. 'average_seconds')
  for _, id in ipairs(redis.call('ZRANGE', p .. 'leases', 0, 999)) do
    local progress = get_fields(p, id, 'progress')
    local seconds = progress and decode_stored(progress).seconds_left
    remaining = remaining + (type(seconds) == 'number' and seconds or tonumber(average or 0))
  end
  local queued, running = redis.call('ZCARD', p .. 'queue'), redis.call('ZCARD', p .. 'leases')
  local workers = redis.call('ZCOUNT', p .. 'workers', now_ms() - WORKER_MS, '+inf')
  return { queued, running, workers, average or '', tostring(remaining) }
end

-- Returns the position in the queue; 0 is next, -1: not queued.
local function rank_of(p, id)
  local place = get_fields(p, id, 'place')
  return place and redis.call('ZRANK', p .. 'queue', place) or -1
end

local function read_one(p, id)
  local fields = redis.call('HGETALL', job_key(p, id))
  fields[#fields + 1] = 'rank'
  fields[#fields + 1] = rank_of(p, id)
  return fields
end

-- Append the load to the rows if one of the jobs is queued, otherwise an empty table.
local function with_load(p, rows)
  local is_queued = false
  for _, row in ipairs(rows) do
    is_queued = is_queued or (row[#row] or -1) >= 0
  end
  rows[#rows + 1] = is_queued and readers.get_load(p) or {}
  return rows
end

-- Returns for each id the job's fields and its rank, or an empty table if there is no such job.
-- After them the load, as `with_load` says.
function readers.read_jobs(p, owner, ...)
  local rows = {}
  for i, id in ipairs({ ... }) do
    rows[i] = is_visible(p, id, owner) and read_one(p, id) or {}
  end
  return with_load(p, rows)
end

-- The arguments are pairs of an id and a known version or ''. Returns what `read_jobs` does, but
-- only the rank of a job that still has the known version.
function readers.read_changed(p, ...)
  local args, rows = { ... }, {}
  for i = 1, #args, 2 do
    local version, row = get_fields(p, args[i], 'version'), {}
    if version then
      row = version == args[i + 1] and { rank_of(p, args[i]) } or read_one(p, args[i])
    end
    rows[#rows + 1] = row
  end
  return with_load(p, rows)
end

-- Returns the frames of a job, or nil if there is no such job.
function readers.list_frames(p, owner, id)
  return is_visible(p, id, owner) and redis.call('LRANGE', p .. 'frames:' .. id, 0, -1) or nil
end

-- Returns for each live worker its description of itself or '', and 1 if it runs a job.
function readers.list_workers(p)
  local busy, rows = {}, {}
  for _, id in ipairs(redis.call('ZRANGE', p .. 'leases', 0, 999)) do
    busy[get_fields(p, id, 'worker') or ''] = true
  end
  local live = redis.call('ZRANGEBYSCORE', p .. 'workers', now_ms() - WORKER_MS, '+inf')
  for i, worker in ipairs(live) do
    rows[i] = { redis.call('HGET', p .. 'worker_info', worker) or '', busy[worker] and 1 or 0 }
  end
  return rows
end

-- Returns {how many jobs have ended, as status, count, ...; how many webhooks are in the outbox}.
function readers.get_counts(p)
  return { redis.call('HGETALL', p .. 'ended'), redis.call('ZCARD', p .. 'outbox') }
end
