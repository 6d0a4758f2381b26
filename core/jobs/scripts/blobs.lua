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
  for _, frame in ipairs(redis.call('LRANGE', p .. 'frames:' .. id, 0, -1)) do
    drop_frame(p, owner, frame)
  end
  redis.call('DEL', p .. 'frames:' .. id)
  redis.call('HDEL', job_key(p, id), 'frames', 'frame_thinnings')
end

-- Drop all references of a job to blobs.
local function drop_all(p, id)
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

local function forget_old_uploads(p, owner)
  local uploads, now = p .. 'uploads:' .. owner, now_ms()
  for _, digest in ipairs(redis.call('ZRANGEBYSCORE', uploads, '-inf', now)) do
    redis.call('HDEL', p .. 'sizes:' .. owner, digest)
  end
  redis.call('ZREMRANGEBYSCORE', uploads, '-inf', now)
end

-- Whether this upload takes the owner's uploads above max_bytes. A known upload counts once.
local function is_above_quota(p, owner, digest, bytes, max_bytes)
  if bytes == 0 or redis.call('HEXISTS', p .. 'sizes:' .. owner, digest) == 1 then
    return false
  end
  for _, size in ipairs(redis.call('HVALS', p .. 'sizes:' .. owner)) do
    bytes = bytes + tonumber(size)
  end
  return bytes > max_bytes
end

-- Protect a blob from the garbage collector for keep_ms, and let the owner ('' for none) name it.
-- Called before the blob is written. bytes: of an upload, otherwise 0; max_bytes: of all uploads of
-- the owner. Returns 1; 0 while the old file is being deleted; above the quota, -ms until the first
-- of the uploads expires.
operation('reserve', function(p, digest, keep_ms, owner, bytes, max_bytes)
  if redis.call('SISMEMBER', p .. 'deleting', digest) == 1 then
    return 0
  end
  local until_ms = now_ms() + keep_ms
  if owner ~= '' then
    local uploads, sizes = p .. 'uploads:' .. owner, p .. 'sizes:' .. owner
    forget_old_uploads(p, owner)
    if is_above_quota(p, owner, digest, tonumber(bytes), tonumber(max_bytes)) then
      local now = now_ms()
      local first_ms = redis.call('ZRANGE', uploads, 0, 0, 'WITHSCORES')[2]
      return math.min(-1, now - tonumber(first_ms or now))
    end
    redis.call('ZADD', uploads, 'GT', until_ms, digest)
    redis.call('PEXPIRE', uploads, math.max(redis.call('PTTL', uploads), tonumber(keep_ms)))
    if tonumber(bytes) > 0 then
      redis.call('HSET', sizes, digest, bytes)
    end
    redis.call('PEXPIRE', sizes, redis.call('PTTL', uploads))
  end
  redis.call('ZADD', p .. 'orphans', 'GT', until_ms, digest)
  return 1
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
