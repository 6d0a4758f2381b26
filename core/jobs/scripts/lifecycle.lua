local function index_status(p, id, status)
  local job = redis.call('HMGET', job_key(p, id), 'owner', 'entry')
  redis.call('ZADD', p .. 'jobs_of:' .. job[1] .. ':' .. status, job[2], id)
end

-- From now on an ended job is kept for so long; 0: for good, as long as there is room.
local function set_expiry(p, id, keep_ms)
  local now = now_ms()
  if tonumber(keep_ms) > 0 then
    redis.call('HSET', job_key(p, id), 'expires_at', now + keep_ms)
    redis.call('ZADD', p .. 'expiry', now + keep_ms, id)
  else
    redis.call('ZADD', p .. 'expiry', now + FOREVER_MS, id)
  end
end

local function on_ended(p, id)
  local keep_ms, pinned = unpack(redis.call('HMGET', job_key(p, id), 'keep_ms', 'pinned'))
  local now = now_ms()
  redis.call('HSET', job_key(p, id), 'completed_at', now)
  redis.call('HINCRBY', p .. 'ended', redis.call('HGET', job_key(p, id), 'status'), 1)
  redis.call('HDEL', job_key(p, id), 'checkpoint')
  redis.call('ZREM', p .. 'deadlines', id)
  if pinned ~= '1' then
    set_expiry(p, id, keep_ms)
  end
  schedule_webhook(p, id, now)
end

-- The one place where a status changes.
local function move(p, id, to)
  local key = job_key(p, id)
  local job = redis.call('HMGET', key, 'status', 'owner')
  local from = job[1]
  if not (LEGAL[from] and LEGAL[from][to]) then
    return false
  end
  redis.call('ZREM', p .. 'jobs_of:' .. job[2] .. ':' .. from, id)
  index_status(p, id, to)
  redis.call('HSET', key, 'status', to)
  publish_change(p, id)
  if from == 'queued' then
    dequeue(p, id)
  else
    redis.call('ZREM', p .. 'leases', id)
  end
  if to == 'queued' then
    enqueue(p, id)
    redis.call('HDEL', key, 'spec_locked')
    if redis.call('HEXISTS', key, 'checkpoint') == 0 then
      redis.call('HDEL', key, 'progress') -- the next attempt begins again
      drop_frames(p, id)
    end
  elseif to ~= 'running' then
    on_ended(p, id)
  end
  return true
end

-- 'ok'; 'cancel' when somebody asked the run to stop, 'deadline_exceeded' when its deadline is over; 'stale' when the job is no
-- longer this worker's.
local function lease_status(p, id, token)
  local job = redis.call('HMGET', job_key(p, id), 'status', 'token', 'cancel_requested', 'deadline_at')
  if job[1] ~= 'running' or job[2] ~= token then
    return 'stale'
  end
  if job[3] == '1' then
    return 'cancel'
  end
  return job[4] and tonumber(job[4]) <= now_ms() and 'deadline_exceeded' or 'ok'
end

-- A running job whose worker is gone: back into the queue, or to its end. -> 1 if it is queued again, 0 if it has ended;
-- nil where the record does not run, which only a damaged one does not.
local function requeue_or_fail(p, id, most, error)
  local key = job_key(p, id)
  if redis.call('HGET', key, 'status') ~= 'running' then
    redis.call('ZREM', p .. 'leases', id)
    return nil
  end
  redis.call('HDEL', key, 'token')
  if redis.call('HGET', key, 'cancel_requested') == '1' then
    move(p, id, 'canceled')
    return 0
  end
  local losses = add(key, 'losses', 1)
  if losses >= tonumber(most) then
    redis.call('HSET', key, 'error', error)
    move(p, id, 'failed')
    return 0
  end
  if losses > 1 then -- it may be what kills them: the others first
    redis.call('HSET', key, 'place', new_place(p, id, redis.call('INCR', p .. 'number')))
  end
  move(p, id, 'queued')
  return 1
end

-- Nobody is answered with this job's result any more.
local function forget_result(p, id)
  local job = redis.call('HMGET', job_key(p, id), 'owner', 'fingerprint')
  if job[2] and redis.call('HGET', p .. 'results:' .. job[1], job[2]) == id then
    redis.call('HDEL', p .. 'results:' .. job[1], job[2])
  end
