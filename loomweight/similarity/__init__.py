"""Which tasks were these networks trained for? Learned similarity of checkpoints, from their weights alone."""

from loomweight.similarity.index import ZooIndex
from loomweight.similarity.layers import Reading, read
from loomweight.similarity.scoring import Calibration, Comparison, Embedding, Familiar, LayerPair, Similarity, Sketch

__all__ = [
    "Calibration",
    "Comparison",
    "Embedding",
    "Familiar",
    "LayerPair",
    "Reading",
    "Similarity",
    "Sketch",
    "ZooIndex",
    "read",
]
