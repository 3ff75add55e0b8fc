-- JSON, with the interface of dkjson.

local byte, char, concat, find, format, match, rep, sub, gsub =
  string.byte, utf8.char, table.concat, string.find, string.format, string.match, string.rep, string.sub, string.gsub
local pairs, pcall, setmetatable, tostring, tonumber, type = pairs, pcall, setmetatable, tostring, tonumber, type
local error, getmetatable, sort = error, getmetatable, table.sort
local mathtype, huge = math.type, math.huge

local MAX_DEPTH = 100

local json = {version = "nedge", null = setmetatable({}, {__tojson = function() return "null" end})}

-- Writing

local ESCAPES = {['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n", ["\r"] = "\\r",
                 ["\t"] = "\\t"}

local function escape(letter) return ESCAPES[letter] or format("\\u%04x", byte(letter)) end

function json.quotestring(text) return '"' .. gsub(text, '[%c"\\\127]', escape) .. '"' end

-- The length of a table that is an array, or nil.
local function array_length(of)
  local kind = getmetatable(of)
  kind = type(kind) == "table" and kind.__jsontype
  if kind == "object" then return nil end
  local count, last = 0, 0
  for key in pairs(of) do
    if mathtype(key) ~= "integer" or key < 1 then return nil end
    count = count + 1
    if key > last then last = key end
  end
  if count == 0 then return kind == "array" and 0 or nil end
  return last <= 2 * count and last or nil
end

local function number_text(value)
  if value ~= value or value == huge or value == -huge then return "null" end
  if mathtype(value) == "integer" then return format("%d", value) end
  return (gsub(format("%.14g", value), ",", "."))
end

local write

local function write_table(of, state, parts, depth)
  if depth > MAX_DEPTH then error("too deep, or a table within itself", 0) end
  local own = getmetatable(of)
  own = type(own) == "table" and own.__tojson
  if own then
    parts[#parts + 1] = own(of, state)
    return
  end
  local indent, line, outer = state.indent, "", ""
  if indent then line, outer = "\n" .. rep("  ", depth), "\n" .. rep("  ", depth - 1) end
  local length = array_length(of)
  if length then
    parts[#parts + 1] = "["
    for n = 1, length do
      parts[#parts + 1] = (n > 1 and "," or "") .. line
      write(of[n], state, parts, depth + 1)
    end
    parts[#parts + 1] = (length > 0 and outer or "") .. "]"
    return
  end
  local names = {}
  for key in pairs(of) do
    if type(key) == "string" or type(key) == "number" then names[#names + 1] = key end
  end
  sort(names, function(a, b) return tostring(a) < tostring(b) end)
  parts[#parts + 1] = "{"
  for n = 1, #names do
    parts[#parts + 1] = (n > 1 and "," or "") .. line .. json.quotestring(tostring(names[n])) .. (indent and ": " or ":")
    write(of[names[n]], state, parts, depth + 1)
  end
  parts[#parts + 1] = (#names > 0 and outer or "") .. "}"
end

function write(value, state, parts, depth)
  local kind = type(value)
  if kind == "table" then
    write_table(value, state, parts, depth)
  elseif kind == "string" then
    parts[#parts + 1] = json.quotestring(value)
  elseif kind == "number" then
    parts[#parts + 1] = number_text(value)
  elseif kind == "boolean" then
    parts[#parts + 1] = tostring(value)
  elseif kind == "nil" then
    parts[#parts + 1] = "null"
  else
    error("a " .. kind .. " has no JSON", 0)
  end
end

-- The text of a value; `state.indent` spreads it over lines. Raises an error for what has none.
function json.encode(value, state)
  local parts = {}
  write(value, state or {}, parts, 1)
  return concat(parts)
end

-- Reading

local NAMED = {["\\"] = "\\", ["/"] = "/", ['"'] = '"', b = "\b", f = "\f", n = "\n", r = "\r", t = "\t"}
local read

local function fail(what, at) error({what = what, at = at}, 0) end

local function read_unicode(text, at)
  local digits = match(text, "^%x%x%x%x", at)
  if not digits then fail("no such escape", at) end
  local code = tonumber(digits, 16)
  if code >= 0xD800 and code < 0xDC00 then
    local low = match(text, "^\\u(%x%x%x%x)", at + 4)
    local second = low and tonumber(low, 16)
    if second and second >= 0xDC00 and second < 0xE000 then
      return char(0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00)), at + 10
    end
  end
  return char(code), at + 4
end

local function read_string(text, at)
  local parts, from = {}, at + 1
  while true do
    local stop = find(text, '["\\]', from)
    if not stop then fail("the string does not end", at) end
    parts[#parts + 1] = sub(text, from, stop - 1)
    if sub(text, stop, stop) == '"' then return concat(parts), stop + 1 end
    local letter = sub(text, stop + 1, stop + 1)
    if letter == "u" then
      parts[#parts + 1], from = read_unicode(text, stop + 2)
    else
      parts[#parts + 1] = NAMED[letter] or fail("no such escape", stop)
      from = stop + 2
    end
  end
end

local function skip(text, at) return find(text, "[^ \t\r\n]", at) or #text + 1 end

local function read_list(text, at, null, depth, closing, kind)
  local result = setmetatable({}, {__jsontype = kind})
  at = skip(text, at + 1)
  if sub(text, at, at) == closing then return result, at + 1 end
  local count = 0
  while true do
    local key, value
    if kind == "object" then
      if sub(text, at, at) ~= '"' then fail("a name in quotes is missing", at) end
      key, at = read_string(text, at)
      at = skip(text, at)
      if sub(text, at, at) ~= ":" then fail("a colon is missing", at) end
      at = at + 1
    else
      count = count + 1
      key = count
    end
    value, at = read(text, at, null, depth + 1)
    result[key] = value
    at = skip(text, at)
    local letter = sub(text, at, at)
    if letter == closing then return result, at + 1 end
    if letter ~= "," then fail("a comma or " .. closing .. " is missing", at) end
    at = skip(text, at + 1)
  end
end

local WORDS = {["true"] = true, ["false"] = false}

function read(text, at, null, depth)
  if depth > MAX_DEPTH then fail("too deep", at) end
  at = skip(text, at)
  local letter = sub(text, at, at)
  if letter == "{" then return read_list(text, at, null, depth, "}", "object") end
  if letter == "[" then return read_list(text, at, null, depth, "]", "array") end
  if letter == '"' then return read_string(text, at) end
  local number = match(text, "^-?%d+%.?%d*[eE]?[+-]?%d*", at)
  if number and tonumber(number) then return tonumber(number), at + #number end
  local word = match(text, "^%a+", at)
  if word == "null" then return null, at + 4 end
  if word and WORDS[word] ~= nil then return WORDS[word], at + #word end
  fail("no value", at)
end

-- The value of a text, and where it ends; or nil, where it breaks, and why.
function json.decode(text, from, null)
  local ok, value, after = pcall(read, text, from or 1, null, 1)
  if ok then return value, after end
  if type(value) ~= "table" then error(value, 0) end
  return nil, value.at, value.what .. " at character " .. value.at
end

json.parse, json.stringify = json.decode, json.encode

return json
