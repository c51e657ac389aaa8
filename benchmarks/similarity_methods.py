"""Every way to compare models, as unit vectors whose cosine is the similarity: rivals, controls, and upper bounds.

Rivals and controls get what helps them: the mean over training models is taken off, and statistics, norms and singular
values are divided by their deviation over training models.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from benchmarks.retrieval import Floats
from loomweight.similarity import baselines
from loomweight.similarity.layers import Reading
from loomweight.similarity.network import unit
from trainer import nets
from trainer.data import Domain
from trainer.lps import Collection
from trainer.modelset import ModelSet, SetModel

Tensors = dict[str, Tensor]

BASELINES = ("cosine", "aligned cosine", "layer-normalised cosine", "statistics", "singular values")
CONTROLS = ("tensor norms", "vectors only", "running statistics only")
UPPER = ("logits on probe images", "linear CKA on probe images")


def state_dicts(sets: Sequence[ModelSet], examples: Collection) -> list[Tensors]:
    """The tensors of a collection's models."""
    owner = {id(m): s for s in sets for m in s.models}
    return [owner[id(m)].tensors(m) for m in examples.models]


def standard(vectors: Tensor, train: NDArray[np.bool_], *, scaled: bool) -> Floats:
    """Less the mean over training models, over their deviation if `scaled`, at unit length."""
    chosen = vectors[torch.from_numpy(train)]
    x = vectors - chosen.mean(0)
    if scaled:
        x = x / chosen.std(0).clamp_min(1e-6)
    found: Floats = unit(x.double()).numpy()
    return found


def rival(name: str, examples: Collection, tensors: Sequence[Tensors], train: NDArray[np.bool_]) -> Floats | None:
    """Vectors of a baseline or control; None where models of these architectures cannot be compared by it."""
    made = _RIVALS[name]
    scaled = name in ("statistics", "singular values", *CONTROLS)
    found = made(examples, tensors)
    if len({len(v) for v in found}) > 1 or not len(found[0]):
        return None
    return standard(torch.stack(found), train, scaled=scaled)


def _aligned(examples: Collection, _: Sequence[Tensors]) -> list[Tensor]:
    if len({r.fingerprint for r in examples.readings}) > 1:
        return [torch.zeros(0)]
    return [baselines.aligned_to(examples.readings[0], r) for r in examples.readings]


_RIVALS: dict[str, Callable[[Collection, Sequence[Tensors]], list[Tensor]]] = {
    "cosine": lambda _, tensors: [baselines.raw(t) for t in tensors],
    "aligned cosine": _aligned,
    "layer-normalised cosine": lambda _, tensors: [baselines.layerwise(t) for t in tensors],
    "statistics": lambda _, tensors: [baselines.statistics(t) for t in tensors],
    "singular values": lambda examples, _: [baselines.singular_values(r) for r in examples.readings],
    "tensor norms": lambda _, tensors: [baselines.norms(t) for t in tensors],
    "vectors only": lambda _, tensors: [baselines.statistics(t, only="vectors") for t in tensors],
    "running statistics only": lambda _, tensors: [baselines.statistics(t, only="running") for t in tensors],
}


def pooled(reading: Reading) -> Tensor:
    """s(W) and normalised spectra at 16 quantiles, of the first layer, the last, and the mean over layers.

    What remains of statistics and singular values between networks of different architectures: (3 * 23,).
    """
    rows = []
    for layer in reading.layers:
        x = layer.weight.flatten().numpy()
        values = torch.linalg.svdvals(layer.weight.flatten(1))
        spectrum = F.interpolate((values / values.norm().clamp_min(1e-12))[None, None], 16, mode="linear")[0, 0]
        stats = np.concatenate(([x.mean(), x.var()], np.quantile(x, baselines.QUANTILES))).astype(np.float32)
        rows.append(torch.cat((torch.from_numpy(stats), spectrum)))
    table = torch.stack(rows)
    return torch.cat((table[0], table[-1], table.mean(0)))


def probe_images(domain: Domain, count: int, seed: int) -> Tensor:
    """Images (n, 3, 32, 32) in [0, 1] drawn from all classes of a domain's test split."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(domain.images))[:count])
    return torch.from_numpy(np.ascontiguousarray(domain.images[chosen])).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def by_running(models: Sequence[SetModel], tensors: Sequence[Tensors], images: Tensor) -> dict[str, Floats]:
    """The upper bounds: the models are run on shared images."""
    logits, kernels = [], []
    for model, weights in zip(models, tensors, strict=True):
        net = nets.make(model.network, 2, Generator().manual_seed(0))
        net.load_state_dict(weights)
        net.eval()
        seen: list[Tensor] = []
        head = net.get_submodule("head")
        if isinstance(head, nn.Linear):
            hook = head.register_forward_pre_hook(lambda _, given, kept=seen: kept.append(given[0]))
            out = net(images)
            hook.remove()
        features = seen[0] if seen else out
        centred = features - features.mean(0)
        gram = centred @ centred.T
        kernels.append(unit(gram.flatten()))
        margin = out[:, 1] - out[:, 0]
        logits.append(unit(margin - margin.mean()))
    everyone = np.ones(len(models), bool)
    return {
        UPPER[0]: unit(torch.stack(logits).double()).numpy(),
        UPPER[1]: standard(torch.stack(kernels), everyone, scaled=False),
    }
