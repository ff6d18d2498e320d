"""The files that pages load besides HTML."""

from flask import Blueprint, Response, abort, request

from labstack.api.web.assets import TYPES, contents

blueprint = Blueprint("assets", __name__)


@blueprint.get("/assets/<name>")
def asset(name: str) -> Response:
    """Answer with a file of our pages; a browser may keep it when its address names its contents."""
    if name not in TYPES:
        abort(404, f"There is no asset {name!r}.")
    plain, packed, digest = contents(name)
    zipped = request.accept_encodings.find("gzip") >= 0
    answer = Response(packed if zipped else plain, content_type=f"{TYPES[name]}; charset=utf-8")
    if zipped:
        answer.headers["Content-Encoding"] = "gzip"
    kept = "public, max-age=31536000, immutable" if request.args.get("v") == digest else "no-cache"
    answer.headers |= {"Cache-Control": kept, "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
    answer.set_etag(digest + ("-gzip" if zipped else ""))
    answer.make_conditional(request)
    return answer
