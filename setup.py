"""Builds the native parts that go into the wheel; everything declarative is in pyproject.toml.

The preload library is built by native/Makefile (it is no Python extension, and developers build it
without Python too), the cffi extension by cffi's setuptools support, against the stable ABI, so that one
wheel serves every Python from 3.11 on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution
from setuptools.errors import ExecError

ROOT = Path(__file__).resolve().parent
SHIM = Path("bertha_socket/lib/libbertha_shim.so")
#: What native/Makefile puts beside it, as far as the libraries' headers were there.
NATIVE_FILES = (SHIM, SHIM.with_name("bertha-relay"), SHIM.with_name("bertha-carrier"))
CFFI_SCRIPT = Path("native/cffi_build.py")
RINGS = "bertha_socket._rings"
DIRECT = Path("native/python/direct.c")
#: The stable ABI of 3.11.
LIMITED_API = "0x030b0000"


def _run_make(target: str, build: Path, *settings: str) -> None:
    make = shutil.which("make")
    if make is None:
        raise ExecError("native/Makefile needs make and a C compiler: install build-essential")
    jobs = min(2, os.cpu_count() or 1)
    command = [make, "-C", str(ROOT / "native"), f"-j{jobs}", f"BUILD={build}", *settings, target]
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise ExecError(
            f"building native/'s {target} failed (status {error.returncode}): see make's output"
        ) from error


class BuildExtensions(build_ext):
    """Gives the extension that has the shim's core in it that core's archive, as BuildNative makes it."""

    def run(self) -> None:
        # Where BuildNative puts its objects.
        build = ROOT / "native/build"
        if not self.editable_mode:
            build = Path(self.get_finalized_command("build").build_temp).resolve() / "native"
        for extension in self.extensions:
            if extension.name == RINGS:
                _run_make("core", build)
                extension.extra_objects = [str(build / "release/libcore.a")]
        super().run()


class BuildNative(build_py):
    """Copies the Python files as usual, then builds the preload library beside them."""

    editable_mode: bool

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the package is the checkout's, so the library goes there too
            self._make(ROOT / "native/build", ROOT / SHIM)
            return
        # Away from the checkout's own objects: a wheel holds nothing left over from development.
        scratch = Path(self.get_finalized_command("build").build_temp).resolve() / "native"
        self._make(scratch, Path(self.build_lib).resolve() / SHIM)

    def _make(self, build: Path, shim: Path) -> None:
        _run_make("lib", build, f"LIBDIR={shim.parent}")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs: list[str] = super().get_outputs(include_bytecode)
        built = [Path(self.build_lib) / name for name in NATIVE_FILES]
        return [*outputs, *(str(path) for path in built if path.exists())]


class NativeDistribution(Distribution):
    """Says that the wheel is for one platform even before the cffi extension is known."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    cmdclass={"build_py": BuildNative, "build_ext": BuildExtensions},
    distclass=NativeDistribution,
    cffi_modules=[f"{CFFI_SCRIPT}:{name}" for name in ("ffibuilder", "rings_ffibuilder")]
    if (ROOT / CFFI_SCRIPT).exists()
    else [],
    ext_modules=[
        Extension(
            "bertha_socket._direct",
            [str(DIRECT)],
            define_macros=[("Py_LIMITED_API", LIMITED_API), ("_GNU_SOURCE", None)],
            py_limited_api=True,
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
        )
    ]
    if DIRECT.exists()
    else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
