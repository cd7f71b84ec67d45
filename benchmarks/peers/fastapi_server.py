"""FastAPI over WebSocket with ONNX Runtime, inference in the handler.

Tuned: one uvicorn worker per CPU with one intra-op thread each, uvloop, no compression, orjson.
"""

from __future__ import annotations

import os

import orjson
import uvicorn  # type: ignore[import-not-found]
from fastapi import FastAPI, WebSocket, WebSocketDisconnect  # type: ignore[import-not-found]

from benchmarks.peers.job import Job

app = FastAPI()
job = Job()


@app.websocket("/")  # type: ignore[untyped-decorator]
async def predict(websocket: WebSocket) -> None:
    """One client, request by request."""
    await websocket.accept()
    await websocket.send_text('{"type":"welcome"}')
    try:
        while True:
            request = orjson.loads(await websocket.receive_text())
            await websocket.send_text(orjson.dumps(job([request["image"]])[0]).decode())
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.peers.fastapi_server:app",
        port=int(os.environ["PORT"]),
        workers=int(os.environ["CPUS"]),
        loop="uvloop",
        ws_per_message_deflate=False,
        log_level="warning",
    )
