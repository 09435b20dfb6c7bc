"""Layers: frozen descriptions of computations; ``ps, st = culux.setup(rng, layer)`` makes their arrays."""

from culux.layers.basic import Dense as Dense
from culux.layers.basic import FlattenLayer as FlattenLayer
from culux.layers.basic import NoOpLayer as NoOpLayer
from culux.layers.basic import ReshapeLayer as ReshapeLayer
from culux.layers.basic import Scale as Scale
from culux.layers.basic import SelectDim as SelectDim
from culux.layers.basic import WrappedFunction as WrappedFunction
from culux.layers.containers import BranchLayer as BranchLayer
from culux.layers.containers import Chain as Chain
from culux.layers.containers import Parallel as Parallel
from culux.layers.containers import SkipConnection as SkipConnection
from culux.layers.dropout import Dropout as Dropout
from culux.layers.embedding import Embedding as Embedding
from culux.layers.normalize import BatchNorm as BatchNorm
from culux.layers.normalize import LayerNorm as LayerNorm
from culux.layers.normalize import RMSNorm as RMSNorm
from culux.layers.pooling import MaxPool as MaxPool
from culux.layers.pooling import MeanPool as MeanPool
