"""What changes the weights under one conditioning: the slow version of them and the experts that are mixed in, as one.

Both are changes of the same base matrices, so each keeps what it is beside the other: a mixture that was found under
one slow version is the same mixture under the next, and taking it back leaves the slow version's own bits.
"""

from __future__ import annotations

from twoclock.errors import UnsupportedError
from twoclock.nn.summed import summed
from twoclock.types import Conditioning, Delta

__all__ = ["weights_of"]


def weights_of(conditioning: Conditioning) -> Delta | None:
    """The change of weights of a conditioning, mixture and all, under one name; None is the base by the path that
    nothing touches. Raises UnsupportedError where the two are changes of different weights."""
    delta, mixture = conditioning.delta, conditioning.mixture
    if delta is None or mixture is None:
        return delta or mixture
    if delta.base != mixture.base:
        raise UnsupportedError(
            f"this conditioning's slow weights {delta.id[:12]} belong to the base {delta.base[:12]}, but the experts "
            f"that it mixes in, {mixture.id[:12]}, to {mixture.base[:12]}; experts mean nothing on other weights"
        )
    return Delta(f"{delta.id}*{mixture.id}", "sum", delta.base, summed(delta.payload, mixture.payload))
