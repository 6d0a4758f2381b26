-- Requeue or end jobs whose lease has expired, and end queued jobs after their deadline. Returns
-- {how many are queued again, how many have ended}.
function functions.reap_expired_leases(p, max_losses, error)
  local now, requeued, ended = now_ms(), 0, 0
  local expired = redis.call('ZRANGEBYSCORE', p .. 'leases', '-inf', now, 'LIMIT', 0, 1000)
  for _, id in ipairs(expired) do
    local queued = requeue_or_fail(p, id, max_losses, error)
    requeued, ended = requeued + (queued or 0), ended + (queued == 0 and 1 or 0)
  end
  local overdue = redis.call('ZRANGEBYSCORE', p .. 'deadlines', '-inf', now, 'LIMIT', 0, 1000)
  for _, id in ipairs(overdue) do
    local status, token = get_fields(p, id, 'status', 'token')
    if status == 'queued' then
      move(p, id, 'expired')
      ended = ended + 1
    else
      signal_worker(p, token) -- the worker ends the job
    end
  end
  return { requeued, ended }
end

-- Delete the images of expired jobs, and their records record_ms later; at most max_jobs each.
-- Returns how many.
function functions.expire_due(p, record_ms, max_jobs)
  local now = now_ms()
  local old = redis.call('ZRANGEBYSCORE', p .. 'records', '-inf', now, 'LIMIT', 0, max_jobs)
  for _, id in ipairs(old) do
    erase_job(p, id)
  end
  local due = redis.call('ZRANGEBYSCORE', p .. 'expiry', '-inf', now, 'LIMIT', 0, max_jobs)
  for _, id in ipairs(due) do
    drop_all(p, id)
    forget_result(p, id)
    redis.call('HSET', job_key(p, id), 'images_deleted', '1')
    publish_change(p, id)
    redis.call('ZREM', p .. 'expiry', id)
    redis.call('ZADD', p .. 'records', now + record_ms, id)
  end
  return #old + #due
end

-- Let the next `count` jobs expire now, because the disk is too full. Returns how many.
function functions.expire_early(p, count)
  local due = redis.call('ZRANGE', p .. 'expiry', 0, count - 1)
  for _, id in ipairs(due) do
    redis.call('ZADD', p .. 'expiry', 0, id)
  end
  return #due
end

-- Returns 1 if `process` leads for the next term_ms.
function functions.acquire_leadership(p, process, term_ms)
  local leader = redis.call('GET', p .. 'leader')
  if leader and leader ~= process then
    return 0
  end
  redis.call('SET', p .. 'leader', process, 'PX', term_ms)
  return 1
end

-- Register all functions. They are listed, because `pairs` does not exist while a library loads.
local FUNCTIONS = {
  'acquire_leadership', 'add_frame', 'cancel', 'cancel_batch', 'claim', 'claim_delivery',
  'complete_delivery', 'confirm_deleted', 'create', 'delete', 'delete_batch', 'expire_due',
  'expire_early', 'finish', 'heartbeat', 'lock_spec', 'mark_deleting', 'reap_expired_leases',
  'register_orphans', 'release', 'renew', 'report_progress', 'requeue_jobs_of', 'reserve',
  'save_checkpoint', 'set_pinned', 'update_spec',
}
local READERS = {
  'find_replay', 'get_counts', 'get_load', 'is_owner', 'list_frames', 'list_workers', 'read_changed',
  'read_jobs',
}
local function callback(f)
  return function(keys, args)
    return f(keys[1], unpack(args))
  end
end
for i = 1, #FUNCTIONS do
  redis.register_function('impasto_VERSION_' .. FUNCTIONS[i], callback(functions[FUNCTIONS[i]]))
end
for i = 1, #READERS do
  redis.register_function({
    function_name = 'impasto_VERSION_' .. READERS[i],
    callback = callback(readers[READERS[i]]),
    flags = { 'no-writes' },
  })
end
