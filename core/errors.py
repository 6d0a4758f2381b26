"""The tree of errors. Knows nothing of HTTP (api/http/problems.py) or exit codes (cli/).

    ImpastoError
    ├── BadInput               the caller can correct it
    │   ├── BadSpec            a parameter of the spec
    │   ├── BadImage           a picture
    │   │   ├── UnsupportedImage
    │   │   └── ImageTooLarge
    │   ├── InvalidProvenance  the record of how a picture was made
    │   ├── BadWebhook         the URL of a webhook
    │   ├── BadDataset         pictures for training
    │   ├── BadBackup          a copy of the store
    │   ├── UploadTooLarge
    │   └── BadRequest
    ├── NotFound
    │   ├── JobNotFound
    │   ├── BatchNotFound
    │   ├── WorkerNotFound
    │   └── ImageNotFound
    │       └── ImageDamaged
    ├── Conflict               the request does not fit the job's state
    │   ├── JobNotEnded
    │   ├── JobAlreadyEnded
    │   ├── NoResult
    │   ├── ResultGone
    │   └── IdempotencyConflict
    ├── RetryLater             a later retry may succeed; carries the seconds to wait
    │   ├── Unavailable        a limit of the service
    │   │   ├── NoWorker
    │   │   ├── StoreUnavailable
    │   │   ├── StoreUnsafe
    │   │   ├── StorageFull
    │   │   ├── QueueFull
    │   │   └── IntakePaused
    │   ├── QuotaExceeded      a limit of this caller
    │   ├── RateLimited
    │   └── TooManyStreams
    ├── Unauthorized
    ├── AdminRequired
    ├── WeightsUnavailable
    ├── BadWeights
    ├── Diverged
    ├── OutOfMemory
    ├── WorkerLost
    ├── DeadlineExceeded
    ├── TimeLimitExceeded
    ├── ServiceUnreachable     (clients only)
    └── BadSettings

    Interrupt (BaseException)  not an error: the run must stop
    ├── LeaseLost
    ├── ShuttingDown
    └── DeviceLost

Each class carries a stable `code`, which clients may rely on. The docstring of a class is its
default message and says what to do.
"""

from copy import copy
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from PIL import Image


class ImpastoError(Exception):
    """The service failed internally; its log has the details."""

    # The class's code. A client overwrites it on an instance if the service sends a code that this
    # version does not know.
    code: str = "internal"
    # A stable name for one of several causes with the same code, and the parameter or option to
    # correct; None where the code says all.
    reason: str | None = None
    parameter: str | None = None

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    def about(self, part: str) -> Self:
        """Return the same error with a message that names the part of the request it is about."""
        error = copy(self)
        error.args = (f"{part}: {self.message}",)
        return error

    @property
    def message(self) -> str:
        """The sentence that a person reads."""
        return str(self.args[0])


