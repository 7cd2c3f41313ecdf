"""`switchkd env`: what a report needs."""

import json
import sys
from types import SimpleNamespace

from switchkd.cli import main
from switchkd.commands import env
from switchkd.versions import __version__


def test_it_names_versions_packages_and_what_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(env._OPTIONAL, "no-such-package", "nothing at all")
    assert main(["env"]) == 0
    printed = capsys.readouterr()
    lines = {line[:20].split("  ")[0].strip(): line for line in printed.out.splitlines()}
    assert lines["switchkd"].endswith(__version__)
    assert lines["no-such-package"].endswith("not installed (nothing at all)")
    assert {"python", "platform", "processor", "torch", "GPUs", "driver", "torchvision"} <= set(lines)
    assert printed.err == ""


def test_json_is_all_that_is_printed(capsys):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["switchkd"] == __version__
    assert set(env._NEEDED) | set(env._OPTIONAL) <= set(found)


def test_a_torchvision_of_another_torch_is_said(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(env, "versions", lambda *names: dict.fromkeys(names, "1.0"))
    monkeypatch.setattr(env, "import_module", fail)
    assert env.environment()["torchvision"] == "1.0, which cannot be imported: operator torchvision::nms does not exist"


def test_gpus_and_driver_are_named(monkeypatch):
    import torch

    one = SimpleNamespace(name="A GPU", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: one)
    monkeypatch.setattr(env.shutil, "which", lambda name: sys.executable)
    monkeypatch.setattr(env.subprocess, "run", lambda *given, **named: SimpleNamespace(stdout="570.1\n"))
    found = env.environment()
    assert found["GPUs"] == "0: A GPU, 80 GiB, compute capability 9.0"
    assert found["driver"] == "570.1"
