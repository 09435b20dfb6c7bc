"""Training: the train state, single steps, evaluation, and `fit` with its callbacks and checkpoints."""

from culux.training.callbacks import BestCheckpoint as BestCheckpoint
from culux.training.callbacks import Callback as Callback
from culux.training.callbacks import CSVLogger as CSVLogger
from culux.training.callbacks import EarlyStopping as EarlyStopping
from culux.training.callbacks import JSONLinesLogger as JSONLinesLogger
from culux.training.evaluation import accuracy as accuracy
from culux.training.evaluation import evaluate as evaluate
from culux.training.history import History as History
from culux.training.loop import fit as fit
from culux.training.run import Run as Run
from culux.training.state import TrainState as TrainState
from culux.training.steps import apply_gradients as apply_gradients
from culux.training.steps import compute_gradients as compute_gradients
from culux.training.steps import single_train_step as single_train_step
