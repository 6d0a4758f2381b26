local function add_reference(p, owner, digest)
  redis.call('HINCRBY', p .. 'refs', digest, 1)
  redis.call('HINCRBY', p .. 'refs:' .. owner, digest, 1)
end

-- owner: may be false, if the job's record is damaged.
local function drop_reference(p, owner, digest)
  owner = owner or ''
  if redis.call('HINCRBY', p .. 'refs:' .. owner, digest, -1) <= 0 then
    redis.call('HDEL', p .. 'refs:' .. owner, digest)
  end
  if redis.call('HINCRBY', p .. 'refs', digest, -1) <= 0 then
    redis.call('HDEL', p .. 'refs', digest)
    redis.call('ZADD', p .. 'orphans', 'NX', now_ms(), digest)
  end
end

-- Whether a job uses the blob, or a reservation protects it.
local function is_retained(p, digest)
  if redis.call('HEXISTS', p .. 'refs', digest) == 1 then
    return true
  end
  local until_ms = redis.call('ZSCORE', p .. 'orphans', digest)
  return until_ms and tonumber(until_ms) > now_ms()
end

local function drop_frame(p, owner, frame)
  local digest = decode_stored(frame).digest
  if digest then
    drop_reference(p, owner, digest)
  end
end

local function drop_frames(p, id)
  local owner = get_fields(p, id, 'owner')
  redis.call('ZREM', p .. 'framed:' .. (owner or ''), id)
  for _, frame in ipairs(redis.call('LRANGE', p .. 'frames:' .. id, 0, -1)) do
    drop_frame(p, owner, frame)
  end
  redis.call('DEL', p .. 'frames:' .. id)
  redis.call('HDEL', job_key(p, id), 'frames', 'frame_thinnings')
end

local SUM = 'sum' -- in the hashes of sizes; no digest has this name

-- Set the bytes of a digest in a hash with a running sum; 0 removes it.
local function set_size(sizes, digest, bytes)
  local before = tonumber(redis.call('HGET', sizes, digest) or 0) or 0
  if bytes > 0 then
    redis.call('HSET', sizes, digest, bytes)
  else
    redis.call('HDEL', sizes, digest)
  end
  add(sizes, SUM, bytes - before)
end

local function get_sum(sizes)
  return tonumber(redis.call('HGET', sizes, SUM) or 0) or 0
end

