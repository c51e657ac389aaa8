"""The transitions of `workers/jobs.py` as Lua: each runs in Redis as one atomic step, by the server's clock.

Every script is called with (prefix, job id, ttl, max attempts, dead-letter error, …its own arguments), the last ones
from ARGV[7] on. Scripts answer with a word that `Jobs` turns into a value or an exception.
"""

_PRELUDE = """
local prefix, id, ttl, max_attempts, dead_error = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local again = tonumber(ARGV[6])
local job, stream, upload
local function look_at(other)
  id, job, stream, upload = other, prefix .. 'job:' .. other, prefix .. 'events:' .. other, prefix .. 'upload:' .. other
end
look_at(id)
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6

local function get(field) return redis.call('HGET', job, field) or '' end
local function place(state) return prefix .. state .. ':' .. get('queue') end
local function stamp() return string.format('%.6f', now) end

local function emit(event, data)
  redis.call('XADD', stream, 'MAXLEN', '~', 1000, '*', 'event', event, 'data', data)
end

local function move(to)
  local from, seq = get('status'), get('seq')
  redis.call('ZREM', prefix .. 'jobs:' .. from, id)
  redis.call('ZADD', prefix .. 'jobs:' .. to, seq, id)
  redis.call('HSET', job, 'status', to)
  redis.call('ZREM', place('queued'), id)
  redis.call('ZREM', place('running'), id)
  redis.call('ZREM', prefix .. 'due', id)
  emit('status', cjson.encode({status = to, attempt = tonumber(get('attempt'))}))
end

-- Every copy of the message has a tag of its own, by which the broker tells them apart.
local function message() return (string.gsub(get('message'), '@tag@', id .. '.' .. get('sent'), 1)) end

local function send()
  redis.call('ZADD', prefix .. 'due', now + again, id)
  if get('message') == '' then return end -- a record of another version: its gateways send it
  redis.call('HINCRBY', job, 'sent', 1)
  redis.call('LPUSH', get('queue'), message())
end

local function bury()
  local error = cjson.decode(get('error'))
  local attempts = tonumber(get('attempt'))
  local letter = {id = id, attempts = attempts, at = stamp(), reason = error.type, detail = error.detail}
  redis.call('LPUSH', prefix .. 'dead', cjson.encode(letter))
  redis.call('LTRIM', prefix .. 'dead', 0, 999)
  redis.call('EXPIRE', upload, ttl) -- it may be replayed
end

local function close(status, field, value, dead)
  redis.call('HSET', job, 'finished_at', stamp())
  if field then redis.call('HSET', job, field, value) end
  if dead then bury() else redis.call('DEL', upload) end
  if get('status') == 'queued' then redis.call('LREM', get('queue'), -1, message()) end
  redis.call('HDEL', job, 'message')
  move(status)
  if get('owner') ~= '' then redis.call('SREM', prefix .. 'active:' .. get('owner'), id) end
  if redis.call('EXISTS', prefix .. 'callback:' .. id) == 1 then redis.call('ZADD', prefix .. 'callbacks', now, id) end
  redis.call('EXPIRE', job, ttl)
  redis.call('EXPIRE', stream, ttl)
  redis.call('SET', prefix .. 'forgotten:' .. id, get('owner'), 'EX', ttl * 7)
  redis.call('ZADD', prefix .. 'ended', now + ttl, id)
  redis.call('ZADD', prefix .. 'unfiled', now, id)
  redis.call('PUBLISH', prefix .. 'endings', id)
end

local function lapsed()
  local deadline = redis.call('ZSCORE', place('running'), id)
  return get('status') == 'running' and (not deadline or tonumber(deadline) < now)
end

-- What becomes of a job whose worker is gone: stopped if that was wanted, given up after too many attempts, else queued
-- and sent again.
local function revive()
  if get('cancel') == '1' then
    close('canceled')
  elseif tonumber(get('attempt')) >= max_attempts then
    close('failed', 'error', dead_error, true)
  else
    redis.call('HDEL', job, 'progress', 'worker', 'started_at')
    move('queued')
    redis.call('ZADD', place('queued'), redis.call('INCR', prefix .. 'seq'), id)
    send()
  end
  return get('status')
end

local function claim(worker, lease)
  local token = redis.call('HINCRBY', job, 'attempt', 1)
  redis.call('HSET', job, 'worker', worker, 'lease', lease, 'started_at', stamp())
  move('running')
  redis.call('ZADD', place('running'), now + tonumber(lease), id)
  return token
end

local function holds(token) return get('status') == 'running' and get('attempt') == token end
local function refusal() return redis.call('EXISTS', job) == 1 and 'stale' or 'unknown' end
"""

# A Redis that is full takes no new jobs, but those it has must be able to end: that is what frees it.
_ALWAYS = "#!lua flags=allow-oom" + _PRELUDE

# key, fingerprint, seconds the reservation holds
RESERVE = (
    _PRELUDE
    + """
local known = redis.call('HMGET', ARGV[7], 'fingerprint', 'job')
if not known[1] then
  redis.call('HSET', ARGV[7], 'fingerprint', ARGV[8])
  redis.call('EXPIRE', ARGV[7], ARGV[9])
  return 'reserved'
end
if known[1] ~= ARGV[8] then return 'reused' end
return known[2] and 'job:' .. known[2] or 'in flight'
"""
)

# key
RELEASE = (
    _ALWAYS
    + """
if redis.call('HEXISTS', ARGV[7], 'job') == 0 then redis.call('DEL', ARGV[7]) end
return 'ok'
"""
)

