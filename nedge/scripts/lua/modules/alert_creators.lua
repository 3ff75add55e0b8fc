-- Ready-made create() functions. Any name gives one: what it is given becomes the parameters.

local function create(severity, ...)
  local given = {...}
  return {alert_severity = severity, alert_type_params = type(given[1]) == "table" and given[1] or given}
end

return setmetatable({}, {__index = function() return create end})
