local function index_status(p, id, status)
  local owner, entry = get_fields(p, id, 'owner', 'entry')
  redis.call('ZADD', p .. 'jobs_of:' .. owner .. ':' .. status, entry, id)
end

-- An ended job makes room for a new one, unless it is pinned.
local function index_removable(p, id, is_removable)
  local owner, entry = get_fields(p, id, 'owner', 'entry')
  if is_removable and tonumber(entry) then
    redis.call('ZADD', p .. 'removable:' .. owner, entry, id)
  else
    redis.call('ZREM', p .. 'removable:' .. (owner or ''), id)
  end
end

-- Keep an ended job for retention_ms from now on; 0: without limit, as long as there is room.
local function set_expiry(p, id, retention_ms)
  local now = now_ms()
  if tonumber(retention_ms) > 0 then
    redis.call('HSET', job_key(p, id), 'expires_at', now + retention_ms)
    redis.call('ZADD', p .. 'expiry', now + retention_ms, id)
  else
    redis.call('ZADD', p .. 'expiry', now + FOREVER_MS, id)
  end
end

local function on_ended(p, id)
  local status, retention_ms, pinned = get_fields(p, id, 'status', 'retention_ms', 'pinned')
  local now = now_ms()
  redis.call('HSET', job_key(p, id), 'completed_at', now)
  redis.call('HINCRBY', p .. 'ended', status, 1)
  count_end(p, id, status)
  redis.call('HDEL', job_key(p, id), 'checkpoint')
  drop_pending(p, id)
  redis.call('ZREM', p .. 'deadlines', id)
  if pinned ~= '1' then
    set_expiry(p, id, retention_ms)
    index_removable(p, id, true)
  end
  schedule_webhook(p, id, now)
end

-- Change the status. No other function does. Returns false if the transition is illegal or the
-- record is damaged.
local function move(p, id, to)
  local key = job_key(p, id)
  local from, owner = get_fields(p, id, 'status', 'owner')
  if not (LEGAL[from] and LEGAL[from][to] and is_movable(p, id)) then
    return false
  end
  redis.call('ZREM', p .. 'jobs_of:' .. owner .. ':' .. from, id)
  index_status(p, id, to)
  redis.call('HSET', key, 'status', to)
  publish_change(p, id)
  count_move(p, id, from, to)
  if from == 'queued' then
    dequeue(p, id)
  else
    redis.call('ZREM', p .. 'leases', id)
  end
  if to == 'queued' then
    enqueue(p, id)
    redis.call('HDEL', key, 'spec_locked')
    if redis.call('HEXISTS', key, 'checkpoint') == 0 then
      redis.call('HDEL', key, 'progress') -- the next attempt starts from the beginning
      drop_frames(p, id)
    end
  elseif to ~= 'running' then
    on_ended(p, id)
  end
  return true
end

-- Returns the lease status: 'ok'; 'cancel' if a client asked for it; 'deadline_exceeded' after the
-- job's deadline; 'stale' if the job no longer runs under this token.
local function lease_status(p, id, token)
  local status, owner_token, cancel_requested, deadline_at =
    get_fields(p, id, 'status', 'token', 'cancel_requested', 'deadline_at')
  if status ~= 'running' or owner_token ~= token then
    return 'stale'
  end
  if cancel_requested == '1' then
    return 'cancel'
  end
  return deadline_at and tonumber(deadline_at) <= now_ms() and 'deadline_exceeded' or 'ok'
end

-- Register f(p, id, lease, ...) for the worker that runs a job. lease: its status. The operation
-- returns 'stale' without calling f, or what f returns, or else the lease status.
local function run_operation(name, f)
  return operation(name, function(p, id, token, ...)
    local lease = lease_status(p, id, token)
    return lease == 'stale' and lease or f(p, id, lease, ...) or lease
  end)
end

-- Requeue a running job whose worker is lost, or end it: as canceled if that was requested, as
-- failed with `error` after max_lost_workers in a row without a checkpoint. Returns 1 if it is
-- queued, 0 if it has ended, nil if it does not run (its record is damaged).
local function requeue_or_fail(p, id, max_lost_workers, error)
  local key = job_key(p, id)
  local status, cancel_requested = get_fields(p, id, 'status', 'cancel_requested')
  if status ~= 'running' or not is_movable(p, id) then
    redis.call('ZREM', p .. 'leases', id)
    return nil
  end
  redis.call('HDEL', key, 'token')
  count_total(p, 'lost')
  if cancel_requested == '1' then
    move(p, id, 'canceled')
    return 0
  end
  local lost = add(key, 'lost_workers', 1)
  if lost >= tonumber(max_lost_workers) then
    redis.call('HSET', key, 'error', error)
    move(p, id, 'failed')
    return 0
  end
  if lost > 1 then -- the job itself may kill its workers, so the other jobs go first
    redis.call('HSET', key, 'place', new_place(p, id, redis.call('INCR', p .. 'number')))
  end
  move(p, id, 'queued')
  return 1
