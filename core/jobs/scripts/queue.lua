local function round_of(place)
  return tonumber(string.sub(place, 2, 11))
end

-- The place of a job that is queued now, as the number-th to arrive. Each owner has one job per
-- round, so a thousand jobs of one owner do not delay the first job of another. The current round
-- is the one that was last claimed from, or that of the first place: a requeued job may be earlier.
local function new_place(p, id, number)
  local owner, priority = get_fields(p, id, 'owner', 'priority')
  local class = CLASS[priority]
  local from, to = '[' .. class, '(' .. (class + 1)
  local first = redis.call('ZRANGEBYLEX', p .. 'queue', from, to, 'LIMIT', 0, 1)[1]
  local own_last = redis.call('ZREVRANGEBYLEX', p .. 'queue:' .. owner, to, from, 'LIMIT', 0, 1)[1]
  local claimed = redis.call('HGET', p .. 'rounds', class)
  local round = math.max(first and round_of(first) or 0, own_last and round_of(own_last) + 1 or 0,
    tonumber(claimed or 0))
  return string.format(PLACE, class, round, number) .. id
end

-- What a job adds to the sum of the queued work is in its record as long as it is counted, so it is
-- subtracted once. An empty queue has no work, whatever an earlier version has counted.
local STANDARD_WORK = 16000000 -- of a job whose sizes are not known

local function count_work(p, id)
  local work = tonumber(get_fields(p, id, 'work')) or STANDARD_WORK
  redis.call('HSET', job_key(p, id), 'queued_work', work)
  add(p .. 'work', 'queued', work)
end

local function uncount_work(p, id)
  local work = tonumber(get_fields(p, id, 'queued_work'))
  if work then
    redis.call('HDEL', job_key(p, id), 'queued_work')
    add(p .. 'work', 'queued', -work)
  end
  if redis.call('ZCARD', p .. 'queue') == 0 then
    redis.call('HDEL', p .. 'work', 'queued')
  end
end

local function enqueue(p, id)
  local owner, place = get_fields(p, id, 'owner', 'place')
  redis.call('ZADD', p .. 'queue', 0, place)
  redis.call('ZADD', p .. 'queue:' .. owner, 0, place)
  count_work(p, id)
end

local function dequeue(p, id)
  local owner, place = get_fields(p, id, 'owner', 'place')
  if place then
    redis.call('ZREM', p .. 'queue', place)
    redis.call('ZREM', p .. 'queue:' .. (owner or ''), place)
  end
  uncount_work(p, id)
end

local function signal_worker(p, token)
  if token and redis.call('EXISTS', p .. 'signal:' .. token) == 0 then
    redis.call('LPUSH', p .. 'signal:' .. token, '1')
    redis.call('PEXPIRE', p .. 'signal:' .. token, SIGNAL_MS)
  end
end

-- Move a queued job before or behind all others, whatever their priority: to = 'first' or 'last'. The
-- place stays if the job is requeued. Returns 'ok', 'started' if the job is not queued any more, or
-- nil if there is no such job.
job_operation('move_in_queue', function(p, id, to)
  if get_fields(p, id, 'status') ~= 'queued' or not is_movable(p, id) then
    return 'started'
  end
  local move = redis.call('INCR', p .. 'moves')
  dequeue(p, id)
  local place = to == 'first' and string.format(PLACE, FIRST, 9999999999 - move, 0)
    or string.format(PLACE, LAST, move, 0)
  redis.call('HSET', job_key(p, id), 'place', place .. id)
  enqueue(p, id)
  return 'ok'
end)

-- Returns the first place of the queue and its job, or nil. Removes places whose job is not queued
-- or whose record is damaged or missing: they would block all jobs behind them.
local function next_place(p)
  while true do
    local place = redis.call('ZRANGE', p .. 'queue', 0, 0)[1]
    if not place then
      return nil
    end
    local id = string.sub(place, 25)
    local status, owner = get_fields(p, id, 'status', 'owner')
    if status == 'queued' and is_movable(p, id) then
      return place, id
    end
    redis.call('ZREM', p .. 'queue', place)
    if owner then
      redis.call('ZREM', p .. 'queue:' .. owner, place)
    end
    uncount_work(p, id)
  end
end
