-- Counts per hour, for the operator. An hour is one small hash that expires, so neither its cost nor
-- its size grows with the number of jobs.
local HOUR_MS, HOUR_SECONDS_KEPT = 3600000, 8 * 86400

local function count_in_hour(p, field)
  local key = p .. 'hour:' .. math.floor(now_ms() / HOUR_MS)
  redis.call('HINCRBY', key, field, 1)
  redis.call('EXPIRE', key, HOUR_SECONDS_KEPT)
end

-- Counts since the store began, for the metrics. The hash has a bounded number of fields.
-- statistics.py has the same limits.
local LIMITS_MS = { 100, 500, 1000, 2500, 5000, 10000, 30000, 60000, 120000, 300000, 600000, 1800000,
  3600000 }
local AVERAGED = 0.2 -- the weight of the newest job in a moving average

local function count_total(p, field, number)
  redis.call('HINCRBY', p .. 'totals', field, number or 1)
end

-- Count a duration in the histogram of the job's size class. The job's trace becomes the example of
-- its bucket.
local function observe(p, id, name, ms)
  local class, traceparent = get_fields(p, id, 'size_class', 'traceparent')
  local histogram, bucket = name .. ':' .. (class or 'unknown') .. ':', 1
  while LIMITS_MS[bucket] and ms > LIMITS_MS[bucket] do
    bucket = bucket + 1
  end
  count_total(p, histogram .. bucket)
  count_total(p, histogram .. 'ms', ms)
  if traceparent then
    redis.call('HSET', p .. 'totals', 'trace:' .. histogram .. bucket, traceparent .. ' ' .. ms)
  end
end

-- Count a change of a job's status, and how long an attempt has held it.
local function count_move(p, id, from, to)
  count_total(p, from .. '>' .. to)
  if from == 'running' then
    observe(p, id, 'run', now_ms() - (tonumber(get_fields(p, id, 'claimed_at')) or now_ms()))
  end
end

-- Learn from a run how long a unit of work takes. One that resumed has done only a part of the work.
local function learn_speed(p, id, seconds)
  local work, attempt = get_fields(p, id, 'work', 'attempt')
  if (tonumber(work) or 0) > 0 and attempt == '1' then
    local new = seconds / work * 1e9
    local old = tonumber(redis.call('HGET', p .. 'work', 'seconds')) or new
    redis.call('HSET', p .. 'work', 'seconds', (1 - AVERAGED) * old + AVERAGED * new)
  end
end

-- Count a wait in the histogram of the hour. Bucket b ends at 0.1 s * 2^(b/4), so that a percentile
-- is at most a fifth too high. operations.py has the same numbers.
local function count_wait(p, id, ms)
  observe(p, id, 'wait', math.max(0, ms))
  local bucket = math.max(0, math.ceil(4 * math.log(math.max(ms, 1) / 100) / math.log(2)))
  count_in_hour(p, 'wait:' .. math.min(bucket, 120))
end

-- Count the end of a job, and the code of its error if it failed.
local function count_end(p, id, status)
  count_in_hour(p, status)
  if status == 'failed' then
    local error = 'error:' .. tostring(decode_stored(get_fields(p, id, 'error')).code)
    count_in_hour(p, error)
    count_total(p, error)
  end
end
