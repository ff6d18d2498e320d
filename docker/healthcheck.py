"""Exit 0 when the service of this container answers: `healthcheck.py VARIABLE DEFAULT`, the port and its default."""

import os
import sys
import urllib.request

port = os.environ.get("PORT") or os.environ.get(sys.argv[1]) or sys.argv[2]
urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=4)
