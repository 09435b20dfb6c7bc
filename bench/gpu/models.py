"""Whole training steps, against torch and jax on the same GPU."""

from __future__ import annotations

import importlib.util
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import culux
from bench.gpu.timing import host_microseconds
from bench.problems import DIGITS, MLP, MLP7BN

MODELS = {"mlp7bn": MLP7BN, "digits": DIGITS}
STEPS_COMPARED = 3

Step = Callable[[], Any]
"""One training step; returns the loss before it, as something with ``float``."""


@dataclass(frozen=True)
class Stepped:
    """One library on one model: microseconds of a step, and its first losses; or what went wrong."""

    model: str
    library: str
    microseconds: float | None = None
    losses: tuple[float, ...] = ()
    problem: str = ""


def measure(*, calls: int, rounds: int, precision: str) -> Iterator[Stepped]:
    """Every library on every model; losses of the first steps show that they compute the same."""
    for model, problem in MODELS.items():
        for library, (make, wait) in LIBRARIES.items():
            if library != "culux eager" and importlib.util.find_spec(library.split()[0]) is None:
                continue
            try:
                with culux.matmul_precision(precision):
                    step = make(problem, precision)
                    losses = tuple(float(step()) for _ in range(STEPS_COMPARED))
                    time = host_microseconds(step, wait, calls=calls, rounds=rounds)
                yield Stepped(model, library, time, losses)
            except Exception:  # a peer that fails is a row that says so
                yield Stepped(model, library, problem=traceback.format_exc(limit=-3))


def _culux(problem: MLP, precision: str) -> Step:
    from bench.ours import train_state
    from culux.losses import CrossEntropyLoss
    from culux.training import TrainState, single_train_step

    device = culux.gpu_device(force=True)
    on_host = train_state(problem)
    state = TrainState(on_host.layer, device(on_host.parameters), device(on_host.states), on_host.rule)
    batch, objective = device(problem.data()), CrossEntropyLoss()

    def step() -> Any:
        nonlocal state
        loss, _, state = single_train_step(objective, batch, state)
        return loss

    return step


def _torch(problem: MLP, precision: str, mode: str | None = None) -> Step:
    import torch

    from bench.peers import TorchTraining

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    net = TorchTraining(problem)
    net.model.to("cuda")
    # Dynamo does not look into the fused step, so what is compiled is the other one.
    kind = {"fused": True} if mode is None else {"capturable": True}
    net.optimiser = torch.optim.Adam(net.model.parameters(), lr=problem.learning_rate, **kind)
    x, labels = (torch.from_numpy(a).to("cuda") for a in problem.data())
    if mode is None:
        return lambda: net.step(x, labels).detach()
    forward = torch.compile(lambda x, labels: torch.nn.functional.cross_entropy(net.model(x), labels), mode=mode)
    update = torch.compile(lambda: net.optimiser.step(), mode=mode)

    def step() -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        net.optimiser.zero_grad(set_to_none=True)
        loss = forward(x, labels)
        loss.backward()
        update()
        return loss.detach()

    return step


def _jax(problem: MLP, precision: str) -> Step:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "gpu":
        raise RuntimeError(f"jax has no GPU here: it computes on {jax.default_backend()}")
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if precision == "tf32" else "float32")
    x, labels = (jnp.asarray(a) for a in problem.data())
    ps = [jnp.asarray(a) for a in problem.parameters()]
    hidden = problem.widths[1:-1]
    running = [(jnp.zeros(n), jnp.ones(n)) for n in hidden]

    def loss_of(ps: Any, running: Any) -> Any:
        h, moved = x, []
        for i, (mean, var) in enumerate(running):
            weight, bias, scale, shift = ps[4 * i : 4 * i + 4]
            z = h @ weight.T + bias
            m, v = z.mean(0), z.var(0)
            rows = z.shape[0]
            moved.append((0.9 * mean + 0.1 * m, 0.9 * var + 0.1 * v * rows / (rows - 1)))
            h = jax.nn.relu((z - m) * jax.lax.rsqrt(v + 1e-5) * scale + shift)
        logits = h @ ps[-2].T + ps[-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean(), moved

    def update(ps: Any, running: Any, m: Any, v: Any, count: Any) -> Any:
        (loss, running), grads = jax.value_and_grad(loss_of, has_aux=True)(ps, running)
        count = count + 1
        m = [0.9 * a + 0.1 * g for a, g in zip(m, grads, strict=True)]
        v = [0.999 * a + 0.001 * g * g for a, g in zip(v, grads, strict=True)]
        c1, c2 = 1 - 0.9**count, 1 - 0.999**count
        ps = [
            p - problem.learning_rate * (a / c1) / (jnp.sqrt(b / c2) + 1e-8) for p, a, b in zip(ps, m, v, strict=True)
        ]
        return loss, ps, running, m, v, count

    jitted = jax.jit(update, donate_argnums=(0, 1, 2, 3, 4))
    zeros = [[jnp.zeros_like(p) for p in ps] for _ in range(2)]
    carried: list[Any] = [ps, running, *zeros, jnp.zeros((), np.float32)]

    def step() -> Any:
        loss, *carried[:] = jitted(*carried)
        return loss

    return step


def _wait_cupy() -> None:
    import cupy

    cupy.cuda.Device().synchronize()


def _wait_torch() -> None:
    import torch

    torch.cuda.synchronize()


def _wait_jax() -> None:
    import jax

    jax.effects_barrier()
    (jax.numpy.zeros(()) + 0).block_until_ready()


LIBRARIES: dict[str, tuple[Callable[[MLP, str], Step], Callable[[], None]]] = {
    "culux eager": (_culux, _wait_cupy),
    "torch eager": (_torch, _wait_torch),
    "torch compile reduce-overhead": (lambda p, precision: _torch(p, precision, "reduce-overhead"), _wait_torch),
    "torch compile max-autotune": (lambda p, precision: _torch(p, precision, "max-autotune"), _wait_torch),
    "jax jit": (_jax, _wait_jax),
}
