-- Each read of a queued job reads the runs, so it must not cost more, the more workers there are.
local MAX_SAMPLED = 32 -- running jobs that are read; the others count as their mean

-- Returns {queued, running, live workers, average seconds of a run or ''}. The last one is text,
-- because Redis cuts numbers to integers.
reader('get_load', function(p)
  local workers = redis.call('ZCOUNT', p .. 'workers', now_ms() - WORKER_MS, '+inf')
  return { redis.call('ZCARD', p .. 'queue'), redis.call('ZCARD', p .. 'leases'), workers,
    redis.call('GET', p .. 'average_seconds') or '' }
end)

-- Returns a sample of the running jobs: their workers, their seconds left, and how many jobs each of
-- them stands for.
local function sample_runs(p, average)
  local runs = { workers = {}, seconds = {} }
  for i, id in ipairs(redis.call('ZRANGE', p .. 'leases', 0, MAX_SAMPLED - 1)) do
    local progress, worker = get_fields(p, id, 'progress', 'worker')
    local seconds = progress and decode_stored(progress).seconds_left
    runs.workers[i] = worker or ''
    runs.seconds[i] = type(seconds) == 'number' and seconds or average
  end
  runs.weight = redis.call('ZCARD', p .. 'leases') / math.max(1, #runs.workers)
  return runs
end

-- Returns the live workers of a pool, grouped by the size that they hold, in ascending order: their
-- number, how many of them run a job, and the sum of the seconds that these jobs have left.
local function group_workers(p, pool, runs)
  local groups, since = {}, now_ms() - WORKER_MS
  for _, px in ipairs(redis.call('ZRANGEBYSCORE', p .. 'sizes_of:' .. pool, since, '+inf')) do
    local key = p .. 'workers_of:' .. pool .. '/' .. px
    -- Workers of an earlier version name their size only.
    local count = math.max(1, redis.call('ZCOUNT', key, since, '+inf'))
    local group = { size = claimable_size(p, pool, tonumber(px)), count = count, running = 0,
      seconds = 0 }
    local seen = #runs.workers > 0 and redis.call('ZMSCORE', key, unpack(runs.workers)) or {}
    for i, at in ipairs(seen) do
      if at and tonumber(at) >= since then
        group.running = group.running + runs.weight
        group.seconds = group.seconds + runs.weight * runs.seconds[i]
      end
    end
    groups[#groups + 1] = group
  end
  table.sort(groups, function(a, b) return a.size < b.size end)
  return groups
end

-- Returns the index of the first group that takes the jobs of a lane, or nil.
local function first_group(groups, lane)
  local _, px = split_lane(lane)
  for i, group in ipairs(groups) do
    if px <= group.size then
      return i
    end
  end
end

-- Returns the seconds until workers of the groups from `first` to `last` have started the jobs before
-- this one that only they may take.
local function group_delay(groups, ahead, first, last, average)
  local jobs, count, running, seconds = 0, 0, 0, 0
  for i = first, last do
    jobs, count = jobs + (ahead[i] or 0), count + groups[i].count
    running, seconds = running + groups[i].running, seconds + groups[i].seconds
  end
  return jobs < count - running and 0 or (seconds + jobs * average) / count
end

-- Returns the seconds until a job of the lane starts, or nil. ahead: the jobs before it, by the first
-- group that takes them. Groups below its own relieve the own one of small jobs, so the slowest of
-- these sets of groups counts. Larger workers may take the job, but big jobs keep them, so the best
-- set counts that ends at one of these.
local function delay_of(groups, ahead, lane, average)
  local own, best = first_group(groups, lane), nil
  for last = own or 1, own and #groups or 0 do
    local slowest = 0
    for first = 1, own do
      slowest = math.max(slowest, group_delay(groups, ahead, first, last, average))
    end
    best = math.min(best or slowest, slowest)
  end
  return best
end

-- Returns a function that estimates the seconds until a job starts, for several jobs of one call, as
-- text; '' if no worker may take it, and before the first job has ended. place: nil for a job that
-- would be the last; rank: the number of jobs before
-- it that are in its pool.
local function start_estimator(p)
  local average, runs, by_pool = nil, nil, {}
  return function(lane, place, rank)
    average = average or tonumber(redis.call('GET', p .. 'average_seconds') or '')
    if not average then
      return ''
    end
    runs = runs or sample_runs(p, average)
    local pool = split_lane(lane)
    by_pool[pool] = by_pool[pool] or group_workers(p, pool, runs)
    local groups = by_pool[pool]
    local ahead = { rank }
    if #groups > 1 then
      ahead = {}
      for _, other in ipairs(list_lanes(p, pool, math.huge)) do
        local i = first_group(groups, other) or 0
        local count = redis.call('ZLEXCOUNT', p .. 'lane:' .. other, '-', place and '(' .. place or '+')
        ahead[i] = (ahead[i] or 0) + count
      end
    end
    local seconds = delay_of(groups, ahead, lane, average)
    return seconds and tostring(seconds) or ''
  end
end

-- Returns how many jobs come before this place: of its pool, if jobs of pools are queued. -1: it is
-- not queued.
local function rank_of(p, place, lane)
  local rank = place and redis.call('ZRANK', p .. 'queue', place) or -1
  if rank > 0 and lane and redis.call('HEXISTS', p .. 'lanes', 'in_pools') == 1 then
    rank = 0
    for _, other in ipairs(list_lanes(p, (split_lane(lane)), math.huge)) do
      rank = rank + redis.call('ZLEXCOUNT', p .. 'lane:' .. other, '-', '(' .. place)
    end
  end
  return rank
end

local function describe_rank(p, rank, lane, place, estimate_start)
  if rank < 0 then
    return '-1'
  end
  lane = lane or lane_name('', 0) -- it is a job of another version
  local missing, has_worker = missing_worker(p, lane)
  local start = missing and '' or estimate_start(lane, place, rank)
  return table.concat({ rank, start, missing or '', has_worker and 1 or 0 }, ' ')
end

-- owner: '' or the only one whose jobs the caller may see. The jobs of others are not even read, so
-- that the time does not tell that they exist. The other arguments are pairs of an id and a known
-- version or ''. Returns for each job a list: empty if there is no such job, otherwise its rank in
-- the queue (-1: not queued), after all its fields and 'rank' if its version is not the known one. The
-- rank is text: the number (0 is next), the seconds until the start or '', what the job waits for
-- beside its turn or '', and 1 if a live worker may take it, else 0.
reader('read_changed', function(p, owner, ...)
  local args, rows, estimate_start = { ... }, {}, start_estimator(p)
  for i = 1, #args, 2 do
    local row, version, place, job_owner, lane =
      {}, get_fields(p, args[i], 'version', 'place', 'owner', 'lane')
    if version and (owner == '' or job_owner == owner) then
      if version ~= args[i + 1] then
        row = redis.call('HGETALL', job_key(p, args[i]))
        row[#row + 1] = 'rank'
      end
      row[#row + 1] = describe_rank(p, rank_of(p, place, lane), lane, place, estimate_start)
    end
    rows[#rows + 1] = row
  end
  return rows
end)

-- The rank that the next job of a pool and a size gets, if nothing comes before its turn.
reader('read_end', function(p, pool, size)
  local lane, rank = lane_name(pool, tonumber(size)), 0
  for _, other in ipairs(list_lanes(p, pool, math.huge)) do
    rank = rank + redis.call('ZCARD', p .. 'lane:' .. other)
  end
  return describe_rank(p, rank, lane, nil, start_estimator(p))
end)
