"""Prints when an edge leaves a host out, in seconds since the epoch: ejected.py HOST. Runs on the edge."""

import json
import subprocess
import sys
import time

end = time.monotonic() + 30
while time.monotonic() < end:
    said = subprocess.run(["/usr/local/lib/fleet/fleet-edge", "status"], capture_output=True, text=True, check=True)
    if not json.loads(said.stdout)["members"][sys.argv[1]]["in_service"]:
        print(time.time())
        sys.exit(0)
    time.sleep(0.1)
sys.exit("it was in service all the time")
