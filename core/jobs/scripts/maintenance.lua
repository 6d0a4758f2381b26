-- Requeue or end jobs whose lease has expired, and end queued jobs after their deadline. Returns
-- {how many are queued again, how many have ended}.
operation('reap_expired_leases', function(p, max_lost_workers, error)
  local now, requeued, ended = now_ms(), 0, 0
  local expired = redis.call('ZRANGEBYSCORE', p .. 'leases', '-inf', now, 'LIMIT', 0, 1000)
  for _, id in ipairs(expired) do
    local queued = requeue_or_fail(p, id, max_lost_workers, error)
    requeued, ended = requeued + (queued or 0), ended + (queued == 0 and 1 or 0)
  end
  local overdue = redis.call('ZRANGEBYSCORE', p .. 'deadlines', '-inf', now, 'LIMIT', 0, 1000)
  for _, id in ipairs(overdue) do
    local status, token = get_fields(p, id, 'status', 'token')
    if status == 'queued' and move(p, id, 'expired') then
      ended = ended + 1
    elseif status ~= 'running' then
      redis.call('ZREM', p .. 'deadlines', id) -- its record is damaged or missing
    else
      signal_worker(p, token) -- the worker ends the job
    end
  end
  return { requeued, ended }
end)

-- Delete the images of expired jobs, and their records job_retention_ms later; at most max_jobs of
-- each. Returns how many.
operation('expire_due', function(p, job_retention_ms, max_jobs)
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
    redis.call('ZADD', p .. 'records', now + job_retention_ms, id)
  end
  return #old + #due
end)

-- Earlier versions had no index of removable jobs and none of jobs with frames. Enter the next
-- MAX_INDEXED records of the owner after this entry. Returns the last entry, or nil at the end.
operation('index_records', function(p, owner, after)
  local rows = redis.call('ZRANGEBYSCORE', p .. 'jobs_of:' .. owner, '(' .. after, '+inf',
    'WITHSCORES', 'LIMIT', 0, MAX_INDEXED)
  for i = 1, #rows, 2 do
    local id, entry = rows[i], rows[i + 1]
    local status, pinned = get_fields(p, id, 'status', 'pinned')
    if not LEGAL[status] and pinned ~= '1' then -- also a damaged record makes room
      redis.call('ZADD', p .. 'removable:' .. owner, entry, id)
    end
    if redis.call('EXISTS', p .. 'frames:' .. id) == 1 then
      redis.call('ZADD', p .. 'framed:' .. owner, entry, id)
    end
  end
  return rows[#rows]
end)

-- Earlier versions summed the sizes at each upload. Move MAX_INDEXED of the owner's sizes to where
-- their sum is kept. Returns how many are left.
operation('move_upload_sizes', function(p, owner)
  local old, uploads = p .. 'sizes:' .. owner, p .. 'uploads:' .. owner
  local rows = redis.call('HRANDFIELD', old, MAX_INDEXED, 'WITHVALUES')
  for i = 1, #rows, 2 do
    redis.call('HDEL', old, rows[i])
    if redis.call('ZSCORE', uploads, rows[i]) then
      set_size(p .. 'upload_sizes:' .. owner, rows[i], tonumber(rows[i + 1]) or 0)
    end
  end
  local left_ms = redis.call('PTTL', uploads)
  if left_ms > 0 then
    redis.call('PEXPIRE', p .. 'upload_sizes:' .. owner, left_ms)
  end
  return redis.call('HLEN', old)
end)
