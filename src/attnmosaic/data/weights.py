"""Samplers of fixed attention weights; with fixed weights, a what network can be trained without a where network."""

from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from attnmosaic.core.errors import UserError


@runtime_checkable
class WeightSampler(Protocol):
    """Function that samples fixed attention weights for mosaics."""

    def __call__(
        self, foreground: Int[np.ndarray, " N"], patches: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "N P"]:
        """Returns non-negative weights with sum 1 for each mosaic.

        Args:
            foreground: position of the foreground patch in each mosaic.
            patches: patches per mosaic, P.
            rng: random generator.
        """


class FixedWeights:
    """Gives all foreground patches one weight; background patches share the rest equally (weighted-average study).

    Args:
        foreground: weight of the foreground patch from 0 to 1, as a number or a fraction. Dataset i of the
            weighted-average study has ``"i/9"``, which leaves (9 - i)/72 for each of eight background patches.

    Raises:
        UserError: ``foreground`` is not a number or a fraction from 0 to 1.
    """

    def __init__(self, foreground: str | float) -> None:
        text = str(foreground)
        try:
            # `Fraction` computes a power of ten exactly, so "1e999999999" would take hours.
            self.foreground = Fraction(float(text)) if "e" in text.lower() else Fraction(text)
        except (ValueError, ZeroDivisionError, OverflowError):
            self.foreground = Fraction(-1)
        if not 0 <= self.foreground <= 1:
            raise UserError(
                f"foreground weight: got {foreground}, needs a number or fraction from 0 to 1, for example 5/9"
            )

    def __call__(
        self, foreground: Int[np.ndarray, " N"], patches: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "N P"]:
        # The division of fractions is exact, so with 1/9 all weights are the same number.
        weights = np.full((len(foreground), patches), float((1 - self.foreground) / (patches - 1)))
        weights[np.arange(len(foreground)), foreground] = float(self.foreground)
        return weights


class DirichletWeights:
    """Samples weights from a symmetric Dirichlet distribution, independently of the foreground's position.

    Args:
        concentration: 1 for weights that are uniform on the simplex; below 1, few patches get most of the weight.
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
    """Gives weight 1 to one uniformly sampled patch of each mosaic, which is the foreground with probability 1/P."""

    def __call__(
        self, foreground: Int[np.ndarray, " N"], patches: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "N P"]:
        return np.eye(patches)[rng.integers(patches, size=len(foreground))]
