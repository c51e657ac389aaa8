"""The weights of a checkpoint multiplied out in order, on probes: what each layer makes of them, in no unit's order.

Chain alignment (follow-up code of LPS, arXiv 1907.11943) compares networks by C^T C, C being the product of the layers'
matrices: no order of hidden units can change it. Here the product is applied to P probes instead of to every
possible input, with a rectifier between layers or without one, and every layer l gives the Gram matrix of its
responses R_l: (P, P), centred over probes. Hidden orders leave it as it is; so does the order of classes, and any
rescaling of a layer.

A state dict does not say where its network pools, strides or adds. The chain is read in one fixed way instead: a
convolution keeps the map's size and halves it where it has more outputs than inputs; the map is averaged, or cut into
as many fields as a linear layer reads, where the first linear layer follows. No image is used, and the true network
is never run.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from loomweight.similarity.layers import INPUT, MEAN, Normalisation, Reading, ReadLayer

GREY = (0.299, 0.587, 0.114)
BUDGET = 8e9  # multiplications for one checkpoint: about half a second on one core
MAX_SIGNAL = 2**25  # values between two layers, for all probes together


def smooth_noise(count: int, side: int, generator: Generator, *, slope: float = 1.5) -> Tensor:
    """Coloured noise with the spectrum of photographs, |f|^-slope, unit variance: (count, 3, side, side)."""
    f = torch.fft.fftfreq(side)
    radius = (f[:, None].square() + f.square()).sqrt().clamp_min(1 / side)
    spectrum = torch.fft.fft2(torch.randn(count, 3, side, side, generator=generator)) * radius**-slope
    # Channels of photographs go together: correlations between neighbouring channels as in most image sets.
    mix = torch.linalg.cholesky(torch.tensor([[1.0, 0.85, 0.7], [0.85, 1.0, 0.85], [0.7, 0.85, 1.0]]))
    noise = torch.einsum("ij,pjhw->pihw", mix, torch.fft.ifft2(spectrum).real)
    return noise / noise.std()


def responses(reading: Reading, probes: Tensor, *, rectified: bool) -> list[Tensor]:
    """What each layer makes of probes (P, 3, S, S): one (P, units) a layer, averaged over the map; differentiable.

    `rectified` puts max(0, .) between layers and lets maps shrink by their maximum; without it everything is linear
    but for normalisations that have no statistics of their own.
    """
    layers = reading.layers
    probes = F.adaptive_avg_pool2d(probes, affordable(reading, probes.shape[0], probes.shape[-1]))
    last_use = {layer.link.source: i for i, layer in enumerate(layers)}
    signals: dict[int, Tensor] = {}
    given: list[Tensor] = []
    current = probes
    for index, layer in enumerate(layers):
        final = index == len(layers) - 1
        source = _source(layer, probes, current, signals)
        x = _apply(layer, source)
        if rectified and not final:
            x = x.relu()
        if x.ndim == 4 and x.shape[-1] > 1 and _halves(layer):
            x = F.max_pool2d(x, 2) if rectified else F.avg_pool2d(x, 2)
        if layer.link.joins:
            x = _joined(x, current)
        signals[index] = current = x = _in_range(x)
        for done in [k for k in signals if last_use.get(k, -1) <= index and k != index]:
            del signals[done]
        given.append(x.mean((2, 3)) if x.ndim == 4 else x)
    return given


def _halves(layer: ReadLayer) -> bool:
    return layer.kind == "conv" and layer.outputs > layer.weight.shape[1] * layer.link.groups


def affordable(reading: Reading, count: int, side: int) -> int:
    """The largest side, `side` or a half, quarter ... of it, within BUDGET multiplications and MAX_SIGNAL."""
    while side > 2:
        cost, now, largest = 0, side, 0
        for layer in reading.layers:
            cost += layer.weight.numel() * (now * now if layer.kind == "conv" else 1)
            if layer.kind == "conv":
                largest = max(largest, now * now * max(layer.outputs, layer.weight.shape[1]))
            now = max(1, now // 2) if _halves(layer) else now
        if cost * count <= BUDGET and largest * count <= MAX_SIGNAL:
            break
        side //= 2
    return side


def _in_range(x: Tensor) -> Tensor:
    """A deep chain without its skip connections can leave the range of floats: then its common factor is dropped."""
    size = float(x.detach().abs().amax())
    return x if 1e-8 < size < 1e8 or size == 0 else x / size


def _source(layer: ReadLayer, probes: Tensor, current: Tensor, signals: dict[int, Tensor]) -> Tensor:
    link, inputs = layer.link, layer.weight.shape[1]
    if link.source == INPUT:
        return _input(layer, probes)
    if link.source == MEAN:
        mean = current.mean(1, keepdim=True)
        if layer.kind != "conv" and mean.ndim == 4:
            mean = mean.mean((2, 3))
        return mean.expand(-1, inputs, *mean.shape[2:])
    return signals[link.source]


def _input(layer: ReadLayer, probes: Tensor) -> Tensor:
    """Probes as a first layer takes them: pictures, flattened pictures, or fixed random vectors for anything else."""
    inputs = layer.weight.shape[1]
    if layer.kind == "conv" and inputs == 3:
        return probes
    grey = (probes * probes.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if layer.kind == "conv":
        return grey.expand(-1, inputs, -1, -1)
    for channels, pictures in ((3, probes), (1, grey)):
        side = math.isqrt(inputs // channels)
        if (
            layer.kind == "linear"
            and side * side * channels == inputs
            and (side == 28 or (side == 32 and channels == 3))
        ):
            size = F.interpolate(pictures, (side, side), mode="bilinear", align_corners=False)
            return size.flatten(1)
    # Units of an unknown input have no order to be free of: the same vectors for every layer of this width.
    fixed = torch.randn(inputs, len(probes), generator=Generator().manual_seed(inputs)).T
    return fixed / math.sqrt(inputs) if layer.kind == "embedding" else fixed


def _apply(layer: ReadLayer, x: Tensor) -> Tensor:
    link, weight = layer.link, layer.weight
    if layer.kind == "conv":
        if x.ndim == 2:
            x = x[:, :, None, None]
        height, width = weight.shape[2:]
        if height > 2 * x.shape[2] or width > 2 * x.shape[3]:  # larger than what there is to see: its sum sees it all
            weight, height, width = weight.sum((2, 3), keepdim=True), 1, 1
        y = F.conv2d(x, weight, layer.bias, padding=(height // 2, width // 2), groups=link.groups)
        y = y[:, :, : x.shape[2], : x.shape[3]]
        return _normalised(y, layer.norm)
    if x.ndim == 4:
        fields = math.isqrt(link.spread)
        x = F.adaptive_avg_pool2d(x, fields).flatten(1)
    return _normalised(F.linear(x, weight[:, :, 0, 0], layer.bias), layer.norm)


def _normalised(x: Tensor, norm: Normalisation | None) -> Tensor:
    if norm is None:
        return x
    dims = tuple(range(1, x.ndim))
    x = (x - x.mean(dims, keepdim=True)) / (x.var(dims, keepdim=True, unbiased=False) + 1e-5).sqrt()
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return x * norm.scale.view(shape) + norm.shift.view(shape)


def _joined(x: Tensor, bypassed: Tensor) -> Tensor:
    if x.ndim != bypassed.ndim:
        return x
    if x.ndim == 4 and x.shape[2:] != bypassed.shape[2:]:
        side = (min(x.shape[2], bypassed.shape[2]), min(x.shape[3], bypassed.shape[3]))
        x, bypassed = F.adaptive_avg_pool2d(x, side), F.adaptive_avg_pool2d(bypassed, side)
    return x + bypassed


def gram(response: Tensor, *, last: bool) -> Tensor:
    """A layer's responses (P, units) as the upper triangle of their centred, unit-norm Gram matrix: (P (P + 1) / 2,).

    The inner product of two of these is linear CKA. Of the last layer, the mean over units is taken off first: a
    softmax does not see it. Responses that are the same for every probe give zeros.
    """
    if last and response.shape[1] > 1:
        response = response - response.mean(1, keepdim=True)
    centred = response - response.mean(0)
    centred = centred / centred.norm().clamp_min(1e-12)  # before squaring: tiny weights must not underflow
    product = centred @ centred.T
    product = product / product.norm().clamp_min(1e-12)
    rows, columns = torch.triu_indices(*product.shape)
    upper: Tensor = product[rows, columns] * torch.where(rows == columns, 1.0, math.sqrt(2))
    return upper


def tokens(reading: Reading, probes: Tensor, *, rectified: bool) -> Tensor:
    """One token a layer: (layers, P (P + 1) / 2)."""
    given = responses(reading, probes, rectified=rectified)
    return torch.stack([gram(r, last=i == len(given) - 1) for i, r in enumerate(given)])
