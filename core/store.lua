#!lua name=impasto_VERSION

-- The atomic steps of the job store. VERSION becomes a hash of this file (store.py). Called with KEYS[1] = the prefix of every key; times are ms of the server's clock.
--
--   <p>job:<id>          hash    one job: status, version, attempt, token, input, progress, ... (JSON where structured)
--   <p>jobs              zset    every job by its number, the order of arrival
--   <p>status:<status>   zset    the jobs in that status by the same number; status:queued is the queue itself, so a
--                                job put back is ahead of all that came after it
--   <p>leases            zset    running jobs by the time their lease ends
--   <p>claim:<token>     string  which job a claim returned, so that a claim sent twice takes one job
--   <p>refs              hash    digest -> how many jobs use the blob
--   <p>orphans           zset    digest -> when it may be deleted, unless a job uses it by then
--   <p>condemned         set     digests whose file is being deleted now
--   <p>number            counter
--   <p>leader            string  which API process reaps

local LEGAL = {
  queued = { running = true, canceled = true, expired = true },
  running = { queued = true, succeeded = true, failed = true, canceled = true },
}

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function job_key(p, id)
  return p .. 'job:' .. id
end

-- The one place where a status changes.
local function move(p, id, to)
  local job = job_key(p, id)
  local from = redis.call('HGET', job, 'status')
  if not (LEGAL[from] and LEGAL[from][to]) then
    return false
  end
  redis.call('ZREM', p .. 'status:' .. from, id)
  redis.call('ZADD', p .. 'status:' .. to, redis.call('HGET', job, 'number'), id)
  redis.call('HSET', job, 'status', to)
  redis.call('HINCRBY', job, 'version', 1)
  if from == 'running' then
    redis.call('ZREM', p .. 'leases', id)
  end
  if to == 'queued' then
    redis.call('HDEL', job, 'progress') -- the next attempt begins again
  end
  if to ~= 'queued' and to ~= 'running' then
    redis.call('HSET', job, 'completed_at', now_ms())
  end
  return true
end

local function use(p, digest)
  redis.call('HINCRBY', p .. 'refs', digest, 1)
end

local function drop(p, digest)
  if redis.call('HINCRBY', p .. 'refs', digest, -1) <= 0 then
    redis.call('HDEL', p .. 'refs', digest)
    redis.call('ZADD', p .. 'orphans', 'NX', now_ms(), digest)
  end
end

-- 'ok', 'cancel' when somebody asked the run to stop, 'stale' when the job is no longer this worker's.
local function standing(p, id, token)
  local job = redis.call('HMGET', job_key(p, id), 'status', 'token', 'cancel_requested')
  if job[1] ~= 'running' or job[2] ~= token then
    return 'stale'
  end
  return job[3] == '1' and 'cancel' or 'ok'
end

-- Whether a blob is used, or held until later than now.
local function safe(p, digest)
  if redis.call('HEXISTS', p .. 'refs', digest) == 1 then
    return true
  end
  local until_ms = redis.call('ZSCORE', p .. 'orphans', digest)
  return until_ms and tonumber(until_ms) > now_ms()
end

