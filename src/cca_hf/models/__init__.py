"""The models, whose code is saved with a checkpoint, and their registration with transformers' auto classes.

`AutoModel.from_pretrained(checkpoint)` knows the models after `import cca_hf.models` or any use of the package, such
as `from cca_hf import CCAModel`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .modeling_adde import ADDEModel
from .modeling_asen import ASENModel
from .modeling_cca import CCAModel
from .modeling_cca_recognition import CCAForAttributeRecognition
from .modeling_clear import CLEARForAttributeRecognition, CLEARModel
from .modeling_crossvit import CrossViTForImageClassification, CrossViTModel
from .modeling_csn import CSNModel
from .modeling_dcal import DCALForImageClassification, DCALModel
from .modeling_outfit import OutfitModel
from .modeling_separate import SeparateModel

for model in (
    CCAModel,
    CSNModel,
    ASENModel,
    SeparateModel,
    ADDEModel,
    OutfitModel,
    CrossViTModel,
    DCALModel,
    CLEARModel,
):
    AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
    AutoModel.register(model.config_class, model, exist_ok=True)

for classifier in (
    CrossViTForImageClassification,
    DCALForImageClassification,
    CLEARForAttributeRecognition,
    CCAForAttributeRecognition,
):
    AutoModelForImageClassification.register(classifier.config_class, classifier, exist_ok=True)
