-- -> {waiting, running, live workers, seconds a job runs or '', seconds until all that runs is over}
local function get_load(keys)
  local p, left = keys[1], 0
  local pace = redis.call('GET', p .. 'pace')
  for _, id in ipairs(redis.call('ZRANGE', p .. 'leases', 0, 999)) do
    local progress = redis.call('HGET', job_key(p, id), 'progress')
    local seconds = progress and decode_stored(progress).seconds_left
    left = left + (type(seconds) == 'number' and seconds or tonumber(pace or 0))
  end
  local live = redis.call('ZCOUNT', p .. 'workers', now_ms() - WORKER_MS, '+inf')
  return { redis.call('ZCARD', p .. 'queue'), redis.call('ZCARD', p .. 'leases'), live, pace or '', tostring(left) }
end

-- In the queue; 0 is next, -1: it does not wait.
local function rank_of(p, id)
  local place = redis.call('HGET', job_key(p, id), 'place')
  return place and redis.call('ZRANK', p .. 'queue', place) or -1
end

local function read_one(p, id)
  local fields = redis.call('HGETALL', job_key(p, id))
  fields[#fields + 1] = 'rank'
  fields[#fields + 1] = rank_of(p, id)
  return fields
end

-- Jobs that were read, and after them the load, if one of them waits.
local function with_load(keys, jobs)
  local waits = false
  for _, fields in ipairs(jobs) do
    waits = waits or (fields[#fields] or -1) >= 0
  end
  jobs[#jobs + 1] = waits and get_load(keys) or {}
  return jobs
end

-- owner, id... -> for each its fields, and its rank in the queue; or an empty table for what is not there.
-- After them the load, if one of them waits.
local function read_jobs(keys, args)
  local p, jobs = keys[1], {}
  for i = 2, #args do
    jobs[#jobs + 1] = is_visible(p, args[i], args[1]) and read_one(p, args[i]) or {}
  end
  return with_load(keys, jobs)
end

-- owner, id -> its frames; nil if there is no such job
local function list_frames(keys, args)
  return is_visible(keys[1], args[2], args[1]) and redis.call('LRANGE', keys[1] .. 'frames:' .. args[2], 0, -1) or nil
end

-- id, version that is known or '', ... -> as `read`, but of a job in its known version the rank alone
local function read_changed(keys, args)
  local p, jobs = keys[1], {}
  for i = 1, #args, 2 do
    local version, found = redis.call('HGET', job_key(p, args[i]), 'version'), {}
    if version then
      found = version == args[i + 1] and { rank_of(p, args[i]) } or read_one(p, args[i])
    end
    jobs[#jobs + 1] = found
  end
  return with_load(keys, jobs)
end

-- -> for each live worker what it told of itself, or '', and 1 if it runs a job
local function list_workers(keys)
  local p, busy, found = keys[1], {}, {}
  for _, id in ipairs(redis.call('ZRANGE', p .. 'leases', 0, 999)) do
    busy[redis.call('HGET', job_key(p, id), 'worker') or ''] = true
  end
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', p .. 'workers', now_ms() - WORKER_MS, '+inf')) do
    found[#found + 1] = { redis.call('HGET', p .. 'worker_info', worker) or '', busy[worker] and 1 or 0 }
  end
  return found
end

-- -> {how many jobs have ended, by status: name, number, ...; webhooks that wait to be sent}
local function get_counts(keys)
  local p, waiting = keys[1], 0
  for _, lane in ipairs(redis.call('ZRANGE', p .. 'outbox', 0, 9999)) do
    waiting = waiting + redis.call('ZCARD', p .. 'outbox:' .. lane)
  end
  return { redis.call('HGETALL', p .. 'ended'), waiting }
end

redis.register_function({ function_name = 'impasto_VERSION_read_jobs', callback = read_jobs, flags = { 'no-writes' } })
redis.register_function({ function_name = 'impasto_VERSION_list_frames', callback = list_frames, flags = { 'no-writes' } })
redis.register_function({ function_name = 'impasto_VERSION_read_changed', callback = read_changed, flags = { 'no-writes' } })
redis.register_function({ function_name = 'impasto_VERSION_list_workers', callback = list_workers, flags = { 'no-writes' } })
redis.register_function({ function_name = 'impasto_VERSION_get_counts', callback = get_counts, flags = { 'no-writes' } })
redis.register_function({ function_name = 'impasto_VERSION_get_load', callback = get_load, flags = { 'no-writes' } })
