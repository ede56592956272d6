"""Small snapshots with random content, for tests of figures."""

from dataclasses import replace

import numpy as np

from attnmosaic.runs.snapshots import Plane, PredictedMosaics, Record

CLASSES = ("cat", "dog", "emu")


def predicted_mosaics(
    rng: np.random.Generator, mosaics: int, patches: int = 9, times: int | None = None
) -> PredictedMosaics:
    """Returns mosaics of 6 x 4 colour images; predictions are for ``times`` epochs, or for one if it is None."""
    lead = (mosaics,) if times is None else (times, mosaics)
    return PredictedMosaics(
        rows=np.arange(mosaics),
        patches=rng.integers(0, 256, size=(mosaics, patches, 6, 4, 3), dtype=np.uint8),
        foreground=rng.integers(patches, size=mosaics),
        label=rng.integers(3, size=mosaics),
        alpha=rng.dirichlet(np.full(patches, 0.4), size=lead).astype(np.float32),
        probabilities=rng.dirichlet(np.ones(3), size=lead).astype(np.float32),
    )


def images(times: int = 7, patches: int = 9, mosaics: int = 150) -> Record:
    """Returns snapshots of images, with mosaics of every kind."""
    rng = np.random.default_rng(4)
    final = predicted_mosaics(rng, mosaics, patches)
    final = replace(final, rows=final.rows + 100)  # other mosaics than the followed ones
    return Record(
        classes=CLASSES,
        all_classes=(*CLASSES, "fog"),
        epochs=np.arange(times),
        followed={split: predicted_mosaics(rng, 5, patches, times) for split in ("train", "held_out")},
        final={"train": final, "held_out": final},
        counts={"held_out": {kind: 10 * final.kinds.count(kind) for kind in ("ffpt", "ffpf", "ftpf", "ftpt")}},
    )


def points(times: int = 4) -> Record:
    """Returns snapshots of points in the square from -1 to 1; What predicts cat on the left and emu on the right."""
    rng = np.random.default_rng(1)
    followed = predicted_mosaics(rng, 4, 3, times)
    followed = PredictedMosaics(
        followed.rows,
        rng.uniform(-1, 1, size=(4, 3, 2)).astype(np.float32),
        followed.foreground,
        followed.label,
        followed.alpha,
        followed.probabilities,
    )
    regions = np.zeros((10, 10), dtype=np.uint8)
    regions[:, 5:] = 2
    plane = Plane(
        extent=np.array([-1.0, 1.0, -1.0, 1.0]),
        regions=regions,
        scores=np.arange(100, dtype=np.float32).reshape(10, 10),
        points=rng.uniform(-1, 1, size=(20, 2)).astype(np.float32),
        point_classes=np.arange(20) % 4,
        aggregates=rng.uniform(-1, 1, size=(30, 2)).astype(np.float32),
        label=np.arange(30) % 3,
        held_out_aggregates=rng.uniform(-1, 1, size=(12, 2)).astype(np.float32),
        held_out_label=np.arange(12) % 3,
    )
    return Record(
        classes=CLASSES,
        all_classes=(*CLASSES, "fog"),
        epochs=np.arange(times),
        followed={"held_out": followed},
        final={},
        counts={},
        plane=plane,
    )
