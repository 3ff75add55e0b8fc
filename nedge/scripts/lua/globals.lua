-- What a script of ntopng finds without asking: flow, ntop, interface, i18n, and helpers.

local host = ...
local env, raw, room = host.env, host.raw, host.room
local error, getmetatable, ipairs, next, pairs, select, setmetatable, tonumber, tostring, type =
  error, getmetatable, ipairs, next, pairs, select, setmetatable, tonumber, tostring, type
local floor, tointeger = math.floor, math.tointeger
local concat, insert, sort = table.concat, table.insert, table.sort
local find, format, gsub, sub = string.find, string.format, string.gsub, string.sub

-- Saying something: to the log

function env.print(...)
  local parts = {...}
  for n = 1, select("#", ...) do parts[n] = tostring(parts[n]) end
  raw.say("info", concat(parts, "\t"))
end

local LEVELS = {TRACE_ERROR = 0, TRACE_WARNING = 1, TRACE_NORMAL = 2, TRACE_INFO = 3, TRACE_DEBUG = 6}
local NAMES = {[0] = "error", "warning", "info", "info", "info", "debug", "debug"}
for name, level in pairs(LEVELS) do env[name] = level end
env.TRACE_CONSOLE, env.TRACE_SYSLOG = 1, 2

function env.traceError(level, _where, ...)
  local parts = {...}
  for n = 1, select("#", ...) do parts[n] = tostring(parts[n]) end
  raw.say(NAMES[level] or "info", concat(parts, " "))
end

function env.tprint(value)
  local lines = {}
  local function add(name, item, depth)
    if #lines > 200 or depth > 8 then return end
    insert(lines, name .. " " .. type(item) .. (type(item) ~= "table" and " " .. tostring(item) or ""))
    if type(item) == "table" then
      for key, inner in pairs(item) do add(name .. "." .. tostring(key), inner, depth + 1) end
    end
  end
  add("", value, 0)
  raw.say("info", concat(lines, "\n"))
end

-- Texts: of the plugin's locale, else the key itself

local texts = {}

function host.add_texts(found, prefix)
  for key, value in pairs(found) do
    local name = prefix and prefix .. "." .. tostring(key) or tostring(key)
    if type(value) == "table" then host.add_texts(value, name) else texts[name] = tostring(value) end
  end
end

function host.text(key) return texts[key] end

function env.i18n(key, parameters)
  local text = texts[key]
  if text == nil then return tostring(key) end
  if type(parameters) == "table" then
    text = gsub(text, "%%{%s*([%w_.]+)%s*}", function(name)
      local value = parameters[name]
      if value == nil then return nil end
      return tostring(value)
    end)
  end
  return text
end

-- flow: a module, not an object. Functions that only give numbers and truths go straight to Python: nothing has
-- to be made for them in Lua. Arguments stay here, unless they are asked for.

local flow = {}
env.flow = flow

local function no_flow() error("there is no flow outside of hooks", 3) end

local scalars = {}
local function add_scalar(name)
  local read = raw[name]
  scalars[name] = function()
    local value = read()
    if value == nil then no_flow() end
    return value
  end
  return scalars[name]
end
for _, name in ipairs(host.options.scalars) do flow[name] = add_scalar(name) end
add_scalar("protocol_key")
for _, name in ipairs(host.options.values) do
  local read = raw[name]
  flow[name] = function()
    room()
    return read()
  end
end

-- Texts that a number stands for are fetched once. Name of the number -> a table of texts that fetches.
local texts_by = {}
local function add_text(name, key_name)
  local read, key_of = raw[name], scalars[key_name]
  local kept = setmetatable({}, {__index = function(kept, key)
    room()
    local text = read()
    kept[key] = text
    return text
  end})
  texts_by[key_name] = {name = name, texts = kept}
  flow[name] = function() return kept[key_of()] end
end
add_text("getnDPIProtocolName", "protocol_key")
add_text("getnDPICategoryName", "getnDPICategoryId")

-- A function that makes hooks: it takes a script's function and settings, and gives what Python calls with the
-- time, and the values of these reads. They then need not go to Python for them.
function host.hook_maker(names)
  local variables, arguments, lines = {"none"}, {"now"}, {}
  for n, name in ipairs(names) do
    insert(variables, "v" .. n)
    insert(arguments, "a" .. n)
    insert(lines, format("local read%d = scalars[%q]", n, name))
    insert(lines, format("scalars[%q] = function() if v%d == nil then return read%d() end return v%d end", name, n, n, n))
    if flow[name] then insert(lines, format("flow[%q] = scalars[%q]", name, name)) end
    if texts_by[name] then
      insert(lines, format("local texts%d = texts_by[%q].texts", n, name))
      insert(lines, format("flow[texts_by[%q].name] = function() return texts%d[v%d or read%d()] end", name, n, n, n))
    end
  end
  insert(lines, 1, "local flow, scalars, texts_by = ...\nlocal " .. concat(variables, ", "))
  insert(lines, format("return function(body, conf) return function(%s)", concat(arguments, ", ")))
  for n = 1, #names do insert(lines, format("v%d = a%d", n, n)) end
  insert(lines, "body(now, conf) end end")
  return env.load(concat(lines, "\n"), "=[nedge] hook")(flow, scalars, texts_by)
