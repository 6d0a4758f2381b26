#!lua name=impasto_VERSION

-- The atomic steps of the job store. VERSION becomes a hash of this file (store.py). Called with KEYS[1] = the prefix of every key; times are ms of the server's clock.
--
--   <p>job:<id>            hash    one job: status, version, owner, attempt, token, input, progress, ... (JSON where structured)
--   <p>of:<owner>          zset    an owner's jobs by their entry: a count of their own, which tells nothing of others' jobs
--   <p>of:<owner>:<status> zset    those of them in that status
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
--   <p>condemned           set     digests whose file is being deleted now
--   <p>workers             zset    live workers by their last beat
--   <p>crew                hash    worker -> what it told of itself, as JSON
--   <p>ended               hash    status -> how many jobs have ended so
--   <p>networks            hash    a model's name, as jobs ask for it -> digest of the weights that workers paint with
--   <p>pace                string  seconds that a job runs: a moving average
--   <p>outbox              zset    lanes (an owner and a host) by the time something is due there
--   <p>outbox:<lane>       zset    ended jobs by the time their webhook is due
--   <p>couriers            zset    lanes where a courier is, by the time its lease ends
--   <p>collect:<token>     string  what a collect returned, so that one sent twice takes one delivery
--   <p>questions           list    of estimates, which the next worker at leisure answers
--   <p>answer:<name>       list    the answer to one
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
local function stored(text)
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
local function changed(p, id)
  add(job_key(p, id), 'version', 1)
  redis.call('PUBLISH', p .. 'changes', id)
end

-- ---------------------------------------------------------------- blobs in use

local function use(p, owner, digest)
  redis.call('HINCRBY', p .. 'refs', digest, 1)
  redis.call('HINCRBY', p .. 'refs:' .. owner, digest, 1)
end

local function drop(p, owner, digest)
  if redis.call('HINCRBY', p .. 'refs:' .. owner, digest, -1) <= 0 then
    redis.call('HDEL', p .. 'refs:' .. owner, digest)
  end
  if redis.call('HINCRBY', p .. 'refs', digest, -1) <= 0 then
    redis.call('HDEL', p .. 'refs', digest)
    redis.call('ZADD', p .. 'orphans', 'NX', now_ms(), digest)
  end
end

-- Whether a blob is used, or held until later than now.
local function safe(p, digest)
  if redis.call('HEXISTS', p .. 'refs', digest) == 1 then
    return true
  end
  local until_ms = redis.call('ZSCORE', p .. 'orphans', digest)
  return until_ms and tonumber(until_ms) > now_ms()
end

local function drop_frame(p, owner, frame)
  local digest = stored(frame).digest
  if digest then
    drop(p, owner, digest)
  end
end

local function drop_frames(p, id)
  local owner = redis.call('HGET', job_key(p, id), 'owner')
  for _, frame in ipairs(redis.call('LRANGE', p .. 'frames:' .. id, 0, -1)) do
    drop_frame(p, owner, frame)
  end
  redis.call('DEL', p .. 'frames:' .. id)
  redis.call('HDEL', job_key(p, id), 'frames', 'thinned')
end

local function drop_all(p, id)
  local job = redis.call('HMGET', job_key(p, id), 'owner', 'blobs', 'preview')
  for _, digest in ipairs(stored(job[2])) do
    drop(p, job[1], digest)
  end
  if job[3] then
    drop(p, job[1], job[3])
  end
  drop_frames(p, id)
  redis.call('HSET', job_key(p, id), 'blobs', '[]')
  redis.call('HDEL', job_key(p, id), 'preview')
end

-- ---------------------------------------------------------------- the queue: classes of priority, and turns in each

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

local function wake(p, token)
  if token and redis.call('EXISTS', p .. 'signal:' .. token) == 0 then
    redis.call('LPUSH', p .. 'signal:' .. token, '1')
    redis.call('PEXPIRE', p .. 'signal:' .. token, SIGNAL_MS)
  end
end

-- ---------------------------------------------------------------- a job's life

local function file_under(p, id, status)
  local job = redis.call('HMGET', job_key(p, id), 'owner', 'entry')
  redis.call('ZADD', p .. 'of:' .. job[1] .. ':' .. status, job[2], id)
end

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

local function post(p, id, due)
  local lane = lane_of(p, id)
  if lane then
    redis.call('ZADD', p .. 'outbox:' .. lane, due, id)
    sort_lane(p, lane)
  end
end

local function unpost(p, id)
  local lane = lane_of(p, id)
  if lane then
    redis.call('ZREM', p .. 'outbox:' .. lane, id)
    sort_lane(p, lane)
  end
end

-- From now on an ended job is kept for so long; 0: for good, as long as there is room.
local function keep_ended(p, id, keep_ms)
  local now = now_ms()
  if tonumber(keep_ms) > 0 then
    redis.call('HSET', job_key(p, id), 'expires_at', now + keep_ms)
    redis.call('ZADD', p .. 'expiry', now + keep_ms, id)
  else
    redis.call('ZADD', p .. 'expiry', now + FOREVER_MS, id)
  end
end

