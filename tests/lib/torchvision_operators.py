"""Lets PyPI's torchvision import beside a CPU build of torch, whose compiled operators do not load there.

torchvision names its operators as it is imported, and fails where they are missing. Resizing and the image and video processors of
transformers call none of them, so it is enough to declare them: whoever calls one is told that it has no kernel.

    python tests/lib/torchvision_operators.py

puts this file into the environment of that Python, and makes each of its processes import it as it starts (a .pth file). That imports
no torch: operators are declared as torchvision is imported, and only where its own did not load.
"""

import sys

_REGIONS = "Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SIZES = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_CONVOLUTION = (
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
    "SymInt groups, SymInt offset_groups, bool use_mask"
)
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align(Tensor input, {_REGIONS}, int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    f"{_SIZES}, int sampling_ratio, bool aligned) -> Tensor",
    f"ps_roi_align(Tensor input, {_REGIONS}, int sampling_ratio) -> (Tensor, Tensor)",
    "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, SymInt pooled_height, "
    f"SymInt pooled_width, int sampling_ratio, {_SIZES}) -> Tensor",
    f"roi_pool(Tensor input, {_REGIONS}) -> (Tensor, Tensor)",
    "_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, SymInt pooled_height, "
    f"SymInt pooled_width, {_SIZES}) -> Tensor",
    f"ps_roi_pool(Tensor input, {_REGIONS}) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, SymInt pooled_height, "
    f"SymInt pooled_width, {_SIZES}) -> Tensor",
    f"deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, {_CONVOLUTION}) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    f"{_CONVOLUTION}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
#: The modules of torchvision that name its operators; it imports `torchvision.extension`, which loads them, before.
NAMING = ("torchvision._meta_registrations", "torchvision._autograd_registrations")


class DeclareOperators:
    """Finds no module, but is asked for each: declares the operators before the first module that names them."""

    library = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in NAMING or cls.library is not None:
            return
        import torch

        is_cpu_build = torch.version.cuda is None and torch.version.hip is None
        if not is_cpu_build or hasattr(torch.ops.torchvision, "nms"):
            return
        cls.library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            cls.library.define(operator)


def install():
    """Have operators declared in this process, if torchvision is ever imported in it."""
    if DeclareOperators not in sys.meta_path:
        sys.meta_path.insert(0, DeclareOperators)


if __name__ == "__main__":
    import shutil
    import sysconfig
    from pathlib import Path

    packages = Path(sysconfig.get_path("purelib"))
    shutil.copy(__file__, packages)
    name = Path(__file__).stem
    (packages / f"{name}.pth").write_text(f"import {name}; {name}.install()\n", encoding="utf-8")
