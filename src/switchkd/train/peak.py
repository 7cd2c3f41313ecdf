"""What a GPU can compute at most, to hold a step against: what its maker says, and what a bare matrix product reaches here."""

import logging
import re
from dataclasses import dataclass

import torch

#: Names of cards → TFLOP/s of dense bf16 matrix products that are added in float32. The first that is found in the name of the device
#: counts. GH200 and GB200: of one GPU. Sources, all NVIDIA's: the data sheets of the cards; the table of HGX B200 and GB200 NVL72 (4.5 and
#: 5 PFLOPS of one GPU); "Ada GPU Architecture" and "Ampere GA102 GPU Architecture", appendices, for RTX 4090 and 3090. A number "with
#: sparsity" is halved. Compared on 2026-11-27 with pages that quote these, but for H200 NVL, L4 and RTX A6000, of which none was found.
_PUBLISHED = (
    (r"\bGB200\b", 2500.0),
    (r"\bB200\b", 2250.0),
    (r"\bH200 NVL\b", 836.0),
    (r"\bG?H200\b", 989.0),
    (r"\bH100 NVL\b", 835.0),
    (r"\bH100 PCIe\b", 756.0),
    (r"\bH100\b.*\bHBM3\b", 989.0),
    (r"\bA100\b", 312.0),
    (r"\bA30\b", 165.0),
    (r"\bA40\b", 149.7),
    (r"\bA10\b", 125.0),
    (r"\bL40S\b", 362.0),
    (r"\bL40\b", 181.0),
    (r"\bL4\b", 121.0),
    (r"\bRTX A6000\b", 154.8),
    (r"\bRTX 4090\b", 165.2),
    (r"\bRTX 3090\b", 71.0),
)
#: A part of a card, and one that a laptop has to cool, has a part of its speed.
_PART = re.compile(r"\b(MIG|Laptop)\b")
#: Width of the matrices of the bare product, and how often it is made: some milliseconds on a large GPU.
_WIDTH, _TIMES = 8192, 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peak:
    """TFLOP/s of bf16 matrix products; None where it is not known."""

    published: float | None = None
    measured: float | None = None

    def shares(self, tflops: float) -> list[str]:
        """What part of the peaks this is: model FLOPs utilisation, by both denominators."""
        named = (("published", self.published), ("measured", self.measured))
        return [f"MFU {tflops / peak:.1%} of {peak:,.0f} TFLOP/s {name}" for name, peak in named if peak]


def find_peak(device: torch.device) -> Peak:
    """Both peaks of a device. A CPU has neither: there is no use in its share of a number that nobody has said."""
    if device.type != "cuda":
        return Peak()
    name = torch.cuda.get_device_name(device)
    peak = Peak(published_tflops(name), measure_tflops(device))
    if peak.published is None:
        _log.info(
            "%s: what its maker says of bf16 products is not known here, so MFU is of what was measured alone", name
        )
    measured = "no bf16 products" if peak.measured is None else f"{peak.measured:,.0f} TFLOP/s in a bare bf16 product"
    _log.info("%s: %s", name, measured)
    return peak


def published_tflops(name: str) -> float | None:
    """Of a card by its name as torch says it; None for one that is not in the table, and for a part of a card."""
    if _PART.search(name):
        return None
    return next((peak for pattern, peak in _PUBLISHED if re.search(pattern, name)), None)


def measure_tflops(device: torch.device) -> float | None:
    """What a large bare product of bf16 matrices reaches on a CUDA device; None where it has none in hardware."""
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    width, times = _WIDTH, _TIMES
    first, second = (torch.randn(width, width, dtype=torch.bfloat16, device=device) for _ in range(2))
    result = first @ second  # what a first call loads is not measured
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        torch.mm(first, second, out=result)
    end.record()
    end.synchronize()
    return tflops_of_products(width, times, start.elapsed_time(end))


def tflops_of_products(width: int, times: int, ms: float) -> float:
    """TFLOP/s of so many products of square matrices in so many milliseconds."""
    return times * 2 * width**3 / ms / 1e9