# queue, most queued, most active jobs of the owner or 0, idempotency key or '', owner or '', upload or '',
# fingerprint or '', then fields and values
CREATE = (
    _PRELUDE
    + """
if redis.call('EXISTS', job) == 1 then return 'job:' .. id end -- a repetition after a lost answer
local known = ARGV[10] ~= '' and redis.call('HMGET', ARGV[10], 'job', 'fingerprint') or {}
if known[1] then -- its reservation ran out, and another request with this key was faster
  if known[2] ~= ARGV[13] then return 'reused' end
  redis.call('EXPIRE', ARGV[10], ttl)
  return 'job:' .. known[1]
end
if redis.call('ZCARD', prefix .. 'queued:' .. ARGV[7]) >= tonumber(ARGV[8]) then return 'full' end
local most = tonumber(ARGV[9])
if most > 0 and redis.call('SCARD', prefix .. 'active:' .. ARGV[11]) >= most then return 'active' end

-- Records vanish by themselves; what points to them goes here, a few at a time.
for _, old in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'ended', '-inf', now, 'LIMIT', 0, 16)) do
  for _, status in ipairs({'succeeded', 'failed', 'canceled', 'expired'}) do
    redis.call('ZREM', prefix .. 'jobs:' .. status, old)
  end
  redis.call('ZREM', prefix .. 'jobs', old)
  redis.call('ZREM', prefix .. 'ended', old)
end

local seq = redis.call('INCR', prefix .. 'seq')
redis.call('HSET', job, 'queue', ARGV[7], 'seq', seq, 'attempt', 0, 'created_at', stamp(), 'status', 'queued',
  'owner', ARGV[11], unpack(ARGV, 14))
if ARGV[12] ~= '' then redis.call('SET', upload, ARGV[12]) end
redis.call('ZADD', prefix .. 'jobs', seq, id)
if get('owner') ~= '' then
  local owned, oldest = prefix .. 'owned:' .. get('owner'), redis.call('ZRANGE', prefix .. 'jobs', 0, 0, 'WITHSCORES')
  redis.call('ZADD', owned, seq, id)
  redis.call('ZREMRANGEBYSCORE', owned, '-inf', '(' .. oldest[2])
  redis.call('SADD', prefix .. 'active:' .. get('owner'), id)
end
move('queued')
redis.call('ZADD', place('queued'), seq, id)
send()
if ARGV[10] ~= '' then
  redis.call('HSET', ARGV[10], 'job', id, 'fingerprint', ARGV[13])
  redis.call('EXPIRE', ARGV[10], ttl)
end
return {get('created_at'), redis.call('ZRANK', place('queued'), id)}
"""
)

# no arguments
SEND = (
    _ALWAYS
    + """
if get('status') == 'queued' then
  send()
else
  redis.call('ZREM', prefix .. 'due', id)
end
return 'ok'
"""
)

# worker, lease in seconds
CLAIM = (
    _ALWAYS
    + """
if lapsed() then revive() end
if get('status') ~= 'queued' then return 0 end
return claim(ARGV[7], ARGV[8])
"""
)

# queue, worker, lease in seconds
TAKE = (
    _ALWAYS
    + """
for _, first in ipairs(redis.call('ZRANGE', prefix .. 'queued:' .. ARGV[7], 0, 31)) do
  look_at(first)
  if get('attempt') == '0' and get('message') ~= '' then
    local told = message()
    redis.call('LREM', ARGV[7], -1, told) -- nobody else need be told
    return {first, claim(ARGV[8], ARGV[9]), told}
  end
end
return false
"""
)

# token
HEARTBEAT = (
    _ALWAYS
    + """
if not holds(ARGV[7]) then return refusal() end
redis.call('ZADD', place('running'), now + tonumber(get('lease')), id)
return 'ok'
"""
)

# token, progress
PROGRESS = (
    _ALWAYS
    + """
if not holds(ARGV[7]) then return refusal() end
redis.call('HSET', job, 'progress', ARGV[8])
emit('progress', ARGV[8])
return 'ok'
"""
)

# token, status, field, value, '1' for a dead letter
CLOSE = (
    _ALWAYS
    + """
if not holds(ARGV[7]) then return refusal() end
if ARGV[9] == '' then close(ARGV[8]) else close(ARGV[8], ARGV[9], ARGV[10], ARGV[11] == '1') end
return 'ok'
"""
)

# no arguments
CANCEL = (
    _ALWAYS
    + """
if get('status') == 'queued' or lapsed() then
  close('canceled')
elseif get('status') == 'running' and get('cancel') ~= '1' then
  redis.call('HSET', job, 'cancel', '1')
  emit('status', cjson.encode({status = 'running', attempt = tonumber(get('attempt')), cancel_requested = true}))
end
return get('status')
"""
)

# error
EXPIRE = (
    _ALWAYS
    + """
if get('status') == 'queued' then close('expired', 'error', ARGV[7]) end
return get('status')
"""
)

# no arguments
REQUEUE = (
    _ALWAYS
    + """
return lapsed() and revive() or get('status')
"""
)

# Called with (prefix, job id) alone: its place in its queue, -1 for none, then fields and values
READ = """
local job = ARGV[1] .. 'job:' .. ARGV[2]
local queue = redis.call('HGET', job, 'queue')
local rank = queue and redis.call('ZRANK', ARGV[1] .. 'queued:' .. queue, ARGV[2])
return {rank or -1, unpack(redis.call('HGETALL', job))}
"""
