-- Numbers of status types, by name: ntopng's, and those that are the user's.

local host = select(2, ...)
local flow_keys = {ntopng = {}, user = {}}

for _, status in ipairs(host.options.statuses) do
  local keys = status.built_in and status.key < 59 and flow_keys.ntopng or flow_keys.user
  keys[status.name] = status.key
end

-- Names that some definitions of 4.2 have for them.
for _, name in ipairs{"dhcp", "dns", "smtp", "ntp"} do
  flow_keys.ntopng["status_unexpected_" .. name .. "_server"] = flow_keys.ntopng["status_unexpected_" .. name]
end

return flow_keys
