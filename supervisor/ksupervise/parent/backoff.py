"""How long to wait before the next attempt."""

from __future__ import annotations

CEILING = 60.0  # seconds


def delay(fruitless: int) -> float:
    """Seconds to wait after `fruitless` consecutive attempts without progress.

    None after progress or a first failure; then full jitter up to 2, 4, 8 … 60 s, so that many runs
    felled by one cause do not come back in step.
    """
    if fruitless <= 1:
        return 0.0
    from tenacity import RetryCallState, Retrying, wait_random_exponential

    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = fruitless - 1
    return float(wait_random_exponential(multiplier=2.0, min=0.5, max=CEILING)(state))