end

local function erase_job(p, id)
  local key = job_key(p, id)
  local job = redis.call('HMGET', key, 'status', 'owner', 'token')
  local status, owner = job[1] or '', job[2] or ''
  drop_all(p, id)
  dequeue(p, id)
  signal_worker(p, job[3])
  forget_result(p, id)
  redis.call('ZREM', p .. 'jobs_of:' .. owner .. ':' .. status, id)
  redis.call('ZREM', p .. 'jobs_of:' .. owner, id)
  unschedule_webhook(p, id)
  local batch = redis.call('HGET', key, 'batch_id')
  if batch then
    redis.call('ZREM', p .. 'batch:' .. batch, id)
  end
  for _, index in ipairs({ 'leases', 'deadlines', 'expiry', 'records' }) do
    redis.call('ZREM', p .. index, id)
  end
  redis.call('DEL', key)
  redis.call('PUBLISH', p .. 'changes', id)
end

-- worker, what it tells of itself: it lives
local function heartbeat(keys, args)
  local p, now = keys[1], now_ms()
  redis.call('ZADD', p .. 'workers', now, args[1])
  if redis.call('HGET', p .. 'worker_info', args[1]) ~= args[2] then
    redis.call('HSET', p .. 'worker_info', args[1], args[2])
  end
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', p .. 'workers', '-inf', now - 12 * WORKER_MS)) do
    redis.call('ZREM', p .. 'workers', gone)
    redis.call('HDEL', p .. 'worker_info', gone)
  end
end

-- Whether these are all changes of the job's spec.
local function knows_all_updates(p, id, spec_update_count)
  return (redis.call('HGET', job_key(p, id), 'spec_update_count') or '0') == spec_update_count
end

-- id, token, lease_ms, changes of the spec that the run knows of or '' -> standing
local function renew(keys, args)
  local p, id = keys[1], args[1]
  local answer = lease_status(p, id, args[2])
  if answer ~= 'stale' then
    redis.call('ZADD', p .. 'leases', now_ms() + tonumber(args[3]), id)
  end
  if answer == 'ok' and (args[4] or '') ~= '' and not knows_all_updates(p, id, args[4]) then
    return 'spec_updated'
  end
  return answer
end

-- token, worker, lease_ms -> id of the next job, now running under this token, or nil. Sent again, it is answered again,
-- with a whole lease; or nil where the job is no longer under the token.
local function claim(keys, args)
  local p, token, lease_ms = keys[1], args[1], tonumber(args[3])
  local before = redis.call('GET', p .. 'claim:' .. token)
  if before then
    return renew(keys, { before, token, lease_ms }) ~= 'stale' and before or nil
  end
  local place, id = next_place(p)
  if not place then
    return nil
  end
  local class, turn = string.sub(place, 1, 1), turn_at(place)
  if turn > tonumber(redis.call('HGET', p .. 'turns', class) or 0) then
    redis.call('HSET', p .. 'turns', class, turn)
  end
  local job = job_key(p, id)
  local now = now_ms()
  redis.call('SET', p .. 'claim:' .. token, id, 'PX', CLAIM_MS)
  add(job, 'attempt', 1)
  redis.call('HSET', job, 'place', place, 'token', token, 'worker', args[2], 'claimed_at', now)
  redis.call('HSETNX', job, 'started_at', now)
  move(p, id, 'running')
  redis.call('ZADD', p .. 'leases', now + lease_ms, id)
  return id
end

-- id, token, changes of the spec that the run knows of -> standing. If these are all, there will be no more: what is
-- told of a picture is what it was made with.
local function lock_spec(keys, args)
  local p, id = keys[1], args[1]
  local answer = lease_status(p, id, args[2])
  if answer ~= 'stale' then
    if not knows_all_updates(p, id, args[3]) then
      return 'spec_updated'
    end
    redis.call('HSET', job_key(p, id), 'spec_locked', '1')
  end
  return answer
end

