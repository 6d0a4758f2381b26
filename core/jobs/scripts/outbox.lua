-- The destination of a webhook: the owner of the job, and the host of the URL with its port.
-- worker/webhooks/dispatcher.py computes the same text.
local function destination_of(owner, url)
  return owner .. ' ' .. (string.match(url, '^%a+://([^/?#]+)') or '')
end

local function schedule_webhook(p, id, due_ms)
  if get_fields(p, id, 'webhook') then
    redis.call('ZADD', p .. 'outbox', due_ms, id)
  end
end

-- Claim the delivery that is due first and not blocked. blocked: a JSON list of owners and
-- destinations that the dispatcher is busy with. Returns {id, number of the try}, or nil.
-- A claimed delivery stays in the outbox and is due again after lease_ms, so a dispatcher that dies
-- loses nothing. The try counts now, so a delivery that kills dispatchers ends, too. A blocked one
-- is postponed, 2 ms more than the one before it: so they keep their order, and however many there
-- are, claims look at some 500 blocked deliveries per second. After MAX_POSTPONED the operation
-- returns their number, and the caller repeats it with that as `postponed`: one owner's many
-- deliveries must not block the server.
operation('claim_delivery', function(p, token, lease_ms, max_tries, blocked, postponed)
  local earlier = redis.call('GET', p .. 'delivery_claim:' .. token)
  if earlier then
    return cjson.decode(earlier) -- a repeated call: the answer to the first one was lost
  end
  local now, is_blocked = now_ms(), {}
  postponed = tonumber(postponed)
  local limit = postponed + MAX_POSTPONED
  for _, name in ipairs(cjson.decode(blocked)) do
    is_blocked[name] = true
  end
  while postponed < limit do
    local id = redis.call('ZRANGEBYSCORE', p .. 'outbox', '-inf', now, 'LIMIT', 0, 1)[1]
    if not id then
      return nil
    end
    local owner, url = get_fields(p, id, 'owner', 'webhook')
    local destination = owner and url and destination_of(owner, url)
    if destination and (is_blocked[owner] or is_blocked[destination]) then
      redis.call('ZADD', p .. 'outbox', now + POSTPONE_MS + 2 * postponed, id)
      postponed = postponed + 1
    else
      local try = url and add(job_key(p, id), 'webhook_tries', 1)
      if try and try <= tonumber(max_tries) then
        redis.call('HSET', job_key(p, id), 'webhook_token', token)
        redis.call('ZADD', p .. 'outbox', now + lease_ms, id)
        local claim = cjson.encode({ id, try })
        redis.call('SET', p .. 'delivery_claim:' .. token, claim, 'PX', lease_ms)
        return { id, try }
      end
      if try then
        redis.call('HSET', job_key(p, id), 'webhook_end', 'given_up')
      end
      redis.call('ZREM', p .. 'outbox', id)
    end
  end
  return postponed
end)

-- Schedule the next try in retry_ms, or record the outcome if that is ''. Returns 'ok', or 'stale'
-- if another dispatcher has claimed the delivery since, or the job was deleted.
operation('complete_delivery', function(p, id, token, retry_ms, outcome)
  if get_fields(p, id, 'webhook_token') ~= token then
    return 'stale'
  end
  redis.call('HDEL', job_key(p, id), 'webhook_token')
  if retry_ms ~= '' then
    redis.call('ZADD', p .. 'outbox', now_ms() + retry_ms, id)
  else
    redis.call('HSET', job_key(p, id), 'webhook_end', outcome)
    redis.call('ZREM', p .. 'outbox', id)
  end
  return 'ok'
end)
