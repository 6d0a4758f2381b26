local CHECK_MS = 1000 -- between two times that claims look for places without a lane
local MAX_PASSED = 200 -- places of one owner that a submission passes over

local function round_of(place)
  return tonumber(string.sub(place, 2, 11))
end

local function number_of(place)
  return tonumber(string.sub(place, 12, 23))
end

-- The round of the latest claim from a lane, or from any lane of a pool.
local function rounds_field(class, lane_or_pool)
  return lane_or_pool == '' and class or class .. ':' .. lane_or_pool
end

local function latest_round(p, class, lane_or_pool)
  return tonumber(redis.call('HGET', p .. 'rounds', rounds_field(class, lane_or_pool)) or 0)
end

-- Returns the latest round that a process of this version has begun, and when: by the counter
-- `number`. -1 and 0 if there is none.
local function begin_of(p, field)
  local round, number = string.match(redis.call('HGET', p .. 'round_begins', field) or '',
    '^(%d+) (%d+)$')
  return tonumber(round or -1), tonumber(number or 0)
end

local function record_round(p, lane, place)
  local class, round = string.sub(place, 1, 1), round_of(place)
  for _, name in ipairs({ lane, (split_lane(lane)) }) do
    local field = rounds_field(class, name)
    if round > latest_round(p, class, name) then
      redis.call('HSET', p .. 'rounds', field, round)
    end
    if round > begin_of(p, field) then
      local number = redis.call('INCR', p .. 'number')
      redis.call('HSET', p .. 'round_begins', field, round .. ' ' .. number)
    end
  end
end

-- The current round of these lanes: the one that was last claimed from, or that of their first
-- place, because a requeued job may be earlier. nil if they are empty.
local function current_round(p, class, lanes, name)
  local first = first_place(p, lanes, '[' .. class, '(' .. (class + 1))
  return first and math.max(round_of(first), latest_round(p, class, name))
end

-- The round after that of the owner's last job of a class in these lanes, or 0. What the owner waits
-- for elsewhere takes no turn here: other lanes may be many rounds ahead. After MAX_PASSED places of
-- other lanes, the next one counts.
local function next_own_round(p, owner, class, is_here)
  local passed = 0
  repeat
    local places = redis.call('ZREVRANGEBYLEX', p .. 'queue:' .. owner, '(' .. (class + 1),
      '[' .. class, 'LIMIT', passed, passed == 0 and 1 or MAX_PASSED)
    for _, place in ipairs(places) do
      local lane = lane_of(p, string.sub(place, 25))
      if passed >= MAX_PASSED or (lane and is_here(lane)) then
        return round_of(place) + 1
      end
      passed = passed + 1
    end
  until #places == 0
  return 0
end

-- The place of a job that is queued now, as the number-th to arrive. Each owner has one job per
-- round, so a thousand jobs of one owner do not delay the first job of another. The round is the
-- current one of the job's pool, or that of its lane, if its lane is behind because few workers may
-- take from it.
local function new_place(p, id, number)
  local owner, priority = get_fields(p, id, 'owner', 'priority')
  local class, lane = CLASS[priority], lane_of(p, id) or lane_name('', 0)
  local pool = split_lane(lane)
  local of_pool = current_round(p, class, list_lanes(p, pool, math.huge), pool)
    or latest_round(p, class, pool)
  local of_lane = current_round(p, class, { lane }, lane) or of_pool
  local own = next_own_round(p, owner, class, function(other)
    return other == lane or (of_lane >= of_pool and split_lane(other) == pool)
  end)
  local round = math.max(own, math.min(of_pool, of_lane))
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
  enter_lane(p, id, place)
  count_work(p, id)
end

local function remove_place(p, place, owner, lane)
  redis.call('ZREM', p .. 'queue', place)
  redis.call('ZREM', p .. 'queue:' .. (owner or ''), place)
  leave_lane(p, lane, place)
end

local function dequeue(p, id)
  local owner, place, lane = get_fields(p, id, 'owner', 'place', 'lane')
  if place then
    remove_place(p, place, owner, lane)
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

