"""`CCATrainer` as the package hands it out: its `push_to_hub` publishes like `cca push`.

The Trainer's own room cannot import this one, so the function that publishes is set here.
"""

from cca_hf.recipes import attribute_trainer

from .publishing import push_model


class CCATrainer(attribute_trainer.CCATrainer):
    __doc__ = attribute_trainer.CCATrainer.__doc__
    publish = staticmethod(push_model)
