"""Linux: the bridge, the rules, the queue. Everything here is undone when the gateway stops."""
