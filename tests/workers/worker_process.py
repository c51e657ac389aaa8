"""`python -m tests.workers.worker_process`: the real worker, but for the generator. A step takes 0.1 s."""

import os
import time
from typing import Any

import workers.artifacts
from tests.workers import standin
from workers import app, runtime


class SlowStandIn(standin.StandIn):
    """As many denoising steps as the request says; the warm-up is quick."""

    @classmethod
    def load(cls, *_: object, **__: object) -> "SlowStandIn":
        if "BROKEN_BUNDLE" in os.environ:
            raise RuntimeError("this bundle is broken")
        return cls(on_step=lambda step: time.sleep(0.1))

    def generate(self, images: Any, labels: Any, options: Any, **hooks: Any) -> Any:
        self.steps = options.steps or 1
        hooks.setdefault("progress", lambda stage, step, steps: None)
        hooks.setdefault("canceled", lambda: False)
        return super().generate(images, labels, options, **hooks)


if __name__ == "__main__":
    runtime.Generator = SlowStandIn  # type: ignore[assignment,misc]
    workers.artifacts.to_onnx = standin.to_onnx  # type: ignore[assignment]
    app.main()