-- id, input, digest... -> its number, or nil if a blob is not safe. The same id again changes nothing.
local function create(keys, args)
  local p, id = keys[1], args[1]
  local job = job_key(p, id)
  if redis.call('EXISTS', job) == 1 then
    return redis.call('HGET', job, 'number')
  end
  for i = 3, #args do
    if not safe(p, args[i]) then
      return nil
    end
  end
  local number = redis.call('INCR', p .. 'number')
  redis.call('HSET', job, 'id', id, 'number', number, 'status', 'queued', 'version', 1, 'attempt', 0,
    'created_at', now_ms(), 'input', args[2])
  redis.call('ZADD', p .. 'jobs', number, id)
  redis.call('ZADD', p .. 'status:queued', number, id)
  local blobs = {}
  for i = 3, #args do
    use(p, args[i])
    blobs[#blobs + 1] = args[i]
  end
  redis.call('HSET', job, 'blobs', cjson.encode(blobs))
  return number
end

-- token, worker, lease_ms -> id of the next job, now running under this token, or nil
local function claim(keys, args)
  local p, token, lease_ms = keys[1], args[1], tonumber(args[3])
  local before = redis.call('GET', p .. 'claim:' .. token)
  if before then
    return before
  end
  local id = redis.call('ZRANGE', p .. 'status:queued', 0, 0)[1]
  if not id then
    return nil
  end
  local job = job_key(p, id)
  local now = now_ms()
  redis.call('SET', p .. 'claim:' .. token, id, 'PX', lease_ms)
  redis.call('HINCRBY', job, 'attempt', 1)
  redis.call('HSET', job, 'token', token, 'worker', args[2])
  redis.call('HSETNX', job, 'started_at', now)
  move(p, id, 'running')
  redis.call('ZADD', p .. 'leases', now + lease_ms, id)
  return id
end

-- id, token, lease_ms -> standing
local function renew(keys, args)
  local p, id = keys[1], args[1]
  local answer = standing(p, id, args[2])
  if answer ~= 'stale' then
    redis.call('ZADD', p .. 'leases', now_ms() + tonumber(args[3]), id)
  end
  return answer
end

-- id, token, progress, digest of the preview or '' -> standing
local function progress(keys, args)
  local p, id, preview = keys[1], args[1], args[4]
  local job = job_key(p, id)
  local answer = standing(p, id, args[2])
  if answer == 'stale' then
    return answer
  end
  redis.call('HSET', job, 'progress', args[3])
  redis.call('HINCRBY', job, 'version', 1)
  if preview ~= '' then
    local old = redis.call('HGET', job, 'preview')
    use(p, preview)
    redis.call('HSET', job, 'preview', preview)
    if old then
      drop(p, old)
    end
  end
  return answer
end

-- id, token, status, field, value, field, value, ..., with the field 'output' a blob's digest -> 'ok' or 'stale'
local function finish(keys, args)
  local p, id, token, status = keys[1], args[1], args[2], args[3]
  local job = job_key(p, id)
  local mine = redis.call('HMGET', job, 'status', 'token')
  if mine[2] ~= token then
    return 'stale'
  end
  if mine[1] == status then
    return 'ok' -- the same words a second time: the first answer was lost on its way
  end
  if mine[1] ~= 'running' then
    return 'stale'
  end
  for i = 4, #args, 2 do
    if args[i] == 'output' then
      use(p, args[i + 1])
      local blobs = cjson.decode(redis.call('HGET', job, 'blobs'))
      blobs[#blobs + 1] = args[i + 1]
      redis.call('HSET', job, 'blobs', cjson.encode(blobs))
    else
      redis.call('HSET', job, args[i], args[i + 1])
    end
  end
  return move(p, id, status) and 'ok' or 'stale'
end

-- id, token -> 'ok' or 'stale'. A worker that goes away hands its job back; that is no failed attempt.
local function release(keys, args)
  local p, id = keys[1], args[1]
  local answer = standing(p, id, args[2])
  if answer == 'stale' then
    return answer
  end
  if answer == 'cancel' then
    move(p, id, 'canceled')
  else
    move(p, id, 'queued')
    redis.call('HINCRBY', job_key(p, id), 'attempt', -1)
  end
  redis.call('HDEL', job_key(p, id), 'token')
  return 'ok'
end

-- id -> its status afterwards, or nil if there is no such job. A running one is asked to stop, by the next renew.
local function cancel(keys, args)
  local p, id = keys[1], args[1]
  local job = job_key(p, id)
  local status = redis.call('HGET', job, 'status')
  if status == 'queued' then
    move(p, id, 'canceled')
  elseif status == 'running' and redis.call('HGET', job, 'cancel_requested') ~= '1' then
    redis.call('HSET', job, 'cancel_requested', '1')
    redis.call('HINCRBY', job, 'version', 1)
  end
  return redis.call('HGET', job, 'status')
end

-- max_attempts, error of a job that was tried too often -> {requeued, ended}
local function reap(keys, args)
  local p = keys[1]
  local requeued, ended = 0, 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'leases', '-inf', now_ms(), 'LIMIT', 0, 1000)) do
    local job = job_key(p, id)
    redis.call('HDEL', job, 'token')
    if redis.call('HGET', job, 'cancel_requested') == '1' then
      move(p, id, 'canceled')
      ended = ended + 1
    elseif tonumber(redis.call('HGET', job, 'attempt')) >= tonumber(args[1]) then
      redis.call('HSET', job, 'error', args[2])
      move(p, id, 'failed')
      ended = ended + 1
    else
      move(p, id, 'queued')
      requeued = requeued + 1
    end
  end
  return { requeued, ended }
