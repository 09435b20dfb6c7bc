"""Optimisers: update rules, their state on flat buffers, and schedules."""

from culux.optim import schedules as schedules
from culux.optim.combinators import chain as chain
from culux.optim.combinators import clip_norm as clip_norm
from culux.optim.combinators import clip_value as clip_value
from culux.optim.combinators import groups as groups
from culux.optim.combinators import weight_decay as weight_decay
from culux.optim.destructure import destructure as destructure
from culux.optim.rules import Adam as Adam
from culux.optim.rules import AdamW as AdamW
from culux.optim.rules import Descent as Descent
from culux.optim.rules import Lion as Lion
from culux.optim.rules import Momentum as Momentum
from culux.optim.rules import Nesterov as Nesterov
from culux.optim.rules import RMSProp as RMSProp
from culux.optim.rules import Rule as Rule
from culux.optim.state import OptimizerState as OptimizerState
from culux.optim.state import adjust as adjust
from culux.optim.state import freeze as freeze
from culux.optim.state import setup as setup
from culux.optim.state import thaw as thaw
from culux.optim.state import update as update
from culux.optim.state import update_in_place as update_in_place
