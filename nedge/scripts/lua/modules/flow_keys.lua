-- Numbers of status types, by name: ntopng's, and those that are the user's.

local host = select(2, ...)
local flow_keys = {ntopng = {}, user = {}}

for _, status in ipairs(host.options.statuses) do
  local keys = status.built_in and status.key < 59 and flow_keys.ntopng or flow_keys.user
  keys[status.name] = status.key
end

return flow_keys
