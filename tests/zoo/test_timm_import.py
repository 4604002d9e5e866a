"""The torchvision repair: in a fresh process each time, because imports happen once."""

from __future__ import annotations

import subprocess
import sys


def run(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_timm_imports_and_reads_images():
    assert run("from simhpc.zoo.timm_import import timm; print(timm.is_model('resnet18'))").strip() == "True"


def test_nothing_is_defined_where_torchvision_loads():
    program = (
        "import sys, types, torch\n"
        "fake = types.ModuleType('torchvision'); sys.modules['torchvision'] = fake\n"
        "real = torch.library.define\n"
        "def define(name, *a, **k):\n"
        "    assert not name.startswith('torchvision::'), name\n"
        "    return real(name, *a, **k)\n"
        "torch.library.define = define\n"
        "try:\n"
        "    import simhpc.zoo.timm_import\n"
        "except ImportError:\n"
        "    pass  # timm wants more of torchvision than the fake has\n"
        "print('fine')\n"
    )
    assert run(program).strip() == "fine"


def test_other_failures_of_torchvision_are_not_hidden():
    program = (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torchvision': raise RuntimeError('something else')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "try:\n"
        "    import simhpc.zoo.timm_import\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    assert run(program).strip() == "something else"
