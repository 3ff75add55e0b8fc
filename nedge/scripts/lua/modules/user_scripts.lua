-- Categories of scripts, and units of their settings.

local user_scripts = {script_categories = {}, field_units = {}}

for id, name in ipairs{"other", "security", "internals", "network", "system"} do
  user_scripts.script_categories[name] = {
    id = id - 1,
    icon = "",
    i18n_title = "user_scripts.category_" .. name,
    i18n_descr = "user_scripts.category_" .. name .. "_descr",
  }
end

for _, name in ipairs{"seconds", "bytes", "flows", "packets", "mbits", "hosts", "syn_sec", "flow_sec", "percentage",
                      "syn_min", "contacts", "score", "macs"} do
  user_scripts.field_units[name] = "field_units." .. name
end

return user_scripts
