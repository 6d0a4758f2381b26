-- Counts per hour, for the operator. An hour is one small hash that expires, so neither its cost nor
-- its size grows with the number of jobs.
local HOUR_MS, HOUR_SECONDS_KEPT = 3600000, 8 * 86400

local function count_in_hour(p, field)
  local key = p .. 'hour:' .. math.floor(now_ms() / HOUR_MS)
  redis.call('HINCRBY', key, field, 1)
  redis.call('EXPIRE', key, HOUR_SECONDS_KEPT)
end

-- Count a wait in the histogram of the hour. Bucket b ends at 0.1 s * 2^(b/4), so that a percentile
-- is at most a fifth too high. operations.py has the same numbers.
local function count_wait(p, ms)
  local bucket = math.max(0, math.ceil(4 * math.log(math.max(ms, 1) / 100) / math.log(2)))
  count_in_hour(p, 'wait:' .. math.min(bucket, 120))
end

-- Count the end of a job, and the code of its error if it failed.
local function count_end(p, id, status)
  count_in_hour(p, status)
  if status == 'failed' then
    count_in_hour(p, 'error:' .. tostring(decode_stored(get_fields(p, id, 'error')).code))
  end
end