end

-- No later submission may reuse this job's result.
local function forget_result(p, id)
  local owner, fingerprint = get_fields(p, id, 'owner', 'fingerprint')
  if owner and fingerprint and redis.call('HGET', p .. 'results:' .. owner, fingerprint) == id then
    redis.call('HDEL', p .. 'results:' .. owner, fingerprint)
  end
end

-- The idempotency key of a deleted job or batch is free again.
local function forget_replay(p, owner, key_hash, created)
  local key = p .. 'replay:' .. owner .. ':' .. key_hash
  local replay = redis.call('GET', key)
  if replay and string.match(replay, '^%S+ (%S+)$') == created
    and redis.call('EXISTS', job_key(p, created), p .. 'batch:' .. created) == 0 then
    redis.call('DEL', key)
  end
end

-- known_owner: the owner by whose index the job was found, in case its record is damaged.
local function erase_job(p, id, known_owner)
  local status, owner, token, batch, key_hash =
    get_fields(p, id, 'status', 'owner', 'token', 'batch_id', 'key_hash')
  owner = owner or known_owner or ''
  drop_all(p, id)
  dequeue(p, id)
  signal_worker(p, token)
  forget_result(p, id)
  redis.call('ZREM', p .. 'jobs_of:' .. owner .. ':' .. (status or ''), id)
  redis.call('ZREM', p .. 'jobs_of:' .. owner, id)
  redis.call('ZREM', p .. 'removable:' .. owner, id)
  if batch then
    redis.call('ZREM', p .. 'batch:' .. batch, id)
  end
  for _, index in ipairs({ 'leases', 'deadlines', 'expiry', 'records', 'outbox' }) do
    redis.call('ZREM', p .. index, id)
  end
  redis.call('DEL', job_key(p, id))
  if key_hash then
    forget_replay(p, owner, key_hash, batch or id)
  end
  redis.call('PUBLISH', p .. 'changes', id)
end

-- Whether the run knows all updates of the job's spec. known_updates: how many it knows.
local function has_all_updates(p, id, known_updates)
  return (get_fields(p, id, 'spec_update_count') or '0') == known_updates
end

-- Extend the lease. known_updates: '' if the caller does not ask; otherwise the operation returns
-- 'spec_updated' if there are others.
local renew = run_operation('renew', function(p, id, lease, lease_ms, known_updates)
  redis.call('ZADD', p .. 'leases', now_ms() + lease_ms, id)
  if lease == 'ok' and known_updates ~= '' and not has_all_updates(p, id, known_updates) then
    return 'spec_updated'
  end
end)

-- Start the next job under this token and return its id, or nil. A repeated call returns the same
-- job, with a whole lease; or nil if the job no longer runs under the token. id: of the worker, for
-- the operator; pools, size: as next_place takes them.
operation('claim', function(p, token, worker, lease_ms, worker_id, pools, size)
  local earlier = redis.call('GET', p .. 'claim:' .. token)
  if earlier then
    return renew(p, earlier, token, lease_ms, '') ~= 'stale' and earlier or nil
  end
  enter_queued(p)
  local now, place, lane = now_ms(), nil, nil
  local is_suspended = redis.call('HEXISTS', p .. 'suspended', worker_id) == 1
  if not is_suspended and redis.call('EXISTS', p .. 'restoring') == 0 then
    place, lane = next_place(p, cjson.decode(pools), tonumber(size))
  end
  if not place then
    if redis.call('EXISTS', p .. 'queue') == 1 then
      redis.call('HSET', p .. 'worker_polls', worker, now)
    end
    return nil
  end
  record_round(p, lane, place)
  local id = string.sub(place, 25)
  local key = job_key(p, id)
  redis.call('SET', p .. 'claim:' .. token, id, 'PX', CLAIM_MS)
  add(key, 'attempt', 1)
  redis.call('HSET', key, 'place', place, 'token', token, 'worker', worker, 'claimed_at', now)
  if redis.call('HSETNX', key, 'started_at', now) == 1 then
    count_wait(p, id, now - (tonumber(get_fields(p, id, 'created_at')) or now))
  end
  move(p, id, 'running')
  redis.call('ZADD', p .. 'leases', now + lease_ms, id)
  return id
end)

