"""FastAPI over WebSocket with Keras' `model.predict` in the handler: how a first version is usually written.

One process, TensorFlow's own threads; the JPEG is decoded with the service's decoder. KERAS_MODEL names the model's
file, and the ONNX file that MODEL_PATH names says how it wants its input.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import keras
import numpy as np
import onnxruntime as ort
import orjson
import uvicorn  # type: ignore[import-not-found]
from fastapi import FastAPI, WebSocket, WebSocketDisconnect  # type: ignore[import-not-found]

from service.engine import Engine
from service.images.decode import ImageDecoder

# Networks trained on FER2013 differ in the order of their outputs, but not in this one.
_HAPPY = 3

app = FastAPI()
model = keras.models.load_model(os.environ["KERAS_MODEL"], compile=False)
card = Engine(Path(os.environ["MODEL_PATH"])).card
decoder = ImageDecoder(card.shape, max_pixels=10**8)
metadata = ort.InferenceSession(os.environ["MODEL_PATH"]).get_modelmeta().custom_metadata_map
preprocessing = json.loads(metadata["visionai.preprocessing"])


@app.websocket("/")  # type: ignore[untyped-decorator]
async def predict(websocket: WebSocket) -> None:
    """One client, request by request."""
    await websocket.accept()
    await websocket.send_text('{"type":"welcome"}')
    shape = card.shape
    image = np.empty((1, shape.height, shape.width, shape.channels), np.uint8)
    try:
        while True:
            decoder.decode_into(orjson.loads(await websocket.receive_text())["image"], image[0])
            scaled = image * preprocessing["scale"] + preprocessing["offset"]
            row = model.predict(scaled, verbose=0)[0].tolist()
            confidence = max(row)
            happy = row.index(confidence) == _HAPPY
            reply = {
                "status": "success",
                "emotion_name": "happy" if happy else "another",
                "confidence": confidence,
                "probabilities": row,
            }
            await websocket.send_text(orjson.dumps(reply).decode())
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning")
