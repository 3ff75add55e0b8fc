-- Modules of plugins.

local plugins_utils = {}

function plugins_utils.loadModule(plugin, name) return require(plugin .. "." .. name) end

return plugins_utils
