"""Schedules by epoch: tau (paper Sec. IV-B, Eq. 9), the learning rate, Adam's beta1 and the noise.

Epochs are 0-based; an epoch is one pass over the identities.
"""

import math


def temperature(epoch: int, rate: float, floor: float) -> float:
    """Return the softmax temperature tau of an epoch (Eq. 9), unitless: max(floor, exp(-rate * epoch)).

    Args:
        epoch: 0-based, >= 0.
        rate: decay rate per epoch, >= 0; 0 keeps tau at 1.
        floor: lowest tau, in (0, 1].

    Raises:
        ValueError: an argument is out of range.

    >>> [round(temperature(t, rate=0.008, floor=0.5), 4) for t in (0, 50, 86, 87)]
    [1.0, 0.6703, 0.5026, 0.5]
    """
    if epoch < 0 or rate < 0 or not 0 < floor <= 1:
        raise ValueError(
            f"expected epoch >= 0, rate >= 0 and floor in (0, 1], got {epoch}, {rate} and {floor}"
        )
    return max(floor, math.exp(-rate * epoch))


def cosine_temperature(epoch: int, rate: float, floor: float) -> float:
    """Return tau along half a cosine wave, which reaches ``floor`` in the same epoch as Eq. 9.

    It is an alternative to the paper's schedule. Arguments and errors are those of `temperature`.

    >>> [round(cosine_temperature(t, rate=0.008, floor=0.5), 4) for t in (0, 43, 87, 150)]
    [1.0, 0.7529, 0.5, 0.5]
    """
    temperature(epoch, rate, floor)
    if rate == 0 or floor == 1:
        return 1.0
    progress = min(1.0, epoch * rate / -math.log(floor))
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def noise_ramp(epoch: int, epochs: int, share: float) -> float:
    """Return a factor on the noise of Eq. 5 that rises linearly from 0 to 1 at the start of the training.

    The paper has no such factor. Ghiasi et al., DropBlock (2018), raise their drop rate in this way.

    Args:
        epoch: 0-based, >= 0.
        epochs: length of the training, >= 1.
        share: share of the training in which the factor rises, in (0, 1].

    Raises:
        ValueError: an argument is out of range.

    >>> [noise_ramp(epoch, epochs=150, share=0.4) for epoch in (0, 15, 60, 149)]
    [0.0, 0.25, 1.0, 1.0]
    """
    if epoch < 0 or epochs < 1 or not 0 < share <= 1:
        raise ValueError(
            f"expected epoch >= 0, epochs >= 1 and share in (0, 1], got {epoch}, {epochs} and {share}"
        )
    return min(1.0, epoch / (share * epochs))


def exponential_decay_factor(epoch: int, start: int, end: int, final: float) -> float:
    """Return the learning rate's factor: 1 until ``start``, then final^((epoch - start) / (end - start)).

    Source: Hermans et al. (reference [15]), Eq. 6, in epochs.

    Args:
        epoch: 0-based, >= 0.
        start: last epoch at the full rate.
        end: epoch in which the factor reaches ``final``, > start.
        final: factor in epoch ``end``, in (0, 1].

    Raises:
        ValueError: an argument is out of range.

    >>> paper = {"start": 100, "end": 150, "final": 0.001}
    >>> [round(exponential_decay_factor(epoch, **paper), 6) for epoch in (0, 100, 101, 125, 150)]
    [1.0, 1.0, 0.870964, 0.031623, 0.001]
    """
    if epoch < 0 or end <= start or not 0 < final <= 1:
        raise ValueError(
            f"expected epoch >= 0, end > start and final in (0, 1], got {epoch}, {start}..{end} and {final}"
        )
    return float(final ** (max(0, epoch - start) / (end - start)))


def beta1(epoch: int, start: int, before: float, after: float) -> float:
    """Return Adam's first beta of an epoch: ``before`` up to and including ``start``, then ``after``.

    Source: Hermans et al. (reference [15]), Sec. 4.

    Args:
        epoch: 0-based.
        start: last epoch at ``before``; reference [15] takes the start of the learning rate's decay.
        before: beta1 until then, in [0, 1).
        after: beta1 afterwards, in [0, 1).

    >>> [beta1(epoch, start=100, before=0.9, after=0.5) for epoch in (0, 100, 101)]
    [0.9, 0.9, 0.5]
    """
    return before if epoch <= start else after
