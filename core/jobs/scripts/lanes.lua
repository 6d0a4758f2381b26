-- Which workers may take which job. A queued job is in one lane: its pool and its size class. A
-- worker takes the first place of all lanes of its pools up to the size that its memory holds. So a
-- claim costs the same, however many jobs that it may not take come first.

local SIZES = { 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192 } -- px, as SIZE_CLASSES in core/style/limits.py
local FORMAT = 1 -- of a job's record, as RECORD_FORMAT in models.py
local KNOWN_MS = 3600000 -- how long a job waits for a larger worker that was last seen so long ago
local MAX_ENTERED = 100 -- places that one claim enters into their lanes

local function lane_name(pool, size)
  for _, px in ipairs(SIZES) do
    if size <= px then
      return pool .. '/' .. px
    end
  end
  return pool .. '/' .. SIZES[#SIZES]
end

local function split_lane(lane)
  local pool, px = string.match(lane, '^(.*)/(%d+)$')
  return pool, tonumber(px)
end

-- Returns the lane of a job, or nil if a later version wrote its record in a format of its own:
-- the workers of that version take it.
local function lane_of(p, id)
  local lane, format, input = get_fields(p, id, 'lane', 'format', 'input')
  if (tonumber(format) or 0) > FORMAT then
    return nil
  end
  if not lane then -- an earlier version wrote the record
    local spec = decode_stored(input).spec
    lane = lane_name('', type(spec) == 'table' and tonumber(spec.size) or 0)
    redis.call('HSET', job_key(p, id), 'lane', lane)
  end
  return lane
end

local function count_places(p, field, change)
  if add(p .. 'lanes', field, change) <= 0 then
    redis.call('HDEL', p .. 'lanes', field)
  end
end

local function count_lane(p, lane, change)
  if change ~= 0 then
    count_places(p, lane, change)
    count_places(p, 'all', change)
    if split_lane(lane) ~= '' then
      count_places(p, 'in_pools', change)
    end
  end
end

local function enter_lane(p, id, place)
  local lane = lane_of(p, id)
  if lane then
    count_lane(p, lane, redis.call('ZADD', p .. 'lane:' .. lane, 0, place))
  end
end

local function leave_lane(p, lane, place)
  if lane then
    count_lane(p, lane, -redis.call('ZREM', p .. 'lane:' .. lane, place))
  end
end

-- Returns the lanes of a pool up to this size that have places.
local function list_lanes(p, pool, size)
  local names, filled = {}, {}
  for _, px in ipairs(SIZES) do
    if px <= size then
      names[#names + 1] = pool .. '/' .. px
    end
  end
  local counts = #names > 0 and redis.call('HMGET', p .. 'lanes', unpack(names)) or {}
  for i, name in ipairs(names) do
    if counts[i] then
      filled[#filled + 1] = name
    end
  end
  return filled
end

-- Returns the largest size that a worker of the pool holds that was seen within so many ms, or nil.
local function largest_size(p, pool, ms)
  local largest
  for _, px in ipairs(redis.call('ZRANGEBYSCORE', p .. 'sizes_of:' .. pool, now_ms() - ms, '+inf')) do
    largest = math.max(largest or 0, tonumber(px))
  end
  return largest
end

-- Returns up to which size a worker that holds this one takes the jobs of a pool: all, if no larger
-- worker is known. Its planner then decides, and the job fails with the size that fits.
local function claimable_size(p, pool, size)
  return (largest_size(p, pool, KNOWN_MS) or 0) > size and size or math.huge
end

-- Returns what a queued job waits for beside its turn: 'pool', a worker of its pool; 'memory', a
-- worker with more memory; or nil. And whether a live worker may take it.
local function missing_worker(p, lane)
  local pool, px = split_lane(lane)
  local live = largest_size(p, pool, WORKER_MS)
  if live and px > live then
    local is_small = claimable_size(p, pool, live) < px
    return is_small and 'memory' or nil, not is_small
  end
  return not live and pool ~= '' and 'pool' or nil, live ~= nil
end

-- Returns the first place of a class (or of all, without bounds) in these lanes, or nil.
local function first_place(p, lanes, from, to)
  local first
  for _, lane in ipairs(lanes) do
    local place = redis.call('ZRANGEBYLEX', p .. 'lane:' .. lane, from, to, 'LIMIT', 0, 1)[1]
    if place and (not first or place < first) then
      first = place
    end
  end
  return first
end
