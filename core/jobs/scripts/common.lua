#!lua name=impasto_VERSION

-- The atomic operations of the job store. store.py replaces VERSION by a hash of all files in this
-- folder. KEYS[1] is `p`, the prefix of every key. Times are ms of the server's clock.
--
--   job:<id>                   hash    one job: status, version, owner, token, input, progress, ...
--   jobs_of:<owner>            zset    the owner's jobs by their entry: a counter per owner, which
--                                      tells nothing about the jobs of others
--   jobs_of:<owner>:<status>   zset    those of them in that status
--   removable:<owner>          zset    those of them that have ended and are not pinned, by entry
--   framed:<owner>             zset    those of them that have frames, by entry
--   queue, queue:<owner>       zset    the places of all queued jobs, of one owner's; with score 0,
--                                      so the lexical order of the places is the order of claims
--   lane:<pool>/<px>           zset    the places of one pool and size class; see lanes.lua
--   lanes                      hash    lane -> how many places it has; 'all' -> all lanes; 'in_pools'
--   lanes_cursor               string  the last place of the queue that was entered into its lane
--   lanes_checked              string  when claims have last looked at the whole queue for others
--   rounds                     hash    class -> the latest round that a job without a pool was claimed
--                                      from; class:<pool> and class:<lane>
--   round_begins               hash    the same fields -> a round, and the number at which it began
--   leases                     zset    running jobs by the time their lease expires
--   deadlines                  zset    unfinished jobs by their deadline
--   expiry                     zset    ended jobs by the time their images expire; a job without a
--                                      limit in 1000 years; without pinned jobs
--   records                    zset    jobs without images by the time their record is deleted
--   claim:<token>              string  the job that a claim returned, in case the claim is repeated
--   signal:<token>             list    wakes the worker that runs under the token
--   frames:<id>                list    the frames of a run, in order (JSON)
--   replay:<owner>:<key hash>  string  request hash and job of a submission with that key; goes
--                                      with the job, so there are at most as many as records
--   batch:<id>                 zset    the jobs of one batch, in order
--   results:<owner>            hash    fingerprint -> the newest job with that result
--   refs, refs:<owner>         hash    digest -> how many jobs use the blob: of all, of one owner
--   uploads:<owner>            zset    digests by the end of the time that the owner may name them
--   upload_sizes:<owner>       hash    digest -> bytes of the upload, and 'sum' -> of all of them
--   pending:<owner>            hash    digest -> how often unfinished jobs of the owner need it
--   pending_sizes:<owner>      hash    digest -> bytes of each of these, and 'sum' -> of all of them
--   sizes:<owner>              hash    upload_sizes in earlier versions, without the sum
--   orphans                    zset    digests by the time they may be deleted if no job uses them
--   deleting                   set     digests whose files are being deleted
--   identity                   string  tells this store from another; store_monitor.py compares it
--   workers                    zset    workers by their last heartbeat
--   worker_info                hash    worker -> its description of itself (JSON)
--   worker_polls               hash    worker -> its last claim that found nothing, while jobs waited
--   suspended              hash    id of a worker -> why it takes no jobs (JSON); suspensions.py
--   faults:<id>                set     jobs that this worker's device has failed with lately
--   size_of:<id>               string  the size in px that this worker holds
--   sizes_of:<pool>            zset    sizes in px that workers of the pool hold, by the last heartbeat
--   workers_of:<pool>/<px>     zset    workers of the pool that hold this size, by the last heartbeat
--   worker_seen                string  time of the last heartbeat; expires after a minute
--   probe                      string  a write that /readyz has tried
--   ended                      hash    status -> how many jobs have ended in it
--   networks                   hash    model -> digest of the weights that workers use for it
--   average_seconds            string  moving average of the run time
--   work                       hash    'queued' -> the work of all queued jobs, in pixel evaluations;
--                                      'seconds' -> moving average of the seconds for 10^9 of them
--   totals                     hash    counts since the store began, for the metrics: statistics.py
--   worker_use                 hash    worker -> what it uses of its device (JSON)
--   audit:operator, audit:callers  stream  who changed what; only operations append: audit.py
--   outbox                     zset    ended jobs by the time their webhook is due
--   delivery_claim:<token>     string  the delivery that a claim returned, in case it is repeated
--   estimate_requests          list    estimate requests that wait for a worker
--   estimate_reply:<name>      list    the reply to one
--   hour:<hours since 1970>    hash    how many jobs ended in that hour by status, with which error
--                                      (error:<code>), and how long they waited (wait:<bucket>)
--   intake_paused              string  since when the operator accepts no jobs; missing: accepts
--   moves                      counter of the operator's moves in the queue
--   number                     counter of all jobs, in the order of arrival, and of begun rounds
--   entries                    hash    owner -> how many jobs they have submitted
--   leader                     string  the API process that runs the reaper
--   restoring                  string  set while a backup is being restored
--   deletions                  string  lock of the process that deletes blobs from a bucket
--   changes                    channel ids of jobs that have changed or were deleted

