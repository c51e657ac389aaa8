"""Reads the bundle's manifest, again whenever it changes: a new bundle needs no restart of the gateway."""

import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from service.catalogue.schemas import Bundle, Manifest, Target
from service.errors import Unavailable, UnknownTarget

_log = logging.getLogger(__name__)


class _Read(NamedTuple):
    stamp: tuple[int, int]
    bundle: Bundle
    targets: dict[str, Target]


class Catalogue:
    """The bundle in `directory`. Every method raises `Unavailable` while there is no readable one."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "bundle.json"
        self._last: _Read | None = None

    def bundle(self) -> Bundle:
        """Return the bundle."""
        return self._read().bundle

    def targets(self) -> tuple[Target, ...]:
        """Return its targets."""
        return tuple(self._read().targets.values())

    def target(self, target_id: str | None) -> Target:
        """Return a target, the default one for None. Raises `UnknownTarget`."""
        last = self._read()
        wanted = target_id or last.bundle.default_target
        if wanted not in last.targets:
            known = ", ".join(sorted(last.targets))
            raise UnknownTarget(f"There is no target {wanted!r}; choose one of {known}.", pointer="/target")
        return last.targets[wanted]

    def _read(self) -> _Read:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if self._last is None or self._last.stamp != stamp:
                self._last = _parse(stamp, self._path.read_bytes())
        except (OSError, ValidationError) as error:
            _log.warning("no bundle: %s", error)
            raise Unavailable("No bundle is installed here, or its manifest cannot be read.") from error
        return self._last


def _parse(stamp: tuple[int, int], text: bytes) -> _Read:
    manifest = Manifest.model_validate_json(text)
    bundle = Bundle(
        id=manifest.id,
        sha256=hashlib.sha256(text).hexdigest(),
        version=manifest.version,
        targets=tuple(target.id for target in manifest.targets),
        default_target=manifest.default_target or manifest.targets[0].id,
        defaults=manifest.defaults,
        card=manifest.card,
        files=manifest.files,
    )
    return _Read(stamp, bundle, {target.id: target for target in manifest.targets})
