"""The activations: records, callable on arrays and traced arrays of any shape; the dtype is kept.

A record with parameters gives variants: ``leakyrelu.replace(slope=0.2)``, which is ``LeakyRelu(0.2)``.
"""

from __future__ import annotations

from culux.nn.piecewise import (
    Celu,
    Elu,
    HardSigmoid,
    HardSwish,
    HardTanh,
    Identity,
    LeakyRelu,
    Relu,
    Relu6,
    Selu,
    SoftShrink,
    Trelu,
)
from culux.nn.smooth import (
    Gelu,
    GeluErf,
    Lisht,
    LogCosh,
    LogSigmoid,
    Mish,
    Sigmoid,
    Softplus,
    Softsign,
    Swish,
    Tanh,
    TanhShrink,
)

__all__ = [
    "celu",
    "elu",
    "gelu",
    "gelu_erf",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "identity",
    "leakyrelu",
    "lisht",
    "logcosh",
    "logsigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "softplus",
    "softshrink",
    "softsign",
    "swish",
    "tanh",
    "tanhshrink",
    "trelu",
]

identity = Identity()
"""``x``."""
relu = Relu()
"""``max(x, 0)``."""
relu6 = Relu6()
"""``min(max(x, 0), 6)``."""
leakyrelu = LeakyRelu()
"""``x`` where x > 0, else ``0.01 x``; `leakyrelu.replace(slope=0.2)` is a variant."""
elu = Elu()
"""``x`` where x > 0, else ``exp(x) - 1``."""
selu = Selu()
"""``1.0507 x`` where x > 0, else ``1.7581 (exp(x) - 1)``."""
celu = Celu()
"""``x`` where x > 0, else ``alpha (exp(x / alpha) - 1)`` with alpha 1."""
gelu = Gelu()
"""``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``."""
gelu_erf = GeluErf()
"""``x / 2 (1 + erf(x / sqrt(2)))``."""
swish = Swish()
"""``x sigmoid(x)``."""
hardswish = HardSwish()
"""``x min(max(x / 6 + 1 / 2, 0), 1)``."""
mish = Mish()
"""``x tanh(log(1 + exp(x)))``."""
sigmoid = Sigmoid()
"""``1 / (1 + exp(-x))``."""
hardsigmoid = HardSigmoid()
"""``min(max(x / 6 + 1 / 2, 0), 1)``."""
logsigmoid = LogSigmoid()
"""``-log(1 + exp(-x))``."""
tanh = Tanh()
"""``tanh(x)``."""
hardtanh = HardTanh()
"""``min(max(x, -1), 1)``."""
tanhshrink = TanhShrink()
"""``x - tanh(x)``."""
softplus = Softplus()
"""``log(1 + exp(x))``."""
softsign = Softsign()
"""``x / (1 + |x|)``."""
softshrink = SoftShrink()
"""``x - min(max(x, -1/2), 1/2)``."""
lisht = Lisht()
"""``x tanh(x)``."""
logcosh = LogCosh()
"""``log(cosh(x))``."""
trelu = Trelu()
"""``x`` where x > 1, else 0."""
