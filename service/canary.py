"""Two versions of the model at once: a share of the connections goes to a second one, the canary.

The share is of connections, and each keeps its version as long as it is open: a stream does not flicker between two
models, and requests of a connection need no decision. Which connection it is is counted, not drawn: of any n that one
worker opens one after the other, n times the share go to the canary, rounded up or down.

Requests of both versions wait in one queue, so that clients have their turns and their deadlines whichever model
answers; a batch that has both is run as two.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from service.batching.predictor import Batches, Predictor, Request
from service.engine import Engine
from service.engine.calibration import calibrated
from service.errors import StartupError
from service.faces import FaceDetector
from service.images.decode import ImageDecoder
from service.modelfile import resolve_model
from service.settings import Settings
from service.store import Store, StoreStatus


@dataclass(frozen=True, slots=True)
class Version:
    """A model that is served: what runs it, where its predictions go, and its share of the connections.

    The active one is that of MODEL_PATH. Each has a store of its own, whose journal names the model: what a process
    that dies leaves there is stored under the right one, whatever is served by then.
    """

    engine: Engine
    store: Store
    share: float = 1.0
    active: bool = True


def store_status(versions: Sequence[Version]) -> StoreStatus:
    """Of all their stores together."""
    return StoreStatus.together([version.store.status() for version in versions])


def check_canary(settings: Settings, current: Settings | None = None) -> None:
    """What can be told before a worker is started: the file is there, and the chosen provider says the same with it.

    With `current`, which is served meanwhile, nothing that is measured is kept.

    Raises:
        StartupError: it cannot be used.
    """
    if settings.canary_model_path is None:
        return
    try:
        resolve_model(settings.canary_model_path, "CANARY_MODEL_PATH")
        if settings.provider != "cpu":  # the reference, which the others are held against
            calibrated(replace(settings, model_path=settings.canary_model_path), current)
    except StartupError as exc:
        raise of_canary(exc) from None


def check_versions(active: Engine, canary: Engine) -> None:
    """Clients hold the list of emotions, and a version's tag is what tells its rows apart.

    Raises:
        StartupError: the two cannot be served side by side.
    """
    old, new = active.card, canary.card
    if new.labels != old.labels:
        raise of_canary(
            StartupError(
                f"{new.path} answers {', '.join(new.labels)} and the model beside it {', '.join(old.labels)}"
            )
        )
    if new.version_tag == old.version_tag:
        raise of_canary(
            StartupError(
                f"{new.path} is version {new.version_tag}, as {old.path} is: stored predictions could not be told apart"
            )
        )


def of_canary(error: StartupError) -> StartupError:
    """The error, with which of the two models it is about."""
    return StartupError(f"CANARY_MODEL_PATH: {error}")


class Chooser:
    """Which version a worker's next connection gets: 1, the canary, for its share of this worker's, to within one.

    Workers start at different points: else each would have its first canary as late as the others.
    """

    def __init__(self, share: float, start: float | None = None) -> None:
        self._share = share
        self._passed = random.random() if start is None else start

    def next(self) -> int:
        """0 for the active version, 1 for the canary."""
        self._passed += self._share
        if self._passed < 1.0:
            return 0
        self._passed -= 1.0
        return 1


class VersionsPredictor:
    """Answers batches whose requests are of several versions, with one predictor for each."""

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self._predictors = predictors

    def make_buffer(self, max_batch: int) -> npt.NDArray[np.uint8]:
        """Room for a batch of whichever version's input is the largest: versions are run one after the other."""
        largest = max(predictor.make_buffer(1).nbytes for predictor in self._predictors)
        return np.empty((max_batch, largest), np.uint8)

    def serve(self, requests: list[Request], buffer: npt.NDArray[np.uint8]) -> None:
        """Answer every request of a batch with its own version. Does not raise."""
        for version, predictor in enumerate(self._predictors):
            own = [request for request in requests if request.version == version]
            if own:
                predictor.serve(own, self._view(buffer, predictor))

    def _view(self, buffer: npt.NDArray[np.uint8], predictor: Predictor) -> npt.NDArray[np.uint8]:
        """The buffer in the form of one version's input."""
        shape = (len(buffer), *predictor.input_shape)
        return buffer.reshape(-1)[: int(np.prod(shape))].reshape(shape)


def make_predictor(versions: Sequence[Version], detector: FaceDetector, max_pixels: int) -> Batches:
    """What answers requests to these versions. One alone is not asked which."""
    predictors = [
        Predictor(
            version.engine, ImageDecoder(version.engine.card.shape, max_pixels), version.store, detector
        )
        for version in versions
    ]
    return predictors[0] if len(predictors) == 1 else VersionsPredictor(predictors)
