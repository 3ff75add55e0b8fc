-- Status types: what a script can say of a flow.

local host = select(2, ...)
local alert_consts = require "alert_consts"
local pack, select, type = table.pack, select, type

local flow_consts = {max_score = 1000, status_types = {}}
local by_key = {}

-- Names of what scripts of ntopng give to create(), where that is one table's worth of fields.
local ISSUES = {"tcp_stats", "cli2srv_pkts", "srv2cli_pkts", "is_severe", "client_issues", "server_issues"}
local PARAMETERS = {
  status_blacklisted_country = {"cli_country", "srv_country", "cli_blacklisted", "srv_blacklisted"},
  status_device_protocol_not_allowed = {"cli.devtype", "srv.devtype", "devproto_forbidden_peer", "devproto_forbidden_id"},
  status_elephant_local_to_remote = {"elephant.l2r_threshold", "elephant.r2l_threshold"},
  status_elephant_remote_to_local = {"elephant.l2r_threshold", "elephant.r2l_threshold"},
  status_flow_risk = {"risk_id"},
  status_low_goodput = {"goodput_ratio"},
  status_tcp_connection_issues = ISSUES,
  status_tcp_severe_connection_issues = ISSUES,
  status_unexpected_dhcp = {"client_ip", "server_ip"},
  status_unexpected_dns = {"client_ip", "server_ip"},
  status_unexpected_ntp = {"client_ip", "server_ip"},
  status_unexpected_smtp = {"client_ip", "server_ip"},
}

local function is_severity(value) return type(value) == "table" and value.severity_id ~= nil end

-- What create() of a built-in type gives: the severity, if that comes first, and all else as parameters.
local function creator(status, names)
  return function(first, ...)
    local severity, given = status.alert_severity, nil
    if is_severity(first) then severity, given = first, pack(...) else given = pack(first, ...) end
    local parameters = given
    if given.n == 1 and type(given[1]) == "table" then
      parameters = given[1]
    elseif names and given.n <= #names then -- older scripts leave out the first ones
      parameters = {}
      for n = 1, given.n do parameters[names[#names - given.n + n]] = given[n] end
    else
      parameters.n = nil
    end
    return {status_type = status, alert_severity = severity, alert_type_params = parameters}
  end
end

-- Names that create() had at one time or another.
local function add_create(status, create)
  status.create, status.creator, status.builder = create, create, create
end

for _, built_in in ipairs(host.options.statuses) do
  local status = {
    status_key = built_in.key,
    status_id = built_in.key,
    i18n_title = built_in.title,
    i18n_description = built_in.title,
    alert_severity = alert_consts.alert_severities[built_in.severity],
    alert_type = alert_consts.alert_types["alert_" .. built_in.alert_type],
  }
  add_create(status, creator(status, PARAMETERS[built_in.name]))
  flow_consts.status_types[built_in.name] = status
  if not built_in.built_in or by_key[built_in.key] == nil then by_key[built_in.key] = status end
end

-- For nedge: a status type that the script's plugin defines. What create() gives is up to it, or to its type of
-- alert, or else to what is built in.
function host.define_status(name, key, definition)
  local alert_type = type(definition.alert_type) == "table" and definition.alert_type or {}
  local create = definition.create or definition.creator or definition.builder
  create = create or alert_type.creator or alert_type.builder
  definition.status_key, definition.status_id = key, key
  if type(create) == "function" then
    add_create(definition, function(...)
      local created = create(...)
      if type(created) == "table" then created.status_type = definition end
      return created
    end)
  else
    add_create(definition, creator(definition, PARAMETERS[name]))
  end
  flow_consts.status_types[name] = definition
  by_key[key] = definition
end

function flow_consts.getStatusInfo(key) return by_key[tonumber(key)] end

function flow_consts.getStatusType(key)
  local wanted = by_key[tonumber(key)]
  for name, status in pairs(flow_consts.status_types) do
    if status == wanted then return name end
  end
end

function flow_consts.getStatusTitle(key)
  local status = by_key[tonumber(key)]
  return status and i18n(status.i18n_title) or "status " .. tostring(key)
end

function flow_consts.getStatusDescription(key, info)
  local status = by_key[tonumber(key)]
  local description = status and status.i18n_description
  if type(description) == "function" then return description(info) end
  return description and i18n(description) or flow_consts.getStatusTitle(key)
end

return flow_consts