-- id, token, progress, digest of the preview or '' -> standing
local function report_progress(keys, args)
  local p, id, preview = keys[1], args[1], args[4]
  local job = job_key(p, id)
  local answer = lease_status(p, id, args[2])
  if answer == 'stale' then
    return answer
  end
  redis.call('HSET', job, 'progress', args[3])
  publish_change(p, id)
  if preview ~= '' then
    local owner, old = unpack(redis.call('HMGET', job, 'owner', 'preview'))
    add_reference(p, owner, preview)
    redis.call('HSET', job, 'preview', preview)
    if old then
      drop_reference(p, owner, old)
    end
  end
  return answer
end

-- id, token, frame (JSON: iteration, digest, ...), most -> how often they were frame_thinnings out by now; -1: it is not kept.
-- Where there are too many, every other one goes. What an earlier attempt kept from this iteration on is painted again.
local function add_frame(keys, args)
  local p, id = keys[1], args[1]
  local key, list = job_key(p, id), p .. 'frames:' .. id
  if lease_status(p, id, args[2]) == 'stale' then
    return -1
  end
  local owner, frame = redis.call('HGET', key, 'owner'), cjson.decode(args[3])
  add_reference(p, owner, frame.digest)
  local last = redis.call('LINDEX', list, -1)
  while last and (decode_stored(last).iteration or frame.iteration) >= frame.iteration do
    drop_frame(p, owner, redis.call('RPOP', list))
    last = redis.call('LINDEX', list, -1)
  end
  frame.index = redis.call('HINCRBY', key, 'frames', 1) - 1
  redis.call('RPUSH', list, cjson.encode(frame))
  if redis.call('LLEN', list) > tonumber(args[4]) then
    local frames = redis.call('LRANGE', list, 0, -1)
    redis.call('DEL', list)
    for i, kept in ipairs(frames) do
      if i % 2 == 1 then
        redis.call('RPUSH', list, kept)
      else
        drop_frame(p, owner, kept)
      end
    end
    redis.call('HINCRBY', key, 'frame_thinnings', 1)
  end
  return tonumber(redis.call('HGET', key, 'frame_thinnings') or 0)
end

-- id, token, name -> standing. The next attempt goes on from there. A worker that got this far has not died in vain.
local function save_checkpoint(keys, args)
  local p, id = keys[1], args[1]
  local answer = lease_status(p, id, args[2])
  if answer ~= 'stale' then
    redis.call('HSET', job_key(p, id), 'checkpoint', args[3], 'losses', 0)
  end
  return answer
end

