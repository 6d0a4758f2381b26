-- most losses, error of a job that was lost too often -> {queued again, ended}
local function reap_expired_leases(keys, args)
  local p, now = keys[1], now_ms()
  local again, over = 0, 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'leases', '-inf', now, 'LIMIT', 0, 1000)) do
    local queued = requeue_or_fail(p, id, args[1], args[2])
    again, over = again + (queued or 0), over + (queued == 0 and 1 or 0)
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'deadlines', '-inf', now, 'LIMIT', 0, 1000)) do
    local job = redis.call('HMGET', job_key(p, id), 'status', 'token')
    if job[1] == 'queued' then
      move(p, id, 'expired')
      over = over + 1
    else
      signal_worker(p, job[2]) -- its worker ends it
    end
  end
  return { again, over }
end

-- record_ms, most -> how many. Ended jobs whose time is over lose their pictures; and their records after record_ms more.
local function expire_due(keys, args)
  local p, now = keys[1], now_ms()
  local over = redis.call('ZRANGEBYSCORE', p .. 'records', '-inf', now, 'LIMIT', 0, args[2])
  for _, id in ipairs(over) do
    erase_job(p, id)
  end
  local due = redis.call('ZRANGEBYSCORE', p .. 'expiry', '-inf', now, 'LIMIT', 0, args[2])
  for _, id in ipairs(due) do
    drop_all(p, id)
    forget_result(p, id)
    redis.call('HSET', job_key(p, id), 'images_deleted', '1')
    publish_change(p, id)
    redis.call('ZREM', p .. 'expiry', id)
    redis.call('ZADD', p .. 'records', now + args[1], id)
  end
  return #over + #due
end

-- how many -> how many. The ended jobs that would expire next do so now: the disk is fuller than it may be.
local function expire_early(keys, args)
  local next_ones = redis.call('ZRANGE', keys[1] .. 'expiry', 0, args[1] - 1)
  for _, id in ipairs(next_ones) do
    redis.call('ZADD', keys[1] .. 'expiry', 0, id)
  end
  return #next_ones
end

-- me, term_ms -> 1 if this process leads now
local function acquire_leadership(keys, args)
  local key = keys[1] .. 'leader'
  local leader = redis.call('GET', key)
  if leader and leader ~= args[1] then
    return 0
  end
  redis.call('SET', key, args[1], 'PX', args[2])
  return 1
end

redis.register_function('impasto_VERSION_reap_expired_leases', reap_expired_leases)
redis.register_function('impasto_VERSION_expire_due', expire_due)
redis.register_function('impasto_VERSION_expire_early', expire_early)
redis.register_function('impasto_VERSION_acquire_leadership', acquire_leadership)