local LEGAL = {
  queued = { running = true, canceled = true, expired = true },
  running = { queued = true, succeeded = true, failed = true, canceled = true },
}
local CLASS = { high = 1, normal = 2, low = 3 }
local FIRST, LAST = 0, 9 -- the classes of jobs that the operator has moved
local PLACE = '%d%010d%012d:' -- class, round, number: 24 characters, followed by the job's id
local SIGNAL_MS = 60000 -- a signal to a worker that has died does not stay longer
local FOREVER_MS = 1000 * 365 * 86400000 -- keeps the order of ends behind all real expiry times
local CLAIM_MS = 600000 -- how long a worker may repeat a claim
local WORKER_MS = 5000 -- as WORKER_TTL_MS in store.py
local POSTPONE_MS, MAX_POSTPONED = 400, 500 -- less than the dispatcher's poll interval; per call
-- No operation may cost more, the more objects a caller has: one thread serves all callers. So each
-- count is the length of an index or a running sum, and each loop has one of these bounds.
local MAX_DELETING = 1000 -- files that are being deleted at the same time
local MAX_RECORDS = 50000 -- per owner; the oldest ended job makes room for the next
local MAX_FRAMED = 5000 -- jobs of one owner that keep their frames, 60 each; the oldest loses them
local MAX_FORGOTTEN = 100 -- expired uploads that one operation forgets
local MAX_INDEXED = 500 -- records of an earlier version that one operation indexes
local MAX_AUDITED = 100000 -- entries of an audit stream, some 200 bytes each; audit.py has it as well

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

-- Whether the fields are there without which no operation can move the job: a disk fault may damage
-- any of them.
local function is_movable(p, id)
  local owner, entry, place = get_fields(p, id, 'owner', 'entry', 'place')
  return owner and tonumber(entry) and place
end

-- Every change that a client can see calls this once. The message goes out when the operation ends.
local function publish_change(p, id)
  add(job_key(p, id), 'version', 1)
  redis.call('PUBLISH', p .. 'changes', id)
end

-- Append an entry (JSON) to an audit stream, with what the operation has returned.
local function audit(stream, entry, result)
  local outcome, target = result or 'not_found', ''
  if type(result) == 'table' then
    outcome, target = unpack(result)
  end
  redis.call('XADD', stream, 'MAXLEN', '~', MAX_AUDITED, '*', 'entry', entry,
    'outcome', outcome == 1 and 'ok' or outcome, 'target', target)
end

-- Register a function f(p, ...) that store.py calls. Returns f. If the caller names an audit stream
-- as a second key, its last argument is the entry.
local function operation(name, f, flags)
  redis.register_function({
    function_name = 'impasto_VERSION_' .. name,
    callback = function(keys, args)
      local entry = keys[2] and table.remove(args)
      local result = f(keys[1], unpack(args))
      if entry then
        audit(keys[2], entry, result)
      end
      return result
    end,
    flags = flags or {},
  })
  return f
end

-- The same for a function that writes nothing: the server runs it even when its disk is full.
local function reader(name, f)
  return operation(name, f, { 'no-writes' })
end

-- Register f(p, id, ...) for callers that pass an owner and the id of a job. It returns nil if the
-- owner has no such job; the owner '' has all jobs.
local function job_operation(name, f)
  operation(name, function(p, owner, id, ...)
    local job_owner = get_fields(p, id, 'owner')
    if job_owner and (owner == '' or job_owner == owner) then
      return f(p, id, ...)
    end
  end)
end
