-- For wrk: posts the lines of a file to /events, each a body.
--
--   wrk --threads 1 ... --script post.lua URL -- FILE once|cycle
--
-- once: each line exactly once, then wrk ends; a connection that has no more of them asks for
-- /health meanwhile. cycle: over and over, as long as wrk runs.
-- Prints one line of JSON; times are in microseconds, `first` is the monotonic clock's seconds.

local ffi = require("ffi")
ffi.cdef([[
  struct timespec { long seconds; long nanoseconds; };
  int clock_gettime(int clock, struct timespec *now);
  int getpid(void);
  int kill(int process, int signal);
]])
local CLOCK_MONOTONIC, SIGINT = 1, 2
local PATIENCE = 30  -- a post whose connection broke is never answered

local function now()
  local time = ffi.new("struct timespec")
  ffi.C.clock_gettime(CLOCK_MONOTONIC, time)
  return tonumber(time.seconds) + tonumber(time.nanoseconds) / 1e9
end

local function post(body)
  local headers = {["Content-Type"] = "application/json", ["X-Write-Key"] = "key"}
  return wrk.format("POST", "/events", headers, body)
end

-- In the thread. What is global here, `done` can get.

first, posted, statuses = 0, 0, "{}"

local function cycle(path)
  local requests, n = {}, 0
  for body in io.lines(path) do
    requests[#requests + 1] = post(body)
  end
  function request()
    n = n % #requests + 1
    return requests[n]
  end
end

local function once(path)
  local next_body = io.lines(path)
  local body = next_body()
  local surplus = wrk.format("GET", "/health")
  local verified = false
  local answered, by_status, last = 0, {}, now()

  function request()
    if not verified then  -- wrk asks for one that it does not send
      verified = true
      return post(body)
    end
    if not body then
      return surplus
    end
    if posted == 0 then
      first = now()
    end
    posted = posted + 1
    local this = body
    body = next_body()
    return post(this)
  end

  local function finish()
    local counts = {}
    for code, count in pairs(by_status) do
      counts[#counts + 1] = string.format('"%d": %d', code, count)
    end
    statuses = "{" .. table.concat(counts, ", ") .. "}"
    wrk.thread:stop()
    ffi.C.kill(ffi.C.getpid(), SIGINT)  -- it sleeps until its duration is over otherwise
  end

  function response(status)
    if status == 200 then  -- a surplus one
      if now() - last > PATIENCE then
        finish()
      end
      return
    end
    answered = answered + 1
    last = now()
    by_status[status] = (by_status[status] or 0) + 1
    if not body and answered == posted then
      finish()
    end
  end
end

function init(args)
  if args[2] == "once" then
    once(args[1])
  else
    cycle(args[1])
  end
end

-- In wrk's main state.

local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
end

function done(summary, latency)
  local thread, errors = threads[1], summary.errors
  print(string.format(
    '{"requests": %d, "duration": %d, "p50": %d, "p95": %d, "p99": %d, "not_accepted": %d, '
      .. '"broken": %d, "first": %.6f, "posted": %d, "statuses": %s}',
    summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    thread:get("first"), thread:get("posted"), thread:get("statuses")
  ))
end
