#!lua name=impasto_VERSION

-- The atomic steps of the job store. VERSION becomes a hash of all files here (store.py). Called with KEYS[1] = the prefix of every key; times are ms of the server's clock.
--
--   <p>job:<id>            hash    one job: status, version, owner, attempt, token, input, progress, ... (JSON where structured)
--   <p>jobs_of:<owner>          zset    an owner's jobs by their entry: a count of their own, which tells nothing of others' jobs
--   <p>jobs_of:<owner>:<status> zset    those of them in that status
--   <p>queue               zset    the places of waiting jobs, all with score 0: their order as text is the order of claims
--   <p>queue:<owner>       zset    those of one owner
--   <p>turns               hash    class -> the latest turn that a job was claimed of
--   <p>leases              zset    running jobs by the time their lease ends
--   <p>deadlines           zset    jobs that must have ended by then
--   <p>expiry              zset    ended jobs by the time their pictures go; those that are kept for good stand there as
--                                  well, in the far future, but pinned ones do not
--   <p>records             zset    those whose pictures are gone, by the time their records go
--   <p>claim:<token>       string  which job a claim returned, so that a claim sent twice takes one job
--   <p>signal:<token>      list    wakes the worker that runs under the token
--   <p>frames:<id>         list    small pictures of a run on its way, in their order (JSON)
--   <p>replay:<owner>:<key> string fingerprint and job of a submission with an idempotency key
--   <p>batch:<id>          zset    the jobs that were submitted as one batch, in their order
--   <p>results:<owner>     hash    fingerprint -> the newest job with that result
--   <p>refs                hash    digest -> how many jobs use the blob
--   <p>refs:<owner>        hash    the same, of one owner's jobs
--   <p>uploads:<owner>     zset    digest -> until when the owner may name what they uploaded
--   <p>sizes:<owner>       hash    digest -> bytes, of these
--   <p>orphans             zset    digest -> when it may be deleted, unless a job uses it by then
--   <p>deleting           set     digests whose file is being deleted now
--   <p>workers             zset    live workers by their last beat
--   <p>worker_info                hash    worker -> what it told of itself, as JSON
--   <p>ended               hash    status -> how many jobs have ended so
--   <p>networks            hash    a model's name, as jobs ask for it -> digest of the weights that workers paint with
--   <p>pace                string  seconds that a job runs: a moving average
--   <p>outbox              zset    lanes (an owner and a host) by the time something is due there
--   <p>outbox:<lane>       zset    ended jobs by the time their webhook is due
--   <p>dispatchers            zset    lanes where a courier is, by the time its lease ends
--   <p>delivery_claim:<token>     string  what a collect returned, so that one sent twice takes one delivery
--   <p>estimate_requests           list    of estimates, which the next worker at leisure answers
--   <p>estimate_reply:<name>       list    the answer to one
--   <p>number              counter of all jobs, the order of arrival
--   <p>entries             hash    owner -> how many jobs they have submitted
--   <p>leader              string  which API process reaps
--   <p>changes             channel ids of jobs that have changed or are gone

local LEGAL = {
  queued = { running = true, canceled = true, expired = true },
  running = { queued = true, succeeded = true, failed = true, canceled = true },
}
local CLASS = { high = 1, normal = 2, low = 3 }
local PLACE = '%d%010d%012d:' -- class, turn, number: 24 characters, then the id
local SIGNAL_MS = 60000
local FOREVER_MS = 1000 * 365 * 86400000 -- after those that end some day, in the order of their end
local CLAIM_MS = 600000 -- that a worker may ask again for the answer to its claim
local WORKER_MS = 5000 -- a worker beats every second
local COURIERS, LANES_AT_ONCE = 8, 1000 -- at a time for one owner; that are looked at
local MOST_RECORDS = 50000 -- of one owner; the oldest that has ended makes room for the next
local MOST_LOOKED_AT = 5000 -- to find it: before it may stand jobs that wait or are pinned

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A table that was stored as JSON; an empty one where the disk has damaged it, for no step may stop at one bad record.
local function decode_stored(text)
  local read, value = pcall(cjson.decode, text)
  return read and type(value) == 'table' and value or {}
end

-- HINCRBY, which stops at what is no number.
local function add(key, field, number)
  local sum = (tonumber(redis.call('HGET', key, field) or 0) or 0) + number
  redis.call('HSET', key, field, sum)
  return sum
end

local function job_key(p, id)
  return p .. 'job:' .. id
end

-- To be called with every change of what a client may see of a job, which is one step: who watches hears of it
-- when the step is over.
local function publish_change(p, id)
  add(job_key(p, id), 'version', 1)
  redis.call('PUBLISH', p .. 'changes', id)
end

-- Of a job that the caller may see; '' sees all.
local function is_visible(p, id, owner)
  local whose = redis.call('HGET', job_key(p, id), 'owner')
  return whose and (owner == '' or whose == owner)
end
