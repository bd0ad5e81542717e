"""Imports between rooms run one way (ARCHITECTURE.md), and importing the package stays cheap."""

import importlib
import json
import subprocess
import sys

import pytest
from repo.tree import imported_modules, module_of, name_of, source_files

BASE = {"records", "config", "inputs", "settings", "stage_parts", "stages", "stage_rows", "algorithms", "__version__"}
BASE |= {"model_places"}
LEAVES = {"objectives", "tasks", "report"}
MAY_IMPORT = {
    "records": set(),
    "inputs": set(),
    "settings": set(),
    "stage_parts": {"settings"},
    "stages": {"settings", "stage_parts", "algorithms"},
    "algorithms": {"inputs"},
    "stage_rows": {"algorithms", "settings", "stage_parts", "stages"},
    "model_places": {"inputs", "stages"},
    "config": {"model_places", "inputs", "settings", "stage_parts", "stages", "stage_rows", "algorithms"},
    "objectives": BASE,
    "tasks": BASE,
    "report": BASE,
    "model": BASE,
    "rollout": BASE | {"model"},
    "rewards": BASE | {"model", "rollout"},
    "train": BASE | LEAVES | {"model", "rewards", "rollout"},
    "studies": BASE | LEAVES | {"model", "rewards", "rollout", "train"},
}
"""Room -> the other rooms it may import. What is not listed here (`cli`, the package itself) may import any room."""

HEAVY_OR_OPTIONAL = [
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "math_verify",
    "peft",
    "reasoning_gym",
    "tensorboard",
    "trackio",
]
HEAVY_OR_OPTIONAL += ["bitsandbytes", "jsonschema", "matplotlib", "py3langid", "trl", "typer", "wandb"]

OWN_PROCESS = {"outscore.rewards.sandbox_warden"}
"""Modules that only ever run as a process of their own."""


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_imports_run_one_way(path):
    room = room_of(module_of(path))
    if room not in MAY_IMPORT:
        return
    allowed = MAY_IMPORT[room] | {room}
    wrong = [
        f"{name_of(path)}:{line} imports {module}, and {room} may import only {sorted(allowed)}"
        for line, module in imported_modules(path)
        if module.split(".")[0] == "outscore" and room_of(module) not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_the_mathematics_knows_tensors_only():
    """No model, no file, no process group in `objectives`."""
    outward = {
        "io",
        "json",
        "logging",
        "os",
        "pathlib",
        "random",
        "shutil",
        "socket",
        "subprocess",
        "tempfile",
        "threading",
    }
    allowed = (sys.stdlib_module_names - outward) | {"torch", "numpy", "jaxtyping", "outscore"}
    files = [path for path in source_files() if room_of(module_of(path)) == "objectives"]
    imported = {(name_of(path), module) for path in files for _, module in imported_modules(path)}
    assert files
    assert not {(path, module) for path, module in imported if module.split(".")[0] not in allowed}
    assert not {(path, module) for path, module in imported if module.startswith("torch.distributed")}


@pytest.mark.parametrize("name", sorted(BASE - {"__version__"}))
def test_records_and_configuration_need_no_torch(name):
    paths = [path for path in source_files() if module_of(path).startswith(f"outscore.{name}")]
    imported = {module.split(".")[0] for path in paths for _, module in imported_modules(path)}
    assert paths and {"torch", "transformers"}.isdisjoint(imported)


def test_a_recipe_is_read_and_its_rows_are_checked_without_torch():
    code = "import sys, outscore.config; print({'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_worker_process_of_rewards_loads_no_torch():
    """It is started anew after every fault: half a second instead of five."""
    code = "import sys, outscore.rewards.worker; print({'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_importing_the_package_loads_no_extra_and_no_cuda():
    code = (
        "import json, sys, outscore, torch\n"
        f"loaded = [name for name in {HEAVY_OR_OPTIONAL!r} if name in sys.modules]\n"
        "print(json.dumps([loaded, torch.cuda.is_initialized()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, cuda_initialized = json.loads(done.stdout)
    assert loaded == []
    assert cuda_initialized is False


def test_every_module_imports_without_any_extra():
    """`make demo` installs none of them: a name that needs one is imported where it is used."""
    extras = [name for name in HEAVY_OR_OPTIONAL if name != "typer"] + ["pandas", "pytest", "hypothesis", "beartype"]
    modules = [module_of(path) for path in source_files()]
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({extras!r}))\n"  # None in sys.modules makes an import fail
        f"for name in {modules!r}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_every_module_imports_with_its_annotations_checked(path):
    """The tests turn every annotation into a check; one that cannot become a check is an error here."""
    assert importlib.import_module(module_of(path))