local function ended(p, id)
  local keep_ms, pinned = unpack(redis.call('HMGET', job_key(p, id), 'keep_ms', 'pinned'))
  local now = now_ms()
  redis.call('HSET', job_key(p, id), 'completed_at', now)
  redis.call('HINCRBY', p .. 'ended', redis.call('HGET', job_key(p, id), 'status'), 1)
  redis.call('HDEL', job_key(p, id), 'checkpoint')
  redis.call('ZREM', p .. 'deadlines', id)
  if pinned ~= '1' then
    keep_ended(p, id, keep_ms)
  end
  post(p, id, now)
end

-- The one place where a status changes.
local function move(p, id, to)
  local key = job_key(p, id)
  local job = redis.call('HMGET', key, 'status', 'owner')
  local from = job[1]
  if not (LEGAL[from] and LEGAL[from][to]) then
    return false
  end
  redis.call('ZREM', p .. 'of:' .. job[2] .. ':' .. from, id)
  file_under(p, id, to)
  redis.call('HSET', key, 'status', to)
  changed(p, id)
  if from == 'queued' then
    dequeue(p, id)
  else
    redis.call('ZREM', p .. 'leases', id)
  end
  if to == 'queued' then
    enqueue(p, id)
    redis.call('HDEL', key, 'sealed')
    if redis.call('HEXISTS', key, 'checkpoint') == 0 then
      redis.call('HDEL', key, 'progress') -- the next attempt begins again
      drop_frames(p, id)
    end
  elseif to ~= 'running' then
    ended(p, id)
  end
  return true
end

-- 'ok'; 'cancel' when somebody asked the run to stop, 'late' when its deadline is over; 'stale' when the job is no
-- longer this worker's.
local function standing(p, id, token)
  local job = redis.call('HMGET', job_key(p, id), 'status', 'token', 'cancel_requested', 'deadline_at')
  if job[1] ~= 'running' or job[2] ~= token then
    return 'stale'
  end
  if job[3] == '1' then
    return 'cancel'
  end
  return job[4] and tonumber(job[4]) <= now_ms() and 'late' or 'ok'
end

-- A running job whose worker is gone: back into the queue, or to its end. -> 1 if it is queued again, 0 if it has ended;
-- nil where the record does not run, which only a damaged one does not.
local function lose(p, id, most, error)
  local key = job_key(p, id)
  if redis.call('HGET', key, 'status') ~= 'running' then
    redis.call('ZREM', p .. 'leases', id)
    return nil
  end
  redis.call('HDEL', key, 'token')
  if redis.call('HGET', key, 'cancel_requested') == '1' then
    move(p, id, 'canceled')
    return 0
  end
  local losses = add(key, 'losses', 1)
  if losses >= tonumber(most) then
    redis.call('HSET', key, 'error', error)
    move(p, id, 'failed')
    return 0
  end
  if losses > 1 then -- it may be what kills them: the others first
    redis.call('HSET', key, 'place', new_place(p, id, redis.call('INCR', p .. 'number')))
  end
  move(p, id, 'queued')
  return 1
end

-- Nobody is answered with this job's result any more.
local function forget_result(p, id)
  local job = redis.call('HMGET', job_key(p, id), 'owner', 'fingerprint')
  if job[2] and redis.call('HGET', p .. 'results:' .. job[1], job[2]) == id then
    redis.call('HDEL', p .. 'results:' .. job[1], job[2])
  end
end

local function erase(p, id)
  local key = job_key(p, id)
  local job = redis.call('HMGET', key, 'status', 'owner', 'token')
  local status, owner = job[1] or '', job[2] or ''
  drop_all(p, id)
  dequeue(p, id)
  wake(p, job[3])
  forget_result(p, id)
  redis.call('ZREM', p .. 'of:' .. owner .. ':' .. status, id)
  redis.call('ZREM', p .. 'of:' .. owner, id)
  unpost(p, id)
  local batch = redis.call('HGET', key, 'batch_id')
  if batch then
    redis.call('ZREM', p .. 'batch:' .. batch, id)
  end
  for _, index in ipairs({ 'leases', 'deadlines', 'expiry', 'records' }) do
    redis.call('ZREM', p .. index, id)
  end
  redis.call('DEL', key)
  redis.call('PUBLISH', p .. 'changes', id)
end

-- Of a job that the caller may see; '' sees all.
local function visible(p, id, owner)
  local whose = redis.call('HGET', job_key(p, id), 'owner')
  return whose and (owner == '' or whose == owner)
end

-- ---------------------------------------------------------------- submission

-- The earlier job that answers this submission: {word, id}, or nil
local function answered(p, order)
  if order.key then
    local before = redis.call('GET', p .. 'replay:' .. order.owner .. ':' .. order.key)
    if before then
      local print, id = string.match(before, '^(%S+) (%S+)$')
      if redis.call('EXISTS', job_key(p, id), p .. 'batch:' .. id) == 1 then
        return { print == order.print and 'created' or 'conflict', id }
      end
    end
  end
end

local function result_of(p, order)
  local id = order.reuse and redis.call('HGET', p .. 'results:' .. order.owner, order.fingerprint)
  if not id then
    return nil
  end
  local job = redis.call('HMGET', job_key(p, id), 'model', 'output', 'gone')
  local model, output, gone = job[1], job[2], job[3]
  if model and gone ~= '1' and safe(p, output) and stored(model).sha256 == redis.call('HGET', p .. 'networks', order.model) then
    return id
  end
end

