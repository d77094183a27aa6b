"""Takes what Alertmanager sends, and writes the alerts into a file, one a line: hook.py FILE."""

import http.server
import json
import sys
from pathlib import Path


class Hook(http.server.BaseHTTPRequestHandler):
    """One notification."""

    def do_POST(self) -> None:
        """Note the alerts."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Path(sys.argv[1]).open("a") as out:
            for alert in body["alerts"]:
                json.dump(
                    {"path": self.path, "status": alert["status"], **alert["labels"], **alert["annotations"]}, out
                )
                out.write("\n")
        self.send_response(200)
        self.end_headers()


http.server.HTTPServer(("127.0.0.1", 9999), Hook).serve_forever()