end

-- A function that gives a table made from many values at once: cheaper than a table made by Python.
local function table_maker(names)
  local variables, fields = {}, {}
  for n, name in ipairs(names) do
    variables[n] = "v" .. n
    fields[n] = format("[%q] = v%d", name, n)
  end
  local source = "local read, room = ... return function() room() local %s = read() return {%s} end"
  return env.load(format(source, concat(variables, ","), concat(fields, ",")), "=[nedge] getInfo")
end
flow.getInfo = table_maker(host.options.basic_info)(raw.basic_info, room)

-- A number that is whole, or nil.
local function whole(value) return type(value) == "number" and tointeger(value) or nil end

function flow.hasRisk(risk)
  local number = whole(risk)
  if risk ~= nil and not number then error("a risk is a whole number, not a " .. type(risk), 2) end
  local value = raw.hasRisk(number)
  if value == nil then no_flow() end
  return value
end

function flow.isStatusSet(key)
  local number = whole(key)
  if not number then error("isStatusSet takes the number (status_key), not a " .. type(key), 2) end
  local value = raw.isStatusSet(number)
  if value == nil then no_flow() end
  return value
end

-- The number of a status type; some scripts give it straight. `level`: of the script, for errors.
local function key_of(status, level)
  local key = status
  if type(status) == "table" then key = status.status_key end
  return whole(key) or error("a status type (flow_consts.status_types.status_…) is needed", level)
end

function flow.setStatus(status, flow_score, cli_score, srv_score)
  local key = key_of(status, 3)
  room()
  local why, done = raw.setStatus(key, flow_score, cli_score, srv_score)
  if why then error(why, 2) end
  return done
end

function flow.clearStatus(status)
  local key = key_of(status, 3)
  room()
  local why = raw.clearStatus(key)
  if why then error(why, 2) end
end

-- triggerStatus(type, info, flow, cli, srv), or with what a type's create() gives: (created, flow, cli, srv).
function host.trigger(level, status, ...)
  if type(status) == "table" and status.status_key == nil and status.status_type ~= nil then
    return host.trigger(level, status.status_type, status.alert_type_params, ...)
  end
  local info, flow_score, cli_score, srv_score = ...
  local key, kind = key_of(status, level + 1), type(info)
  if kind ~= "nil" and kind ~= "string" and kind ~= "table" then
    error("status info is a string or a table, not a " .. kind, level)
  end
  room()
  local why = raw.triggerStatus(key, info, flow_score, cli_score, srv_score)
  if why then error(why, level) end
end

function flow.triggerStatus(...) host.trigger(3, ...) end

-- Not measured here, but asked for.
function flow.isTcpZeroWinAlert() return {} end

-- Segments that came again, as a share of the packets of that direction: 0 to 1.
local function came_again(name, packets)
  return function()
    local count, of = flow.getTCPStats()[name] or 0, flow[packets]()
    return of > 0 and count / of or 0.0
  end
end
flow.getClientRetrPercentage = came_again("cli2srv.retransmissions", "getPacketsSent")
flow.getServerRetrPercentage = came_again("srv2cli.retransmissions", "getPacketsRcvd")

-- ntop and interface

local function always(value)
  return function() return value end
end

local directories = {}
for _, name in ipairs{"installdir", "workingdir", "scriptdir", "httpdocsdir", "callbacksdir", "pcapdir"} do
  directories[name] = host.options.directory
end

local function bit(number) return 1 << (whole(number) or error("a bit has a whole number", 3)) end

env.ntop = {
  isnEdge = always(true), isPro = always(false), isEnterprise = always(false), isEnterpriseM = always(false),
  isEnterpriseL = always(false), isWindows = always(false), isPackage = always(false),
  getDirs = function() return directories end,
  bitmapIsSet = function(map, number) return map & bit(number) ~= 0 end,
  bitmapSet = function(map, number) return map | bit(number) end,
  bitmapClear = function(map, number) return map & ~bit(number) end,
  gettimemsec = function() return raw.now() + 0.0 end,
}
local ntop = env.ntop

function ntop.getCache(key)
  room()
  return raw.get_cache(tostring(key))
end
function ntop.setCache(key, value, seconds)
  room()
  raw.set_cache(tostring(key), tostring(value), whole(seconds))
end
function ntop.delCache(key) raw.set_cache(tostring(key)) end
ntop.getPref, ntop.setPref, ntop.delPref = ntop.getCache, ntop.setCache, ntop.delCache

