-- The load of `./fleet bench serve`: what wrk sends, and what it holds every answer against.
--   wrk ... -s serve.lua URL -- FOLDER RATE TRACED
-- FOLDER/requests.tsv: a line for each request: method, path, content type, further header, file of the body, and status
-- and file of a text that a right answer has. RATE: requests a second, sent on a schedule that does not wait for answers as
-- long as a connection is free; 0: each connection sends when it has its answer. TRACED: 1 gives every request an
-- X-Request-ID, by which answers are told apart and timed by status; the server has to send the header back.
local ffi = require("ffi")
ffi.cdef [[
typedef struct { long seconds; long nanoseconds; } fleet_time;
int clock_gettime(int clock, fleet_time *now);
]]
local MONOTONIC = 1
local time = ffi.new("fleet_time")
-- Times of answers are counted in steps of this many seconds.
local STEP = 0.0001

local function now()
  ffi.C.clock_gettime(MONOTONIC, time)
  return tonumber(time.seconds) + tonumber(time.nanoseconds) / 1e9
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

local threads = {}

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

local prepared, expected, parts = {}, {}, {}
local rate, traced, sent, slot = 0, false, 0, nil
local under_way = {}
-- Read by done() in another state: globals, and of plain types.
statuses, right, unmatched, retry_after, times, example = {}, 0, 0, {}, {}, ""

local function headers_of(part)
  local headers = { ["Content-Type"] = part.kind ~= "-" and part.kind or nil }
  local name, value = part.header:match("^([^:]+): (.*)$")
  if name then
    headers[name] = value
  end
  return headers
end

function init(args)
  rate, traced = tonumber(args[2]), args[3] == "1"
  for line in io.lines(args[1] .. "/requests.tsv") do
    local fields = {}
    for field in line:gmatch("[^\t]+") do
      table.insert(fields, field)
    end
    local part = { method = fields[1], path = fields[2], kind = fields[3], header = fields[4] }
    part.body = read(args[1] .. "/" .. fields[5])
    table.insert(parts, part)
    table.insert(prepared, wrk.format(part.method, part.path, headers_of(part), part.body))
    table.insert(expected, { status = tonumber(fields[6]), text = read(args[1] .. "/" .. fields[7]) })
  end
  if rate > 0 then
    delay = wait_for_slot
  end
end

-- A global, because wrk looks at the name `delay` before it calls init().
function wait_for_slot()
  local moment = now()
  slot = (slot or moment) + 1 / rate
  return math.max(0, math.floor((slot - moment) * 1000 + 0.5))
end

function request()
  local index = sent % #prepared + 1
  sent = sent + 1
  if not traced then
    return prepared[index]
  end
  local part, id = parts[index], number .. "-" .. sent
  local headers = headers_of(part)
  headers["X-Request-ID"] = id
  under_way[id] = { now(), index }
  return wrk.format(part.method, part.path, headers, part.body)
end

local is_right
function is_right(status, body, index)
  if index then
    local wanted = expected[index]
    return status == wanted.status and body:find(wanted.text, 1, true) ~= nil
  end
  for number = 1, #expected do
    if is_right(status, body, number) then
      return true
    end
  end
  return false
end

function response(status, headers, body)
  statuses[status] = (statuses[status] or 0) + 1
  local trace
  if traced then
    local id = headers["X-Request-ID"]
    trace = id and under_way[id]
    if trace then
      under_way[id] = nil
      local step = math.floor((now() - trace[1]) / STEP)
      -- One flat table: wrk cannot hand a nested one from a thread to done().
      local key = status .. " " .. step
      times[key] = (times[key] or 0) + 1
    else
      unmatched = unmatched + 1
    end
    if status == 503 or status == 429 then
      local value = headers["Retry-After"] or "none"
      retry_after[value] = (retry_after[value] or 0) + 1
    end
  end
  if (not traced or trace) and is_right(status, body, trace and trace[2]) then
    right = right + 1
  elseif example == "" then
    example = status .. " " .. body:sub(1, 400)
  end
end

local function add(into, from)
  for key, value in pairs(from) do
    into[key] = (into[key] or 0) + value
  end
end

local function json(value)
  if type(value) ~= "table" then
    return type(value) == "string" and string.format("%q", value):gsub("\\\n", "\\n"):gsub("%c", " ") or tostring(value)
  end
  local members = {}
  for key, member in pairs(value) do
    table.insert(members, string.format('"%s":%s', key, json(member)))
  end
  return "{" .. table.concat(members, ",") .. "}"
end

function done(summary, latency, _)
  local found = { statuses = {}, retry_after = {}, times = {}, right = 0, unmatched = 0 }
  local first = ""
  for _, thread in ipairs(threads) do
    add(found.statuses, thread:get("statuses"))
    add(found.retry_after, thread:get("retry_after"))
    add(found.times, thread:get("times"))
    found.right = found.right + thread:get("right")
    found.unmatched = found.unmatched + thread:get("unmatched")
    first = first ~= "" and first or thread:get("example")
  end
  found.example, found.step = first, STEP
  found.requests, found.seconds = summary.requests, summary.duration / 1e6
  found.errors = {
    connect = summary.errors.connect, read = summary.errors.read,
    write = summary.errors.write, timeout = summary.errors.timeout,
  }
  found.ms = { max = latency.max / 1000, mean = latency.mean / 1000 }
  for name, percent in pairs({ p50 = 50, p90 = 90, p95 = 95, p99 = 99 }) do
    found.ms[name] = latency:percentile(percent) / 1000
  end
  io.write("\nMEASURED ", json(found), "\n")
end
