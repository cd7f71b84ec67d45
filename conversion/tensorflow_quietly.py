"""Import TensorFlow and Keras without their banners, and with plain, repeatable CPU kernels.

Import this module, never `tensorflow` itself: the environment must be set before the first import. oneDNN's
kernels round differently from one CPU to the next, so the reference is computed without them.
"""

import logging
import os
import warnings

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
logging.getLogger("tensorflow").setLevel(logging.ERROR)
logging.getLogger("absl").setLevel(logging.ERROR)
# It logs each operation that it cannot convert; the exception says it in one line.
logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)

with warnings.catch_warnings():
    # TensorFlow's own imports use what NumPy and the standard library have deprecated.
    warnings.simplefilter("ignore")
    import keras
    import tensorflow as tf
    import tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

__all__ = ["convert_variables_to_constants_v2", "keras", "tf", "tf2onnx"]
