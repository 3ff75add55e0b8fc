-- Numbers for people.

local format_utils = {bytesToSize = bytesToSize, secondsToTime = secondsToTime}

function format_utils.round(number, digits)
  return tonumber(string.format("%." .. (digits or 0) .. "f", number))
end

function format_utils.formatValue(number) return tostring(number) end

return format_utils
