"""The server of `ftlit demo`, on 127.0.0.1 only: the page, and the answers to pictures that are sent to it."""

import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftlit.data.dataset import Examples
from ftlit.demo.about import with_about
from ftlit.demo.answers import answer
from ftlit.demo.background import BackgroundPictures
from ftlit.errors import UserError
from ftlit.inference.network import Network

HOST = "127.0.0.1"
MOST_BYTES = 100_000_000  # of a picture
PACKAGES = ("starlette", "uvicorn")


def check_packages() -> None:
    """Raise `UserError` where a package is missing."""
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise UserError(f'ftlit demo needs {" and ".join(missing)}: pip install "ftlit[demo]"')


def application(network: Network, train: Examples | None, run: str | Path, why: str = "") -> Any:
    """The web application, an ASGI callable, whose `state.pictures` are the `BackgroundPictures`, or `None`.

    Args:
        network: of images.
        train: training images of the run; `None`: the page shows none.
        run: its folder, or a checkpoint.
        why: there are no training images.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    pictures = None if train is None else BackgroundPictures(network, train)
    page = files("ftlit.demo").joinpath("demo.html").read_text(encoding="utf-8")

    async def show(request: Request) -> HTMLResponse:
        return HTMLResponse(with_about(page, run, network, train, pictures.why if pictures else why))

    def answered(content: bytes) -> dict[str, Any]:
        pending = pictures.pending if pictures else ""  # first: afterwards there may be more
        return {**answer(network, pictures.found if pictures else None, content), "pending": pending}

    async def predict(request: Request) -> JSONResponse:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > MOST_BYTES:
                return JSONResponse({"error": f"the file has more than {MOST_BYTES // 1_000_000} MB"})
        return JSONResponse(await run_in_threadpool(answered, bytes(content)))

    routes = [Route("/", show), Route("/predict", predict, methods=["POST"])]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # a page of another host cannot read the answers
    app = Starlette(routes=routes, middleware=[hosts])
    app.state.pictures = pictures
    return app


def serve(network: Network, train: Examples | None, run: str | Path, port: int, why: str = "") -> None:
    """Serve the page until Ctrl-C.

    Args:
        network: of images.
        train: see `application`.
        run: see `application`.
        port: 0 for any that is free.
        why: see `application`.

    Raises:
        UserError: the port is taken.
    """
    import socket

    import uvicorn

    network.input_spec  # noqa: B018 (raises for a network of texts)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port} cannot be used ({error.strerror}): give another --port, or 0 for any that is free") from error
        print(f"http://{HOST}:{listening.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
        app = application(network, train, run, why)
        if train is not None:
            print("ftlit: computing features of the training images; until then the page shows no nearest ones", file=sys.stderr)
        try:
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
        finally:
            if app.state.pictures:
                app.state.pictures.stop()