-- id, token, status, field, value, field, value, ..., with the field 'output' a blob's digest -> 'ok' or 'stale'
local function finish(keys, args)
  local p, id, token, status = keys[1], args[1], args[2], args[3]
  local job = job_key(p, id)
  local mine = redis.call('HMGET', job, 'status', 'token', 'owner', 'fingerprint', 'claimed_at')
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
      add_reference(p, mine[3], args[i + 1])
      local blobs = decode_stored(redis.call('HGET', job, 'blobs'))
      blobs[#blobs + 1] = args[i + 1]
      redis.call('HSET', job, 'blobs', cjson.encode(blobs))
    end
    redis.call('HSET', job, args[i], args[i + 1])
  end
  if status == 'succeeded' then
    local seconds, before = (now_ms() - mine[5]) / 1000, redis.call('GET', p .. 'pace')
    redis.call('SET', p .. 'pace', before and 0.8 * before + 0.2 * seconds or seconds)
    if mine[4] then
      redis.call('HSET', p .. 'results:' .. mine[3], mine[4], id)
    end
  end
  return move(p, id, status) and 'ok' or 'stale'
end

-- id, token -> 'ok' or 'stale'. A worker that goes away hands its job back; that is no failed attempt.
local function release(keys, args)
  local p, id = keys[1], args[1]
  local answer = lease_status(p, id, args[2])
  if answer == 'stale' then
    return answer
  end
  if answer == 'cancel' then
    move(p, id, 'canceled')
  else
    move(p, id, 'queued')
    add(job_key(p, id), 'attempt', -1)
  end
  redis.call('HDEL', job_key(p, id), 'token')
  return 'ok'
end

-- worker, most losses, error of a job that was lost too often -> how many are queued again. The worker's process died.
local function requeue_jobs_of(keys, args)
  local p, again = keys[1], 0
  redis.call('ZREM', p .. 'workers', args[1])
  redis.call('HDEL', p .. 'worker_info', args[1])
  for _, id in ipairs(redis.call('ZRANGE', p .. 'leases', 0, -1)) do
    if redis.call('HGET', job_key(p, id), 'worker') == args[1] then
      again = again + (requeue_or_fail(p, id, args[2], args[3]) or 0)
    end
  end
  return again
end

-- owner, id -> 1, or nil if there is no such job. A waiting job ends at once, a running one is asked to stop.
local function cancel(keys, args)
  local p, id = keys[1], args[2]
  if not is_visible(p, id, args[1]) then
    return nil
  end
  local key = job_key(p, id)
  local job = redis.call('HMGET', key, 'status', 'cancel_requested', 'token')
  if job[1] == 'queued' then
    move(p, id, 'canceled')
  elseif job[1] == 'running' and job[2] ~= '1' then
    redis.call('HSET', key, 'cancel_requested', '1')
    publish_change(p, id)
    signal_worker(p, job[3])
  end
  return 1
end

-- owner, id, changes of the spec before this, input, fingerprint -> 'ok'; 'ended' if it is too late; 'again' if there was
-- another change; nil if there is no such job. A picture that was begun otherwise is not what the fingerprint promises.
local function update_spec(keys, args)
  local p, id = keys[1], args[2]
  if not is_visible(p, id, args[1]) then
    return nil
  end
  local key = job_key(p, id)
  local job = redis.call('HMGET', key, 'status', 'cancel_requested', 'spec_locked', 'spec_update_count', 'started_at', 'token')
  if not LEGAL[job[1]] or job[2] == '1' or job[3] then
    return 'ended'
  end
  if (job[4] or '0') ~= args[3] then
    return 'again'
  end
  redis.call('HSET', key, 'input', args[4], 'fingerprint', args[5])
  if job[5] then
    redis.call('HDEL', key, 'fingerprint')
  end
  redis.call('HINCRBY', key, 'spec_update_count', 1)
  publish_change(p, id)
  signal_worker(p, job[6])
  return 'ok'
end

-- owner, id -> 1 if there was such a job. A worker that still runs it finds its token stale.
local function delete(keys, args)
  if not is_visible(keys[1], args[2], args[1]) then
    return 0
  end
  erase_job(keys[1], args[2])
  return 1
end

-- owner, id, '1' or '0' -> 1, or nil if there is no such job. A pinned job does not expire.
local function set_pinned(keys, args)
  local p, id = keys[1], args[2]
  if not is_visible(p, id, args[1]) then
    return nil
  end
  local key = job_key(p, id)
  local completed_at, keep_ms, pinned = unpack(redis.call('HMGET', key, 'completed_at', 'keep_ms', 'pinned'))
  if (pinned or '0') ~= args[3] then
    redis.call('HSET', key, 'pinned', args[3])
    publish_change(p, id)
  end
  if args[3] == '1' then
    redis.call('HDEL', key, 'expires_at')
    redis.call('ZREM', p .. 'expiry', id)
    redis.call('ZREM', p .. 'records', id)
  elseif pinned == '1' and completed_at then
    set_expiry(p, id, keep_ms)
  end
  return 1
end

redis.register_function('impasto_VERSION_claim', claim)
redis.register_function('impasto_VERSION_heartbeat', heartbeat)
redis.register_function('impasto_VERSION_renew', renew)
redis.register_function('impasto_VERSION_lock_spec', lock_spec)
redis.register_function('impasto_VERSION_report_progress', report_progress)
redis.register_function('impasto_VERSION_save_checkpoint', save_checkpoint)
redis.register_function('impasto_VERSION_add_frame', add_frame)
redis.register_function('impasto_VERSION_finish', finish)
redis.register_function('impasto_VERSION_release', release)
redis.register_function('impasto_VERSION_requeue_jobs_of', requeue_jobs_of)
redis.register_function('impasto_VERSION_cancel', cancel)
redis.register_function('impasto_VERSION_delete', delete)
redis.register_function('impasto_VERSION_update_spec', update_spec)
redis.register_function('impasto_VERSION_set_pinned', set_pinned)
