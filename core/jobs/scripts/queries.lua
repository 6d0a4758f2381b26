-- Each read of a queued job reads the load, so it must not cost more, the more workers there are.
local MAX_SAMPLED = 32 -- running jobs whose remaining time is read; the others count as their mean

-- Returns {queued, running, live workers, average seconds of a run or '', seconds until all running
-- jobs are done}. The last two are text, because Redis cuts numbers to integers.
local get_load = reader('get_load', function(p)
  local remaining, average = 0, redis.call('GET', p .. 'average_seconds')
  local sampled = redis.call('ZRANGE', p .. 'leases', 0, MAX_SAMPLED - 1)
  for _, id in ipairs(sampled) do
    local progress = get_fields(p, id, 'progress')
    local seconds = progress and decode_stored(progress).seconds_left
    remaining = remaining + (type(seconds) == 'number' and seconds or tonumber(average or 0))
  end
  local queued, running = redis.call('ZCARD', p .. 'queue'), redis.call('ZCARD', p .. 'leases')
  remaining = remaining * running / math.max(1, #sampled)
  local workers = redis.call('ZCOUNT', p .. 'workers', now_ms() - WORKER_MS, '+inf')
  return { queued, running, workers, average or '', tostring(remaining) }
end)

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

-- owner: '' or the only one whose jobs the caller may see. The jobs of others are not even read, so
-- that the time does not tell that they exist. The other arguments are pairs of an id and a known
-- version or ''. Returns for each job a list: empty if there is no such job, otherwise its rank in
-- the queue (0 is next, -1: not queued; with a space and what it waits for beside its turn, if that
-- is missing), after all its fields and 'rank' if its version is not the known one. The last list is
-- the load, or empty if no job is queued.
reader('read_changed', function(p, owner, ...)
  local args, rows, is_queued = { ... }, {}, false
  for i = 1, #args, 2 do
    local row, version, place, job_owner, lane =
      {}, get_fields(p, args[i], 'version', 'place', 'owner', 'lane')
    if version and (owner == '' or job_owner == owner) then
      if version ~= args[i + 1] then
        row = redis.call('HGETALL', job_key(p, args[i]))
        row[#row + 1] = 'rank'
      end
      local rank = rank_of(p, place, lane)
      is_queued = is_queued or rank >= 0
      local missing = rank >= 0 and lane and missing_worker(p, lane)
      row[#row + 1] = missing and rank .. ' ' .. missing or rank
    end
    rows[#rows + 1] = row
  end
  rows[#rows + 1] = is_queued and get_load(p) or {}
  return rows
end)
