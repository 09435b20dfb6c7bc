"""The exceptions of the stand-in: CuPy's, with its texts, and those for what a GPU would not notice."""

from __future__ import annotations


class StandinError(AssertionError):
    """What a GPU would do wrong without a word, or what the stand-in cannot say of it."""


class StreamRace(StandinError):
    """Two streams, or a stream and the host, used memory without an order between them."""


class CUDARuntimeError(RuntimeError):
    """A call that the fake runtime refuses."""


class CUDADriverError(RuntimeError):
    """A launch that the fake driver refuses."""


class CompileException(Exception):
    """What CuPy raises for a source that does not compile; its text is the compiler's log."""

    def __init__(self, msg, source, name, options, backend="nvrtc"):
        super().__init__(msg)
        self.source, self.name, self.options, self.backend = source, name, options, backend


class OutOfMemoryError(MemoryError):
    """No memory left in the pool or on the device."""

    def __init__(self, size, total, limit=0):
        limited = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{limited}).")


CAPTURE_ERRORS = {
    "IllegalState": "the operation cannot be performed in the present state",
    "StreamCaptureUnsupported": "operation not permitted when stream is capturing",
    "StreamCaptureInvalidated": "operation failed due to a previous error during capture",
    "StreamCaptureUnmatched": "the capture was not initiated in this stream",
    "StreamCaptureUnjoined": "capturing stream has unjoined work",
    "StreamCaptureIsolation": "dependency created on uncaptured work in another stream",
    "StreamCaptureImplicit": "operation would make the legacy stream depend on a capturing blocking stream",
    "CapturedEvent": "operation not permitted on an event last recorded in a capturing stream",
}


def capture_error(name):
    """The error of the runtime about a stream capture."""
    return CUDARuntimeError(f"cudaError{name}: {CAPTURE_ERRORS[name]}")


def disallowed(what):
    """CuPy's refusal of a transfer or a wait on a capturing stream, which leaves the capture valid."""
    return RuntimeError(f"the current stream is capturing, so {what} are disallowed")
