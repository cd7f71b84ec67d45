"""Faces: where they are in an image, and how they are cut out for the emotion network.

Rooms: ``detector`` (BlazeFace on an image and its tiles) with ``decode`` (its output), ``crop`` (from a box to the
network's input), ``tracking`` (a stream's faces from frame to frame, and the smoothing of their scores).
"""

from service.faces.crop import crop_face
from service.faces.decode import Face
from service.faces.detector import FaceDetector

__all__ = ["Face", "FaceDetector", "crop_face"]
