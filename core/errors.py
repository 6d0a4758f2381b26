"""What can go wrong, as one tree. Knows nothing of HTTP (api/http/problems.py) or exit codes (cli/).

    ImpastoError
    ├── BadInput               the caller can mend it
    │   ├── BadSpec            a parameter
    │   ├── BadImage           a picture
    │   │   ├── UnsupportedImage
    │   │   └── ImageTooLarge
    │   ├── InvalidProvenance  of how a picture was made
    │   ├── BadWebhook         where a webhook is to go
    │   ├── BadDataset         pictures to learn from
    │   ├── UploadTooLarge
    │   └── BadRequest
    ├── NotFound
    │   ├── JobNotFound
    │   ├── BatchNotFound
    │   └── ImageNotFound
    ├── Conflict               right request, wrong moment
    │   ├── JobNotEnded
    │   ├── JobAlreadyEnded
    │   ├── NoResult
    │   ├── ResultGone
    │   └── IdempotencyConflict
    ├── RetryLater             right request, too early; says in how many seconds
    │   ├── Unavailable        for everybody
    │   │   ├── NoWorker
    │   │   ├── StoreUnavailable
    │   │   ├── StorageFull
    │   │   └── QueueFull
    │   ├── QuotaExceeded      for this caller
    │   ├── RateLimited
    │   └── TooManyStreams
    ├── Unauthorized
    ├── WeightsUnavailable
    ├── BadWeights
    ├── Diverged
    ├── OutOfMemory
    ├── WorkerLost
    ├── DeadlineExceeded
    ├── ServiceUnreachable     (clients only)
    └── BadSettings

    Interrupt (BaseException)  not errors: the run is asked to stop
    ├── LeaseLost
    ├── ShuttingDown
    └── DeviceLost

Each class carries a stable `code`; its docstring is the default message and says what to do.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


class ImpastoError(Exception):
    """Something went wrong inside the service; the log has the details."""

    code: str = "internal"  # of the class; a client gives an error that it does not know its own

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return str(self.args[0])


class BadInput(ImpastoError):
    """The request cannot be served as it stands."""

    code = "bad_input"


class BadRequest(BadInput):
    """The request could not be read; see /docs for its form."""

    code = "bad_request"


class BadSpec(BadInput):
    """A parameter has a value that is not allowed."""

    code = "bad_spec"


class BadImage(BadInput):
    """The picture is damaged or incomplete; save it again as JPEG, PNG or WebP."""

    code = "bad_image"


class UnsupportedImage(BadImage):
    """Only JPEG, PNG and WebP pictures are taken, whatever the file is called."""

    code = "unsupported_image"


class ImageTooLarge(BadImage):
    """The picture has more pixels than are taken."""

    code = "image_too_large"


class InvalidProvenance(BadInput):
    """The file carries no record of how it was made, or a damaged one; take a PNG as Impasto made it."""

    code = "invalid_provenance"


class BadWebhook(BadInput):
    """A webhook must be a URL such as https://example.org/hook, without user name or fragment."""

    code = "bad_webhook"


class BadDataset(BadInput):
    """The data set cannot be used; build it again."""

    code = "bad_dataset"


class UploadTooLarge(BadInput):
    """The file is larger than is taken."""

    code = "upload_too_large"


class NotFound(ImpastoError):
    """There is nothing here."""

    code = "not_found"


class JobNotFound(NotFound):
    """There is no job with this id."""

    code = "job_not_found"


class BatchNotFound(NotFound):
    """There is no batch with this id."""

    code = "batch_not_found"


class ImageNotFound(NotFound):
    """There is no picture with this digest; upload it first."""

    code = "image_not_found"


class Conflict(ImpastoError):
    """The job is not in a state that allows this."""

    code = "conflict"


class JobNotEnded(Conflict):
    """The job has not ended yet; poll its status."""

    code = "job_not_ended"


class JobAlreadyEnded(Conflict):
    """The job has ended, or is about to: its parameters change no more. Retry it with others."""

    code = "job_already_ended"


class NoResult(Conflict):
    """The job ended without a picture; its status says why."""

    code = "no_result"


class ResultGone(Conflict):
    """The picture is no longer kept."""

    code = "result_gone"


class IdempotencyConflict(Conflict):
    """The Idempotency-Key was used for another request; take a new one."""

    code = "idempotency_conflict"


class Unauthorized(ImpastoError):
    """Send an API key as `Authorization: Bearer ...`; whoever runs the service makes one with `impasto keys create`."""

    code = "unauthorized"


class RetryLater(ImpastoError):
    """Try again in a few seconds."""

    code = "retry_later"

    def __init__(self, message: str | None = None, retry_seconds: float = 2) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class QuotaExceeded(RetryLater):
    """You have as many jobs waiting and running as you may; try again when one has ended."""

    code = "quota_exceeded"


class RateLimited(RetryLater):
    """You ask more often than you may; wait for as long as Retry-After says."""

    code = "rate_limited"


class TooManyStreams(RetryLater):
    """You watch as many jobs at a time as you may; end a stream, or poll."""

    code = "too_many_streams"


class Unavailable(RetryLater):
    """The service cannot take this now; try again in a few seconds."""

    code = "unavailable"


class NoWorker(Unavailable):
    """No worker is there to tell; try again when one is connected."""

    code = "no_worker"


class StoreUnavailable(Unavailable):
    """The job store does not answer; try again in a few seconds."""

    code = "store_unavailable"


class StorageFull(Unavailable):
    """Pictures cannot be stored at the moment; try again later."""

    code = "storage_full"


class QueueFull(Unavailable):
    """As many jobs are waiting as are taken; try again later."""

    code = "queue_full"


class WeightsUnavailable(ImpastoError):
    """The network's weights are not on this machine; run `impasto weights fetch`."""

    code = "weights_unavailable"


class BadWeights(ImpastoError):
    """The weights file is not what it should be; fetch or import it again."""

    code = "bad_weights"


class Diverged(ImpastoError):
    """The optimisation left the finite numbers; lower the weights or choose optimizer=adam."""

    code = "diverged"

    def __init__(self, message: str | None = None, picture: "Image.Image | None" = None) -> None:
        super().__init__(message)
        self.picture = picture  # the last that was good


class OutOfMemory(ImpastoError):
    """The picture needs more memory than this worker has; make size smaller."""

    code = "out_of_memory"


class WorkerLost(ImpastoError):
    """The workers that ran this job died; it was tried as often as is allowed."""

    code = "worker_lost"


class DeadlineExceeded(ImpastoError):
    """The job's deadline came before its end."""

    code = "deadline_exceeded"


class ServiceUnreachable(ImpastoError):
    """No Impasto service answers; start one with `impasto up` or set --url."""

    code = "service_unreachable"


class BadSettings(ImpastoError):
    """A setting is wrong; docs/operations.md lists them all."""

    code = "bad_settings"


class Interrupt(BaseException):
    """The run is asked to stop. Not an Exception, so that no `except Exception` swallows it."""


class LeaseLost(Interrupt):
    """The job belongs to another worker now, or to nobody; drop it without a word."""


class ShuttingDown(Interrupt):
    """The worker is going away; hand the job back."""


class DeviceLost(Interrupt):
    """The device gives nothing but errors until this process ends; another process may go on."""