-- Allow no further update of the spec, so that the record agrees with the run. Returns
-- 'spec_updated', and locks nothing, if the run does not know all updates.
run_operation('lock_spec', function(p, id, _, known_updates)
  if not has_all_updates(p, id, known_updates) then
    return 'spec_updated'
  end
  redis.call('HSET', job_key(p, id), 'spec_locked', '1')
end)

-- progress: JSON; preview: the digest of the current image, or ''.
run_operation('report_progress', function(p, id, _, progress, preview)
  local key = job_key(p, id)
  if progress ~= '' then -- a preview may be older than the first iteration
    redis.call('HSET', key, 'progress', progress)
  end
  publish_change(p, id)
  if preview ~= '' then
    local owner, old = get_fields(p, id, 'owner', 'preview')
    add_reference(p, owner, preview)
    redis.call('HSET', key, 'preview', preview)
    if old then
      drop_reference(p, owner, old)
    end
  end
end)

-- Drop every second frame, and count that.
local function thin_out_frames(p, id, owner)
  local list = p .. 'frames:' .. id
  local frames = redis.call('LRANGE', list, 0, -1)
  redis.call('DEL', list)
  for i, frame in ipairs(frames) do
    if i % 2 == 1 then
      redis.call('RPUSH', list, frame)
    else
      drop_frame(p, owner, frame)
    end
  end
  redis.call('HINCRBY', job_key(p, id), 'frame_thinnings', 1)
end

-- Only the newest MAX_FRAMED jobs of an owner keep their frames.
local function index_framed(p, id)
  local owner, entry = get_fields(p, id, 'owner', 'entry')
  local framed = p .. 'framed:' .. owner
  if redis.call('ZADD', framed, entry, id) == 1 and redis.call('ZCARD', framed) > MAX_FRAMED then
    local oldest = redis.call('ZRANGE', framed, 0, 1)
    local other = oldest[1] ~= id and oldest[1] or oldest[2]
    drop_frames(p, other)
    redis.call('ZREM', framed, other) -- even if its record is damaged
    if redis.call('EXISTS', job_key(p, other)) == 1 then
      publish_change(p, other)
    end
  end
end

-- Append a frame (JSON: iteration, digest, ...) and thin out if there are more than max_frames.
-- Drops frames of an earlier attempt from this iteration on: this attempt computes them again.
-- Returns the number of thinnings.
run_operation('add_frame', function(p, id, _, frame_json, max_frames)
  local list = p .. 'frames:' .. id
  local owner, frame = get_fields(p, id, 'owner'), cjson.decode(frame_json)
  add_reference(p, owner, frame.digest)
  local last = redis.call('LINDEX', list, -1)
  while last and (decode_stored(last).iteration or frame.iteration) >= frame.iteration do
    drop_frame(p, owner, redis.call('RPOP', list))
    last = redis.call('LINDEX', list, -1)
  end
  frame.index = redis.call('HINCRBY', job_key(p, id), 'frames', 1) - 1
  redis.call('RPUSH', list, cjson.encode(frame))
  index_framed(p, id)
  if redis.call('LLEN', list) > tonumber(max_frames) then
    thin_out_frames(p, id, owner)
  end
  return tonumber(get_fields(p, id, 'frame_thinnings') or 0)
end)

-- The next attempt resumes from this checkpoint. It is progress, so workers lost before it count
-- no more.
run_operation('save_checkpoint', function(p, id, _, checkpoint)
  redis.call('HSET', job_key(p, id), 'checkpoint', checkpoint, 'lost_workers', 0)
end)

