-- How bad an alert is.

local severities = {}

for id, name in ipairs{"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"} do
  severities[name] = {
    severity_id = id,
    key = name,
    i18n_title = "alerts_dashboard." .. name,
    label = name,
    icon = "",
    color = "",
  }
end
severities.none = {severity_id = 0, key = "none", i18n_title = "alerts_dashboard.none", label = "none", icon = "", color = ""}

return severities
