-- What a script sees of Lua, and what stops it. Runs once in each runtime, before all else, with everything at
-- hand; scripts get `env` as their globals, and nothing from here but what stands in it.
--
-- Gets from runtime.py: `raw` (functions of Python, by name) and `options`. Gives functions for Python to call.

local raw, options = ...

local _G, collectgarbage, error, load, next, pairs, pcall, rawget, select, setmetatable, tostring, type, xpcall =
  _G, collectgarbage, error, load, next, pairs, pcall, rawget, select, setmetatable, tostring, type, xpcall
local concat, insert = table.concat, table.insert
local getinfo, sethook = debug.getinfo, debug.sethook
local create, resume = coroutine.create, coroutine.resume
local io, os, string = io, os, string

for name, value in pairs(raw) do raw[name] = python.as_function(value) end

local env = {}
local host = {env = env, raw = raw, options = options}

-- Time. The hook is called every so many instructions and cannot be taken off: scripts have no `debug`. Asking
-- for the time costs, so it does that every tenth time; but with much memory in use a single instruction
-- may take milliseconds, and then it asks often. C functions cannot be interrupted: those that can loop
-- for ever are limited below. What is left is patterns made to try without end ("a-a-a-a-…b"): whatever takes
-- longer than a second, the gateway's supervisor ends, by replacing the worker.

local DOOM = "the time is over"
local OFTEN, SELDOM, LARGE = 10, 100, 4096 -- instructions, instructions, KB
local doomed, left, dense = false, 10, false

local function watch()
  local large = collectgarbage("count") > LARGE
  if large ~= dense then
    dense = large
    sethook(watch, "", dense and OFTEN or SELDOM)
  end
  left = left - 1
  if left > 0 and not large then return end
  left = 10
  if raw.overdue() then
    doomed = true
    error(DOOM, 0)
  end
end

sethook(watch, "", SELDOM)

-- What catches errors lets that one pass.
local function passed(...)
  if doomed then error(DOOM, 0) end
  return ...
end

function env.pcall(...) return passed(pcall(...)) end

function env.xpcall(body, handler, ...)
  return passed(xpcall(body, function(message)
    if doomed then return message end -- no hook can stop what is called from here
    return handler(message)
  end, ...))
end

-- Memory. The runtime has a limit, and what goes beyond is an ordinary error inside Lua; but not where Python
-- makes values for Lua: so before that there must be room left. (Lua's own count leaves out the buffers of its
-- string functions.)

function host.room()
  if raw.memory_used() > options.room then
    collectgarbage()
    if raw.memory_used() > options.room then error("not enough memory", 0) end
  end
end

function env.collectgarbage(what) return what == "count" and collectgarbage("count") or 0 end

-- Basics

for _, name in pairs{"ipairs", "next", "pairs", "rawequal", "rawget", "rawlen", "rawset",
                     "select", "tonumber", "tostring", "type", "getmetatable"} do
  env[name] = _G[name]
end
env._G, env._VERSION = env, _VERSION

-- An error that is a number would be made text where nothing makes sure that there is room.
local function as_text(message) return type(message) == "number" and tostring(message) or message end

function env.error(message, level)
  level = level or 1
  error(as_text(message), level > 0 and level + 1 or 0)
end

function env.assert(condition, ...)
  if condition then return condition, ... end
  if select("#", ...) == 0 then error("assertion failed!", 0) end
  error(as_text((...)), 0)
end

function env.setmetatable(value, metatable)
  if type(metatable) == "table" and rawget(metatable, "__gc") ~= nil then
    error("__gc is not allowed in scripts", 2) -- finalizers run where no hook can stop them
  end
  return setmetatable(value, metatable)
end

local function copy(library)
  local found = {}
  for name, value in pairs(library) do found[name] = value end
  return found
end

env.math, env.utf8, env.table, env.string = copy(math), copy(utf8), copy(table), copy(string)
env.string.dump = nil
debug.setmetatable("", {__index = env.string, __metatable = false})

local rep, move = string.rep, table.move
function env.string.rep(text, times, separator)
  if #text + #(separator or "") == 0 then return "" end -- a loop for each time, and nothing to show for it
  return rep(text, times, separator)
end

function env.table.move(from, first, last, at, to)
  if last - first > 1e6 then error("too many elements to move", 2) end
  return move(from, first, last, at, to)
end

env.coroutine = copy(coroutine)
function env.coroutine.create(body)
  local made = create(body)
  sethook(made, watch, "", SELDOM)
  return made
end

function env.coroutine.resume(...) return passed(resume(...)) end

function env.coroutine.wrap(body)
  local made = env.coroutine.create(body)
  local function results(ok, ...)
    if not ok then error((...), 0) end
    return ...
  end
  return function(...) return results(passed(resume(made, ...))) end
end

-- Code. Text only: bytecode can be made to break the interpreter.

local MAX_CHUNK = 1 << 20

function env.load(chunk, name, _mode, ...)
  name = name or type(chunk) == "string" and chunk or "=(load)"
  if type(chunk) == "function" then
    local parts, size = {}, 0
    for part in chunk do
      if part == "" then break end
      size = size + #part
      if size > MAX_CHUNK then return nil, "chunk is too long" end
      insert(parts, part)
    end
    chunk = concat(parts)
  elseif type(chunk) ~= "string" then
    error("load takes a string or a function", 2)
  end
  if #chunk > MAX_CHUNK then return nil, "chunk is too long" end
  if select("#", ...) == 0 then return load(chunk, name, "t", env) end
  return load(chunk, name, "t", (...))
