"""The reading room: the web page in which readers judge the images of a reading, blinded. Needs `limner[read]`.

`app` is what the page talks to, and talks to the service through the SDK; `serve` listens; `static/` is the page, as it
is served, without a build. Not for making readings: that is `limner reading`.
"""

from limner.reading.app import create_app
from limner.reading.serve import serve

__all__ = ["create_app", "serve"]
