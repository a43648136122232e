"""A loaded bundle behind openpi's websocket protocol, for robots that talk to openpi as they are.

One robot at a time, one decision at a time: an observation that waits behind another robot's is stale by the
time it is decided. What arrives is bounded and checked before it reaches the policy (`wire`, `keys`), and
whatever it was, the server goes on (`server`).
"""
