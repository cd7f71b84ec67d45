"""The served models: architecture, training, evaluation, sources.

============ ==============================================================================
sources/     a description of each model: where it comes from, how it is converted
fetch        third-party files: downloaded, checked
convert      `models convert`: the conversion of what is served
detector     face detectors, from TensorFlow Lite
blocks       their channels, filled up for ONNX Runtime
============ ==============================================================================

Training:

============ ==============================================================================
dataset      FER2013 with FER+ votes
augmentation what is done to a face before it is learnt from
architecture the emotion network, and its sizes
mobilenet    a teacher: a network that knows faces already
inception    another one, of another kind
quantization the network's INT8 form
recipe       rates, epochs, weights of the losses
training     the loop
train        `models train`: its options
run          a run from its plan to its networks, and going on with it
label        `models label`: a teacher is asked about every face
labels       what it says of them
resuming     folders of work that may be cut off
networks     trained files, loaded
export       `models export`: one file that ships
calibration  how sure it is, and of rare emotions
============ ==============================================================================

Figures:

============ ==============================================================================
predictor    a model file as a function from faces to probabilities
metrics      accuracy, calibration and so on
evaluate     `models evaluate`
pareto       `models pareto`: accuracy against time
plots        pictures for the model card
============ ==============================================================================
"""