env.interface = {getId = always(0), getIfNames = function() return {["0"] = "nedge"} end, select = always(0),
                 isPacketInterface = always(true), isPcapDumpInterface = always(false)}

function env.interface.getnDPIProtoName(number)
  room()
  return raw.protocol_name(whole(tonumber(number)) or -1)
end

function env.interface.getnDPIProtoId(name) return raw.protocol_id(tostring(name)) end

-- Helpers

function env.ternary(condition, yes, no)
  if condition then return yes end
  return no
end

function env.isEmptyString(text) return text == nil or text == "" end

function env.toboolean(value)
  if value == "true" or value == true then return true end
  if value == "false" or value == false then return false end
end

function env.getDeviceProtocolPoliciesUrl() return "" end

function env.hostinfo2hostkey(info, prefix, with_vlan)
  prefix = prefix and prefix .. "." or ""
  local ip, vlan = info[prefix .. "ip"] or info.host or "", info[prefix .. "vlan"] or info.vlan or 0
  return (with_vlan or vlan ~= 0) and ip .. "@" .. vlan or ip
end

function env.shortFlowLabel(info)
  local label = format("[%s] %s:%s -> %s:%s", tostring(info["proto.ndpi"] or info["proto.l4"]),
                       tostring(info["cli.ip"]), tostring(info["cli.port"]),
                       tostring(info["srv.ip"]), tostring(info["srv.port"]))
  local about = info.info
  if about == nil or about == "" then return label end
  return label .. " [" .. tostring(about) .. "]"
end

function env.bytesToSize(bytes)
  local units = {"Bytes", "KB", "MB", "GB", "TB", "PB"}
  local n = 1
  while bytes >= 1024 and n < #units do bytes, n = bytes / 1024, n + 1 end
  return (n == 1 and format("%d ", bytes) or format("%.2f ", bytes)) .. units[n]
end

function env.secondsToTime(seconds)
  seconds = floor(seconds)
  local parts = {}
  for _, unit in ipairs{{"d", 86400}, {"h", 3600}, {"min", 60}} do
    if seconds >= unit[2] then
      insert(parts, seconds // unit[2] .. " " .. unit[1])
      seconds = seconds % unit[2]
    end
  end
  if seconds > 0 or #parts == 0 then insert(parts, seconds .. " s") end
  return concat(parts, " ")
end

function env.table.len(of)
  local count = 0
  for _ in pairs(of) do count = count + 1 end
  return count
end

function env.table.empty(of) return of == nil or next(of) == nil end

function env.table.contains(of, value)
  for _, item in pairs(of) do
    if item == value then return true end
  end
  return false
end

function env.table.merge(first, second)
  local merged = {}
  for key, value in pairs(first or {}) do merged[key] = value end
  for key, value in pairs(second or {}) do merged[key] = value end
  return merged
end

function env.table.clone(of)
  local cloned = {}
  for key, value in pairs(of) do cloned[key] = value end
  return setmetatable(cloned, getmetatable(of))
end

function env.asc(a, b) return a < b end
function env.rev(a, b) return a > b end

function env.pairsByKeys(of, before)
  local keys = {}
  for key in pairs(of) do insert(keys, key) end
  sort(keys, before)
  local n = 0
  return function()
    n = n + 1
    if keys[n] ~= nil then return keys[n], of[keys[n]] end
  end
end

function env.pairsByValues(of, before)
  local keys = {}
  for key in pairs(of) do insert(keys, key) end
  sort(keys, function(a, b) return before(of[a], of[b]) end)
  local n = 0
  return function()
    n = n + 1
    if keys[n] ~= nil then return keys[n], of[keys[n]] end
  end
end

-- The parts of a text between separators, which are patterns.
function env.split(text, separator)
  local parts, from = {}, 1
  while true do
    local first, last = find(text, separator, from)
    if not first or last < first then break end
    insert(parts, sub(text, from, first - 1))
    from = last + 1
  end
  insert(parts, sub(text, from))
  return parts
end

-- The same, in the manner of ntopng: nil if there is no separator, and nothing for an empty end.
function env.string.split(text, separator)
  local parts = env.split(text, separator)
  if #parts == 1 then return nil end
  if parts[#parts] == "" then parts[#parts] = nil end
  return parts
end

function env.string.starts(text, with) return sub(text, 1, #with) == with end
function env.string.ends(text, with) return with == "" or sub(text, -#with) == with end
function env.string.contains(text, part) return find(text, part) ~= nil end
function env.string.trim(text) return (gsub(gsub(text, "^%s+", ""), "%s+$", "")) end
env.starts, env.ends = env.string.starts, env.string.ends

env.user_scripts = host.require("user_scripts")
env.alert_consts = host.require("alert_consts")
env.alerts_api = host.require("alerts_api")
