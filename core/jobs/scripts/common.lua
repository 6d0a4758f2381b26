#!lua name=impasto_VERSION

-- The atomic operations of the job store. store.py replaces VERSION by a hash of all files in this
-- folder. KEYS[1] is `p`, the prefix of every key. Times are ms of the server's clock.
--
--   <p>job:<id>             hash    one job: status, version, owner, token, input, progress, ...
--   <p>jobs_of:<owner>      zset    the owner's jobs by their entry, a counter per owner: it tells
--                                   nothing about the jobs of others
--   <p>jobs_of:<owner>:<status> zset  those of them in that status
--   <p>queue                zset    the places of queued jobs, all with score 0: jobs are claimed in
--                                   the lexical order of the places
--   <p>queue:<owner>        zset    the places of one owner's queued jobs
--   <p>rounds               hash    class -> the latest round that a job was claimed from
--   <p>leases               zset    running jobs by the time their lease expires
--   <p>deadlines            zset    unfinished jobs by their deadline
--   <p>expiry               zset    ended jobs by the time their images expire. Jobs without a time
--                                   limit have one in the far future; pinned jobs are missing.
--   <p>records              zset    jobs without images by the time their record is deleted
--   <p>claim:<token>        string  the job that a claim returned: a repeated claim returns it again
--   <p>signal:<token>       list    wakes the worker that runs under the token
--   <p>frames:<id>          list    the frames of a run, in order (JSON)
--   <p>replay:<owner>:<key hash> string  request hash and job of a submission with that key
--   <p>batch:<id>           zset    the jobs of one batch, in order
--   <p>results:<owner>      hash    fingerprint -> the newest job with that result
--   <p>refs                 hash    digest -> how many jobs use the blob
--   <p>refs:<owner>         hash    the same for the jobs of one owner
--   <p>uploads:<owner>      zset    digests by the time until which the owner may name the upload
--   <p>sizes:<owner>        hash    digest -> bytes of the upload
--   <p>orphans              zset    digests by the time they may be deleted, unless a job uses them
--   <p>deleting             set     digests whose files are being deleted
--   <p>workers              zset    workers by their last heartbeat
--   <p>worker_info          hash    worker -> its description of itself (JSON)
--   <p>ended                hash    status -> how many jobs have ended in it
--   <p>networks             hash    model -> digest of the weights that workers use for it
--   <p>average_seconds      string  moving average of the run time
--   <p>outbox               zset    ended jobs by the time their webhook is due
--   <p>delivery_claim:<token> string  the delivery that a claim returned
--   <p>estimate_requests    list    estimate requests that no worker has taken yet
--   <p>estimate_reply:<name> list   the reply to one
--   <p>number               counter of all jobs, in the order of arrival
--   <p>entries              hash    owner -> how many jobs they have submitted
--   <p>leader               string  the API process that runs the reaper
--   <p>changes              channel ids of jobs that have changed or were deleted

local LEGAL = {
  queued = { running = true, canceled = true, expired = true },
  running = { queued = true, succeeded = true, failed = true, canceled = true },
}
local CLASS = { high = 1, normal = 2, low = 3 }
local PLACE = '%d%010d%012d:' -- class, round, number: 24 characters, followed by the job's id
local SIGNAL_MS = 60000 -- a signal to a worker that has died does not stay longer
local FOREVER_MS = 1000 * 365 * 86400000 -- keeps the order of ends behind all real expiry times
local CLAIM_MS = 600000 -- how long a worker may repeat a claim
local WORKER_MS = 5000 -- a worker sends a heartbeat every second
local POSTPONE_MS = 400 -- less than the dispatcher's poll interval
local MAX_RECORDS = 50000 -- per owner; the oldest ended job makes room for the next
local MAX_SCANNED = 5000 -- jobs to look at for it: queued and pinned ones may come first

-- The functions that store.py calls, as f(p, ...): maintenance.lua registers them. Those in
-- `readers` write nothing, so the server runs them even when its disk is full.
local functions, readers = {}, {}

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Decode a table that was stored as JSON. Returns an empty one if a disk fault has damaged it:
-- one bad record must not stop an operation on others.
local function decode_stored(text)
  local ok, value = pcall(cjson.decode, text)
  return ok and type(value) == 'table' and value or {}
end

-- HINCRBY that tolerates a damaged value.
local function add(key, field, number)
  local sum = (tonumber(redis.call('HGET', key, field) or 0) or 0) + number
  redis.call('HSET', key, field, sum)
  return sum
end

local function job_key(p, id)
  return p .. 'job:' .. id
end

-- Returns the values of a job's fields; false for a missing one.
local function get_fields(p, id, ...)
  return unpack(redis.call('HMGET', job_key(p, id), ...))
end

-- Every change that a client can see calls this once. The message goes out when the operation ends.
local function publish_change(p, id)
  add(job_key(p, id), 'version', 1)
  redis.call('PUBLISH', p .. 'changes', id)
end

-- Whether the job exists and belongs to the owner; '' sees all jobs.
local function is_visible(p, id, owner)
  local job_owner = get_fields(p, id, 'owner')
  return job_owner and (owner == '' or job_owner == owner)
end
