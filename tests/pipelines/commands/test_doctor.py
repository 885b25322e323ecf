"""`headwater doctor`: every known mismatch is explained, and this environment fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.pipelines.cli import main
from headwater.pipelines.commands import doctor
from headwater.pipelines.commands.doctor import Versions, bf16_flags, diagnose

CPU = Versions(
    python="3.11.7",
    torch="2.13.0",
    torch_build="cuda",
    torchrec="1.8.0",
    fbgemm_cpu="1.8.0",
    cpu_flags=("avx512_bf16",),
)
CUDA = replace(CPU, fbgemm_cpu=None, fbgemm_cuda="1.8.0", has_driver=True, gpus=("H100",))
INSTALL_CPU = "python -m pip install --no-deps fbgemm-gpu-cpu==1.8.0"
INSTALL_CUDA = "python -m pip install --no-deps fbgemm-gpu==1.8.0"


@pytest.mark.parametrize(
    "versions",
    [CPU, CUDA, Versions(), replace(CPU, torch="2.14.1", fbgemm_cpu="1.9.0", torchrec="1.9.2")],
    ids=["cpu", "cuda", "serve extra only", "next minor"],
)
def test_versions_that_fit_have_no_problem(versions: Versions) -> None:
    assert diagnose(versions).problems == []


@pytest.mark.parametrize(
    ("versions", "words", "fix"),
    [
        pytest.param(
            replace(CPU, fbgemm_cuda="1.9.0", import_error="OSError: no"),
            "both installed",
            ("python -m pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu", INSTALL_CPU),
            id="both builds share one folder",
        ),
        pytest.param(
            replace(CUDA, fbgemm_cpu="1.8.0"),
            "both installed",
            ("python -m pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu", INSTALL_CUDA),
            id="both builds, with a driver",
        ),
        pytest.param(
            replace(CPU, fbgemm_cpu="1.9.0", import_error="OSError: no"),
            "fbgemm-gpu-cpu 1.9.0 does not fit torch 2.13.0, which needs 1.8",
            ("python -m pip uninstall -y fbgemm-gpu-cpu", INSTALL_CPU),
            id="fbgemm too new",
        ),
        pytest.param(
            replace(CPU, torch="2.14.1+cpu", torch_build="cpu"),
            "fbgemm-gpu-cpu 1.8.0 does not fit torch 2.14.1+cpu, which needs 1.9",
            (
                "python -m pip uninstall -y fbgemm-gpu-cpu",
                "python -m pip install --no-deps fbgemm-gpu-cpu==1.9.0",
            ),
            id="torch too new",
        ),
        pytest.param(
            replace(CUDA, has_driver=False, gpus=(), import_error="libnvidia-ml.so.1"),
            "no NVIDIA driver",
            ("python -m pip uninstall -y fbgemm-gpu", INSTALL_CPU),
            id="CUDA build without a driver",
        ),
        pytest.param(
            replace(CUDA, torch_build="cpu", import_error="OSError: fbgemm_gpu_config.so"),
            "torch 2.13.0 the CPU build",
            ("python -m pip uninstall -y fbgemm-gpu", INSTALL_CPU),
            id="CUDA fbgemm on CPU torch",
        ),
        pytest.param(
            replace(CPU, fbgemm_cpu=None), "neither build", (INSTALL_CPU,), id="no fbgemm"
        ),
        pytest.param(
            replace(CPU, torch="2.99.0"),
            "not one that Headwater knows",
            ("python -m pip install torch==2.13.0", INSTALL_CPU),
            id="unknown torch",
        ),
        pytest.param(
            replace(CPU, torch=None, torch_build=None),
            "without torch",
            ("python -m pip install torch==2.13.0",),
            id="torchrec without torch",
        ),
        pytest.param(
            replace(CPU, torchrec=None, import_error="No module named 'torchrec'"),
            "without torchrec",
            ("python -m pip install --no-deps torchrec==1.8.0",),
            id="torch without torchrec",
        ),
        pytest.param(
            replace(CPU, import_error="ImportError: numpy"),
            "ImportError: numpy",
            ("make clean venv",),
            id="fails for another reason",
        ),
    ],
)
def test_mismatch_is_explained_with_its_fix(
    versions: Versions, words: str, fix: tuple[str, ...]
) -> None:
    (problem,) = diagnose(versions).problems
    assert words in problem.what
    assert problem.fix == fix


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        (replace(CPU, has_driver=True), "ACCELERATOR=cuda"),
        (CPU, "known and harmless"),
        (replace(CPU, cpu_flags=()), "bfloat16"),
        (Versions(), "train extra"),
    ],
)
def test_what_is_good_to_know_is_noted(versions: Versions, words: str) -> None:
    assert any(words in note for note in diagnose(versions).notes)


def test_cpu_flags_are_read_from_the_kernel(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name : x amx_bf16\nflags : fpu avx512_bf16 sse\n")
    assert bf16_flags(cpuinfo) == ("avx512_bf16",)
    assert bf16_flags(tmp_path / "absent") == ()


def test_this_environment_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (status, result["ok"], result["problems"]) == (0, True, [])
    assert result["versions"]["torch"].startswith("2.13")


@pytest.mark.parametrize(
    ("probe", "within_s", "says"),
    [
        ("import os; os.abort()", 60.0, "the process ended with status -6"),
        ("import time; time.sleep(60)", 0.5, "no answer within 0.5 s"),
    ],
)
def test_lookup_that_crashes_or_hangs_is_a_problem_and_no_trace(
    probe: str,
    within_s: float,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "_PROBE", probe)
    monkeypatch.setattr(doctor, "_PROBE_TIMEOUT_S", within_s)
    status = main(["doctor", "--json"])
    found = capsys.readouterr().out
    assert status != 0
    assert says in found
