"""Faces: where they are in an image, and how they are cut out for the emotion network."""

from service.faces.crop import crop_face
from service.faces.decode import Face
from service.faces.detector import FaceDetector

__all__ = ["Face", "FaceDetector", "crop_face"]
