-- One courier at a time goes to one host for one owner, and a few to all hosts of one owner: whoever answers slowly
-- delays nobody else.
local function lane_of(p, id)
  local job = redis.call('HMGET', job_key(p, id), 'owner', 'webhook')
  return job[2] and job[1] .. ' ' .. (string.match(job[2], '^%a+://([^/?#]+)') or '')
end

-- When a lane is due: with its first.
local function sort_lane(p, lane)
  local first = redis.call('ZRANGE', p .. 'outbox:' .. lane, 0, 0, 'WITHSCORES')
  if first[1] then
    redis.call('ZADD', p .. 'outbox', first[2], lane)
  else
    redis.call('ZREM', p .. 'outbox', lane)
  end
end

local function schedule_webhook(p, id, due)
  local lane = lane_of(p, id)
  if lane then
    redis.call('ZADD', p .. 'outbox:' .. lane, due, id)
    sort_lane(p, lane)
  end
end

local function unschedule_webhook(p, id)
  local lane = lane_of(p, id)
  if lane then
    redis.call('ZREM', p .. 'outbox:' .. lane, id)
    sort_lane(p, lane)
  end
end

-- token, lease_ms, most tries -> {id, which try}, or nil. The job whose webhook is due first, among the lanes without a
-- courier. A try counts before it is made: one that kills couriers is not made for ever.
function functions.claim_delivery(...)
  local keys, args = select(1, ...), { select(2, ...) }
  local p, now = keys, now_ms()
  local before = redis.call('GET', p .. 'delivery_claim:' .. args[1])
  if before then
    local taken = cjson.decode(before)
    return { taken.id, taken.try }
  end
  redis.call('ZREMRANGEBYSCORE', p .. 'dispatchers', '-inf', now)
  local busy, free = {}, {}
  for _, lane in ipairs(redis.call('ZRANGE', p .. 'dispatchers', 0, -1)) do
    local owner = string.match(lane, '^%S+')
    busy[lane], busy[owner] = 1, (busy[owner] or 0) + 1
  end
  local at = 0
  repeat -- on to the end, if need be: one owner's many lanes hide no other's
    local lanes = redis.call('ZRANGEBYSCORE', p .. 'outbox', '-inf', now, 'LIMIT', at, LANES_AT_ONCE)
    for _, lane in ipairs(lanes) do
      if not busy[lane] and (busy[string.match(lane, '^%S+')] or 0) < COURIERS then
        free[#free + 1] = lane
      end
    end
    at = at + #lanes
  until #free > 0 or #lanes == 0
  for _, lane in ipairs(free) do
    while true do
      local id = redis.call('ZRANGEBYSCORE', p .. 'outbox:' .. lane, '-inf', now, 'LIMIT', 0, 1)[1]
      if not id then
        break
      end
      local job = job_key(p, id)
      local try = redis.call('HEXISTS', job, 'webhook') == 1 and add(job, 'webhook_tries', 1)
      if try and try <= tonumber(args[3]) then
        redis.call('HSET', job, 'webhook_token', args[1])
        redis.call('ZADD', p .. 'dispatchers', now + args[2], lane)
        local taken = { id = id, try = try, lane = lane, until_ms = now + args[2] }
        redis.call('SET', p .. 'delivery_claim:' .. args[1], cjson.encode(taken), 'PX', args[2])
        return { id, try }
      end
      if try then
        redis.call('HSET', job, 'webhook_end', 'given_up')
      end
      redis.call('ZREM', p .. 'outbox:' .. lane, id)
      sort_lane(p, lane)
    end
  end
  return nil
end

-- Nobody is on the way to the lane any more: the job is deleted, which knew the lane; the collect knows it, too.
local function free_lane(p, token)
  local before = redis.call('GET', p .. 'delivery_claim:' .. token)
  if before then
    local taken = cjson.decode(before)
    if tonumber(redis.call('ZSCORE', p .. 'dispatchers', taken.lane) or 0) == taken.until_ms then -- it is still this courier's
      redis.call('ZREM', p .. 'dispatchers', taken.lane)
    end
  end
end

-- id, token, ms until the next try or '', how it ended or '' -> 'ok'; 'stale' if the delivery is another courier's
function functions.complete_delivery(...)
  local keys, args = select(1, ...), { select(2, ...) }
  local p, id = keys, args[1]
  local key = job_key(p, id)
  if redis.call('EXISTS', key) == 0 then
    free_lane(p, args[2])
    return 'stale'
  end
  if redis.call('HGET', key, 'webhook_token') ~= args[2] then
    return 'stale'
  end
  redis.call('HDEL', key, 'webhook_token')
  redis.call('ZREM', p .. 'dispatchers', lane_of(p, id))
  if args[3] ~= '' then
    schedule_webhook(p, id, now_ms() + args[3])
  else
    redis.call('HSET', key, 'webhook_end', args[4])
    unschedule_webhook(p, id)
  end
  return 'ok'
end

