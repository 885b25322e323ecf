"""`headwater doctor`: do torch, torchrec and fbgemm fit each other, and this machine.

What is installed is read from metadata; what works is tried in a second process, since a binary of
the wrong build can end the process that loads it. What to say about it is one pure function.
"""

from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.version import Version

from headwater.pipelines.console import emit
from headwater.pipelines.options import AsJson

FBGEMM_OF_TORCH = {"2.13": "1.8", "2.14": "1.9"}
"""Minor of fbgemm that is built for a minor of torch; with another it does not load."""
LOCKED_TORCH = "2.13"
LOCKED_FBGEMM = "1.8.0"
LOCKED_TORCHREC = "1.8.0"

_PROBE = """
import json
found = {"build": None, "gpus": [], "error": None}
try:
    import torch
    found["build"] = "cuda" if torch.version.cuda else "cpu"
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    import torchrec
except Exception as error:
    found["error"] = (type(error).__name__ + ": " + str(error)).splitlines()[0]
print(json.dumps(found))
"""
_PROBE_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Installed versions and what this machine has; None where a package is absent."""

    headwater: str | None = None
    python: str = ""
    torch: str | None = None
    torch_build: str | None = None
    """`cpu` or `cuda`; None where torch does not import."""
    torchrec: str | None = None
    fbgemm_cuda: str | None = None
    """The distribution fbgemm-gpu."""
    fbgemm_cpu: str | None = None
    """The distribution fbgemm-gpu-cpu."""
    onnxruntime: str | None = None
    polars: str | None = None
    has_driver: bool = False
    """True where the NVIDIA driver's library loads."""
    gpus: tuple[str, ...] = ()
    cpu_flags: tuple[str, ...] = ()
    """Those of `bf16_flags` that the CPU has."""
    import_error: str | None = None
    """Error of `import torchrec`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not fit, and the commands that mend it."""

    what: str
    fix: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Problems stop training; notes are good to know."""

    problems: list[Problem] = field(default_factory=list[Problem])
    notes: list[str] = field(default_factory=list[str])


def diagnose(versions: Versions) -> Diagnosis:
    """Return what does not fit; a pure function of the record."""
    found = Diagnosis()
    if versions.torch is None and versions.torchrec is None:
        found.notes.append(
            "torch and torchrec are not installed: serving works, training does not. "
            "It needs the train extra: make venv, in a checkout."
        )
        return found
    if versions.torch is None:
        found.problems.append(
            Problem("torchrec is installed without torch", (_pip(f"torch=={LOCKED_TORCH}.0"),))
        )
        return found
    if versions.torchrec is None:
        install = _pip(f"torchrec=={LOCKED_TORCHREC}", deps=False)
        found.problems.append(Problem("torch is installed without torchrec", (install,)))
    found.problems.extend(_fbgemm_problems(versions))
    if versions.import_error and not found.problems:
        found.problems.append(
            Problem(f"`import torchrec` fails: {versions.import_error}", ("make clean venv",))
        )
    if versions.fbgemm_cpu and not versions.fbgemm_cuda and versions.has_driver:
        found.notes.append(
            "this machine has an NVIDIA driver, but fbgemm is the CPU build: training runs on the "
            "CPU. For the GPU: make clean venv ACCELERATOR=cuda"
        )
    if versions.fbgemm_cpu and not versions.fbgemm_cuda:
        found.notes.append(
            "`pip check` says that torchrec misses fbgemm-gpu: known and harmless, since "
            "fbgemm-gpu-cpu takes its place"
        )
    if not versions.gpus and not versions.cpu_flags:
        found.notes.append(
            "this CPU has neither avx512_bf16 nor amx_bf16: leave mixed precision off here, "
            "bfloat16 would be several times slower"
        )
    return found


def _fbgemm_problems(versions: Versions) -> list[Problem]:
    """Return at most one problem: the fix of the first also mends those that follow from it."""
    assert versions.torch is not None, "fbgemm is judged by its torch"
    fits = FBGEMM_OF_TORCH.get(_minor(versions.torch))
    wanted = (
        "fbgemm-gpu" if versions.has_driver and versions.torch_build == "cuda" else "fbgemm-gpu-cpu"
    )
    version = f"{fits}.0" if fits else LOCKED_FBGEMM
    install = _pip(f"{wanted}=={version}", deps=False)
    if fits is None:
        known = ", ".join(FBGEMM_OF_TORCH)
        return [
            Problem(
                f"torch {versions.torch} is not one that Headwater knows a build of fbgemm for "
                f"(known: {known})",
                (_pip(f"torch=={LOCKED_TORCH}.0"), install),
            )
        ]
    if versions.fbgemm_cuda and versions.fbgemm_cpu:
        return [
            Problem(
                f"fbgemm-gpu {versions.fbgemm_cuda} and fbgemm-gpu-cpu {versions.fbgemm_cpu} are "
                "both installed, and unpack into the same folder: the one written last wins",
                (_uninstall("fbgemm-gpu", "fbgemm-gpu-cpu"), install),
            )
        ]
    installed = versions.fbgemm_cuda or versions.fbgemm_cpu
    if installed is None:
        return [Problem("torchrec needs fbgemm, and neither build of it is installed", (install,))]
    name = "fbgemm-gpu" if versions.fbgemm_cuda else "fbgemm-gpu-cpu"
    if _minor(installed) != fits:
        what = f"{name} {installed} does not fit torch {versions.torch}, which needs {fits}"
    elif versions.fbgemm_cuda and not versions.has_driver:
        what = f"fbgemm-gpu {installed} is the CUDA build, and this machine has no NVIDIA driver"
    elif versions.fbgemm_cuda and versions.torch_build == "cpu" and versions.import_error:
        what = f"fbgemm-gpu {installed} is the CUDA build, and torch {versions.torch} the CPU build"
    else:
        return []
    return [Problem(what, (_uninstall(name), install))]


def read_versions() -> Versions:
    """Return what is installed here; tries the imports in a second process, some seconds."""
    tried = _probe() if _version("torch") else {}
    return Versions(
        headwater=_version("headwater"),
        python=platform.python_version(),
        torch=_version("torch"),
        torch_build=tried.get("build"),
        torchrec=_version("torchrec"),
        fbgemm_cuda=_version("fbgemm-gpu"),
        fbgemm_cpu=_version("fbgemm-gpu-cpu"),
        onnxruntime=_version("onnxruntime"),
        polars=_version("polars"),
        has_driver=_has_driver(),
        gpus=tuple(tried.get("gpus", ())),
        cpu_flags=bf16_flags(Path("/proc/cpuinfo")),
        import_error=tried.get("error"),
    )


def bf16_flags(cpuinfo: Path) -> tuple[str, ...]:
    """Return which CPU flags for fast bfloat16 are there; none away from Linux."""
    if not cpuinfo.is_file():
        return ()
    flags = {
        flag
        for line in cpuinfo.read_text().splitlines()
        if line.startswith("flags")
        for flag in line.split()
    }
    return tuple(flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags)


def doctor(*, json: AsJson = False) -> int:
    """Say which versions are installed, whether they fit each other and this machine, and the fix.

    The exit status is 1 when something does not fit.
    """
    versions = read_versions()
    found = diagnose(versions)
    emit(
        {"ok": not found.problems, "versions": asdict(versions), **asdict(found)},
        as_json=json,
        text=_text(versions, found),
    )
    return 1 if found.problems else 0


def _text(versions: Versions, found: Diagnosis) -> str:
    rows = {
        "headwater": versions.headwater,
        "python": versions.python,
        "torch": f"{versions.torch} (build: {versions.torch_build})" if versions.torch else None,
        "torchrec": versions.torchrec,
        "fbgemm-gpu": versions.fbgemm_cuda,
        "fbgemm-gpu-cpu": versions.fbgemm_cpu,
        "onnxruntime": versions.onnxruntime,
        "polars": versions.polars,
        "NVIDIA driver": "yes" if versions.has_driver else "no",
        "GPUs": ", ".join(versions.gpus) or "none",
        "bf16 on CPU": ", ".join(versions.cpu_flags) or "no",
    }
    lines = [f"{name:<15} {value or '-'}" for name, value in rows.items()]
    lines += [f"note: {note}" for note in found.notes]
    for problem in found.problems:
        lines += [f"PROBLEM: {problem.what}.", *(f"  fix: {command}" for command in problem.fix)]
    return "\n".join([*lines, "OK" if not found.problems else "NOT OK: run the fix above."])


def _probe() -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_PROBE_TIMEOUT_S} s"}
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        return {"error": f"the process ended with status {done.returncode}"}
    return json.loads(lines[-1])


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> str:
    """Return the version up to its minor number, as `2.13`."""
    parsed = Version(version)
    return f"{parsed.major}.{parsed.minor}"


def _pip(requirement: str, *, deps: bool = True) -> str:
    return f"python -m pip install {'' if deps else '--no-deps '}{requirement}"


def _uninstall(*names: str) -> str:
    return f"python -m pip uninstall -y {' '.join(names)}"
