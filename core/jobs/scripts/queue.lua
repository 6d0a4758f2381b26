local function turn_at(place)
  return tonumber(string.sub(place, 2, 11))
end

-- Where a job goes now, as the number-th to come. In each round every owner has one turn: a thousand jobs of one do not
-- delay another's first. The round is the one that was last claimed from, or the first that waits: a job that was put
-- back is of an earlier one.
local function new_place(p, id, number)
  local job = redis.call('HMGET', job_key(p, id), 'owner', 'priority')
  local class = CLASS[job[2]]
  local from, to = '[' .. class, '(' .. (class + 1)
  local head = redis.call('ZRANGEBYLEX', p .. 'queue', from, to, 'LIMIT', 0, 1)[1]
  local own = redis.call('ZREVRANGEBYLEX', p .. 'queue:' .. job[1], to, from, 'LIMIT', 0, 1)[1]
  local claimed = redis.call('HGET', p .. 'turns', class)
  local turn = math.max(head and turn_at(head) or 0, own and turn_at(own) + 1 or 0, tonumber(claimed or 0))
  return string.format(PLACE, class, turn, number) .. id
end

local function enqueue(p, id)
  local job = redis.call('HMGET', job_key(p, id), 'owner', 'place')
  redis.call('ZADD', p .. 'queue', 0, job[2])
  redis.call('ZADD', p .. 'queue:' .. job[1], 0, job[2])
end

local function dequeue(p, id)
  local job = redis.call('HMGET', job_key(p, id), 'owner', 'place')
  if job[2] then
    redis.call('ZREM', p .. 'queue', job[2])
    redis.call('ZREM', p .. 'queue:' .. job[1], job[2])
  end
end

local function signal_worker(p, token)
  if token and redis.call('EXISTS', p .. 'signal:' .. token) == 0 then
    redis.call('LPUSH', p .. 'signal:' .. token, '1')
    redis.call('PEXPIRE', p .. 'signal:' .. token, SIGNAL_MS)
  end
end

-- The first place of the queue, and the job that waits there; or nil. A place whose job does not wait goes: its record is
-- damaged, or missing, and nobody behind it would ever be claimed.
local function next_place(p)
  while true do
    local place = redis.call('ZRANGE', p .. 'queue', 0, 0)[1]
    if not place then
      return nil
    end
    local id = string.sub(place, 25)
    local status, owner = unpack(redis.call('HMGET', job_key(p, id), 'status', 'owner'))
    if status == 'queued' then
      return place, id
    end
    redis.call('ZREM', p .. 'queue', place)
    if owner then
      redis.call('ZREM', p .. 'queue:' .. owner, place)
    end
  end
end
