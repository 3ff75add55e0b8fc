-- Descriptions of devices by what they do (MUD, RFC 8520): ntopng records them, nedge does not.

local mud_utils = {}

function mud_utils.isMUDRecordingEnabled() return false end

function mud_utils.handleFlow() end

return mud_utils
