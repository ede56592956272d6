"""Fixed attention weights: they come with the data, so that What can be studied without a Where."""

from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from attnmosaic.core.errors import UserError


@runtime_checkable
class WeightSampler(Protocol):
    """Samples fixed attention weights for mosaics."""

    def __call__(
        self, foreground: Int[np.ndarray, " N"], patches: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "N P"]:
        """Returns weights that are not negative and sum to 1 for each mosaic.

        Args:
            foreground: position of the foreground patch in each mosaic.
            patches: patches a mosaic, P.
            rng: random generator.
        """


class FixedWeights:
    """The same weight on every foreground patch, the rest shared evenly by the background (document 001).

    Args:
        foreground: from 0 to 1, as a number or a fraction: document 001's dataset i has ``"i/9"``, and so
            (9 - i)/72 on each of eight background patches.

    Raises:
        UserError: it is neither, or out of range.
    """

    def __init__(self, foreground: str | float) -> None:
        text = str(foreground)
        try:
            # `Fraction` writes a power of ten out: 1e999999999 would take hours.
            self.foreground = Fraction(float(text)) if "e" in text.lower() else Fraction(text)
        except (ValueError, ZeroDivisionError, OverflowError):
            self.foreground = Fraction(-1)
        if not 0 <= self.foreground <= 1:
            raise UserError(f"foreground weight: got {foreground}, needs a number or fraction from 0 to 1, 5/9 say")

    def __call__(
        self, foreground: Int[np.ndarray, " N"], patches: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "N P"]:
        # Divided exactly: at 1/9 every weight is then the same number.
        weights = np.full((len(foreground), patches), float((1 - self.foreground) / (patches - 1)))
        weights[np.arange(len(foreground)), foreground] = float(self.foreground)
        return weights


class DirichletWeights:
    """Weights sampled for each mosaic from a symmetric Dirichlet distribution, wherever the foreground is.

    Args:
        concentration: 1 samples uniformly from all weights there are; below 1 most of the weight lies on few patches.
    """

    def __init__(self, concentration: float = 1.0) -> None:
        if not concentration > 0:
            raise UserError(f"concentration of Dirichlet weights: got {concentration}, needs a number above 0")
        self.concentration = concentration

    def __call__(
        self, foreground: Int[np.ndarray, " N"], patches: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "N P"]:
        return rng.dirichlet(np.full(patches, self.concentration), size=len(foreground))


class RandomPatch:
    """All the weight on one patch of each mosaic, sampled uniformly: the foreground one time in P."""

    def __call__(
        self, foreground: Int[np.ndarray, " N"], patches: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "N P"]:
        return np.eye(patches)[rng.integers(patches, size=len(foreground))]
