"""Methods: what is distilled. A new one is a loss, a frozen dataclass here, and a line in this table."""

from switchkd.methods.align_kd import AlignKD
from switchkd.methods.align_ti import AlignTI
from switchkd.methods.bild import BiLD
from switchkd.methods.compodistill import CompoDistill
from switchkd.methods.em_kd import EMKD
from switchkd.methods.feature_kd import FeatureKD
from switchkd.methods.kd import KD
from switchkd.methods.llava_kd import LLaVAKD
from switchkd.methods.llava_mod import LLaVAMoD
from switchkd.methods.method import Method, Need
from switchkd.methods.sft import SFT
from switchkd.methods.switch_kd import SwitchKD

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        SFT,
        KD,
        BiLD,
        SwitchKD,
        FeatureKD,
        LLaVAKD,
        LLaVAMoD,
        AlignKD,
        EMKD,
        CompoDistill,
        AlignTI,
    )
}

__all__ = [
    "EMKD",
    "KD",
    "METHODS",
    "SFT",
    "AlignKD",
    "AlignTI",
    "BiLD",
    "CompoDistill",
    "FeatureKD",
    "LLaVAKD",
    "LLaVAMoD",
    "Method",
    "Need",
    "SwitchKD",
]
