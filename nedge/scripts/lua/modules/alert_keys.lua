-- Numbers of alert types. Nothing here depends on them: a type is known by its name. Names of ntopng's get a
-- number when they are first asked for.

local alert_keys = {user = {}}

for n = 1, 5 do alert_keys.user["alert_user_0" .. n] = 58 + n end

local last = 1000
alert_keys.ntopng = setmetatable({}, {
  __index = function(keys, name)
    last = last + 1
    keys[name] = last
    return last
  end,
})

return alert_keys
