"""The exceptions of the science, one tree.

LoomweightError
├── InvalidRequest      the caller can mend it: says how
├── InvalidBundle       a bundle is incomplete, altered or of another version
├── InvalidCheckpoint   tensors that do not fit the architecture they claim
├── GateFailed          a trainer stage did not reach the quality the next stage needs
└── Canceled            the caller asked to stop; raised between two denoising steps
"""


class LoomweightError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidRequest(LoomweightError):
    """The request cannot be served as it is; the message says what to change."""


class InvalidBundle(LoomweightError):
    """A bundle on disk is incomplete, altered or of an unknown version."""


class InvalidCheckpoint(LoomweightError):
    """Tensors do not fit the architecture they claim to be of."""


class GateFailed(LoomweightError):
    """A stage's result is too poor to build on."""


class Canceled(LoomweightError):
    """The caller's cancel flag turned true while sampling."""
