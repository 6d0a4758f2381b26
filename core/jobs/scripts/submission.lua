-- A submission is a table that serialization.py makes.

-- Returns the earlier answer to this idempotency key as {outcome, id}, or nil.
local function find_earlier(p, submission)
  local replay = submission.key_hash
    and redis.call('GET', p .. 'replay:' .. submission.owner .. ':' .. submission.key_hash)
  if replay then
    local request_hash, id = string.match(replay, '^(%S+) (%S+)$')
    if redis.call('EXISTS', job_key(p, id), p .. 'batch:' .. id) == 1 then
      return { request_hash == submission.request_hash and 'created' or 'conflict', id }
    end
  end
end

-- Returns the job whose result answers the submission, or nil: the owner's, of the same input and
-- the same weights, with its image still there.
local function find_result(p, submission)
  local id = submission.reuse
    and redis.call('HGET', p .. 'results:' .. submission.owner, submission.fingerprint)
  if not id then
    return nil
  end
  local model, output, images_deleted = get_fields(p, id, 'model', 'output', 'images_deleted')
  local sha256 = redis.call('HGET', p .. 'networks', submission.model)
  if model and images_deleted ~= '1' and is_retained(p, output)
    and decode_stored(model).sha256 == sha256 then
    return id
  end
end

-- End a new job at once with the result of another.
local function copy_result(p, id, source)
  local key = job_key(p, id)
  local fields = { 'output', 'outputs', 'model', 'metrics', 'progress' }
  local values = { get_fields(p, source, unpack(fields)) }
  for i, field in ipairs(fields) do
    if values[i] then
      redis.call('HSET', key, field, values[i])
    end
  end
  local owner, blobs = get_fields(p, id, 'owner', 'blobs')
  blobs = decode_stored(blobs)
  blobs[#blobs + 1] = values[1]
  add_reference(p, owner, values[1])
  redis.call('HSET', key, 'blobs', cjson.encode(blobs), 'reused_from', source,
    'status', 'succeeded')
  index_status(p, id, 'succeeded')
  on_ended(p, id)
end

-- Returns the number of the job.
local function write_record(p, id, submission)
  local key, owner, now = job_key(p, id), submission.owner, now_ms()
  local number = redis.call('INCR', p .. 'number')
  local entry = redis.call('HINCRBY', p .. 'entries', owner, 1)
  redis.call('HSET', key, 'id', id, 'number', number, 'entry', entry, 'status', 'queued',
    'version', 1, 'attempt', 0, 'lost_workers', 0, 'created_at', now, 'owner', owner,
    'priority', submission.priority, 'retention_ms', submission.retention_ms,
    'input', submission.input, 'blobs', cjson.encode(submission.digests),
    'fingerprint', submission.fingerprint, 'format', FORMAT,
    'lane', lane_name(submission.pool or '', submission.size))
  count_total(p, 'submitted')
  for _, field in ipairs({ 'webhook', 'root_path', 'retried_from', 'batch_id', 'pool', 'work',
    'size_class', 'traceparent', 'warnings' }) do
    if submission[field] then
      redis.call('HSET', key, field, submission[field])
    end
  end
  redis.call('ZADD', p .. 'jobs_of:' .. owner, entry, id)
  for _, digest in ipairs(submission.digests) do
    add_reference(p, owner, digest)
  end
  add_pending(p, id, owner, submission.digests, submission.sizes)
  if submission.deadline_ms then
    redis.call('HSET', key, 'deadline_at', now + submission.deadline_ms)
    redis.call('ZADD', p .. 'deadlines', now + submission.deadline_ms, id)
  end
  return number
end

-- Each owner has a bounded number of records, because an untrusted client may submit without end.
-- Returns the oldest ended jobs that must go for `count` more, and whether there are enough.
local function find_room(p, owner, count)
  local needed = math.min(count,
    redis.call('ZCARD', p .. 'jobs_of:' .. owner) + count - MAX_RECORDS)
  if needed <= 0 then
    return {}, true
  end
  local oldest = redis.call('ZRANGE', p .. 'removable:' .. owner, 0, needed - 1)
  return oldest, #oldest >= needed
end

-- Returns why these submissions of one owner are refused, all of them; or false, and the jobs that
-- must go to make room for them.
local function refusal_reason(p, submissions)
  local first = submissions[1]
  local oldest, has_room = find_room(p, first.owner, #submissions)
  if not has_room then
    return 'records'
  end
  local new = 0 -- jobs to queue. If jobs must go, a result to reuse may be among them.
  for _, submission in ipairs(submissions) do
    for _, digest in ipairs(submission.digests) do
      if not is_retained(p, digest) then
        return 'no_image'
      end
    end
    new = new + (#oldest == 0 and find_result(p, submission) and 0 or 1)
  end
  local own = redis.call('ZCARD', p .. 'queue:' .. first.owner)
    + redis.call('ZCARD', p .. 'jobs_of:' .. first.owner .. ':running')
  if new > 0 and first.max_per_owner and own + new > first.max_per_owner then
    return 'quota'
  end
  local pending = get_sum(p .. 'pending_sizes:' .. first.owner)
  if new > 0 and first.max_bytes and pending + count_new_bytes(p, submissions) > first.max_bytes then
    return 'bytes'
  end
  local queued = redis.call('ZCARD', p .. 'queue')
  if new > 0 and first.max_queued and queued + new > first.max_queued then
    return 'full'
  end
  return false, oldest
end

local function insert(p, id, submission)
  local source = find_result(p, submission)
  local number = write_record(p, id, submission)
  if source then
    copy_result(p, id, source)
  else
    redis.call('HSET', job_key(p, id), 'place', new_place(p, id, number))
    index_status(p, id, 'queued')
    enqueue(p, id)
  end
end

-- Create one job, or all jobs of a batch, or none. `id`: of the job, or of the batch; `ids` of the
-- jobs and `submissions` are JSON lists. The first submission carries the idempotency key.
-- Returns {outcome, id}. Outcomes: created, perhaps earlier, with the same id or key; conflict: the
-- key belongs to another request; no_image: an image is not retained; quota: the owner has enough
-- unfinished jobs; bytes: their pictures take too many; full: the queue is; records: the owner has
-- too many, and none may go; paused: the operator accepts no jobs now.
operation('create', function(p, id, ids, submissions)
  if redis.call('EXISTS', job_key(p, id), p .. 'batch:' .. id) == 1 then
    return { 'created', id }
  end
  ids, submissions = cjson.decode(ids), cjson.decode(submissions)
  local first = submissions[1]
  local earlier = find_earlier(p, first)
  if earlier then
    return earlier
  end
  if redis.call('EXISTS', p .. 'intake_paused') == 1 then
    return { 'paused', id }
  end
  local reason, oldest = refusal_reason(p, submissions)
  if reason then
    return { reason, id }
  end
  for _, job in ipairs(oldest) do
    erase_job(p, job, first.owner)
  end
  for i, submission in ipairs(submissions) do
    insert(p, ids[i], submission)
    if first.key_hash then
      redis.call('HSET', job_key(p, ids[i]), 'key_hash', first.key_hash)
    end
    if submission.batch_id then
      redis.call('ZADD', p .. 'batch:' .. submission.batch_id, i, ids[i])
    end
  end
  if first.key_hash then
    local key = p .. 'replay:' .. first.owner .. ':' .. first.key_hash
    redis.call('SET', key, first.request_hash .. ' ' .. id, 'PX', first.replay_ms)
  end
  return { 'created', id }
end)
