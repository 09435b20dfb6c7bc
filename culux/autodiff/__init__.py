"""Reverse-mode autodiff over plain NumPy and CuPy arrays: the tape, primitives and transforms."""

from culux.autodiff.debug import debug_mode as debug_mode
from culux.autodiff.primitives import Primitive as Primitive
from culux.autodiff.primitives import custom_gradient as custom_gradient
from culux.autodiff.primitives import primitive as primitive
from culux.autodiff.tracer import Tracer as Tracer
from culux.autodiff.transforms import grad as grad
from culux.autodiff.transforms import gradient as gradient
from culux.autodiff.transforms import stop_gradient as stop_gradient
from culux.autodiff.transforms import value_and_grad as value_and_grad
from culux.autodiff.transforms import value_and_gradient as value_and_gradient
from culux.autodiff.transforms import vjp as vjp
