"""What users call, on CuPy arrays, and the launches that it takes: asserted by tests, printed by `make kernels`."""

from __future__ import annotations

import numpy as np

import culux
from culux import losses, nn
from culux.optim import Adam, AdamW, Descent, Lion, Momentum, chain, clip_norm
from culux.testing import cost


def normal(cp, *shape, dtype="float32", seed=0):
    return cp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def operations(cp):
    """By name: a function of float arrays, and those arrays."""
    x, weight, bias = normal(cp, 16, 24), normal(cp, 20, 24), normal(cp, 20)
    image, scale, shift = normal(cp, 4, 6, 5, 5), normal(cp, 6), normal(cp, 6)
    kernel, mirrored = normal(cp, 20, 6, 3, 3), normal(cp, 6, 20, 3, 3)
    labels, ids = cp.asarray(np.arange(16) % 20), cp.asarray(np.arange(12) % 7)
    state = culux.gpu_device()(culux.random.rng_state(0))
    mean, var = cp.zeros(6, "float32"), cp.ones(6, "float32")

    def batchnorm(*args, training):
        return nn.batchnorm(*args, mean, var, training=training, activation=nn.relu)[0]

    return {
        "dense relu": (lambda *a: nn.dense(*a, activation=nn.relu), (x, weight, bias)),
        "dense gelu": (lambda *a: nn.dense(*a, activation=nn.gelu), (x, weight, bias)),
        "batchnorm relu": (lambda *a: batchnorm(*a, training=True), (image, scale, shift)),
        "batchnorm test mode": (lambda *a: batchnorm(*a, training=False), (image, scale, shift)),
        "layernorm": (lambda *a: nn.layernorm(*a, ndim=1), (x, normal(cp, 24), normal(cp, 24))),
        "rmsnorm": (lambda *a: nn.rmsnorm(*a, ndim=1), (x, normal(cp, 24))),
        "gelu": (nn.gelu, (x,)),
        "softmax": (nn.softmax, (x,)),
        "log_softmax": (nn.log_softmax, (x,)),
        "cross entropy": (lambda a: nn.softmax_cross_entropy(a, labels), (normal(cp, 16, 20),)),
        "dropout": (lambda a: nn.dropout(a, state, p=0.3, training=True)[0], (x,)),
        "embedding": (lambda a: nn.embedding(ids, a), (normal(cp, 7, 8),)),
        "conv relu": (lambda *a: nn.conv(*a, activation=nn.relu, padding=1), (image, kernel, bias)),
        "conv without bias": (lambda *a: nn.conv(*a, stride=2), (image, kernel)),
        "conv depthwise": (lambda *a: nn.conv(*a, activation=nn.gelu, groups=6), (image, kernel[:6, :1].copy(), scale)),
        "conv transpose": (lambda *a: nn.conv_transpose(*a, activation=nn.relu, stride=2), (image, mirrored, bias)),
        "maxpool": (lambda a: nn.maxpool(a, 2), (image,)),
        "meanpool": (lambda a: nn.meanpool(a, 2), (image,)),
    }


def at_other_sizes(cp):
    """Operations at the shapes for which other kernels serve."""
    plane, one = normal(cp, 1, 1, 250, 250), cp.ones(1, "float32")
    pixels, classes = normal(cp, 2, 5, 3, 3), cp.asarray(np.arange(18).reshape(2, 3, 3) % 5)
    many = cp.asarray(np.arange(40_000) % 7)
    labels = cp.asarray(np.arange(3) % 5)
    found = {
        "dense relu of 512 x 520 x 520": (
            lambda *a: nn.dense(*a, activation=nn.relu), (normal(cp, 512, 520), normal(cp, 520, 520), normal(cp, 520)),
        ),
        "conv of 2 x 50 x 50 positions": (
            lambda *a: nn.conv(*a, activation=nn.relu, padding=1),
            (normal(cp, 2, 3, 50, 50), normal(cp, 4, 3, 3, 3), normal(cp, 4)),
        ),
        "batchnorm of 62500 values": (
            lambda *a: nn.batchnorm(*a, None, None, training=True)[0], (plane, one, cp.zeros(1, "float32")),
        ),
        "softmax of columns": (lambda a: nn.softmax(a, axis=0), (normal(cp, 30, 20),)),
        "mean cross entropy": (lambda a: losses.cross_entropy(a, labels), (normal(cp, 3, 5),)),
        "cross entropy of pixels": (lambda a: nn.softmax_cross_entropy(a, classes), (pixels,)),
        "embedding of 40000 ids": (lambda a: nn.embedding(many, a), (normal(cp, 7, 4),)),
        "embedding of 40 ids": (lambda a: nn.embedding(many[:40].copy(), a), (normal(cp, 7, 4),)),
    }  # fmt: skip
    for function, gates, size in ((nn.rnn, 1, 6), (nn.gru, 3, 6), (nn.lstm, 4, 6), (nn.lstm, 4, 128)):
        weights = [normal(cp, gates * size, n) for n in (5, size)] + [normal(cp, gates * size)] * 2
        call = f"4 steps of {function.__name__} {size}"
        found[call] = (lambda *a, f=function: f(*a)[0], (normal(cp, 3, 4, 5), *weights))
    for width in (600, 7000):
        row, ones = normal(cp, 2, width), cp.ones(width, "float32")
        found[f"layernorm of {width}"] = (lambda *a: nn.layernorm(*a, ndim=1), (row, ones, ones * 0))
        found[f"softmax of {width}"] = (nn.softmax, (row,))
    return found


def launches(cp):
    """By name of a call: its cost, of every operation both ways, and of an update by every rule."""
    found = {}
    for name, (function, arrays) in (operations(cp) | at_other_sizes(cp)).items():
        function(*arrays)
        found[f"{name} forward"] = cost(function, *arrays)
        y, pullback = culux.vjp(function, *arrays)
        dy = cp.ones_like(y)
        pullback(dy)
        found[f"{name} backward"] = cost(pullback, dy)
    state = culux.gpu_device()(culux.random.rng_state(0))
    culux.random.uniform(state, 10)
    found["uniform"] = cost(culux.random.uniform, state, 10)
    ps = culux.gpu_device()(culux.setup(0, culux.Chain(culux.Dense(5, 7), culux.BatchNorm(7), culux.Dense(7, 3)))[0])
    grads = culux.tree.map(cp.ones_like, ps)
    for name, rule in RULES.items():
        state, moved = culux.optim.update(culux.optim.setup(rule, ps), ps, grads)
        found[f"{name} update"] = cost(culux.optim.update, state, moved, grads)
    return found


RULES = {
    "Adam": Adam(),
    "AdamW": AdamW(),
    "Momentum": Momentum(),
    "Descent": Descent(),
    "Lion": Lion(),
    "Adam after clip_norm": chain(clip_norm(1.0), Adam()),
}
