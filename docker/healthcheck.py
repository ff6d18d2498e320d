"""`healthcheck.py URL`: exit 0 when the URL answers with success."""

import sys
import urllib.request

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this container is not behind a proxy
try:
    opener.open(sys.argv[1], timeout=4)
except OSError as error:
    sys.exit(f"{sys.argv[1]} does not answer: {error}")
