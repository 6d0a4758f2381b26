-- The earlier job that answers this submission: {word, id}, or nil
local function find_earlier(p, order)
  if order.key then
    local before = redis.call('GET', p .. 'replay:' .. order.owner .. ':' .. order.key)
    if before then
      local print, id = string.match(before, '^(%S+) (%S+)$')
      if redis.call('EXISTS', job_key(p, id), p .. 'batch:' .. id) == 1 then
        return { print == order.print and 'created' or 'conflict', id }
      end
    end
  end
end

local function result_of(p, order)
  local id = order.reuse and redis.call('HGET', p .. 'results:' .. order.owner, order.fingerprint)
  if not id then
    return nil
  end
  local job = redis.call('HMGET', job_key(p, id), 'model', 'output', 'images_deleted')
  local model, output, images_deleted = job[1], job[2], job[3]
  if model and images_deleted ~= '1' and is_retained(p, output) and decode_stored(model).sha256 == redis.call('HGET', p .. 'networks', order.model) then
    return id
  end
end

-- A new job that has ended before it began: with the result of another.
local function copy_result(p, id, from)
  local key = job_key(p, id)
  local fields = { 'output', 'outputs', 'model', 'metrics', 'progress' }
  local values = redis.call('HMGET', job_key(p, from), unpack(fields))
  for i, field in ipairs(fields) do
    if values[i] then
      redis.call('HSET', key, field, values[i])
    end
  end
  local blobs = decode_stored(redis.call('HGET', key, 'blobs'))
  blobs[#blobs + 1] = values[1]
  add_reference(p, redis.call('HGET', key, 'owner'), values[1])
  redis.call('HSET', key, 'blobs', cjson.encode(blobs), 'reused_from', from, 'status', 'succeeded')
  index_status(p, id, 'succeeded')
  on_ended(p, id)
end

local function write_record(p, id, order)
  local key, now = job_key(p, id), now_ms()
  local number, entry = redis.call('INCR', p .. 'number'), redis.call('HINCRBY', p .. 'entries', order.owner, 1)
  redis.call('HSET', key, 'id', id, 'number', number, 'entry', entry, 'status', 'queued', 'version', 1, 'attempt', 0,
    'losses', 0, 'created_at', now, 'owner', order.owner, 'priority', order.priority, 'keep_ms', order.keep_ms,
    'input', order.input, 'blobs', cjson.encode(order.digests), 'fingerprint', order.fingerprint)
  for _, field in ipairs({ 'webhook', 'retried_from', 'batch_id' }) do
    if order[field] then
      redis.call('HSET', key, field, order[field])
    end
  end
  redis.call('ZADD', p .. 'jobs_of:' .. order.owner, entry, id)
  for _, digest in ipairs(order.digests) do
    add_reference(p, order.owner, digest)
  end
  if order.deadline_ms then
    redis.call('HSET', key, 'deadline_at', now + order.deadline_ms)
    redis.call('ZADD', p .. 'deadlines', now + order.deadline_ms, id)
  end
end

-- An owner's records are bounded, as everything that a stranger can pile up. -> those that make room for so many more,
-- and whether they do.
local function find_room(p, owner, count)
  local of, going = p .. 'jobs_of:' .. owner, {}
  local need = math.min(count, redis.call('ZCARD', of) + count - MOST_RECORDS)
  if need > 0 then
    for _, id in ipairs(redis.call('ZRANGE', of, 0, MOST_LOOKED_AT - 1)) do
      local status, pinned = unpack(redis.call('HMGET', job_key(p, id), 'status', 'pinned'))
      if #going < need and not LEGAL[status] and pinned ~= '1' then
        going[#going + 1] = id
      end
    end
  end
  return going, #going >= need
end

-- Why orders of one owner cannot be taken, all of them; or false, and the records that make room for them
local function refusal_reason(p, orders)
  local owner, most_own, most_queued = orders[1].owner, orders[1].most_own, orders[1].most_queued
  local going, is_room = find_room(p, owner, #orders)
  if not is_room then
    return 'records'
  end
  local new = 0 -- that are to be painted; where records go, a result to reuse may be among them
  for _, order in ipairs(orders) do
    for _, digest in ipairs(order.digests) do
      if not is_retained(p, digest) then
        return 'gone'
      end
    end
    new = new + (#going == 0 and result_of(p, order) and 0 or 1)
  end
  local own = redis.call('ZCARD', p .. 'queue:' .. owner) + redis.call('ZCARD', p .. 'jobs_of:' .. owner .. ':running')
  if new > 0 and most_own and own + new > most_own then
    return 'quota'
  end
  if new > 0 and most_queued and redis.call('ZCARD', p .. 'queue') + new > most_queued then
    return 'full'
  end
  return false, going
end

local function insert(p, id, order)
  local source = result_of(p, order)
  write_record(p, id, order)
  if source then
    copy_result(p, id, source)
  else
    redis.call('HSET', job_key(p, id), 'place', new_place(p, id, redis.call('HGET', job_key(p, id), 'number')))
    index_status(p, id, 'queued')
    enqueue(p, id)
  end
end

local function remember_key(p, order, id)
  if order.key then
    redis.call('SET', p .. 'replay:' .. order.owner .. ':' .. order.key, order.print .. ' ' .. id, 'PX', order.replay_ms)
  end
end

-- owner, key, print -> {'created' or 'conflict', id} if the key was used before, or nil
local function find_replay(keys, args)
  return find_earlier(keys[1], { owner = args[1], key = args[2], print = args[3] })
end

-- id, order -> {word, id}: created (perhaps earlier, by the same key), conflict (the key was used for something else),
-- gone (a picture is not safe), quota (the owner has enough jobs), full (all have), records (the owner's fill their room,
-- and none of them may go). The same id again changes nothing.
local function create(keys, args)
  local p, id, order = keys[1], args[1], cjson.decode(args[2])
  if redis.call('EXISTS', job_key(p, id)) == 1 then
    return { 'created', id }
  end
  local before = find_earlier(p, order)
  if before then
    return before
  end
  local why, going = refusal_reason(p, { order })
  if why then
    return { why, id }
  end
  for _, oldest in ipairs(going) do
    erase_job(p, oldest)
  end
  insert(p, id, order)
  remember_key(p, order, id)
  return { 'created', id }
end

-- batch, ids, orders (JSON lists) -> {word, batch}, as `create`: all jobs or none. The first order carries the key.
local function create_batch(keys, args)
  local p, batch, ids, orders = keys[1], args[1], cjson.decode(args[2]), cjson.decode(args[3])
  if redis.call('EXISTS', p .. 'batch:' .. batch) == 1 then
    return { 'created', batch }
  end
  local before = find_earlier(p, orders[1])
  if before then
    return before
  end
  local why, going = refusal_reason(p, orders)
  if why then
    return { why, batch }
  end
  for _, oldest in ipairs(going) do
    erase_job(p, oldest)
  end
  for i, order in ipairs(orders) do
    insert(p, ids[i], order)
    redis.call('ZADD', p .. 'batch:' .. batch, i, ids[i])
  end
  remember_key(p, orders[1], batch)
  return { 'created', batch }
end

-- owner, batch -> how many jobs it had that the caller may see
local function for_each_job(step)
  return function(keys, args)
    local count = 0
    for _, id in ipairs(redis.call('ZRANGE', keys[1] .. 'batch:' .. args[2], 0, -1)) do
      count = count + (step(keys, { args[1], id }) or 0)
    end
    return count
  end
end

redis.register_function('impasto_VERSION_create', create)
redis.register_function('impasto_VERSION_create_batch', create_batch)
redis.register_function('impasto_VERSION_cancel_batch', for_each_job(cancel))
redis.register_function('impasto_VERSION_delete_batch', for_each_job(delete))
redis.register_function({ function_name = 'impasto_VERSION_find_replay', callback = find_replay, flags = { 'no-writes' } })