-- End a running job. The rest are fields and values; `output` is the digest of a blob. Returns 'ok'
-- or 'stale'.
operation('finish', function(p, id, token, to, ...)
  local key, values = job_key(p, id), { ... }
  local status, owner_token, owner, fingerprint, claimed_at =
    get_fields(p, id, 'status', 'token', 'owner', 'fingerprint', 'claimed_at')
  if owner_token ~= token then
    return 'stale'
  end
  if status == to then
    return 'ok' -- a repeated call: the answer to the first one was lost
  end
  if status ~= 'running' then
    return 'stale'
  end
  for i = 1, #values, 2 do
    if values[i] == 'output' then
      add_reference(p, owner, values[i + 1])
      local blobs = decode_stored(get_fields(p, id, 'blobs'))
      blobs[#blobs + 1] = values[i + 1]
      redis.call('HSET', key, 'blobs', cjson.encode(blobs))
    end
    redis.call('HSET', key, values[i], values[i + 1])
  end
  if to == 'succeeded' then
    local seconds = (now_ms() - claimed_at) / 1000
    local average = redis.call('GET', p .. 'average_seconds')
    redis.call('SET', p .. 'average_seconds', average and 0.8 * average + 0.2 * seconds or seconds)
    learn_speed(p, id, seconds)
    if fingerprint then
      redis.call('HSET', p .. 'results:' .. owner, fingerprint, id)
    end
  end
  return move(p, id, to) and 'ok' or 'stale'
end)

local function release(p, id, lease)
  if lease == 'cancel' then
    move(p, id, 'canceled')
  else
    move(p, id, 'queued')
    add(job_key(p, id), 'attempt', -1)
  end
  redis.call('HDEL', job_key(p, id), 'token')
  return 'ok'
end

-- Requeue the job of a worker that shuts down. The attempt does not count. Returns 'ok'.
run_operation('release', release)

-- The same for a job that this worker cannot hold, so that a larger worker takes it. size: what this
-- one holds. Returns 'no_larger', and does nothing, if no larger one is known.
run_operation('release_to_larger', function(p, id, lease, size)
  local pool = split_lane(lane_of(p, id))
  if claimable_size(p, pool, tonumber(size)) == math.huge then
    return 'no_larger'
  end
  redis.call('HSET', job_key(p, id), 'lane', lane_name(pool, size + 1))
  return release(p, id, lease)
end)

-- Requeue or end the jobs of a worker whose process has exited. Returns how many are queued again.
operation('requeue_jobs_of', function(p, worker, max_lost_workers, error)
  local count = 0
  redis.call('ZREM', p .. 'workers', worker)
  redis.call('HDEL', p .. 'worker_info', worker)
  redis.call('HDEL', p .. 'worker_use', worker)
  redis.call('HDEL', p .. 'worker_polls', worker)
  for _, id in ipairs(redis.call('ZRANGE', p .. 'leases', 0, -1)) do
    if get_fields(p, id, 'worker') == worker then
      count = count + (requeue_or_fail(p, id, max_lost_workers, error) or 0)
    end
  end
  return count
end)

-- Cancel a queued job at once; ask the worker of a running one to stop. Returns 1, or nil if there
-- is no such job.
job_operation('cancel', function(p, id)
  local status, cancel_requested, token = get_fields(p, id, 'status', 'cancel_requested', 'token')
  if status == 'queued' then
    move(p, id, 'canceled')
  elseif status == 'running' and cancel_requested ~= '1' then
    redis.call('HSET', job_key(p, id), 'cancel_requested', '1')
    publish_change(p, id)
    signal_worker(p, token)
  end
  return 1
end)

-- Replace the input of an unfinished job. known_updates: how many updates the caller has seen.
-- Returns 'ok'; 'ended' if it is too late; 'again' if there was another update; nil if there is no
-- such job. A started job loses its fingerprint: its result starts from another spec.
job_operation('update_spec', function(p, id, known_updates, input, fingerprint)
  local key = job_key(p, id)
  local status, cancel_requested, spec_locked, started_at, token =
    get_fields(p, id, 'status', 'cancel_requested', 'spec_locked', 'started_at', 'token')
  if not LEGAL[status] or cancel_requested == '1' or spec_locked then
    return 'ended'
  end
  if not has_all_updates(p, id, known_updates) then
    return 'again'
  end
  redis.call('HSET', key, 'input', input, 'fingerprint', fingerprint)
  if started_at then
    redis.call('HDEL', key, 'fingerprint')
  end
  redis.call('HINCRBY', key, 'spec_update_count', 1)
  publish_change(p, id)
  signal_worker(p, token)
  return 'ok'
end)

-- A worker that still runs the job finds its token stale.
job_operation('delete', function(p, id)
  erase_job(p, id)
  return 1
end)

-- pinned: '1' or '0'. A pinned job does not expire. Returns 1, or nil if there is no such job.
job_operation('set_pinned', function(p, id, pinned)
  local key = job_key(p, id)
  local completed_at, retention_ms, before =
    get_fields(p, id, 'completed_at', 'retention_ms', 'pinned')
  if (before or '0') ~= pinned then
    redis.call('HSET', key, 'pinned', pinned)
    publish_change(p, id)
  end
  if pinned == '1' then
    redis.call('HDEL', key, 'expires_at')
    redis.call('ZREM', p .. 'expiry', id)
    redis.call('ZREM', p .. 'records', id)
    index_removable(p, id, false)
  elseif before == '1' and completed_at then
    set_expiry(p, id, retention_ms)
    index_removable(p, id, true)
  end
  return 1
end)
