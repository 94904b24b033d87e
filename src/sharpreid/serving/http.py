"""Answers to queries by HTTP, for other programs: ``python -m sharpreid.search serve``."""

from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from sharpreid.data.reid_data import DataError
from sharpreid.data.transforms import read_image
from sharpreid.serving import query as queries
from sharpreid.serving.gallery import Item
from sharpreid.serving.model import Embedder
from sharpreid.serving.store import Filter, Store

MAX_BYTES = 10 * 2**20
"""Largest image that is accepted, in bytes."""

_PARAMETERS = {
    *("k", "camera", "not_camera", "identity", "track", "start", "end"),
    *("threshold", "re_ranking", "approximate"),
}
_LOOPBACK = ("127.0.0.1", "localhost")

_Names = Annotated[list[str], Query()]
_Number = Annotated[float | None, Query(allow_inf_nan=False)]


def build_app(store: Store, embedder: Embedder) -> FastAPI:
    """Build the application: ``GET /`` describes the store, ``POST /query`` searches for a person.

    Args:
        store: the store.
        embedder: the model of its embeddings.
    """
    app = FastAPI(title="sharpreid", docs_url=None, redoc_url=None)  # those pages load scripts from elsewhere
    calibrated = embedder.config.threshold

    @app.get("/")
    def describe() -> dict[str, Any]:
        threshold = None if calibrated is None else calibrated.model_dump()
        return {"rows": store.count(), "model": store.digest, "threshold": threshold}

    @app.post("/query")
    async def query(
        request: Request,
        k: Annotated[int, Query(ge=1, le=1000)] = 10,
        camera: _Names = [],  # noqa: B006 - FastAPI copies it
        not_camera: _Names = [],  # noqa: B006
        identity: _Names = [],  # noqa: B006
        track: _Names = [],  # noqa: B006
        start: _Number = None,
        end: _Number = None,
        threshold: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
        re_ranking: bool = False,
        approximate: bool = False,
    ) -> dict[str, Any]:
        if unknown := set(request.query_params) - _PARAMETERS:
            raise HTTPException(
                400,
                f"{', '.join(sorted(unknown))}: no such parameter; known: {', '.join(sorted(_PARAMETERS))}",
            )
        where = Filter(
            cameras=tuple(camera),
            not_cameras=tuple(not_camera),
            start=start,
            end=end,
            identities=tuple(identity),
            tracks=tuple(track),
        )
        if threshold is None and calibrated is not None:
            threshold = calibrated.distance
        body = await _read_body(request)

        def answer() -> dict[str, Any]:
            picture = read_image(Path("image"), body)
            one = queries.Query((Item("uploaded image"),), embedder.embed(picture)[0])
            found = queries.answer_queries(
                store,
                [one],
                k=k,
                where=where,
                threshold=threshold,
                re_ranking=re_ranking,
                approximate=approximate,
            )
            return queries.describe_answer(next(found), threshold)

        try:
            return await run_in_threadpool(answer)
        except DataError as error:
            raise HTTPException(400, str(error)) from error

    return app


async def _read_body(request: Request) -> bytes:
    """Read the bytes of the image; refuse too many of them before they are all in memory."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"the image has more than {MAX_BYTES:,} bytes; send a smaller one")
    if not body:
        raise HTTPException(400, "the request has no body; send the bytes of an image file as it")
    return bytes(body)


def serve_store(store: Store, embedder: Embedder, *, host: str, port: int) -> None:
    """Answer queries until Ctrl-C.

    Args:
        store: the store.
        embedder: the model of its embeddings.
        host: address to listen on, such as 127.0.0.1.
        port: port to listen on; 0 takes a free one.
    """
    app = build_app(store, embedder)
    if host in _LOOPBACK:  # a page of another site could give its own name to this address
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK))
    uvicorn.run(app, host=host, port=port, log_level="info")
