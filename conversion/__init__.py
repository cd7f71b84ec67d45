"""Keras to ONNX, with proof: `python -m conversion`.

What is asked for:

================== =======================================================================
cli                the command line
options            what must be known of a model, where it is told, and the defaults
errors             what can go wrong, and the exit codes
destinations       where is written, and that this destroys nothing
================== =======================================================================

From the Keras file to the ONNX file; `convert` has the order of the steps:

================== =======================================================================
sourcefile         what a source file is, by its contents
tensorflow_quietly the import of TensorFlow
sources            the Keras network, loaded
keras2             one that Keras 2 wrote, as Keras 3 reads it
float32            one of another precision, in float32
lowering           the frozen TensorFlow graph, where tf2onnx would stumble
constants          its constant arithmetic, folded to the same bits on every machine
graph              the ONNX graph: preprocessing, network, softmax and class order
rounding           what a network trained for INT8 rounds, as integer operations
folding            foldings that tf2onnx leaves undone
precisions         fp16 and INT8 of the same graph
second_look        what looks again at the unsure images only, as a branch
onnxfile           the file's form: the same bytes each time
metadata           what the file says of itself, for the service
================== =======================================================================

The proof; `variants` is the gate that decides whether a file ships:

================== =======================================================================
images             what both are asked about
evidence           these images, the source's answers, labelled faces
reference          what the source answers
parity             the bounds of a difference, and whether it keeps them
divergence         where a difference begins
checks             the graph's structure, and every optimisation level
evaluation         accuracy on labelled faces
latency            how long models take
manifest, verify   what was proven, beside the model; and proving it again
report, plots      the same, for people
================== =======================================================================

For all of it: arrays, atomic, digests, progress and telling (files and the terminal), sessions (ONNX Runtime), tools
(their versions), triton.
"""
