local function add_reference(p, owner, digest)
  redis.call('HINCRBY', p .. 'refs', digest, 1)
  redis.call('HINCRBY', p .. 'refs:' .. owner, digest, 1)
end

local function drop_reference(p, owner, digest)
  if redis.call('HINCRBY', p .. 'refs:' .. owner, digest, -1) <= 0 then
    redis.call('HDEL', p .. 'refs:' .. owner, digest)
  end
  if redis.call('HINCRBY', p .. 'refs', digest, -1) <= 0 then
    redis.call('HDEL', p .. 'refs', digest)
    redis.call('ZADD', p .. 'orphans', 'NX', now_ms(), digest)
  end
end

-- Whether a blob is used, or held until later than now.
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
  local owner = redis.call('HGET', job_key(p, id), 'owner')
  for _, frame in ipairs(redis.call('LRANGE', p .. 'frames:' .. id, 0, -1)) do
    drop_frame(p, owner, frame)
  end
  redis.call('DEL', p .. 'frames:' .. id)
  redis.call('HDEL', job_key(p, id), 'frames', 'frame_thinnings')
end

local function drop_all(p, id)
  local job = redis.call('HMGET', job_key(p, id), 'owner', 'blobs', 'preview')
  for _, digest in ipairs(decode_stored(job[2])) do
    drop_reference(p, job[1], digest)
  end
  if job[3] then
    drop_reference(p, job[1], job[3])
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

-- Whether the owner's uploads would take more than so many bytes with this one, where it is not among them yet.
local function is_too_much(p, owner, digest, bytes, most_bytes)
  if bytes == 0 or redis.call('HEXISTS', p .. 'sizes:' .. owner, digest) == 1 then
    return false
  end
  for _, others in ipairs(redis.call('HVALS', p .. 'sizes:' .. owner)) do
    bytes = bytes + tonumber(others)
  end
  return bytes > most_bytes
end

-- digest, keep_ms, owner or '', bytes of an upload or 0, most bytes of all uploads of theirs -> 1; 0 while its file is
-- being deleted; -ms, as long as it will take, where there is no room. Called before a blob is written: from now on it
-- is safe from the janitor for keep_ms, and as long as a job uses it; and the owner may name it.
local function reserve(keys, args)
  local p, digest, keep_ms, owner, bytes = keys[1], args[1], tonumber(args[2]), args[3], tonumber(args[4])
  if redis.call('SISMEMBER', p .. 'deleting', digest) == 1 then
    return 0
  end
  local now, uploads, sizes = now_ms(), p .. 'uploads:' .. owner, p .. 'sizes:' .. owner
  if owner ~= '' then
    forget_old_uploads(p, owner)
    if is_too_much(p, owner, digest, bytes, tonumber(args[5])) then
      local first = redis.call('ZRANGE', uploads, 0, 0, 'WITHSCORES')[2]
      return math.min(-1, now - tonumber(first or now))
    end
    redis.call('ZADD', uploads, 'GT', now + keep_ms, digest)
    redis.call('PEXPIRE', uploads, math.max(redis.call('PTTL', uploads), keep_ms))
    if bytes > 0 then
      redis.call('HSET', sizes, digest, bytes)
    end
    redis.call('PEXPIRE', sizes, redis.call('PTTL', uploads))
  end
  redis.call('ZADD', p .. 'orphans', 'GT', now + keep_ms, digest)
  return 1
end

-- owner, digest -> 1 if they uploaded it and it is kept, or a job of theirs uses it
local function is_owner(keys, args)
  local p = keys[1]
  if redis.call('HEXISTS', p .. 'refs:' .. args[1], args[2]) == 1 then
    return 1
  end
  local until_ms = redis.call('ZSCORE', p .. 'uploads:' .. args[1], args[2])
  return until_ms and tonumber(until_ms) > now_ms() and 1 or 0
end

-- -> digests whose files may go now. They stay condemned until `forget`.
local function mark_deleting(keys)
  local p = keys[1]
  for _, digest in ipairs(redis.call('ZRANGEBYSCORE', p .. 'orphans', '-inf', now_ms(), 'LIMIT', 0, 1000)) do
    redis.call('ZREM', p .. 'orphans', digest)
    if redis.call('HEXISTS', p .. 'refs', digest) == 0 then
      redis.call('SADD', p .. 'deleting', digest)
    end
  end
  return redis.call('SMEMBERS', p .. 'deleting')
end

-- digest: its file is gone
local function confirm_deleted(keys, args)
  return redis.call('SREM', keys[1] .. 'deleting', args[1])
end

-- keep_ms, digest... -> how many of them nobody used, held or was deleting. Those are held for keep_ms more, and then go:
-- files whose record a torn log has lost, or a backup of the store never had.
local function register_orphans(keys, args)
  local p, strays = keys[1], 0
  local until_ms = now_ms() + args[1]
  for i = 2, #args do
    if redis.call('HEXISTS', p .. 'refs', args[i]) == 0 and redis.call('SISMEMBER', p .. 'deleting', args[i]) == 0 then
      strays = strays + redis.call('ZADD', p .. 'orphans', 'NX', until_ms, args[i])
    end
  end
  return strays
end

redis.register_function('impasto_VERSION_reserve', reserve)
redis.register_function('impasto_VERSION_is_owner', is_owner)
redis.register_function('impasto_VERSION_mark_deleting', mark_deleting)
redis.register_function('impasto_VERSION_confirm_deleted', confirm_deleted)
redis.register_function('impasto_VERSION_register_orphans', register_orphans)
