"""The cffi extension's types: what native/cffi_build.py declares, which cffi cannot tell a type checker."""

from typing import Any

ffi: Any
lib: Any
