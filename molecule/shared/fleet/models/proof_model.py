"""The echo model, with the faults that a release can have; which one stands in proof_release.py beside it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import proof_release
from inference.model import ModelContext
from inference.models.echo import EchoModel

#: A release with the fault `crashes` answers so many requests in each worker. Those of the checks count too, so that
#: it passes them and falls over under load.
CRASH_AFTER = 20
#: Longest time that a request may ask for.
LONGEST_SECONDS = 15.0
#: On one host only, where proof_release.py names one.
FAULT = proof_release.FAULT if proof_release.ONLY_ON in {"", socket.gethostname()} else ""


class ProofModel(EchoModel):
    """Echoes; takes as long as a body with the member `sleep` says, in seconds."""

    _answered = 0

    def setup(self, context: ModelContext) -> None:
        """Load nothing; or never come to an end; or fail."""
        if FAULT == "never_ready":
            time.sleep(3600)
        if FAULT == "not_loaded":
            raise RuntimeError("the weights are damaged")
        super().setup(context)

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Give the inputs back; or something else; or end the process in the middle of a request."""
        for one in inputs:
            if isinstance(one, dict) and isinstance(one.get("sleep"), int | float):
                time.sleep(min(float(one["sleep"]), LONGEST_SECONDS))
        self._answered += len(inputs)
        if FAULT == "crashes" and self._answered > CRASH_AFTER:
            os._exit(9)
        # Its own sample it answers rightly once: only who asks through the socket finds out.
        if FAULT == "wrong_answer" and self._answered > 1:
            return ["wrong" for _ in inputs]
        return super().predict(inputs)
