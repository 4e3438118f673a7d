"""How long training and an epoch are, in optimizer steps."""

from math import ceil, inf

from lightning.pytorch import Trainer

from ftlit.errors import UserError


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimizer steps in an epoch. Raises `UserError` where the training loader has no length and no limit."""
    if trainer.num_training_batches == inf:
        trainer.fit_loop.setup_data()  # with max_steps alone nobody has asked for the loader yet
    batches = trainer.num_training_batches
    if batches == inf:
        raise UserError("the training loader has no length: set trainer.limit_train_batches to a whole number of batches")
    return max(1, ceil(batches / trainer.accumulate_grad_batches))


def training_length(trainer: Trainer) -> tuple[int, int]:
    """(optimizer steps, epochs) of the whole training. Raises `UserError` where it has no end."""
    steps = trainer.estimated_stepping_batches
    if steps == inf:
        raise UserError("a learning-rate schedule needs the end of training: set trainer.max_epochs or trainer.max_steps")
    return int(steps), ceil(steps / steps_per_epoch(trainer))
