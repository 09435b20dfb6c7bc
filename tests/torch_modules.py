"""What the tests of `culux.transform` and of `TorchLayer` share."""

from __future__ import annotations

import numpy as np

import culux


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def custom(torch):
    """A module with a forward of its own: no culux layer is known for it."""

    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, x):
            return x + torch.relu(self.norm(self.linear(x)))

    return Residual()


def torch_gradients(torch, module, x):
    """Torch's result for sum(y * y), and the gradients of its parameters by name and of x."""
    inputs = torch.from_numpy(x.copy()).requires_grad_()
    y = module(inputs)
    (y * y).sum().backward()
    parameters = dict(module.named_parameters())
    grads = {name: p.detach().numpy() * 0 if p.grad is None else p.grad.numpy() for name, p in parameters.items()}
    return y.detach().numpy(), grads, inputs.grad.numpy()


def culux_gradients(layer, x, ps, st):
    def loss(ps, x):
        y, new = layer(x, ps, st)
        return (y * y).sum(), (y, new)

    (_, (y, new)), (grads, dx) = culux.value_and_gradient(loss, ps, x, has_aux=True)
    return y, new, grads, dx


def close(got, expected, dtype=np.float32):
    tolerance = 1e-9 if dtype == np.float64 else 2e-4
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