end

-- id -> 1 if there was such a job. A worker that still runs it finds its token stale.
local function delete(keys, args)
  local p, id = keys[1], args[1]
  local job = job_key(p, id)
  local found = redis.call('HMGET', job, 'status', 'blobs', 'preview')
  if not found[1] then
    return 0
  end
  for _, digest in ipairs(cjson.decode(found[2])) do
    drop(p, digest)
  end
  if found[3] then
    drop(p, found[3])
  end
  redis.call('ZREM', p .. 'status:' .. found[1], id)
  redis.call('ZREM', p .. 'leases', id)
  redis.call('ZREM', p .. 'jobs', id)
  redis.call('DEL', job)
  return 1
end

-- digest, keep_ms -> 1, or 0 while its file is being deleted. Called before a blob is written: from now on it is safe
-- from the janitor for keep_ms, and as long as a job uses it.
local function hold(keys, args)
  local p, digest = keys[1], args[1]
  if redis.call('SISMEMBER', p .. 'condemned', digest) == 1 then
    return 0
  end
  redis.call('ZADD', p .. 'orphans', 'GT', now_ms() + tonumber(args[2]), digest)
  return 1
end

-- -> digests whose files may go now. They stay condemned until `forget`.
local function condemn(keys)
  local p = keys[1]
  for _, digest in ipairs(redis.call('ZRANGEBYSCORE', p .. 'orphans', '-inf', now_ms(), 'LIMIT', 0, 1000)) do
    redis.call('ZREM', p .. 'orphans', digest)
    if redis.call('HEXISTS', p .. 'refs', digest) == 0 then
      redis.call('SADD', p .. 'condemned', digest)
    end
  end
  return redis.call('SMEMBERS', p .. 'condemned')
end

-- digest: its file is gone
local function forget(keys, args)
  return redis.call('SREM', keys[1] .. 'condemned', args[1])
end

-- me, term_ms -> 1 if this process leads now
local function lead(keys, args)
  local key = keys[1] .. 'leader'
  local leader = redis.call('GET', key)
  if leader and leader ~= args[1] then
    return 0
  end
  redis.call('SET', key, args[1], 'PX', args[2])
  return 1
end

redis.register_function('impasto_VERSION_create', create)
redis.register_function('impasto_VERSION_claim', claim)
redis.register_function('impasto_VERSION_renew', renew)
redis.register_function('impasto_VERSION_progress', progress)
redis.register_function('impasto_VERSION_finish', finish)
redis.register_function('impasto_VERSION_release', release)
redis.register_function('impasto_VERSION_cancel', cancel)
redis.register_function('impasto_VERSION_reap', reap)
redis.register_function('impasto_VERSION_delete', delete)
redis.register_function('impasto_VERSION_hold', hold)
redis.register_function('impasto_VERSION_condemn', condemn)
redis.register_function('impasto_VERSION_forget', forget)
redis.register_function('impasto_VERSION_lead', lead)
