"""What this machine's torch can compute."""

import torch

#: torch's attention in bf16 asks for AVX512 code on processors that have it, also where ATEN_CPU_CAPABILITY=default switches that code off.
BF16_ATTENTION = torch.backends.cpu.get_cpu_capability() != "DEFAULT" or not torch.cpu._is_avx512_supported()
