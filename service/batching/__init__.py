"""From an admitted request to its reply, in batches.

========= ================================================================================
scheduler the micro-batch queue, without threads and without a clock
costs     what a request is predicted to cost
executors where batches are worked on, in the event loop or in threads; how long a slice is
lingering staying awake for a client that asks again as soon as it is answered
predictor a batch from images to replies, without threads or loops
========= ================================================================================
"""
