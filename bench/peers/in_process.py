"""The models without a server, for the rows that compare with that. Prints JSON.

python in_process.py requests            bodies of the MLP and what an answer has in it
python in_process.py loop SECONDS        the MLP in a loop on a batch of 32: requests a second
python in_process.py one SECONDS         the MLP on one request after the other: milliseconds of each
"""

import base64
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import models

#: How many different requests the load has.
REQUESTS = 8
#: Rows with a number nearer to where rounding changes are not taken: another size of batch may round it otherwise.
MARGIN = 1e-4


def timed(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call, over a while, after a second to warm up."""
    found = []
    warm, end = time.perf_counter() + 1, time.perf_counter() + 1 + seconds
    while (began := time.perf_counter()) < end:
        call()
        if began > warm:
            found.append(time.perf_counter() - began)
    return found


def is_clear(row: list[float]) -> bool:
    scaled = [value * 10**models.DECIMALS for value in row]
    return all(abs(value - int(value // 1) - 0.5) > MARGIN * 10**models.DECIMALS for value in scaled)


def requests(model: models.Mlp) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    number = 0
    while len(found) < REQUESTS:
        body = models.body_of_mlp(number)
        (row,) = model.predict([body])
        if is_clear(row):
            text = models.dumps({"output": models.rounded(row)}).decode()
            found.append({"body": base64.b64encode(body).decode(), "expected": text[1:-1]})
        number += 1
    return found


def main() -> None:
    model = models.Mlp()
    what, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0
    if what == "requests":
        print(json.dumps(requests(model)))
        return
    count = models.BATCH if what == "loop" else 1
    bodies = [models.body_of_mlp(number) for number in range(count)]

    def call() -> list[bytes]:
        return [models.dumps({"output": models.rounded(row)}) for row in model.predict(bodies)]

    times = timed(call, seconds)
    raw = {
        "requests_per_second": round(count * len(times) / sum(times), 1),
        "ms_p50": round(statistics.median(times) * 1000, 3),
    }
    print(json.dumps(raw))


if __name__ == "__main__":
    main()