-- Whether a place is that of a job that is queued. If not, it leaves the queue: places whose record
-- is damaged or missing would block all jobs behind them, and a process of an earlier version, which
-- knows no lanes, has left places of claimed jobs behind.
local function is_current(p, lane, place)
  local id = string.sub(place, 25)
  local status, owner, current = get_fields(p, id, 'status', 'owner', 'place')
  local is_queued = status == 'queued' and is_movable(p, id)
  if is_queued and current == place then
    return true
  end
  remove_place(p, place, owner, lane)
  if is_queued then -- that process has moved it
    enter_lane(p, id, current)
  else
    uncount_work(p, id)
  end
  return false
end

-- The field of the rounds that a place belongs to: those of its pool, or those of its lane, if it is
-- behind because few workers may take from it. Jobs that the operator has moved have no rounds.
local function clock_of(p, lane, place)
  local class, pool = string.sub(place, 1, 1), split_lane(lane)
  if class == tostring(FIRST) or class == tostring(LAST) then
    return class
  end
  local is_behind = math.max(round_of(place), latest_round(p, class, lane))
    < latest_round(p, class, pool)
  return rounds_field(class, is_behind and lane or pool)
end

-- Returns the first place of a pool that a worker may take, and its lane; or nil.
local function first_of_pool(p, pool, size)
  local first, first_lane
  for _, lane in ipairs(list_lanes(p, pool, claimable_size(p, pool, size))) do
    local place
    repeat
      place = first_place(p, { lane }, '-', '+')
    until not place or is_current(p, lane, place)
    if place and (not first or place < first) then
      first, first_lane = place, lane
    end
  end
  return first, first_lane
end

-- Returns the first place that a worker may take, and its lane; or nil. pools: their names; size:
-- what the worker holds, in px.
--
-- The rounds of two pools cannot be compared: one may be far ahead, because other workers serve it as
-- well. So the job goes first that has waited the longest: since it arrived or since the latest round
-- of its clock began, whichever is later. It waits for one turn of each other owner at most, and one
-- more of each clock, and owners of all pools have equal turns.
local function next_place(p, pools, size)
  local first, first_lane, first_order
  for _, pool in ipairs(pools) do
    local place, lane = first_of_pool(p, pool, size)
    if place then
      local _, began = begin_of(p, clock_of(p, lane, place))
      local since = math.max(number_of(place), began)
      local order = string.format('%s%012d', string.sub(place, 1, 1), since) .. place
      if not first or order < first_order then
        first, first_lane, first_order = place, lane, order
      end
    end
  end
  return first, first_lane
end

-- A process of an earlier version queues jobs without a lane. Then the counts differ, and each claim
-- enters the next MAX_ENTERED places of the queue into their lanes, until all have been looked at. They
-- may differ for long: by a place in a lane of a later version, of a job that is not queued any more.
local function enter_queued(p)
  if tonumber(redis.call('HGET', p .. 'lanes', 'all') or 0) == redis.call('ZCARD', p .. 'queue')
    or math.abs(now_ms() - tonumber(redis.call('GET', p .. 'lanes_checked') or 0)) < CHECK_MS then
    return
  end
  local after = redis.call('GET', p .. 'lanes_cursor')
  local places = redis.call('ZRANGEBYLEX', p .. 'queue', after and '(' .. after or '-', '+', 'LIMIT',
    0, MAX_ENTERED)
  for _, place in ipairs(places) do
    local id = string.sub(place, 25)
    if is_current(p, nil, place) then
      enter_lane(p, id, place)
    end
  end
  if places[MAX_ENTERED] then
    redis.call('SET', p .. 'lanes_cursor', places[MAX_ENTERED])
  else
    redis.call('DEL', p .. 'lanes_cursor')
    redis.call('SET', p .. 'lanes_checked', now_ms())
  end
end

-- Remove what is_current finds among the next MAX_INDEXED places of a lane. Returns the last of
-- these, or nil at the end.
operation('sweep_lane', function(p, lane, after)
  local places = redis.call('ZRANGEBYLEX', p .. 'lane:' .. lane, after == '' and '-' or '(' .. after,
    '+', 'LIMIT', 0, MAX_INDEXED)
  for _, place in ipairs(places) do
    is_current(p, lane, place)
  end
  return places[MAX_INDEXED]
end)
