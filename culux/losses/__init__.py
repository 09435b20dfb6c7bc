"""Losses: functions of a prediction and a target, and records of them that are training objectives too."""

from culux.losses.classes import BinaryCrossEntropyLoss as BinaryCrossEntropyLoss
from culux.losses.classes import CrossEntropyLoss as CrossEntropyLoss
from culux.losses.classes import HingeLoss as HingeLoss
from culux.losses.classes import HuberLoss as HuberLoss
from culux.losses.classes import Loss as Loss
from culux.losses.classes import MAELoss as MAELoss
from culux.losses.classes import MSELoss as MSELoss
from culux.losses.classes import NegativeLogLikelihoodLoss as NegativeLogLikelihoodLoss
from culux.losses.functional import binary_cross_entropy as binary_cross_entropy
from culux.losses.functional import cross_entropy as cross_entropy
from culux.losses.functional import hinge as hinge
from culux.losses.functional import huber as huber
from culux.losses.functional import mae as mae
from culux.losses.functional import mse as mse
from culux.losses.functional import negative_log_likelihood as negative_log_likelihood
