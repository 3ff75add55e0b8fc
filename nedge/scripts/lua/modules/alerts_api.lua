-- The way that ntopng's scripts of late 2020 trigger a status: with the severity, and the flow's score last.

local host = select(2, ...)
local alerts_api = {}

function alerts_api.trigger_status(created, _severity, cli_score, srv_score, flow_score)
  host.trigger(3, created, flow_score, cli_score, srv_score)
end

return alerts_api
