"""The retry policy of an attempt: every half second while the store or the disk is unavailable."""

from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_fixed
from tenacity.stop import StopBaseT

from core import errors

RETRY_SECONDS = 0.5
MAX_TRIES = 10  # to read an input, or to release the job


def make_retrying(
    stop: StopBaseT,
    before_sleep: Callable[[errors.Unavailable], object],
) -> Retrying:
    """Return a policy that retries after errors.Unavailable, until `stop` says so.

    It then raises the last error. before_sleep: called with the error before each pause; what it
    raises ends the retries.
    """

    def call_before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        assert isinstance(error, errors.Unavailable), "no other error is retried"
        before_sleep(error)

    return Retrying(
        retry=retry_if_exception_type(errors.Unavailable),
        wait=wait_fixed(RETRY_SECONDS),
        stop=stop,
        before_sleep=call_before_sleep,
        reraise=True,
    )
