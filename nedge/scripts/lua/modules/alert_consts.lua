-- Severities and types of alerts. A type that no plugin defines is made when it is first asked for: it is
-- no more than its name here.

local alert_consts = {}

local severities = require "alert_severities"
alert_consts.alert_severities = severities

function alert_consts.alertSeverityById(id)
  for _, severity in pairs(severities) do
    if severity.severity_id == tonumber(id) then return severity end
  end
  return severities.error
end

function alert_consts.alertSeverity(name) return severities[name] and severities[name].severity_id end

function alert_consts.alertSeverityRaw(id)
  for name, severity in pairs(severities) do
    if severity.severity_id == tonumber(id) then return name end
  end
end

local function make(types, name)
  local made = {alert_name = name, alert_key = name, i18n_title = name, icon = ""}
  types[name] = made
  return made
end

alert_consts.alert_types = setmetatable({}, {
  __index = function(types, name)
    if type(name) == "string" and string.find(name, "^alert_") then return make(types, name) end
  end,
})

function alert_consts.alertType(name) return alert_consts.alert_types["alert_" .. name].alert_key end

alert_consts.alert_entities = {}
for id, name in ipairs{"interface", "host", "network", "snmp_device", "flow", "mac", "host_pool", "system"} do
  alert_consts.alert_entities[name] = {entity_id = id - 1, label = name}
end

alert_consts.alerts_granularities = {
  min = {granularity_id = 1, granularity_seconds = 60},
  ["5mins"] = {granularity_id = 2, granularity_seconds = 300},
  hour = {granularity_id = 3, granularity_seconds = 3600},
  day = {granularity_id = 4, granularity_seconds = 86400},
}

-- For nedge: an alert type that the script's plugin defines.
local host = select(2, ...)
function host.define_alert(name, definition)
  definition.alert_name = name
  rawset(alert_consts.alert_types, name, definition)
end

return alert_consts
