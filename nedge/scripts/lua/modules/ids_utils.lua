-- Scores for alerts of an external IDS, by Suricata's severity: 1 is the worst.

local SCORES = {[1] = {100, 100, 100}, [2] = {60, 60, 60}, [3] = {30, 30, 30}}
local ids_utils = {}

-- Gives the flow's, the client's and the server's score.
function ids_utils.computeScore(info)
  return table.unpack(SCORES[tonumber(info.severity)] or SCORES[3])
end

return ids_utils