class BadInput(ImpastoError):
    """The request is invalid; correct it and send it again."""

    code = "bad_input"

    def __init__(
        self,
        message: str | None = None,
        *,
        reason: str | None = None,
        parameter: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason, self.parameter = reason, parameter


class BadRequest(BadInput):
    """The request could not be parsed; see /docs for its form."""

    code = "bad_request"


class BadSpec(BadInput):
    """A parameter has a value that is not allowed; docs/api.md lists the ranges."""

    code = "bad_spec"


class BadImage(BadInput):
    """The picture is damaged or incomplete; save it again as JPEG, PNG or WebP."""

    code = "bad_image"


class UnsupportedImage(BadImage):
    """Only JPEG, PNG, WebP, HEIC, AVIF, TIFF and GIF are supported; convert the picture."""

    code = "unsupported_image"


class ImageTooLarge(BadImage):
    """The picture has too many pixels; make it smaller."""

    code = "image_too_large"


class InvalidProvenance(BadInput):
    """The file has no valid record of how it was made; use an unchanged PNG from Impasto."""

    code = "invalid_provenance"


class BadWebhook(BadInput):
    """A webhook must be a URL like https://example.org/hook, without user name or fragment."""

    code = "bad_webhook"


class BadDataset(BadInput):
    """The data set is damaged or incomplete; build it again."""

    code = "bad_dataset"


class BadBackup(BadInput):
    """The backup is damaged, incomplete or of another version; use another one."""

    code = "bad_backup"


class UploadTooLarge(BadInput):
    """The file is too large; send a smaller one."""

    code = "upload_too_large"


class NotFound(ImpastoError):
    """There is nothing at this address; check its spelling."""

    code = "not_found"


class JobNotFound(NotFound):
    """There is no job with this id; it may have been deleted or have expired."""

    code = "job_not_found"


class BatchNotFound(NotFound):
    """There is no batch with this id; all its jobs may have been deleted."""

    code = "batch_not_found"


class WorkerNotFound(NotFound):
    """There is no live or suspended worker with this id; `impasto workers list` shows all."""

    code = "worker_not_found"


class ImageNotFound(NotFound):
    """There is no picture with this digest; upload it first."""

    code = "image_not_found"


class ImageDamaged(ImageNotFound):
    """The stored picture is damaged; upload it again or, if it is a result, retry its job."""

    code = "image_damaged"


class Conflict(ImpastoError):
    """The job's state does not allow this; read its status first."""

    code = "conflict"


class JobNotEnded(Conflict):
    """The job has not ended yet; poll its status."""

    code = "job_not_ended"


class JobAlreadyEnded(Conflict):
    """The job has ended or is about to end; retry it with the new parameters."""

    code = "job_already_ended"


class NoResult(Conflict):
    """The job has no picture; its status says why."""

    code = "no_result"


class ResultGone(Conflict):
    """The picture has expired or was deleted; run the job again."""

    code = "result_gone"


class IdempotencyConflict(Conflict):
    """The Idempotency-Key was used for a different request; use a new one."""

    code = "idempotency_conflict"


class Unauthorized(ImpastoError):
    """Send an API key as `Authorization: Bearer ...`; `impasto keys create` makes one."""

    code = "unauthorized"


class AdminRequired(ImpastoError):
    """Only the key of an operator may do this; `impasto keys create NAME --admin` makes one."""

    code = "admin_required"


class RetryLater(ImpastoError):
    """Try again in a few seconds."""

    code = "retry_later"

    def __init__(self, message: str | None = None, retry_seconds: float = 2) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class QuotaExceeded(RetryLater):
    """You have reached your limit of queued and running jobs; try again when one has ended."""

    code = "quota_exceeded"


class RateLimited(RetryLater):
    """You send too many requests; wait as long as the Retry-After header says."""

    code = "rate_limited"


class TooManyStreams(RetryLater):
    """You have reached your limit of open event streams; close one, or poll."""

    code = "too_many_streams"


class Unavailable(RetryLater):
    """The service is temporarily unavailable; try again in a few seconds."""

    code = "unavailable"


class NoWorker(Unavailable):
    """No worker is connected that could answer; try again when one is."""

    code = "no_worker"


class StoreUnavailable(Unavailable):
    """The job store does not answer; try again in a few seconds."""

    code = "store_unavailable"


class StoreUnsafe(Unavailable):
    """A setting of the job store may lose jobs, so none is accepted; /readyz names the setting."""

    code = "store_unsafe"


class StorageFull(Unavailable):
    """The storage is full; try again later."""

    code = "storage_full"


class QueueFull(Unavailable):
    """The queue is full; try again later."""

    code = "queue_full"


class IntakePaused(Unavailable):
    """The operator has paused the service: it accepts no new jobs for now; try again later."""

    code = "intake_paused"

    def __init__(self, message: str | None = None, retry_seconds: float = 60) -> None:
        super().__init__(message, retry_seconds)


class WeightsUnavailable(ImpastoError):
    """The network's weights are not on this machine; run `impasto weights fetch`."""

    code = "weights_unavailable"


class BadWeights(ImpastoError):
    """The weights file is damaged or not a VGG; fetch or import it again."""

    code = "bad_weights"


class Diverged(ImpastoError):
    """The optimization diverged; use lower weights or optimizer=adam."""

    code = "diverged"

    def __init__(self, message: str | None = None, picture: "Image.Image | None" = None) -> None:
        super().__init__(message)
        self.picture = picture  # the last one with finite values


class OutOfMemory(ImpastoError):
    """The picture needs more memory than this worker has; use a smaller size."""

    code = "out_of_memory"


class WorkerLost(ImpastoError):
    """The worker was lost in every attempt at this job; retry it, or use a smaller size."""

    code = "worker_lost"


class DeadlineExceeded(ImpastoError):
    """The job did not end before its deadline; retry it with a later one."""

    code = "deadline_exceeded"


class TimeLimitExceeded(ImpastoError):
    """The job took longer than this service allows; retry it with a smaller size."""

    code = "time_limit_exceeded"


class ServiceUnreachable(ImpastoError):
    """No Impasto service answers; start one with `impasto up` or set --url."""

    code = "service_unreachable"


class BadSettings(ImpastoError):
    """A setting is wrong; docs/operations.md lists all settings."""

    code = "bad_settings"


class Interrupt(BaseException):
    """The run must stop. Not an Exception, so that no `except Exception` swallows it."""


class LeaseLost(Interrupt):
    """The worker no longer holds the job's lease; discard the run and report nothing."""


class ShuttingDown(Interrupt):
    """The worker is shutting down; release the job to the queue."""


class DeviceLost(Interrupt):
    """The device fails until this process ends; another process can run the job."""