-- Count the pictures of an unfinished job. Those that several jobs share count once.
local function add_pending(p, id, owner, digests, sizes)
  for i, digest in ipairs(digests) do
    if redis.call('HINCRBY', p .. 'pending:' .. owner, digest, 1) == 1 then
      set_size(p .. 'pending_sizes:' .. owner, digest, sizes[i])
    end
  end
  redis.call('HSET', job_key(p, id), 'pending', #digests)
end

-- The job has ended: its pictures can be deleted to make room. Safe to repeat.
local function drop_pending(p, id)
  local owner, blobs, count = get_fields(p, id, 'owner', 'blobs', 'pending')
  if not (owner and count) then
    return
  end
  redis.call('HDEL', job_key(p, id), 'pending')
  local digests = decode_stored(blobs) -- first those of the submission, then results
  for i = 1, math.min(#digests, tonumber(count) or 0) do
    if redis.call('HINCRBY', p .. 'pending:' .. owner, digests[i], -1) <= 0 then
      redis.call('HDEL', p .. 'pending:' .. owner, digests[i])
      set_size(p .. 'pending_sizes:' .. owner, digests[i], 0)
    end
  end
  if redis.call('EXISTS', p .. 'pending:' .. owner) == 0 then
    redis.call('DEL', p .. 'pending_sizes:' .. owner) -- the sum
  end
end

-- The bytes that these submissions would add to the owner's pending pictures.
local function count_new_bytes(p, submissions)
  local bytes, seen = 0, {}
  for _, submission in ipairs(submissions) do
    for i, digest in ipairs(submission.digests) do
      if not seen[digest] and redis.call('HEXISTS', p .. 'pending:' .. submission.owner, digest) == 0
      then
        bytes = bytes + submission.sizes[i]
      end
      seen[digest] = true
    end
  end
  return bytes
end

-- Drop all references of a job to blobs.
local function drop_all(p, id)
  drop_pending(p, id)
  local owner, blobs, preview = get_fields(p, id, 'owner', 'blobs', 'preview')
  for _, digest in ipairs(decode_stored(blobs)) do
    drop_reference(p, owner, digest)
  end
  if preview then
    drop_reference(p, owner, preview)
  end
  drop_frames(p, id)
  redis.call('HSET', job_key(p, id), 'blobs', '[]')
  redis.call('HDEL', job_key(p, id), 'preview')
end

-- Returns whether there may be more.
local function forget_old_uploads(p, owner)
  local uploads = p .. 'uploads:' .. owner
  local old = redis.call('ZRANGEBYSCORE', uploads, '-inf', now_ms(), 'LIMIT', 0, MAX_FORGOTTEN)
  for _, digest in ipairs(old) do
    redis.call('ZREM', uploads, digest)
    set_size(p .. 'upload_sizes:' .. owner, digest, 0)
  end
  return #old == MAX_FORGOTTEN
end

-- Returns nil if the owner may name the blob, or why not: 2 if the operation must be repeated,
-- otherwise -ms until the first upload expires.
local function find_refusal(p, owner, digest, bytes, max_bytes, max_count)
  local uploads, sizes = p .. 'uploads:' .. owner, p .. 'upload_sizes:' .. owner
  local has_more_old = forget_old_uploads(p, owner)
  local is_new = not redis.call('ZSCORE', uploads, digest)
  local is_counted = bytes == 0 or redis.call('HEXISTS', sizes, digest) == 1
  local is_full = is_new and redis.call('ZCARD', uploads) >= max_count
  local sum = get_sum(sizes)
  if is_full or not is_counted and sum + bytes > max_bytes then
    if has_more_old then
      return 2
    end
    local first_ms = redis.call('ZRANGE', uploads, 0, 0, 'WITHSCORES')[2]
    return math.min(-1, now_ms() - tonumber(first_ms or now_ms()))
  end
end

-- Let the owner name the blob until until_ms.
local function add_upload(p, owner, digest, until_ms, bytes)
  local uploads, sizes = p .. 'uploads:' .. owner, p .. 'upload_sizes:' .. owner
  redis.call('ZADD', uploads, 'GT', until_ms, digest)
  if bytes > 0 then
    set_size(sizes, digest, bytes)
  end
  local left_ms = math.max(redis.call('PTTL', uploads), until_ms - now_ms(), 1)
  redis.call('PEXPIRE', uploads, left_ms)
  redis.call('PEXPIRE', sizes, left_ms)
end

-- Protect a blob from the garbage collector for keep_ms, and let the owner ('' for none) name it.
-- Called before the blob is written. bytes: of an upload, otherwise 0. max_bytes, max_count: of all
-- uploads of the owner. A blob that is no upload is protected even if there are too many uploads.
-- Returns 1; 0 while the old file is being deleted; 2: repeat; above the quota, -ms until the first
-- of the uploads expires.
operation('reserve', function(p, digest, keep_ms, owner, bytes, max_bytes, max_count)
  if redis.call('SISMEMBER', p .. 'deleting', digest) == 1 then
    return 0
  end
  local until_ms, size = now_ms() + keep_ms, tonumber(bytes)
  if owner ~= '' then
    local refusal = find_refusal(p, owner, digest, size, tonumber(max_bytes), tonumber(max_count))
    if refusal and (refusal == 2 or size > 0) then
      return refusal
    end
    if not refusal then
      add_upload(p, owner, digest, until_ms, size)
    end
  end
  redis.call('ZADD', p .. 'orphans', 'GT', until_ms, digest)
  return 1
end)

-- Whether `reserve` would count this upload now: returns 1, 2 or -ms, as it does.
operation('check_upload', function(p, digest, owner, bytes, max_bytes, max_count)
  return find_refusal(p, owner, digest, tonumber(bytes), tonumber(max_bytes), tonumber(max_count))
    or 1
end)

-- Returns the digests whose files may be deleted now, some 1,000 at most. They stay marked until
-- `confirm_deleted`. identity: '' or that of the store which the files belong to; another store
-- returns none.
operation('mark_deleting', function(p, identity)
  if identity ~= '' and redis.call('GET', p .. 'identity') ~= identity then
    return {}
  end
  local room = math.max(0, MAX_DELETING - redis.call('SCARD', p .. 'deleting'))
  local due = redis.call('ZRANGEBYSCORE', p .. 'orphans', '-inf', now_ms(), 'LIMIT', 0, room)
  for _, digest in ipairs(due) do
    redis.call('ZREM', p .. 'orphans', digest)
    if redis.call('HEXISTS', p .. 'refs', digest) == 0 then
      redis.call('SADD', p .. 'deleting', digest)
    end
  end
  return redis.call('SMEMBERS', p .. 'deleting')
end)
