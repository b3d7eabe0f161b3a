"""The models, whose code is saved with a checkpoint, and their registration with transformers' auto classes.

`AutoModel.from_pretrained(checkpoint)` knows the models after `import cca_hf.models` or any use of the package, such
as `from cca_hf import CCAModel`.
"""

from transformers import AutoConfig, AutoModel

from .configuration_baselines import ASENConfig, CSNConfig, SeparateConfig
from .configuration_cca import CCAConfig
from .modeling_asen import ASENModel
from .modeling_cca import CCAModel
from .modeling_csn import CSNModel
from .modeling_separate import SeparateModel

AutoConfig.register(CCAConfig.model_type, CCAConfig, exist_ok=True)
AutoConfig.register(CSNConfig.model_type, CSNConfig, exist_ok=True)
AutoConfig.register(ASENConfig.model_type, ASENConfig, exist_ok=True)
AutoConfig.register(SeparateConfig.model_type, SeparateConfig, exist_ok=True)
AutoModel.register(CCAConfig, CCAModel, exist_ok=True)
AutoModel.register(CSNConfig, CSNModel, exist_ok=True)
AutoModel.register(ASENConfig, ASENModel, exist_ok=True)
AutoModel.register(SeparateConfig, SeparateModel, exist_ok=True)
