"""Training a classifier with timm's own parts, resumable at any step, in one process or several.

`recipe` turns the keys of [training] into timm's objects, `data` says which image every step sees and how it is
augmented, `trainer` has the loop, `processes` the other processes, `states` what is saved on the way. Everything
random is a function of (seed, step) or (seed, epoch, image): a training that goes on from a saved state, on however
many loader workers, does what it would have done.
"""

from simhpc.zoo.training.data import LabelledImages
from simhpc.zoo.training.processes import Processes, joined
from simhpc.zoo.training.recipe import MakeTask, check_settings
from simhpc.zoo.training.seeding import seed_everything
from simhpc.zoo.training.states import States
from simhpc.zoo.training.trainer import Step, Trainer, TrainingDivergedError

__all__ = [
    "LabelledImages",
    "MakeTask",
    "Processes",
    "States",
    "Step",
    "Trainer",
    "TrainingDivergedError",
    "check_settings",
    "joined",
    "seed_everything",
]
