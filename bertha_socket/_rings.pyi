"""What native/cffi_build.py declares for carriers, which cffi cannot tell a type checker."""

from typing import Any

ffi: Any
lib: Any
