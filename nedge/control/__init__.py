"""Looking at a running gateway and steering it: the protocol, its client, and the commands for people."""
