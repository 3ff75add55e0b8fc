-- nDPI's flow risks.

local host = select(2, ...)
local flow_risk_utils = {}

function flow_risk_utils.risk_id_2_i18n(id)
  host.room()
  return host.raw.risk_name(math.tointeger(tonumber(id)) or -1)
end

return flow_risk_utils
