"""User scripts in Lua 5.3, ntopng's language for this API: its scripts and plugins of 2020 run as they are.

* `host`: what the configuration allows to Lua scripts, and what they share
* `plugins`: ntopng's plugin directories
* `loader`: a script file, to what it declares
* `runtime`: one Lua interpreter, and calls into it; `sandbox.lua` is what runs in it first
* `bindings`: the functions of Python that a script's functions go to; `globals.lua` is their Lua side
* `modules/`: what scripts get by `require`

Each script has a runtime of its own: 0.3 MB, a few milliseconds when it is loaded, and no more for a call.
So a script can neither change another's globals nor use up its memory, and it can be let go of by itself.
"""
