-- The way that ntopng's scripts of late 2020 trigger a status: with the severity, and the flow's score last. The
-- status keeps the severity, as there.

local host = select(2, ...)
local alerts_api = {}

function alerts_api.trigger_status(created, severity, cli_score, srv_score, flow_score)
  local status = type(created) == "table" and created.status_type
  if type(status) == "table" and type(severity) == "table" and type(severity.key) == "string" then
    status.alert_severity = severity
    host.room()
    host.raw.set_severity(math.tointeger(status.status_key) or -1, severity.key)
  end
  host.trigger(3, created, flow_score, cli_score, srv_score)
end

return alerts_api
