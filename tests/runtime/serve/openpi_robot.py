"""A robot that has openpi-client and knows nothing of this project; runs in that client's own environment.

`python openpi_robot.py HOST PORT COUNT FILE`: sends the observation of an npz file COUNT times, and prints
what came back as JSON.
"""

import json
import sys
import time

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def observation(file):
    """Text is what numpy stores as an array of no dimensions; images/... becomes a map of images."""
    found = {}
    with np.load(file) as stored:
        for name, value in stored.items():
            into = found
            if name.startswith("images/"):
                into, name = found.setdefault("images", {}), name.removeprefix("images/")
            into[name] = str(value) if value.dtype.kind == "U" else value
    return found


def main(host, port, count, file):
    policy = WebsocketClientPolicy(host, int(port))
    sent = observation(file)
    replies, round_trips = [], []
    for _ in range(int(count)):
        start = time.perf_counter()
        replies.append(policy.infer(sent))
        round_trips.append((time.perf_counter() - start) * 1e3)
    report = {
        "metadata": policy.get_server_metadata(),
        "round_trip_ms": round_trips,
        "total_ms": [reply["timings"]["total"] for reply in replies],
        "server_timing": [reply["server_timing"] for reply in replies],
        "actions": replies[-1]["actions"].tolist(),
        "dtype": replies[-1]["actions"].dtype.str,
        "keys": sorted(replies[-1]),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
