"""Ask a service of Inference Fleet from Python, with neither torch nor Flask: ``pip install 'inference[client]'``.

::

    with Client("http://localhost:8100") as client:
        answer = client.parse("page.png")
        print(answer.text)
"""

try:
    import urllib3  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"inference.client needs urllib3 ({error}); mend it with: pip install 'inference[client]'"
    ) from error

from inference.client.answers import Answer, Line, Point, Timing
from inference.client.calls import Client
from inference.client.errors import BadAnswer, ClientError, NotAnswered, NotReached, Problem
from inference.client.sources import Outcome, Source

__all__ = [
    "Answer",
    "BadAnswer",
    "Client",
    "ClientError",
    "Line",
    "NotAnswered",
    "NotReached",
    "Outcome",
    "Point",
    "Problem",
    "Source",
    "Timing",
]