end
env.loadstring = env.load

local function refused(name, how)
  return function() error(name .. " is not allowed in scripts" .. (how or ""), 2) end
end
env.dofile, env.loadfile = refused("dofile", ": use require"), refused("loadfile", ": use require")

-- Modules: those that come with nedge, and those of the script's plugin.

local own = {} -- names of chunks that are the script's own
local loaded = {}
env.package = {loaded = loaded, preload = {}, path = "", cpath = "", config = "/\n;\n?\n!\n-\n"}

function env.require(name)
  if type(name) ~= "string" then error("require takes the name of a module", 2) end
  if loaded[name] ~= nil then return loaded[name] end
  local chunk = env.package.preload[name]
  if type(chunk) ~= "function" then
    host.room()
    local source, title, ours = raw.module(name)
    if not source then error(title, 2) end
    if not ours then own[title] = true end
    local why
    chunk, why = load(source, "=" .. title, "t", env)
    if not chunk then error(why, 0) end
    local result = chunk(name, ours and host or nil)
    if result ~= nil then loaded[name] = result end
  else
    local result = chunk(name)
    if result ~= nil then loaded[name] = result end
  end
  if loaded[name] == nil then loaded[name] = true end
  return loaded[name]
end
host.require = env.require

-- The outside world

local allowed = options.allowed
env.os = {clock = os.clock, date = os.date, difftime = os.difftime, time = os.time, getenv = function() end}
for _, name in pairs{"execute", "remove", "rename", "tmpname", "setlocale"} do
  local how = ' unless scripts.lua_allow has "os"'
  env.os[name] = allowed.os and os[name] or refused("os." .. name, how)
end
if allowed.os then env.os.getenv = os.getenv end
env.os.exit = refused("os.exit") -- it would end nedge

local pending = "" -- a line that io.write has not ended yet
local function write(level)
  local file = {}
  function file.write(self, ...)
    local parts = {pending, ...}
    for n = 1, #parts do parts[n] = tostring(parts[n]) end
    pending = concat(parts)
    if #pending > 4096 or string.find(pending, "\n", 1, true) then
      raw.say(level, pending)
      pending = ""
    end
    return file
  end
  function file.flush() return file end
  function file.close() return true end
  function file.setvbuf() return true end
  return file
end

if allowed.io then
  env.io = copy(io)
else
  local why = 'files are not allowed to scripts unless scripts.lua_allow has "io"'
  local function no_file(name) return nil, tostring(name) .. ": " .. why, 13 end
  env.io = {open = no_file, tmpfile = no_file, popen = refused("io.popen"), read = function() end}
  env.io.lines, env.io.input, env.io.output = refused("io.lines"), refused("io.input"), refused("io.output")
  env.io.close, env.io.type = function() return true end, function() end
  env.io.stdin = {read = function() end, close = function() return true end}
end
env.io.stdout, env.io.stderr = write("info"), write("warning")
function env.io.write(...) return env.io.stdout:write(...) end

-- For Python. Errors are told with the script's own lines, outermost first: what lupa calls on an error is the
-- global debug.traceback, of the globals that no script sees. It looks for that before each call, which costs;
-- so it is there while the script is loaded, and again from its first error on.

local trace

local function own_lines()
  trace = {}
  for level = 3, 60 do
    local at = getinfo(level, "Sl")
    if not at then break end
    if at.currentline > 0 and own[at.short_src] then
      insert(trace, 1, at.short_src .. ":" .. at.currentline)
    end
  end
end

for name in pairs(_G) do
  if name ~= "_G" then _G[name] = nil end
end

local tracing = {
  traceback = function(message)
    own_lines()
    local kind = type(message)
    if kind == "string" or kind == "number" or kind == "userdata" then return message end
    return "the error is a " .. kind .. ", not a message"
  end,
}
_G.debug = tracing

local main = {}

-- After loading: no traces until there is an error.
function main.trust() _G.debug = false end

-- After an error, whatever it was: where it was, as far as that is known. The next call has its own time.
function main.fault()
  local lines = trace
  _G.debug, trace, doomed = tracing, nil, false
  return lines and concat(lines, "\n") or ""
end

-- Run a chunk of the script's own. Gives what is wrong with its text, or nil and what it returns.
function main.run(source, name)
  own[name] = true
  local chunk, why = load(source, "=" .. name, "t", env)
  if not chunk then return why end
  return nil, (chunk())
end

-- Run a part of nedge's.
function main.add(source, name) load(source, "=" .. name, "t", env)(host) end

function main.define_alert(name, definition) host.define_alert(name, definition) end

function main.define_status(name, key, definition)
  host.require("flow_consts")
  host.define_status(name, key, definition)
end

function main.add_texts(texts, prefix) host.add_texts(texts, prefix) end

function main.text(key) return host.text(key) end

function main.hook_maker(names) return host.hook_maker(names) end

function main.get(of, name) return of[name] end

function main.set(of, name, value) of[name] = value end

function main.ask(body) return not not body() end

return main
