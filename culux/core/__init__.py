"""The layer contract: layers, bound views, functors, and what makes their parameters and states."""

from culux.core.compact import compact as compact
from culux.core.functors import functor as functor
from culux.core.interface import apply as apply
from culux.core.interface import initial_parameters as initial_parameters
from culux.core.interface import initial_states as initial_states
from culux.core.interface import output_shape as output_shape
from culux.core.interface import parameter_length as parameter_length
from culux.core.interface import setup as setup
from culux.core.interface import state_length as state_length
from culux.core.interface import stateless_apply as stateless_apply
from culux.core.interface import test_mode as test_mode
from culux.core.interface import train_mode as train_mode
from culux.core.interface import update_state as update_state
from culux.core.layer import ContainerLayer as ContainerLayer
from culux.core.layer import Layer as Layer
from culux.core.layer import WrapperLayer as WrapperLayer
from culux.core.mapping import layer_map as layer_map
from culux.core.view import StatefulLayer as StatefulLayer
from culux.core.view import View as View