-- A new job that has ended before it began: with the result of another.
local function copy_result(p, id, from)
  local key = job_key(p, id)
  local fields = { 'output', 'outputs', 'model', 'metrics', 'progress' }
  local values = redis.call('HMGET', job_key(p, from), unpack(fields))
  for i, field in ipairs(fields) do
    if values[i] then
      redis.call('HSET', key, field, values[i])
    end
  end
  local blobs = stored(redis.call('HGET', key, 'blobs'))
  blobs[#blobs + 1] = values[1]
  use(p, redis.call('HGET', key, 'owner'), values[1])
  redis.call('HSET', key, 'blobs', cjson.encode(blobs), 'reused_from', from, 'status', 'succeeded')
  file_under(p, id, 'succeeded')
  ended(p, id)
end

local function record(p, id, order)
  local key, now = job_key(p, id), now_ms()
  local number, entry = redis.call('INCR', p .. 'number'), redis.call('HINCRBY', p .. 'entries', order.owner, 1)
  redis.call('HSET', key, 'id', id, 'number', number, 'entry', entry, 'status', 'queued', 'version', 1, 'attempt', 0,
    'losses', 0, 'created_at', now, 'owner', order.owner, 'priority', order.priority, 'keep_ms', order.keep_ms,
    'input', order.input, 'blobs', cjson.encode(order.digests), 'fingerprint', order.fingerprint)
  for _, field in ipairs({ 'webhook', 'retried_from', 'batch_id' }) do
    if order[field] then
      redis.call('HSET', key, field, order[field])
    end
  end
  redis.call('ZADD', p .. 'of:' .. order.owner, entry, id)
  for _, digest in ipairs(order.digests) do
    use(p, order.owner, digest)
  end
  if order.deadline_ms then
    redis.call('HSET', key, 'deadline_at', now + order.deadline_ms)
    redis.call('ZADD', p .. 'deadlines', now + order.deadline_ms, id)
  end
end

-- An owner's records are bounded, as everything that a stranger can pile up. -> those that make room for so many more,
-- and whether they do.
local function room_for(p, owner, count)
  local of, going = p .. 'of:' .. owner, {}
  local need = math.min(count, redis.call('ZCARD', of) + count - MOST_RECORDS)
  if need > 0 then
    for _, id in ipairs(redis.call('ZRANGE', of, 0, MOST_LOOKED_AT - 1)) do
      local status, pinned = unpack(redis.call('HMGET', job_key(p, id), 'status', 'pinned'))
      if #going < need and not LEGAL[status] and pinned ~= '1' then
        going[#going + 1] = id
      end
    end
  end
  return going, #going >= need
end

-- Why orders of one owner cannot be taken, all of them; or false, and the records that make room for them
local function refusal(p, orders)
  local owner, most_own, most_queued = orders[1].owner, orders[1].most_own, orders[1].most_queued
  local going, is_room = room_for(p, owner, #orders)
  if not is_room then
    return 'records'
  end
  local new = 0 -- that are to be painted; where records go, a result to reuse may be among them
  for _, order in ipairs(orders) do
    for _, digest in ipairs(order.digests) do
      if not safe(p, digest) then
        return 'gone'
      end
    end
    new = new + (#going == 0 and result_of(p, order) and 0 or 1)
  end
  local own = redis.call('ZCARD', p .. 'queue:' .. owner) + redis.call('ZCARD', p .. 'of:' .. owner .. ':running')
  if new > 0 and most_own and own + new > most_own then
    return 'quota'
  end
  if new > 0 and most_queued and redis.call('ZCARD', p .. 'queue') + new > most_queued then
    return 'full'
  end
  return false, going
end

local function take(p, id, order)
  local source = result_of(p, order)
  record(p, id, order)
  if source then
    copy_result(p, id, source)
  else
    redis.call('HSET', job_key(p, id), 'place', new_place(p, id, redis.call('HGET', job_key(p, id), 'number')))
    file_under(p, id, 'queued')
    enqueue(p, id)
  end
end

local function remember(p, order, id)
  if order.key then
    redis.call('SET', p .. 'replay:' .. order.owner .. ':' .. order.key, order.print .. ' ' .. id, 'PX', order.replay_ms)
  end
end

-- owner, key, print -> {'created' or 'conflict', id} if the key was used before, or nil
local function repeated(keys, args)
  return answered(keys[1], { owner = args[1], key = args[2], print = args[3] })
end

-- id, order -> {word, id}: created (perhaps earlier, by the same key), conflict (the key was used for something else),
-- gone (a picture is not safe), quota (the owner has enough jobs), full (all have), records (the owner's fill their room,
-- and none of them may go). The same id again changes nothing.
local function create(keys, args)
  local p, id, order = keys[1], args[1], cjson.decode(args[2])
  if redis.call('EXISTS', job_key(p, id)) == 1 then
    return { 'created', id }
  end
  local before = answered(p, order)
  if before then
    return before
  end
  local why, going = refusal(p, { order })
  if why then
    return { why, id }
  end
  for _, oldest in ipairs(going) do
    erase(p, oldest)
  end
  take(p, id, order)
  remember(p, order, id)
  return { 'created', id }
end

-- batch, ids, orders (JSON lists) -> {word, batch}, as `create`: all jobs or none. The first order carries the key.
local function create_batch(keys, args)
  local p, batch, ids, orders = keys[1], args[1], cjson.decode(args[2]), cjson.decode(args[3])
  if redis.call('EXISTS', p .. 'batch:' .. batch) == 1 then
    return { 'created', batch }
  end
  local before = answered(p, orders[1])
  if before then
    return before
  end
  local why, going = refusal(p, orders)
  if why then
    return { why, batch }
  end
  for _, oldest in ipairs(going) do
    erase(p, oldest)
  end
  for i, order in ipairs(orders) do
    take(p, ids[i], order)
    redis.call('ZADD', p .. 'batch:' .. batch, i, ids[i])
  end
  remember(p, orders[1], batch)
  return { 'created', batch }
end

-- ---------------------------------------------------------------- looking

-- -> {waiting, running, live workers, seconds a job runs or '', seconds until all that runs is over}
local function load(keys)
  local p, left = keys[1], 0
  local pace = redis.call('GET', p .. 'pace')
  for _, id in ipairs(redis.call('ZRANGE', p .. 'leases', 0, 999)) do
    local progress = redis.call('HGET', job_key(p, id), 'progress')
    local seconds = progress and stored(progress).seconds_left
    left = left + (type(seconds) == 'number' and seconds or tonumber(pace or 0))
  end
  local live = redis.call('ZCOUNT', p .. 'workers', now_ms() - WORKER_MS, '+inf')
  return { redis.call('ZCARD', p .. 'queue'), redis.call('ZCARD', p .. 'leases'), live, pace or '', tostring(left) }
end

-- In the queue; 0 is next, -1: it does not wait.
local function rank_of(p, id)
  local place = redis.call('HGET', job_key(p, id), 'place')
  return place and redis.call('ZRANK', p .. 'queue', place) or -1
end

local function read_one(p, id)
  local fields = redis.call('HGETALL', job_key(p, id))
  fields[#fields + 1] = 'rank'
  fields[#fields + 1] = rank_of(p, id)
  return fields
end

-- Jobs that were read, and after them the load, if one of them waits.
local function with_load(keys, jobs)
  local waits = false
  for _, fields in ipairs(jobs) do
    waits = waits or (fields[#fields] or -1) >= 0
  end
  jobs[#jobs + 1] = waits and load(keys) or {}
  return jobs
end

-- owner, id... -> for each its fields, and its rank in the queue; or an empty table for what is not there.
-- After them the load, if one of them waits.
local function read(keys, args)
  local p, jobs = keys[1], {}
  for i = 2, #args do
    jobs[#jobs + 1] = visible(p, args[i], args[1]) and read_one(p, args[i]) or {}
  end
  return with_load(keys, jobs)
end

-- owner, id -> its frames; nil if there is no such job
local function frames(keys, args)
  return visible(keys[1], args[2], args[1]) and redis.call('LRANGE', keys[1] .. 'frames:' .. args[2], 0, -1) or nil
end

-- id, version that is known or '', ... -> as `read`, but of a job in its known version the rank alone
local function reread(keys, args)
  local p, jobs = keys[1], {}
  for i = 1, #args, 2 do
    local version, found = redis.call('HGET', job_key(p, args[i]), 'version'), {}
    if version then
      found = version == args[i + 1] and { rank_of(p, args[i]) } or read_one(p, args[i])
    end
    jobs[#jobs + 1] = found
  end
  return with_load(keys, jobs)
end

-- -> for each live worker what it told of itself, or '', and 1 if it runs a job
local function crew(keys)
  local p, busy, found = keys[1], {}, {}
  for _, id in ipairs(redis.call('ZRANGE', p .. 'leases', 0, 999)) do
    busy[redis.call('HGET', job_key(p, id), 'worker') or ''] = true
  end
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', p .. 'workers', now_ms() - WORKER_MS, '+inf')) do
    found[#found + 1] = { redis.call('HGET', p .. 'crew', worker) or '', busy[worker] and 1 or 0 }
  end
  return found
end

-- -> {how many jobs have ended, by status: name, number, ...; webhooks that wait to be sent}
local function counts(keys)
  local p, waiting = keys[1], 0
  for _, lane in ipairs(redis.call('ZRANGE', p .. 'outbox', 0, 9999)) do
    waiting = waiting + redis.call('ZCARD', p .. 'outbox:' .. lane)
  end
  return { redis.call('HGETALL', p .. 'ended'), waiting }
end

-- ---------------------------------------------------------------- a worker's steps

-- worker, what it tells of itself: it lives
local function beat(keys, args)
  local p, now = keys[1], now_ms()
  redis.call('ZADD', p .. 'workers', now, args[1])
  if redis.call('HGET', p .. 'crew', args[1]) ~= args[2] then
    redis.call('HSET', p .. 'crew', args[1], args[2])
  end
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', p .. 'workers', '-inf', now - 12 * WORKER_MS)) do
    redis.call('ZREM', p .. 'workers', gone)
    redis.call('HDEL', p .. 'crew', gone)
  end
end

-- Whether these are all changes of the job's spec.
local function knows(p, id, steerings)
  return (redis.call('HGET', job_key(p, id), 'steerings') or '0') == steerings
end

-- id, token, lease_ms, changes of the spec that the run knows of or '' -> standing
local function renew(keys, args)
  local p, id = keys[1], args[1]
  local answer = standing(p, id, args[2])
  if answer ~= 'stale' then
    redis.call('ZADD', p .. 'leases', now_ms() + tonumber(args[3]), id)
  end
  if answer == 'ok' and (args[4] or '') ~= '' and not knows(p, id, args[4]) then
    return 'steered'
  end
  return answer
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

-- token, worker, lease_ms -> id of the next job, now running under this token, or nil. Sent again, it is answered again,
-- with a whole lease; or nil where the job is no longer under the token.
local function claim(keys, args)
  local p, token, lease_ms = keys[1], args[1], tonumber(args[3])
  local before = redis.call('GET', p .. 'claim:' .. token)
  if before then
    return renew(keys, { before, token, lease_ms }) ~= 'stale' and before or nil
  end
  local place, id = next_place(p)
  if not place then
    return nil
  end
  local class, turn = string.sub(place, 1, 1), turn_at(place)
  if turn > tonumber(redis.call('HGET', p .. 'turns', class) or 0) then
    redis.call('HSET', p .. 'turns', class, turn)
  end
  local job = job_key(p, id)
  local now = now_ms()
  redis.call('SET', p .. 'claim:' .. token, id, 'PX', CLAIM_MS)
  add(job, 'attempt', 1)
  redis.call('HSET', job, 'place', place, 'token', token, 'worker', args[2], 'claimed_at', now)
  redis.call('HSETNX', job, 'started_at', now)
  move(p, id, 'running')
  redis.call('ZADD', p .. 'leases', now + lease_ms, id)
  return id
end

-- id, token, changes of the spec that the run knows of -> standing. If these are all, there will be no more: what is
-- told of a picture is what it was made with.
local function seal(keys, args)
  local p, id = keys[1], args[1]
  local answer = standing(p, id, args[2])
  if answer ~= 'stale' then
    if not knows(p, id, args[3]) then
      return 'steered'
    end
    redis.call('HSET', job_key(p, id), 'sealed', '1')
  end
  return answer
end

-- id, token, progress, digest of the preview or '' -> standing
local function progress(keys, args)
  local p, id, preview = keys[1], args[1], args[4]
  local job = job_key(p, id)
  local answer = standing(p, id, args[2])
  if answer == 'stale' then
    return answer
  end
  redis.call('HSET', job, 'progress', args[3])
  changed(p, id)
  if preview ~= '' then
    local owner, old = unpack(redis.call('HMGET', job, 'owner', 'preview'))
    use(p, owner, preview)
    redis.call('HSET', job, 'preview', preview)
    if old then
      drop(p, owner, old)
    end
  end
  return answer
end

-- id, token, frame (JSON: iteration, digest, ...), most -> how often they were thinned out by now; -1: it is not kept.
-- Where there are too many, every other one goes. What an earlier attempt kept from this iteration on is painted again.
local function keep_frame(keys, args)
  local p, id = keys[1], args[1]
  local key, list = job_key(p, id), p .. 'frames:' .. id
  if standing(p, id, args[2]) == 'stale' then
    return -1
  end
  local owner, frame = redis.call('HGET', key, 'owner'), cjson.decode(args[3])
  use(p, owner, frame.digest)
  local last = redis.call('LINDEX', list, -1)
  while last and (stored(last).iteration or frame.iteration) >= frame.iteration do
    drop_frame(p, owner, redis.call('RPOP', list))
    last = redis.call('LINDEX', list, -1)
  end
  frame.index = redis.call('HINCRBY', key, 'frames', 1) - 1
  redis.call('RPUSH', list, cjson.encode(frame))
  if redis.call('LLEN', list) > tonumber(args[4]) then
    local frames = redis.call('LRANGE', list, 0, -1)
    redis.call('DEL', list)
    for i, kept in ipairs(frames) do
      if i % 2 == 1 then
        redis.call('RPUSH', list, kept)
      else
        drop_frame(p, owner, kept)
      end
    end
    redis.call('HINCRBY', key, 'thinned', 1)
  end
  return tonumber(redis.call('HGET', key, 'thinned') or 0)
end

-- id, token, name -> standing. The next attempt goes on from there. A worker that got this far has not died in vain.
local function keep(keys, args)
  local p, id = keys[1], args[1]
  local answer = standing(p, id, args[2])
  if answer ~= 'stale' then
    redis.call('HSET', job_key(p, id), 'checkpoint', args[3], 'losses', 0)
  end
  return answer
end

-- id, token, status, field, value, field, value, ..., with the field 'output' a blob's digest -> 'ok' or 'stale'
local function finish(keys, args)
  local p, id, token, status = keys[1], args[1], args[2], args[3]
  local job = job_key(p, id)
  local mine = redis.call('HMGET', job, 'status', 'token', 'owner', 'fingerprint', 'claimed_at')
  if mine[2] ~= token then
    return 'stale'
  end
  if mine[1] == status then
    return 'ok' -- the same words a second time: the first answer was lost on its way
  end
  if mine[1] ~= 'running' then
    return 'stale'
  end
  for i = 4, #args, 2 do
    if args[i] == 'output' then
      use(p, mine[3], args[i + 1])
      local blobs = stored(redis.call('HGET', job, 'blobs'))
      blobs[#blobs + 1] = args[i + 1]
      redis.call('HSET', job, 'blobs', cjson.encode(blobs))
    end
    redis.call('HSET', job, args[i], args[i + 1])
  end
  if status == 'succeeded' then
    local seconds, before = (now_ms() - mine[5]) / 1000, redis.call('GET', p .. 'pace')
    redis.call('SET', p .. 'pace', before and 0.8 * before + 0.2 * seconds or seconds)
    if mine[4] then
      redis.call('HSET', p .. 'results:' .. mine[3], mine[4], id)
    end
  end
  return move(p, id, status) and 'ok' or 'stale'
end

-- id, token -> 'ok' or 'stale'. A worker that goes away hands its job back; that is no failed attempt.
local function release(keys, args)
  local p, id = keys[1], args[1]
  local answer = standing(p, id, args[2])
  if answer == 'stale' then
    return answer
  end
  if answer == 'cancel' then
    move(p, id, 'canceled')
  else
    move(p, id, 'queued')
    add(job_key(p, id), 'attempt', -1)
  end
  redis.call('HDEL', job_key(p, id), 'token')
  return 'ok'
end

-- worker, most losses, error of a job that was lost too often -> how many are queued again. The worker's process died.
local function bury(keys, args)
  local p, again = keys[1], 0
  redis.call('ZREM', p .. 'workers', args[1])
  redis.call('HDEL', p .. 'crew', args[1])
  for _, id in ipairs(redis.call('ZRANGE', p .. 'leases', 0, -1)) do
    if redis.call('HGET', job_key(p, id), 'worker') == args[1] then
      again = again + (lose(p, id, args[2], args[3]) or 0)
    end
  end
  return again
end

-- ---------------------------------------------------------------- a client's steps

-- owner, id -> 1, or nil if there is no such job. A waiting job ends at once, a running one is asked to stop.
local function cancel(keys, args)
  local p, id = keys[1], args[2]
  if not visible(p, id, args[1]) then
    return nil
  end
  local key = job_key(p, id)
  local job = redis.call('HMGET', key, 'status', 'cancel_requested', 'token')
  if job[1] == 'queued' then
    move(p, id, 'canceled')
  elseif job[1] == 'running' and job[2] ~= '1' then
    redis.call('HSET', key, 'cancel_requested', '1')
    changed(p, id)
    wake(p, job[3])
  end
  return 1
end

-- owner, id, changes of the spec before this, input, fingerprint -> 'ok'; 'ended' if it is too late; 'again' if there was
-- another change; nil if there is no such job. A picture that was begun otherwise is not what the fingerprint promises.
local function steer(keys, args)
  local p, id = keys[1], args[2]
  if not visible(p, id, args[1]) then
    return nil
  end
  local key = job_key(p, id)
  local job = redis.call('HMGET', key, 'status', 'cancel_requested', 'sealed', 'steerings', 'started_at', 'token')
  if not LEGAL[job[1]] or job[2] == '1' or job[3] then
    return 'ended'
  end
  if (job[4] or '0') ~= args[3] then
    return 'again'
  end
  redis.call('HSET', key, 'input', args[4], 'fingerprint', args[5])
  if job[5] then
    redis.call('HDEL', key, 'fingerprint')
  end
  redis.call('HINCRBY', key, 'steerings', 1)
  changed(p, id)
  wake(p, job[6])
  return 'ok'
end

-- owner, id -> 1 if there was such a job. A worker that still runs it finds its token stale.
local function delete(keys, args)
  if not visible(keys[1], args[2], args[1]) then
    return 0
  end
  erase(keys[1], args[2])
  return 1
end

-- owner, batch -> how many jobs it had that the caller may see
local function each(step)
  return function(keys, args)
    local count = 0
    for _, id in ipairs(redis.call('ZRANGE', keys[1] .. 'batch:' .. args[2], 0, -1)) do
      count = count + (step(keys, { args[1], id }) or 0)
    end
    return count
  end
end

-- owner, id, '1' or '0' -> 1, or nil if there is no such job. A pinned job does not expire.
local function pin(keys, args)
  local p, id = keys[1], args[2]
  if not visible(p, id, args[1]) then
    return nil
  end
  local key = job_key(p, id)
  local completed_at, keep_ms, pinned = unpack(redis.call('HMGET', key, 'completed_at', 'keep_ms', 'pinned'))
  if (pinned or '0') ~= args[3] then
    redis.call('HSET', key, 'pinned', args[3])
    changed(p, id)
  end
  if args[3] == '1' then
    redis.call('HDEL', key, 'expires_at')
    redis.call('ZREM', p .. 'expiry', id)
    redis.call('ZREM', p .. 'records', id)
  elseif pinned == '1' and completed_at then
    keep_ended(p, id, keep_ms)
  end
  return 1
end

-- ---------------------------------------------------------------- the reaper's steps

-- most losses, error of a job that was lost too often -> {queued again, ended}
local function reap(keys, args)
  local p, now = keys[1], now_ms()
  local again, over = 0, 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'leases', '-inf', now, 'LIMIT', 0, 1000)) do
    local queued = lose(p, id, args[1], args[2])
    again, over = again + (queued or 0), over + (queued == 0 and 1 or 0)
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'deadlines', '-inf', now, 'LIMIT', 0, 1000)) do
    local job = redis.call('HMGET', job_key(p, id), 'status', 'token')
    if job[1] == 'queued' then
      move(p, id, 'expired')
      over = over + 1
    else
      wake(p, job[2]) -- its worker ends it
    end
  end
  return { again, over }
end

-- record_ms, most -> how many. Ended jobs whose time is over lose their pictures; and their records after record_ms more.
local function expire(keys, args)
  local p, now = keys[1], now_ms()
  local over = redis.call('ZRANGEBYSCORE', p .. 'records', '-inf', now, 'LIMIT', 0, args[2])
  for _, id in ipairs(over) do
    erase(p, id)
  end
  local due = redis.call('ZRANGEBYSCORE', p .. 'expiry', '-inf', now, 'LIMIT', 0, args[2])
  for _, id in ipairs(due) do
    drop_all(p, id)
    forget_result(p, id)
    redis.call('HSET', job_key(p, id), 'gone', '1')
    changed(p, id)
    redis.call('ZREM', p .. 'expiry', id)
    redis.call('ZADD', p .. 'records', now + args[1], id)
  end
  return #over + #due
end

-- how many -> how many. The ended jobs that would expire next do so now: the disk is fuller than it may be.
local function hasten(keys, args)
  local next_ones = redis.call('ZRANGE', keys[1] .. 'expiry', 0, args[1] - 1)
  for _, id in ipairs(next_ones) do
    redis.call('ZADD', keys[1] .. 'expiry', 0, id)
  end
  return #next_ones
end

-- me, term_ms -> 1 if this process leads now
local function lead(keys, args)
  local key = keys[1] .. 'leader'
  local leader = redis.call('GET', key)
  if leader and leader ~= args[1] then
    return 0
  end
  redis.call('SET', key, args[1], 'PX', args[2])
  return 1
end

-- ---------------------------------------------------------------- a courier's steps

-- token, lease_ms, most tries -> {id, which try}, or nil. The job whose webhook is due first, among the lanes without a
-- courier. A try counts before it is made: one that kills couriers is not made for ever.
local function collect(keys, args)
  local p, now = keys[1], now_ms()
  local before = redis.call('GET', p .. 'collect:' .. args[1])
  if before then
    local taken = cjson.decode(before)
    return { taken.id, taken.try }
  end
  redis.call('ZREMRANGEBYSCORE', p .. 'couriers', '-inf', now)
  local busy, free = {}, {}
  for _, lane in ipairs(redis.call('ZRANGE', p .. 'couriers', 0, -1)) do
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
        redis.call('ZADD', p .. 'couriers', now + args[2], lane)
        local taken = { id = id, try = try, lane = lane, until_ms = now + args[2] }
        redis.call('SET', p .. 'collect:' .. args[1], cjson.encode(taken), 'PX', args[2])
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
  local before = redis.call('GET', p .. 'collect:' .. token)
  if before then
    local taken = cjson.decode(before)
    if tonumber(redis.call('ZSCORE', p .. 'couriers', taken.lane) or 0) == taken.until_ms then -- it is still this courier's
      redis.call('ZREM', p .. 'couriers', taken.lane)
    end
  end
end

-- id, token, ms until the next try or '', how it ended or '' -> 'ok'; 'stale' if the delivery is another courier's
local function settle(keys, args)
  local p, id = keys[1], args[1]
  local key = job_key(p, id)
  if redis.call('EXISTS', key) == 0 then
    free_lane(p, args[2])
    return 'stale'
  end
  if redis.call('HGET', key, 'webhook_token') ~= args[2] then
    return 'stale'
  end
  redis.call('HDEL', key, 'webhook_token')
  redis.call('ZREM', p .. 'couriers', lane_of(p, id))
  if args[3] ~= '' then
    post(p, id, now_ms() + args[3])
  else
    redis.call('HSET', key, 'webhook_end', args[4])
    unpost(p, id)
  end
  return 'ok'
end

-- ---------------------------------------------------------------- uploads

local function forget_old_uploads(p, owner)
  local uploads, now = p .. 'uploads:' .. owner, now_ms()
  for _, digest in ipairs(redis.call('ZRANGEBYSCORE', uploads, '-inf', now)) do
    redis.call('HDEL', p .. 'sizes:' .. owner, digest)
  end
  redis.call('ZREMRANGEBYSCORE', uploads, '-inf', now)
end

-- Whether the owner's uploads would take more than so many bytes with this one, where it is not among them yet.
local function is_too_much(p, owner, digest, bytes, most_bytes)
  if bytes == 0 or redis.call('HEXISTS', p .. 'sizes:' .. owner, digest) == 1 then
    return false
  end
  for _, others in ipairs(redis.call('HVALS', p .. 'sizes:' .. owner)) do
    bytes = bytes + tonumber(others)
  end
  return bytes > most_bytes
end

-- digest, keep_ms, owner or '', bytes of an upload or 0, most bytes of all uploads of theirs -> 1; 0 while its file is
-- being deleted; -ms, as long as it will take, where there is no room. Called before a blob is written: from now on it
-- is safe from the janitor for keep_ms, and as long as a job uses it; and the owner may name it.
local function hold(keys, args)
  local p, digest, keep_ms, owner, bytes = keys[1], args[1], tonumber(args[2]), args[3], tonumber(args[4])
  if redis.call('SISMEMBER', p .. 'condemned', digest) == 1 then
    return 0
  end
  local now, uploads, sizes = now_ms(), p .. 'uploads:' .. owner, p .. 'sizes:' .. owner
  if owner ~= '' then
    forget_old_uploads(p, owner)
    if is_too_much(p, owner, digest, bytes, tonumber(args[5])) then
      local first = redis.call('ZRANGE', uploads, 0, 0, 'WITHSCORES')[2]
      return math.min(-1, now - tonumber(first or now))
    end
    redis.call('ZADD', uploads, 'GT', now + keep_ms, digest)
    redis.call('PEXPIRE', uploads, math.max(redis.call('PTTL', uploads), keep_ms))
    if bytes > 0 then
      redis.call('HSET', sizes, digest, bytes)
    end
    redis.call('PEXPIRE', sizes, redis.call('PTTL', uploads))
  end
  redis.call('ZADD', p .. 'orphans', 'GT', now + keep_ms, digest)
  return 1
end

-- owner, digest -> 1 if they uploaded it and it is kept, or a job of theirs uses it
local function owns(keys, args)
  local p = keys[1]
  if redis.call('HEXISTS', p .. 'refs:' .. args[1], args[2]) == 1 then
    return 1
  end
  local until_ms = redis.call('ZSCORE', p .. 'uploads:' .. args[1], args[2])
  return until_ms and tonumber(until_ms) > now_ms() and 1 or 0
end

-- -> digests whose files may go now. They stay condemned until `forget`.
local function condemn(keys)
  local p = keys[1]
  for _, digest in ipairs(redis.call('ZRANGEBYSCORE', p .. 'orphans', '-inf', now_ms(), 'LIMIT', 0, 1000)) do
    redis.call('ZREM', p .. 'orphans', digest)
    if redis.call('HEXISTS', p .. 'refs', digest) == 0 then
      redis.call('SADD', p .. 'condemned', digest)
    end
  end
  return redis.call('SMEMBERS', p .. 'condemned')
end

-- digest: its file is gone
local function forget(keys, args)
  return redis.call('SREM', keys[1] .. 'condemned', args[1])
end

-- keep_ms, digest... -> how many of them nobody used, held or was deleting. Those are held for keep_ms more, and then go:
-- files whose record a torn log has lost, or a backup of the store never had.
local function adopt(keys, args)
  local p, strays = keys[1], 0
  local until_ms = now_ms() + args[1]
  for i = 2, #args do
    if redis.call('HEXISTS', p .. 'refs', args[i]) == 0 and redis.call('SISMEMBER', p .. 'condemned', args[i]) == 0 then
      strays = strays + redis.call('ZADD', p .. 'orphans', 'NX', until_ms, args[i])
    end
  end
  return strays
end

redis.register_function('impasto_VERSION_create', create)
redis.register_function('impasto_VERSION_create_batch', create_batch)
redis.register_function('impasto_VERSION_cancel_batch', each(cancel))
redis.register_function('impasto_VERSION_delete_batch', each(delete))
redis.register_function('impasto_VERSION_claim', claim)
redis.register_function('impasto_VERSION_beat', beat)
redis.register_function('impasto_VERSION_renew', renew)
redis.register_function('impasto_VERSION_seal', seal)
redis.register_function('impasto_VERSION_progress', progress)
redis.register_function('impasto_VERSION_keep', keep)
redis.register_function('impasto_VERSION_keep_frame', keep_frame)
redis.register_function('impasto_VERSION_finish', finish)
redis.register_function('impasto_VERSION_release', release)
redis.register_function('impasto_VERSION_bury', bury)
redis.register_function('impasto_VERSION_cancel', cancel)
redis.register_function('impasto_VERSION_delete', delete)
redis.register_function('impasto_VERSION_steer', steer)
redis.register_function('impasto_VERSION_pin', pin)
redis.register_function('impasto_VERSION_reap', reap)
redis.register_function('impasto_VERSION_expire', expire)
redis.register_function('impasto_VERSION_hasten', hasten)
redis.register_function('impasto_VERSION_lead', lead)
redis.register_function('impasto_VERSION_collect', collect)
redis.register_function('impasto_VERSION_settle', settle)
redis.register_function('impasto_VERSION_hold', hold)
redis.register_function('impasto_VERSION_owns', owns)
redis.register_function('impasto_VERSION_condemn', condemn)
redis.register_function('impasto_VERSION_forget', forget)
redis.register_function('impasto_VERSION_adopt', adopt)
redis.register_function({ function_name = 'impasto_VERSION_repeated', callback = repeated, flags = { 'no-writes' } })
redis.register_function({ function_name = 'impasto_VERSION_read', callback = read, flags = { 'no-writes' } })
redis.register_function({ function_name = 'impasto_VERSION_frames', callback = frames, flags = { 'no-writes' } })
redis.register_function({ function_name = 'impasto_VERSION_reread', callback = reread, flags = { 'no-writes' } })
redis.register_function({ function_name = 'impasto_VERSION_crew', callback = crew, flags = { 'no-writes' } })
redis.register_function({ function_name = 'impasto_VERSION_counts', callback = counts, flags = { 'no-writes' } })
redis.register_function({ function_name = 'impasto_VERSION_load', callback = load, flags = { 'no-writes' } })
